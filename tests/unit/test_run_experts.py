"""Cached experts: each a block at home in a farther tier, whose copies share the nearest with KV."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from reference import run_adapter

from kvsim import reference
from kvsim.errors import ConfigError, MachineError
from kvsim.machine import Link, Machine, Pool, Tier
from kvsim.model import Model
from kvsim.run_result import RunResult
from kvsim.trace import RequestTrace
from kvsim_core import KINDS

module = importlib.import_module("kvsim.run")
LAYERS, EXPERTS = 4, 8
SHAPE: dict[str, Any] = {
    "layers": LAYERS, "hidden": 64, "heads": 8, "kv_heads": 4, "head_dim": 8, "vocab": 100, "experts": EXPERTS,
    "moe_ffn": 32,
}  # fmt: skip
MODEL = Model(name="toy-moe", experts_per_token=2, **SHAPE)
ALL = Model(name="toy-moe-all", experts_per_token=EXPERTS, **SHAPE)
"""Every token uses all experts: each step sweeps over all of them, in their order."""
ONE = MODEL.expert_bytes
BESIDE = MODEL.weight_bytes - LAYERS * EXPERTS * ONE
"""Weights that are no routed experts."""
KV, WEIGHTS = KINDS.index("kv"), KINDS.index("weights")
SLOW = 1e7
PS = 10**12


@pytest.fixture(autouse=True, params=["core", "specification"])
def _loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the core's loop and with the specification's."""
    if request.param == "specification":
        monkeypatch.setattr(module, "_engine", run_adapter.engine)


def tier(name: str, capacity: int, rate: float, **more: Any) -> Tier:
    return Tier(
        name=name, medium="DRAM", capacity_bytes=capacity, read_bytes_per_s=rate, write_bytes_per_s=rate, **more
    )  # fmt: skip


def machine(near: int, **pool: Any) -> Machine:
    """Fast near memory of so many bytes over a slow one, 10 MB/s, and arithmetic without limit."""
    given: dict[str, Any] = {"name": "gpu", "peak_flops_per_s": {"bf16": 1e15}, **pool}
    return Machine(
        name="bare", tiers=(tier("hbm", near, 1e12), tier("dram", 1 << 30, SLOW)), pools=(Pool(**given),), reserve=0.0
    )


def requests(n: int, inputs: int, outputs: int, **more: Any) -> RequestTrace:
    given: dict[str, Any] = {
        "name": "t", "block_tokens": 16, "input_tokens": [inputs] * n, "output_tokens": [outputs] * n,
        "arrival_s": [0.0] * n,
    }  # fmt: skip
    return RequestTrace.from_lists(**{**given, **more})


def run(trace: RequestTrace, near: int, model: Model = MODEL, **more: Any) -> RunResult:
    found: RunResult = module.run(trace, model=model, machine=machine(near), experts="cached", check=True, **more)
    return found


def room(tokens: int, experts: int) -> int:
    """Return near bytes for the other weights, so many tokens of KV, and so many experts."""
    return BESIDE + tokens * MODEL.kv_bytes_per_token + experts * ONE


def drawn(positions: range, row: int = 0, seed: int = 0) -> set[tuple[int, int]]:
    """Return layer and number of the experts that the tokens of a request use."""
    cached = {"seed": seed, "each": MODEL.experts_per_token, "count": EXPERTS}
    return {
        (layer, e) for layer in range(LAYERS) for p in positions for e in reference.Engine.draw(cached, layer, row, p)
    }


# ---- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 1), (5, 1), (64, 1), (64, 6)])
def test_with_room_for_all_each_expert_comes_from_its_home_once(inputs: int, outputs: int) -> None:
    found = run(requests(1, inputs, outputs), 1 << 30)
    touched = len(drawn(range(inputs)))
    if inputs == 64:
        assert touched == LAYERS * EXPERTS  # 128 draws of eight a layer: what follows touches no others
    a = found.arrays
    assert a["read_bytes"][1, WEIGHTS] == touched * ONE
    assert a["promoted_in"][0, WEIGHTS] == touched
    # one look-up for each expert of a step, whichever tokens use it
    looks = touched + (outputs - 1) * LAYERS * MODEL.experts_per_token
    assert a["lookups"][WEIGHTS].tolist() == [looks, 0, looks * ONE]
    assert a["hits"][:, WEIGHTS, 0, 0].tolist() == [looks - touched, touched]
    assert a["evicted"][0, WEIGHTS] == 0
    # at the end: one copy near of each that was used, all at home
    assert a["resident_blocks"][0] >= touched
    assert a["used_bytes"][1] == LAYERS * EXPERTS * ONE
    assert a["capacity_bytes"].tolist() == [1 << 30, 1 << 30]


def test_what_is_not_near_is_waited_for() -> None:
    found = run(requests(1, 64, 6), 1 << 30)
    a = found.arrays
    # the prompt's step reads all experts from the slow memory; all later ones find them
    first = LAYERS * EXPERTS * ONE / SLOW
    assert a["first_token_ps"][0] == pytest.approx(first * PS, rel=1e-9)
    assert found.stall_s(tier="dram", kind="weights") == pytest.approx(first, rel=1e-3)
    assert found.stall_s(tier="dram", kind="weights") < first  # the nearest memory is read meanwhile
    assert a["decode_ps"][0] < 5e-3 * first * PS
    # where they stay at home, a prompt reads as much, and each token its own two a layer
    streamed = module.run(requests(1, 64, 6), model=MODEL, machine=machine(room(160, 0)), check=True)
    assert streamed.arrays["first_token_ps"][0] == pytest.approx(first * PS, rel=1e-6)
    each = LAYERS * MODEL.experts_per_token * ONE / SLOW
    assert streamed.arrays["decode_ps"][0] == pytest.approx(5 * each * PS, rel=1e-3)


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_a_sweep_larger_than_the_room_finds_nothing_near(policy: str) -> None:
    whole, steps = LAYERS * EXPERTS, 10
    trace = requests(1, 16, steps)
    for places, hits in ((whole, (steps - 1) * whole), (whole - 1, 0), (3, 0)):
        found = run(trace, room(32, places), ALL, policy=policy)
        a = found.arrays
        assert a["steps"].tolist() == [steps]
        assert a["lookups"][WEIGHTS, 0] == steps * whole
        assert a["hits"][:, WEIGHTS, 0, 0].tolist() == [hits, steps * whole - hits], places
        assert a["read_bytes"][1, WEIGHTS] == (steps * whole - hits) * ONE
        if not hits:
            assert found.makespan_s == pytest.approx(steps * whole * ONE / SLOW, rel=1e-3)
            # what goes has its home: nothing is written back
            assert a["evicted"][0, WEIGHTS] == steps * whole - places
            assert not a["writeback_write_bytes"][:, WEIGHTS].any()


def test_a_policy_that_does_not_sweep_finds_some() -> None:
    lru, drawn_by_lot = (
        run(requests(1, 16, 10), room(32, 24), ALL, policy=policy).hit_rate("hbm", kind="weights", weight="block")
        for policy in ("lru", "random")
    )
    assert lru == 0.0
    assert drawn_by_lot is not None
    assert drawn_by_lot > 0.2


# ---- KV and experts in one memory ----------------------------------------------------------------------------------


def test_more_kv_leaves_less_room_for_experts() -> None:
    near = room(640, 2)
    rates, reads = [], []
    for inputs in (16, 240, 440, 560):  # of one request, whose steps use as many experts whatever its context
        found = run(requests(1, inputs, 64), near)
        a = found.arrays
        rates.append(found.hit_rate("hbm", kind="weights", weight="block"))
        reads.append(int(a["read_bytes"][1, WEIGHTS]))
        assert a["used_bytes"][0] <= near
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] - 0.2
    assert reads == sorted(reads)


def test_more_requests_at_once_leave_less_room_for_experts() -> None:
    near = room(8 * 80, 2)
    alone, together = (run(requests(8, 32, 48), near, max_seqs=seqs) for seqs in (1, 8))
    for found in (alone, together):
        assert found.arrays["output_tokens"].tolist() == [48] * 8
        assert not found.arrays["preemptions"].any()
    one, eight = (found.hit_rate("hbm", kind="weights", weight="block") for found in (alone, together))
    assert eight < one
    # all eight fit, so it is not that some wait
    assert not together.arrays["queued_ps"].any()


def test_experts_push_a_prefix_out() -> None:
    trace = requests(
        3, 64, 40, block_ids=[[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]], after=[[], [0], [1]], delay_s=[0.0] * 3
    )
    kv = 3 * 112
    roomy, narrow = (run(trace, room(kv, places), load="always") for places in (LAYERS * EXPERTS, 0))
    for found in (roomy, narrow):  # the last block of a prompt is computed again
        assert found.arrays["hit_tokens"].tolist() == [0, 0, 48]
    assert roomy.arrays["loaded_tokens"].sum() == 0
    assert not roomy.arrays["evicted"].any()
    # the same room for KV, but experts take it
    assert narrow.arrays["loaded_tokens"].tolist() == [[0, 0], [0, 0], [0, 48]]
    assert narrow.arrays["demoted_out"][0].tolist() == [narrow.arrays["evicted"][0, KV], 0, 0, 0]


# ---- the core is the specification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "sieve", "arc", "belady"])
def test_core_is_specification(policy: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "specification" in request.node.name:
        pytest.skip("both run in the other")
    trace = requests(
        7, 40, 30, block_ids=[[i // 3, 9, i] for i in range(7)], after=[[], [], [], [0], [1], [2, 3], []],
        delay_s=[0, 0, 0, 1e-3, 0, 0, 0], pause=[0, 0, 0, 1, 2, 2, 0], session=[0, 1, 2, 0, 1, 2, 3],
    )  # fmt: skip

    def both(**more: Any) -> list[RunResult]:
        out = [run(trace, room(7 * 80, 6), policy=policy, seed=3, draft_tokens=2, accepted_tokens=1.5, **more)]
        with monkeypatch.context() as patch:
            patch.setattr(module, "_engine", run_adapter.engine)
            out.append(run(trace, room(7 * 80, 6), policy=policy, seed=3, draft_tokens=2, accepted_tokens=1.5, **more))
        return out

    for more in ({}, {"kv_overflow": "wait"}, {"max_tokens": 24}):
        core, specification = both(**more)
        assert core.arrays["hits"][0, WEIGHTS, 0, 0] > 0
        assert core.arrays["hits"][1, WEIGHTS, 0, 0] > LAYERS * EXPERTS
        for name, expected in specification.arrays.items():
            assert name.startswith("log/") or np.array_equal(core.arrays[name], expected), name


def test_a_seed_draws_other_experts() -> None:
    reads = {int(run(requests(1, 4, 8), room(32, 6), seed=seed).arrays["read_bytes"][1, WEIGHTS]) for seed in range(6)}
    assert len(reads) > 1
    one, same = (run(requests(1, 4, 8), room(32, 6), seed=4) for _ in range(2))
    assert one == same


# ---- what is said, and what cannot be ------------------------------------------------------------------------------


def test_tables_say_weights() -> None:
    found = run(requests(2, 32, 8), room(160, 20))
    rows = [row for row in found.hits.where(kind="weights", weight="block") if row["rule"] == found.hits["rule"][0]]
    assert {row["tier"] for row in rows} == {"hbm", "dram"}
    assert all(row["lookups"] > 0 and row["hits"] > 0 for row in rows)
    assert sum(row["rate"] for row in rows) == pytest.approx(1.0)
    (moved,) = found.traffic.where(tier="dram", kind="weights").rows()
    assert moved["read_bytes"] == found.arrays["read_bytes"][1, WEIGHTS]
    assert found.options["serving"]["experts"] == "cached"
    # resident experts are no blocks: nothing is looked up
    still = module.run(requests(2, 32, 8), model=MODEL, machine=machine(1 << 30), check=True)
    assert not any(row["lookups"] for row in still.hits.where(kind="weights"))


def test_a_model_without_experts_has_none_to_cache() -> None:
    dense = Model(name="dense", layers=4, hidden=64, heads=8, kv_heads=4, head_dim=8, vocab=100, ffn=256)
    with pytest.raises(ConfigError, match=r"serving\.experts: found cached.*dense has no experts"):
        run(requests(1, 8, 2), 1 << 30, dense)


def test_a_pipeline_caches_no_experts() -> None:
    piped = machine(1 << 30, devices=2, pipeline=2)
    with pytest.raises(ConfigError, match=r"serving\.experts: found cached.*pipeline in gpu"):
        module.run(requests(1, 8, 2), model=MODEL, machine=piped, experts="cached")


def test_a_pool_for_feed_forward_caches_no_experts() -> None:
    pools = tuple(
        Pool(name=name, near=near, roles=roles, peak_flops_per_s={"bf16": 1e15})
        for name, near, roles in (("a", "hbm", ("prefill", "attention")), ("f", "sram", ("ffn",)))
    )
    wire = Link(name="wire", between=("a", "f"), read_bytes_per_s=1e9, write_bytes_per_s=1e9)
    tiers = (tier("hbm", 1 << 30, 1e12), tier("sram", 1 << 30, 1e12), tier("dram", 1 << 30, SLOW))
    parted = Machine(name="parted", tiers=tiers, pools=pools, links=(wire,), reserve=0.0)
    with pytest.raises(ConfigError, match=r"serving\.experts: found cached.*pool for feed-forward alone"):
        module.run(requests(1, 8, 2), model=MODEL, machine=parted, experts="cached")
    module.run(requests(1, 8, 2), model=MODEL, machine=parted, check=True)


def test_the_other_weights_must_fit() -> None:
    with pytest.raises(MachineError, match="only experts are cached"):
        run(requests(1, 8, 2), BESIDE - 1)
