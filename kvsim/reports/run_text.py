"""A run as plain text, at most 100 columns wide and 60 to 75 lines long."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim._table import share_text, text_table
from kvsim.reports import text
from kvsim.units import format_bytes, format_count, format_time
from kvsim_core import CAUSES, KINDS

if TYPE_CHECKING:
    from kvsim.run_result import RunResult

__all__ = ["cost_rows", "inputs_line", "latency_rows", "memory_rows", "part_rows", "result", "stall_rows", "state_rows"]

WIDTH = text.WIDTH
NAME = 20
"""Longer names of populations are cut to this many characters, so that their tables fit."""
STALL_LINES = 6
"""Stalls are told apart to this many lines; what is left is summed in one more."""
Rows = tuple[list[str], list[list[str]]]


def result(found: RunResult) -> str:
    """Return the whole report: machine's view, request's view, latency, goodput, cost, memory."""
    lines = [
        f"{found.trace.get('name', 'trace')} · kvsim {found.kvsim_version} · config {found.config_hash}",
        inputs_line(found),
        size_line(found),
    ]
    header, rows = part_rows(found)
    whole = " + ".join(f"{n} x {p}" for p, n in zip(found.pool_names, found.replicas, strict=True))
    title = f"the machine's time: makespan {format_time(found.makespan_s)} of {whole}"
    bars = len(found.pool_names) == 1
    lines += _section(title, header, rows, left=(0, len(header) - 1) if bars else (0,), each=0 if bars else 2)
    header, rows = stall_rows(found)
    lines += _section("stalls: what compute waited for", header, rows, left=range(len(header) - 2))
    header, rows = state_rows(found)
    lines += _section("the requests' time: mean seconds in each state, share of E2E", header, rows, each=2)
    header, rows = latency_rows(found)
    lines += _section("latency", header, rows, left=(0, 1) if len(found.populations) > 1 else (0,))
    header, rows = goodput_rows(found)
    lines += _section("goodput: requests within their goals of latency", header, rows)
    lines += [line for row in found.goodput for line in _goals(row, several=len(found.populations) > 1)]
    lines += _throughput(found)
    header, rows = cost_rows(found)
    lines += _section("cost", header, rows)
    header, rows = memory_rows(found)
    lines += _section("memory (hits: share of prompt tokens found there, by the prefix rule)", header, rows)
    lines += ["  " + line for line in notes(found)]
    return "\n".join(_cut(line.rstrip()) for line in lines)


def inputs_line(found: RunResult) -> str:
    """Return one line that names model, machine and the options that were set to a word or a number."""
    dtype = None if found.model is None else found.model.get("weights_dtype")
    if found.model is not None and dtype == "native":
        dtype = found.model.get("native_dtype", dtype)
    model = "no model" if found.model is None else str(found.model.get("name", "model"))
    said = [f"{model} ({dtype})" if dtype else model, str(found.machine.get("name", "machine"))]
    policies = list(dict.fromkeys(found.options.get("policies") or ()))
    if policies:
        said.append(f"policy {'/'.join(map(str, policies))}")
    return " · ".join(said)


def size_line(found: RunResult) -> str:
    """Return one line that says how many requests ran, and what became of them."""
    status = np.bincount(found.arrays["status"], minlength=3).tolist()
    said = [f"{sum(status):,} requests" + ("" if sum(status) == status[0] else f", {status[0]:,} done")]
    said += [f"{n:,} {word}" for n, word in zip(status[1:], ("rejected", "never reached"), strict=True) if n]
    said.append(f"{int(found.arrays['steps'].sum()):,} steps")
    if found.preemptions:
        said.append(f"{found.preemptions:,} preemptions")
    return " · ".join(said)


def part_rows(found: RunResult) -> Rows:
    """Return header and rows: one row a part of the time, seconds and share of each pool's."""
    pools = found.pool_names
    walls = [found.makespan_ps * n for n in found.replicas]
    header = ["part"]
    for pool in pools:
        header += [f"{pool} (s)", "share"]
    rows = []
    for part in found.parts_ps:
        sums = [p[part] for p in found.pool_parts_ps]
        if not any(sums):
            continue
        row = [part.replace("_", " ")]
        for ps, wall in zip(sums, walls, strict=True):
            row += [_seconds(ps), share_text(_over(ps, wall))]
        if len(pools) == 1:
            row.append(f" {'█' * round((_over(sums[0], walls[0]) or 0) * 30) or '▏'}")
        rows.append(row)
    return header + [""] * (len(pools) == 1), rows


def stall_rows(found: RunResult, *, most: int = STALL_LINES) -> Rows:
    """Return header and rows: pool, tier, kind and cause, the largest first; the rest summed in one row."""
    stalls = found.arrays["stall_ps"]
    order = np.argsort(-stalls.ravel(), kind="stable")
    order = order[stalls.ravel()[order] > 0]
    several = len(found.pool_names) > 1
    header = [*(["pool"] if several else []), "tier", "kind", "cause", "seconds", "share"]
    walls = [found.makespan_ps * n for n in found.replicas]
    rows = []
    for flat in order[: most if len(order) > most + 1 else None].tolist():
        p, t, k, c = (int(i) for i in np.unravel_index(flat, stalls.shape))
        ps = int(stalls[p, t, k, c])
        said = [found.tiers[t], KINDS[k], CAUSES[c].replace("_", "-"), _seconds(ps), share_text(_over(ps, walls[p]))]
        rows.append([*([found.pool_names[p]] if several else []), *said])
    rest = order[len(rows) :]
    if rest.size:
        ps = sum(int(v) for v in stalls.ravel()[rest].tolist())
        share = "" if several else share_text(_over(ps, walls[0]))
        rows.append([f"{rest.size} more", *[""] * (len(header) - 3), _seconds(ps), share])
    return header, rows


def state_rows(found: RunResult) -> Rows:
    """Return header and rows: one row a state, the mean seconds and the share of E2E of each population."""
    names = list(dict.fromkeys(found.states["population"]))
    header = ["state"]
    for name in names:
        header += [f"{_name(name)} (s)", "share"]
    by_state: dict[str, list[str]] = {}
    seen: set[str] = set()
    for row in found.states:
        state = row["state"].replace("_", " ") + (f" from {row['tier']}" if row["tier"] else "")
        if row["share"] is None and row["state"] in ("think", "tool", "tool_wait"):
            state = f"before: {state}"
        share = "" if state.startswith("before") else share_text(row["share"])
        by_state.setdefault(state, []).extend([_number(row["mean_s"]), share])
        if row["ps"]:
            seen.add(state)
    return header, [[state, *cells] for state, cells in by_state.items() if state in seen]


def latency_rows(found: RunResult) -> Rows:
    """Return header and rows: percentiles, one row a metric; of several populations, one for each of them too.

    Of several, the time queued is left out: its mean stands among the states.
    """
    keys = ("mean_s", "p50_s", "p90_s", "p95_s", "p99_s", "max_s")
    several = len(found.populations) > 1
    listed = found.latency.rows()
    rows = []
    for metric in dict.fromkeys(row["metric"] for row in listed if not several or row["metric"] != "queued"):
        name = metric if metric == "queued" else metric.upper()
        for row in (row for row in listed if row["metric"] == metric):
            rows.append([name, *([_name(row["population"])] if several else []), *(_brief(row[key]) for key in keys)])
            name = ""
    return ["metric", *(["population"] if several else []), *(k.removesuffix("_s") for k in keys)], rows


def cost_rows(found: RunResult) -> Rows:
    """Return header and rows: rented and owned, and the energy."""
    header = ["", "an hour", "the run", "M output tokens", "M tokens", "a task"]
    rows = []
    for row in found.cost:
        keys = ("usd_per_h", "usd", "usd_per_m_output_tokens", "usd_per_m_tokens", "usd_per_task")
        rows.append([f"{row['view']} (USD)", *(_usd(row[k]) for k in keys)])
    watts, energy = found.machine.get("power_w"), found.cost.rows()[0]
    hourly = None if watts is None else float(watts) * 3600
    joules = ("joules", "joules_per_m_output_tokens", "joules_per_m_tokens", "joules_per_task")
    rows.append(["energy (J)", _count(hourly), *(_count(energy[k]) for k in joules)])
    return header, rows


def memory_rows(found: RunResult) -> Rows:
    """Return header and rows: one row a tier, what was found in it, its use, and what moved; then nowhere."""
    a = found.arrays
    header = ["tier", "hits", "capacity", "in use", "read", "written", "evicted"]
    rows = []
    for t, tier in enumerate(found.tiers):
        moved = [
            int(a["read_bytes"][t].sum() + a["writeback_read_bytes"][t].sum()),
            int(a["write_bytes"][t].sum() + a["writeback_write_bytes"][t].sum()),
            int(a["evicted_bytes"][t]),
        ]
        capacity, used = int(a["capacity_bytes"][t]), int(a["used_bytes"][t])
        in_use = f"{format_bytes(used, digits=3)} ({used / capacity:.0%})" if capacity else "n/a"
        amounts = [format_bytes(capacity, digits=3), in_use, *(format_bytes(b, digits=3) for b in moved)]
        rows.append([tier, share_text(found.hit_rate(tier)), *amounts])
    rate = found.hit_rate()
    rows.append(["nowhere", share_text(None if rate is None else 1 - rate), *[""] * 5])
    return header, rows


def notes(found: RunResult) -> list[str]:
    """Return a line for each SSD's wear and for what is out of the ordinary."""
    lines = []
    for row in found.wear.rows():
        said = f"{row['tier']} wear: {format_bytes(row['written_bytes'])} written"
        if row["drive_writes_per_day"]:
            years, rated = row["life_years"], row["endurance_dwpd"]
            life = "n/a (endurance unknown)" if years is None else f"{years:.3g} years (rated {rated:g} a day)"
            said += f" = {row['drive_writes_per_day']:.3g} drive writes a day, life {life}"
        lines.append(said)
    if found.unreachable_bytes:
        lines.append(f"unreachable: {format_bytes(found.unreachable_bytes)} of resident KV whose prefix is gone")
    if found.counters["swapped_bytes"]:
        lines.append(f"swapped: {format_bytes(found.counters['swapped_bytes'])} of preempted requests' KV")
    if found.counters["pins_broken"]:
        lines.append(
            f"pins broken: {found.counters['pins_broken']:,} pauses whose blocks a retention rule meant to keep"
        )
    return lines


def goodput_rows(found: RunResult) -> Rows:
    """Return header and rows: one row a population, what met its goals and what that makes a second."""
    header = ["population", "within", "share", "requests/s", "output tokens/s", "USD a task", "makespan"]
    rows = []
    for row in found.goodput:
        within = f"{row['within']:,} of {row['requests']:,}"
        rows.append(
            [_name(row["population"]), within, share_text(row["share"]), _number(row["requests_per_s"]),
             _number(row["output_tokens_per_s"]), _usd(row["cost_usd_per_task"]), _brief(row["makespan_s"])]
        )  # fmt: skip
    return header, rows


def _goals(row: dict[str, Any], *, several: bool) -> list[str]:
    """Return the lines that say what a population asked for, and whether the whole of it got that."""
    said = [f"{k.upper()} {_brief(row[f'{k}_goal_s'])}" for k in ("ttft", "tpot", "e2e") if row[f"{k}_goal_s"]]
    if row["cost_goal_usd"] is not None:
        said.append(_against(f"{_usd(row['cost_goal_usd'])} USD a task", row["cost_met"]))
    if row["makespan_goal_s"] is not None:
        said.append(_against(f"makespan {_brief(row['makespan_goal_s'])}", row["makespan_met"]))
    of = f" of {_name(row['population'])}" if several else ""
    line = f"goals{of}: {', '.join(said) or 'none'}"
    return textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _throughput(found: RunResult) -> list[str]:
    said = (
        (found.output_tokens_per_s, "output tokens/s"),
        (found.tokens_per_s, "tokens/s with prompts"),
        (found.tokens_per_s_per_user, "tokens/s a user"),
    )
    return ["  throughput: " + " · ".join(f"{_number(value)} {what}" for value, what in said)]


def _section(
    title: str, header: list[str], rows: list[list[str]], *, left: Sequence[int] = (0,), each: int = 0
) -> list[str]:
    """Return a blank line, a title and a table; one too wide is cut into tables below each other.

    Parameters
    ----------
    each : how many columns after the first stay together where the table is cut; 0 if it never is.
    """
    if not rows:
        return []
    lines = ["", title]
    at, end = 1, len(header)
    while at < len(header):
        table = text_table([header[0], *header[at:end]], [[r[0], *r[at:end]] for r in rows], left=left).split("\n")
        if each and end - at > each and max(map(len, table)) > WIDTH:
            end -= each
            continue
        lines += table
        at, end = end, len(header)
    return lines


def _against(value: str, met: bool | None) -> str:
    return value if met is None else f"{value} ({'met' if met else 'missed'})"


def _name(population: str) -> str:
    return population if len(population) <= NAME else population[: NAME - 3] + "..."


def _brief(seconds: float | None) -> str:
    """Show a time in three digits and one unit, at most eight characters: columns of times stay narrow."""
    if seconds is None or abs(seconds) < 120:
        return _time(seconds)
    scale, unit = (60.0, "min") if abs(seconds) < 7200 else (3600.0, "h")
    return f"{_number(seconds / scale)} {unit}"


def _over(value: int, whole: int) -> float | None:
    return value / whole if whole else None


def _seconds(ps: int) -> str:
    return f"{ps / 1e12:,.3f}"


def _time(seconds: float | None) -> str:
    return "n/a" if seconds is None else format_time(seconds, digits=3)


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _usd(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.2f}" if value >= 1 or not value else f"{value:.3g}"


def _count(value: float | None) -> str:
    return "n/a" if value is None else format_count(value, digits=3)


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
