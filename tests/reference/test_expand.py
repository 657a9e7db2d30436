"""The core's schedule equals the plain one, row by row and access by access."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference.expand_reference import Row, expand_reference, table_reference

from kvsim.accesses import expand
from kvsim.model import Model
from kvsim.trace import AccessTrace, BlockTable, RequestTrace

# dense; sliding window; experts; latent attention with dense layers and experts; linear layers; sparse attention
MODELS = [
    Model.load(name)
    for name in ("llama-3.1-8b", "gemma-3-27b", "mixtral-8x7b", "deepseek-v3", "qwen3-next-80b-a3b", "glm-5")
]


def rows_of(chunks: list[AccessTrace]) -> list[Row]:
    rows = []
    for c in chunks:
        assert c.bytes is not None
        accesses = list(zip(c.block.tolist(), c.op.tolist(), c.bytes.tolist(), strict=True))
        for k, (start, end) in enumerate(pairwise(c.offsets.tolist())):
            rows.append(
                Row(
                    int(c.arrival_ps[k]),
                    (float(c.flops[k, 0]), float(c.flops[k, 1])),
                    int(c.tokens[k]),
                    int(c.category[k]),
                    int(c.repeat[k]),
                    int(c.request[k]),
                    accesses[start:end],
                )
            )
    return rows


def rows_of_table(t: BlockTable) -> list[tuple[Any, ...]]:
    columns = (t.bytes, t.tokens, t.kind, t.operation, t.parent, t.position, t.home)
    flops = [tuple(pair) for pair in t.recompute_flops.tolist()]
    return list(zip(*(c.tolist() for c in columns), flops, strict=True))


@st.composite
def traces(draw: st.DrawFn, most: int = 8) -> RequestTrace:
    n = draw(st.integers(0, most))
    block_tokens = draw(st.sampled_from([1, 4, 600]))
    few = st.integers(0, 1)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("input_tokens", "output_tokens", "block_ids", "output_ids", "after")
    }
    for i in range(n):
        ids = draw(st.lists(few, max_size=4))
        shortest = (len(ids) - 1) * block_tokens + 1 if ids else 0
        private = draw(st.sampled_from([0, 0, 1, 5000]))
        tokens = draw(st.integers(shortest, len(ids) * block_tokens)) + private
        made = draw(st.sampled_from([0, 1, 2, 3, 7, 3000]))
        room = max(-(-(tokens + made) // block_tokens) - max(-(-tokens // block_tokens), len(ids)), 0)
        known = -(-tokens // block_tokens) == len(ids)
        columns["input_tokens"].append(tokens)
        columns["output_tokens"].append(made)
        columns["block_ids"].append(ids)
        columns["output_ids"].append(draw(st.lists(few, max_size=min(room, 3))) if known else [])
        columns["after"].append(draw(st.lists(st.integers(0, i - 1), max_size=2)) if i else [])
    if draw(st.booleans()):
        columns["after"] = [[]] * n
    if draw(st.booleans()):
        del columns["output_ids"]
    sizes = draw(st.lists(st.integers(0, 10**6), max_size=4))
    pieces = st.lists(st.integers(0, len(sizes) - 1), max_size=4) if sizes else st.just([])
    gaps = draw(st.lists(st.integers(0, 10**9), min_size=n, max_size=n))
    return RequestTrace.from_lists(
        name="drawn",
        block_tokens=block_tokens,
        arrival_ps=[sum(gaps[: i + 1]) for i in range(n)],
        category=draw(st.lists(few, min_size=n, max_size=n)),
        category_names=("a", "b"),
        data=[draw(pieces) for _ in range(n)],
        data_bytes=sizes,
        **columns,
    )


@settings(max_examples=400)
@given(
    trace=traces(),
    model=st.sampled_from(MODELS),
    lanes=st.integers(1, 4),
    chunk_steps=st.sampled_from([1, 2, 3, 2048]),
    weights=st.booleans(),
)
def test_core_equals_plain_python(
    trace: RequestTrace, model: Model, lanes: int, chunk_steps: int, weights: bool
) -> None:
    stream = expand(trace, model, lanes=lanes, chunk_steps=chunk_steps, weights=weights)
    expected = expand_reference(trace, model, lanes=lanes, weights=weights)
    chunks = list(stream)
    assert all(chunk.n <= chunk_steps for chunk in chunks)
    assert rows_of(chunks) == expected
    assert stream.total_steps == len(expected)
    assert rows_of_table(stream.blocks) == table_reference(trace, model, lanes, weights)
    assert rows_of(list(stream)) == expected  # a second pass is the same


@settings(max_examples=100)
@given(trace=traces(most=12), model=st.sampled_from(MODELS), lanes=st.integers(1, 4))
def test_totals(trace: RequestTrace, model: Model, lanes: int) -> None:
    whole = expand(trace, model, lanes=lanes).whole()
    admitted = whole.request[whole.request >= 0]
    assert sorted(admitted.tolist()) == list(range(trace.n))
    assert (whole.repeat[whole.request >= 0] == 1).all()

    # each output token but the first comes out of one step that reads its context
    reads = [0] * whole.n
    for k, (start, end) in enumerate(pairwise(whole.offsets.tolist())):
        kinds, ops = whole.blocks.kind[whole.block[start:end]], whole.op[start:end]
        reads[k] = int(((kinds == 0) & ((ops == 1) | (ops == 4))).sum())
    decoded = sum(count * int(repeat) for count, repeat in zip(reads, whole.repeat, strict=True))
    assert decoded == sum(max(int(tokens) - 1, 0) for tokens in trace.output_tokens)

    kv_lookups = (whole.op == 0) & (whole.blocks.kind[whole.block] == 0)
    assert int(kv_lookups.sum()) == trace.references
    weight_lookups = (whole.op == 0) & (whole.blocks.kind[whole.block] == 1)
    assert int(weight_lookups.sum()) == whole.n * len(model.weight_blocks())


NOTHING = RequestTrace.from_lists(name="nothing", block_tokens=4, arrival_ps=[], input_tokens=[], output_tokens=[])


@given(trace=traces(most=12), lanes=st.integers(1, 4))
@example(trace=NOTHING, lanes=3)
def test_order_and_lanes(trace: RequestTrace, lanes: int) -> None:
    whole = expand(trace, MODELS[0], lanes=lanes, weights=False).whole()
    ends = whole.repeat.cumsum()  # of each row, in steps
    begin = {int(r): int(ends[k]) - 1 for k, r in enumerate(whole.request) if r >= 0}
    end = {r: at + max(int(trace.output_tokens[r]), 1) for r, at in begin.items()}
    for r in range(trace.n):
        assert all(begin[r] >= end[before] for before in trace.after_of(r).tolist())
        assert sum(begin[other] <= begin[r] < end[other] for other in begin) <= lanes
    if trace.open_loop:
        assert list(begin) == sorted(begin)


@pytest.mark.parametrize("steps", [1, 7, 100_000])
def test_a_long_step_makes_a_long_chunk(steps: int) -> None:
    # one prompt of more blocks than a chunk has room for accesses
    blocks = (1 << 20) + 5
    trace = RequestTrace.from_lists(
        name="long",
        block_tokens=1,
        arrival_ps=[0, 0],
        input_tokens=[blocks, 3],
        output_tokens=[1, 2],
        block_ids=[range(blocks), range(3)],
    )
    whole = expand(trace, MODELS[0], chunk_steps=steps, weights=False).whole()
    assert whole.request.tolist() == [0, 1, -1]
    assert whole.offsets.tolist() == [0, blocks, blocks + 3, blocks + 5]
    assert (whole.block[:blocks] == range(blocks)).all()
