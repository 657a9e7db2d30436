"""Access traces as CSV: a row an access, with a time, an id and a size."""

from __future__ import annotations

import csv
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvsim.errors import TraceError, UnknownNameError
from kvsim.trace import TIME_MOST_PS, AccessTrace
from kvsim.traces._io import base_name, found, line_blocks, number_lines, number_of
from kvsim.traces._raw import access_trace

NAME = "access-csv"
TITLE = "CSV of accesses: time, id, size; columns, unit and delimiter can be chosen"

_UNITS_PS = {"s": 10**12, "ms": 10**9, "us": 10**6, "ns": 10**3, "ps": 1}
_Ints = NDArray[np.int64]


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file is one of these."""
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace").lower()
    names = {name.strip().strip('"') for name in first.split(",")}
    return 0.8 if {"time", "id"} <= names else 0.0


def read(
    path: str | PathLike[str],
    *,
    time_column: str | int = "time",
    id_column: str | int = "id",
    size_column: str | int | None = "size",
    time_unit: str = "s",
    delimiter: str = ",",
    header: bool = True,
) -> AccessTrace:
    """Read such a file as look-ups of data, one step a distinct time, the first at time 0.

    Parameters
    ----------
    time_column, id_column, size_column : the name of a column, or its number from 0; without sizes
        (None) all are 1 byte.
    time_unit : s, ms, us, ns or ps.
    delimiter : one character.
    header : whether the first line names the columns (else these are numbers).

    Raises
    ------
    TraceError
        With the line, the column, what was found and what was expected.
    UnknownNameError
        No column of that name.
    """
    path = Path(path)
    if time_unit not in _UNITS_PS:
        raise UnknownNameError(time_unit, _UNITS_PS, "time_unit", place=f"{path}")
    if len(delimiter) != 1:
        raise found(f"{path}", "delimiter", delimiter, "one character")
    wanted = (time_column, id_column) if size_column is None else (time_column, id_column, size_column)
    times: list[_Ints] = []
    ids: list[_Ints] = []
    sizes: list[_Ints] = []
    texts: dict[str, int] = {}
    where: list[int] = [] if header else [_number(path, column) for column in wanted]
    for line, block in line_blocks(path):
        rows = list(number_lines(line, block))
        if not rows:
            continue
        if not where:
            names = next(csv.reader([_text(path, *rows[0])], delimiter=delimiter))
            where = [_place(path, column, [name.strip() for name in names]) for column in wanted]
            rows = rows[1:]
        cells = list(csv.reader([_text(path, number, text) for number, text in rows], delimiter=delimiter))
        if len(cells) != len(rows):
            raise TraceError(f"{path}: line {line}: found a quoted value over several lines, expected one line a row")
        for (number, _), row in zip(rows, cells, strict=True):
            if len(row) <= max(where):
                raise TraceError(f"{path}: line {number}: found {len(row)} columns, expected {max(where) + 1} or more")
        lines = [number for number, _ in rows]
        times.append(_times(path, lines, [row[where[0]] for row in cells], _UNITS_PS[time_unit]))
        ids.append(_ids([row[where[1]].strip() for row in cells], texts))
        sizes.append(
            np.ones(len(cells), np.int64) if size_column is None else _sizes(path, lines, [r[where[2]] for r in cells])
        )
    time = np.concatenate(times) if times else np.zeros(0, np.int64)
    if not len(time):
        raise TraceError(f"{path}: found a header and no accesses, expected one access or more")
    labels = {number: text for text, number in texts.items()}
    return access_trace(
        f"{path}", base_name(path).removesuffix(".csv"), time - time.min(), np.concatenate(ids), np.concatenate(sizes),
        labels=labels,
    )  # fmt: skip


def _text(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        raise TraceError(
            f"{path}: line {number}: {error.reason} at byte {error.start}, expected text in UTF-8"
        ) from None


def _number(path: Path, column: str | int) -> int:
    try:
        number = int(column)
    except ValueError:
        number = -1
    if number < 0:
        raise found(f"{path}", "column", column, "a number from 0, where the file has no header")
    return number


def _place(path: Path, column: str | int, names: list[str]) -> int:
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, str) and not column.isdigit():
        lowered = [name.lower() for name in names]
        if column.lower() in lowered:
            return lowered.index(column.lower())
        raise UnknownNameError(column, names, "column", place=f"{path}: line 1")
    if not 0 <= int(column) < len(names):
        raise found(f"{path}: line 1", "column", column, f"0 to {len(names) - 1}")
    return int(column)


def _times(path: Path, lines: list[int], cells: list[str], unit_ps: int) -> _Ints:
    """Return times in picoseconds; whole numbers stay exact."""
    out = np.empty(len(cells), np.int64)
    most = TIME_MOST_PS // unit_ps
    for k, cell in enumerate(cells):
        try:
            time = int(cell)
            exact = time * unit_ps
        except ValueError:
            try:
                value = float(cell)
                exact = round(value * unit_ps)
            except (ValueError, OverflowError):
                raise found(f"{path}: line {lines[k]}", "time", cell, "a finite number") from None
        if not -TIME_MOST_PS <= exact <= TIME_MOST_PS:
            raise found(f"{path}: line {lines[k]}", "time", cell, f"at most {most} (53 days)")
        out[k] = exact
    return out


def _ids(cells: list[str], texts: dict[str, int]) -> _Ints:
    return np.fromiter((_id(cell, texts) for cell in cells), np.int64, len(cells))


def _id(cell: str, texts: dict[str, int]) -> int:
    # only what a number would be written as is one: 007 and 7 are different ids
    if cell.isdigit() and cell.isascii() and (cell[0] != "0" or cell == "0") and len(cell) < 19:
        return int(cell)
    return number_of(cell, texts)


def _sizes(path: Path, lines: list[int], cells: list[str]) -> _Ints:
    out = np.empty(len(cells), np.int64)
    for k, cell in enumerate(cells):
        try:
            size = int(cell)
        except ValueError:
            raise found(f"{path}: line {lines[k]}", "size", cell, "a whole number of bytes") from None
        if not 0 <= size <= 1 << 60:
            raise found(f"{path}: line {lines[k]}", "size", cell, "0 to 2^60 bytes")
        out[k] = size
    return out
