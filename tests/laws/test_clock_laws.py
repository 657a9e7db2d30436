"""Laws of the step clock: what must hold for every world."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.worlds import World, core, worlds

RATES = ("read_ps_per_byte", "write_ps_per_byte", "both_ps_per_byte")


def changed(world: World, *, rate: float = 1.0, delay: float = 1.0, **steps: Any) -> World:
    """Return the world with its inverse rates and its latencies and overheads multiplied."""
    channel = lambda c: {**c, **{name: c[name] * rate for name in RATES}}
    return replace(
        world,
        tiers=[
            {**channel(t), "latency_ps": t["latency_ps"] * delay, "overhead_ps": t["overhead_ps"] * delay}
            for t in world.tiers
        ],
        links=[channel(link) for link in world.links],
        pace={
            "ps_per_flop": tuple(x * rate for x in world.pace["ps_per_flop"]),
            "overhead_ps": int(world.pace["overhead_ps"] * delay),
            "collective_ps": world.pace["collective_ps"] * delay,
            "collective_ps_per_token": world.pace["collective_ps_per_token"] * rate,
        },
        steps=[{**step, **steps} for step in world.steps],
    )


def stalls(result: dict[str, Any]) -> int:
    return sum(x for tier in result["stall_ps"] for kind in tier for x in kind)


@given(worlds())
def test_the_parts_make_the_wall(world: World) -> None:
    r = core(world)
    parts = sum(r[f"{p}_ps"] for p in ("compute", "recompute", "overhead", "collectives", "bubble", "idle"))
    assert r["clock_ps"] == parts + stalls(r)


@given(worlds())
def test_hits_and_misses_make_the_look_ups(world: World) -> None:
    r = core(world)
    for k in range(4):
        for w in range(3):
            found = sum(tier[k][0][w] for tier in r["hits"])
            assert 0 <= found <= r["lookups"][k][w]
            assert all(tier[k][1][w] <= tier[k][0][w] for tier in r["hits"])


@given(worlds())
def test_no_latency_and_unbounded_bandwidth_never_stall(world: World) -> None:
    r = core(changed(world, rate=0.0, delay=0.0))
    assert stalls(r) == 0
    assert r["clock_ps"] == r["overhead_ps"] + r["idle_ps"]


@given(worlds())
def test_twice_the_speed_halves_every_part(world: World) -> None:
    # Even times, so that half of a whole number is whole; each of at most 2 + 2 + tiers times a step rounds once.
    slow = changed(world, rate=2.0, delay=2.0, arrival_ps=0, fixed_ps=0)
    fast = changed(world, arrival_ps=0, fixed_ps=0)
    a, b = core(slow), core(fast)
    terms = max(b["steps"], 1)
    for part in ("compute", "recompute", "overhead", "collectives"):
        assert abs(a[f"{part}_ps"] - 2 * b[f"{part}_ps"]) <= 4 * terms, part
    for t in range(len(world.tiers)):
        whole = [sum(map(sum, r["stall_ps"][t])) for r in (a, b)]
        assert abs(whole[0] - 2 * whole[1]) <= 16 * terms
    assert abs(a["clock_ps"] - 2 * b["clock_ps"]) <= 8 * terms


@given(worlds(), st.integers(0, 3), st.sampled_from([0.0, 0.5, 0.9]))
def test_a_better_tier_never_slows_a_replay(world: World, t: int, factor: float) -> None:
    t %= len(world.tiers)
    tiers = list(world.tiers)
    tiers[t] = {**tiers[t], **{name: tiers[t][name] * factor for name in (*RATES, "latency_ps", "overhead_ps")}}
    assert core(replace(world, tiers=tiers))["clock_ps"] <= core(world)["clock_ps"]


@given(worlds())
def test_labels_mean_nothing(world: World) -> None:
    """Renaming blocks changes nothing: children after parents stay so, all else is permuted."""
    if any(name in ("random", "belady") for name in world.policies):
        world = replace(world, policies=["arc"] * len(world.tiers))
    n = len(world.blocks["bytes"])
    depth = world.blocks["position"]
    order = sorted(range(n), key=lambda b: (depth[b], -b))  # new id -> old id; parents still first
    new = {old: b for b, old in enumerate(order)}
    blocks = {name: [column[old] for old in order] for name, column in world.blocks.items()}
    blocks["parent"] = [new[p] if p >= 0 else -1 for p in blocks["parent"]]
    steps = [
        {**step, "accesses": [[new[b], op, used, use] for b, op, used, use in step["accesses"]]} for step in world.steps
    ]
    assert core(replace(world, blocks=blocks, steps=steps)) == core(world)


@given(worlds(), st.integers(2, 6))
@settings(max_examples=50)
def test_a_repeat_is_that_many_steps(world: World, times: int) -> None:
    repeated = replace(world, steps=[{**step, "repeat": times} for step in world.steps])
    written_out = replace(world, steps=[{**step, "repeat": 1} for step in world.steps for _ in range(times)])
    a, b = core(repeated), core(written_out)
    for r in (a, b):
        del r["samples"], r["step_rows"]
    assert a == b


@pytest.mark.parametrize("policy", ["lru"])
@given(world=worlds(max_tiers=1))
def test_more_capacity_never_hurts_a_stack_policy(policy: str, world: World) -> None:
    blocks = {**world.blocks, "bytes": [10] * len(world.blocks["bytes"]), "home": [-1] * len(world.blocks["bytes"])}
    # Writes to resident blocks touch them, so they belong to the stack only if they are look-ups.
    steps = [{**s, "accesses": [[b, 0, -1, u] for b, op, _, u in s["accesses"] if op == 0]} for s in world.steps]
    hits = []
    for capacity in range(0, 160, 10):
        tier = {**world.tiers[0], "capacity_bytes": capacity, "leaf_only": False}
        r = core(replace(world, tiers=[tier], blocks=blocks, steps=steps, policies=[policy]))
        hits.append(sum(r["hits"][0][k][0][0] for k in range(4)))
    assert all(a <= b for a, b in pairwise(hits))


@given(worlds(max_tiers=3))
def test_an_unbounded_last_tier_loses_nothing(world: World) -> None:
    """With write-back and room below, per-tier hits sum to those of an infinite cache."""
    n = len(world.blocks["bytes"])
    blocks = {**world.blocks, "home": [-1] * n}
    tiers = [dict(t) for t in world.tiers]
    tiers[-1]["capacity_bytes"] = 10**9
    movements = [{**m, "eviction": 0} for m in world.movements]
    steps = [{**s, "accesses": [a for a in s["accesses"] if a[1] in (0, 1, 4)], "repeat": 1} for s in world.steps]
    r = core(replace(world, tiers=tiers, movements=movements, blocks=blocks, steps=steps))
    seen: set[int] = set()
    expected = 0
    for step in steps:
        for b, op, _, _ in step["accesses"]:
            if op == 0:
                expected += b in seen
                seen.add(b)
    assert sum(tier[k][0][0] for tier in r["hits"] for k in range(4)) == expected
