"""Whole runs against what can be worked out by hand."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import run_adapter

from kvsim.errors import ConfigError, TraceError, UnknownNameError
from kvsim.machine import Link, Machine, Pool, Tier
from kvsim.model import Model
from kvsim.run_result import RunResult
from kvsim.trace import RequestTrace

module = importlib.import_module("kvsim.run")
run = module.run
PS = 10**12
MODEL = Model(name="toy", layers=4, hidden=64, heads=8, kv_heads=4, head_dim=8, vocab=100, ffn=256)


@pytest.fixture(autouse=True, params=["core", "specification"])
def _loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the core's loop and with the specification's."""
    if request.param == "specification":
        monkeypatch.setattr(module, "_engine", run_adapter.engine)


def machine(near: int = 1 << 30, *more: Tier, devices: int = 1, links: tuple[Link, ...] = (), **pool: Any) -> Machine:
    """A machine without latencies and overheads, as bare as can be: 1 GB/s and 1 GFLOP/s a device."""
    given: dict[str, Any] = {"name": "gpu", "devices": devices, "peak_flops_per_s": {"bf16": 1e9}, **pool}
    hbm = Tier(
        name="hbm", medium="HBM", capacity_bytes=near, count=devices, read_bytes_per_s=1e9, write_bytes_per_s=1e9
    )  # fmt: skip
    return Machine(name="bare", tiers=(hbm, *more), pools=(Pool(**given),), links=links, reserve=0.0)


def requests(n: int, inputs: int, outputs: int, **more: Any) -> RequestTrace:
    given: dict[str, Any] = {
        "name": "t", "block_tokens": 16, "input_tokens": [inputs] * n, "output_tokens": [outputs] * n,
        "arrival_s": [0.0] * n,
    }  # fmt: skip
    return RequestTrace.from_lists(**{**given, **more})


def step_ps(
    contexts: Sequence[int], chunks: Sequence[tuple[int, int, bool]] = (), *, devices: int = 1, copies: float = 1,
    flops: float = 1e9, rate: float = 1e9,
) -> int:  # fmt: skip
    """Picoseconds of a step: sequences with `contexts` tokens decode, `chunks` (context, tokens, last) prefill.

    Of each operation the longer of its arithmetic and its memory; nothing else is there.
    """
    new = len(contexts) + sum(c for _, c, _ in chunks)
    logits = len(contexts) + sum(last for *_, last in chunks)
    attention = len(contexts) * 2.0 * MODEL.attention_parameters + logits * 2.0 * MODEL.head_parameters
    attention += sum(MODEL.attention_flops(1, c - 1) for c in contexts)
    attention += sum(MODEL.prefill_flops(n, n + c)[0] for n, c, _ in chunks)
    kv = sum(MODEL.kv_read_bytes(c) for c in contexts) + sum(MODEL.kv_read_bytes(n) for n, *_ in chunks)
    read = 2 * (MODEL.attention_parameters + MODEL.head_parameters) + new * MODEL.embedding_row_bytes
    moved = read + copies * (kv + MODEL.kv_stored_bytes(1) * new)
    total = 0
    for work, bytes_ in (
        (attention, moved), (new * 2.0 * MODEL.ffn_parameters_active, MODEL.ffn_bytes),
    ):  # fmt: skip
        seconds = max(work / (flops * devices), bytes_ / (rate * devices))
        total += round(seconds * PS)
    return total


def decoded(inputs: int, outputs: int, batch: int = 1, **more: Any) -> int:
    """Picoseconds to decode all but the first token; every step has one more token of context."""
    return sum(step_ps([inputs + k] * batch, **more) for k in range(1, outputs))


def close(found: Any, expected: int, steps: int = 50) -> bool:
    """Equal but for one rounding a step and operation."""
    return abs(int(found) - expected) <= 2 * steps


# ---- one request ---------------------------------------------------------------------------------------------------


def test_one_request_alone() -> None:
    found = run(requests(1, 64, 5), model=MODEL, machine=machine(), max_tokens=24, check=True)
    chunks = [(0, 24, False), (24, 24, False), (48, 16, True)]
    prefill = sum(step_ps([], [chunk]) for chunk in chunks)
    a = found.arrays
    assert close(a["first_token_ps"][0], prefill)
    assert close(a["prefill_ps"][0], prefill)
    assert close(a["decode_ps"][0], decoded(64, 5))
    assert found.tpot_s[0] == pytest.approx(decoded(64, 5) / 4 / PS, rel=1e-9)
    assert (a["computed_tokens"][0], a["output_tokens"][0], a["steps"][0]) == (64, 5, 3 + 4)
    assert found.makespan_ps == a["done_ps"][0]


def test_it_streams_as_fast_as_memory_allows() -> None:
    # arithmetic without limit: TPOT is bytes / bandwidth
    fast = machine(peak_flops_per_s={"bf16": 1e18})
    found = run(requests(1, 32, 50), model=MODEL, machine=fast)
    each = [
        MODEL.weight_bytes - MODEL.embedding_parameters * 2 + MODEL.embedding_row_bytes
        + MODEL.kv_read_bytes(32 + k) + MODEL.kv_stored_bytes(1) for k in range(1, 50)
    ]  # fmt: skip
    assert found.tpot_s[0] == pytest.approx(sum(each) / 49 / 1e9, rel=1e-5)
    assert found.stall_s(tier="hbm") > 0.99 * found.makespan_s


def test_overheads_and_collectives_are_times_of_their_own() -> None:
    plain = run(requests(1, 16, 9), model=MODEL, machine=machine(devices=2, tensor=2))
    slow = run(
        requests(1, 16, 9), model=MODEL, check=True,
        machine=machine(devices=2, tensor=2, t_step_s=1e-3, t_layer_s=1e-4, allreduce_latency_s=1e-5),
    )  # fmt: skip
    steps = 9
    assert slow.arrays["parts_ps"][0, 2] == steps * round(1.4e9)
    assert slow.arrays["parts_ps"][0, 3] == steps * 8 * 10**7
    assert slow.makespan_ps == plain.makespan_ps + steps * (1_400_000_000 + 80_000_000)


def test_a_draft_that_is_accepted_saves_steps() -> None:
    plain = run(requests(1, 16, 13), model=MODEL, machine=machine())
    drafted = run(requests(1, 16, 13), model=MODEL, machine=machine(), draft_tokens=3, accepted_tokens=3.0)
    assert (plain.arrays["steps"][0], drafted.arrays["steps"][0]) == (13, 1 + 4)
    assert drafted.arrays["output_tokens"][0] == 13


# ---- many ----------------------------------------------------------------------------------------------------------


def test_a_batch_decodes_in_step() -> None:
    batch, inputs, outputs = 6, 32, 20
    found = run(requests(batch, inputs, outputs), model=MODEL, machine=machine(), check=True)
    prefill = step_ps([], [(0, inputs, True)] * batch)
    a = found.arrays
    assert (np.abs(a["first_token_ps"] - prefill) <= 4).all()
    assert close(found.makespan_ps, prefill + decoded(inputs, outputs, batch))
    rate = batch * outputs / ((prefill + decoded(inputs, outputs, batch)) / PS)
    assert found.output_tokens_per_s == pytest.approx(rate, rel=1e-9)
    # one after the other takes longer: weights are read for each alone
    alone = run(requests(batch, inputs, outputs), model=MODEL, machine=machine(), max_seqs=1)
    each = step_ps([], [(0, inputs, True)]) + decoded(inputs, outputs)
    assert close(alone.makespan_ps, batch * each, 200)
    assert np.diff(alone.arrays["admitted_ps"]).tolist() == pytest.approx([each] * (batch - 1), abs=100)


def test_replicas_share_the_requests() -> None:
    found = run(requests(8, 32, 10), model=MODEL, machine=machine(devices=4), check=True)
    assert np.bincount(found.arrays["unit"]).tolist() == [2, 2, 2, 2]
    two = step_ps([], [(0, 32, True)] * 2) + decoded(32, 10, 2)
    assert close(found.makespan_ps, two)


def test_a_model_over_four_devices_is_read_four_times_as_fast() -> None:
    found = run(requests(1, 32, 10), model=MODEL, machine=machine(devices=4, tensor=4), check=True)
    assert close(found.makespan_ps, step_ps([], [(0, 32, True)], devices=4) + decoded(32, 10, devices=4))


def test_copies_of_kv_heads_are_read_and_take_room() -> None:
    whole = machine(devices=8, tensor=8)
    found = run(requests(1, 512, 10), model=MODEL, machine=whole, check=True)
    by_hand = step_ps([], [(0, 512, True)], devices=8, copies=2) + decoded(512, 10, devices=8, copies=2)
    assert close(found.makespan_ps, by_hand)
    room = 4 * 48 * MODEL.kv_bytes_per_token  # four requests of 48 tokens, without copies
    near = -(-(MODEL.weight_bytes + room) // 8)
    fits = {}
    for tensor in (4, 8):
        m = machine(near * 8 // tensor + 1, devices=tensor, tensor=tensor)
        counted = run(requests(4, 32, 16), model=MODEL, machine=m, kv_overflow="wait")
        fits[tensor] = int((counted.arrays["queued_ps"] == 0).sum())
    assert fits == {4: 4, 8: 2}


def test_weights_that_are_streamed_bound_each_step() -> None:
    dram = Tier(name="dram", medium="DRAM", capacity_bytes=1 << 30, read_bytes_per_s=1e8, write_bytes_per_s=1e8)
    slow = Tier(
        name="dram", medium="DRAM", capacity_bytes=1 << 30, read_bytes_per_s=1e7, write_bytes_per_s=1e7, latency_s=1e-3
    )  # fmt: skip
    small = MODEL.weight_bytes * 2 // 3
    found = run(requests(1, 32, 10), model=MODEL, machine=machine(small, slow), check=True)
    streamed = found.options["placement"]["gpu"]["streamed_weight_bytes"]
    assert 0 < streamed < MODEL.weight_bytes
    each = round((streamed / 1e7 + 1e-3) * PS)
    assert close(found.makespan_ps, 10 * each)
    assert found.stall_s(tier="dram", kind="weights") > 0.5 * found.makespan_s
    assert found.traffic.rows()  # the tables are there
    # what is read ten times as fast takes a tenth of the time, as long as it is the longest
    faster = run(requests(1, 32, 10), model=MODEL, machine=machine(small, dram))
    assert faster.makespan_ps < found.makespan_ps
    held = found.arrays
    assert held["used_bytes"].tolist()[1] == streamed
    assert held["capacity_bytes"].tolist() == [small, 1 << 30]


def test_prefix_hits_are_not_computed_again() -> None:
    ids = [[1, 2, 3], [1, 2, 4]]
    trace = requests(2, 48, 4, block_ids=ids, after=[[], [0]])
    found = run(trace, model=MODEL, machine=machine(), check=True)
    assert found.arrays["hit_tokens"].tolist() == [0, 32]
    assert found.arrays["computed_tokens"].tolist() == [48, 16]
    second = step_ps([], [(32, 16, True)])
    assert close(found.arrays["prefill_ps"][1], second)


def test_prefill_and_decode_on_pools_of_their_own() -> None:
    def near(name: str) -> Tier:
        return Tier(
            name=name, medium="HBM", capacity_bytes=1 << 30, read_bytes_per_s=1e9, write_bytes_per_s=1e9
        )  # fmt: skip

    def pool(name: str, tier: str, *roles: str) -> Pool:
        return Pool(name=name, near=tier, roles=roles, peak_flops_per_s={"bf16": 1e9})

    m = Machine(
        name="split", tiers=(near("a"), near("b")), reserve=0.0,
        pools=(pool("p", "a", "prefill"), pool("d", "b", "attention", "ffn")),
        links=(Link(name="nv", between=("p", "d"), read_bytes_per_s=1e6, write_bytes_per_s=2e6, latency_s=1e-5),),
    )  # fmt: skip
    found = run(requests(1, 48, 6), model=MODEL, machine=m, check=True)
    a = found.arrays
    assert close(a["first_token_ps"][0], step_ps([], [(0, 48, True)]))
    assert a["transfer_ps"][0] == pytest.approx((48 * MODEL.kv_bytes_per_token / 2e6 + 1e-5) * PS, abs=2)
    assert a["link_down_bytes"].tolist() == [48 * MODEL.kv_bytes_per_token]
    assert a["link_up_bytes"].tolist() == [0]
    assert a["decode_ps"][0] >= decoded(48, 6) - 100
    assert found.makespan_ps == sum(a[k][0] for k in ("prefill_ps", "transfer_ps", "decode_ps", "queued_ps"))


# ---- what may be asked for -----------------------------------------------------------------------------------------


def test_traces_by_name_and_several_at_once(tmp_path: Path) -> None:
    short = requests(2, 32, 4, name="short")
    long = requests(1, 64, 4, name="long", block_tokens=32)
    found = run([short, long], model=MODEL, machine=machine(), populations=["short:ttft=1s"], check=True)
    assert found.population_names == ("short", "long")
    assert found.arrays["population"].tolist() == [0, 0, 1]
    assert found.populations[0]["ttft_s"] == 1.0
    path = tmp_path / "short.npz"
    from kvsim.traces import write_trace

    write_trace(short, path)
    assert (
        run(path, model=MODEL, machine=machine()).makespan_ps == run(short, model=MODEL, machine=machine()).makespan_ps
    )
    with pytest.raises(UnknownNameError, match="chat"):
        run("chatt", model=MODEL, machine=machine())
    with pytest.raises(ConfigError, match="found none"):
        run([], model=MODEL, machine=machine())
    with pytest.raises(ConfigError, match="expected requests"):
        run(3, model=MODEL, machine=machine())
    with pytest.raises(TraceError):
        run(tmp_path / "none.npz", model=MODEL, machine=machine())


def test_options_are_recorded_and_make_a_result_its_own() -> None:
    one = run(requests(2, 32, 4), model=MODEL, machine=machine())
    same = run(requests(2, 32, 4), model=MODEL, machine=machine())
    other = run(requests(2, 32, 4), model=MODEL, machine=machine(), max_seqs=1)
    assert one == same
    assert one.config_hash != other.config_hash
    assert other.options["serving"]["max_seqs"] == 1
    assert other.options["policies"] == {"hbm": "lru"}
    assert other.options["placement"]["gpu"]["tensor"] == 1
    with pytest.raises(UnknownNameError, match="max_seqs"):
        run(requests(1, 8, 2), model=MODEL, machine=machine(), max_sequences=3)


def test_a_result_is_saved_whole(tmp_path: Path) -> None:
    found = run(requests(2, 32, 4), model=MODEL, machine=machine(), retention="pin")
    for name in ("r.npz", "r.json"):
        found.save(tmp_path / name)
        assert RunResult.load(tmp_path / name) == found


def test_every_rule_for_pauses_runs() -> None:
    dram = Tier(name="dram", medium="DRAM", capacity_bytes=1 << 30, read_bytes_per_s=1e7, write_bytes_per_s=1e7)
    trace = requests(
        6, 48, 8, block_ids=[[i, i + 1, i + 2] for i in (0, 10, 0, 10, 0, 10)], after=[[], [], [0], [1], [2], [3]],
        delay_s=[0, 0, 2, 2, 2, 2], pause=[0, 0, 1, 2, 1, 2], session=[0, 1] * 3,
    )  # fmt: skip
    seen = {}
    for rule in ("keep", "pin", "timeout:1", "demote:0.5", "drop", "prefetch", "lead:1", "foresight", "oracle"):
        found = run(trace, model=MODEL, machine=machine(1 << 30, dram), retention=rule, check=True)
        assert found.arrays["status"].tolist() == [0] * 6
        seen[rule] = found.arrays["hit_tokens"].tolist()
        assert math.isclose(found.makespan_s, 4.0, abs_tol=0.5), rule
    assert seen["drop"] == [0] * 6
    assert all(seen[rule][2:] == [32] * 4 for rule in seen if rule != "drop")
    for a, b in itertools.combinations(("keep", "pin", "timeout:1"), 2):
        assert seen[a] == seen[b]


def test_data_are_counted_once() -> None:
    ssd = Tier(name="ssd", medium="SSD", capacity_bytes=100_000, read_bytes_per_s=1e7, write_bytes_per_s=1e7)
    trace = requests(4, 32, 4, data=[[0], [0], [0], [0]], data_bytes=[30_000])
    found = run(trace, model=MODEL, machine=machine(1 << 30, ssd, devices=2), check=True)
    assert found.arrays["capacity_bytes"].tolist()[1] == 100_000
    assert found.arrays["used_bytes"].tolist()[1] == 30_000


def test_what_is_recorded_is_the_whole_run(request: pytest.FixtureRequest) -> None:
    if "specification" in request.node.name:
        pytest.skip("the specification keeps no logs")
    calls: list[tuple[int, int | None]] = []
    found = run(
        requests(3, 32, 6), model=MODEL, machine=machine(), record=True, check=True,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    a = found.arrays
    assert a["log/step_count"].sum() == a["steps"].sum()
    assert a["log/step_end_ps"].max() == found.makespan_ps
    assert (a["log/phase_end_ps"] - a["log/phase_start_ps"]).sum() == found.e2e_s.sum() * PS
    assert all(total == 3 for _, total in calls)
    assert len(run(requests(3, 32, 6), model=MODEL, machine=machine()).arrays["log/step_count"]) == 0
