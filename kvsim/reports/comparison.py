"""A comparison as text and as HTML: one table, a few words that explain it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from kvsim._table import table_html
from kvsim.reports.page import COLOURS
from kvsim.units import format_bytes, format_count

if TYPE_CHECKING:
    from kvsim.compare import Comparison, Row

__all__ = ["page", "text"]

_PARTS = (
    ("compute", ("compute",), COLOURS["compute"]),
    ("redo", ("recompute",), COLOURS["recompute"]),
    ("overhead", ("overhead", "collectives", "bubble"), COLOURS["overhead"]),
)
_WAITING = COLOURS["stalls"]
_LEGEND = (
    "Busy time (with work to do) is computing, computing again what was known but is no longer held (redo), overhead, "
    "and waiting for memories, the nearest first, by name; 'waits for' says what was fetched in those waits. "
    "Found: the part of all prompt tokens whose KV still lay in that memory; the rest, nowhere, was computed."
)


_CROWDED = 0.01
"""Share of KV reads without a place from which a row is marked."""


@dataclass(frozen=True)
class _Column:
    """One column: the group it stands in, its heading, what it says of a row, and the number behind that."""

    group: str
    head: str
    cell: Callable[[Row], str]
    share: Callable[[Row], float | None] | None = None


def text(found: Comparison, *, width: int | None = None, bold: Callable[[str], str] | None = None) -> str:
    """Return the table; where it is wider than `width`, as two: time first, then what was found.

    Parameters
    ----------
    found : Comparison
    width : columns of the terminal, None for as many as it takes.
    bold : marks headings, and in each row what takes the most of its time.
    """
    name, time, hits = _columns(found)
    lines = [_title(found)]
    whole = _lines(found, [name, *time, *hits], bold)
    if width is None or max(map(len, _lines(found, [name, *time, *hits], None))) <= width:
        lines += whole
    else:
        lines += [*_lines(found, [name, *time], bold), *_lines(found, [name, *hits], bold)]
    words = [
        line
        for said in (_LEGEND, _crowded(found), _doubts(found))
        for line in textwrap.wrap(said, min(width or 118, 118))
    ]
    return "\n".join([*lines, "", *words])


def page(found: Comparison) -> str:
    """Return the table as HTML, in the page's own colours, with a bar for each row."""
    name, time, hits = _columns(found)
    columns = [name, *time, *hits]
    body = [f"<div><b>{escape(_title(found))}</b></div>"]
    for workload, rows in _groups(found).items():
        heads = [c.head if c.head != "near" else f"{c.group}: near" for c in columns]
        cells = [[c.cell(row) for c in columns] for row in rows]
        table = table_html(heads, cells)
        for row in rows:
            # the bar is SVG, which the table would escape: it goes in after the machine's name
            label = f">{escape(_name(row))}</td>"
            more = f"<br>cannot run it: {escape(_reason(row))}" if row.error else _svg(row)
            table = table.replace(label, f">{escape(_name(row))}{more}</td>", 1)
        body.append(f"<div style='margin-top:10px;font-weight:600'>{escape(_heading(found, workload))}</div>{table}")
    swatches = "".join(
        f'<span style="margin-right:14px;white-space:nowrap"><svg width="10" height="10">'
        f'<rect width="10" height="10" rx="2" fill="{colour}"/></svg> {label}</span>'
        for label, colour in (*((label, colour) for label, _, colour in _PARTS), ("waiting for memory", _WAITING))
    )
    body.append(f"<div style='margin-top:8px'>{swatches}</div>")
    body += [
        f"<div style='opacity:.75'>{escape(line)}</div>" for line in (_LEGEND, _crowded(found), _doubts(found)) if line
    ]
    return f'<div class="kvsim-comparison" style="color:inherit;font-size:13px">{"".join(body)}</div>'


def _columns(found: Comparison) -> tuple[_Column, list[_Column], list[_Column]]:
    deep = max((len(r.tiers) for r in found.rows), default=0)
    name = _Column("", "machine", _name)
    time = [_Column("", "busy", lambda r: _time(r.busy_s))]
    for label, parts, _ in _PARTS:
        time.append(_shares("share of busy time, %", label, _of_parts(parts)))
    time.extend(_waits(t) for t in range(deep))
    for kind, label in (("kv", "KV"), ("weights", "weights")):
        time.append(_shares("waits for", label, _of_kind(kind)))
    hits = [_shares("prompt tokens found in, %", _tier_head(t), _of_tier("found", t)) for t in range(deep)]
    hits.append(_shares("prompt tokens found in, %", "nowhere", lambda r: r.nowhere))
    return name, time, hits


def _name(row: Row) -> str:
    return f"{row.machine} *" if (row.unheld or 0.0) > _CROWDED else row.machine


def _tier_head(tier: int) -> str:
    return "near" if tier == 0 else f"far {tier}"


def _of_parts(parts: tuple[str, ...]) -> Callable[[Row], float | None]:
    return lambda row: sum(row.share.get(p) or 0.0 for p in parts) if row.share else None


def _of_kind(kind: str) -> Callable[[Row], float | None]:
    return lambda row: row.stall_by_kind.get(kind)


def _of_tier(column: str, tier: int) -> Callable[[Row], float | None]:
    def share(row: Row) -> float | None:
        values: tuple[float | None, ...] = getattr(row, column)
        return values[tier] if tier < len(values) else None

    return share


def _shares(group: str, head: str, share: Callable[[Row], float | None]) -> _Column:
    return _Column(group, head, lambda row: _percent(share(row)), share)


def _waits(tier: int) -> _Column:
    share = _of_tier("stall_by_tier", tier)

    def cell(row: Row) -> str:
        return f"{row.tiers[tier]} {_percent(share(row)):>3}" if tier < len(row.tiers) else ""

    return _Column("share of busy time, %", f"wait {_tier_head(tier)}", cell, share)


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    if share == 0:
        return "-"
    return "<1" if share < 0.005 else f"{share * 100:.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    for scale, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def _groups(found: Comparison) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in found.rows:
        groups.setdefault(row.workload, []).append(row)
    return groups


def _title(found: Comparison) -> str:
    options = found.options
    return (
        f"{options['model']}, weights in {options['weights_dtype']} "
        f"({format_bytes(options['weight_bytes'], digits=3)}), "
        f"{format_bytes(options['kv_bytes_per_token'], digits=3)} of KV a token"
    )


def _heading(found: Comparison, workload: str) -> str:
    about = found.workloads[workload]
    seen = about["seen_before"]
    return (
        f"{workload}: {about['requests']:,} requests of {about['sessions']:,} sessions, "
        f"{format_count(about['input_tokens'], digits=3)} prompt tokens"
        + ("" if seen is None else f" ({seen:.0%} sent before)")
        + f", {format_count(about['output_tokens'], digits=3)} output tokens, {about['lanes']} at once"
    )


def _reason(row: Row) -> str:
    return row.error.removeprefix(f"{row.machine}: ")


def _svg(row: Row, width: int = 150) -> str:
    shares = [(label, _of_parts(parts)(row) or 0.0, colour) for label, parts, colour in _PARTS]
    x, out = 0.0, []
    for label, share, colour in (*shares, ("waiting for memory", row.share.get("stalls") or 0.0, _WAITING)):
        out.append(
            f'<rect x="{x:.1f}" width="{share * width:.1f}" height="8" fill="{colour}">'
            f"<title>{label} {share:.0%}</title></rect>"
        )
        x += share * width
    style = "display:block;margin-top:2px"
    return f'<svg role="img" width="{width}" height="8" style="{style}">{"".join(out)}</svg>'


def _lines(found: Comparison, columns: list[_Column], bold: Callable[[str], str] | None) -> list[str]:
    ran = [r for r in found.rows if not r.error]
    widths = [max(len(c.head), *(len(c.cell(r)) for r in ran), 0) if ran else len(c.head) for c in columns]
    widths[0] = max(widths[0], *(len(r.machine) for r in found.rows)) if found.rows else widths[0]
    strong = bold or str
    gaps = [
        "" if i == 0 else ("  " if c.group == columns[i - 1].group or i == 1 else " │ ") for i, c in enumerate(columns)
    ]

    def join(cells: list[str]) -> str:
        return "".join(gap + cell for gap, cell in zip(gaps, cells, strict=True)).rstrip()

    def fit(cells: list[str]) -> list[str]:
        return [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]

    groups = _group_line(columns, widths, gaps)
    heads = join(fit([c.head for c in columns]))
    lines: list[str] = ["", groups, heads]
    for workload, rows in _groups(found).items():
        lines += ["", strong(_heading(found, workload))]
        for row in rows:
            if row.error:
                lines.append(f"{row.machine.ljust(widths[0])}  cannot run it: {_reason(row)}")
                continue
            cells = fit([c.cell(row) for c in columns])
            shares = [(c.share(row) or 0.0) if c.share and c.group.startswith("share") else 0.0 for c in columns]
            if any(shares):
                most = shares.index(max(shares))
                cells[most] = strong(cells[most])
            lines.append(join(cells))
    return lines


def _group_line(columns: list[_Column], widths: list[int], gaps: list[str]) -> str:
    """Return the line of the groups' names, each over its columns."""
    line, i = "", 0
    while i < len(columns):
        end = i
        while end + 1 < len(columns) and columns[end + 1].group == columns[i].group:
            end += 1
        span = sum(widths[i : end + 1]) + sum(len(gap) for gap in gaps[i + 1 : end + 1])
        line += gaps[i] + columns[i].group.center(span)[: max(span, 0)]
        i = end + 1
    return line.rstrip()


def _crowded(found: Comparison) -> str:
    rows = [r for r in found.rows if (r.unheld or 0.0) > _CROWDED]
    if not rows:
        return ""
    said = ", ".join(f"{r.workload} on {r.machine} ({r.unheld:.0%})" for r in rows)
    return (
        "* Too many at once: no memory of the machine has room for the contexts of its running requests, so that share "
        f"of their KV is read as if the outermost held it, and the row is better than the machine: {said}."
    )


def _doubts(found: Comparison) -> str:
    said = {r.machine: f"{r.machine} {r.estimates} of {r.numbers}" for r in found.rows if r.estimates}
    if not said:
        return ""
    return f"Estimates among each machine's numbers: {', '.join(said.values())}: see kvsim show NAME."
