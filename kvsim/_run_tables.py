"""The tables of a run that take arithmetic: states, percentiles, goals, tasks, cost, and what must balance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim._memory_tables import PS, IntArray, of_rows
from kvsim._table import Table

if TYPE_CHECKING:
    from kvsim.run_result import RunResult

__all__ = [
    "PAUSES",
    "STATES",
    "cost",
    "exact_sum",
    "goodput",
    "latency",
    "memory_cost",
    "requests",
    "span_s",
    "state_columns",
    "states",
    "tasks",
    "tpot_s",
    "unbalanced",
]

STATES = ("queued", "loading", "transfer", "prefill", "recompute", "decode", "preempted")
"""What a request is in, at each instant one of them; loading is told apart by tier."""
PAUSES = ("think", "tool", "tool_wait")
OWNED_YEARS = 5
"""What capex is spread over: how long a server is kept, as operators commonly reckon."""
_HOUR, _YEAR_H = 3600, 24 * 365
_PERCENTILES = (50, 90, 95, 99)
Floats = np.ndarray[Any, np.dtype[np.float64]]


def exact_sum(column: IntArray) -> int:
    """Return the sum of int64 as a Python int: picoseconds of many requests pass 2^63."""
    return (int((column >> 32).sum()) << 32) + int((column & 0xFFFFFFFF).sum())


# ---- the request's view -------------------------------------------------------------------------------------------


def span_s(run: RunResult, start: str, end: str) -> Floats:
    """Return end - start in seconds, NaN where the request did not complete or had no such moment."""
    first, last = run.arrays[start], run.arrays[end]
    return np.where(run.done & (first >= 0) & (last >= 0), (last - first) / PS, np.nan)


def tpot_s(run: RunResult) -> Floats:
    """Return the seconds an output token after the first, NaN for less than two tokens."""
    tokens = run.arrays["output_tokens"]
    spent = span_s(run, "first_token_ps", "done_ps")
    return np.where(tokens > 1, spent / np.maximum(tokens - 1, 1), np.nan)


def state_columns(run: RunResult) -> list[tuple[str, str | None, IntArray]]:
    """Return state, tier (of loading, else None) and picoseconds i64[n] of each state."""
    found: list[tuple[str, str | None, IntArray]] = []
    for state in STATES:
        if state == "loading":
            found += [(state, tier, run.arrays["loading_ps"][:, t]) for t, tier in enumerate(run.tiers)]
        else:
            found.append((state, None, run.arrays[f"{state}_ps"]))
    return found


def _groups(run: RunResult) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.bool_]]]]:
    """Yield "all" with every request, then each population with its own where there are several."""
    yield "all", np.ones(len(run.done), bool)
    if len(run.populations) > 1:
        for p, name in enumerate(run.population_names):
            yield name, run.arrays["population"] == p


def requests(run: RunResult) -> Table:
    """Return one row a request, as columns of NumPy; names are taken from a few shared texts."""
    from kvsim.run_result import STATUSES

    a = run.arrays

    def named(names: Sequence[str], key: str) -> np.ndarray[Any, Any]:
        return np.array(list(names) or [""], dtype=object)[a[key]]

    def moment(key: str) -> Floats:
        return np.where(a[key] >= 0, a[key] / PS, np.nan)

    columns: dict[str, Any] = {
        "request": np.arange(len(a["status"])),
        "population": named(run.population_names, "population"),
        "category": named(run.category_names, "category"),
        "session": named(run.session_names, "session"),
        "status": named(STATUSES, "status"),
        "input_tokens": a["input_tokens"],
        "asked_tokens": a["asked_tokens"],
        "output_tokens": a["output_tokens"],
        **{f"{key}_s": moment(f"{key}_ps") for key in ("ready", "admitted", "first_token", "done")},
        "ttft_s": run.ttft_s,
        "tpot_s": run.tpot_s,
        "e2e_s": run.e2e_s,
    }
    for state, tier, ps in state_columns(run):
        columns[f"{state}_s" if tier is None else f"{state}_{tier}_s"] = ps / PS
    columns |= {f"{key}_s": a[f"{key}_ps"] / PS for key in PAUSES}
    columns |= {key: a[key] for key in ("unit", "decode_unit", "hit_tokens")}
    columns |= {f"loaded_{tier}_tokens": a["loaded_tokens"][:, t] for t, tier in enumerate(run.tiers)}
    columns |= {key: a[key] for key in ("computed_tokens", "recomputed_tokens", "preemptions")}
    return Table("requests", columns)


def states(run: RunResult) -> Table:
    """Return seconds and share of each state, by population."""
    rows: list[tuple[Any, ...]] = []
    for name, chosen in _groups(run):
        of = chosen & run.done
        count = int(of.sum())
        sums = [(state, tier, exact_sum(ps[of])) for state, tier, ps in state_columns(run)]
        whole = sum(ps for *_, ps in sums)
        for state, tier, ps in sums:
            rows.append((name, state, tier, count, ps, ps / PS, _over(ps / PS, count), _over(ps, whole)))
        for state in PAUSES:
            ps = exact_sum(run.arrays[f"{state}_ps"][chosen])
            rows.append((name, state, None, count, ps, ps / PS, _over(ps / PS, count), None))
    return of_rows("states", ("population", "state", "tier", "requests", "ps", "seconds", "mean_s", "share"), rows)


def latency(run: RunResult) -> Table:
    """Return mean, percentiles and maximum of each metric, by population."""
    queued = np.where(run.done, run.arrays["queued_ps"] / PS, np.nan)
    metrics = {"ttft": run.ttft_s, "tpot": run.tpot_s, "e2e": run.e2e_s, "queued": queued}
    rows: list[tuple[Any, ...]] = []
    for name, chosen in _groups(run):
        for metric, values in metrics.items():
            known = values[chosen & ~np.isnan(values)]
            if known.size:
                cuts = np.percentile(known, _PERCENTILES).tolist()
                rows.append((name, metric, known.size, float(known.mean()), *cuts, float(known.max())))
            else:
                rows.append((name, metric, 0, *[None] * 6))
    names = ("population", "metric", "requests", "mean_s", *(f"p{p}_s" for p in _PERCENTILES), "max_s")
    return of_rows("latency", names, rows)


def goodput(run: RunResult) -> Table:
    """Return one row a population: its goals, and what met them."""
    from kvsim.population import Population

    names = (
        "population", "requests", "done", "within", "share", "requests_per_s", "output_tokens_per_s", "ttft_goal_s",
        "tpot_goal_s", "e2e_goal_s", "cost_usd_per_task", "cost_goal_usd", "cost_met", "makespan_s", "makespan_goal_s",
        "makespan_met",
    )  # fmt: skip
    a, wall, rows = run.arrays, run.makespan_s, []
    usd = next((u for u in _totals_usd(run).values() if u is not None), None)
    held, finished, first = _held_ps(run), *_finished_tasks(run)
    everything = exact_sum(held)
    for p, goals in enumerate(run.populations):
        chosen = a["population"] == p
        good = chosen & run.done & Population(**goals).met(run.ttft_s, run.tpot_s, run.e2e_s)
        count, tokens = int(chosen.sum()), int(a["output_tokens"][good].sum())
        tasks_done = int((finished & (a["population"][first] == p)).sum()) if count else 0
        each = None
        if usd is not None and everything:
            each = _over(usd * (exact_sum(held[chosen]) / everything), tasks_done)
        ended = chosen & run.done
        span = (int(a["done_ps"][ended].max()) - int(a["ready_ps"][ended].min())) / PS if ended.any() else None
        rows.append(
            (goals["name"], count, int(ended.sum()), int(good.sum()), _over(int(good.sum()), count),
             _over(int(good.sum()), wall), _over(tokens, wall), goals.get("ttft_s"), goals.get("tpot_s"),
             goals.get("e2e_s"), each, goals.get("cost_usd"), _met(each, goals.get("cost_usd")), span,
             goals.get("makespan_s"), _met(span, goals.get("makespan_s")))
        )  # fmt: skip
    return of_rows("goodput", names, rows)


def _met(found: float | None, goal: float | None) -> bool | None:
    return None if found is None or goal is None else found <= goal


def _over(value: float, count: float) -> float | None:
    return value / count if count else None


# ---- tasks and cost -----------------------------------------------------------------------------------------------


def _held_ps(run: RunResult) -> IntArray:
    """Return how long each request was in service: E2E less queued and preempted."""
    a = run.arrays
    held = a["loading_ps"].sum(axis=1)
    for key in ("transfer_ps", "prefill_ps", "recompute_ps", "decode_ps"):
        held = held + a[key]
    return np.where(run.done, held, 0)


def _by_session(run: RunResult) -> tuple[IntArray, IntArray]:
    """Return the rows in order of session, stably, and where each session that has any begins in them."""
    session = run.arrays["session"]
    order = np.argsort(session, kind="stable")
    return order, np.flatnonzero(np.diff(session[order], prepend=-1))


def _finished_tasks(run: RunResult) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], IntArray]:
    """Return, for each session, whether all of its requests completed, and its first row."""
    order, start = _by_session(run)
    if not order.size:
        return np.zeros(0, bool), np.zeros(0, np.int64)
    return np.logical_and.reduceat(run.done[order], start), order[start]


def tasks(run: RunResult) -> Table:
    """Return one row a session."""
    a = run.arrays
    order, start = _by_session(run)

    def over(add: Callable[..., Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(add(values[order], start)) if order.size else np.zeros(0, values.dtype)

    ready = np.where(a["ready_ps"] >= 0, a["ready_ps"], np.iinfo(np.int64).max)
    begin, end = over(np.minimum.reduceat, ready), over(np.maximum.reduceat, a["done_ps"])
    known = (begin < np.iinfo(np.int64).max) & (end >= 0)
    first = order[start]
    held = over(np.add.reduceat, _held_ps(run)).astype(np.float64)
    share = held / held.sum() if held.sum() else np.full(len(held), np.nan)
    names, groups = np.array(run.session_names, object), np.array(run.population_names, object)
    columns: dict[str, Any] = {
        "session": names[a["session"][first]],
        "population": groups[a["population"][first]],
        "requests": np.diff(start, append=len(order)),
        "done": over(np.add.reduceat, run.done.astype(np.int64)),
        "start_s": np.where(known, begin / PS, np.nan),
        "end_s": np.where(known, end / PS, np.nan),
        "seconds": np.where(known, (end - np.where(known, begin, 0)) / PS, np.nan),
        "input_tokens": over(np.add.reduceat, a["input_tokens"]),
        "output_tokens": over(np.add.reduceat, a["output_tokens"]),
        "queued_s": over(np.add.reduceat, a["queued_ps"]) / PS,
        **{f"{key}_s": over(np.add.reduceat, a[f"{key}_ps"]) / PS for key in ("tool", "tool_wait", "think")},
    }
    for view, usd in _totals_usd(run).items():
        columns[f"{view}_usd"] = [None] * len(first) if usd is None else share * usd
    return Table("tasks", columns)


def _prices(run: RunResult) -> dict[str, float | None]:
    """Return the USD an hour of the machine, rented and owned."""
    rent, capex, power = (run.machine.get(k) for k in ("price_usd_per_h", "capex_usd", "power_w"))
    kwh = run.machine.get("electricity_usd_per_kwh")
    owned = None
    if capex is not None and power is not None and kwh is not None:
        owned = capex / (OWNED_YEARS * _YEAR_H) + power / 1000 * kwh
    return {"rent": None if rent is None else float(rent), "owned": owned}


def _totals_usd(run: RunResult) -> dict[str, float | None]:
    """Return what the whole run costs, rented and owned."""
    return {v: None if p is None else p * run.makespan_s / _HOUR for v, p in _prices(run).items()}


def cost(run: RunResult) -> Table:
    """Return the cost of the run, of tokens and of tasks, rented and owned."""
    finished = int(_finished_tasks(run)[0].sum())
    out, every = run.output_tokens / 1e6, (run.output_tokens + run.prompt_tokens) / 1e6
    power = run.machine.get("power_w")
    joules = None if power is None else float(power) * run.makespan_s

    def each(total: float | None, count: float) -> float | None:
        return None if total is None else _over(total, count)

    energy = (joules, each(joules, out), each(joules, every), each(joules, finished))
    total = _totals_usd(run)
    rows = [
        (view, price, total[view], each(total[view], out), each(total[view], every), each(total[view], finished),
         *energy)
        for view, price in _prices(run).items()
    ]  # fmt: skip
    ways = ("", "_per_m_output_tokens", "_per_m_tokens", "_per_task")
    return of_rows("cost", ("view", "usd_per_h", *(f"usd{w}" for w in ways), *(f"joules{w}" for w in ways)), rows)


def memory_cost(run: RunResult) -> Table:
    """Return the price of each tier's memory and its share of the machine's."""
    capex, owned = run.machine.get("capex_usd"), _prices(run)["owned"]
    rows: list[tuple[Any, ...]] = []
    for info in run.tier_info:
        price = info.get("price_usd")
        hourly = None if price is None else price / (OWNED_YEARS * _YEAR_H)
        of_capex = None if price is None or not capex else price / capex
        rows.append((info["name"], price, of_capex, hourly, None if hourly is None or not owned else hourly / owned))
    return of_rows("memory_cost", ("tier", "price_usd", "share_of_capex", "usd_per_h", "share_of_owned"), rows)


# ---- what must balance --------------------------------------------------------------------------------------------


def unbalanced(run: RunResult) -> list[str]:
    """Return a line for every identity that does not hold, none if all do."""
    from kvsim.run_result import PARTS

    a, makespan, wrong = run.arrays, run.makespan_ps, []

    def claim(fails: Any, said: Callable[[int], str]) -> None:
        """Say what is wrong with the first row that fails."""
        rows = np.flatnonzero(fails)
        if rows.size:
            wrong.append(said(int(rows[0])))

    for key in (k for k in a if k.endswith("_ps") and k not in _MOMENTS and not k.startswith("log/")):
        negative = (a[key] < 0).any(axis=tuple(range(1, a[key].ndim)))
        claim(negative, lambda i, key=key: f"{key}[{i}]: found a negative time")  # type: ignore[misc]
    units = a["parts_ps"].sum(axis=1)
    claim(units != makespan, lambda i: f"parts of unit {i}: found {units[i]} ps, expected the makespan {makespan}")

    stalls = PARTS.index("stalls")
    bins, width = len(a["bins/running"]), run.counters["bin_ps"]
    if bins != -(-makespan // width) if width else makespan:
        wrong.append(f"bins: found {bins} of {width} ps, expected them to cover {makespan}")
    long = np.minimum(width, makespan - np.arange(bins, dtype=np.int64) * width)
    for p, (pool, replicas) in enumerate(zip(run.pool_names, run.replicas, strict=True)):
        told = exact_sum(a["stall_ps"][p].ravel())
        if told != run.pool_parts_ps[p]["stalls"]:
            wrong.append(f"stalls of {pool}: found {told} ps by cause, expected {run.pool_parts_ps[p]['stalls']}")
        sums = a["bins/parts_ps"][:, p].sum(axis=1)
        claim(
            sums != long * replicas,
            lambda b, s=sums, r=replicas, n=pool: (  # type: ignore[misc]
                f"bin {b} of {n}: found {s[b]} ps, expected {long[b]} x {r}"
            ),
        )
        for i, part in enumerate(PARTS):
            if exact_sum(a["bins/parts_ps"][:, p, i]) != run.pool_parts_ps[p][part]:
                wrong.append(f"bins of {pool}: {part} does not sum to {run.pool_parts_ps[p][part]} ps")
        by_tier = a["bins/stall_ps"][:, p]
        claim(
            by_tier.sum(axis=1) != a["bins/parts_ps"][:, p, stalls],
            lambda b, n=pool: f"bin {b} of {n}: stalls by tier do not sum to its stalls",  # type: ignore[misc]
        )
        for t, tier in enumerate(run.tiers):
            if exact_sum(by_tier[:, t]) != exact_sum(a["stall_ps"][p, t].ravel()):
                wrong.append(f"bins of {pool}: stalls on {tier} do not sum to its stalls")

    spent = sum((ps for *_, ps in state_columns(run)), np.zeros(len(run.done), np.int64))
    e2e = np.where(run.done, a["done_ps"] - a["ready_ps"], 0)
    claim(run.done & (spent != e2e), lambda r: f"states of request {r}: found {spent[r]} ps, expected its E2E {e2e[r]}")
    order = [a[key] for key in _MOMENTS]
    claim(
        run.done & ~np.logical_and.reduce([x <= y for x, y in pairwise(order)]),
        lambda r: f"request {r}: found its moments out of order",
    )
    claim(run.done & (a["done_ps"] > makespan), lambda r: f"request {r}: found it done after the makespan")
    claim(a["recomputed_tokens"] > a["computed_tokens"], lambda r: f"request {r}: recomputed more than it computed")
    claim(a["loaded_tokens"].sum(axis=1) > a["hit_tokens"], lambda r: f"request {r}: loaded more than it hit")
    claim(
        (a["hits"].sum(axis=0) > a["lookups"][:, None]).any(axis=(1, 2)),
        lambda k: f"look-ups of kind {k}: found more hits than look-ups",
    )
    claim(a["used_bytes"] > a["capacity_bytes"], lambda t: f"tier {run.tiers[t]}: found more bytes than it holds")
    return wrong


_MOMENTS = ("ready_ps", "admitted_ps", "first_token_ps", "done_ps")
