"""Traces as columns: requests with the blocks of their prompts, and steps with the accesses they make.

A block is its parent and its own id. Dense ids are given in order of first appearance, a request's prompt before
its output, so the blocks that a request adds are one run of ids and its whole prompt is the chain of ancestors of
its last block: a prefix shared with earlier requests is never listed again. Columns are read-only arrays.
"""

from __future__ import annotations

import dataclasses
import html
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvsim.errors import TraceError, TraceWarning, shown
from kvsim.units import format_bytes
from kvsim_core import ancestors_at, depths, expand_chains, find_cycle, intern_chains, renumber_chains

if TYPE_CHECKING:
    from kvsim.model import Model

__all__ = ["OUTERMOST", "PAUSES", "AccessStream", "AccessTrace", "BlockTable", "RequestTrace", "TraceMeta"]

PAUSES = ("none", "think", "tool")
"""What the wait before a request is: a person thinks, or a tool runs."""
OUTERMOST = -2
"""The home of a block that lives in the machine's outermost tier, whichever that is."""
TOKENS_MOST = 1 << 40
"""The most tokens that one prompt or answer may have."""
DATA_BYTES_MOST = 1 << 60
"""The most bytes of data."""
TIME_MOST_PS = 1 << 62
"""The latest time, 53 days: beyond it the core's clock ends."""

_Ints = NDArray[np.int64]
_Column = NDArray[Any]
_REQUEST_COLUMNS = {
    "arrival_ps": np.int64, "input_tokens": np.int64, "output_tokens": np.int64, "last_block": np.int32,
    "output_block": np.int32, "session": np.int32, "category": np.int16, "priority": np.int16,
    "delay_ps": np.int64, "pause": np.int8, "population": np.int8,
}  # fmt: skip
_REQUEST_BLOCK_COLUMNS = {
    "block_parent": np.int32, "block_position": np.int32, "block_length": np.int32, "block_id": np.int64,
    "block_namespace": np.int32,
}  # fmt: skip
_STEP_COLUMNS = {
    "arrival_ps": np.int64, "flops": np.float64, "fixed_ps": np.int64, "tokens": np.int64, "stream": np.int32,
    "category": np.int16, "repeat": np.int64, "request": np.int64,
}  # fmt: skip
_TABLE_COLUMNS = {
    "bytes": np.int64, "tokens": np.int32, "kind": np.int8, "operation": np.int8, "parent": np.int32,
    "position": np.int32, "home": np.int16, "recompute_flops": np.float64,
}  # fmt: skip
_OPS_KNOWN = 5
_EVERYONE = ("all",)


def _column(where: str, name: str, values: Any, dtype: Any, *, rows: int | None = None, width: int = 0) -> _Column:
    """Return `values` as a read-only column; TraceError if that would change a number or the shape is wrong."""
    try:
        given = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise TraceError(f"{where}: {name}: found {str(error)[:60]}, expected one column of numbers") from None
    kind = np.dtype(dtype).kind
    shape_ok = given.ndim == 2 and given.shape[1] == width if width else given.ndim == 1
    if not shape_ok:
        expected = f"(rows, {width})" if width else "(rows,)"
        raise TraceError(f"{where}: {name}: found shape {given.shape}, expected {expected}")
    if rows is not None and len(given) != rows:
        raise TraceError(f"{where}: {name}: found {len(given)} rows, expected {rows}")
    if given.size and given.dtype.kind not in ("iub" if kind in "iu" else "iubf"):
        expected = "whole numbers" if kind in "iu" else "numbers"
        raise TraceError(f"{where}: {name}: found {given.dtype}, expected {expected}")
    if given.size and kind in "iu" and not np.can_cast(given.dtype, dtype):
        limits = np.iinfo(dtype)
        low, high = int(given.min()), int(given.max())
        if low < limits.min or high > limits.max:
            found = low if low < limits.min else high
            raise TraceError(f"{where}: {name}: found {found}, expected {limits.min} to {limits.max}")
    if kind == "f" and not np.isfinite(given).all():
        row = int(np.flatnonzero(~np.isfinite(given).reshape(len(given), -1).all(axis=1))[0])
        raise TraceError(f"{where}: {name}: found {given[row]} in row {row}, expected finite numbers")
    column = np.ascontiguousarray(given, dtype=dtype).view()
    column.flags.writeable = False
    return column


def _within(where: str, name: str, column: _Column, low: int, high: int, *, what: str = "row") -> None:
    """Raise TraceError unless low <= every number <= high."""
    if column.size:
        flat = column.reshape(len(column), -1)
        wrong = ((flat < low) | (flat > high)).any(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise TraceError(f"{where}: {name}: found {column[row]} in {what} {row}, expected {low} to {high}")


def _cuts(where: str, name: str, values: Any, rows: int, total: int) -> _Column:
    """Return offsets that are sure to cut `total` numbers into `rows` runs."""
    offsets = _column(where, name, values, np.int64, rows=rows + 1)
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise TraceError(f"{where}: {name}: found {shown(offsets)}, expected numbers that rise from 0 to {total}")
    return offsets


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def _equal(a: Any, b: Any) -> bool:
    return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def _names(where: str, name: str, values: Any) -> tuple[str, ...]:
    names = tuple(values)
    if not all(isinstance(v, str) for v in names):
        raise TraceError(f"{where}: {name}: found {shown(names)}, expected names")
    return names


def _html_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th style="text-align:left;padding:1px 14px 1px 0;font-weight:normal">{html.escape(k)}</th>'
        f'<td style="text-align:right">{html.escape(v)}</td></tr>'
        for k, v in rows
    )
    return f'<div><b>{html.escape(title)}</b><table style="color:inherit;background:transparent">{body}</table></div>'


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RequestTrace:
    """Requests in order of arrival: what they read, write, share and wait for.

    Parameters
    ----------
    name, source : what the trace is called, and where it came from.
    block_tokens : tokens in a whole block.
    arrival_ps : i64[n], rising. The earliest moment the request may start; see `delay_ps`.
    input_tokens, output_tokens : i64[n].
    last_block : i32[n], the last prompt block, -1 for a prompt without ids. Tokens beyond it are private.
    output_block : i32[n], the end of the chain once the output's blocks are there, -1 where they are not known.
    session, session_names : i32[n] and what the numbers mean.
    category, category_names : i16[n] and what the numbers mean.
    priority : i16[n].
    after_offsets, after : i64[n + 1] and i32[m]; rows that must complete first.
    delay_ps : i64[n]; a request starts at max(arrival, last completion of `after` + delay).
    pause : i8[n], an index into :data:`PAUSES`: what the delay is.
    population, population_names : i8[n] and what the numbers mean: who asks, where people with one goal and agents
        with another share a machine; by default all are one.
    data_offsets, data : i64[n + 1] and i32[m]; the pieces of data (a RAG index's pages, tool results, database pages)
        that a request reads before its prompt, in that order, as rows of the table of all pieces. Default: none.
    data_bytes : i64[D], the size of every piece, read or not.
    data_label : names of the D pieces, else None.
    block_parent, block_position, block_length, block_id, block_namespace : columns of the B unique blocks: parent
        (-1 for a first block), blocks before it, tokens in it, original id, index into `namespaces`.
    namespaces : what original ids are local to (a file); ("",) where they are not.
    block_label : the original ids of the B blocks where these are text, else None.

    Raises
    ------
    TraceError
        Columns of the wrong type, shape or range; a dependency that does not exist, or a cycle of them.
    """

    name: str
    source: str = ""
    block_tokens: int
    arrival_ps: _Column
    input_tokens: _Column
    output_tokens: _Column
    last_block: _Column
    output_block: _Column
    session: _Column
    session_names: tuple[str, ...]
    category: _Column
    category_names: tuple[str, ...]
    priority: _Column
    after_offsets: _Column
    after: _Column
    delay_ps: _Column
    pause: _Column
    block_parent: _Column
    block_position: _Column
    block_length: _Column
    block_id: _Column
    block_namespace: _Column
    namespaces: tuple[str, ...] = ("",)
    block_label: tuple[str, ...] | None = None
    # these came later, so that files without them are still read; __post_init__ puts columns where None stands
    population: _Column = None  # type: ignore[assignment]
    population_names: tuple[str, ...] = _EVERYONE
    data_offsets: _Column = None  # type: ignore[assignment]
    data: _Column = None  # type: ignore[assignment]
    data_bytes: _Column = None  # type: ignore[assignment]
    data_label: tuple[str, ...] | None = None

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        where = f"trace {self.name}"
        if isinstance(self.block_tokens, bool) or not 1 <= int(self.block_tokens) < 1 << 31:
            raise TraceError(f"{where}: block_tokens: found {self.block_tokens}, expected 1 to {(1 << 31) - 1}")
        put = object.__setattr__
        put(self, "block_tokens", int(self.block_tokens))
        for name in ("session_names", "category_names", "namespaces", "population_names"):
            put(self, name, _names(where, name, getattr(self, name)))
        n = len(np.asarray(self.arrival_ps))
        for name, rows in (("population", n), ("data_offsets", n + 1), ("data", 0), ("data_bytes", 0)):
            if getattr(self, name) is None:
                put(self, name, np.zeros(rows, np.int8))
        blocks = len(np.asarray(self.block_parent))
        for name, dtype in _REQUEST_COLUMNS.items():
            put(self, name, _column(where, name, getattr(self, name), dtype, rows=n))
        for name, dtype in _REQUEST_BLOCK_COLUMNS.items():
            put(self, name, _column(where, name, getattr(self, name), dtype, rows=blocks))
        put(self, "after", _column(where, "after", self.after, np.int32))
        put(self, "after_offsets", _cuts(where, "after_offsets", self.after_offsets, n, len(self.after)))
        if self.block_label is not None:
            put(self, "block_label", _names(where, "block_label", self.block_label))
            if len(self.block_label) != blocks:
                raise TraceError(f"{where}: block_label: found {len(self.block_label)} labels, expected {blocks}")
        self._check_data(where)
        self._check_requests(where)
        self._check_blocks(where)
        self._check_after(where)

    def _check_requests(self, where: str) -> None:
        for name, high in (("arrival_ps", TIME_MOST_PS), ("delay_ps", TIME_MOST_PS),
                           ("input_tokens", TOKENS_MOST), ("output_tokens", TOKENS_MOST),
                           ("session", len(self.session_names) - 1), ("category", len(self.category_names) - 1),
                           ("pause", len(PAUSES) - 1), ("population", len(self.population_names) - 1)):  # fmt: skip
            _within(where, name, getattr(self, name), 0, high)
        falls = np.flatnonzero(np.diff(self.arrival_ps) < 0)
        if falls.size:
            row = int(falls[0]) + 1
            raise TraceError(
                f"{where}: arrival_ps: found {self.arrival_ps[row]} in row {row} after {self.arrival_ps[row - 1]}, "
                "expected rising times (RequestTrace.from_lists sorts)"
            )

    def _check_data(self, where: str) -> None:
        put = object.__setattr__
        put(self, "data_bytes", _column(where, "data_bytes", self.data_bytes, np.int64))
        _within(where, "data_bytes", self.data_bytes, 0, DATA_BYTES_MOST, what="piece")
        total = float(self.data_bytes.sum(dtype=np.float64))
        if total > DATA_BYTES_MOST:
            raise TraceError(f"{where}: data_bytes: found {total:.3g} in all, expected at most 2^60")
        put(self, "data", _column(where, "data", self.data, np.int32))
        if len(self.data) and not len(self.data_bytes):
            raise TraceError(f"{where}: data_bytes: found none, expected the sizes of what the requests read")
        _within(where, "data", self.data, 0, len(self.data_bytes) - 1, what="entry")
        rows = len(np.asarray(self.arrival_ps))
        put(self, "data_offsets", _cuts(where, "data_offsets", self.data_offsets, rows, len(self.data)))
        if self.data_label is not None:
            put(self, "data_label", _names(where, "data_label", self.data_label))
            if len(self.data_label) != len(self.data_bytes):
                expected = len(self.data_bytes)
                raise TraceError(f"{where}: data_label: found {len(self.data_label)} labels, expected {expected}")

    def _check_blocks(self, where: str) -> None:
        blocks = len(self.block_parent)
        _within(where, "block_length", self.block_length, 1, self.block_tokens, what="block")
        _within(where, "block_namespace", self.block_namespace, 0, len(self.namespaces) - 1, what="block")
        _within(where, "last_block", self.last_block, -1, blocks - 1)
        _within(where, "output_block", self.output_block, -1, blocks - 1)
        try:
            kept, _ = renumber_chains(self.last_block, self.output_block, self.block_parent, self.block_position)
        except ValueError as error:
            raise TraceError(f"{where}: {error}") from None
        if len(kept) != blocks or (kept != np.arange(blocks, dtype=np.int32)).any():
            found = int(np.flatnonzero(kept != np.arange(len(kept)))[0]) if len(kept) == blocks else len(kept)
            raise TraceError(
                f"{where}: block {found} is out of order or belongs to no request: expected blocks in order of first "
                "appearance"
            )
        tokens = self.block_tokens
        for name, ends, total in (
            ("last_block", self.last_block, self.input_tokens),
            ("output_block", self.output_block, self.input_tokens + self.output_tokens),
        ):
            has = ends >= 0
            found_blocks = np.zeros(self.n, np.int64)
            found_blocks[has] = self.block_position[ends[has]].astype(np.int64) + 1
            wrong = np.flatnonzero(found_blocks > -(-total // tokens))
            if wrong.size:
                row = int(wrong[0])
                raise TraceError(
                    f"{where}: {name}: found {found_blocks[row]} blocks in row {row}, expected at most "
                    f"{-(-int(total[row]) // tokens)} for {total[row]} tokens in blocks of {tokens}"
                )

    def _check_after(self, where: str) -> None:
        _within(where, "after", self.after, 0, self.n - 1, what="entry")
        waiting = np.repeat(np.arange(self.n), np.diff(self.after_offsets))
        if (self.after >= waiting).any():
            row = find_cycle(self.after_offsets, self.after)
            if row >= 0:
                raise TraceError(f"{where}: after: request {row} waits for itself, expected no cycle of dependencies")

    # what the columns say

    @property
    def n(self) -> int:
        """The number of requests."""
        return len(self.arrival_ps)

    def __len__(self) -> int:
        return self.n

    @property
    def unique_blocks(self) -> int:
        """The number of different blocks, output blocks included."""
        return len(self.block_parent)

    @cached_property
    def prompt_blocks(self) -> _Ints:
        """Blocks in each prompt, i64[n]."""
        out = np.zeros(self.n, np.int64)
        has = self.last_block >= 0
        out[has] = self.block_position[self.last_block[has]].astype(np.int64) + 1
        return out

    @property
    def references(self) -> int:
        """The sum of prompt lengths in blocks: the look-ups of a replay."""
        return int(self.prompt_blocks.sum())

    @cached_property
    def own_offsets(self) -> _Ints:
        """Where each request's own blocks begin, i64[n + 1]; the next request's beginning is their end."""
        offsets = np.zeros(self.n + 1, np.int64)
        np.maximum.accumulate(np.maximum(self.last_block, self.output_block).astype(np.int64) + 1, out=offsets[1:])
        np.maximum.accumulate(offsets, out=offsets)
        return offsets

    @cached_property
    def prefix_blocks(self) -> _Ints:
        """Blocks at the front of each prompt that existed before the request, i64[n]."""
        own = np.maximum(self.last_block.astype(np.int64) + 1 - self.own_offsets[:-1], 0)
        return cast(_Ints, self.prompt_blocks - own)

    @cached_property
    def prefix_last(self) -> _Ints:
        """The last of those blocks, i64[n], -1 where there is none."""
        start = self.own_offsets[:-1]
        shared = self.last_block.astype(np.int64)
        adds = shared >= start
        shared[adds] = self.block_parent[start[adds]]
        return shared

    @cached_property
    def prefix_of(self) -> _Ints:
        """The earlier request that added the last of those blocks, i64[n], -1 where there is none."""
        owner = np.searchsorted(self.own_offsets, self.prefix_last, side="right") - 1
        return np.where(self.prefix_last >= 0, owner, -1)

    @cached_property
    def prefix_tokens(self) -> _Ints:
        """Tokens in those blocks, i64[n]."""
        return self._tokens_to(self.prefix_last)

    def _tokens_to(self, blocks: _Ints) -> _Ints:
        has = blocks >= 0
        out = np.zeros(len(blocks), np.int64)
        at = blocks[has]
        out[has] = self.block_position[at].astype(np.int64) * self.block_tokens + self.block_length[at]
        return out

    @property
    def private_tokens(self) -> _Ints:
        """Prompt tokens behind the last block, i64[n]: no other request can share them."""
        return np.maximum(self.input_tokens - self._tokens_to(self.last_block.astype(np.int64)), 0)

    @property
    def open_loop(self) -> bool:
        """Whether no request waits for another."""
        return len(self.after) == 0

    def own_blocks(self, row: int) -> range:
        """Return the blocks that request `row` was the first to name."""
        row = self._row(row)
        return range(int(self.own_offsets[row]), int(self.own_offsets[row + 1]))

    def blocks(self, row: int, *, output: bool = False) -> NDArray[np.int32]:
        """Return the whole prompt of request `row` as blocks, from the first; with `output` the answer's too."""
        row = self._row(row)
        end = int(self.last_block[row])
        if output and self.output_block[row] >= 0:
            end = int(self.output_block[row])
        found = np.empty(int(self.block_position[end]) + 1 if end >= 0 else 0, np.int32)
        for k in range(len(found) - 1, -1, -1):
            found[k] = end
            end = int(self.block_parent[end])
        return found

    def block_lists(self) -> tuple[NDArray[np.int32], _Ints]:
        """Return every prompt's blocks, one after the other, and offsets i64[n + 1]: as large as the original file."""
        return expand_chains(self.last_block, self.block_parent, self.block_position)

    def after_of(self, row: int) -> NDArray[np.int32]:
        """Return the rows that request `row` waits for."""
        row = self._row(row)
        return cast("NDArray[np.int32]", self.after[self.after_offsets[row] : self.after_offsets[row + 1]])

    def data_of(self, row: int) -> NDArray[np.int32]:
        """Return the pieces of data that request `row` reads before its prompt."""
        row = self._row(row)
        return cast("NDArray[np.int32]", self.data[self.data_offsets[row] : self.data_offsets[row + 1]])

    def _row(self, row: int) -> int:
        if not -self.n <= row < self.n:
            raise IndexError(f"trace {self.name}: request {row}, expected 0 to {self.n - 1}")
        return row % self.n

    def statistics(self) -> dict[str, Any]:
        """Return what describes the trace: counts, lengths, times, and the hit rate of a cache without limit.

        Returns
        -------
        dict : plain numbers. `infinite_hit_block` is the share of prompt blocks that an earlier request had (or wrote),
            `infinite_hit_token` the share of all prompt tokens in them; lengths in tokens, percentiles linearly
            interpolated; a figure that does not exist is None. `data_` figures are there if the trace has data.
        """
        n, total = self.n, int(self.input_tokens.sum())
        out: dict[str, Any] = {
            "requests": n,
            "sessions": len(np.unique(self.session)),
            "block_tokens": self.block_tokens,
            "references": self.references,
            "unique_blocks": self.unique_blocks,
            "infinite_hit_block": _share(int(self.prefix_blocks.sum()), self.references),
            "infinite_hit_token": _share(int(self.prefix_tokens.sum()), total),
            "duration_s": (int(self.arrival_ps[-1]) - int(self.arrival_ps[0])) / 1e12 if n else None,
            "repeated_timestamps": int((np.diff(self.arrival_ps) == 0).sum()),
            "dependent_requests": int((np.diff(self.after_offsets) > 0).sum()),
        }
        for name, column in (("input", self.input_tokens), ("output", self.output_tokens)):
            out[f"{name}_tokens_sum"] = int(column.sum())
            out[f"{name}_tokens_mean"] = float(column.mean()) if n else None
            for p in (50, 90, 99):
                out[f"{name}_tokens_p{p}"] = float(np.percentile(column, p)) if n else None
            out[f"{name}_tokens_max"] = int(column.max()) if n else None
        for code, name in enumerate(PAUSES[1:], start=1):
            waits = self.delay_ps[self.pause == code] / 1e12
            out[f"{name}_s_p50"] = float(np.percentile(waits, 50)) if waits.size else None
            out[f"{name}_s_p90"] = float(np.percentile(waits, 90)) if waits.size else None
        if len(self.data_bytes):
            out["data_pieces"] = len(self.data_bytes)
            out["data_bytes"] = int(self.data_bytes.sum())
            out["data_reads"] = len(self.data)
            out["data_read_bytes"] = int(self.data_bytes[self.data].sum())
            out["data_requests"] = int((np.diff(self.data_offsets) > 0).sum())
        return out

    # other traces made from this one

    def first(self, count: int) -> RequestTrace:
        """Return the first `count` requests; one that waited for a later request waits for it no more.

        The table of data stays whole: an index is as large however much of it is read.
        """
        return self._rows(np.arange(min(_count("first", count), self.n)))

    def last(self, count: int) -> RequestTrace:
        """Return the last `count` requests, the first of them at time 0.

        What a request waited for is dropped where it is not among them; with nothing left to wait for it starts
        at its arrival.
        """
        kept = self._rows(np.arange(max(self.n - _count("last", count), 0), self.n))
        return dataclasses.replace(kept, arrival_ps=kept.arrival_ps - kept.arrival_ps[0]) if kept.n else kept

    def scaled(self, rate: float) -> RequestTrace:
        """Return the same requests `rate` times as often: arrivals divided by `rate`.

        Only the arrivals of requests that wait for no other are divided. One that does keeps its distance from
        the request that it (in the end) follows: a faster stream of sessions is not a faster thinker.
        """
        if not (isinstance(rate, int | float) and 0 < rate < float("inf")):
            raise TraceError(f"trace {self.name}: rate: found {shown(rate)}, expected a number above 0")
        root = np.arange(self.n)
        waits = np.diff(self.after_offsets) > 0
        root[waits] = self.after[self.after_offsets[:-1][waits]]
        while (root[root] != root).any():
            root = root[root]
        begin = self.arrival_ps[root].astype(np.float64)
        scaled = np.rint(begin / rate)
        if self.n and scaled.max() + float((self.arrival_ps - self.arrival_ps[root]).max()) >= TIME_MOST_PS:
            raise TraceError(f"trace {self.name}: rate: found {rate}, expected arrivals within 53 days")
        arrival = np.maximum(scaled.astype(np.int64) + self.arrival_ps - self.arrival_ps[root], 0)
        order = np.argsort(arrival, kind="stable")
        return self._rows(order, arrival_ps=arrival)

    def _rows(self, rows: _Ints, **changed: _Column) -> RequestTrace:
        """Return the trace of some of the rows, in the order given, with some columns changed before."""
        place = np.full(self.n, -1, np.int64)
        place[rows] = np.arange(len(rows))
        kept, new = renumber_chains(self.last_block[rows], self.output_block[rows], self.block_parent,
                                    self.block_position)  # fmt: skip
        columns: dict[str, Any] = {name: changed.get(name, getattr(self, name))[rows] for name in _REQUEST_COLUMNS}
        renumbered = np.append(new, -1)  # so that -1 stays -1
        columns["last_block"] = renumbered[columns["last_block"]]
        columns["output_block"] = renumbered[columns["output_block"]]
        for name in _REQUEST_BLOCK_COLUMNS:
            columns[name] = getattr(self, name)[kept]
        columns["block_parent"] = renumbered[columns["block_parent"]]
        if self.block_label is not None:
            columns["block_label"] = tuple(self.block_label[b] for b in kept.tolist())
        offsets, after = _lists_of(self.after_offsets, self.after, rows, place)
        columns["data_offsets"], columns["data"] = _lists_of(self.data_offsets, self.data, rows)
        free = (np.diff(offsets) == 0) & (np.diff(self.after_offsets)[rows] > 0)
        for name in ("delay_ps", "pause"):
            columns[name] = np.where(free, 0, columns[name]).astype(columns[name].dtype)
        return dataclasses.replace(self, after_offsets=offsets, after=after, **columns)

    def split(self, block_tokens: int) -> RequestTrace:
        """Return the same requests in smaller blocks, for an engine that keeps blocks of that size.

        Raises
        ------
        TraceError
            `block_tokens` does not divide the trace's, or a block that is not full has blocks behind it.
        """
        where = f"trace {self.name}"
        if not self.unique_blocks and block_tokens >= 1:
            return dataclasses.replace(self, block_tokens=block_tokens)
        ratio, rest = divmod(self.block_tokens, block_tokens) if block_tokens >= 1 else (0, 1)
        if rest or not ratio:
            raise TraceError(
                f"{where}: block_tokens: found {shown(block_tokens)}, expected a divisor of the trace's "
                f"{self.block_tokens}"
            )
        if ratio == 1:
            return self
        count = -(-self.block_length.astype(np.int64) // block_tokens)
        behind = self.block_parent[self.block_parent >= 0]
        if (count[behind] != ratio).any():
            block = int(behind[np.flatnonzero(count[behind] != ratio)[0]])
            raise TraceError(
                f"{where}: block {block} has {self.block_length[block]} tokens and blocks behind it, expected "
                f"{self.block_tokens}"
            )
        end = np.cumsum(count)
        if len(end) and end[-1] >= (1 << 31) - 1:
            raise TraceError(
                f"{where}: block_tokens: found {end[-1]} blocks of {block_tokens}, expected fewer than 2^31"
            )
        begin = end - count
        part = np.arange(int(count.sum())) - np.repeat(begin, count)
        parent = np.arange(-1, len(part) - 1, dtype=np.int64)
        last_part = np.append(end - 1, -1)
        parent[begin] = last_part[self.block_parent]
        left = np.repeat(self.block_length.astype(np.int64), count) - part * block_tokens
        return dataclasses.replace(
            self,
            block_tokens=block_tokens,
            last_block=last_part[self.last_block],
            output_block=last_part[self.output_block],
            block_parent=parent,
            block_position=np.repeat(self.block_position.astype(np.int64), count) * ratio + part,
            block_length=np.minimum(left, block_tokens),
            block_id=np.repeat(self.block_id, count),
            block_namespace=np.repeat(self.block_namespace, count),
            block_label=None if self.block_label is None else tuple(np.repeat(self.block_label, count).tolist()),
        )

    @classmethod
    def merge(cls, *traces: RequestTrace, names: Sequence[str] | None = None, name: str = "") -> RequestTrace:
        """Return several traces as one, in order of arrival; no block, session or datum of one is another's.

        Parameters
        ----------
        traces : one or more, with equal `block_tokens`; of equal arrivals those of the earlier trace come first.
        names : one for each trace, which then is one population of that name; traces of one name are one population.
            By default each population of each trace is one, and bears the trace's name where that is just "all".
        name : of the whole; by default all their names, joined by "+".

        Raises
        ------
        TraceError
            No traces, different `block_tokens`, or more blocks or populations than there are numbers for.
        """
        if not traces:
            raise TraceError("merge: found no traces, expected one or more")
        if len({t.block_tokens for t in traces}) > 1:
            found = ", ".join(f"{t.name} {t.block_tokens}" for t in traces)
            raise TraceError(
                f"merge: block_tokens: found {found}, expected equal ones (RequestTrace.split makes them so)"
            )
        if names is not None and (isinstance(names, str) or len(names) != len(traces)):
            raise TraceError(f"merge: names: found {shown(names)}, expected {len(traces)} names")
        labels = [t.name for t in traces] if names is None else list(_names("merge", "names", names))
        columns = {
            c: np.concatenate([getattr(t, c) for t in traces])
            for c in (*_REQUEST_COLUMNS, *_REQUEST_BLOCK_COLUMNS, "after", "data", "data_bytes")
        }
        rows = np.array([t.n for t in traces])
        blocks = np.array([t.unique_blocks for t in traces])
        pieces = np.array([len(t.data_bytes) for t in traces])
        for what, count in (("blocks", blocks.sum()), ("pieces of data", pieces.sum())):
            if count >= (1 << 31) - 1:
                raise TraceError(f"merge: found {count} {what}, expected fewer than 2^31")

        def shift(column: str, counts: _Ints, sizes: Sequence[int] | _Ints) -> None:
            by = np.repeat(np.cumsum(sizes) - sizes, counts)
            columns[column] = np.where(columns[column] >= 0, columns[column] + by, -1)

        shift("last_block", rows, blocks)
        shift("output_block", rows, blocks)
        shift("block_parent", blocks, blocks)
        shift("session", rows, np.array([len(t.session_names) for t in traces]))
        shift("category", rows, np.array([len(t.category_names) for t in traces]))
        shift("block_namespace", blocks, np.array([len(t.namespaces) for t in traces]))
        shift("after", np.array([len(t.after) for t in traces]), rows)
        shift("data", np.array([len(t.data) for t in traces]), pieces)
        if names is None:
            shift("population", rows, np.array([len(t.population_names) for t in traces]))
            own = [(label,) if t.population_names == _EVERYONE else t.population_names
                   for label, t in zip(labels, traces, strict=True)]  # fmt: skip
            populations = _apart(labels, own)
        else:
            populations = tuple(dict.fromkeys(labels))
            columns["population"] = np.repeat([populations.index(label) for label in labels], rows)
        order = np.argsort(columns["arrival_ps"], kind="stable")
        offsets, data_offsets = (
            np.concatenate([[0], np.cumsum(np.concatenate([np.diff(getattr(t, c)) for t in traces]))])
            for c in ("after_offsets", "data_offsets")
        )
        data_bytes = columns.pop("data_bytes")
        new_data_offsets, data = _lists_of(data_offsets, columns.pop("data"), order)
        merged = {c: columns.pop(c) for c in _REQUEST_COLUMNS}
        shuffled = _shuffled(merged, columns, _labels(traces, "block_label", "block_id"), offsets, order)
        return cls(
            name=name or "+".join(labels),
            source="; ".join(t.source for t in traces),
            block_tokens=traces[0].block_tokens,
            session_names=_apart(labels, [t.session_names for t in traces]),
            category_names=_apart(labels, [t.category_names for t in traces]),
            namespaces=_apart(labels, [t.namespaces for t in traces]),
            population_names=populations,
            data_offsets=new_data_offsets,
            data=data,
            data_bytes=data_bytes,
            data_label=_labels(traces, "data_label", "data_bytes"),
            **shuffled,
        )

    @classmethod
    def from_lists(
        cls,
        *,
        block_tokens: int,
        input_tokens: ArrayLike,
        output_tokens: ArrayLike,
        name: str = "requests",
        source: str = "",
        arrival_s: ArrayLike | None = None,
        arrival_ps: ArrayLike | None = None,
        block_ids: Any = None,
        output_ids: Any = None,
        namespace: ArrayLike | None = None,
        namespaces: Sequence[str] = ("",),
        session: ArrayLike | None = None,
        session_names: Sequence[str] | None = None,
        category: ArrayLike | None = None,
        category_names: Sequence[str] = ("",),
        priority: ArrayLike | None = None,
        after: Any = None,
        delay_s: ArrayLike | None = None,
        delay_ps: ArrayLike | None = None,
        pause: ArrayLike | None = None,
        population: ArrayLike | None = None,
        population_names: Sequence[str] = _EVERYONE,
        data: Any = None,
        data_bytes: Mapping[Any, int] | ArrayLike | None = None,
        notice: bool = True,
    ) -> RequestTrace:
        """Make a trace from what people have: times, lengths and lists of ids.

        Parameters
        ----------
        arrival_s, arrival_ps : when each request comes, in seconds or in picoseconds; rows are sorted by it, stably.
        block_ids : one list of ids (integers or text) a request, or the pair (flat ids, offsets i64[n + 1]); None for
            none. An id names the block *at its place*: two requests share a block where all before it is equal too.
        output_ids : the same for the blocks that the output adds; an empty list where it adds none.
        namespace, namespaces : i32[n], what the ids of a row are local to.
        session, category, priority, pause, population : as in :class:`RequestTrace`; by default each request is its
            own session.
        after : one list of rows a request, or the pair (flat rows, offsets); rows as given here, before sorting.
        delay_s, delay_ps : the wait after the last of `after`.
        data : one list a request of the pieces of data that it reads before its prompt, or the pair (flat, offsets).
        data_bytes : sizes by piece; a mapping also names the pieces, by what `data` then lists; of an array, `data`
            lists rows.
        notice : whether to warn (TraceWarning) where rows had to be sorted.

        Raises
        ------
        TraceError
        """
        where = f"trace {name}"
        if (arrival_s is None) == (arrival_ps is None):
            raise TraceError(
                f"{where}: found {'no' if arrival_s is None else 'two'} arrivals, expected one of arrival_s, arrival_ps"
            )
        arrival = _times(where, "arrival", arrival_s, arrival_ps, 0)
        n = len(arrival)
        inputs = _column(where, "input_tokens", input_tokens, np.int64, rows=n)
        outputs = _column(where, "output_tokens", output_tokens, np.int64, rows=n)
        _within(where, "input_tokens", inputs, 0, TOKENS_MOST)
        _within(where, "output_tokens", outputs, 0, TOKENS_MOST)
        columns: dict[str, Any] = {
            "arrival_ps": arrival,
            "input_tokens": inputs,
            "output_tokens": outputs,
            "session": np.arange(n) if session is None else session,
            "delay_ps": _times(where, "delay", delay_s, delay_ps, n),
        }
        for key, value in (("category", category), ("priority", priority), ("pause", pause),
                           ("population", population)):  # fmt: skip
            columns[key] = np.zeros(n, np.int64) if value is None else value
        spaces = (
            np.zeros(n, np.int32) if namespace is None else _column(where, "namespace", namespace, np.int32, rows=n)
        )
        _within(where, "namespace", spaces, 0, len(namespaces) - 1)
        table, labels = _blocks_from_lists(where, block_tokens, inputs, outputs, block_ids, output_ids, spaces)
        columns["last_block"], columns["output_block"] = table.pop("last_block"), table.pop("output_block")
        flat, offsets, _ = _flat(where, "after", after, n)
        _within(where, "after", flat, 0, n - 1, what="entry")
        pieces, data_offsets, sizes, data_label = _data_from_lists(where, data, data_bytes, n)
        order = np.argsort(arrival, kind="stable")
        data_offsets, pieces = _lists_of(data_offsets, pieces, order)
        if notice and (np.diff(order) != 1).any():
            warnings.warn(
                f"{where}: arrivals were not sorted: found row {int(np.flatnonzero(np.diff(arrival) < 0)[0]) + 1} "
                "earlier than the row before it; sorted, ties in their order",
                TraceWarning,
                stacklevel=2,
            )
        for key, dtype in _REQUEST_COLUMNS.items():
            columns[key] = _column(where, key, columns[key], dtype, rows=n)
        table["after"] = flat
        if session_names is None:
            session_names = tuple(map(str, range(int(columns["session"].max(initial=-1)) + 1)))
        return cls(
            name=name,
            source=source,
            block_tokens=block_tokens,
            session_names=tuple(session_names),
            category_names=tuple(category_names),
            namespaces=tuple(namespaces),
            population_names=tuple(population_names),
            data_offsets=data_offsets,
            data=pieces,
            data_bytes=sizes,
            data_label=data_label,
            **_shuffled(columns, table, labels, offsets, order),
        )

    @classmethod
    def from_chains(
        cls,
        *,
        last_block: ArrayLike,
        block_parent: ArrayLike,
        block_length: ArrayLike,
        block_id: ArrayLike,
        block_namespace: ArrayLike,
        **fields: Any,
    ) -> RequestTrace:
        """Make a trace from prompts that are chains already, in any order of rows and blocks.

        Parameters
        ----------
        last_block : i64[n], -1 for none.
        block_parent, block_length, block_id, block_namespace : columns of all blocks, a parent before its
            children; blocks that no prompt holds are dropped.
        fields : as in :meth:`from_lists`, without ids. Rows are sorted by arrival, without a notice.

        Raises
        ------
        TraceError
        """
        where = f"trace {fields.get('name')}"
        bare = cls.from_lists(**{**fields, "notice": False})
        arrival = _times(where, "arrival", fields.get("arrival_s"), fields.get("arrival_ps"), 0)
        order = np.argsort(arrival, kind="stable")
        parent = _column(where, "block_parent", block_parent, np.int32)
        table: dict[str, Any] = {
            "block_parent": parent,
            "block_position": depths(parent),
            "block_length": _column(where, "block_length", block_length, np.int32, rows=len(parent)),
            "block_id": _column(where, "block_id", block_id, np.int64, rows=len(parent)),
            "block_namespace": _column(where, "block_namespace", block_namespace, np.int32, rows=len(parent)),
            "after": np.zeros(0, np.int64),
        }
        requests = {
            "last_block": _column(where, "last_block", last_block, np.int32, rows=len(arrival)),
            "output_block": np.full(len(arrival), -1, np.int32),
        }
        _within(where, "last_block", requests["last_block"], -1, len(parent) - 1)
        shuffled = _shuffled(requests, table, None, np.zeros(len(arrival) + 1, np.int64), order)
        del shuffled["after"], shuffled["after_offsets"]
        return dataclasses.replace(bare, **shuffled)

    def accesses(self, model: Model | str, *, lanes: int = 32, **options: Any) -> AccessStream:
        """Expand the requests to steps and accesses, open loop, chunk by chunk; see :func:`kvsim.accesses.expand`.

        Parameters
        ----------
        model : the model, or what :meth:`kvsim.model.Model.load` takes.
        lanes : requests that run at once.
        """
        from kvsim.accesses import expand
        from kvsim.model import Model

        return expand(self, Model.load(model), lanes=lanes, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a .npz or .parquet file, whole or not at all; `kvsim.read_trace` reads it back equal."""
        from kvsim._trace_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RequestTrace:
        """Read what :meth:`save` wrote; TraceError for anything else."""
        from kvsim._trace_file import load

        trace = load(path)
        if not isinstance(trace, cls):
            raise TraceError(f"{path}: found an AccessTrace, expected a RequestTrace")
        return trace

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestTrace) and _equal(self, other)

    def _lines(self) -> list[tuple[str, str]]:
        s = self.statistics()
        lines = [
            ("requests", f"{s['requests']:,}" + ("" if self.open_loop else f" in {s['sessions']:,} sessions")),
            ("blocks", f"{s['unique_blocks']:,} unique of {self.block_tokens} tokens, {s['references']:,} references"),
        ]
        if self.n:
            lines.append(("span", f"{s['duration_s']:,.1f} s"))
            for key in ("input", "output"):
                mean, p50, p99, most = (s[f"{key}_tokens_{what}"] for what in ("mean", "p50", "p99", "max"))
                text = f"mean {mean:,.1f}, p50 {p50:,.0f}, p99 {p99:,.0f}, max {most:,}"
                lines += [(f"{key} tokens", text)]
        if len(self.data_bytes):
            text = f"{s['data_reads']:,} reads of {s['data_pieces']:,} pieces, {format_bytes(s['data_bytes'])} in all"
            lines.append(("data", text))
        if len(self.population_names) > 1:
            lines.append(("populations", ", ".join(self.population_names)))
        if self.references:
            lines.append(
                (
                    "unlimited cache",
                    f"hits {s['infinite_hit_block']:.4f} of blocks, {s['infinite_hit_token']:.4f} of tokens",
                )
            )
        return lines

    def __repr__(self) -> str:
        body = "\n".join(f"  {k:<16}{v}" for k, v in self._lines())
        return f"RequestTrace {self.name}\n{body}"

    def _repr_html_(self) -> str:
        return _html_table(f"RequestTrace {self.name}", self._lines())


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _count(what: str, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
        raise TraceError(f"{what}: found {shown(count)}, expected a number of requests, 0 or more")
    return int(count)


def _apart(labels: Sequence[str], names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Join names, with its trace's label in front of each that another trace has too."""
    seen = Counter(name for own in names for name in set(own))
    different = sum(len(set(own)) for own in names)
    for prefixes in (labels, [f"{label}.{k}" for k, label in enumerate(labels)]):
        joined = [
            name if seen[name] == 1 else prefix if name in ("", label) else f"{prefix}/{name}"
            for prefix, label, own in zip(prefixes, labels, names, strict=True)
            for name in own
        ]
        if len(set(joined)) == different:
            break
    return tuple(joined)


def _labels(traces: Sequence[RequestTrace], field: str, numbers: str) -> tuple[str, ...] | None:
    """Join labels, the numbers themselves for a trace without; None if no trace has any."""
    if all(getattr(t, field) is None for t in traces):
        return None
    joined: list[str] = []
    for t in traces:
        own = getattr(t, field)
        count = len(getattr(t, numbers))
        spare = getattr(t, numbers).tolist() if numbers == "block_id" else range(count)
        joined.extend(own if own is not None else map(str, spare))
    return tuple(joined)


def _lists_of(offsets: _Ints, values: _Column, rows: _Ints, place: _Ints | None = None) -> tuple[_Ints, _Column]:
    """Return the lists of `rows`, their values renamed by `place` (-1 drops one)."""
    counts = np.diff(offsets)[rows]
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    found: _Column = values[np.repeat(offsets[:-1][rows], counts) + within]
    if place is None:
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), found
    found = place[found] if total else np.zeros(0, np.int64)
    owner = np.repeat(np.arange(len(rows)), counts)[found >= 0]
    cuts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(rows)))]).astype(np.int64)
    return cuts, found[found >= 0]


def _shuffled(
    requests: dict[str, Any], table: dict[str, Any], labels: tuple[str, ...] | None, offsets: _Ints, order: _Ints
) -> dict[str, Any]:
    """Put requests in `order`, and their blocks in order of first appearance."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    out: dict[str, Any] = {key: column[order] for key, column in requests.items()}
    kept, new = renumber_chains(out["last_block"], out["output_block"], table["block_parent"], table["block_position"])
    renumbered = np.append(new, -1)
    for key in ("last_block", "output_block"):
        out[key] = renumbered[out[key]]
    for key in _REQUEST_BLOCK_COLUMNS:
        out[key] = table[key][kept]
    out["block_parent"] = renumbered[out["block_parent"]]
    out["block_label"] = None if labels is None else tuple(labels[b] for b in kept.tolist())
    out["after_offsets"], out["after"] = _lists_of(offsets, table["after"], order, place)
    return out


def _times(where: str, name: str, seconds: Any, picoseconds: Any, rows: int) -> _Ints:
    """Return times in picoseconds from whichever form was given; zeros where neither was."""
    if picoseconds is not None:
        column = _column(where, f"{name}_ps", picoseconds, np.int64)
    elif seconds is not None:
        given = _column(where, f"{name}_s", seconds, np.float64)
        _within(where, f"{name}_s", given, 0, TIME_MOST_PS // 10**12)
        # whole seconds and their rest apart: 3,537 s in picoseconds needs more than the 53 bits of a float
        whole = np.floor(given)
        column = whole.astype(np.int64) * 10**12 + np.rint((given - whole) * 1e12).astype(np.int64)
    else:
        return np.zeros(rows, np.int64)
    _within(where, f"{name}_ps", column, 0, TIME_MOST_PS)
    return column


def _flat(where: str, name: str, lists: Any, n: int) -> tuple[_Column, _Ints, tuple[str, ...] | None]:
    """Return lists of numbers (or text) as flat i64, offsets, and the distinct texts that the numbers stand for."""
    if lists is None:
        return np.zeros(0, np.int64), np.zeros(n + 1, np.int64), None
    if isinstance(lists, tuple) and len(lists) == 2 and isinstance(lists[0], np.ndarray):
        values = _column(where, name, lists[0], np.int64)
        return values, _cuts(where, f"{name} offsets", lists[1], n, len(values)), None
    if len(lists) != n:
        raise TraceError(f"{where}: {name}: found {len(lists)} lists, expected {n}")
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum([len(x) for x in lists], out=offsets[1:])
    listed = [v for x in lists for v in x]
    if any(isinstance(v, str) for v in listed):
        known: dict[str, int] = {}
        numbers = [known.setdefault(str(v), len(known)) for v in listed]
        return np.array(numbers, np.int64), offsets, tuple(known)
    return _column(where, name, listed or np.zeros(0, np.int64), np.int64), offsets, None


def _data_from_lists(
    where: str, data: Any, sizes: Any, n: int
) -> tuple[_Column, _Ints, _Column, tuple[str, ...] | None]:
    """Return rows of the table of data as flat i64, their offsets, the table's sizes, and its labels."""
    if not isinstance(sizes, Mapping):
        flat, offsets, texts = _flat(where, "data", data, n)
        if texts is not None:
            raise TraceError(f"{where}: data: found text, expected data_bytes as a mapping from it")
        return flat, offsets, np.zeros(0, np.int64) if sizes is None else np.asarray(sizes), None
    rows = {key: row for row, key in enumerate(sizes)}
    lists = [] if data is None else data
    if isinstance(lists, tuple) and len(lists) == 2 and isinstance(lists[0], np.ndarray):
        lists = [part.tolist() for part in np.split(lists[0], _cuts(where, "data offsets", lists[1], n,
                                                                    len(lists[0]))[1:-1])]  # fmt: skip
    for row, asked in enumerate(lists):
        for key in asked:
            if key not in rows:
                raise TraceError(f"{where}: data: found {shown(key)} in row {row}, expected a key of data_bytes")
    flat, offsets, _ = _flat(where, "data", [[rows[k] for k in asked] for asked in lists] if lists else None, n)
    listed = list(sizes.values())
    return flat, offsets, np.asarray(listed) if listed else np.zeros(0, np.int64), tuple(map(str, rows))


def _blocks_from_lists(
    where: str, block_tokens: int, inputs: _Ints, outputs: _Ints, block_ids: Any, output_ids: Any, spaces: _Column
) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Intern prompts (and outputs behind them) and return the block columns, and labels where ids are text."""
    n = len(inputs)
    if not 1 <= block_tokens < 1 << 31:
        raise TraceError(f"{where}: block_tokens: found {shown(block_tokens)}, expected 1 to {(1 << 31) - 1}")
    ids, offsets, texts = _flat(where, "block_ids", block_ids, n)
    prompts = np.diff(offsets)
    most = -(-inputs // block_tokens)
    if (prompts > most).any():
        row = int(np.flatnonzero(prompts > most)[0])
        raise TraceError(
            f"{where}: block_ids: found {prompts[row]} ids in row {row}, expected at most {most[row]} for "
            f"{inputs[row]} tokens in blocks of {block_tokens}"
        )
    if output_ids is not None:
        more, more_offsets, more_texts = _flat(where, "output_ids", output_ids, n)
        if texts or more_texts:
            raise TraceError(f"{where}: output_ids: found text, expected numbers")
        both = np.empty(len(ids) + len(more), np.int64)
        counts = np.stack([prompts, np.diff(more_offsets)], axis=1)
        is_prompt = np.repeat(np.tile([True, False], n), counts.reshape(-1))
        both[is_prompt], both[~is_prompt] = ids, more
        ids, offsets = both, offsets + more_offsets
    try:
        end, parent, position, first_row, original, space = intern_chains(ids, offsets, spaces)
    except ValueError as error:
        raise TraceError(f"{where}: {error}") from None
    last = end if output_ids is None else ancestors_at(end, prompts - 1, parent, position)
    at = position.astype(np.int64)
    covered = np.where(at < prompts[first_row], inputs[first_row], inputs[first_row] + outputs[first_row])
    length = np.minimum(covered - at * block_tokens, block_tokens)
    if (length < 1).any():
        row = int(first_row[np.flatnonzero(length < 1)[0]])
        raise TraceError(f"{where}: output_ids: found more ids in row {row} than the output's tokens fill")
    labels = None if texts is None else tuple(texts[k] for k in original.tolist())
    return {
        "last_block": last,
        "output_block": np.full(n, -1, np.int32) if output_ids is None else end,
        "block_parent": parent,
        "block_position": position,
        "block_length": length.astype(np.int32),
        "block_id": original,
        "block_namespace": space,
    }, labels


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BlockTable:
    """What every block of an access trace is.

    Parameters
    ----------
    bytes, tokens : i64[B], i32[B].
    kind : i8[B], 0 kv, 1 weights, 2 state, 3 data.
    operation : i8[B], which operation of a step uses it: 0 attention, 1 ffn.
    parent, position : i32[B]; -1 for the first block of a chain (and position -1 for a block of no chain).
    home : i16[B], the tier it lives in; -1 for none (weights without one are placed by the machine), -2 for the
        machine's outermost (:data:`OUTERMOST`).
    recompute_flops : f64[B, 2], by operation: the work that finding it saves.
    labels : names to report, or None.

    Raises
    ------
    TraceError
    """

    bytes: _Column
    tokens: _Column
    kind: _Column
    operation: _Column
    parent: _Column
    position: _Column
    home: _Column
    recompute_flops: _Column
    labels: tuple[str, ...] | None = None

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        where = "block table"
        n = len(np.asarray(self.bytes))
        for name, dtype in _TABLE_COLUMNS.items():
            width = 2 if name == "recompute_flops" else 0
            object.__setattr__(self, name, _column(where, name, getattr(self, name), dtype, rows=n, width=width))
        _within(where, "bytes", self.bytes, 0, 1 << 60, what="block")
        _within(where, "tokens", self.tokens, 0, (1 << 31) - 1, what="block")
        _within(where, "kind", self.kind, 0, 3, what="block")
        _within(where, "operation", self.operation, 0, 1, what="block")
        _within(where, "home", self.home, OUTERMOST, (1 << 15) - 1, what="block")
        if (self.recompute_flops < 0).any():
            row = int(np.flatnonzero((self.recompute_flops < 0).any(axis=1))[0])
            raise TraceError(
                f"{where}: recompute_flops: found {self.recompute_flops[row]} in block {row}, expected 0 or more"
            )
        wrong = np.flatnonzero((self.parent < -1) | (self.parent >= np.arange(n)))
        if wrong.size:
            raise TraceError(
                f"{where}: parent: found {self.parent[wrong[0]]} in block {wrong[0]}, expected -1 or an earlier block"
            )
        if self.labels is not None:
            object.__setattr__(self, "labels", _names(where, "labels", self.labels))
            if len(self.labels) != n:
                raise TraceError(f"{where}: labels: found {len(self.labels)}, expected {n}")

    @property
    def n(self) -> int:
        """The number of blocks."""
        return len(self.bytes)

    def __len__(self) -> int:
        return self.n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockTable) and _equal(self, other)

    def __repr__(self) -> str:
        return f"BlockTable({self.n:,} blocks, {int(self.bytes.sum()):,} bytes)"

    @classmethod
    def of_data(cls, sizes: ArrayLike, labels: tuple[str, ...] | None = None) -> BlockTable:
        """Return a table of plain pieces of data of these sizes in bytes: no chain, no home, nothing to recompute."""
        n = len(np.asarray(sizes))
        zero = np.zeros(n, np.int64)
        return cls(bytes=np.asarray(sizes), tokens=zero, kind=zero + 3, operation=zero, parent=zero - 1,
                   position=zero - 1, home=zero - 1, recompute_flops=np.zeros((n, 2)), labels=labels)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMeta:
    """What an access trace is about: its name, and what the clock must know of the model.

    Parameters
    ----------
    name : what the trace is called.
    category_names : what the steps' categories mean.
    layers : the model's layers, 0 for a raw trace.
    activation_bytes_per_token : what one token carries between devices (hidden size × bytes a number).
    model, lanes : how requests were expanded, None where they were not.
    """

    name: str
    category_names: tuple[str, ...] = ("",)
    layers: int = 0
    activation_bytes_per_token: float = 0.0
    model: str | None = None
    lanes: int | None = None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AccessTrace:
    """Steps and the accesses they make: work, not time, so one trace serves every machine.

    Parameters
    ----------
    blocks : the table of the blocks accessed.
    meta : what the trace is about.
    arrival_ps : i64[s], the clock waits for it.
    flops : f64[s, 2] by operation, without what hits can save.
    fixed_ps : i64[s], time that no device shortens.
    tokens : i64[s], tokens through the model.
    stream, category : i32[s], i16[s].
    repeat : i64[s], how many equal steps the row stands for.
    request : i64[s], the request admitted in the step, or -1.
    offsets : i64[s + 1], where each step's accesses begin.
    block : i32[a]. op : u8[a], 0 lookup, 1 read, 2 write, 3 free, 4 context.
    bytes : i64[a], -1 for the block's own; None if all are.

    Raises
    ------
    TraceError
    """

    blocks: BlockTable
    meta: TraceMeta
    arrival_ps: _Column
    flops: _Column
    fixed_ps: _Column
    tokens: _Column
    stream: _Column
    category: _Column
    repeat: _Column
    request: _Column
    offsets: _Column
    block: _Column
    op: _Column
    bytes: _Column | None = None

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        where = f"trace {self.meta.name}"
        steps = len(np.asarray(self.arrival_ps))
        put = object.__setattr__
        for name, dtype in _STEP_COLUMNS.items():
            width = 2 if name == "flops" else 0
            put(self, name, _column(where, name, getattr(self, name), dtype, rows=steps, width=width))
        put(self, "block", _column(where, "block", self.block, np.int32))
        count = len(self.block)
        put(self, "op", _column(where, "op", self.op, np.uint8, rows=count))
        if self.bytes is not None:
            put(self, "bytes", _column(where, "bytes", self.bytes, np.int64, rows=count))
            _within(where, "bytes", self.bytes, -1, 1 << 62, what="access")
        put(self, "offsets", _cuts(where, "offsets", self.offsets, steps, count))
        for name, high in (("arrival_ps", TIME_MOST_PS), ("fixed_ps", TIME_MOST_PS), ("tokens", TOKENS_MOST),
                           ("category", len(self.meta.category_names) - 1)):  # fmt: skip
            _within(where, name, getattr(self, name), 0, high, what="step")
        _within(where, "repeat", self.repeat, 1, 1 << 62, what="step")
        _within(where, "block", self.block, 0, self.blocks.n - 1, what="access")
        _within(where, "op", self.op, 0, _OPS_KNOWN - 1, what="access")
        if (self.flops < 0).any():
            row = int(np.flatnonzero((self.flops < 0).any(axis=1))[0])
            raise TraceError(f"{where}: flops: found {self.flops[row]} in step {row}, expected 0 or more")

    @property
    def name(self) -> str:
        """What the trace is called."""
        return self.meta.name

    @property
    def n(self) -> int:
        """The number of rows of steps."""
        return len(self.arrival_ps)

    @property
    def total_steps(self) -> int:
        """The rows of steps in all chunks."""
        return self.n

    @property
    def accesses(self) -> int:
        """The number of accesses."""
        return len(self.block)

    def __len__(self) -> int:
        return self.n

    def chunks(self) -> Iterator[AccessTrace]:
        """Return the trace as a stream of one chunk."""
        yield self

    def __iter__(self) -> Iterator[AccessTrace]:
        return self.chunks()

    def whole(self) -> AccessTrace:
        """Return the trace itself."""
        return self

    def steps(self, start: int, stop: int) -> AccessTrace:
        """Return the rows of steps `start` … `stop` - 1, with the same block table."""
        start, stop, _ = slice(start, stop).indices(self.n)
        stop = max(start, stop)
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        columns = {name: getattr(self, name)[start:stop] for name in _STEP_COLUMNS}
        return dataclasses.replace(
            self,
            offsets=self.offsets[start : stop + 1] - low,
            block=self.block[low:high],
            op=self.op[low:high],
            bytes=None if self.bytes is None else self.bytes[low:high],
            **columns,
        )

    def first(self, count: int) -> AccessTrace:
        """Return the first `count` rows of steps."""
        return self.steps(0, min(_count("first", count), self.n))

    def last(self, count: int) -> AccessTrace:
        """Return the last `count` rows of steps, the first of them at time 0."""
        kept = self.steps(max(self.n - _count("last", count), 0), self.n)
        if not kept.n:
            return kept
        return dataclasses.replace(kept, arrival_ps=np.maximum(kept.arrival_ps - kept.arrival_ps[0], 0))

    def scaled(self, rate: float) -> AccessTrace:
        """Return the same steps `rate` times as often: arrivals divided by `rate`."""
        if not (isinstance(rate, int | float) and 0 < rate < float("inf")):
            raise TraceError(f"trace {self.name}: rate: found {shown(rate)}, expected a number above 0")
        arrival = np.rint(self.arrival_ps / rate)
        if arrival.size and arrival.max() >= TIME_MOST_PS:
            raise TraceError(f"trace {self.name}: rate: found {rate}, expected arrivals within 53 days")
        return dataclasses.replace(self, arrival_ps=arrival.astype(np.int64))

    def statistics(self) -> dict[str, Any]:
        """Return what describes the trace: counts, bytes, times, and the hit rate of a cache without limit."""
        looked = self.block[self.op == 0]
        return {
            "steps": int(self.repeat.sum()),
            "step_rows": self.n,
            "accesses": self.accesses,
            "lookups": len(looked),
            "unique_blocks": len(np.unique(self.block)),
            "unique_bytes": int(self.blocks.bytes[np.unique(self.block)].sum()),
            "infinite_hit_block": _share(len(looked) - len(np.unique(looked)), len(looked)),
            "duration_s": (int(self.arrival_ps[-1]) - int(self.arrival_ps[0])) / 1e12 if self.n else None,
            "tokens": int((self.tokens * self.repeat).sum()),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to one .npz file, whole or not at all; `kvsim.read_trace` reads it back equal."""
        from kvsim._trace_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AccessTrace:
        """Read what :meth:`save` wrote; TraceError for anything else."""
        from kvsim._trace_file import load

        trace = load(path)
        if not isinstance(trace, cls):
            raise TraceError(f"{path}: found a RequestTrace, expected an AccessTrace")
        return trace

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccessTrace) and _equal(self, other)

    def _lines(self) -> list[tuple[str, str]]:
        s = self.statistics()
        return [
            ("steps", f"{s['steps']:,} in {s['step_rows']:,} rows"),
            ("accesses", f"{s['accesses']:,}, {s['lookups']:,} of them look-ups"),
            ("blocks", f"{s['unique_blocks']:,} unique, {s['unique_bytes']:,} bytes"),
        ]

    def __repr__(self) -> str:
        return f"AccessTrace {self.name}\n" + "\n".join(f"  {k:<16}{v}" for k, v in self._lines())

    def _repr_html_(self) -> str:
        return _html_table(f"AccessTrace {self.name}", self._lines())


class AccessStream:
    """An access trace in chunks that share one block table: memory is the table and one chunk.

    Parameters
    ----------
    blocks : the block table of all chunks.
    meta : what the trace is about.
    make : called for each pass; returns the chunks in order.
    total_steps : rows of steps in all chunks, for progress; None where that is not known before.
    """

    __slots__ = ("blocks", "make", "meta", "total_steps")

    def __init__(
        self,
        blocks: BlockTable,
        meta: TraceMeta,
        make: Callable[[], Iterable[AccessTrace]],
        *,
        total_steps: int | None = None,
    ) -> None:
        self.blocks = blocks
        self.meta = meta
        self.make = make
        self.total_steps = total_steps

    @property
    def name(self) -> str:
        """What the trace is called."""
        return self.meta.name

    def chunks(self) -> Iterator[AccessTrace]:
        """Return the chunks, from the first; every call begins a new pass."""
        return iter(self.make())

    def __iter__(self) -> Iterator[AccessTrace]:
        return self.chunks()

    def whole(self) -> AccessTrace:
        """Join all chunks into one trace."""
        parts = list(self.chunks())
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for name, dtype in _STEP_COLUMNS.items():
            empty = np.zeros((0, 2) if name == "flops" else 0, dtype)
            columns[name] = np.concatenate([empty, *(getattr(p, name) for p in parts)])
        counts = np.concatenate([np.zeros(0, np.int64), *(np.diff(p.offsets) for p in parts)])
        with_bytes = any(p.bytes is not None for p in parts)
        return AccessTrace(
            blocks=self.blocks,
            meta=self.meta,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            block=np.concatenate([np.zeros(0, np.int32), *(p.block for p in parts)]),
            op=np.concatenate([np.zeros(0, np.uint8), *(p.op for p in parts)]),
            bytes=np.concatenate(
                [np.full(p.accesses, -1) if p.bytes is None else p.bytes for p in parts]
            ) if with_bytes else None,
            **columns,
        )  # fmt: skip

    def __repr__(self) -> str:
        steps = "" if self.total_steps is None else f", {self.total_steps:,} rows of steps"
        return f"<AccessStream {self.name}: {self.blocks.n:,} blocks{steps}>"
