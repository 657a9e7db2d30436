"""A result as plain text, at most 100 columns wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvsim._table import share_text, text_table
from kvsim.units import format_bytes, format_count, format_time
from kvsim_core import CAUSES, KINDS, RULES, WEIGHTS

if TYPE_CHECKING:
    from kvsim.result import Result

__all__ = ["WIDTH", "hit_rows", "inputs_line", "memory_rows", "notes", "result", "size_line", "stall_rows"]

WIDTH = 100
Rows = tuple[list[str], list[list[str]]]


def result(found: Result) -> str:
    """Return the whole summary: the wall's parts, stalls, hits, memory, wear."""
    identity = found.identity
    lines = [str(found.trace.get("name", "trace")), inputs_line(found), size_line(found), ""]
    unit, scale = _time_unit(identity.wall_ps)
    wrong = "" if identity.exact else "  (the parts do NOT sum to it)"
    lines.append(f"wall time {format_time(identity.wall_s)}{wrong}")
    bars = []
    for part, ps in identity.parts_ps.items():
        share = identity.share(part)
        bar = "█" * max(round((share or 0) * 40), 1 if ps else 0)
        bars.append([part, f"{ps / scale:,.3f} {unit}", share_text(share), f" {bar}"])
    lines += text_table(bars[0], bars[1:], left=(0, 3)).split("\n")
    header, rows = stall_rows(found)
    if rows:
        lines += ["", "stalls, by what compute waited for", *text_table(header, rows, left=(0, 1)).split("\n")]
    header, rows = hit_rows(found)
    if rows:
        lines += ["", "look-ups, by where they were found", *text_table(header, rows, left=(0, 1)).split("\n")]
    header, rows = memory_rows(found)
    lines += ["", "memory (demoted, promoted, refused: blocks)", *text_table(header, rows).split("\n")]
    lines += ["  " + line for line in notes(found)]
    return "\n".join(_cut(line.rstrip()) for line in lines)


def inputs_line(found: Result) -> str:
    """Return one line that names model, machine and options."""
    dtype = None if found.model is None else found.model.get("weights_dtype")
    if found.model is not None and dtype == "native":
        dtype = found.model.get("native_dtype", dtype)
    model = "no model" if found.model is None else str(found.model.get("name", "model"))
    said = [f"{model} ({dtype})" if dtype else model, str(found.machine.get("name", "machine"))]
    policies = list(dict.fromkeys(found.options.get("policies") or ()))
    if policies:
        said.append(f"policy {'/'.join(map(str, policies))}")
    if found.options.get("lanes"):
        said.append(f"{found.options['lanes']} lanes")
    if found.options.get("usable"):
        said.append(f"usable by {found.options['usable']}")
    return " · ".join(said)


def size_line(found: Result) -> str:
    """Return one line that says how large the trace is and what computed the result."""
    said = [
        f"{count:,} {word}"
        for key, word in (("requests", "requests"), ("unique_blocks", "unique blocks"))
        if (count := found.trace.get(key)) is not None
    ]
    said.append(f"{found.counters['steps']:,} steps")
    return " · ".join([*said, f"kvsim {found.kvsim_version}", f"config {found.config_hash}"])


def hit_rows(found: Result) -> Rows:
    """Return header and rows: one row a kind and way of counting, one column a tier, then "nowhere"."""
    rows = []
    for k, kind in enumerate(KINDS):
        # KV is told by what a prompt could use and by block; the rest has no prefix
        for r, w in ((1, 1), (0, 0)) if kind == "kv" else ((0, 0), (0, 2)):
            total = int(found.arrays["lookups"][k, w])
            if not total:
                continue
            hits = [int(h) for h in found.arrays["hits"][:, k, r, w]]
            shares = [share_text(h / total) for h in (*hits, total - sum(hits))]
            amount = format_bytes(total) if WEIGHTS[w] == "byte" else f"{format_count(total)} {WEIGHTS[w]}s"
            rows.append([kind, f"{RULES[r]} rule, by {WEIGHTS[w]}", *shares, amount])
    return ["kind", "counted", *found.tiers, "nowhere", "look-ups"], rows


def stall_rows(found: Result) -> Rows:
    """Return header and rows: one row a tier and kind that stalled, one column a cause."""
    wall = found.identity.wall_ps
    unit, scale = _time_unit(found.identity.stalls_ps)
    header = ["tier", "kind", *(c.replace("_", "-") for c in CAUSES), f"all ({unit})", "of wall"]
    rows = []
    for t, tier in enumerate(found.tiers):
        for k, kind in enumerate(KINDS):
            causes = [int(v) for v in found.arrays["stall_ps"][t, k]]
            if any(causes):
                shown = [f"{v / scale:,.3f}" if v else "-" for v in (*causes, sum(causes))]
                rows.append([tier, kind, *shown, share_text(sum(causes) / wall if wall else None)])
    return header, rows


def memory_rows(found: Result) -> Rows:
    """Return header and rows: one row a tier, its use and the bytes and blocks that moved."""
    a = found.arrays
    header = ["tier", "capacity", "in use", "read", "written", "evicted", "demoted", "promoted", "refused"]
    rows = []
    for t, tier in enumerate(found.tiers):
        moved = [
            int(a["read_bytes"][t].sum() + a["writeback_read_bytes"][t].sum()),
            int(a["write_bytes"][t].sum() + a["writeback_write_bytes"][t].sum()),
            int(a["evicted_bytes"][t]),
        ]
        blocks = [format_count(int(a[key][t].sum()), digits=3) for key in ("demoted_out", "promoted_in", "refused")]
        capacity, used = int(a["capacity_bytes"][t]), int(a["used_bytes"][t])
        in_use = f"{format_bytes(used, digits=3)} ({used / capacity:.0%})" if capacity else "n/a"
        rows.append(
            [tier, format_bytes(capacity, digits=3), in_use, *(format_bytes(b, digits=3) for b in moved), *blocks]
        )
    return header, rows


def notes(found: Result) -> list[str]:
    """Return a line for each SSD's wear and for bytes in an odd place."""
    lines = []
    for row in found.wear.rows():
        said = f"{row['tier']} wear: {format_bytes(row['written_bytes'])} written"
        if row["drive_writes_per_day"]:
            said += f" = {row['drive_writes_per_day']:.3g} drive writes a day, "
            years = row["life_years"]
            rated = row["endurance_dwpd"]
            said += "life n/a (endurance unknown)" if years is None else f"{years:.3g} years (rated {rated:g} a day)"
        lines.append(said)
    if found.unreachable_bytes:
        lines.append(f"unreachable: {format_bytes(found.unreachable_bytes)} of resident KV whose prefix is gone")
    if found.unheld_read_bytes:
        held = format_bytes(found.unheld_read_bytes)
        lines.append(f"unheld: {held} of running requests' KV fit in no tier (read as if from the last)")
    return lines


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _time_unit(ps: int) -> tuple[str, float]:
    for unit, scale in (("s", 1e12), ("ms", 1e9), ("us", 1e6)):
        if ps >= scale:
            return unit, scale
    return "ns", 1e3
