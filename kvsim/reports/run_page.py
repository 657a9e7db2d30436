"""A run as one HTML page that opens offline, and its short form for notebooks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim._files import atomic_file
from kvsim._memory_tables import PS
from kvsim._table import share_text
from kvsim._toml import Source
from kvsim.errors import KvsimError
from kvsim.machine import Machine
from kvsim.model import Model
from kvsim.reports import _html, _run_figures
from kvsim.reports._run_figures import seconds
from kvsim.reports._svg import number
from kvsim.show import Row, Shown, show
from kvsim.units import format_bytes, format_count, format_time
from kvsim_core import CAUSES, KINDS

if TYPE_CHECKING:
    from kvsim.run_result import RunResult

__all__ = ["page", "short", "write"]


def write(result: RunResult, path: str | os.PathLike[str]) -> None:
    """Write :func:`page` to a file, whole or not at all.

    Raises
    ------
    KvsimError
        The place cannot be written.
    """
    text = page(result)
    with atomic_file(path) as file:
        file.write(text.encode())


def page(result: RunResult) -> str:
    """Return the run as one HTML page: the summary, both views of the time, memory, cost, and the assumptions.

    It fetches nothing and is readable without its script, in light, in dark and on paper.
    """
    name = str(result.trace.get("name", "trace"))
    model = "" if result.model is None else str(result.model.get("name", "model"))
    machine = str(result.machine.get("name", "machine"))
    links = (
        ("machine", "machine's view"), ("request", "request's view"), ("memory", "memory"), ("cost", "cost"),
        ("assumptions", "assumptions"),
    )  # fmt: skip
    menu = "".join(f'<a href="#{anchor}">{escape(words)}</a>' for anchor, words in links)
    themes = " · ".join(f'<a href="#{theme}">{theme}</a>' for theme in ("light", "dark", "auto"))
    head = (
        f"<h1>{escape(name)} on {escape(machine)}</h1>"
        f'<div class="soft">{escape(_inputs(result))}</div><nav>{menu}<span class="soft">page: {themes}</span></nav>'
    )
    several = len(result.pool_names) > 1
    body = "\n".join(
        [
            _html.cards(_cards(result)),
            _notes(result),
            _html.section(
                "machine",
                "The machine's view: where its seconds went",
                "<p>What is paid for: every replica's seconds, each in exactly one part.</p>",
                _run_figures.wall(result),
                *(_run_figures.wall_over_time(result, p) for p in range(len(result.pool_names))),
                _stalls(result, several),
                _run_figures.throughput(result),
                _run_figures.load(result),
            ),
            _html.section(
                "request",
                "The request's view: what a person waits for",
                "<p>At each instant, a request is in exactly one state from when it is ready to when it is done.</p>",
                _run_figures.states(result),
                _pauses(result),
                _run_figures.curves(result),
                _goals(result),
                _tasks(result),
            ),
            _html.section(
                "memory",
                "Memory",
                _run_figures.hits(result),
                _run_figures.occupancy(result),
                _run_figures.busy(result),
                _memory(result),
                _wear(result),
            ),
            _html.section("cost", "Cost", _cost(result), _run_figures.memory_share(result)),
            _html.section("assumptions", "Assumptions", *_assumptions(result)),
        ]
    )
    foot = f"kvsim {escape(result.kvsim_version)} · configuration {escape(result.config_hash)}"
    title = " · ".join(part for part in (name, model, machine) if part)
    return _html.shell(f"{title} · kvsim", head, body, foot)


def short(result: RunResult) -> str:
    """Return the summary and two pictures as HTML without scripts, in the colours of the page around it."""
    big = [(what, value, remark) for what, value, remark in _cards(result) if value != "n/a"]
    style = "display:inline-block;min-width:118px;margin:0 18px 8px 0;vertical-align:top"
    cards = "".join(
        f'<div style="{style}"><div style="opacity:.75;font-size:12px">{escape(what)}</div>'
        f'<div style="font-size:17px;font-weight:600">{escape(value)}</div>'
        f'<div style="opacity:.75;font-size:12px">{escape(remark)}</div></div>'
        for what, value, remark in big
    )
    title = f"{result.trace.get('name', 'trace')} on {result.machine.get('name', 'machine')}"
    foot = f"kvsim {result.kvsim_version} · configuration {result.config_hash}"
    parts = [
        f'<div><b>{escape(title)}</b><br><span style="opacity:.75">{escape(_inputs(result))}</span></div>',
        f'<div style="margin-top:8px">{cards}</div>',
        _run_figures.wall(result, inline=True, width=820),
        # with several pools, the one that decodes: what people wait for at each token
        _run_figures.wall_over_time(result, len(result.pool_names) - 1, inline=True, width=820),
        f'<div style="opacity:.75;font-size:12px">{escape(foot)}</div>',
    ]
    return f'<div class="kvsim-run" style="color:inherit;font-size:13px;max-width:840px">{"".join(parts)}</div>'


# ---- the summary --------------------------------------------------------------------------------------------------


def _inputs(result: RunResult) -> str:
    model = "no model"
    if result.model is not None:
        dtype = result.model.get("weights_dtype")
        dtype = result.model.get("native_dtype", dtype) if dtype == "native" else dtype
        model = str(result.model.get("name", "model")) + (f" ({dtype})" if dtype else "")
    counts = [f"{len(result.done):,} requests"]
    if len(result.session_names):
        counts.append(f"{len(result.session_names):,} sessions")
    counts.append(f"{format_count(result.prompt_tokens, digits=3)} prompt tokens")
    counts.append(f"{format_count(result.output_tokens, digits=3)} output tokens")
    pools = [
        f"{many} x {pool}" if many > 1 else pool for pool, many in zip(result.pool_names, result.replicas, strict=True)
    ]
    return " · ".join([model, str(result.machine.get("name", "machine")), *pools, *counts])


def _cards(result: RunResult) -> list[tuple[str, str, str]]:
    latency = {row["metric"]: row for row in reversed(result.latency.rows())}
    cards = [("makespan", format_time(result.makespan_s), f"{_done(result)} of {len(result.done):,} requests done")]
    for metric, words in (("ttft", "time to first token"), ("tpot", "time per output token"), ("e2e", "end to end")):
        row = latency[metric]
        cards.append((f"{metric.upper()} p50", seconds(row["p50_s"]), f"p99 {seconds(row['p99_s'])}: {words}"))
    cards.append(("output tokens/s", _count(result.output_tokens_per_s), f"{_count(result.tokens_per_s)} with prompts"))
    cards.append(("tokens/s per user", _number(result.tokens_per_s_per_user), "1 / mean TPOT"))
    cards.append(_goodput_card(result))
    usd = {row["view"]: row["usd_per_m_output_tokens"] for row in result.cost.rows()}
    cards.append(("USD per M output tokens", _number(usd["rent"]), f"rented; {_number(usd['owned'])} owned"))
    cards.append(("KV hit rate", share_text(result.hit_rate()), "of prompt tokens, prefix rule"))
    wall = result.wall_ps
    stalls = result.parts_ps["stalls"]
    cards.append(("stalled on memory", share_text(stalls / wall if wall else None), "of all replicas' seconds"))
    return cards


def _goodput_card(result: RunResult) -> tuple[str, str, str]:
    """Return how many requests met goals of latency, of those that have any: the others would hide the misses."""
    aimed = [row for row in result.goodput.rows() if any(row[f"{key}_goal_s"] for key in ("ttft", "tpot", "e2e"))]
    if not aimed:
        done = int(result.done.sum())
        rate = done / result.makespan_s if result.makespan_ps else None
        return "requests/s", _number(rate), "done; no goal of latency set"
    within, count = sum(row["within"] for row in aimed), sum(row["requests"] for row in aimed)
    return (
        "goodput",
        share_text(within / count if count else None),
        f"{within:,} of {count:,} requests that have goals of latency",
    )


def _done(result: RunResult) -> str:
    return f"{int(result.done.sum()):,}"


def _count(value: float | None) -> str:
    return "n/a" if value is None else format_count(value, digits=3)


def _number(value: float | None) -> str:
    return "n/a" if value is None else number(value)


def _notes(result: RunResult) -> str:
    said = []
    status = result.arrays["status"]
    rejected, unreached = int((status == 1).sum()), int((status == 2).sum())
    if rejected:
        said.append(f"{_many(rejected, 'request')} rejected: larger than the machine, each alone.")
    if unreached:
        said.append(f"{_many(unreached, 'request')} never reached: what they wait for was rejected.")
    if result.preemptions:
        swapped = result.counters["swapped_bytes"]
        size = format_bytes(swapped, digits=3) if swapped else "nothing"
        said.append(f"{_many(result.preemptions, 'preemption')}, {size} swapped.")
    if result.unreachable_bytes:
        size = format_bytes(result.unreachable_bytes)
        said.append(f"{size} of resident KV cannot be reached at the end: the start of its prefix is gone.")
    if result.counters["pins_broken"]:
        broken = result.counters["pins_broken"]
        said.append(f"The blocks of {_many(broken, 'pause')} lost their pin to make room.")
    mark = ' class="warn"' if rejected or unreached else ' class="soft"'
    return f"<p{mark}>{escape(' '.join(said))}</p>" if said else ""


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# ---- tables -------------------------------------------------------------------------------------------------------


def _stalls(result: RunResult, several: bool) -> str:
    stall = result.arrays["stall_ps"]
    rows: list[list[str]] = []
    for p, pool in enumerate(result.pool_names):
        wall = result.makespan_ps * result.replicas[p]
        for t, tier in enumerate(result.tiers):
            for k, kind in enumerate(KINDS):
                causes = [int(v) for v in stall[p, t, k]]
                if any(causes):
                    shown = [seconds(v / PS) if v else "-" for v in causes]
                    share = share_text(sum(causes) / wall if wall else None)
                    rows.append([*([pool] if several else []), tier, kind, *shown, seconds(sum(causes) / PS), share])
    if not rows:
        return "<h3>Stalls</h3><p>None.</p>" if result.makespan_ps else "<p>Nothing ran.</p>"
    lead = ["pool", "tier", "kind"] if several else ["tier", "kind"]
    header = [*lead, *(cause.replace("_", "-") for cause in CAUSES), "all", "of the pool's time"]
    words = tuple(range(len(lead)))
    return "<h3>Stalls by memory, by what was waited for, by cause</h3>" + _html.table(header, rows, words=words)


def _pauses(result: RunResult) -> str:
    rows = [
        [row["population"], row["state"].replace("_", " "), seconds(row["seconds"]), seconds(row["mean_s"])]
        for row in result.states.rows()
        if row["share"] is None and row["state"] in ("think", "tool", "tool_wait") and row["seconds"]
    ]
    if not rows:
        return ""
    said = "<p>Pauses before requests: they belong to the task, not to the request that follows.</p>"
    header = ["population", "pause", "in all", "mean a request"]
    return f"<h3>Thinking and tools</h3>{said}" + _html.table(header, rows, words=(0, 1))


def _goals(result: RunResult) -> str:
    rows = []
    for row in result.goodput.rows():
        goals = [
            f"{key.upper()} {seconds(row[f'{key}_goal_s'])}" for key in ("ttft", "tpot", "e2e") if row[f"{key}_goal_s"]
        ]
        if row["makespan_goal_s"]:
            goals.append(f"all within {seconds(row['makespan_goal_s'])}")
            goals[-1] += _met(row["makespan_met"], seconds(row["makespan_s"]))
        if row["cost_goal_usd"]:
            goals.append(f"{number(row['cost_goal_usd'])} USD a task")
            goals[-1] += _met(row["cost_met"], _number(row["cost_usd_per_task"]))
        rows.append(
            [row["population"], f"{row['requests']:,}", f"{row['done']:,}", f"{row['within']:,}",
             share_text(row["share"]), _number(row["requests_per_s"]), _number(row["output_tokens_per_s"]),
             ", ".join(goals) or "no goal"]
        )  # fmt: skip
    header = ["population", "requests", "done", "within goals", "share", "requests/s within", "output tokens/s within",
              "goals"]  # fmt: skip
    return "<h3>Goals</h3>" + _html.table(header, rows, text=(7,))


def _met(met: bool | None, found: str) -> str:
    return "" if met is None else f" ({'met' if met else 'missed'}: {found})"


def _tasks(result: RunResult) -> str:
    tasks = result.tasks
    span = np.asarray(tasks["seconds"], float)
    groups = np.asarray(tasks["population"], object)
    rows = []
    for name in dict.fromkeys(["all", *result.population_names] if len(result.populations) > 1 else ["all"]):
        chosen = ~np.isnan(span) if name == "all" else ~np.isnan(span) & (groups == name)
        if not chosen.any():
            continue
        cuts = np.percentile(span[chosen], (50, 99)).tolist()
        counts = [float(np.asarray(tasks[key], float)[chosen].mean()) for key in ("requests", "output_tokens")]
        waits = [float(np.asarray(tasks[key], float)[chosen].mean()) for key in ("queued_s", "tool_s", "think_s")]
        rent = [v for v, c in zip(tasks["rent_usd"], chosen.tolist(), strict=True) if c and v is not None]
        mean = sum(map(float, rent)) / len(rent) if rent else None
        rows.append(
            [name, f"{int(chosen.sum()):,}", number(counts[0]), format_count(counts[1], digits=3),
             seconds(float(span[chosen].mean())), *(seconds(c) for c in cuts), *(seconds(w) for w in waits),
             _number(mean)]
        )  # fmt: skip
    if not rows:
        return ""
    header = ["population", "tasks", "requests each", "output tokens", "mean", "p50", "p99", "queued", "tools",
              "thinking", "USD, rented"]  # fmt: skip
    said = "<p>A task is a session, from its first request to its last completion; means a task.</p>"
    return f"<h3>Tasks</h3>{said}" + _html.table(header, rows)


def _memory(result: RunResult) -> str:
    a = result.arrays
    rows = []
    for t, tier in enumerate(result.tiers):
        capacity, used = int(a["capacity_bytes"][t]), int(a["used_bytes"][t])
        sizes = [
            int(a["private_bytes"][t]),
            int(a["read_bytes"][t].sum() + a["writeback_read_bytes"][t].sum()),
            int(a["write_bytes"][t].sum() + a["writeback_write_bytes"][t].sum()),
            int(a["evicted_bytes"][t]),
        ]
        blocks = [format_count(int(a[key][t].sum()), digits=3) for key in ("demoted_out", "promoted_in", "refused")]
        share = f" ({share_text(used / capacity, digits=0)})" if capacity else ""
        rows.append(
            [tier, str(result.tier_info[t]["medium"]), format_bytes(capacity, digits=3),
             format_bytes(used, digits=3) + share, *(format_bytes(v, digits=3) for v in sizes), *blocks]
        )  # fmt: skip
    header = ["tier", "medium", "capacity", "in use at the end", "private", "read", "written", "evicted", "demoted",
              "promoted", "refused"]  # fmt: skip
    said = '<p class="soft">Over all replicas; demoted, promoted and refused are blocks.</p>'
    return f"<h3>Tiers</h3>{said}" + _html.table(header, rows, words=(0, 1))


def _wear(result: RunResult) -> str:
    rows = []
    for row in result.wear.rows():
        rated = "n/a" if row["endurance_dwpd"] is None else f"{row['endurance_dwpd']:g}"
        years = "n/a" if row["life_years"] is None else f"{number(row['life_years'])} years"
        pace = "n/a" if row["drive_writes_per_day"] is None else number(row["drive_writes_per_day"])
        rows.append([row["tier"], format_bytes(row["written_bytes"], digits=3), pace, rated, years])
    if not rows:
        return ""
    header = ["tier", "written", "drive writes a day", "rated for, a day", "rated writes last"]
    return "<h3>Wear of SSDs, at this run's pace</h3>" + _html.table(header, rows)


def _cost(result: RunResult) -> str:
    rows = [
        [
            {"rent": "rented", "owned": "owned (price over 5 years, and electricity)"}[row["view"]],
            *(_number(row[key]) for key in ("usd_per_h", "usd", "usd_per_m_output_tokens", "usd_per_m_tokens",
                                            "usd_per_task")),
        ]
        for row in result.cost.rows()
    ]  # fmt: skip
    first = result.cost.rows()[0]
    energy = [_joules(first[key]) for key in ("joules", "joules_per_m_output_tokens", "joules_per_m_tokens",
                                              "joules_per_task")]  # fmt: skip
    watts = result.machine.get("power_w")
    rows.append(["energy", _joules(None if watts is None else float(watts) * 3600), *energy])
    header = ["", "an hour", "this run", "M output tokens", "M tokens", "a task"]
    tiers = [
        [row["tier"], "n/a" if row["price_usd"] is None else f"{row['price_usd']:,.0f}",
         share_text(row["share_of_capex"]), _number(row["usd_per_h"]), share_text(row["share_of_owned"])]
        for row in result.memory_cost.rows()
    ]  # fmt: skip
    more = ["tier", "price, USD", "of the machine's price", "USD an hour over 5 years", "of the owned hour"]
    return (
        "<p>In US dollars. What has no known price is n/a.</p>" + _html.table(header, rows)
        + "<h3>Memory's share</h3>" + _html.table(more, tiers)
    )  # fmt: skip


def _joules(value: float | None) -> str:
    # the prefix stands right before its unit: 1.53 MJ
    return "n/a" if value is None else format_count(value, digits=3) + (" J" if value < 1000 else "J")


# ---- the assumptions ----------------------------------------------------------------------------------------------


def _assumptions(result: RunResult) -> list[str]:
    said = "Every number that is not a default, with where it comes from."
    out = [f'<p>{said} <span class="warn">?</span> marks estimates and what is from memory.</p>']
    for sort, values, load in (
        ("Machine", result.machine, Machine.from_dict),
        ("Model", result.model, Model.from_dict),
    ):
        if values is not None:
            out.append(f"<h3>{sort}: {escape(str(values.get('name', '')))}</h3>" + _numbers(values, load))
    options = [[key, value] for key, value in _flat(result.options)]
    if options:
        out.append("<h3>Options of the run</h3>" + _html.table(["option", "value"], options, text=(1,)))
    about = [[key, value] for key, value in _flat(result.trace)]
    about += [["kvsim", result.kvsim_version], ["configuration", result.config_hash]]
    out.append("<h3>Trace and program</h3>" + _html.table(["what", "value"], about, text=(1,)))
    return out


def _numbers(values: Mapping[str, Any], load: Any) -> str:
    try:
        # sources are put back as they were: a machine with fewer tiers still names those of all
        whole = load({**values, "sources": {}})
        sources = {path: Source(*source) for path, source in values.get("sources", {}).items()}
        shown: Shown = show(dataclasses.replace(whole, sources=sources))
    except (KvsimError, TypeError, ValueError, KeyError):
        # inputs that are not a whole machine or model: what there is, without sources
        return _html.table(["number", "value"], [[key, value] for key, value in _flat(values)], text=(1,))
    rows = [[row.key, _value(row), *_origin(row)] for row in shown.rows]
    doubtful = [i for i, row in enumerate(shown.rows) if row.doubtful]
    said = f"<p>{len(doubtful)} of {len(rows)} are estimates or from memory.</p>" if doubtful else ""
    marks = ["number", "value", "quality", "source"]
    return said + _html.table(marks, rows, words=(0, 1, 2), text=(3,), warn=doubtful)


def _value(row: Row) -> str:
    plain = row.text == str(row.value) and isinstance(row.value, float) and abs(row.value) >= 1e6
    return format_count(row.value) if plain else row.text


def _origin(row: Row) -> tuple[str, str]:
    """Return quality and source as the table shows them; a number that nobody gave a source for says so."""
    if row.source is None:
        is_number = isinstance(row.value, int | float) and not isinstance(row.value, bool)
        return ("none given" if is_number else ""), ""
    return f"{row.quality or ''}{' ?' if row.doubtful else ''}", row.source


def _flat(values: Mapping[str, Any], at: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{at}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            out.append((f"{at}{key}", ", ".join(map(str, value))))
        else:
            out.append((f"{at}{key}", "none" if value is None else str(value)))
    return out
