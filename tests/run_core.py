"""A made-up but consistent answer of the run's core, for tests of results and pages: every identity holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kvsim.machine import Machine
from kvsim.population import Population
from kvsim.run_result import RunResult
from kvsim.trace import RequestTrace

PARTS, KINDS, CAUSES = 9, 4, 5
SECOND = 10**12
# shares of a unit's time: compute, recompute, overhead, collectives, stall, bubble, idle (no request, tool, think)
_SHARES = np.array([0.16, 0.03, 0.09, 0.05, 0.45, 0.04, 0.08, 0.06, 0.04])


def split(total: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut whole numbers [...] into [..., parts] by weights [..., parts]; the last part gets the remainder."""
    share = weights / weights.sum(axis=-1, keepdims=True)
    out = np.floor(total[..., None] * share * (1 - 1e-12)).astype(np.int64)
    out[..., -1] += total - out.sum(axis=-1)
    return np.asarray(out)


def machine(pools: int = 1) -> Machine:
    """An eight-GPU server; with two pools, four devices prefill and four decode."""
    whole = Machine.load("h100x8")
    if pools == 1:
        return whole
    pool = whole.pools[0]
    return replace(
        whole,
        name="h100-split",
        pools=(
            replace(pool, name="prefill", devices=4, tensor=4, roles=("prefill",)),
            replace(pool, name="decode", devices=4, tensor=2, roles=("attention", "ffn")),
        ),
    )


def trace(n: int = 60, *, seed: int = 0, two: bool = True) -> RequestTrace:
    """Sessions of six requests: even ones are people, odd ones agents; one population of both unless `two`."""
    draw = np.random.default_rng(seed)
    session = np.arange(n) // 6
    return RequestTrace.from_lists(
        name="made-up",
        block_tokens=16,
        arrival_ps=np.arange(n) * SECOND // 2,
        input_tokens=draw.integers(100, 9000, n),
        output_tokens=np.where(np.arange(n) % 11 == 3, 1, draw.integers(2, 400, n)),
        session=session,
        session_names=[f"session-{i}" for i in range(int(session.max(initial=-1)) + 1)],
        category=session % 2,
        category_names=("chat", "agent"),
        population=session % 2 if two else None,
        population_names=("people", "agents") if two else ("all",),
        pause=np.where(np.arange(n) % 6 == 0, 0, 1 + session % 2),
    )


def core(
    of: RequestTrace | None = None, *, on: Machine | None = None, replicas: int = 2, seed: int = 0, record: bool = False
) -> dict[str, Any]:
    """What the core would hand out for a trace on a machine: int64 arrays and ints, consistent in every sum.

    Row 7 is rejected and row 8 never reached, where there are as many.
    """
    of, on = trace(seed=seed) if of is None else of, machine() if on is None else on
    n, tiers, links, pools = of.n, len(on.tiers), len(on.links), len(on.pools)
    draw = np.random.default_rng(seed + 1)
    out: dict[str, Any] = {}

    status = np.zeros(n, np.int64)
    status[7:8], status[8:9] = 1, 2
    done = status == 0

    def spent(mean_s: float, chance: float = 1.0) -> np.ndarray[Any, Any]:
        drawn = (draw.exponential(mean_s, n) * SECOND).astype(np.int64)
        return np.where(done & (draw.random(n) < chance), drawn, 0)

    state = {"queued": spent(2.0), "prefill": spent(0.8), "recompute": spent(0.3, 0.4), "preempted": spent(0.5, 0.1)}
    loading = np.stack([spent(0.2 * t, 0.5) if t else np.zeros(n, np.int64) for t in range(tiers)], axis=1)
    transfer = spent(0.05) if pools > 1 else np.zeros(n, np.int64)
    decode = np.where(of.output_tokens > 1, (of.output_tokens - 1) * (SECOND // 50) + spent(0.1), 0) * done
    emitted = np.where(done, of.output_tokens, 0)
    hit = np.where(done, (of.input_tokens * draw.random(n)).astype(np.int64) // 16 * 16, 0)
    again = np.where(state["recompute"] > 0, np.minimum(64, of.input_tokens - hit), 0)
    ready = np.where(status == 2, -1, of.arrival_ps)
    admitted = np.where(done, ready + state["queued"], -1)
    first = np.where(done, admitted + loading.sum(axis=1) + state["prefill"] + state["recompute"], -1)
    finished = np.where(done, first + transfer + decode + state["preempted"], -1)
    unit_pool = np.repeat(np.arange(pools), replicas)
    units = len(unit_pool)
    out |= {f"{name}_ps": value for name, value in state.items()}
    out |= {
        "status": status, "ready_ps": ready, "admitted_ps": admitted, "first_token_ps": first, "done_ps": finished,
        "loading_ps": loading, "transfer_ps": transfer, "decode_ps": decode,
        "think_ps": np.where((of.pause == 1) & done, 8 * SECOND, 0),
        "tool_ps": np.where((of.pause == 2) & done, 3 * SECOND, 0),
        "tool_wait_ps": np.where((of.pause == 2) & done, SECOND // 4, 0),
        "unit": np.where(done, np.arange(n) % replicas, -1),
        "decode_unit": np.where(done, np.arange(n) % replicas + (pools - 1) * replicas, -1),
        "hit_tokens": hit, "loaded_tokens": np.where(loading > 0, 16, 0), "output_tokens": emitted,
        "computed_tokens": np.where(done, of.input_tokens - hit, 0) + again, "recomputed_tokens": again,
        "preemptions": (state["preempted"] > 0).astype(np.int64),
    }  # fmt: skip
    out["loaded_tokens"] = np.minimum(out["loaded_tokens"], hit[:, None] // max(tiers, 1))

    makespan = int(finished.max(initial=0)) + 1234 if done.any() else 0
    bin_ps = SECOND
    while -(-makespan // bin_ps) > 4096:
        bin_ps *= 2
    bins = -(-makespan // bin_ps)
    width = np.full(bins, bin_ps, np.int64)
    if bins:
        width[-1] = makespan - bin_ps * (bins - 1)
    weights = _SHARES * draw.gamma(2.0, 1.0, (bins, units, PARTS))
    if pools == 1:
        weights[:, :, 5] = 0
    parts = split(np.broadcast_to(width[:, None], (bins, units)), weights[..., ::-1])[..., ::-1]
    by_pool = np.stack([parts[:, unit_pool == p].sum(axis=1) for p in range(pools)], axis=1)
    shape = (tiers, KINDS, CAUSES)
    busy = np.zeros(shape)
    busy[0, 1, 2], busy[0, 0, 2], busy[0, 1, 0] = 6, 3, 0.4
    busy[1:, 0, :] = np.array([0.1, 0.2, 1.0, 0.5, 0.2]) / np.arange(1, tiers)[:, None]
    flat = split(by_pool[:, :, 4], np.broadcast_to(busy.ravel(), (bins, pools, busy.size)))
    stall = flat.reshape(bins, pools, *shape)
    out |= {
        "makespan_ps": makespan, "bin_ps": bin_ps, "parts_ps": parts.sum(axis=0), "stall_ps": stall.sum(axis=0),
        "unit_pool": unit_pool, "unit_replica": np.tile(np.arange(replicas), pools),
        "steps": np.full(units, 40 * bins), "bins/parts_ps": by_pool, "bins/stall_ps": stall.sum(axis=(3, 4)),
    }  # fmt: skip

    capacity = np.array([min(t.total_capacity_bytes, 1 << 60) for t in on.tiers], np.int64)
    filled = np.linspace(0.1, 0.8, max(bins, 1))[:bins, None]
    times = np.cumsum(width)
    out["bins/used_bytes"] = (capacity * filled).astype(np.int64)
    out["bins/running"] = ((admitted[None] <= times[:, None]) & (finished[None] > times[:, None])).sum(axis=1)
    out["bins/waiting"] = ((ready[None] <= times[:, None]) & (admitted[None] > times[:, None])).sum(axis=1)
    out["bins/loading"] = out["bins/running"] // 3
    for key, total in (("prompt_tokens", out["computed_tokens"].sum()), ("output_tokens", emitted.sum())):
        out[f"bins/{key}"] = split(np.array(total), np.ones(bins)) if bins else np.zeros(0, np.int64)

    prompt = int(of.input_tokens[done].sum())
    lookups = np.zeros((KINDS, 3), np.int64)
    lookups[0] = (prompt // 16, prompt, prompt * 1000)
    hits = np.zeros((tiers, KINDS, 2, 3), np.int64)
    for t in range(tiers):
        hits[t, 0, 0] = lookups[0] // (3 + 2 * t)
        hits[t, 0, 1] = lookups[0] // (4 + 3 * t)
    out |= {"lookups": lookups, "hits": hits}
    for i, key in enumerate(("read_bytes", "write_bytes", "writeback_read_bytes", "writeback_write_bytes")):
        out[key] = np.full((tiers, KINDS), 10 ** (10 - i)) * np.array([1, 3, 0, 0])
    for i, key in enumerate(("inserted", "evicted", "demoted_out", "promoted_in", "refused", "freed")):
        out[key] = np.full((tiers, KINDS), 700 - 100 * i) * np.array([1, 0, 0, 0])
    used = (capacity * 0.8).astype(np.int64)
    out |= {
        "evicted_bytes": np.full(tiers, 5 * 10**9), "used_bytes": used, "capacity_bytes": capacity,
        "resident_blocks": used // 10**7, "private_bytes": np.zeros(tiers, np.int64),
        "link_up_bytes": np.full(links, 7 * 10**9), "link_down_bytes": np.full(links, 2 * 10**9),
        "tier_busy_ps": np.full((tiers, 2), makespan // 3), "link_busy_ps": np.full((links, 2), makespan // 4),
        "unreachable_bytes": 4096, "rejected": int((status == 1).sum()), "pins_broken": 0,
        "swapped_bytes": 0, "peak_blocks": 1234, "events": 9 * n, "log_cut": False,
    }  # fmt: skip
    return out | _log(out, tiers, replicas, record)


def _log(made: dict[str, Any], tiers: int, replicas: int, record: bool) -> dict[str, Any]:
    names = {
        "step": ("start_ps", "end_ps", "unit", "count", "decode", "prefill"),
        "phase": ("request", "state", "start_ps", "end_ps"),
        "move": ("start_ps", "end_ps", "channel", "way", "bytes", "request", "replica"),
    }
    log: dict[str, list[list[int]]] = {name: [] for name in names}
    if record:
        for second in range(made["makespan_ps"] // SECOND):
            log["step"].append([second * SECOND, second * SECOND + SECOND // 2, second % replicas, 20, 8, 512])
            log["move"].append([second * SECOND, second * SECOND + SECOND // 5, 1 % tiers, 0, 10**9, -1, 0])
        for r in np.flatnonzero(made["status"] == 0).tolist():
            at = int(made["ready_ps"][r])
            loads = [(6 + t, made["loading_ps"][r, t]) for t in range(tiers)]
            for state, key in ((0, "queued"), *loads, (2, "prefill"), (3, "recompute"), (1, "transfer"), (4, "decode"),
                               (5, "preempted")):  # fmt: skip
                long = int(made[f"{key}_ps"][r] if isinstance(key, str) else key)
                if long:
                    log["phase"].append([r, state, at, at + long])
                at += long
    return {
        f"log/{kind}_{column}": np.array([row[i] for row in log[kind]], np.int64)
        for kind, columns in names.items()
        for i, column in enumerate(columns)
    }


PEOPLE = Population(name="people", ttft_s=3.0, tpot_s=0.05)
AGENTS = Population(name="agents", cost_usd=0.5, makespan_s=3600.0)


def run_result(
    n: int = 60, *, pools: int = 1, replicas: int = 2, seed: int = 0, record: bool = False, two: bool = True,
    changes: dict[str, Any] | None = None, on: Machine | None = None, **options: Any,
) -> RunResult:  # fmt: skip
    """Return a whole RunResult; `changes` replaces keys of the core's answer, `two` asks for two populations."""
    of, on = trace(n, seed=seed, two=two), machine(pools) if on is None else on
    return RunResult.from_core(
        core(of, on=on, replicas=replicas, seed=seed, record=record) | (changes or {}),
        trace=of,
        machine=on,
        model={"name": "llama-3.1-70b", "weights_dtype": "fp8"},
        options={"policies": ["lru"] * len(on.tiers), "batch": 256, **options},
        populations=(PEOPLE, AGENTS) if two else (),
    )
