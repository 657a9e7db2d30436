"""Bytes of a trace file, decompressed, piece by piece, and the errors that say where one is wrong."""

from __future__ import annotations

import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import msgspec

from kvsim.errors import TraceError, shown
from kvsim.trace import RequestTrace

__all__ = ["base_name", "decode", "decode_lines", "found", "head", "is_compressed", "labelled", "line_blocks",
           "number_lines", "number_of", "pieces", "read_all", "wrong"]  # fmt: skip

T = TypeVar("T")

_PIECE = 1 << 20
_LINE_MOST = 1 << 28
_ZSTD = b"\x28\xb5\x2f\xfd"
_AT = re.compile(r"(?P<text>.*?) - at `\$(?P<path>.*)`", re.S)
_TYPES = re.compile(r"Expected `(?P<expected>.*)`, got `(?P<found>.*)`", re.S)
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")


def base_name(path: Path) -> str:
    """Return the file's name without the ending of a compression."""
    return path.with_suffix("").name if path.suffix.lower() in (".gz", ".zst") else path.name


def pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in pieces, decompressed where it begins like gzip or zstd.

    Raises
    ------
    TraceError
        The file cannot be read, or its compressed data are damaged or end early.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"\x1f\x8b":
                yield from _gzip(path, file)
            elif magic == _ZSTD:
                yield from _zstd(path, file)
            else:
                while data := file.read(_PIECE):
                    yield data
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file, expected a trace") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}, expected a readable file") from None


def _gzip(path: Path, file: BinaryIO) -> Iterator[bytes]:
    done = 0
    with gzip.GzipFile(fileobj=file) as stream:
        while True:
            try:
                data = stream.read(_PIECE)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise TraceError(
                    f"{path}: after {done} decompressed bytes: {_line(error)}, expected complete gzip data"
                ) from None
            if not data:
                return
            done += len(data)
            yield data


def _zstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    done, frame = 0, None
    # 64 KiB of input: what one call returns stays small even where data compress well
    while data := file.read(1 << 16):
        while data:
            if frame is None:
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise TraceError(
                    f"{path}: after {done} decompressed bytes: {_line(error)}, expected complete zstd data"
                ) from None
            done += len(out)
            if out:
                yield out
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise TraceError(f"{path}: after {done} decompressed bytes: the data end early, expected complete zstd data")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:80]


def is_compressed(path: Path) -> bool:
    """Return whether a file begins like gzip or zstd; TraceError if it cannot be read."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}, expected a readable file") from None
    return magic[:2] == b"\x1f\x8b" or magic == _ZSTD


def head(path: Path, size: int = 1 << 16) -> bytes:
    """Return the first `size` bytes of the content, fewer where there are fewer."""
    out = b""
    for data in pieces(path):
        out += data
        if len(out) >= size:
            break
    return out[:size]


def read_all(path: Path) -> bytes:
    """Return the whole content; TraceError if there is none."""
    data = b"".join(pieces(path))
    if not data.strip():
        raise TraceError(f"{path}: found an empty file, expected a trace")
    return data


def line_blocks(path: Path, *, size: int = 4 * _PIECE) -> Iterator[tuple[int, bytes]]:
    """Yield (number of its first line, whole lines) for blocks of about `size` bytes; TraceError for an empty file."""
    rest: list[bytes] = []
    length, line, empty = 0, 1, True
    for data in pieces(path):
        rest.append(data)
        length += len(data)
        if length < size:
            continue
        joined = b"".join(rest)
        cut = joined.rfind(b"\n") + 1
        if not cut:
            if length > _LINE_MOST:
                raise TraceError(f"{path}: line {line}: found more than {_LINE_MOST} bytes, expected a line of text")
            rest = [joined]
            continue
        empty = empty and not joined[:cut].strip()
        yield line, joined[:cut]
        line += joined.count(b"\n", 0, cut)
        rest, length = [joined[cut:]], len(joined) - cut
    joined = b"".join(rest)
    if joined:
        empty = empty and not joined.strip()
        yield line, joined
    if empty:
        raise TraceError(f"{path}: found an empty file, expected a trace")


def number_lines(line: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) for the lines of a block that are not blank."""
    for number, text in enumerate(block.split(b"\n"), start=line):
        if text.strip():
            yield number, text


def wrong(place: str, error: msgspec.DecodeError) -> NoReturn:
    """Raise the TraceError for what msgspec found: the key, what was there, what was expected."""
    text = str(error)
    key = ""
    if at := _AT.fullmatch(text):
        text, key = at["text"], at["path"].lstrip(".") + ": "
    if types := _TYPES.fullmatch(text):
        raise TraceError(f"{place}: {key}found {types['found']}, expected {types['expected']}") from None
    if lacks := _MISSING.fullmatch(text):
        raise TraceError(f"{place}: {key}found no key {lacks['field']!r}, expected one") from None
    if isinstance(error, msgspec.ValidationError):
        raise TraceError(f"{place}: {key}{text}") from None
    raise TraceError(f"{place}: {text[:1].lower()}{text[1:]}, expected JSON") from None


def decode(decoder: msgspec.json.Decoder[T], data: bytes, place: str) -> T:
    """Decode one JSON text; TraceError that names `place` and the key."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        wrong(place, error)
    except (UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{place}: {_line(error)}, expected JSON in UTF-8") from None


def decode_lines(decoder: msgspec.json.Decoder[T], path: Path) -> Iterator[tuple[int, list[T]]]:
    """Yield (number of the first line, rows) for every block of JSON lines; an error names the file and the line.

    Blank lines are only allowed at the end of a block's worth of rows, so row k of a block is line first + k;
    a file with blank lines between is decoded line by line, which keeps the numbers right.
    """
    for line, block in line_blocks(path):
        body = block.rstrip()
        try:
            rows = decoder.decode_lines(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rows = []
        if len(rows) == body.count(b"\n") + 1:
            yield line, rows
            continue
        for number, text in number_lines(line, block):
            yield number, [decode(decoder, text, f"{path}: line {number}")]


def found(place: str, key: str, value: object, expected: str) -> TraceError:
    """Return the error for one value."""
    return TraceError(f"{place}: {key}: found {shown(value)}, expected {expected}")


_FIRST_TEXT = -(1 << 62)


def number_of(value: int | str, texts: dict[str, int]) -> int:
    """Return the number that stands for an id in a trace: itself, or for text and huge integers one far below zero."""
    if isinstance(value, int) and -(1 << 61) < value < 1 << 63:
        return value
    return texts.setdefault(str(value), _FIRST_TEXT + len(texts))


def labelled(trace: RequestTrace, texts: dict[str, int]) -> RequestTrace:
    """Return the trace with the ids as they were written, if any of them was no number."""
    if not texts:
        return trace
    spelled = {number: text for text, number in texts.items()}
    return dataclasses.replace(trace, block_label=tuple(spelled.get(k, str(k)) for k in trace.block_id.tolist()))
