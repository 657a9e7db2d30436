"""From columns of (time, id, size) to an access trace of plain data: one step a distinct time, a look-up a row."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.errors import TraceError, TraceWarning
from kvsim.trace import TIME_MOST_PS, AccessTrace, BlockTable, TraceMeta
from kvsim_core import intern_ids

__all__ = ["access_trace"]

_SIZE_MOST = 1 << 60


def access_trace(
    place: str,
    name: str,
    time_ps: NDArray[np.int64],
    ids: NDArray[np.int64],
    sizes: NDArray[np.int64],
    *,
    labels: dict[int, str] | None = None,
) -> AccessTrace:
    """Make the trace; a block's bytes are its first size.

    Times need not rise: rows are then sorted stably, with a notice.

    Parameters
    ----------
    labels : what an id stands for where it was text; every id is reported as it was written.

    Raises
    ------
    TraceError
        Too many blocks, or a time or size out of range.
    """
    if time_ps.size and (int(time_ps.min()) < 0 or int(time_ps.max()) > TIME_MOST_PS):
        raise TraceError(
            f"{place}: time: found {int(time_ps.max()) / 1e12:g} s after the first, expected at most 53 days"
        )
    if sizes.size and (int(sizes.min()) < 0 or int(sizes.max()) > _SIZE_MOST):
        row = int(np.flatnonzero((sizes < 0) | (sizes > _SIZE_MOST))[0])
        raise TraceError(f"{place}: record {row}: size: found {sizes[row]}, expected 0 to 2^60 bytes")
    falls = np.flatnonzero(np.diff(time_ps) < 0)
    if falls.size:
        warnings.warn(
            f"{place}: times were not sorted: found record {int(falls[0]) + 1} earlier than the one before it; sorted, "
            "ties in their order",
            TraceWarning,
            stacklevel=3,
        )
        order = np.argsort(time_ps, kind="stable")
        time_ps, ids, sizes = time_ps[order], ids[order], sizes[order]
    try:
        block, original = intern_ids(ids)
    except ValueError as error:
        raise TraceError(f"{place}: {error}") from None
    own = np.zeros(len(original), np.int64)
    own[block[::-1]] = sizes[::-1]  # the last to write is the first to appear
    differs = sizes != own[block]
    begins = np.flatnonzero(np.diff(time_ps, prepend=-1))
    steps = len(begins)
    zero = np.zeros(steps, np.int64)
    columns: dict[str, Any] = {"fixed_ps": zero, "tokens": zero, "stream": zero, "category": zero}
    return AccessTrace(
        blocks=BlockTable.of_data(
            own, tuple((labels or {}).get(k, str(k)) for k in original.tolist()) if labels else None
        ),
        meta=TraceMeta(name=name),
        arrival_ps=time_ps[begins],
        flops=np.zeros((steps, 2)),
        repeat=zero + 1,
        request=zero - 1,
        offsets=np.append(begins, len(block)),
        block=block,
        op=np.zeros(len(block), np.uint8),
        bytes=np.where(differs, sizes, -1) if differs.any() else None,
        **columns,
    )
