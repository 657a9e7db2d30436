"""libCacheSim's oracleGeneral: binary records of 24 bytes, one an access.

A record is, little-endian and without padding, uint32 time in seconds, uint64 id, uint32 size in bytes and int64 the
record of the id's next access (-1 or the largest integer for none; kvsim finds next uses by itself).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from kvsim.errors import TraceError
from kvsim.trace import AccessTrace
from kvsim.traces._io import base_name, found, pieces
from kvsim.traces._raw import access_trace

NAME = "oracle-general"
TITLE = "libCacheSim oracleGeneral: 24-byte records of time, id, size and next access"

_RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])


def detect(path: Path, head: bytes) -> float:
    """Return how sure it is that the file is one of these: there is no mark, so names and plausible records count."""
    name = path.name.lower()
    if "oraclegeneral" in name.replace("_", "").replace("-", ""):
        return 0.9
    records = np.frombuffer(head, _RECORD, len(head) // 24)
    if len(records) < 2 or b"\x00" not in head or head[:2] == b"PK" or head[:4] == b"PAR1":
        return 0.0
    steps = np.diff(records["time"].astype(np.int64))
    row = np.arange(len(records))
    later = (records["next"] > row) | (records["next"] == -1)
    return 0.6 if (steps >= 0).all() and (steps <= 86400).all() and later.all() else 0.0


def read(path: str | PathLike[str]) -> AccessTrace:
    """Read such a file as look-ups of data, one step a distinct second, the first at time 0.

    Raises
    ------
    TraceError
        An empty file, or one that ends within a record.
    """
    path = Path(path)
    parts = []
    rest, records = b"", 0
    for data in pieces(path):
        data = rest + data
        whole = len(data) // _RECORD.itemsize
        # a copy of the three columns in use: the piece itself is not kept
        parts.append(np.frombuffer(data, _RECORD, whole)[["time", "id", "size"]].copy())
        records += whole
        rest = data[whole * _RECORD.itemsize :]
    if rest:
        raise TraceError(f"{path}: record {records}: found {len(rest)} bytes at the end, expected records of 24 bytes")
    if not records:
        raise TraceError(f"{path}: found an empty file, expected records of 24 bytes")
    time = np.concatenate([p["time"] for p in parts]).astype(np.int64)
    # ids are 64-bit words; kvsim's are signed, which tells them apart as well
    ids = np.concatenate([p["id"] for p in parts]).view(np.int64)
    sizes = np.concatenate([p["size"] for p in parts]).astype(np.int64)
    since = time - time.min()
    if since.max() > 4_600_000:
        row = int(since.argmax())
        raise found(f"{path}: record {row}", "time", int(time[row]), "at most 53 days after the earliest")
    return access_trace(f"{path}", base_name(path).removesuffix(".bin"), since * 10**12, ids, sizes)
