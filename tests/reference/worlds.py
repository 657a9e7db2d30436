"""Random small worlds: tiers, rules, blocks and steps, as both the core and the specification take them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kvsim import reference
from kvsim_core import Clock, Replayer, Store, registered

LOOKUP = 0


@dataclass(frozen=True)
class World:
    """One case."""

    tiers: list[dict[str, Any]]
    movements: list[dict[str, Any]]
    links: list[dict[str, Any]]
    pace: dict[str, Any]
    policies: list[str]
    blocks: dict[str, Any]
    steps: list[dict[str, Any]]
    prefix_rule: bool
    workspace: int = 0
    seed: int = 7


rates = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 7.3])


@st.composite
def channels(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "read_ps_per_byte": draw(rates),
        "write_ps_per_byte": draw(rates),
        "both_ps_per_byte": draw(rates),
        "shared": draw(st.booleans()),
    }


@st.composite
def worlds(draw: st.DrawFn, *, max_tiers: int = 4, max_blocks: int = 14, max_steps: int = 14) -> World:
    n_tiers = draw(st.integers(1, max_tiers))
    n_links = draw(st.integers(0, 3))
    n = draw(st.integers(1, max_blocks))
    equal = draw(st.booleans())
    size = [draw(st.just(10) if equal else st.sampled_from([0, 1, 5, 10, 17, 40])) for _ in range(n)]
    parent = [draw(st.integers(-1, b - 1)) if draw(st.booleans()) else (b - 1) for b in range(n)]
    position = [0] * n
    for b in range(n):
        position[b] = position[parent[b]] + 1 if parent[b] >= 0 else 0
    kind = [draw(st.sampled_from([0, 0, 0, 1, 2, 3])) for _ in range(n)]
    home = [
        draw(st.integers(-1, n_tiers - 1)) if kind[b] == 1 or draw(st.integers(0, 9)) == 0 else -1 for b in range(n)
    ]
    living = [sum(s for s, h in zip(size, home, strict=True) if h == t) for t in range(n_tiers)]
    tiers = [
        {
            **draw(channels()),
            "capacity_bytes": living[t] + draw(st.sampled_from([0, 5, 20, 20, 30, 30, 40, 50, 80, 10_000])),
            "fragment_bytes": draw(st.sampled_from([0, 4, 7])),
            "path": draw(st.integers(0, 2**n_links - 1)) if t else 0,
            "leaf_only": draw(st.integers(0, 3)) == 0,
            "touch_all": draw(st.integers(0, 3)) == 0,
            "latency_ps": draw(st.sampled_from([0.0, 10.0, 33.3])),
            "overhead_ps": draw(st.sampled_from([0.0, 1.5])),
            "norm": draw(st.sampled_from([1.0, 1.0, 1.6, 3.0])),
        }
        for t in range(n_tiers)
    ]
    movements = []
    for _ in range(n_tiers - 1):
        exclusive = draw(st.booleans())
        movements.append(
            {
                "promote_after": draw(st.sampled_from([1, 1, 1, 0, 2, 3])),
                "exclusive": exclusive,
                "eviction": draw(st.sampled_from([0, 0, 2] if exclusive else [0, 0, 1, 2])),
                "kinds": draw(st.sampled_from([15, 15, 13, 1])),
            }
        )
    steps = []
    for r in range(draw(st.integers(0, max_steps))):
        accesses = []
        if draw(st.integers(0, 3)):  # one request: the chain to a block
            chain, b = [], draw(st.integers(0, n - 1))
            while b >= 0:
                chain.append(b)
                b = parent[b]
            accesses += [[b, LOOKUP, -1, 0] for b in reversed(chain)]
        for _ in range(draw(st.integers(0, 5))):
            used = draw(st.sampled_from([-1, -1, -1, 0, 3, 25]))
            accesses.append([draw(st.integers(0, n - 1)), draw(st.sampled_from([0, 0, 1, 2, 3, 4, 4])), used, 0])
        steps.append(
            {
                "arrival_ps": draw(st.sampled_from([0, 0, 50, 2_000])),
                "flops": (draw(st.sampled_from([0.0, 10.0, 77.7])), draw(st.sampled_from([0.0, 10.0, 77.7]))),
                "fixed_ps": draw(st.sampled_from([0, 5])),
                "tokens": draw(st.sampled_from([0, 1, 9])),
                "repeat": draw(st.sampled_from([1, 1, 1, 0, 2, 5])),
                "request": r,
                "accesses": accesses,
            }
        )
    following: dict[int, int] = {}
    every = [a for step in steps for a in step["accesses"]]
    at = sum(a[1] == LOOKUP for a in every)
    for access in reversed(every):
        access[3] = following.get(access[0], 2**63 - 1)
        if access[1] == LOOKUP:
            at -= 1
            following[access[0]] = at
    names = sorted(registered())
    return World(
        tiers=tiers,
        movements=movements,
        links=[draw(channels()) for _ in range(n_links)],
        pace={
            "ps_per_flop": (draw(rates), draw(rates)),
            "overhead_ps": draw(st.sampled_from([0, 11])),
            "collective_ps": draw(st.sampled_from([0.0, 2.5])),
            "collective_ps_per_token": draw(st.sampled_from([0.0, 1.25])),
        },
        policies=[draw(st.sampled_from(names)) for _ in range(n_tiers)],
        blocks={
            "bytes": size,
            "tokens": [draw(st.integers(0, 9)) for _ in range(n)],
            "kind": kind,
            "operation": [draw(st.integers(0, 1)) for _ in range(n)],
            "parent": parent,
            "position": position,
            "home": home,
            "recompute_flops": [(draw(rates), draw(rates)) for _ in range(n)],
        },
        steps=steps,
        prefix_rule=draw(st.booleans()),
        workspace=draw(st.sampled_from([0, 0, 10, 25])),
    )


TYPES = {
    "bytes": np.int64, "tokens": np.int32, "kind": np.int8, "operation": np.int8, "parent": np.int32,
    "position": np.int32, "home": np.int16, "recompute_flops": np.float64,
}  # fmt: skip


def columns(steps: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Return steps as the core takes them."""
    accesses = [a for step in steps for a in step["accesses"]]

    def column(name: str) -> np.ndarray[Any, Any]:
        return np.array([step[name] for step in steps], dtype=np.int64)

    return (
        column("arrival_ps"),
        np.array([step["flops"] for step in steps], dtype=np.float64).reshape(len(steps), 2),
        column("fixed_ps"), column("tokens"), column("repeat"), column("request"),
        np.cumsum([0] + [len(step["accesses"]) for step in steps]).astype(np.int64),
        np.array([a[0] for a in accesses], dtype=np.int32),
        np.array([a[1] for a in accesses], dtype=np.uint8),
        np.array([a[2] for a in accesses], dtype=np.int64),
        np.array([a[3] for a in accesses], dtype=np.int64),
    )  # fmt: skip


def replayer(world: World, policies: list[Any] | None = None) -> Replayer:
    """Return the core's replayer of a world that has not begun."""
    made = policies or [registered()[name](seed=world.seed) for name in world.policies]
    store = Store(
        world.tiers,
        world.movements,
        made,
        n_links=len(world.links),
        prefix_rule=world.prefix_rule,
        workspace_bytes=world.workspace,
    )
    store.bind(*(np.array(world.blocks[name], dtype=kind) for name, kind in TYPES.items()))
    return Replayer(store, Clock(world.tiers, world.links, **world.pace))


def core(world: World, policies: list[Any] | None = None, cuts: tuple[int, ...] = ()) -> dict[str, Any]:
    """Replay in the core, the books checked; `cuts` are where the steps are cut into chunks."""
    running = replayer(world, policies)
    edges = [0, *sorted(cuts), len(world.steps)]
    for a, b in pairwise(edges):
        running.feed(*columns(world.steps[a:b]))
    running.check()
    return running.result()


def specified(world: World) -> reference.Store:
    """Return the specification's store of a world."""
    policies = [reference.POLICIES[name](seed=world.seed) for name in world.policies]
    return reference.Store(
        world.tiers,
        world.movements,
        policies,
        world.blocks,
        n_links=len(world.links),
        prefix_rule=world.prefix_rule,
        workspace_bytes=world.workspace,
    )


def specification(world: World) -> dict[str, Any]:
    """Replay in the specification."""
    return reference.replay(specified(world), reference.Clock(world.tiers, world.links, **world.pace), world.steps)
