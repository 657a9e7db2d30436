"""Azure's LLM inference traces: a CSV with times and lengths, without ids.

`TIMESTAMP,ContextTokens,GeneratedTokens`, times as `2023-11-16 18:17:03.9799600` (UTC, with or without an offset of
zero).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvsim.errors import TraceError
from kvsim.trace import TOKENS_MOST, RequestTrace
from kvsim.traces._io import base_name, found, line_blocks, number_lines

NAME = "azure"
TITLE = "Azure LLM inference CSV: times and lengths, no ids (nothing is shared)"

_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BLOCK_TOKENS = 64  # means nothing until requests get ids: here none do
_Ints = NDArray[np.int64]


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file is one of these."""
    return 0.95 if _names(head.split(b"\n", 1)[0]) == [h.lower() for h in _HEADER] else 0.0


def _names(line: bytes) -> list[str]:
    return [name.strip().lower() for name in line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split(",")]


def read(path: str | PathLike[str]) -> RequestTrace:
    """Read such a file; the first request arrives at time 0.

    Raises
    ------
    TraceError
        With the line, the column, what was found and what was expected.
    """
    path = Path(path)
    times: list[_Ints] = []
    lengths: list[_Ints] = []
    for line, block in line_blocks(path):
        rows = list(number_lines(line, block))
        if line == 1:
            if not rows or _names(rows[0][1]) != [h.lower() for h in _HEADER]:
                raise found(f"{path}: line 1", "header", rows[0][1][:60] if rows else b"", ",".join(_HEADER))
            rows = rows[1:]
        if rows:
            try:
                time, length = _columns([text for _, text in rows])
            except (ValueError, OverflowError):
                for number, text in rows:
                    _check(f"{path}: line {number}", text)
                raise TraceError(
                    f"{path}: line {line}: found no rows that can be read, expected {','.join(_HEADER)}"
                ) from None
            bad = np.flatnonzero(np.isnat(time) | ((length < 0) | (length > TOKENS_MOST)).any(axis=1))
            if bad.size:
                _check(f"{path}: line {rows[int(bad[0])][0]}", rows[int(bad[0])][1])
            times.append(time.astype(np.int64))
            lengths.append(length)
    if not times:
        raise TraceError(f"{path}: found a header and no requests, expected one request or more")
    arrival = np.concatenate(times)
    tokens = np.concatenate(lengths)
    since = arrival - arrival.min()
    if since.max() > (1 << 62) // 1000:
        raise found(
            f"{path}", "TIMESTAMP", f"{since.max() / 1e9:.0f} s between the first and the last", "53 days at most"
        )
    return RequestTrace.from_lists(
        name=base_name(path).removesuffix(".csv"),
        source=f"{NAME}: {path.name}",
        block_tokens=_BLOCK_TOKENS,
        arrival_ps=since * 1000,
        input_tokens=tokens[:, 0],
        output_tokens=tokens[:, 1],
    )


def _time(text: str) -> str:
    text = text.strip()
    return text.removesuffix("Z").removesuffix("+00:00").strip()


def _columns(lines: list[bytes]) -> tuple[NDArray[np.datetime64], _Ints]:
    """Return times (to the nanosecond) and both lengths (rows, 2); ValueError where a line is no row."""
    cells = [line.decode("utf-8").split(",") for line in lines]
    if any(len(row) != 3 for row in cells):
        raise ValueError("columns")
    times = np.array([_time(row[0]) for row in cells], "datetime64[ns]")
    return times, np.array([(int(row[1]), int(row[2])) for row in cells], np.int64)


def _check(place: str, text: bytes) -> None:
    """Raise TraceError if this line is the wrong one."""
    cells = text.decode("utf-8", "replace").strip().split(",")
    if len(cells) != 3:
        raise TraceError(f"{place}: found {len(cells)} columns, expected 3: {','.join(_HEADER)}")
    try:
        missing = bool(np.isnat(np.datetime64(_time(cells[0]), "ns")))
    except ValueError:
        missing = True
    if missing:
        raise found(place, _HEADER[0], cells[0], "a time like 2023-11-16 18:17:03.9799600")
    for name, cell in zip(_HEADER[1:], cells[1:], strict=True):
        try:
            tokens = int(cell)
        except ValueError:
            raise found(place, name, cell, "a whole number of tokens") from None
        if not 0 <= tokens <= TOKENS_MOST:
            raise found(place, name, tokens, f"0 to 2^40 = {TOKENS_MOST} tokens")
