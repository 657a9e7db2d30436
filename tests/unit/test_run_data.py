"""Blocks of kind data, as of a RAG index: read before a prompt, from the same tiers as KV."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from reference import run_adapter

from kvsim.errors import MachineError
from kvsim.machine import Link, Machine, Movement, Pool, Tier
from kvsim.model import Model
from kvsim.run_result import RunResult
from kvsim.trace import RequestTrace
from kvsim_core import KINDS

module = importlib.import_module("kvsim.run")
MODEL = Model(name="toy", layers=4, hidden=64, heads=8, kv_heads=4, head_dim=8, vocab=100, ffn=256)
KV, DATA = KINDS.index("kv"), KINDS.index("data")
HBM, DRAM, SSD = range(3)
PS = 10**12
PIECE = 30_000
TOKEN = MODEL.kv_bytes_per_token
DRAM_RATE, LINK_RATE, SSD_RATE = 1e8, 5e7, 1e7
# a tier's latency is its own and that of the link on the way
DRAM_LATENCY, LINK_LATENCY, SSD_LATENCY, SSD_OVERHEAD = 1e-6, 1e-5, 1e-4, 3e-5
THINK = 1


@pytest.fixture(autouse=True, params=["core", "specification"])
def _loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the core's loop and with the specification's."""
    if request.param == "specification":
        monkeypatch.setattr(module, "_engine", run_adapter.engine)


def machine(
    rules: Sequence[dict[str, Any]] = ({}, {}), *, near: int = 1 << 30, dram: int = 1 << 30, ssd: int = 1 << 30
) -> Machine:
    """Near memory and arithmetic that cost next to nothing; DRAM behind a link; an SSD; `rules` between them."""

    def tier(name: str, medium: str, size: int, rate: float, **more: Any) -> Tier:
        return Tier(
            name=name, medium=medium, capacity_bytes=size, read_bytes_per_s=rate, write_bytes_per_s=rate, **more
        )

    return Machine(
        name="three",
        reserve=0.0,
        tiers=(
            tier("hbm", "HBM", near, 1e15),
            tier("dram", "DRAM", dram, DRAM_RATE, latency_s=DRAM_LATENCY),
            tier("ssd", "SSD", ssd, SSD_RATE, latency_s=SSD_LATENCY, overhead_s=SSD_OVERHEAD, endurance_dwpd=1.0),
        ),
        links=(
            Link(
                name="host", between=("hbm", "dram"), read_bytes_per_s=LINK_RATE, write_bytes_per_s=LINK_RATE,
                latency_s=LINK_LATENCY,
            ),
        ),
        movements=tuple(
            Movement(upper=upper, lower=lower, **rule)
            for (upper, lower), rule in zip((("hbm", "dram"), ("dram", "ssd")), rules, strict=True)
        ),
        pools=(Pool(name="gpu", peak_flops_per_s={"bf16": 1e18}),),
    )  # fmt: skip


def requests(data: Sequence[Sequence[int]], inputs: int = 32, outputs: int = 4, **more: Any) -> RequestTrace:
    """Requests ten seconds apart, each with the data that it reads."""
    n = len(data)
    given: dict[str, Any] = {
        "name": "rag", "block_tokens": 16, "input_tokens": [inputs] * n, "output_tokens": [outputs] * n,
        "arrival_s": [10.0 * i for i in range(n)], "data": data,
        "data_bytes": [PIECE] * (1 + max((b for pieces in data for b in pieces), default=0)),
    }  # fmt: skip
    return RequestTrace.from_lists(**{**given, **more})


def run(trace: RequestTrace, on: Machine, **more: Any) -> RunResult:
    found: RunResult = module.run(trace, model=MODEL, machine=on, check=True, **more)
    return found


def waited_s(found: RunResult) -> list[float]:
    """Return how long each request loaded."""
    return [ps / PS for ps in found.arrays["loading_ps"].sum(axis=1).tolist()]


def load_s(tier: int, pieces: int = 1) -> float:
    """Seconds in which so many pieces come from a tier: its latency, overheads, and bytes through what is slowest."""
    if tier == HBM:
        return 0.0
    if tier == DRAM:
        return DRAM_LATENCY + LINK_LATENCY + pieces * PIECE / min(DRAM_RATE, LINK_RATE)
    return SSD_LATENCY + LINK_LATENCY + pieces * (SSD_OVERHEAD + PIECE / SSD_RATE)


def found_in(found: RunResult) -> list[int]:
    """Return the look-ups of data that each tier answered."""
    counts: list[int] = found.arrays["hits"][:, DATA, 0, 0].tolist()
    return counts


def kv_room(tokens: int) -> int:
    return MODEL.weight_bytes + tokens * TOKEN


# ---- where they are found ------------------------------------------------------------------------------------------

KEPT_DOWN = {"kinds": ("kv", "state")}


@pytest.mark.parametrize(
    ("rules", "places"),
    [
        (({}, {}), [SSD, HBM, HBM, HBM, HBM]),
        (({"promote": "never"}, {}), [SSD, DRAM, DRAM, DRAM, DRAM]),
        ((KEPT_DOWN, {}), [SSD, DRAM, DRAM, DRAM, DRAM]),
        (({}, {"promote": "never"}), [SSD] * 5),
        # at the second hit in DRAM
        (({"promote": 2}, {}), [SSD, DRAM, DRAM, HBM, HBM]),
        # what passes an exclusive tier leaves nothing there
        (({"inclusion": "exclusive"}, {}), [SSD, HBM, HBM, HBM, HBM]),
    ],
)
def test_read_from_home_first_then_nearer(rules: Sequence[dict[str, Any]], places: list[int]) -> None:
    found = run(requests([[0]] * len(places)), machine(rules))
    assert waited_s(found) == pytest.approx([load_s(tier) for tier in places], rel=1e-9)
    assert found_in(found) == [places.count(tier) for tier in range(3)]
    a = found.arrays
    assert a["read_bytes"][:, DATA].tolist() == [places.count(tier) * PIECE for tier in range(3)]
    assert a["lookups"][DATA].tolist() == [len(places), 0, len(places) * PIECE]
    inside = HBM in places, rules[1] == {} and rules[0].get("inclusion") != "exclusive", True
    assert a["used_bytes"][1:].tolist() == [PIECE * held for held in inside[1:]]
    assert a["promoted_in"][:2, DATA].tolist() == [int(held) for held in inside[:2]]
    # every byte crosses the one link, whichever tier it comes from
    assert a["link_up_bytes"].tolist() == [sum(place != HBM for place in places) * PIECE]
    assert (a["queued_ps"] == 0).all()


def test_pieces_of_one_request_come_together() -> None:
    found = run(requests([[0], [0, 1, 2], [2], []]), machine(({"promote": "never"}, {})))
    # one from DRAM while two come from the SSD: the slower ends last
    assert load_s(SSD, 2) > load_s(DRAM)
    assert waited_s(found) == pytest.approx([load_s(SSD), load_s(SSD, 2), load_s(DRAM), 0.0], rel=1e-9)
    assert found_in(found) == [0, 2, 3]


def test_two_requests_at_once_queue_on_the_device() -> None:
    found = run(requests([[0], [1]], arrival_s=[0.0, 0.0]), machine(({}, {"promote": "never"})))
    behind = load_s(SSD) + PIECE / SSD_RATE
    assert waited_s(found) == pytest.approx([load_s(SSD), behind], rel=1e-9)
    assert found.stall_s(tier="ssd", kind="data") == pytest.approx(behind, rel=1e-6)


def test_time_to_first_token_has_the_load_in_it() -> None:
    plain = run(requests([[], []]), machine())
    found = run(requests([[0], [0]]), machine())
    extra = (found.ttft_s - plain.ttft_s).tolist()
    assert extra == pytest.approx([load_s(SSD), 0.0], abs=1e-9)
    assert found.states.where(state="loading", tier="ssd").sum("seconds") > 0.9 * load_s(SSD)


def test_tables_say_data() -> None:
    found = run(requests([[0], [0, 1], [1]]), machine(({"promote": "never"}, {})))
    by_tier = {row["tier"]: row for row in found.hits.where(kind="data", weight="byte") if row["rule"] == "block"}
    assert {tier: row["hits"] for tier, row in by_tier.items()} == {"hbm": 0, "dram": 2 * PIECE, "ssd": 2 * PIECE}
    assert all(row["lookups"] == 4 * PIECE for row in by_tier.values())
    assert not any(row["misses"] for row in found.misses.where(kind="data"))  # they have a home
    (moved,) = found.traffic.where(tier="dram", kind="data").rows()
    assert (moved["read_bytes"], moved["write_bytes"]) == (2 * PIECE, 2 * PIECE)


# ---- beside KV -----------------------------------------------------------------------------------------------------


def test_data_yield_to_a_request_that_grows() -> None:
    # a piece lies near until the KV of the very request that read it needs its room
    tokens = 16 * 10
    spare = -(-PIECE // (16 * TOKEN)) * 16  # tokens whose KV takes what a piece does
    roomy, narrow = (
        run(requests([[0], [0]], inputs=16, outputs=tokens - 16), machine(near=kv_room(tokens + extra)))
        for extra in (spare, 0)
    )
    for found in (roomy, narrow):
        assert found.arrays["output_tokens"].tolist() == [tokens - 16] * 2
        assert not found.arrays["preemptions"].any()
    assert found_in(roomy) == [1, 0, 1]
    assert roomy.arrays["evicted"][HBM, DATA] == 0
    assert found_in(narrow) == [0, 1, 1]
    assert narrow.arrays["evicted"][HBM, DATA] == 2
    assert narrow.arrays["evicted"][HBM, KV] == 0
    assert not narrow.arrays["writeback_write_bytes"][:, DATA].any()  # it has a home


def test_a_pause_pins_no_data() -> None:
    # 128 tokens near: a session's 48 are pinned in its pause, its piece takes 59 more, and another session needs 64
    data: list[list[int]] = [[0], [], [0]]
    trace = requests(
        data, inputs=48, outputs=8, block_ids=[[1, 2, 3], [7, 8, 9], [1, 2, 3]], arrival_s=[0.0, 1.0, 0.0],
        after=[[], [], [0]], delay_s=[0.0, 0.0, 30.0], pause=[0, 0, THINK], session=[0, 1, 0], notice=False,
    )  # fmt: skip
    row = {float(at): i for i, at in enumerate(trace.delay_ps / PS)}[30.0]
    found = run(trace, machine(near=kv_room(2 * 64 + 1)), retention="pin", load="always")
    a = found.arrays
    assert a["status"].tolist() == [0, 0, 0]
    assert found.counters["pins_broken"] == 0
    # KV is still near, the data are not
    assert a["hit_tokens"][row] == 32
    assert a["loaded_tokens"][row].tolist() == [0, 0, 0]
    assert a["evicted"][HBM, DATA] >= 1
    assert not a["queued_ps"].any()
    assert found_in(found) == [0, 1, 1]
    assert waited_s(found)[row] == pytest.approx(load_s(DRAM), rel=1e-9)


def test_data_and_kv_compete_for_dram() -> None:
    # two prompts in turn, of which one fits near: the other waits in DRAM, as do pieces that are not let up
    n, blocks = 12, 4
    prompts = [[100 * (i % 2) + b for b in range(blocks)] for i in range(n)]
    kv = blocks * 16 * TOKEN
    none: list[list[int]] = [[]] * n
    turns = [[i % 2] for i in range(n)]
    given: dict[str, Any] = {"inputs": blocks * 16, "outputs": 2, "block_ids": prompts}

    def served(data: Sequence[Sequence[int]], dram: int, **more: Any) -> RunResult:
        on = machine((KEPT_DOWN, {}), near=kv_room(blocks * 16 + 16), dram=dram)
        return run(requests(data, **{**given, **more}), on, load="always")

    def kv_in_dram(found: RunResult) -> int:
        return int(found.arrays["hits"][DRAM, KV, 0, 0])

    enough = 2 * kv + 2 * PIECE
    alone, both = served(none, enough), served(turns, enough)
    assert kv_in_dram(alone) == kv_in_dram(both) > 0
    assert found_in(both) == [0, n - 2, 2]
    # room for KV alone: pieces push it out, and find less themselves
    alone, both = served(none, 2 * kv), served(turns, 2 * kv)
    only = served(turns, 2 * kv, inputs=8, block_ids=[[]] * n)
    assert kv_in_dram(alone) > kv_in_dram(both)
    assert found_in(only) == [0, n - 2, 2]
    assert found_in(both)[DRAM] < n - 2
    a = both.arrays
    assert a["evicted"][DRAM, DATA] > 0
    assert a["evicted"][DRAM, KV] > 0
    assert a["used_bytes"][DRAM] <= 2 * kv
    # KV that went farther is found there, with the data
    assert a["hits"][SSD, KV, 0, 0] > 0
    assert both.makespan_s == pytest.approx(10.0 * (n - 1), abs=0.1)


def test_core_is_specification(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "specification" in request.node.name:
        pytest.skip("both run in the other")
    trace = requests(
        [[0, 1], [2], [], [0], [1, 2], [2]], inputs=48, outputs=12, arrival_s=[0.0, 0.0, 0.0, 1e-3, 2e-3, 0.1],
        block_ids=[[1, 2, 3], [1, 2, 4], [5, 6, 7], [1, 2, 3], [5, 6, 8], [1, 9, 9]], data_bytes=[PIECE, 7_001, 12_345],
    )  # fmt: skip
    for rules in (({}, {}), ({"promote": 2}, {"inclusion": "exclusive"}), ({"eviction": "write_through"}, {})):
        on = machine(rules, near=kv_room(160), dram=60_000)
        core = run(trace, on, retention="demote:0")
        with monkeypatch.context() as patch:
            patch.setattr(module, "_engine", run_adapter.engine)
            specification = run(trace, on, retention="demote:0")
        for name, expected in specification.arrays.items():
            assert name.startswith("log/") or np.array_equal(core.arrays[name], expected), (rules, name)


def test_the_outermost_memory_holds_all_data() -> None:
    with pytest.raises(MachineError, match=r"found 50\.?0* kB in ssd.*expected 60\.?0* kB at least: the trace's data"):
        run(requests([[0], [1]]), machine(ssd=50_000))
