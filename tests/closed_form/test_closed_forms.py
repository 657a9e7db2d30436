"""Closed forms: one tier, two tiers, a stream, a link shared, a step repeated."""

from __future__ import annotations

from typing import Any

import pytest
from reference.worlds import World, core


def tier(
    capacity: int, *, ps: float = 1.0, latency: float = 0.0, overhead: float = 0.0, path: int = 0, **more: Any
) -> dict[str, Any]:
    spec = {
        "read_ps_per_byte": ps,
        "write_ps_per_byte": ps,
        "both_ps_per_byte": 0.0,
        "shared": True,
        "latency_ps": latency,
        "overhead_ps": overhead,
        "norm": 1.0,
        "capacity_bytes": capacity,
        "fragment_bytes": 0,
        "path": path,
        "leaf_only": False,
        "touch_all": False,
    }
    return {**spec, **more}


RULE = {"promote_after": 1, "exclusive": False, "eviction": 0, "kinds": 15}


def world(tiers: list[dict[str, Any]], sizes: list[int], steps: list[dict[str, Any]], **more: Any) -> World:
    n = len(sizes)
    blocks = {
        "bytes": sizes,
        "tokens": [1] * n,
        "kind": more.pop("kind", [0] * n),
        "operation": [0] * n,
        "parent": [-1] * n,
        "position": [0] * n,
        "home": more.pop("home", [-1] * n),
        "recompute_flops": more.pop("recompute", [(0.0, 0.0)] * n),
    }
    plain = {"arrival_ps": 0, "flops": (0.0, 0.0), "fixed_ps": 0, "tokens": 0, "repeat": 1, "request": 0}
    return World(
        tiers=tiers,
        movements=more.pop("movements", [RULE] * (len(tiers) - 1)),
        links=more.pop("links", []),
        pace={
            "ps_per_flop": (1.0, 1.0),
            "overhead_ps": 0,
            "collective_ps": 0.0,
            "collective_ps_per_token": 0.0,
            **more.pop("pace", {}),
        },
        policies=["lru"] * len(tiers),
        blocks=blocks,
        steps=[{**plain, **step} for step in steps],
        prefix_rule=True,
    )


def look(*blocks: int) -> list[list[int]]:
    return [[b, 0, -1, 0] for b in blocks]


def stall(result: dict[str, Any], t: int) -> int:
    return sum(map(sum, result["stall_ps"][t]))


def test_one_tier_misses_then_hits() -> None:
    """A miss computes and writes, a hit reads: 100 FLOPs against 50 bytes, then 50 bytes against nothing."""
    w = world([tier(1000)], [50], [{"accesses": look(0)}, {"accesses": look(0)}], recompute=[(100.0, 0.0)])
    r = core(w)
    assert (r["clock_ps"], r["compute_ps"], stall(r, 0)) == (150, 100, 50)
    assert r["hits"][0][0][0] == [1, 1, 50]


def test_recompute_is_apart() -> None:
    """Blocks of 60 in a tier of 100: each look-up of the other evicts, and the third computes what was there
    before."""
    w = world([tier(100)], [60, 60], [{"accesses": look(b)} for b in (0, 1, 0)], recompute=[(500.0, 0.0)] * 2)
    r = core(w)
    assert (r["compute_ps"], r["recompute_ps"], r["clock_ps"]) == (1000, 500, 1500)
    assert r["evicted"][0][0] == 2


def test_two_tiers_of_cyclic_look_ups() -> None:
    """Three blocks of 10 go round in a near tier of 20 over a far one at 7 ps/byte: from the second round on each
    look-up reads
    10 bytes from below and writes 10 back down only the first time a block leaves."""
    rounds = 5
    order = [0, 1, 2] * rounds
    r = core(world([tier(20, ps=0.0), tier(1000, ps=7.0)], [10] * 3, [{"accesses": look(b)} for b in order]))
    assert r["hits"][1][0][0][0] == 3 * rounds - 3
    assert r["writeback_write_bytes"][1][0] == 30
    assert r["read_bytes"][1][0] == 10 * (3 * rounds - 3)
    assert r["clock_ps"] == 7 * (30 + 10 * (3 * rounds - 3)) == stall(r, 1)
    assert sum(r["stall_ps"][1][0][4:5]) == 7 * 30  # cause: write-back
    assert r["stall_ps"][1][0][2] == 7 * 10 * (3 * rounds - 3)  # cause: bandwidth


def test_weights_streamed_from_below() -> None:
    """100 repeats of a stream of 1,000 bytes at 3 ps/byte and 50 ps latency behind 400 ps of compute."""
    w = world(
        [tier(10), tier(10_000, ps=3.0, latency=50.0)],
        [1000],
        [{"accesses": look(0), "repeat": 100, "flops": (400.0, 0.0)}],
        kind=[1],
        home=[1],
        movements=[{**RULE, "kinds": 0b1101}],
    )
    r = core(w)
    assert r["clock_ps"] == 100 * 3050
    assert stall(r, 1) == 100 * (3050 - 400)
    assert r["stall_ps"][1][1][0] == pytest.approx(100 * 2650 * 50 / 3050, abs=100)
    assert r["hits"][1][1][0][0] == 100
    assert r["link_up_bytes"] == []


def test_far_tiers_hide_behind_each_other() -> None:
    """near 100, T1 = 250, T2 = 400: stalls 150 and 150."""
    tiers = [tier(0), tier(100, ps=250 / 10), tier(100, ps=400 / 20)]
    rules = [{**RULE, "promote_after": 0}] * 2
    w = world(
        tiers, [10, 20], [{"accesses": look(0, 1), "flops": (100.0, 0.0)}], kind=[1, 1], home=[1, 2], movements=rules
    )
    r = core(w)
    assert (r["clock_ps"], stall(r, 1), stall(r, 2)) == (400, 150, 150)


def test_a_shared_link_is_the_channel() -> None:
    """Two far tiers behind one link of 10 ps/byte: each waits for both's bytes, and what the other moved is
    channel."""
    link = {"read_ps_per_byte": 10.0, "write_ps_per_byte": 10.0, "both_ps_per_byte": 0.0, "shared": False}
    tiers = [tier(0), tier(1000, ps=1.0, path=1), tier(1000, ps=1.0, path=1)]
    rules = [{**RULE, "promote_after": 0}] * 2
    w = world(tiers, [30, 70], [{"accesses": look(0, 1)}], kind=[1, 1], home=[1, 2], movements=rules, links=[link])
    r = core(w)
    assert r["clock_ps"] == 1000
    assert stall(r, 1) == 1000  # tier 1 is charged first
    assert r["stall_ps"][1][1][2] == 300  # bandwidth: its own 30 bytes
    assert r["stall_ps"][1][1][3] == 700  # channel: the other 70
    assert r["link_up_bytes"] == [100]


def test_duplex() -> None:
    """60 bytes up and 40 down at 1 ps/byte: one after the other 100, both ways at once 60, at most 1.25 bytes/ps in
    all 80."""
    blocks, accesses = [60, 40], [[0, 1, -1, 0], [1, 2, -1, 0]]
    for shared, both, expected in ((True, 0.0, 100), (False, 0.0, 60), (False, 0.8, 80)):
        one = tier(1000, shared=shared, both_ps_per_byte=both)
        r = core(world([one], blocks, [{"accesses": accesses}], home=[0, 0]))
        assert r["clock_ps"] == expected


def test_norm_of_a_transfer() -> None:
    """Published queue-depth curve: (59.7^1.6 + (QD/0.54)^1.6)^(1/1.6) µs."""
    for depth in (1, 16, 256):
        one = tier(10**6, ps=0.0, latency=59.7e6, overhead=1e6 / 0.54, norm=1.6)
        accesses = [[0, 1, -1, 0]] * depth
        r = core(world([one], [1], [{"accesses": accesses}], home=[0]))
        assert r["clock_ps"] == pytest.approx(1e6 * (59.7**1.6 + (depth / 0.54) ** 1.6) ** (1 / 1.6), abs=0.6)


def test_idle_until_an_arrival() -> None:
    r = core(world([tier(10)], [1], [{"accesses": [], "flops": (30.0, 0.0)}, {"accesses": [], "arrival_ps": 100}]))
    assert (r["clock_ps"], r["idle_ps"], r["compute_ps"]) == (100, 70, 30)


def test_overheads_and_collectives() -> None:
    pace = {"overhead_ps": 7, "collective_ps": 3.0, "collective_ps_per_token": 2.0}
    r = core(world([tier(10)], [1], [{"accesses": [], "tokens": 5, "fixed_ps": 4, "repeat": 10}], pace=pace))
    assert (r["overhead_ps"], r["collectives_ps"], r["clock_ps"]) == (110, 130, 240)


def test_exclusive_tiers_hold_one_copy() -> None:
    """Two tiers of two blocks each hold four different blocks; inclusive ones hold fewer."""
    order = [0, 1, 2, 3] * 4
    for exclusive, hits in ((True, 12), (False, None)):
        rules = [{**RULE, "exclusive": exclusive}]
        r = core(world([tier(20), tier(20)], [10] * 4, [{"accesses": look(b)} for b in order], movements=rules))
        found = sum(t[0][0][0] for t in r["hits"])
        if hits is not None:
            assert found == hits
            assert r["resident_blocks"] == [2, 2]
        else:
            assert found < 12


def test_promote_after_two_hits() -> None:
    rules = [{**RULE, "promote_after": 2}]
    steps = [{"accesses": look(b)} for b in (0, 1, 0, 0, 0)]  # 1 pushes 0 down; two hits below bring it up
    r = core(world([tier(10), tier(100)], [10, 10], steps, movements=rules))
    assert r["hits"][1][0][0][0] == 2
    assert r["hits"][0][0][0][0] == 1


def test_write_through_makes_eviction_free() -> None:
    rules = [{**RULE, "eviction": 1}]
    r = core(world([tier(10), tier(100)], [10, 10, 10], [{"accesses": look(b)} for b in (0, 1, 2)], movements=rules))
    assert r["writeback_write_bytes"][1][0] == 30
    assert r["demoted_out"][0][0] == 0
    assert r["resident_blocks"] == [1, 3]


def test_discard_drops() -> None:
    rules = [{**RULE, "eviction": 2}]
    r = core(world([tier(10), tier(100)], [10, 10], [{"accesses": look(b)} for b in (0, 1, 0)], movements=rules))
    assert r["resident_blocks"] == [1, 0]
    assert r["hits"][1][0][0][0] == 0


def test_a_block_larger_than_the_near_tier_lives_below() -> None:
    r = core(world([tier(10), tier(100)], [50], [{"accesses": look(0)}, {"accesses": look(0)}]))
    assert r["resident_blocks"] == [0, 1]
    assert r["hits"][1][0][0][0] == 1


def test_a_block_larger_than_every_tier_is_never_held() -> None:
    r = core(world([tier(10), tier(20)], [50], [{"accesses": look(0)}, {"accesses": look(0)}], recompute=[(9.0, 0.0)]))
    assert r["resident_blocks"] == [0, 0]
    assert r["compute_ps"] == 18


def test_a_tier_of_zero_bytes() -> None:
    r = core(world([tier(0)], [5, 0], [{"accesses": look(0, 1, 0, 1)}]))
    assert r["resident_blocks"] == [1]  # the empty block fits
    assert r["hits"][0][0][0][0] == 1


def test_context_is_shared_out_by_bytes_held() -> None:
    """A chain of 30 near and 10 below, read as 20 bytes: 15 from near, 5 from below."""
    w = world(
        [tier(30, ps=0.0), tier(100, ps=1.0)], [10] * 4, [{"accesses": look(0, 1, 2, 3)}, {"accesses": [[3, 4, 20, 0]]}]
    )
    w.blocks["parent"][:] = [-1, 0, 1, 2]
    w.blocks["position"][:] = [0, 1, 2, 3]
    before = core(World(**{**w.__dict__, "steps": w.steps[:1]}))
    r = core(w)
    assert before["resident_blocks"] == [3, 1]
    assert r["read_bytes"][0][0] - before["read_bytes"][0][0] == 15
    assert r["read_bytes"][1][0] - before["read_bytes"][1][0] == 5
