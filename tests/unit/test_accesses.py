"""Closed forms of the open-loop schedule."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from kvsim.accesses import _plan, expand
from kvsim.errors import MachineError, TraceError
from kvsim.model import Model
from kvsim.replay import replay
from kvsim.trace import OUTERMOST, AccessTrace, RequestTrace
from kvsim_core._expand import Expander

LOOKUP, READ, WRITE, CONTEXT = 0, 1, 2, 4
DENSE = Model.load("llama-3.1-8b")


def trace_of(inputs: list[int], outputs: list[int], **columns: Any) -> RequestTrace:
    times = columns.pop("arrival_ps", list(range(len(inputs))))
    return RequestTrace.from_lists(
        name="t",
        block_tokens=columns.pop("block_tokens", 4),
        arrival_ps=times,
        input_tokens=inputs,
        output_tokens=outputs,
        **columns,
    )


def steps_of(trace: RequestTrace, model: Model = DENSE, **options: Any) -> AccessTrace:
    options.setdefault("weights", False)
    return expand(trace, model, **options).whole()


def accesses(trace: AccessTrace, row: int) -> list[tuple[int, int, int]]:
    cut = slice(trace.offsets[row], trace.offsets[row + 1])
    assert trace.bytes is not None
    columns = (trace.block[cut], trace.op[cut], trace.bytes[cut])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_one_request_alone() -> None:
    # 10 prompt tokens in blocks of 4 (the last holds 2), 6 output tokens: one admission, one row of 5 steps
    found = steps_of(trace_of([10], [6], block_ids=[[7, 8, 9]], arrival_ps=[1000]))
    assert found.request.tolist() == [0, -1]
    assert found.repeat.tolist() == [1, 5]
    assert found.tokens.tolist() == [1, 1]
    assert found.arrival_ps.tolist() == [1000, 1000]
    assert found.fixed_ps.tolist() == [0, 0]

    lane, per_token = 3, DENSE.kv_bytes_per_token
    assert per_token == 2 * 32 * 8 * 128 * 2  # K and V, layers, heads, head size, bytes
    assert accesses(found, 0) == [(0, LOOKUP, -1), (1, LOOKUP, -1), (2, LOOKUP, -1)]
    # contexts 11 to 15: mean 13
    assert accesses(found, 1) == [(2, CONTEXT, 13 * per_token), (lane, WRITE, per_token)]

    attention, ffn = DENSE.prefill_flops(9, 10)  # all blocks may hit; the last token is computed anyway
    assert found.flops[0].tolist() == [attention + 2 * DENSE.head_parameters, ffn]
    over_context = 4 * 32 * 32 * 128 * 12.5  # layers, heads, head size, 12 earlier tokens and half of its own
    assert found.flops[1].tolist() == [DENSE.flops_per_token(0) + over_context, DENSE.flops_per_token(1)]

    table = found.blocks
    assert table.bytes.tolist() == [4 * per_token, 4 * per_token, 2 * per_token, 0]
    assert table.tokens.tolist() == [4, 4, 2, 0]
    assert table.parent.tolist() == [-1, 0, 1, -1]
    assert table.position.tolist() == [0, 1, 2, -1]
    assert table.home.tolist() == [-1, -1, -1, 0]
    assert table.recompute_flops[2].tolist() == list(DENSE.prefill_flops(8, 10))
    assert found.meta.layers == 32
    assert found.meta.activation_bytes_per_token == 4096 * 2
    assert (found.meta.model, found.meta.lanes) == (DENSE.name, 32)


def test_repeats_use_the_mean_context_rounded_half_up() -> None:
    for outputs, mean in ((2, 11), (3, 12), (4, 12), (5, 13)):
        found = steps_of(trace_of([10], [outputs], block_ids=[[7, 8, 9]]))
        assert found.repeat.tolist() == [1, outputs - 1]
        assert accesses(found, 1)[0] == (2, CONTEXT, mean * DENSE.kv_bytes_per_token)


def test_two_requests_on_one_lane_take_turns() -> None:
    found = steps_of(trace_of([8, 8], [3, 4], block_ids=[[1, 2], [1, 3]]), lanes=1)
    assert found.request.tolist() == [0, -1, 1, -1]
    assert found.repeat.tolist() == [1, 2, 1, 3]
    assert [a[:2] for a in accesses(found, 2)] == [(0, LOOKUP), (2, LOOKUP)]  # block 1 is shared
    assert found.blocks.n == 3 + 1
    assert found.arrival_ps.tolist() == [0, 0, 1, 1]


def test_two_lanes_decode_together() -> None:
    # the second is admitted while the first decodes its second token; then both run until the first ends
    found = steps_of(trace_of([8, 8], [4, 9], block_ids=[[1, 2], [1, 3]]), lanes=2)
    assert found.request.tolist() == [0, 1, -1, -1]
    assert found.repeat.tolist() == [1, 1, 2, 6]
    assert found.tokens.tolist() == [1, 2, 2, 1]
    assert [a[:2] for a in accesses(found, 1)] == [(0, LOOKUP), (2, LOOKUP), (1, CONTEXT), (3, WRITE)]
    assert [a[0] for a in accesses(found, 2) if a[1] == CONTEXT] == [1, 2]
    assert [a[0] for a in accesses(found, 3) if a[1] == CONTEXT] == [2]
    one = DENSE.flops_per_token(1)
    assert found.flops[:, 1].tolist() == [one, 2 * one, 2 * one, one]


def test_data_are_looked_up_before_the_prompt_and_live_outermost() -> None:
    trace = trace_of([8, 8], [1, 2], block_ids=[[1, 2], [1, 3]], data=[["b", "a"], []], data_bytes={"a": 70, "b": 30})
    found = steps_of(trace, lanes=1)
    table, first = found.blocks, 3 + 1
    assert table.kind[first:].tolist() == [3, 3]
    assert table.bytes[first:].tolist() == [70, 30]
    assert table.home.tolist() == [-1, -1, -1, 0, OUTERMOST, OUTERMOST]
    assert table.recompute_flops[first:].tolist() == [[0, 0], [0, 0]]
    assert accesses(found, 0) == [(first + 1, LOOKUP, -1), (first, LOOKUP, -1), (0, LOOKUP, -1), (1, LOOKUP, -1)]
    assert [a[:2] for a in accesses(found, 1)] == [(0, LOOKUP), (2, LOOKUP)]
    with_weights = steps_of(trace, lanes=1, weights=True)
    kinds = with_weights.blocks.kind[[a[0] for a in accesses(with_weights, 0)]].tolist()
    assert kinds == [1] * (len(kinds) - 4) + [3, 3, 0, 0]


def test_data_are_read_from_the_outermost_tier_once() -> None:
    size = 10**9
    trace = trace_of([8, 8], [1, 1], block_ids=[[1, 2], [1, 2]], data=[[0, 1], [1]], data_bytes=[size, 2 * size])
    plain = replay(dataclasses.replace(trace, data_offsets=[0, 0, 0], data=[], data_bytes=[]),
                   machine="h100x8", model=DENSE)  # fmt: skip
    found = replay(trace, machine="h100x8", model=DENSE, check=True)
    data = 3
    hits = np.asarray(found.arrays["hits"])[:, data, 0, 0]
    assert np.asarray(found.arrays["lookups"])[data].tolist() == [3, 0, 5 * size]
    assert hits.tolist() == [1, 0, 2], "the second reader finds what the first brought up"
    assert found.identity.parts_ps["compute"] == plain.identity.parts_ps["compute"]
    assert found.identity.parts_ps["stalls"] > plain.identity.parts_ps["stalls"]
    large = dataclasses.replace(trace, data_bytes=[10**17, 1])
    with pytest.raises(MachineError, match=r"found 61\.44 TB in ssd, its outermost tier, expected 100 PB at least"):
        replay(large, machine="h100x8", model=DENSE)


def test_more_lanes_than_requests_change_nothing() -> None:
    trace = trace_of([8, 8, 5], [4, 9, 2], block_ids=[[1, 2], [1, 3], [1, 4]])
    few, many = steps_of(trace, lanes=3), steps_of(trace, lanes=10**12)
    assert few.blocks == many.blocks
    assert (few.block == many.block).all()
    assert (few.offsets == many.offsets).all()


def test_a_request_waits_for_those_before_it_and_holds_up_nobody() -> None:
    # 1 waits for 0 (5 tokens), 2 is free to go first
    found = steps_of(trace_of([4, 4, 4], [5, 2, 2], after=[[], [0], []]), lanes=3)
    assert found.request.tolist() == [0, 2, -1, -1, 1, -1]
    assert found.repeat.tolist() == [1, 1, 1, 2, 1, 1]
    assert found.arrival_ps.tolist() == [0, 2, 2, 2, 1, 1]


def test_no_output_tokens() -> None:
    found = steps_of(trace_of([4, 4], [0, 1], block_ids=[[1], [2]]))
    assert found.request.tolist() == [0, 1]
    assert found.repeat.tolist() == [1, 1]
    assert set(found.op.tolist()) == {LOOKUP}


def test_prompts_without_ids_are_private() -> None:
    found = steps_of(trace_of([100], [3]))
    lane, per_token = 0, DENSE.kv_bytes_per_token
    assert found.tokens.tolist() == [100, 1]
    attention, ffn = DENSE.prefill_flops(0, 100)
    assert found.flops[0].tolist() == [attention + 2 * DENSE.head_parameters, ffn]
    assert accesses(found, 0) == [(lane, WRITE, 100 * per_token)]
    assert accesses(found, 1) == [(lane, READ, 102 * per_token), (lane, WRITE, per_token)]
    assert found.blocks.bytes.tolist() == [0]
    assert found.blocks.home.tolist() == [0]


def test_tokens_beyond_the_blocks_are_computed_and_written() -> None:
    found = steps_of(trace_of([10], [1], block_ids=[[1, 2]]))
    assert found.tokens.tolist() == [2]
    attention, ffn = DENSE.prefill_flops(8, 10)
    assert found.flops[0].tolist() == [attention + 2 * DENSE.head_parameters, ffn]
    assert accesses(found, 0)[-1] == (2, WRITE, 2 * DENSE.kv_bytes_per_token)


def test_empty_prompt_counts_as_one_token() -> None:
    found = steps_of(trace_of([0], [2]))
    assert found.tokens.tolist() == [1, 1]
    assert accesses(found, 1)[0] == (0, READ, DENSE.kv_bytes_per_token)  # its first output token


def test_known_output_is_written_once_at_the_end() -> None:
    # 8 output tokens fill two blocks behind a prompt of one; written in the last of the 7 decode steps
    trace = trace_of([4], [8], block_ids=[[1]], output_ids=[[2, 3]])
    found = steps_of(trace)
    assert found.repeat.tolist() == [1, 6, 1]
    assert [a[1] for a in accesses(found, 1)] == [CONTEXT]
    assert accesses(found, 2)[1:] == [(1, WRITE, -1), (2, WRITE, -1)]
    assert (found.op == WRITE).sum() == 2


def test_dense_weights_are_looked_up_once_a_step() -> None:
    found = steps_of(trace_of([8, 8], [3, 4], block_ids=[[1, 2], [1, 3]]), weights=True)
    kinds = found.blocks.kind[found.block]
    blocks = DENSE.weight_blocks()
    assert (found.op[kinds == 1] == LOOKUP).all()
    weights = found.block[kinds == 1].reshape(found.n, len(blocks))
    assert (weights == 3 + np.arange(len(blocks))).all()
    assert found.blocks.bytes[weights[0]].sum() == DENSE.weight_bytes
    assert found.blocks.operation[weights[0]].tolist() == [b.operation for b in blocks]
    assert found.bytes is not None
    sizes = found.bytes[kinds == 1].reshape(found.n, len(blocks))
    assert blocks[0].label == "embedding"  # a row a token: prompt of 8; with one decoding; two; one
    assert (sizes[:, 0] // DENSE.embedding_row_bytes).tolist() == [8, 9, 2, 1]
    assert (sizes[:, 1:] == -1).all()


def test_experts_read_what_the_tokens_touch() -> None:
    model = Model.load("mixtral-8x7b")
    found = steps_of(trace_of([1, 8], [3, 4]), model, weights=True)
    experts = [k for k, b in enumerate(model.weight_blocks()) if b.is_expert]
    dense = sum(b.bytes for b in model.weight_blocks() if b.operation == 1 and not b.is_expert)
    for row, tokens in ((0, 1), (1, 8 + 1), (2, 2)):
        sizes = [accesses(found, row)[k][2] for k in experts]
        assert sum(sizes) == model.ffn_read_bytes(tokens) - dense
        assert max(sizes) - min(sizes) <= 1
    one = [accesses(found, 0)[k][2] for k in experts]
    assert one[0] == pytest.approx(2 * model.expert_bytes, rel=1e-9)  # 2 of 8 experts
    assert one[0] < found.blocks.bytes[experts[0]]


def test_windows_read_less_than_they_would_without() -> None:
    model = Model.load("gemma-3-27b")
    assert model.local_layers
    assert model.window
    for tokens in (100, model.window - 1, model.window, model.window + 1, 100_000):
        found = steps_of(trace_of([tokens], [2]), model)
        reads = [a for a in accesses(found, 1) if a[1] == READ]
        assert reads == [(0, READ, model.kv_read_bytes(tokens + 1))]
        flops = model.flops_per_token(0) + model.attention_flops(1, tokens)
        assert found.flops[1, 0] == pytest.approx(flops, rel=1e-12)
    # a token's KV is written in every layer, and stored where it grows
    assert accesses(found, 1)[-1] == (0, WRITE, model.kv_stored_bytes(1))
    blocks = steps_of(trace_of([4], [2], block_ids=[[1]]), model).blocks
    assert blocks.bytes[0] == 4 * model.kv_bytes_per_token < 4 * model.kv_stored_bytes(1)


def test_state_needs_a_checkpoint_where_a_prefix_ends() -> None:
    model = Model.load("qwen3-next-80b-a3b")
    state = model.state_bytes
    assert state > 0
    # the second turn shares the first block; the first prompt ends with a partial second one
    trace = trace_of([6, 12], [1, 2], block_ids=[[1, 2], [1, 3, 4]])
    found = steps_of(trace, model)
    kv, at_0, at_1, at_3 = 4, 4, 5, 6  # blocks 0 (1), 1 (1 2), 2 (1 3), 3 (1 3 4); checkpoints of 0, 1, 3
    assert found.blocks.kind[kv:].tolist() == [2, 2, 2, 0, 0, 2, 2]
    assert found.blocks.bytes[kv:].tolist() == [state] * 3 + [0] * 4
    assert found.blocks.parent[kv : kv + 3].tolist() == [0, 1, 3]
    assert found.blocks.home[kv:].tolist() == [-1] * 3 + [0] * 4
    lane_kv, lane_state = 7, 9
    assert accesses(found, 0) == [
        (0, LOOKUP, -1),
        (1, LOOKUP, -1),
        (at_0, WRITE, -1),  # the last whole block
        (at_1, WRITE, -1),  # the last block
        (lane_state, WRITE, state),
    ]
    assert accesses(found, 1) == [
        (at_0, LOOKUP, -1),
        (0, LOOKUP, -1),
        (2, LOOKUP, -1),
        (3, LOOKUP, -1),
        (at_3, WRITE, -1),
        (lane_state, WRITE, state),
    ]
    assert accesses(found, 2) == [
        (3, CONTEXT, model.kv_read_bytes(13)),
        (lane_state, READ, state),
        (lane_state, WRITE, state),
        (lane_kv, WRITE, model.kv_stored_bytes(1)),
    ]


def test_state_is_kept_where_a_known_output_ends() -> None:
    model = Model.load("qwen3-next-80b-a3b")
    trace = trace_of([4, 12], [4, 1], block_ids=[[1], [1, 2, 3]], output_ids=[[2], []])
    found = steps_of(trace, model, lanes=1)
    kv = {1: 0, 2: 1, 3: 2}
    checkpoint = {1: 3, 2: 4, 3: 5}
    assert accesses(found, 2)[-2:] == [(kv[2], WRITE, -1), (checkpoint[2], WRITE, -1)]
    assert accesses(found, 3)[0] == (checkpoint[2], LOOKUP, -1)


def test_chunks_change_nothing() -> None:
    rng = np.random.default_rng(1)
    inputs, outputs = rng.integers(1, 90, 60), rng.integers(0, 40, 60)
    ids = [rng.integers(0, 2, -(-int(tokens) // 4)).tolist() for tokens in inputs]
    trace = trace_of(inputs.tolist(), outputs.tolist(), block_ids=ids)
    whole = steps_of(trace, lanes=5, weights=True)
    for chunk_steps in (1, 7, 64):
        stream = expand(trace, DENSE, lanes=5, chunk_steps=chunk_steps)
        assert stream.whole() == whole
        assert stream.total_steps == whole.n
    assert int((whole.blocks.kind[whole.block[whole.op == LOOKUP]] == 0).sum()) == trace.references


def test_bad_arguments() -> None:
    trace = trace_of([4], [4])
    for wrong in (0, -3):
        with pytest.raises(ValueError, match="lanes"):
            expand(trace, DENSE, lanes=wrong)
        with pytest.raises(ValueError, match="chunk_steps"):
            expand(trace, DENSE, chunk_steps=wrong)
    with pytest.raises(TraceError, match="output_tokens: found 4294967296"):
        expand(trace_of([4], [1 << 32]), DENSE)


def test_enormous_but_allowed_counts() -> None:
    found = steps_of(trace_of([(1 << 31) - 1], [(1 << 31) - 1]))
    assert found.repeat.tolist() == [1, (1 << 31) - 2]
    assert np.isfinite(found.flops).all()
    assert (found.flops > 0).all()


def test_the_core_checks_what_it_is_given() -> None:
    """Whatever a column holds: a clear error or a schedule that ends, never a crash."""
    trace = trace_of(
        [6, 12, 9], [1, 9, 3], block_ids=[[1, 2], [1, 3, 4], [1, 3]], output_ids=[[], [5], []], after=[[], [], [0]]
    )
    good = _plan(trace, Model.load("qwen3-next-80b-a3b"), lanes=2, weights=True).core
    rng = np.random.default_rng(2)
    extremes = [-(1 << 63), -(1 << 31), -2, -1, 0, 1, 5, 1 << 31, 1 << 53, (1 << 63) - 1]
    refused = 0
    for key in good:
        for trial in range(40):
            bad = dict(good)
            value = good[key]
            if isinstance(value, int):
                bad[key] = extremes[trial % len(extremes)]
            elif isinstance(value, tuple):
                bad[key] = [(), (0.0,), (np.nan, np.inf), value[::-1], ([1], [1.0], [1.0])][trial % 5]
            else:
                column = np.array(value)
                if trial == 0:
                    column = column[:-1]
                elif trial == 1:
                    column = np.append(column, column)
                elif trial == 2:
                    column = column.astype(object)
                elif trial == 3:
                    column = column.astype(float) * np.nan
                elif column.size:
                    wide = column.astype(np.float64 if column.dtype.kind == "f" else np.int64)
                    wide.reshape(-1)[rng.integers(wide.size)] = extremes[trial % len(extremes)]
                    column = wide
                bad[key] = column
            try:
                expander = Expander(**bad)
                for _ in range(100):
                    if expander.next_chunk(3) is None:
                        break
            except (ValueError, OverflowError, TypeError):
                refused += 1
    assert refused > 10 * len(good)


def test_requests_that_wait_for_each_other_are_an_error() -> None:
    good = _plan(trace_of([4, 4], [1, 1]), DENSE, lanes=2, weights=False).core
    expander = Expander(**(good | {"after_offsets": [0, 1, 2], "after": [1, 0]}))
    with pytest.raises(ValueError, match="2 requests wait for each other"):
        expander.count_rows()
    with pytest.raises(ValueError, match="2 requests wait for each other"):
        expander.next_chunk()
