"""What changed between two results, and why: the parts of the time that explain the change, the largest first."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from kvsim._memory_tables import PS
from kvsim._run_tables import exact_sum, state_columns
from kvsim._table import Table, plain, table_html, text_table
from kvsim.errors import KvsimError
from kvsim.result import Result, load
from kvsim.run_result import RunResult
from kvsim.units import format_bytes, format_count, format_time
from kvsim_core import CAUSES

__all__ = ["Diff", "Measure", "Reason", "diff"]

WIDTH = 100
LINES = 30
"""A section of the text shows this many lines, and says how many more there are."""
_MISSING = "(none)"


@dataclass(frozen=True)
class Measure:
    """One number of the outcome in both results.

    Attributes
    ----------
    name : what it is; unit : "s", "USD", "B", "%" (a share of one), "tokens/s" or "" (a count).
    old, new : None where it does not exist.
    """

    name: str
    unit: str
    old: float | None
    new: float | None

    @property
    def change(self) -> float | None:
        """New - old; None where either does not exist."""
        return None if self.old is None or self.new is None else self.new - self.old

    @property
    def relative(self) -> float | None:
        """The change over the old value; None where that is zero or does not exist."""
        return None if self.change is None or not self.old else self.change / abs(self.old)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return {"name": self.name, "unit": self.unit, "old": plain(self.old), "new": plain(self.new),
                "change": plain(self.change), "relative": plain(self.relative)}  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """A total that changed, and what each of its parts adds to the change.

    The total is total_ps / count seconds. Parts are exact: with O and N the old and new picoseconds of a part and o, n
    the old and new counts, a part adds (N x o - O x n) / (n x o), and these sum to the change of the total.

    Attributes
    ----------
    what : the total ("wall", "E2E mean").
    old_ps, new_ps : part to picoseconds; old_count, new_count : what they are a mean over (1 for a plain sum).
    """

    what: str
    old_ps: Mapping[str, int]
    new_ps: Mapping[str, int]
    old_count: int = 1
    new_count: int = 1

    @property
    def scale(self) -> int:
        """What :attr:`parts` and :attr:`change` are in: picoseconds x this."""
        return self.old_count * self.new_count

    @property
    def parts(self) -> dict[str, int]:
        """What each part adds to the change, in picoseconds x :attr:`scale`, the largest first."""
        names = dict.fromkeys((*self.old_ps, *self.new_ps))
        added = {
            p: self.new_ps.get(p, 0) * self.old_count - self.old_ps.get(p, 0) * self.new_count for p in names
        }  # fmt: skip
        return dict(sorted(added.items(), key=lambda item: -abs(item[1])))

    @property
    def change(self) -> int:
        """The change of the total, in picoseconds x :attr:`scale`: the sum of the parts, exactly."""
        return sum(self.new_ps.values()) * self.old_count - sum(self.old_ps.values()) * self.new_count

    @property
    def known(self) -> bool:
        """Whether both totals exist."""
        return self.scale > 0

    def sentence(self, *, most: int = 4) -> str:
        """Say it in words: "E2E mean rose by 3.2 s: +2.9 s queued, +0.4 s loading from ssd, -0.1 s prefill"."""
        if not self.known:
            return f"{self.what}: n/a (nothing completed in one of the two)"
        unit = self.scale * PS
        parts = {p: v for p, v in self.parts.items() if v}
        if not parts:
            return f"{self.what} did not change"
        verb = "rose" if self.change > 0 else "fell"
        head = f"{self.what} {verb} by {_time(abs(self.change) / unit)}" if self.change else f"{self.what} is as before"
        told = list(parts.items())[:most]
        said = [f"{_signed(v / unit)} {p.replace('_', ' ')}" for p, v in told]
        rest = sum(v for _, v in list(parts.items())[most:])
        if len(parts) > most:
            said.append(f"{_signed(rest / unit)} in {len(parts) - most} more")
        return f"{head}: {', '.join(said)}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready; seconds are rounded, picoseconds are exact."""
        unit = self.scale * PS
        return {
            "what": self.what, "old_count": self.old_count, "new_count": self.new_count,
            "old_ps": plain(self.old_ps), "new_ps": plain(self.new_ps),
            "change_s": self.change / unit if unit else None,
            "parts_s": {p: v / unit for p, v in self.parts.items()} if unit else {},
            "sentence": self.sentence(),
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Diff:
    """What differs between two results of one kind.

    Attributes
    ----------
    old_name, new_name : what each is of.
    inputs : dotted path to (old, new) of every input that differs; None where it is not there.
    measures : the numbers of the outcome, changed or not.
    reasons : why the time changed: of the wall, and for runs of the mean E2E of requests.
    """

    old_name: str
    new_name: str
    inputs: Mapping[str, tuple[Any, Any]]
    measures: tuple[Measure, ...]
    reasons: tuple[Reason, ...]

    @property
    def changed(self) -> tuple[Measure, ...]:
        """The numbers that changed."""
        return tuple(m for m in self.measures if m.old != m.new)

    @property
    def same(self) -> bool:
        """Whether nothing differs, neither an input nor a number."""
        moved = any(r.old_ps != r.new_ps or r.old_count != r.new_count for r in self.reasons)
        return not self.inputs and not self.changed and not moved

    @property
    def sentences(self) -> list[str]:
        """Why the time changed, a sentence each."""
        return [r.sentence() for r in self.reasons]

    @property
    def table(self) -> Table:
        """Columns name, unit, old, new, change, relative: every number of the outcome."""
        rows = [m.to_dict() for m in self.measures]
        return Table("diff", {k: [r[k] for r in rows] for k in ("name", "unit", "old", "new", "change", "relative")})

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "old": self.old_name,
            "new": self.new_name,
            "same": self.same,
            "inputs": {path: {"old": plain(old), "new": plain(new)} for path, (old, new) in self.inputs.items()},
            "measures": [m.to_dict() for m in self.measures],
            "reasons": [r.to_dict() for r in self.reasons],
        }

    def __repr__(self) -> str:
        title = f"{self.old_name} → {self.new_name}"
        if self.same:
            return _cut(f"{title}\nnothing changed")
        lines = [title]
        if self.inputs:
            lines += ["", "what was changed", *(f"  {line}" for line in self._input_lines())]
        else:
            lines += ["", "no input differs"]
        lines += ["", "why the time changed" if self.changed else "no number of the outcome changed"]
        for sentence in self.sentences if self.changed else ():
            lines += textwrap.wrap(sentence, WIDTH - 4, initial_indent="  ", subsequent_indent="    ")
        header, rows = self._rows()
        if rows:
            lines += ["", "what changed", *text_table(header, rows[:LINES]).split("\n")]
            lines += [f"  ... {len(rows) - LINES} more"] if len(rows) > LINES else []
        return _cut("\n".join(lines))

    def _repr_html_(self) -> str:
        title = f"<div><b>{escape(self.old_name)} → {escape(self.new_name)}</b></div>"
        body = "<div>nothing changed</div>"
        if not self.same:
            told = self.sentences if self.changed else ["no number of the outcome changed"]
            body = "".join(f"<div>{escape(line)}</div>" for line in told)
            changes = [[p, _value(o), _value(n)] for p, (o, n) in self.inputs.items()]
            body += table_html(["input", "old", "new"], changes) if changes else ""
            header, rows = self._rows()
            body += table_html(header, rows) if rows else ""
        return f'<div class="kvsim-diff" style="color:inherit;font-size:13px">{title}{body}</div>'

    def _input_lines(self) -> list[str]:
        lines = [f"{path}: {_value(old)} → {_value(new)}" for path, (old, new) in self.inputs.items()]
        return lines[:LINES] + ([f"... {len(lines) - LINES} more"] if len(lines) > LINES else [])

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for m in self.changed:
            relative = "n/a" if m.relative is None else f"{m.relative * 100:+.1f} %"
            change = "n/a" if m.change is None else _amount(m.change, m.unit, signed=True)
            rows.append([m.name, _amount(m.old, m.unit), _amount(m.new, m.unit), change, relative])
        return ["", "old", "new", "change", "relative"], rows


def diff(a: Result | RunResult | str | os.PathLike[str], b: Result | RunResult | str | os.PathLike[str], /) -> Diff:
    """Say what changed from one result to another, and why.

    Parameters
    ----------
    a, b : the old and the new result, both of a replay or both of a run, or files of them.

    Returns
    -------
    Diff
        It prints as a report.

    Raises
    ------
    KvsimError
        A file is no result, or the two are not of one kind.
    OSError
        A file cannot be read.

    Examples
    --------
    >>> kvsim.diff("before.npz", "after.npz")  # doctest: +SKIP
    """
    old, new = (load(x) if isinstance(x, str | os.PathLike) else x for x in (a, b))
    if isinstance(old, RunResult) and isinstance(new, RunResult):
        before, after, reasons = dict(_run_measures(old)), dict(_run_measures(new)), _run_reasons(old, new)
    elif isinstance(old, Result) and isinstance(new, Result):
        before, after, reasons = dict(_measures(old)), dict(_measures(new)), _reasons(old, new)
    else:
        found = f"{type(old).__name__} and {type(new).__name__}"
        raise KvsimError(f"diff: found {found}, expected two results of replays, or two of runs")
    measures = []
    for key in dict.fromkeys((*before, *after)):
        name, unit = key
        measures.append(Measure(name, unit, before.get(key), after.get(key)))
    return Diff(
        old_name=_name(old),
        new_name=_name(new),
        inputs=_changes(_inputs(old), _inputs(new)),
        measures=tuple(measures),
        reasons=tuple(reasons),
    )


# ---- inputs -------------------------------------------------------------------------------------------------------


def _name(found: Any) -> str:
    return f"{found.trace.get('name', 'trace')} on {found.machine.get('name', 'machine')}"


def _inputs(found: Any) -> dict[str, Any]:
    document = {key: plain(getattr(found, key)) for key in ("machine", "model", "options", "trace")}
    # sources say where a number comes from: they change no outcome
    document["machine"] = {k: v for k, v in document["machine"].items() if k != "sources"}
    if document["model"] is not None:
        document["model"] = {k: v for k, v in document["model"].items() if k != "sources"}
    if hasattr(found, "populations"):
        document["populations"] = {p["name"]: {k: v for k, v in p.items() if k != "name"} for p in plain(
            found.populations)}  # fmt: skip
    return dict(_flat(document, "")) | {"kvsim_version": found.kvsim_version}


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of every leaf; a list of plain values is one leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(x, Mapping | list) for x in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{i}")
    else:
        yield path, value


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    paths = dict.fromkeys((*old, *new))
    lost = object()
    return {
        p: (old.get(p, _MISSING), new.get(p, _MISSING)) for p in paths if old.get(p, lost) != new.get(p, lost)
    }  # fmt: skip


# ---- outcomes -----------------------------------------------------------------------------------------------------

Numbers = Iterator[tuple[tuple[str, str], float | None]]
_PER = {"usd_per_h": "an hour", "usd_per_m_output_tokens": "per M output tokens", "usd_per_task": "a task"}


def _measures(found: Result) -> Numbers:
    yield ("wall", "s"), found.wall_s
    yield from _memory_measures(found, found.arrays["stall_ps"])


def _run_measures(found: RunResult) -> Numbers:
    yield ("makespan", "s"), found.makespan_s
    rows = [row for row in found.latency if row["metric"] != "queued"]
    for row in rows[:3]:
        for key in ("mean", "p50", "p99"):
            yield (f"{row['metric'].upper()} {key}", "s"), row[f"{key}_s"]
    yield ("output tokens/s", "tokens/s"), found.output_tokens_per_s
    yield ("tokens/s", "tokens/s"), found.tokens_per_s
    for row in found.cost:
        for key in _PER:
            yield (f"{row['view']} {_PER[key]}", "USD"), row[key]
    yield ("requests done", ""), int(found.done.sum())
    yield ("rejected", ""), found.counters["rejected"]
    yield ("preemptions", ""), found.preemptions
    yield ("tokens recomputed", ""), int(found.arrays["recomputed_tokens"].sum())
    for row in found.goodput:
        yield (f"within goals: {row['population']}", "%"), row["share"]
    yield from _memory_measures(found, found.arrays["stall_ps"].sum(axis=0))
    # the populations last: they are many, and the whole says the same where there is one
    for row in rows[3:]:
        for key in ("mean", "p50", "p99"):
            yield (f"{row['metric'].upper()} of {row['population']} {key}", "s"), row[f"{key}_s"]


def _memory_measures(found: Any, stalls: np.ndarray[Any, Any]) -> Numbers:
    """Yield hit rates, stalls [T, K, C] by tier and cause, evictions."""
    for tier in (None, *found.tiers):
        yield (f"hit rate {tier or 'of all tiers'}", "%"), found.hit_rate(tier)
    for t, tier in enumerate(found.tiers):
        for c, cause in enumerate(CAUSES):
            yield (f"stalls on {tier}, {cause.replace('_', '-')}", "s"), int(stalls[t, :, c].sum()) / PS
    for t, tier in enumerate(found.tiers):
        yield (f"evicted from {tier}", "B"), int(found.arrays["evicted_bytes"][t])
        yield (f"evictions from {tier}", ""), int(found.arrays["evicted"][t].sum())


def _reasons(old: Result, new: Result) -> list[Reason]:
    return [Reason("wall", _wall(old), _wall(new))]


def _wall(found: Result) -> dict[str, int]:
    parts = dict(found.identity.parts_ps)
    del parts["stalls"]
    by_tier = found.arrays["stall_ps"].sum(axis=(1, 2)).tolist()
    return parts | {f"stalls on {tier}": ps for tier, ps in zip(found.tiers, by_tier, strict=True)}


def _run_reasons(old: RunResult, new: RunResult) -> list[Reason]:
    reasons = [Reason("makespan", _run_wall(old), _run_wall(new), old.units or 1, new.units or 1)]
    # of a single population, the whole says it all
    shared = old.population_names if old.population_names == new.population_names else ()
    for name in (None, *(shared if len(shared) > 1 else ())):
        (before, n), (after, m) = _states(old, name), _states(new, name)
        reasons.append(Reason("E2E mean" if name is None else f"E2E mean of {name}", before, after, n, m))
    return reasons


def _run_wall(found: RunResult) -> dict[str, int]:
    """Return the parts of all units' time, stalls told apart by tier; over the units, they sum to the makespan."""
    parts = dict(found.parts_ps)
    del parts["stalls"]
    stalls = found.arrays["stall_ps"]
    return parts | {f"stalls on {tier}": exact_sum(stalls[:, t].ravel()) for t, tier in enumerate(found.tiers)}


def _states(found: RunResult, population: str | None) -> tuple[dict[str, int], int]:
    """Return the states' picoseconds of a population's (None: all) completed requests, and how many there are."""
    of = found.done
    if population is not None:
        of = of & (found.arrays["population"] == found.population_names.index(population))
    sums = {
        state if tier is None else f"{state} from {tier}": exact_sum(ps[of]) for state, tier, ps in state_columns(found)
    }
    return sums, int(of.sum())


# ---- words --------------------------------------------------------------------------------------------------------


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**6:
        return f"{format_count(value)} ({value})"
    if isinstance(value, list):
        return "/".join(map(str, value)) or "[]"
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _time(seconds: float) -> str:
    return format_time(seconds, digits=3)


def _signed(seconds: float) -> str:
    return ("+" if seconds >= 0 else "-") + _time(abs(seconds))


def _amount(value: float | None, unit: str, *, signed: bool = False) -> str:
    if value is None:
        return "n/a"
    sign = "" if not signed else "+" if value >= 0 else "-"
    size = abs(value) if signed else value
    if unit == "s":
        return sign + _time(size)
    if unit == "B":
        return sign + format_bytes(size, digits=3)
    if unit == "%":
        return f"{sign}{size * 100:.1f} {'points' if signed else '%'}"
    if unit == "USD":
        return f"{sign}{size:.3g}" if size < 1000 else f"{sign}{size:,.0f}"
    return sign + (f"{size:,}" if isinstance(size, int) else f"{size:,.0f}" if size >= 1000 else f"{size:.3g}")


def _cut(text: str) -> str:
    return "\n".join(x if len(x) <= WIDTH else x[: WIDTH - 3] + "..." for x in text.split("\n"))
