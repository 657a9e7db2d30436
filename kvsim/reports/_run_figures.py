"""The pictures of a run: each takes a result and returns a figure, or nothing where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim._memory_tables import PS
from kvsim._run_tables import exact_sum
from kvsim._table import share_text
from kvsim.errors import KvsimError
from kvsim.machine import Machine
from kvsim.reports import _html, _svg
from kvsim.reports._colours import POPULATION_DASHES, population_key, tier_key
from kvsim.reports._svg import Axis, Bar, Line, linear_axis
from kvsim.run_result import PARTS
from kvsim.units import UNBOUNDED_BYTES, format_bytes, format_count, format_time
from kvsim_core import KINDS, RULES, WEIGHTS

if TYPE_CHECKING:
    from kvsim.run_result import RunResult

__all__ = [
    "busy",
    "curves",
    "hits",
    "load",
    "memory_share",
    "occupancy",
    "parts_of",
    "seconds",
    "states",
    "throughput",
    "wall",
    "wall_over_time",
]

POINTS = 300
"""Points of a picture over time; pictures of several pools share twice as many."""
_ROWS = 24
_CURVE_POINTS = 160
_METRICS = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "request, end to end"}
_PARTS = {
    "compute": "compute", "recompute": "recompute", "overhead": "overhead", "collectives": "collectives",
    "bubble": "bubble", "idle_no_request": "idle: no request", "idle_tool": "idle: tool", "idle_think": "idle: think",
}  # fmt: skip
_MEANINGS = {
    "recompute": "Recompute: prefill of tokens whose KV was there before.",
    "overhead": "Overhead: fixed time of each step and layer.",
    "collectives": "Collectives: exchange between the devices of a replica.",
    "bubble": "Bubble: waiting for another pool or pipeline stage.",
}
Floats = np.ndarray[Any, Any]


def seconds(value: float | None) -> str:
    """Show seconds in three digits; n/a for None."""
    return "n/a" if value is None else format_time(value, digits=3)


# ---- the machine's view -------------------------------------------------------------------------------------------


def parts_of(result: RunResult) -> list[tuple[str, str, Floats, Floats]]:
    """Return name, colour, whole picoseconds [P] and picoseconds over time [bins, P] of each part of the wall.

    The stall is told apart by tier; the order is that of the stack, computing first, idle last.
    """
    a = result.arrays
    found: list[tuple[str, str, Floats, Floats]] = []
    for i, part in enumerate(PARTS):
        if part == "stalls":
            found += [
                (f"stall: {tier}", tier_key(t), a["stall_ps"][:, t].sum(axis=(1, 2)), a["bins/stall_ps"][:, :, t])
                for t, tier in enumerate(result.tiers)
            ]
        else:
            whole = np.array([parts[part] for parts in result.pool_parts_ps], float)
            found.append((_PARTS[part], part, whole, a["bins/parts_ps"][:, :, i]))
    return found


def wall(result: RunResult, *, inline: bool = False, width: int = 920) -> str:
    """Return the bars of what each pool's time went to."""
    if not result.makespan_ps:
        return ""
    parts = parts_of(result)
    bars, rows = [], []
    for p, pool in enumerate(result.pool_names):
        whole = result.makespan_ps * result.replicas[p]
        shares = [(name, float(total[p]) / whole if whole else 0.0, key) for name, key, total, _ in parts]
        many = result.replicas[p]
        bars.append(Bar(pool if many == 1 else f"{pool} (x {many})", tuple(shares), "", share_text))
        rows += [
            [pool, name, seconds(float(total[p]) / PS), share_text(share)]
            for (name, share, _), (_, _, total, _) in zip(shares, parts, strict=True)
            if share
        ]
    shown = [(name, key) for name, key, total, _ in parts if total.any()]
    picture = _svg.bar_chart(
        bars, x=_share_axis("share of the makespan of the pool's replicas"), width=width, thick=28, inline=inline,
        label="What each pool's time went to, as shares of the makespan",
    )  # fmt: skip
    legend = _svg.legend(shown, inline=inline)
    if inline:
        return legend + picture
    numbers = _html.table(["pool", "part", "seconds, all replicas", "share"], rows, words=(0, 1))
    caption = " ".join(said for part, said in _MEANINGS.items() if any(key == part for _, key in shown))
    return _html.figure("What the time went to", picture, legend=legend, numbers=numbers, caption=caption)


def wall_over_time(result: RunResult, pool: int, *, inline: bool = False, width: int = 920) -> str:
    """Return the areas of what one pool's time went to in each interval."""
    if not len(result.arrays["bins/running"]):
        return ""
    points = max(60, min(POINTS, 2 * POINTS // len(result.pool_names)))
    edges, first, said = _intervals(result, points)
    whole = np.diff(edges) * PS * result.replicas[pool]
    lines = [
        Line(name, np.add.reduceat(series[:, pool].astype(float), first) / whole, key)
        for name, key, _, series in parts_of(result)
        if series[:, pool].any()
    ]
    x = _svg.time_axis(float(edges[-1]))
    picture = _svg.area_chart(
        edges, lines, x=x, y=_share_axis("share of the pool's time"), inline=inline, width=width,
        height=300 if not inline else 240, label=f"What the time of pool {result.pool_names[pool]} went to, over time",
    )  # fmt: skip
    legend = _svg.legend([(line.name, line.key) for line in lines])
    if inline:
        of = f", pool {escape(result.pool_names[pool])}" if len(result.pool_names) > 1 else ""
        return f'<div style="margin-top:8px">Over time{of}:</div>{picture}'
    title = "What the time went to, over time"
    title += f": pool {result.pool_names[pool]}" if len(result.pool_names) > 1 else ""
    return _html.figure(
        title, picture, legend=legend, caption=f"Each point covers {said}.", numbers=_series(edges, lines, share_text)
    )


# ---- the request's view -------------------------------------------------------------------------------------------


def states(result: RunResult) -> str:
    """Return the bars of the mean time in each state, by population and by how long requests took."""
    a, done = result.arrays, result.done
    if not done.any():
        return ""
    columns = [("queued", "queued", a["queued_ps"])]
    columns += [(f"loading: {tier}", tier_key(t), a["loading_ps"][:, t]) for t, tier in enumerate(result.tiers)]
    columns += [("KV transfer", "bubble", a["transfer_ps"]), ("prefill", "compute", a["prefill_ps"])]
    columns += [(key, key, a[f"{key}_ps"]) for key in ("recompute", "decode", "preempted")]
    groups = [("all", done)]
    if len(result.populations) > 1:
        groups += [(name, done & (a["population"] == p)) for p, name in enumerate(result.population_names)]
    buckets = _buckets(result)
    shown = [(name, key) for name, key, ps in columns if ps[done].any()]
    out = []
    for title, members, caption in (
        ("Where a request's time goes: mean by population", groups, ""),
        (
            "Where a request's time goes: by how long it took", buckets,
            "Requests in the order of their end-to-end time, cut at its percentiles.",
        ),
    ):  # fmt: skip
        bars, rows = [], []
        for name, chosen in members:
            count = int(chosen.sum())
            if not count:
                continue
            means = [(state, float(ps[chosen].astype(float).sum()) / PS / count, key) for state, key, ps in columns]
            whole = sum(mean for _, mean, _ in means)
            bars.append(Bar(name, tuple(means), f"{seconds(whole)} · {count:,} requests", seconds))
            rows.append([name, f"{count:,}", *(seconds(mean) for _, mean, _ in means), seconds(whole)])
        picture, how = _stacked(bars, "mean time in each state")
        numbers = _html.table(["requests", "count", *(state for state, *_ in columns), "end to end"], rows)
        out.append(_html.figure(title, picture, legend=_svg.legend(shown), numbers=numbers, caption=caption + how))
    return "".join(out)


def _stacked(bars: Sequence[Bar], what: str) -> tuple[str, str]:
    """Return bars on one scale of seconds, or as shares where one is too long for the others to be seen."""
    totals = [sum(value for _, value, _ in bar.parts) for bar in bars]
    high, low = max(totals), min(t for t in totals) if totals else 0.0
    if low > 0 and high / low <= 25:
        axis = _svg.scaled_axis(high, what, "s", most=8)
        return _svg.bar_chart(bars, x=axis, label=what), ""
    shares = [
        Bar(bar.label, tuple((n, v / total if total else 0.0, k) for n, v, k in bar.parts), bar.end, share_text)
        for bar, total in zip(bars, totals, strict=True)
    ]
    picture = _svg.bar_chart(shares, x=_share_axis(f"{what}, as a share of its whole"), label=what)
    return picture, " Each bar is cut by shares; its length in time stands at its end."


def _buckets(result: RunResult) -> list[tuple[str, Floats]]:
    """Return the completed requests up to the median of end-to-end time, and above it to p90, p99 and the slowest."""
    done = result.done
    known = result.e2e_s[done]
    cuts = [-math.inf, *np.percentile(known, (50, 90, 99)).tolist(), math.inf]
    names = ("fastest half", "p50 to p90", "p90 to p99", "slowest 1 %")
    # those that never completed are NaN, which is in no bucket
    return [(name, (result.e2e_s > cuts[i]) & (result.e2e_s <= cuts[i + 1])) for i, name in enumerate(names)]


def curves(result: RunResult) -> str:
    """Return how TTFT, TPOT and E2E are distributed, by population, with the goals."""
    out = []
    several = len(result.populations) > 1
    for metric, words in _METRICS.items():
        values = {"ttft": result.ttft_s, "tpot": result.tpot_s, "e2e": result.e2e_s}[metric]
        drawn: list[tuple[str, Floats, Floats, str, str]] = []
        goals = []
        for p, goal in enumerate(result.populations):
            mine = values[~np.isnan(values) & (result.arrays["population"] == p)]
            mine = np.sort(mine[mine > 0])
            if mine.size:
                at = _quantiles(mine.size)
                drawn.append(
                    (str(goal["name"]), np.quantile(mine, at), at, population_key(p), POPULATION_DASHES[p % 8])
                )
                if goal.get(f"{metric}_s"):
                    goals.append((float(goal[f"{metric}_s"]), f"goal: {goal['name']}", population_key(p)))
        if not drawn:
            continue
        low = min(min(float(xs[0]) for _, xs, *_ in drawn), *(g[0] for g in goals), math.inf)
        high = max(max(float(xs[-1]) for _, xs, *_ in drawn), *(g[0] for g in goals), 0.0)
        picture = _svg.curve_chart(
            drawn, x=_svg.log_axis(low, high, f"{words} (log scale)", most=6), y=_share_axis("requests within"),
            marks=goals, label=f"Distribution of the {words}",
        )  # fmt: skip
        said = ", ".join(f"{words.removeprefix('goal: ')} {seconds(v)}" for v, words, _ in goals)
        legend = ""
        if several:
            legend = _svg.legend([(c[0], c[3]) for c in drawn], lines=[c[4] for c in drawn])
        rows = [
            [r["population"], f"{r['requests']:,}", *(seconds(r[k]) for k in r if k.endswith("_s"))]
            for r in result.latency.where(metric=metric).rows()
        ]
        header = ["population", "requests", "mean", "p50", "p90", "p95", "p99", "largest"]
        caption = f"Goals (dotted): {said}." if said else ""
        numbers = _html.table(header, rows)
        title = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}[metric] + f": {words}"
        out.append(
            f"<div>{_html.figure(title, picture, legend=legend, caption=caption, numbers=numbers, half=True)}</div>"
        )
    return f'<div class="row">{"".join(out)}</div>' if out else ""


def _quantiles(count: int) -> Floats:
    if count <= _CURVE_POINTS:
        return np.linspace(0, 1, max(count, 2))
    tail = 1 - np.geomspace(0.02, 1 / count, 30)
    return np.unique(np.concatenate([np.linspace(0, 0.98, _CURVE_POINTS - 32), tail, [1.0]]))


# ---- memory and load over time ------------------------------------------------------------------------------------


def occupancy(result: RunResult) -> str:
    """Return how full each tier was, one picture a tier."""
    a = result.arrays
    if not len(a["bins/running"]):
        return ""
    edges, first, said = _intervals(result, POINTS)
    lines = []
    axes = []
    for t, tier in enumerate(result.tiers):
        used = np.maximum.reduceat(a["bins/used_bytes"][:, t], first).astype(float)
        lines.append(Line(tier, used, tier_key(t)))
        capacity = int(a["capacity_bytes"][t])
        near = capacity < UNBOUNDED_BYTES and used.max() > 0.2 * capacity
        axes.append(_svg.scaled_axis(max(float(capacity if near else used.max()), 1.0), f"{tier} in use", "B", most=4))
    left = max(_svg.label_width(y) for y in axes)
    x = _svg.time_axis(float(edges[-1]))
    out = []
    for t, (line, y) in enumerate(zip(lines, axes, strict=True)):
        capacity = int(a["capacity_bytes"][t])
        size = f"capacity {format_bytes(capacity, digits=3)}"
        out.append(
            _svg.area_chart(
                edges,
                [line],
                x=x if t == len(lines) - 1 else replace(x, title=""),
                y=replace(y, title=f"{y.title}, {size}"),
                height=150 if t == len(lines) - 1 else 132,
                marks=[(capacity, size)] if 0 < capacity <= y.high else [],
                left=left,
                label=f"Bytes in use in {line.name} over time",
            )
        )
    numbers = _series(edges, lines, lambda v: format_bytes(v, digits=3))
    caption = (
        f"Each point covers {said}: the highest level seen in it, looking every {_looked(result)}. The dashed line is "
        "the capacity; where little of it is used, the axis ends before it."
    )
    # each picture has a figure of its own: its read-out is placed in it
    figures = "".join(f'<figure class="fig"><div class="scroll">{picture}</div></figure>' for picture in out)
    return (
        f"<h3>How full each memory was</h3>{figures}"
        f'<p class="soft" style="font-size:13px">{caption}</p><details><summary>Numbers</summary>{numbers}</details>'
    )


def load(result: RunResult) -> str:
    """Return how many requests were running, waiting and loading."""
    a = result.arrays
    if not len(a["bins/running"]):
        return ""
    edges, first, said = _intervals(result, POINTS)
    lines = [
        Line(key, np.maximum.reduceat(a[f"bins/{key}"], first).astype(float), key, dash)
        for key, dash in (("running", ""), ("waiting", "7 3"), ("loading", "2 2.5"))
    ]
    top = max(float(line.values.max()) for line in lines)
    picture = _svg.steps_chart(
        edges, lines, x=_svg.time_axis(float(edges[-1])), y=_svg.scaled_axis(max(top, 1.0), "requests", ""),
        label="Requests running, waiting and loading, over time",
    )  # fmt: skip
    legend = _svg.legend([(line.name, line.key) for line in lines], lines=[line.dash for line in lines])
    return _html.figure(
        "Requests at once", picture, legend=legend, numbers=_series(edges, lines, format_count),
        caption=f"Each point covers {said}: the highest level seen in it, looking every {_looked(result)}.",
    )  # fmt: skip


def throughput(result: RunResult) -> str:
    """Return the tokens a second over time, computed and emitted."""
    a = result.arrays
    if not len(a["bins/running"]):
        return ""
    edges, first, said = _intervals(result, POINTS)
    wide = np.diff(edges)
    lines = [
        Line(name, np.add.reduceat(a[f"bins/{key}"], first) / wide, colour, dash)
        for name, key, colour, dash in (
            ("prompt tokens computed", "prompt_tokens", "compute", ""),
            ("output tokens", "output_tokens", "decode", "7 3"),
        )
    ]
    top = max(float(line.values.max()) for line in lines)
    axis = _svg.scaled_axis(max(top, 1.0), "tokens/s", "")
    picture = _svg.steps_chart(
        edges, lines, x=_svg.time_axis(float(edges[-1])), y=axis, label="Tokens a second, over time"
    )
    legend = _svg.legend([(line.name, line.key) for line in lines], lines=[line.dash for line in lines])
    numbers = _series(edges, lines, lambda v: f"{format_count(v, digits=3)}/s")
    return _html.figure(
        "Tokens a second",
        picture,
        legend=legend,
        numbers=numbers,
        caption=f"Each point covers {said}: the mean over it.",
    )


# ---- look-ups, channels, cost -------------------------------------------------------------------------------------


def hits(result: RunResult) -> str:
    """Return where look-ups were found, one bar a kind and way of counting."""
    looked, found = result.arrays["lookups"], result.arrays["hits"]
    bars, rows = [], []
    for k, kind in enumerate(KINDS):
        for r, w in ((1, 1), (0, 0)) if kind == "kv" else ((0, 0), (0, 2)):
            total = int(looked[k, w])
            if not total:
                continue
            by_tier = [int(h) for h in found[:, k, r, w]]
            shares = [
                (tier, h / total, tier_key(t)) for t, (tier, h) in enumerate(zip(result.tiers, by_tier, strict=True))
            ]
            shares.append(("nowhere", 1 - sum(by_tier) / total, "nowhere"))
            amount = format_bytes(total) if WEIGHTS[w] == "byte" else f"{format_count(total)} {WEIGHTS[w]}s"
            name = f"{kind}, {RULES[r]} rule, by {WEIGHTS[w]}"
            bars.append(Bar(name, tuple(shares), amount, share_text))
            rows.append([name, amount, *(share_text(s) for _, s, _ in shares)])
    if not bars:
        return ""
    entries = [(tier, tier_key(t)) for t, tier in enumerate(result.tiers)] + [("nowhere", "nowhere")]
    picture = _svg.bar_chart(bars, x=_share_axis("share of look-ups"), label="Where look-ups were found")
    numbers = _html.table(["look-ups", "amount", *result.tiers, "nowhere"], rows)
    caption = (
        "By the prefix rule a block counts only if all before it were found too: what a prompt could use. "
        "By the block rule each counts by itself."
    )
    return _html.figure(
        "Where look-ups were found", picture, legend=_svg.legend(entries), numbers=numbers, caption=caption
    )


def busy(result: RunResult) -> str:
    """Return how much of each memory's and link's bandwidth was used, each way; what moved nothing is left out."""
    wall_s = result.makespan_s
    ways = [way for way in _channels(result) if way[2]]
    if not wall_s or not ways:
        return ""
    bars, rows = [], []
    for name, key, moved, rate, busy_ps in ways:
        share = moved / (rate * wall_s) if rate else None
        amount = format_bytes(moved, digits=3)
        bars.append(Bar(name, (("used", share or 0.0, key),), f"{share_text(share)} · {amount}", share_text))
        rate_said = f"{format_bytes(rate, digits=3)}/s" if rate else "n/a"
        rows.append([name, amount, rate_said, share_text(share), seconds(busy_ps / PS)])
    most = max(value for bar in bars for _, value, _ in bar.parts)
    words = "share of what it could have moved in the makespan"
    if most <= 0.1:
        axis = linear_axis(max(most, 1e-6), f"{words} (%)", most=5, scale=0.01, unit="%")
    else:
        axis = _share_axis(words)
    title = "How much of each bandwidth was used"
    picture = _svg.bar_chart(bars, x=axis, thick=14, gap=8, label=title)
    numbers = _html.table(["channel", "moved", "bandwidth", "used", "busy with loads and write-backs"], rows)
    caption = (
        "Over all replicas, what steps read while computing included; bandwidth less what the medium loses. What "
        "moved nothing is left out."
    )
    return _html.figure(title, picture, numbers=numbers, caption=caption)


def _channels(result: RunResult) -> list[tuple[str, str, int, float, int]]:
    """Return name, colour, bytes moved, bytes a second (0 if not known) and busy ps of each channel, each way."""
    a, found = result.arrays, []
    rates = _bandwidths(result)
    for t, tier in enumerate(result.tiers):
        for way, said in enumerate(("read", "write")):
            moved = exact_sum(a[f"{said}_bytes"][t]) + exact_sum(a[f"writeback_{said}_bytes"][t])
            found.append((f"{tier}: {said}", tier_key(t), moved, rates.get(("tier", tier, way), 0.0),
                          int(a["tier_busy_ps"][t, way])))  # fmt: skip
    for i, info in enumerate(result.link_info):
        name = str(info["name"])
        ends = [str(end) for end in info["between"]]
        pools = all(end in result.pool_names for end in ends)
        for way, (said, key) in enumerate((("towards compute", "link_up_bytes"), ("away", "link_down_bytes"))):
            words = f"to {ends[way]}" if pools else said
            found.append((f"{name}: {words}", "link", int(a[key][i]), rates.get(("link", name, way), 0.0),
                          int(a["link_busy_ps"][i, way])))  # fmt: skip
    return found


def _bandwidths(result: RunResult) -> dict[tuple[str, str, int], float]:
    """Return bytes a second of each tier and link, read and write; nothing for inputs that are no whole machine."""
    try:
        machine = Machine.from_dict({**result.machine, "sources": {}})
    except (KvsimError, TypeError, ValueError, KeyError):
        return {}
    rates = {}
    for tier in machine.tiers:
        rates["tier", tier.name, 0] = tier.total_read_bytes_per_s
        rates["tier", tier.name, 1] = tier.total_write_bytes_per_s
    for link in machine.links:
        rates["link", link.name, 0] = link.read_bytes_per_s * link.count
        rates["link", link.name, 1] = link.write_bytes_per_s * link.count
    return rates


def memory_share(result: RunResult) -> str:
    """Return the machine's price cut by tier."""
    rows = result.memory_cost.rows()
    parts = [
        (r["tier"], float(r["share_of_capex"]), tier_key(t))
        for t, r in enumerate(rows)
        if r["share_of_capex"] is not None
    ]
    if not parts:
        return ""
    rest = 1 - sum(share for _, share, _ in parts)
    unknown = [r["tier"] for r in rows if r["share_of_capex"] is None]
    other = "everything else" + (f", {', '.join(unknown)} included" if unknown else "")
    shares = [*parts, (other, max(rest, 0.0), "other")]
    capex = result.machine.get("capex_usd")
    bar = Bar("price", tuple(shares), f"{capex:,.0f} USD" if capex else "", share_text)
    picture = _svg.bar_chart(
        [bar], x=_share_axis("share of the machine's price"), label="The machine's price, by memory"
    )
    return _html.figure(
        "What of the machine's price is memory", picture, legend=_svg.legend([(n, k) for n, _, k in shares])
    )


# ---- small helpers ------------------------------------------------------------------------------------------------


def _share_axis(title: str) -> Axis:
    ticks = tuple((i / 5, f"{i * 20} %") for i in range(6))
    return Axis(0.0, 1.0, ticks, title, scale=0.01, unit="%")


def _intervals(result: RunResult, most: int) -> tuple[Floats, Floats, str]:
    """Return the ends in seconds [points + 1] of at most `most` intervals, the first bin of each, and what they are."""
    bins, width = len(result.arrays["bins/running"]), int(result.counters["bin_ps"])
    each = math.ceil(bins / most)
    first = np.arange(0, bins, each)
    if len(first) > 1 and (result.makespan_ps - int(first[-1]) * width) * 2 < each * width:
        first = first[:-1]  # a short rest joins the interval before it: a rate over a moment says nothing
    edges = np.append(first * (width / PS), result.makespan_ps / PS)
    return edges, first, format_time(each * width / PS)


def _looked(result: RunResult) -> str:
    return format_time(int(result.counters["bin_ps"]) / PS)


def _series(edges: Floats, lines: Sequence[Line], shown: Any) -> str:
    """Return the values of lines at some of their points, as a table."""
    count = len(edges) - 1
    chosen = np.unique(np.linspace(0, count - 1, min(count, _ROWS)).round().astype(int)).tolist()
    rows = [[format_time(float(edges[i])), *(shown(float(line.values[i])) for line in lines)] for i in chosen]
    table = _html.table(["from", *(line.name for line in lines)], rows)
    some = f'<p class="soft">{len(chosen)} of {count} points.</p>' if len(chosen) < count else ""
    return some + table
