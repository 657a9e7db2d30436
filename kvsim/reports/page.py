"""A result as self-contained HTML, for notebooks, in the page's own colours (light or dark)."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kvsim._table import bars_html, table_html
from kvsim.reports import text
from kvsim.units import format_time

if TYPE_CHECKING:
    from kvsim.result import Result

__all__ = ["COLOURS", "result"]

# mid-tones: readable on a white and on a black page
COLOURS = {
    "compute": "#2e9e6b",
    "recompute": "#8bbf3d",
    "overhead": "#8f7bd1",
    "collectives": "#4f8fd9",
    "stalls": "#e0663f",
    "bubble": "#c9a227",
    "idle": "#8a8f98",
}


def result(found: Result) -> str:
    """Return the whole summary: a bar of the wall's parts, then the tables of the text report."""
    identity = found.identity
    name = escape(str(found.trace.get("name", "trace")))
    wrong = "" if identity.exact else " (the parts do NOT sum to it)"
    body = [
        f"<div><b>{name} · {escape(text.inputs_line(found))}</b><br>{_faint(text.size_line(found))}</div>",
        f"<div style='margin-top:8px'>wall time {escape(format_time(identity.wall_s))}{wrong}</div>",
        bars_html([(part, identity.share(part) or 0.0, COLOURS[part]) for part in identity.parts_ps]),
    ]
    for title, (header, rows), left in (
        ("stalls, by what compute waited for", text.stall_rows(found), (0, 1)),
        ("look-ups, by where they were found", text.hit_rows(found), (0, 1)),
        ("memory (demoted, promoted, refused: blocks)", text.memory_rows(found), (0,)),
    ):
        if rows:
            body.append(f"<div style='margin-top:10px;font-weight:600'>{title}</div>")
            body.append(table_html(header, rows, left=left))
    body += [f"<div>{_faint(line)}</div>" for line in text.notes(found)]
    return f'<div class="kvsim-result" style="color:inherit;font-size:13px">{"".join(body)}</div>'


def _faint(line: str) -> str:
    return f"<span style='opacity:.75'>{escape(line)}</span>"
