"""A recorded run as a trace that ui.perfetto.dev opens: Chrome's trace-event JSON.

One process a pool's replica with its steps, one for the requests with their phases, one for the channels (memories
and links, each way) with their moves, and one for the counters. Requests and moves that overlap lie on tracks of
their own (lanes). Times are in microseconds with all twelve decimals of a second kept, and a slice ends with the very
number that the next one begins with, so that no viewer's rounding makes two of them overlap.
"""

from __future__ import annotations

import gzip
import heapq
import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim._files import atomic_file
from kvsim._memory_tables import PS
from kvsim.errors import KvsimError, UnknownNameError
from kvsim.units import format_time

if TYPE_CHECKING:
    from kvsim.run_result import RunResult

__all__ = ["events", "lanes", "write"]

Ints = np.ndarray[Any, Any]

REQUESTS, CHANNELS, COUNTERS, UNITS = 1, 2, 3, 10
"""Process ids; unit u is process UNITS + u."""
_LANES, _TRACKS = 1_000_000, 2_000_000
"""First thread ids of the requests' lanes and of the channels' tracks: some viewers want them unique over processes."""
_STATES = ("queued", "KV transfer", "prefill", "recompute", "decode", "preempted")
_SUFFIXES = (".json", ".json.gz")
_CHUNK = 4096
_LOGS = ("step", "phase", "move")


def write(result: RunResult, path: str | os.PathLike[str]) -> None:
    """Write a recorded run as trace-event JSON, whole or not at all; the same run gives the same bytes.

    Parameters
    ----------
    result : RunResult
        Of a run with ``record=True``.
    path : ends in .json, or in .json.gz for a compressed file.

    Raises
    ------
    KvsimError
        The run was not recorded, or `path` has another ending or cannot be written.

    Warns
    -----
    UserWarning
        A log of the run was full before its end; the file's `otherData` says so too.
    """
    name = os.fspath(path).lower()
    if not name.endswith(_SUFFIXES):
        raise KvsimError(f"{path}: found the ending {os.path.splitext(name)[1]!r}, expected .json or .json.gz")
    _check(result)
    with atomic_file(path) as file:
        if name.endswith(".gz"):
            # neither a time nor a name in the file: the same run gives the same bytes
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                _stream(result, packed)
        else:
            _stream(result, file)
    if result.log_cut:
        warnings.warn(f"{path}: {_missing(result)}", stacklevel=2)


def _missing(result: RunResult) -> str:
    """Say which logs were full before the run's end, and from when on they are silent."""
    most = max(len(result.arrays[f"log/{kind}_start_ps"]) for kind in _LOGS)
    said = []
    for kind in _LOGS:
        start = result.arrays[f"log/{kind}_start_ps"]
        if len(start) == most:
            since = f" after about {format_time(int(start[-1]) / PS, digits=3)}" if most else ""
            said.append(f"{kind}s{since}")
    return f"found more than the {most:,} entries that a log holds: the timeline lacks {', '.join(said)}"


def _check(result: RunResult) -> None:
    if not any(len(result.arrays[f"log/{kind}_start_ps"]) for kind in _LOGS) and int(result.arrays["steps"].sum()):
        raise KvsimError("perfetto: found a run whose steps were not recorded, expected one made with record=True")


def _stream(result: RunResult, file: Any) -> None:
    out = io.TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=False)
    about = {
        "kvsim_version": result.kvsim_version,
        "config_hash": result.config_hash,
        "trace": str(result.trace.get("name", "trace")),
        "machine": str(result.machine.get("name", "machine")),
        "cut": result.log_cut,
    }
    if result.log_cut:
        about["missing"] = _missing(result)
    out.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(about, sort_keys=True)},"traceEvents":[\n')
    first = True
    chunk: list[str] = []
    for event in events(result):
        chunk.append(event)
        if len(chunk) == _CHUNK:
            out.write(("" if first else ",\n") + ",\n".join(chunk))
            first = False
            chunk.clear()
    if chunk:
        out.write(("" if first else ",\n") + ",\n".join(chunk))
    out.write("\n]}\n")
    out.flush()
    out.detach()


def events(result: RunResult) -> Iterator[str]:
    """Yield each event as JSON text, track by track, each track in the order of time."""
    yield from _steps(result)
    yield from _requests(result)
    yield from _moves(result)
    yield from _counters(result)


# ---- the parts ----------------------------------------------------------------------------------------------------


def _steps(result: RunResult) -> Iterator[str]:
    a = result.arrays
    pools = _pool_names(result)
    step = {key: a[f"log/step_{key}"] for key in ("start_ps", "end_ps", "unit", "count", "decode", "prefill")}
    order = np.lexsort((step["end_ps"], step["start_ps"], step["unit"]))
    unit_of = step["unit"][order]
    for u, (pool, replica) in enumerate(zip(a["unit_pool"].tolist(), a["unit_replica"].tolist(), strict=True)):
        pid = UNITS + u
        yield from _process(pid, f"pool {pools[pool]}, replica {replica}", sort=u)
        yield from _thread(pid, pid, "steps")
        mine = order[np.searchsorted(unit_of, u) : np.searchsorted(unit_of, u, side="right")]
        for start, end, count, decode, prefill in _rows(step, mine, "start_ps", "end_ps", "count", "decode", "prefill"):
            args = f'{{"steps":{count},"decoding sequences":{decode},"prompt tokens":{prefill}}}'
            yield from _slice(pid, pid, _step_name(count, decode, prefill), start, end, args)


def _step_name(count: int, decode: int, prefill: int) -> str:
    if prefill and decode:
        return f"step: {prefill} prefill + {decode} decode"
    if prefill:
        return f"step: {prefill} prefill"
    if not decode:
        return "step"
    return f"decode x{count}, batch {decode}" if count > 1 else f"decode, batch {decode}"


def _requests(result: RunResult) -> Iterator[str]:
    a = result.arrays
    request, state = a["log/phase_request"], a["log/phase_state"]
    start, end = a["log/phase_start_ps"], a["log/phase_end_ps"]
    yield from _process(REQUESTS, "requests", sort=900)
    if not len(request):
        return
    order = np.lexsort((end, start, request))
    who, first = np.unique(request[order], return_index=True)
    last = np.append(first[1:], len(order))
    begins = start[order][first]
    ends = np.maximum.reduceat(end[order], first)
    lane = lanes(begins, ends)
    names = [json.dumps(name) for name in (*_STATES, *(f"loading from {tier}" for tier in result.tiers))]
    columns = {key: a[key] for key in ("hit_tokens", "computed_tokens", "output_tokens", "preemptions")}
    for n in range(int(lane.max()) + 1):
        yield from _thread(REQUESTS, _LANES + n, f"lane {n + 1}", sort=n)
    for i in np.lexsort((begins, lane)).tolist():
        r, tid = int(who[i]), _LANES + int(lane[i])
        args = ",".join(f'"{key.replace("_", " ")}":{int(values[r])}' for key, values in columns.items())
        yield _begin(REQUESTS, tid, f'"request {r}"', int(begins[i]), f"{{{args}}}")
        for at in order[first[i] : last[i]].tolist():
            yield _begin(REQUESTS, tid, names[int(state[at])], int(start[at]))
            yield _end(REQUESTS, tid, int(end[at]))
        yield _end(REQUESTS, tid, int(ends[i]))


def _moves(result: RunResult) -> Iterator[str]:
    a = result.arrays
    yield from _process(CHANNELS, "channels: memories and links", sort=901)
    keys = ("start_ps", "end_ps", "channel", "way", "bytes", "request", "replica")
    move = {key: a[f"log/move_{key}"] for key in keys}
    if not len(move["start_ps"]):
        return
    devices = [*result.tiers, *(str(info["name"]) for info in result.link_info)]
    track = (move["channel"] * 2 + move["way"]) * (int(move["replica"].max()) + 2) + move["replica"] + 1
    order = np.lexsort((move["end_ps"], move["start_ps"], track))
    cuts = np.flatnonzero(np.diff(track[order])) + 1
    tid = _TRACKS
    for mine in np.split(order, cuts):
        channel, way, replica = (int(move[key][mine[0]]) for key in ("channel", "way", "replica"))
        link = channel >= len(result.tiers)
        ways = ("towards compute", "away from compute") if link else ("read", "write")
        name = f"{'link ' if link else ''}{devices[channel]} {ways[way]}"
        name += f", replica {replica}" if replica >= 0 else ""
        lane = lanes(move["start_ps"][mine], move["end_ps"][mine])
        for n in range(int(lane.max()) + 1):
            tid += 1
            yield from _thread(CHANNELS, tid, name if n == 0 else f"{name} ({n + 1})", sort=tid - _TRACKS)
            for start, end, size, request in _rows(move, mine[lane == n], "start_ps", "end_ps", "bytes", "request"):
                whose = f',"request":{request}' if request >= 0 else ""
                title = f"request {request}" if request >= 0 else "move"
                yield from _slice(CHANNELS, tid, title, start, end, f'{{"bytes":{size}{whose}}}')


def _counters(result: RunResult) -> Iterator[str]:
    a = result.arrays
    yield from _process(COUNTERS, "occupancy and load", sort=0)
    used = a["bins/used_bytes"]
    series = [(key, "requests", a[f"bins/{key}"]) for key in ("running", "waiting", "loading")]
    series += [(f"{tier} used", "bytes", used[:, t]) for t, tier in enumerate(result.tiers)]
    bin_ps, makespan = int(result.counters["bin_ps"]), int(result.counters["makespan_ps"])
    times = [min((i + 1) * bin_ps, makespan) for i in range(len(used))]
    for name, unit, values in series:
        head = f'{{"ph":"C","pid":{COUNTERS},"tid":0,"name":{json.dumps(name)},"ts":'
        last = None
        for time, value in zip(times, values.tolist(), strict=True):
            # a counter holds until it is said again; the last point closes the track
            if value != last or time == makespan:
                yield f'{head}{_us(time)},"args":{{"{unit}":{value}}}}}'
            last = value


# ---- small helpers ------------------------------------------------------------------------------------------------


def lanes(start: Ints, end: Ints) -> Ints:
    """Return the lane of each interval: the fewest lanes in which none overlaps another, filled from 0.

    Parameters
    ----------
    start, end : [n] ends of the intervals, end >= start. An interval may begin where another ends.
    """
    lane = np.zeros(len(start), np.int64)
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    used = 0
    starts, ends = start.tolist(), end.tolist()
    for i in np.lexsort((end, start)).tolist():
        while busy and busy[0][0] <= starts[i]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            mine = heapq.heappop(free)
        else:
            mine, used = used, used + 1
        lane[i] = mine
        heapq.heappush(busy, (ends[i], mine))
    return lane


def _pool_names(result: RunResult) -> list[str]:
    pools = result.machine.get("pool", {})
    names = [str(name) for name in pools]
    most = int(result.arrays["unit_pool"].max(initial=-1)) + 1
    if len(names) < most:
        raise UnknownNameError(f"pool {most - 1}", names, "pool of the machine")
    return names


def _rows(columns: dict[str, Ints], rows: Ints, *names: str) -> Iterable[tuple[int, ...]]:
    """Yield the chosen rows as tuples of Python ints, a chunk at a time."""
    for at in range(0, len(rows), _CHUNK):
        some = rows[at : at + _CHUNK]
        yield from zip(*(columns[name][some].tolist() for name in names), strict=True)


def _us(ps: int) -> str:
    """Write picoseconds as microseconds, exactly."""
    whole, rest = divmod(ps, 10**6)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)


def _begin(pid: int, tid: int, name: str, ps: int, args: str = "") -> str:
    more = f',"args":{args}' if args else ""
    return f'{{"ph":"B","pid":{pid},"tid":{tid},"ts":{_us(ps)},"name":{name}{more}}}'


def _end(pid: int, tid: int, ps: int) -> str:
    return f'{{"ph":"E","pid":{pid},"tid":{tid},"ts":{_us(ps)}}}'


def _slice(pid: int, tid: int, name: str, start: int, end: int, args: str = "") -> Iterator[str]:
    yield _begin(pid, tid, json.dumps(name), start, args)
    yield _end(pid, tid, end)


def _process(pid: int, name: str, *, sort: int) -> Iterator[str]:
    yield f'{{"ph":"M","pid":{pid},"name":"process_name","args":{{"name":{json.dumps(name)}}}}}'
    yield f'{{"ph":"M","pid":{pid},"name":"process_sort_index","args":{{"sort_index":{sort}}}}}'


def _thread(pid: int, tid: int, name: str, *, sort: int = 0) -> Iterator[str]:
    yield f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"thread_name","args":{{"name":{json.dumps(name)}}}}}'
    yield f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"thread_sort_index","args":{{"sort_index":{sort}}}}}'
