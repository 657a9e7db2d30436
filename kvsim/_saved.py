"""One file that holds a result: .npz (small) or .json (readable), the same content in both."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvsim._files import atomic_file
from kvsim._table import plain
from kvsim.errors import KvsimError, shown

__all__ = ["FORMAT_VERSION", "check_suffix", "config_hash", "kvsim_version", "load", "save"]

FORMAT_VERSION = 1
_SUFFIXES = (".npz", ".json")
Arrays = Mapping[str, np.ndarray[Any, Any]]


def kvsim_version() -> str:
    """Return the version of this kvsim."""
    version = getattr(sys.modules.get("kvsim"), "__version__", None)
    if version is None:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            version = installed("kvsim")
        except PackageNotFoundError:
            version = "unknown"
    return str(version)


def config_hash(inputs: Mapping[str, Any]) -> str:
    """Return 16 hex digits that change when anything in `inputs` does."""
    text = json.dumps(plain(inputs), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a file that a result can be saved to; KvsimError for any other."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise KvsimError(f"{path}: found the ending {shown(suffix)}, expected .npz or .json")
    return suffix


def save(path: str | os.PathLike[str], kind: str, document: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a document and its arrays to one file, whole or not at all.

    Raises
    ------
    KvsimError
        `path` ends in neither .npz nor .json, or cannot be written.
    """
    suffix = check_suffix(path)
    head = {"format": f"kvsim {kind}", "format_version": FORMAT_VERSION, **plain(document)}
    if suffix == ".npz":
        meta = np.array(json.dumps(head, allow_nan=False))
        with atomic_file(path) as file:
            members: dict[str, Any] = {f"array/{k}": v for k, v in arrays.items()}
            np.savez_compressed(file, meta=meta, **members)
        return
    head["arrays"] = {
        k: {"dtype": str(v.dtype), "shape": list(v.shape), "data": v.ravel().tolist()} for k, v in arrays.items()
    }
    with atomic_file(path) as file:
        file.write((json.dumps(head, allow_nan=False, indent=1) + "\n").encode())


def load(path: str | os.PathLike[str], kind: str = "") -> tuple[str, dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Read what :func:`save` wrote: kind, document, arrays.

    Raises
    ------
    KvsimError
        No file of kvsim's, one of another `kind`, a damaged one, or a format version that this kvsim does not know.
    OSError
        The file cannot be read.
    """
    data = Path(path).read_bytes()
    damaged = (ValueError, KeyError, TypeError, AttributeError, OSError, zipfile.BadZipFile, zlib.error, RecursionError)
    packed = data[:2] == b"PK"
    try:
        document = _npz_document(data) if packed else json.loads(data)
        found, version = document["format"], document["format_version"]
    except damaged as error:
        raise _damaged(path, error) from None
    if not str(found).startswith("kvsim ") or (kind and found != f"kvsim {kind}"):
        raise KvsimError(f"{path}: found format {shown(found)}, expected 'kvsim {kind or 'result'}'")
    if version != FORMAT_VERSION:
        raise KvsimError(
            f"{path}: found format version {shown(version)}, expected {FORMAT_VERSION} "
            f"(this is kvsim {kvsim_version()}, the file is from {document.get('kvsim_version', 'an unknown one')})"
        )
    try:
        arrays = _npz_arrays(data) if packed else _json_arrays(document.pop("arrays"))
    except damaged as error:
        raise _damaged(path, error) from None
    return found.removeprefix("kvsim "), document, arrays


def _damaged(path: str | os.PathLike[str], error: BaseException) -> KvsimError:
    reason = " ".join(str(error).split())[:80] or type(error).__name__
    return KvsimError(f"{path}: found no kvsim result ({reason}), expected a file saved by kvsim")


def _npz_document(data: bytes) -> Any:
    with np.load(io.BytesIO(data), allow_pickle=False) as members:
        return json.loads(str(members["meta"]))


def _npz_arrays(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as members:
        return {k.removeprefix("array/"): members[k] for k in members.files if k != "meta"}


def _json_arrays(written: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {k: np.array(v["data"], dtype=np.dtype(v["dtype"])).reshape(v["shape"]) for k, v in written.items()}
