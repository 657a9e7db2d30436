"""kvsim's own files: every column of a trace, in one .npz."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from kvsim._trace_file import load_npz, save_npz
from kvsim.trace import AccessTrace, RequestTrace
from kvsim.traces._io import is_compressed, read_all

NAME = "kvsim-npz"
TITLE = "kvsim's own .npz: requests or accesses, every column kept"

write = save_npz


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file is one of these."""
    return (0.95 if b"head.json" in head else 0.3) if head[:4] == b"PK\x03\x04" else 0.0


def read(path: str | PathLike[str]) -> RequestTrace | AccessTrace:
    """Read a trace that kvsim saved; TraceError for anything else."""
    path = Path(path)
    return load_npz(path, read_all(path) if is_compressed(path) else None)
