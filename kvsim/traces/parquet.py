"""kvsim's own traces as Parquet, for other tools to read (needs PyArrow).

Of requests, a row is a request. The blocks that it was the first to name stand in its row as lists (`block_parent`,
`block_id` …), so block b is the b-th entry of these lists taken together. Of accesses, a row is a step, its accesses
lists; the table of blocks (`blocks/…`) stands in the first row.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from kvsim._trace_file import load_parquet, save_parquet
from kvsim.trace import AccessTrace, RequestTrace
from kvsim.traces._io import is_compressed, read_all

NAME = "parquet"
TITLE = "kvsim's own .parquet: every column kept (extra 'parquet')"

write = save_parquet


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file is one of these."""
    return 0.9 if head[:4] == b"PAR1" else 0.0


def read(path: str | PathLike[str]) -> RequestTrace | AccessTrace:
    """Read a trace that kvsim saved; TraceError for anything else."""
    path = Path(path)
    return load_parquet(path, read_all(path) if is_compressed(path) else None)
