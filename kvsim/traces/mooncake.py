"""Mooncake's traces: a line of JSON a request, ids of 512-token prefix blocks.

`{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`; the last block may be partial. Two more
keys, both optional, make it closed loop: `session_id`, and `delay` in ms on a turn that comes so long after the
session's turn before it completed (then `timestamp` may be left out).

Decoding the hour of conversations (12,031 lines, 3.0 MB) takes msgspec's typed rows 17-24 ms on one core of a 2-core
cloud machine, orjson 17 ms and the standard library 47 ms, neither of which checks a type; the whole `read` 76 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvsim._files import atomic_file
from kvsim.errors import TraceError
from kvsim.trace import TIME_MOST_PS, TOKENS_MOST, AccessTrace, RequestTrace
from kvsim.traces._io import base_name, decode_lines, found, labelled, number_of

NAME = "mooncake"
TITLE = "Mooncake JSON lines: lengths and prefix-block ids a request; optional sessions and delays"

_PS = 10**9  # in a millisecond
_LATEST_MS = TIME_MOST_PS // _PS


class _Row(msgspec.Struct, gc=False):
    input_length: int
    output_length: int
    timestamp: float | None = None
    hash_ids: list[int | str] = []
    session_id: int | str | None = None
    delay: float | None = None
    priority: int = 0


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file is one of these."""
    line = head.lstrip()[:1]
    return 0.95 if line == b"{" and b'"input_length"' in head and b'"output_length"' in head else 0.0


def read(path: str | PathLike[str], *, trace_block_tokens: int = 512) -> RequestTrace:
    """Read a Mooncake trace.

    Parameters
    ----------
    trace_block_tokens : tokens that one id of the file stands for.

    Raises
    ------
    TraceError
        With the line, the key, what was found and what was expected.
    """
    path = Path(path)
    if trace_block_tokens < 1:
        raise found(f"{path}", "trace_block_tokens", trace_block_tokens, "1 or more")
    rows: list[_Row] = []
    lines: list[int] = []
    ids: list[np.ndarray[Any, Any]] = []
    counts: list[int] = []
    texts: dict[str, int] = {}
    for line, block in decode_lines(msgspec.json.Decoder(_Row), path):
        added = [len(r.hash_ids) for r in block]
        counts += added
        ids.append(_numbers(block, sum(added), texts))
        for r in block:
            r.hash_ids = []
        lines += range(line, line + len(block))
        rows += block
    _check(path, rows, lines, counts, trace_block_tokens)
    arrival, after, delay, session, names = _closed_loop(path, rows, lines)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    flat = np.concatenate(ids)
    trace = RequestTrace.from_lists(
        name=base_name(path).removesuffix(".jsonl"),
        source=f"{NAME}: {path.name}",
        block_tokens=trace_block_tokens,
        arrival_ps=arrival,
        input_tokens=np.fromiter((r.input_length for r in rows), np.int64, len(rows)),
        output_tokens=np.fromiter((r.output_length for r in rows), np.int64, len(rows)),
        block_ids=(flat, offsets),
        session=session,
        session_names=names,
        priority=np.array([r.priority for r in rows]),
        after=after,
        delay_ps=delay,
        pause=np.array([1 if d else 0 for d in delay]) if after is not None else None,
    )
    return labelled(trace, texts)


def _numbers(block: Sequence[_Row], count: int, texts: dict[str, int]) -> np.ndarray[Any, Any]:
    """Return a block's ids as one column; text, and integers beyond an int64, get numbers from `texts`."""
    flat: list[Any] = list(chain.from_iterable(r.hash_ids for r in block))
    if set(map(type, flat)) <= {int}:
        with suppress(OverflowError):
            return np.fromiter(flat, np.int64, count)
    return np.fromiter((number_of(v, texts) for v in flat), np.int64, count)


def _check(path: Path, rows: Sequence[_Row], lines: Sequence[int], counts: Sequence[int], size: int) -> None:
    """Raise TraceError for the first row whose numbers make no sense."""
    if _plausible(rows, counts, size):
        return
    for row, line, count in zip(rows, lines, counts, strict=True):
        place = f"{path}: line {line}"
        for key, tokens in (("input_length", row.input_length), ("output_length", row.output_length)):
            if not 0 <= tokens <= TOKENS_MOST:
                raise found(place, key, tokens, f"0 to 2^40 = {TOKENS_MOST} tokens")
        for key, time in (("timestamp", row.timestamp), ("delay", row.delay)):
            if time is not None and not 0 <= time <= _LATEST_MS:
                raise found(place, key, time, f"0 to {_LATEST_MS} ms")
        if not -(1 << 15) <= row.priority < 1 << 15:
            raise found(place, "priority", row.priority, "-32768 to 32767")
        if count > -(-row.input_length // size):
            raise TraceError(
                f"{place}: hash_ids: found {count} ids, expected at most {-(-row.input_length // size)} for "
                f"{row.input_length} tokens in blocks of {size}"
            )


def _plausible(rows: Sequence[_Row], counts: Sequence[int], size: int) -> bool:
    """Return whether no row can be wrong: all columns at once, so that a good file is not checked row by row."""
    if any(r.delay is not None or r.timestamp is None or r.priority for r in rows):
        return False
    try:
        lengths = np.array([(r.input_length, r.output_length) for r in rows], np.int64)
    except OverflowError:
        return False
    times = np.array([r.timestamp for r in rows])
    return bool(
        ((lengths >= 0) & (lengths <= TOKENS_MOST)).all()
        and ((times >= 0) & (times <= _LATEST_MS)).all()
        and (np.array(counts) <= -(-lengths[:, 0] // size)).all()
    )


def _closed_loop(
    path: Path, rows: Sequence[_Row], lines: Sequence[int]
) -> tuple[list[int], list[list[int]] | None, list[int], list[int], tuple[str, ...]]:
    """Return arrivals, dependencies, delays, sessions and their names.

    A row with a delay waits for its session's row before it. Its own timestamp was taken on another machine and
    would hold a faster one back, so it arrives when it could at the earliest: the delay after that row's arrival.
    """
    if all(r.session_id is None and r.delay is None and r.timestamp is not None for r in rows):
        arrivals = [round(r.timestamp * _PS) for r in rows]  # type: ignore[operator]
        return arrivals, None, [0] * len(rows), list(range(len(rows))), tuple(map(str, range(len(rows))))
    known: dict[str, int] = {}
    before: dict[int, int] = {}
    arrival, delay, session = [0] * len(rows), [0] * len(rows), [0] * len(rows)
    after: list[list[int]] = [[] for _ in rows]
    for k, (row, line) in enumerate(zip(rows, lines, strict=True)):
        place = f"{path}: line {line}"
        name = str(k) if row.session_id is None else str(row.session_id)
        s = session[k] = known.setdefault(("" if row.session_id is None else "=") + name, len(known))
        previous = before.get(s)
        before[s] = k
        if row.delay is not None and row.session_id is None:
            raise TraceError(f"{place}: delay: found no key 'session_id' beside it, expected one: after what?")
        if row.delay is not None and previous is not None:
            delay[k] = round(row.delay * _PS)
            after[k] = [previous]
            arrival[k] = arrival[previous] + delay[k]
        elif row.timestamp is None:
            raise TraceError(
                f"{place}: found no key 'timestamp', expected one (or 'delay' on a later turn of a session)"
            )
        else:
            arrival[k] = round(row.timestamp * _PS)
        if arrival[k] > TIME_MOST_PS:
            raise found(place, "delay", row.delay, "a session within 53 days")
    names = tuple(name.removeprefix("=") for name in known)
    return arrival, (after if any(after) else None), delay, session, names


def write(trace: RequestTrace | AccessTrace, path: str | PathLike[str]) -> None:
    """Write a trace as Mooncake JSON lines, whole or not at all; `read` gives its requests back.

    A request that waits for one other, the one before it in its session, gets a `delay`. Ids are kept where they say
    by themselves which block is meant, else dense ids take their place; what outputs add is not in the format.

    Raises
    ------
    TraceError
        An access trace, or requests that read data, or wait for more than one other or for another session's.
    """
    if not isinstance(trace, RequestTrace):
        raise TraceError(f"{path}: found an AccessTrace, expected a RequestTrace: the format holds requests")
    if len(trace.data):
        reader = int(np.flatnonzero(np.diff(trace.data_offsets))[0])
        raise TraceError(
            f"{path}: request {reader}: data: found {len(trace.data_of(reader))} pieces, expected none (save as .npz "
            "to keep data)"
        )
    previous = _turn_before(trace, path)
    blocks, offsets = trace.block_lists()
    unique = len(np.unique(trace.block_id)) == trace.unique_blocks
    label = trace.block_label
    names: Any = label if label is not None and len(set(label)) == len(label) else None
    shown_ids: np.ndarray[Any, Any] = trace.block_id if unique else np.arange(trace.unique_blocks)
    with_sessions = not trace.open_loop or len(np.unique(trace.session)) < trace.n
    encoder = msgspec.json.Encoder()
    with atomic_file(path) as file:
        for k in range(trace.n):
            run = blocks[offsets[k] : offsets[k + 1]]
            ids = [names[b] for b in run.tolist()] if names is not None else shown_ids[run].tolist()
            row: dict[str, Any] = {
                "timestamp": _milliseconds(int(trace.arrival_ps[k])),
                "input_length": int(trace.input_tokens[k]),
                "output_length": int(trace.output_tokens[k]),
                "hash_ids": ids,
            }
            if with_sessions:
                row["session_id"] = trace.session_names[trace.session[k]]
            if previous[k] >= 0:
                row["delay"] = _milliseconds(int(trace.delay_ps[k]))
            if trace.priority[k]:
                row["priority"] = int(trace.priority[k])
            file.write(encoder.encode(row) + b"\n")


def _milliseconds(picoseconds: int) -> int | float:
    whole, rest = divmod(picoseconds, _PS)
    return whole if not rest else picoseconds / _PS


def _turn_before(trace: RequestTrace, path: str | PathLike[str]) -> np.ndarray[Any, Any]:
    """Return the row that each request waits for, -1 for none; TraceError where the format cannot say it."""
    counts = np.diff(trace.after_offsets)
    previous = np.full(trace.n, -1, np.int64)
    before: dict[int, int] = {}
    for k in range(trace.n):
        session = int(trace.session[k])
        waits = trace.after_of(k).tolist()
        if waits and waits != [before.get(session)]:
            found_text = f"{counts[k]} requests" if len(waits) > 1 else f"request {waits[0]}"
            raise TraceError(
                f"{path}: request {k}: after: found {found_text}, expected at most the one before it in its session "
                "(save as .npz to keep every dependency)"
            )
        if waits:
            previous[k] = waits[0]
        before[session] = k
    return previous
