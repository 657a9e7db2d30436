"""Coding-agent sessions as published by Weka: one JSON file a session, sub-agents nested, 64-token blocks.

What the files mean, found in 48 of them and kept by this reader:

* `t` is when a turn was sent, in seconds; `api_time` how long it took; `think_time` how long the session waited before
  it. Where the turn before has no `api_time`, `think_time` counts from the last turn that had one, so the wait is
  taken from the times instead, with an API time estimated by the session's own median a token.
* A sub-agent's `t` is when it *ended*: `t - duration_ms` falls on the end of the turn that started it, in all of them.
  Its turns' `t` count from its start. It starts after that turn; the session's first turn that was sent after it
  ended waits for it too, and that turn's `think_time`, which contains the sub-agent's run, is not used.
* A wait is a person's behind an answer that ended the turn, or where no tool's result came back. Some answers were not
  recorded (`stop` empty, no `api_time`); what comes after is then written as text whatever it was. Their waits (220 of
  them, quartiles 5, 7 and 14 s) are a tool's in length (5, 8 and 20 s; a person's: 5, 71 and 340 s) and counted so.
* `hash_ids` cover whole blocks only; the tail of a prompt is private. They are local to the file unless
  `hash_id_scope` is "global".

A turn that waits for others was recorded at a time that holds for the machine of then. By default it therefore arrives
at the earliest moment it could on any machine: the end of its waits, had every request taken no time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvsim.errors import TraceError
from kvsim.trace import TIME_MOST_PS, TOKENS_MOST, RequestTrace
from kvsim.traces._io import decode, found, labelled, number_of, read_all
from kvsim_core import intern_chains

NAME = "claude-code"
TITLE = "Coding-agent sessions (Weka JSON): a file or a directory; sub-agents, think and tool times"

_LATEST_S = TIME_MOST_PS // 10**12
_SLACK_S = 1.0  # times are written in whole seconds: later by less is the same moment
_S_PER_TOKEN = 6.1 / 216  # median API time and output of 710 sessions, where a session tells nothing itself
_THINK, _TOOL = 1, 2


class _Entry(msgspec.Struct, rename={"input_tokens": "in", "output_tokens": "out"}):
    t: float
    type: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    hash_ids: list[int | str] = []
    model: str = ""
    input_types: list[str] = []
    stop: str | None = ""
    api_time: float | None = None
    think_time: float | None = None
    duration_ms: float | None = None
    subagent_type: str = ""
    tool_tokens: int | None = None
    system_tokens: int | None = None
    requests: list[_Entry] | None = None


class _Session(msgspec.Struct):
    requests: list[_Entry]
    block_size: int
    id: str = ""
    hash_id_scope: str = "local"
    tool_tokens: int = 0
    system_tokens: int = 0


@dataclass(slots=True)
class _Rows:
    """The requests of one name space, turn after turn, a sub-agent's between its parent's."""

    name: str
    block_tokens: int
    recorded_s: list[float] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)
    ids: list[np.ndarray[Any, Any]] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    pause: list[int] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    prefix: list[tuple[int, int]] = field(default_factory=list)  # tool and system tokens of the agent


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file (or a file of the directory) is one of these."""
    if path.is_dir():
        return 0.8 if next(_files(path), None) else 0.0
    start = head.lstrip()
    if start[:1] != b"{" or b'"input_length"' in start:
        return 0.0
    sure = sum(0.3 for key in (b'"hash_id_scope"', b'"block_size"', b'"requests"', b'"tool_tokens"') if key in start)
    return min(sure, 0.95)


def _files(path: Path) -> Iterator[Path]:
    return (p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".") and p.name.lower().endswith(
        (".json", ".json.gz", ".json.zst")))  # fmt: skip


def read(
    path: str | PathLike[str], *, share_system: bool = False, times: str = "earliest", start_every_s: float = 0.0
) -> RequestTrace:
    """Read one session, or every session of a directory in order of their names.

    Parameters
    ----------
    share_system : whether the whole blocks of the tools and system prompt, the first of a prompt, are one and the
        same in all sessions with equal tool_tokens, system_tokens and model (as far as a session's own turns share
        them).
    times : "earliest", or "recorded" for arrivals as the files have them (which a faster machine then cannot beat).
    start_every_s : the seconds between one session's start and the next one's; the files do not say.

    Raises
    ------
    TraceError
        With the file, the request, the key, what was found and what was expected.
    """
    path = Path(path)
    if times not in ("earliest", "recorded"):
        raise found(f"{path}", "times", times, "'earliest' or 'recorded'")
    if not 0 <= start_every_s <= _LATEST_S:
        raise found(f"{path}", "start_every_s", start_every_s, f"0 to {_LATEST_S} s")
    files = list(_files(path)) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path}: found no .json file, expected a directory of session files")
    decoder = msgspec.json.Decoder(_Session)
    texts: dict[str, int] = {}
    categories: dict[str, int] = {"main": 0}
    names: list[str] = []
    parts: list[_Part] = []
    shared: _Rows | None = None  # of the files whose ids hold across files
    for file in files:
        session = decode(decoder, read_all(file), f"{file}")
        if not 1 <= session.block_size < 1 << 31:
            raise found(f"{file}", "block_size", session.block_size, "1 or more")
        size = parts[0].rows.block_tokens if parts else shared.block_tokens if shared else session.block_size
        if session.block_size != size:
            raise found(f"{file}", "block_size", session.block_size, f"{size} as in {files[0].name}")
        in_common = session.hash_id_scope == "global"
        rows = shared if in_common and shared else _Rows("" if in_common else file.name.split(".")[0], size)
        names.append(session.id or file.name.split(".")[0])
        _add_session(file, session, rows, texts, categories, number=len(names) - 1)
        if in_common:
            shared = rows
        else:
            parts.append(_intern(rows, len(parts)))
    if shared:
        parts.append(_intern(shared, len(parts)))
    trace = _assemble(parts, names, tuple(categories), files, path, share_system, times, start_every_s)
    return labelled(trace, texts)


def _add_session(
    file: Path, session: _Session, rows: _Rows, texts: dict[str, int], categories: dict[str, int], *, number: int
) -> None:
    if not session.requests:
        raise TraceError(f"{file}: requests: found an empty list, expected one request or more")
    prefix = (session.tool_tokens, session.system_tokens)
    if min(prefix) < 0 or max(prefix) > TOKENS_MOST:
        raise found(f"{file}", "tool_tokens, system_tokens", prefix, "0 or more")
    rates = [e.api_time / e.output_tokens for e in _turns(session.requests) if e.api_time and e.output_tokens]
    adder = _Adder(file, rows, texts, categories, number, statistics.median(rates) if rates else _S_PER_TOKEN)
    adder.agent(session.requests, "requests", 0.0, (), 0, prefix)


def _turns(entries: Sequence[_Entry]) -> Iterator[_Entry]:
    for entry in entries:
        if entry.requests is None:
            yield entry
        else:
            yield from _turns(entry.requests)


@dataclass(slots=True)
class _Adder:
    """Adds the turns of one session's agents to the rows."""

    file: Path
    rows: _Rows
    texts: dict[str, int]
    categories: dict[str, int]
    session: int
    s_per_token: float

    def agent(
        self, entries: Sequence[_Entry], key: str, start_s: float, started_by: tuple[tuple[int, float], ...],
        category: int, prefix: tuple[int, int],
    ) -> tuple[int, float] | None:  # fmt: skip
        """Add one agent's turns and, in between, its sub-agents'; return its last row and when that ended.

        `started_by` is the row (and its end) that the first turn comes after.
        """
        places = [f"{self.file}: {key}[{k}]" for k in range(len(entries))]
        for place, entry in zip(places, entries, strict=True):
            self._check(place, entry)
        order = sorted((k for k, e in enumerate(entries) if e.requests is None), key=lambda k: entries[k].t)
        spans = {k: _span(entries, k) for k, e in enumerate(entries) if e.requests is not None}
        waiting = sorted(spans, key=lambda k: spans[k][0])
        running: list[tuple[int, float]] = []  # sub-agents' last rows and ends, not yet waited for
        ends: list[tuple[int, float]] = list(started_by)
        previous: _Entry | None = None
        for rank, turn in enumerate([*order, None]):
            sent_s = float("inf") if turn is None else start_s + entries[turn].t
            while waiting and start_s + spans[waiting[0]][0] < sent_s:
                k = waiting.pop(0)
                done = self._sub_agent(entries[k], f"{key}[{k}].requests", start_s + spans[k][0], ends, prefix)
                if done is not None:
                    running.append((done[0], start_s + spans[k][1]) if done[1] > sent_s + _SLACK_S else done)
            if turn is None:
                break
            entry = entries[turn]
            joined = [r for r in running if r[1] <= sent_s + _SLACK_S]
            running = [r for r in running if r[1] > sent_s + _SLACK_S]
            before = ends[-1:]
            # the files' think time is exact where it can be used; times are whole seconds
            if entry.think_time is not None and previous is not None and previous.api_time is not None and not joined:
                delay_s = entry.think_time
            else:
                delay_s = max(0.0, sent_s - max((end for _, end in before + joined), default=sent_s))
            row = self._add(places[turn], entry, sent_s, [r for r, _ in before + joined], delay_s, category, prefix)
            self.rows.pause[row] = _pause(entry, previous, delay_s if before else 0.0)
            took_s = entry.api_time
            if took_s is None:
                took_s = (entry.output_tokens or 0) * self.s_per_token
                if rank + 1 < len(order):
                    took_s = min(took_s, max(0.0, entries[order[rank + 1]].t - entry.t))
            ends.append((row, sent_s + took_s))
            previous = entry
        return max(ends[len(started_by) :], key=lambda e: e[1], default=None)

    def _sub_agent(
        self, entry: _Entry, key: str, start_s: float, ends: list[tuple[int, float]], prefix: tuple[int, int]
    ) -> tuple[int, float] | None:
        parent = next((e for e in reversed(ends) if e[1] <= start_s + _SLACK_S), ends[-1] if ends else None)
        tools = prefix[0] if entry.tool_tokens is None else entry.tool_tokens
        system = prefix[1] if entry.system_tokens is None else entry.system_tokens
        category = self.categories.setdefault(entry.subagent_type or "subagent", len(self.categories))
        return self.agent(entry.requests or [], key, start_s, (parent,) if parent else (), category, (tools, system))

    def _add(
        self, place: str, entry: _Entry, sent_s: float, after: list[int], delay_s: float, category: int,
        prefix: tuple[int, int],
    ) -> int:  # fmt: skip
        rows = self.rows
        try:
            ids = (
                np.array(entry.hash_ids, np.int64) if not any(isinstance(v, str) for v in entry.hash_ids[:1]) else None
            )
        except (OverflowError, ValueError, TypeError):
            ids = None
        if ids is None:
            ids = np.array([number_of(v, self.texts) for v in entry.hash_ids], np.int64)
        most = -(-(entry.input_tokens or 0) // rows.block_tokens)
        if len(ids) > most:
            raise TraceError(
                f"{place}: hash_ids: found {len(ids)} ids, expected at most {most} for {entry.input_tokens} tokens in "
                f"blocks of {rows.block_tokens}"
            )
        entry.hash_ids = []
        rows.ids.append(ids)
        rows.entries.append(entry)
        rows.recorded_s.append(sent_s)
        rows.after.append(after)
        rows.delay_s.append(delay_s)
        rows.pause.append(0)
        rows.session.append(self.session)
        rows.category.append(category)
        rows.prefix.append(prefix)
        return len(rows.ids) - 1

    def _check(self, place: str, entry: _Entry) -> None:
        if not 0 <= entry.t <= _LATEST_S:
            raise found(place, "t", entry.t, f"0 to {_LATEST_S} s")
        for name in ("api_time", "think_time"):
            value = getattr(entry, name)
            if value is not None and not 0 <= value <= _LATEST_S:
                raise found(place, name, value, f"0 to {_LATEST_S} s")
        if entry.duration_ms is not None and not 0 <= entry.duration_ms <= _LATEST_S * 1000:
            raise found(place, "duration_ms", entry.duration_ms, f"0 to {_LATEST_S * 1000} ms")
        for name, value in (("tool_tokens", entry.tool_tokens), ("system_tokens", entry.system_tokens)):
            if value is not None and not 0 <= value <= TOKENS_MOST:
                raise found(place, name, value, f"0 to 2^40 = {TOKENS_MOST} tokens")
        if entry.requests is not None:
            return
        if entry.type == "subagent":
            raise TraceError(f"{place}: found no key 'requests', expected the sub-agent's requests")
        for name, value in (("in", entry.input_tokens), ("out", entry.output_tokens)):
            if value is None:
                raise TraceError(f"{place}: found no key {name!r}, expected a number of tokens")
            if not 0 <= value <= TOKENS_MOST:
                raise found(place, name, value, f"0 to 2^40 = {TOKENS_MOST} tokens")


def _span(entries: Sequence[_Entry], k: int) -> tuple[float, float]:
    """Return when sub-agent `k` started and ended: `t` is its end, unless it would then start before its parent."""
    entry = entries[k]
    inner = entry.requests or []
    run_s = max((e.t + (e.api_time or 0.0) for e in inner), default=0.0)
    length_s = run_s if entry.duration_ms is None else entry.duration_ms / 1000
    starts = [e.t for e in entries[:k] if e.requests is None]
    if entry.duration_ms is None or (starts and entry.t - length_s < starts[0] - _SLACK_S) or entry.t < length_s:
        return entry.t, entry.t + length_s
    return entry.t - length_s, entry.t


def _pause(entry: _Entry, previous: _Entry | None, delay_s: float) -> int:
    """Return what the wait before a turn was: a person's, or a tool's (starting a sub-agent is a tool's)."""
    if delay_s <= 0:
        return 0
    if previous is None or not previous.stop:
        return _TOOL
    return _THINK if previous.stop == "end_turn" or "tool_result" not in entry.input_types else _TOOL


@dataclass(slots=True)
class _Part:
    """The blocks of one name space."""

    rows: _Rows
    last: np.ndarray[Any, Any]
    parent: np.ndarray[Any, Any]
    position: np.ndarray[Any, Any]
    first_row: np.ndarray[Any, Any]
    original: np.ndarray[Any, Any]


def _intern(rows: _Rows, space: int) -> _Part:
    offsets = np.zeros(len(rows.ids) + 1, np.int64)
    np.cumsum([len(x) for x in rows.ids], out=offsets[1:])
    last, parent, position, first_row, original, _ = intern_chains(
        np.concatenate(rows.ids), offsets, np.zeros(len(rows.ids), np.int32)
    )
    rows.ids = []
    return _Part(rows, last, parent, position, first_row, original)


def _assemble(
    parts: Sequence[_Part], names: Sequence[str], categories: tuple[str, ...], files: Sequence[Path], path: Path,
    share_system: bool, times: str, start_every_s: float,
) -> RequestTrace:  # fmt: skip
    size = parts[0].rows.block_tokens
    canonical: dict[tuple[int, int, str], list[int]] = {}
    columns: dict[str, list[Any]] = {k: [] for k in ("last", "parent", "length", "space")}
    after: list[list[int]] = []
    arrival: list[float] = []
    blocks = requests = 0
    for number, part in enumerate(parts):
        rows = part.rows
        own = np.arange(blocks, blocks + len(part.parent))
        if share_system:
            _merge_prefixes(part, own, canonical)
        tokens = np.array([e.input_tokens for e in rows.entries], np.int64)
        length = np.minimum(tokens[part.first_row] - part.position.astype(np.int64) * size, size)
        known = np.append(own, -1)
        columns["last"].append(known[part.last])
        columns["parent"].append(known[part.parent])
        columns["length"].append(length)
        columns["space"].append(np.full(len(own), number))
        base = len(arrival)
        for k, waits in enumerate(rows.after):
            begin_s = rows.session[k] * start_every_s
            if times == "recorded":
                arrival.append(begin_s + rows.recorded_s[k])
            elif waits:
                arrival.append(max(arrival[base + w] for w in waits) + rows.delay_s[k])
            else:
                arrival.append(begin_s + rows.recorded_s[k])
            if arrival[-1] > _LATEST_S:
                key = f"request {k} of {rows.name or 'the files'}"
                raise found(f"{path}", key, arrival[-1], f"up to {_LATEST_S} s")
            after.append([requests + w for w in waits])
        blocks += len(own)
        requests += len(rows.after)
    return _trace(parts, columns, after, arrival, names, categories, files, path)


def _trace(
    parts: Sequence[_Part], columns: dict[str, list[Any]], after: list[list[int]], arrival: list[float],
    names: Sequence[str], categories: tuple[str, ...], files: Sequence[Path], path: Path,
) -> RequestTrace:  # fmt: skip
    def every(name: str) -> list[Any]:
        return list(chain.from_iterable(getattr(p.rows, name) for p in parts))

    entries: list[_Entry] = every("entries")
    return RequestTrace.from_chains(
        name=path.name.split(".")[0],
        source=f"{NAME}: {len(files)} file{'s' if len(files) != 1 else ''} of {path.name}",
        block_tokens=parts[0].rows.block_tokens,
        arrival_s=arrival,
        input_tokens=[e.input_tokens for e in entries],
        output_tokens=[e.output_tokens for e in entries],
        last_block=np.concatenate(columns["last"]),
        session=every("session"),
        session_names=names,
        category=every("category"),
        category_names=categories,
        after=after,
        delay_s=every("delay_s"),
        pause=every("pause"),
        block_parent=np.concatenate(columns["parent"]),
        block_length=np.concatenate(columns["length"]),
        block_id=np.concatenate([p.original for p in parts]),
        block_namespace=np.concatenate(columns["space"]),
        namespaces=[p.rows.name for p in parts],
    )


def _merge_prefixes(part: _Part, own: np.ndarray[Any, Any], canonical: dict[tuple[int, int, str], list[int]]) -> None:
    """Let the tools and system prompt of each agent be the blocks of the first session that had the same.

    `own` (the final ids of the part's blocks) is changed in place. A root belongs to the first agent that began with
    it, so that what a session's own turns share they still share.
    """
    roots: set[int] = set()
    for row, entry in enumerate(part.rows.entries):
        path: list[int] = []
        block = int(part.last[row])
        while block >= 0:
            path.append(block)
            block = int(part.parent[block])
        path.reverse()
        if not path or path[0] in roots:
            continue
        roots.add(path[0])
        key = (*part.rows.prefix[row], entry.model)
        whole = sum(part.rows.prefix[row]) // part.rows.block_tokens
        common = canonical.setdefault(key, [])
        for k, block in enumerate(path[: min(whole, len(path))]):
            if k < len(common):
                own[block] = common[k]
            else:
                common.append(int(own[block]))
