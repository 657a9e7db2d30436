"""The columns of a closed-loop run: a trace's blocks and requests, and the rules for its pauses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvsim._replicas import rounded
from kvsim.accesses import _checkpoints
from kvsim.errors import TraceError, UnknownNameError
from kvsim.model import ATTENTION, FFN
from kvsim.retention import Plan

if TYPE_CHECKING:
    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.retention import Retention
    from kvsim.trace import RequestTrace

__all__ = ["columns", "pauses"]

_FOREVER_PS = 1 << 62  # beyond every moment of a run
_KV, _WEIGHTS, _STATE, _DATA = range(4)
_PREFETCH = {"no": 0, "resume": 1, "lead": 2}
_PS = 1e12

_Ints = NDArray[np.int64]


def columns(
    trace: RequestTrace,
    model: Model,
    *,
    block_tokens: int,
    token_bytes: int,
    outermost: int,
    experts: tuple[int, int, int] = (0, 0, 0),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the table of blocks and the columns of requests.

    Blocks are the trace's KV, then state checkpoints, its data, cached experts, and one without bytes for KV that is in
    no block.

    Parameters
    ----------
    trace, model : what runs.
    block_tokens : of an engine's block; room is taken in these.
    token_bytes : of KV that a token stores.
    outermost : the place on the ladder where data live.
    experts : how many cached experts there are, the bytes of one, and the place on the ladder where they live.

    Raises
    ------
    TraceError
        More blocks than there are numbers for.
    """
    kv, data = trace.unique_blocks, len(trace.data_bytes)
    stateful = model.state_bytes > 0
    checkpoints, holders = _checkpoints(trace, kv, wanted=stateful)
    states, first_data = len(holders), kv + len(holders)
    weights, expert_bytes, expert_place = experts
    total = first_data + data + weights + 1
    if total >= 1 << 31:
        raise TraceError(f"trace {trace.name}: found {total} blocks, expected fewer than 2^31")
    lengths = trace.block_length.astype(np.int64)
    counts = [kv, states, data, weights, 1]
    loose = np.full(data + weights + 1, -1, np.int32)
    blocks = {
        "bytes": np.concatenate(
            [
                rounded(lengths, trace.block_tokens, block_tokens) * token_bytes,
                np.full(states, model.state_bytes, np.int64),
                trace.data_bytes.astype(np.int64),
                np.full(weights, expert_bytes, np.int64),
                np.zeros(1, np.int64),
            ]
        ),
        "tokens": np.concatenate([trace.block_length, np.zeros(total - kv, np.int32)]).astype(np.int32),
        "kind": np.repeat(np.array([_KV, _STATE, _DATA, _WEIGHTS, _KV], np.int8), counts),
        "operation": np.repeat(np.array([ATTENTION, ATTENTION, ATTENTION, FFN, ATTENTION], np.int8), counts),
        "parent": np.concatenate([trace.block_parent, holders, loose]).astype(np.int32),
        "position": np.concatenate(
            # the last one's chain is itself
            [trace.block_position, trace.block_position[holders], loose[:-1], np.zeros(1, np.int32)]
        ).astype(np.int32),
        "home": np.repeat(np.array([-1, -1, outermost, expert_place, 0], np.int16), counts),
        "recompute_flops": np.zeros((total, 2)),
    }
    written = np.stack([checkpoints["checkpoint_whole"], checkpoints["checkpoint_last"]], axis=1)
    requests = {
        **{
            key: np.ascontiguousarray(getattr(trace, key), dtype=np.int64)
            for key in ("arrival_ps", "input_tokens", "output_tokens", "delay_ps")
        },
        **{
            key: np.ascontiguousarray(getattr(trace, key), dtype=np.int32)
            for key in ("last_block", "output_block", "session", "priority", "population", "pause")
        },
        "resumer": _resumers(trace),
        "state_lookup": checkpoints["checkpoint_lookup"].astype(np.int32),
        "after": (trace.after_offsets.astype(np.int64), trace.after.astype(np.int32)),
        "data": (trace.data_offsets.astype(np.int64), (trace.data + first_data).astype(np.int32)),
        "state_write": _lists(written),
        "state_output": _lists(checkpoints["checkpoint_output"][:, None]),
    }
    return blocks, requests


def _resumers(trace: RequestTrace) -> NDArray[np.int32]:
    """Return the request that goes on with the context of each, int32 (n,), -1 for none.

    The first later one of its session whose prompt begins with its blocks, else the first of its session that waits
    for it.
    """
    session = trace.session
    out = np.full(trace.n, -1, np.int32)
    waiting = np.repeat(np.arange(trace.n, dtype=np.int32), np.diff(trace.after_offsets))
    earlier = trace.prefix_of
    continued = np.flatnonzero(earlier >= 0).astype(np.int32)
    for row, other in ((trace.after, waiting), (earlier[continued], continued)):
        own = session[row] == session[other]
        # backwards, so that the first is what stays
        out[row[own][::-1]] = other[own][::-1]
    return out


def _lists(columns: NDArray[np.int32]) -> tuple[_Ints, NDArray[np.int32]]:
    """Return what is not -1 of each row as offsets int64 (n + 1,) and values int32."""
    there = columns >= 0
    offsets = np.zeros(len(columns) + 1, np.int64)
    np.cumsum(there.sum(axis=1), out=offsets[1:])
    return offsets, np.ascontiguousarray(columns[there], dtype=np.int32)


def pauses(retention: Retention, machine: Machine, ladder: Sequence[int]) -> list[dict[str, Any]]:
    """Return the plans for the pauses none, think and tool."""
    names = [machine.tiers[tier].name for tier in ladder]

    def lowered(plan: Plan) -> dict[str, Any]:
        tier = 1
        if plan.tier:
            if plan.tier not in names[1:]:
                raise UnknownNameError(plan.tier, names[1:], "farther tier", place="retention: demote")
            tier = names.index(plan.tier)
        return {
            "pin_ps": -1 if plan.pin_s is None else _picoseconds(plan.pin_s),
            "demote_ps": -1 if plan.demote_s is None else _picoseconds(plan.demote_s),
            "tier": tier,
            "drop": plan.drop,
            "prefetch": _PREFETCH[plan.prefetch],
            "lead_ps": _picoseconds(plan.lead_s),
        }

    return [lowered(plan) for plan in (Plan(), retention.think, retention.tool)]


def _picoseconds(seconds: float) -> int:
    return _FOREVER_PS if math.isinf(seconds) else round(seconds * _PS)
