"""kvsim's own trace files: .npz and, with PyArrow, .parquet; each for both sorts of trace."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kvsim._files import atomic_file
from kvsim._table import missing
from kvsim.errors import KvsimError, TraceError, shown
from kvsim.trace import AccessTrace, BlockTable, RequestTrace, TraceMeta

__all__ = ["FORMAT_VERSION", "load", "load_npz", "load_parquet", "save", "save_npz", "save_parquet"]

FORMAT_VERSION = 1
_KEY = b"kvsim"
_BLOCKS = "blocks/"
_ACCESSES = {"block", "op", "bytes"}
_OWN = {"block_parent", "block_position", "block_length", "block_id", "block_namespace", "block_label"}
_LISTS = ("after", "data")
_Trace = RequestTrace | AccessTrace


def save(trace: _Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace to the sort of file that the ending of `path` says, whole or not at all."""
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        save_npz(trace, path)
    elif suffix == ".parquet":
        save_parquet(trace, path)
    else:
        raise TraceError(f"{path}: found the ending {shown(suffix)}, expected .npz or .parquet")


def load(path: str | os.PathLike[str]) -> _Trace:
    """Read what :func:`save` wrote."""
    with open(path, "rb") as file:
        head = file.read(4)
    return load_parquet(path) if head == b"PAR1" else load_npz(path)


def _head(trace: _Trace) -> dict[str, Any]:
    kind = "requests" if isinstance(trace, RequestTrace) else "accesses"
    return {"format": f"kvsim {kind}", "format_version": FORMAT_VERSION}


def _columns(thing: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a trace apart: plain values, and arrays."""
    values = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
    arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
    return {k: v for k, v in values.items() if k not in arrays}, arrays


def _parts(trace: _Trace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a trace's plain values and its arrays, those of an access trace's blocks by ``blocks/NAME``."""
    plain, arrays = _columns(trace)
    if isinstance(trace, AccessTrace):
        table, table_arrays = _columns(plain.pop("blocks"))
        rest = {k: v for k, v in plain.items() if k != "meta"}
        plain = {"meta": dataclasses.asdict(trace.meta), "blocks": table, **rest}
        arrays |= {f"{_BLOCKS}{k}": v for k, v in table_arrays.items()}
    return plain, arrays


def _whole(kind: str, fields: dict[str, Any], arrays: dict[str, Any]) -> _Trace:
    """Return the trace that :func:`_parts` took apart."""
    if kind == "requests":
        return RequestTrace(**fields, **arrays)
    meta = TraceMeta(**{k: _tuples(v) for k, v in fields.pop("meta").items()})
    table = {k: _tuples(v) for k, v in fields.pop("blocks").items()}
    table |= {k.removeprefix(_BLOCKS): arrays.pop(k) for k in list(arrays) if k.startswith(_BLOCKS)}
    return AccessTrace(blocks=BlockTable(**table), meta=meta, **fields, **arrays)


def save_npz(trace: _Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace to a .npz file."""
    plain, arrays = _parts(trace)
    head = json.dumps({**_head(trace), "fields": plain})
    with atomic_file(path) as file:
        members: dict[str, Any] = {"head.json": np.array(head), **arrays}
        np.savez_compressed(file, **members)


def load_npz(path: str | os.PathLike[str], content: bytes | None = None) -> _Trace:
    """Read a .npz file (or its `content`); TraceError if it is damaged, another's, or of an unknown version."""
    try:
        with _opened(path, content) as file, np.load(file, allow_pickle=False) as members:
            if not isinstance(members, np.lib.npyio.NpzFile) or "head.json" not in members.files:
                raise TraceError(f"{path}: found no entry 'head.json', expected a trace saved by kvsim")
            head = json.loads(str(members["head.json"]))
            arrays: dict[str, Any] = {k: members[k] for k in members.files if k != "head.json"}
        kind = _checked_head(path, head)
        fields = {k: _tuples(v) for k, v in head["fields"].items()}
        return _whole(kind, fields, arrays)
    except KvsimError as error:
        raise TraceError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file, expected a trace") from None
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        EOFError,
        OSError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        line = " ".join(str(error).split())[:80] or type(error).__name__
        raise TraceError(f"{path}: damaged or not kvsim's ({line}), expected a trace saved by kvsim") from None


def _opened(path: str | os.PathLike[str], content: bytes | None) -> BinaryIO:
    return open(path, "rb") if content is None else io.BytesIO(content)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checked_head(path: str | os.PathLike[str], head: Any) -> str:
    found = head.get("format") if isinstance(head, dict) else None
    if found not in ("kvsim requests", "kvsim accesses"):
        raise TraceError(f"{path}: found format {shown(found)}, expected 'kvsim requests' or 'kvsim accesses'")
    version = head.get("format_version")
    if version != FORMAT_VERSION:
        raise TraceError(f"{path}: found format version {shown(version)}, expected {FORMAT_VERSION}")
    return str(found).removeprefix("kvsim ")


def save_parquet(trace: _Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace to a Parquet file (needs PyArrow).

    A row a request, its own blocks, dependencies and data as lists, and the table of data as a list of the first row;
    or a row a step, its accesses as lists, and the table of blocks as lists of the first row.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow", "parquet", error) from None
    plain, arrays = _parts(trace)
    columns: dict[str, Any] = {}
    if isinstance(trace, RequestTrace):
        labels = plain.pop("block_label")
        if len(trace.data_bytes) and not trace.n:
            raise TraceError(f"{path}: found data and no requests, expected one at least (or save as .npz)")
        cuts = dict.fromkeys(_OWN, trace.own_offsets)
        cuts |= {name: arrays.pop(f"{name}_offsets") for name in _LISTS}
        cuts["data_bytes"] = np.append(0, np.full(trace.n, len(trace.data_bytes)))
        if labels is not None:
            columns["block_label"] = pa.LargeListArray.from_arrays(
                pa.array(trace.own_offsets), pa.array(labels, pa.string())
            )
    else:
        steps = len(trace.arrival_ps)
        if not steps:
            raise TraceError(f"{path}: found an access trace without steps, expected one at least (or save as .npz)")
        first = np.append(0, np.full(steps, trace.blocks.n, dtype=np.int64))
        cuts = dict.fromkeys(_ACCESSES, arrays.pop("offsets"))
        cuts |= {name: first for name in arrays if name.startswith(_BLOCKS)}
    for name, array in arrays.items():
        if array.ndim == 2:  # by operation
            array = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
        values = pa.array(array) if isinstance(array, np.ndarray) else array
        columns[name] = values if name not in cuts else pa.LargeListArray.from_arrays(pa.array(cuts[name]), values)
    head = json.dumps({**_head(trace), "fields": plain})
    table = pa.table(columns).replace_schema_metadata({_KEY: head.encode()})
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def load_parquet(path: str | os.PathLike[str], content: bytes | None = None) -> _Trace:
    """Read what :func:`save_parquet` wrote, from the file or from its `content`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow", "parquet", error) from None
    try:
        with _opened(path, content) as file:
            table = pq.read_table(file)
        metadata = table.schema.metadata or {}
        if _KEY not in metadata:
            raise TraceError(f"{path}: found no key 'kvsim' in the metadata, expected a trace saved by kvsim")
        head = json.loads(metadata[_KEY])
        kind = _checked_head(path, head)
        fields = {k: _tuples(v) for k, v in head["fields"].items()}
        if kind == "requests":
            fields.setdefault("block_label", None)
        arrays: dict[str, Any] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if pa.types.is_large_list(column.type):
                if name in (*_LISTS, "block"):
                    offsets = "offsets" if name == "block" else f"{name}_offsets"
                    arrays[offsets] = column.offsets.to_numpy().astype(np.int64)
                column = column.flatten()
            if pa.types.is_fixed_size_list(column.type):
                width = column.type.list_size
                arrays[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            elif name == "block_label":
                fields[name] = tuple(column.to_pylist())
            else:
                arrays[name] = column.to_numpy(zero_copy_only=False)
        return _whole(kind, fields, arrays)
    except KvsimError as error:
        raise TraceError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file, expected a trace") from None
    except (ValueError, TypeError, KeyError, OSError, pa.ArrowException) as error:
        line = " ".join(str(error).split())[:80]
        raise TraceError(f"{path}: damaged or not kvsim's ({line}), expected a trace saved by kvsim") from None
