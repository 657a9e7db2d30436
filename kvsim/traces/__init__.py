"""Trace files: one module a format, found by itself.

A module of this package (or an object under the entry-point group `kvsim.formats`) is a format when it has NAME, TITLE,
`detect(path, head) -> float` (how sure it is, 0 to 1, given up to 64 KiB of decompressed content; a directory has
none) and `read(path, **options) -> RequestTrace | AccessTrace`; `write(trace, path)` is optional. Every reader
takes .gz and .zst as well.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from kvsim.errors import ConfigError, TraceError, UnknownNameError
from kvsim.registry import Registry
from kvsim.trace import AccessTrace, RequestTrace
from kvsim.traces._io import head

__all__ = ["FORMATS", "convert", "detect", "formats", "read_trace", "write_trace"]

FORMATS = Registry("trace format", "kvsim.formats", package="kvsim.traces")
_ENDINGS = {".npz": "kvsim-npz", ".parquet": "parquet", ".jsonl": "mooncake"}


def formats() -> dict[str, str]:
    """Return the known formats: name to one line that says what it is."""
    return {name: str(getattr(FORMATS.get(name), "TITLE", "")) for name in FORMATS.names()}


def detect(path: str | os.PathLike[str]) -> str:
    """Return the name of the format that a file or directory seems to have.

    Raises
    ------
    TraceError
        It does not exist, cannot be read, is empty, or looks like no known format.
    """
    path = Path(path)
    if path.is_dir():
        start = b""
    else:
        start = head(path)
        if not start.strip():
            raise TraceError(f"{path}: found an empty file, expected a trace")
    surest, best = "", 0.0
    for name in FORMATS.names():
        sure = float(FORMATS.get(name).detect(path, start))
        if sure > best:
            surest, best = name, sure
    if not surest:
        what = "a directory with no trace files" if path.is_dir() else f"content that begins {start[:24]!r}"
        raise TraceError(f"{path}: found {what}, expected one of the formats {', '.join(FORMATS.names())}")
    return surest


def read_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
    block_tokens: int | None = None,
    first: int | None = None,
    last: int | None = None,
    rate_scale: float | None = None,
    **options: Any,
) -> RequestTrace | AccessTrace:
    """Read a trace file (or a directory of them).

    Parameters
    ----------
    format : its name (see :func:`formats`); found out from the content where left out.
    block_tokens : cut the trace's blocks to an engine's block size, which must divide theirs.
    first, last : keep only so many requests (or steps, of an access trace) at either end; `first` is applied first.
    rate_scale : let arrivals come so many times as often.
    options : what the format's reader takes.

    Raises
    ------
    TraceError
        The file, the line or record, the key, what was found and what was expected.
    UnknownNameError
        An unknown format or option.
    """
    path = Path(path)
    if not path.exists():
        raise TraceError(f"{path}: no such file or directory, expected a trace")
    name = detect(path) if format is None else format
    reader = FORMATS.get(name)
    _check_options(name, reader, options)
    trace: RequestTrace | AccessTrace = reader.read(path, **options)
    if block_tokens is not None:
        if not isinstance(trace, RequestTrace):
            raise TraceError(
                f"{path}: block_tokens: found {block_tokens}, expected none: an access trace has no prompts"
            )
        trace = trace.split(block_tokens)
    if first is not None:
        trace = trace.first(first)
    if last is not None:
        trace = trace.last(last)
    return trace if rate_scale is None else trace.scaled(rate_scale)


def _check_options(name: str, reader: Any, options: dict[str, Any]) -> None:
    parameters = inspect.signature(reader.read).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UnknownNameError(option, known, f"option of trace format {name}")


def write_trace(
    trace: RequestTrace | AccessTrace,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
) -> None:
    """Write a trace, whole or not at all.

    Parameters
    ----------
    format : a format that can be written; by default what the ending of `path` says (.npz, .parquet, .jsonl).

    Raises
    ------
    UnknownNameError
        An unknown format.
    ConfigError
        A format that can only be read, or an ending that says nothing.
    TraceError
        A trace that the format cannot hold.
    """
    if format is None:
        ending = Path(path).suffix.lower()
        if ending not in _ENDINGS:
            raise ConfigError(
                f"{path}: found the ending {ending!r}, expected one of {', '.join(_ENDINGS)} or a named format"
            )
        format = _ENDINGS[ending]  # noqa: A001
    writer = getattr(FORMATS.get(format), "write", None)
    if writer is None:
        able = [n for n in FORMATS.names() if hasattr(FORMATS.get(n), "write")]
        raise ConfigError(f"{path}: format {format!r} can only be read, expected one of {', '.join(able)}")
    writer(trace, path)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    **options: Any,
) -> RequestTrace | AccessTrace:
    """Read `source`, write it to `target`, and return the trace; options as for :func:`read_trace`."""
    trace = read_trace(source, format=source_format, **options)
    write_trace(trace, target, format=target_format)
    return trace
