"""Curves: hits against capacity, one tier, requests in order, no time.

Each policy at each capacity is a run of its own; the core holds no GIL, so they run on all cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.curve_result import CurveResult
from kvsim.errors import ConfigError, UnknownNameError
from kvsim.policies import PolicyChoice, choose
from kvsim_core import RULES, WEIGHTS
from kvsim_core import curve as core_curve
from kvsim_core import next_uses as core_next_uses

if TYPE_CHECKING:
    from kvsim.model import Model
    from kvsim.trace import AccessTrace, RequestTrace

__all__ = ["SHARES", "curve"]

UNITS = ("blocks", "tokens", "bytes")
SHARES = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Capacities where none are given, as shares of what all unique blocks take."""

_Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class _References:
    """A trace as the core's curve takes it: each request is the last block of its chain."""

    last_block: np.ndarray[Any, np.dtype[np.int32]]
    prompt: _Ints
    parent: np.ndarray[Any, np.dtype[np.int32]]
    position: np.ndarray[Any, np.dtype[np.int32]]
    tokens: _Ints
    bytes: _Ints | None
    prompt_bytes: _Ints | None
    block_tokens: int
    output_block: np.ndarray[Any, np.dtype[np.int32]] | None = None


def curve(
    trace: RequestTrace | AccessTrace | str | PathLike[str],
    *,
    policies: Any = ("lru",),
    capacities: Sequence[int | float] | None = None,
    unit: str = "blocks",
    hit_rule: str = "block",
    weight: str = "block",
    measure_last: float = 1.0,
    half_block: bool = False,
    model: Model | str | PathLike[str] | None = None,
    seed: int = 0,
    executor: Executor | None = None,
) -> CurveResult:
    """Count what each policy hits at each capacity.

    Parameters
    ----------
    trace : RequestTrace, AccessTrace, or path
        Of an access trace the look-ups count, each as a request of its own. Outputs whose blocks the trace knows are
        written after their prompt, as in a replay of one lane.
    policies : sequence
        Names (``leaf-`` before one evicts leaves only) or factories, see `kvsim.policies`.
    capacities : sequence of numbers, optional
        In `unit`; by default ten shares of what all unique blocks take.
    unit : {"blocks", "tokens", "bytes"}
        Of the capacities. Bytes of a request trace need a model.
    hit_rule : {"block", "prefix"}
        Each block by itself, or the contiguous run from the start of the prompt.
    weight : {"block", "token", "byte"}
        What a hit counts.
    measure_last : float
        Share of the requests, at the end, that are counted; all are replayed.
    half_block : bool
        Add half of the first missing block's own tokens to each request's hits: what single-token matching finds on
        average in a trace cut to blocks. With the prefix rule and token weight only.
    seed : int
        For policies that draw.
    executor : Executor, optional
        Runs the points; by default one thread a core.

    Returns
    -------
    CurveResult

    Raises
    ------
    KvsimError
        If a name is unknown or an argument makes no sense.
    """
    from kvsim.model import Model
    from kvsim.traces import read_trace

    for name, value, known in (("unit", unit, UNITS), ("hit_rule", hit_rule, RULES), ("weight", weight, WEIGHTS)):
        if value not in known:
            raise UnknownNameError(str(value), known, name)
    if not 0.0 < measure_last <= 1.0:
        raise ConfigError(f"measure_last: found {measure_last!r}, expected a share above 0 and at most 1")
    if half_block and (hit_rule, weight) != ("prefix", "token"):
        raise ConfigError(
            f"half_block: found hit rule {hit_rule!r} and weight {weight!r}, expected 'prefix' and 'token'"
        )
    chosen = [choose(p, seed=seed) for p in ([policies] if isinstance(policies, str) else policies)]
    if not chosen:
        raise ConfigError("policies: found none, expected at least one")
    source = read_trace(trace) if isinstance(trace, str | PathLike) else trace
    table = _references(source, None if model is None else Model.load(model))
    size = _sizes(table, unit)
    worth, prompt = table.tokens, table.prompt
    if weight == "byte":
        worth, prompt = _sizes(table, "bytes"), _prompt_bytes(table)
    points = _capacities(capacities, int(size.sum()), unit)
    n = len(table.last_block)
    first = n - int(n * measure_last + 0.5)
    future, output_future = None, None
    if any(choice.make().needs_future for choice in chosen):
        future, output_future = core_next_uses(table.last_block, table.parent, table.position, table.output_block)
    partial = table.block_tokens if weight != "byte" else 0

    def one(choice: PolicyChoice, capacity: int) -> tuple[int, int, int, int]:
        found: tuple[int, int, int, int] = core_curve(
            table.last_block, prompt, table.parent, table.position, worth, size, choice.make(), capacity=capacity,
            block_tokens=partial, prefix=hit_rule == "prefix", leaf_only=choice.leaf_only, half_block=half_block,
            measure_from=first, output_block=table.output_block, future=future, output_future=output_future,
        )  # fmt: skip
        return found

    jobs = [(choice, capacity) for choice in chosen for capacity in points]
    if executor is not None:
        counts = list(executor.map(lambda job: one(*job), jobs))
    elif all(choice.many for choice in chosen):
        with ThreadPoolExecutor(max(1, min(len(jobs), os.cpu_count() or 1))) as pool:
            counts = list(pool.map(lambda job: one(*job), jobs))
    else:
        counts = [one(*job) for job in jobs]
    if weight == "block":
        hits: np.ndarray[Any, Any] = np.array([count[0] for count in counts], dtype=np.int64)
        total = counts[0][2]
    else:
        halves = np.array([count[1] for count in counts], dtype=np.int64)
        hits = halves / 2.0 if half_block else halves // 2
        total = counts[0][3]
    return CurveResult(
        trace=getattr(source, "meta", source).name,
        unique_blocks=len(table.parent),
        policies=tuple(choice.name for choice in chosen),
        capacities=tuple(points),
        hit_count=hits.reshape(len(chosen), len(points)),
        total=total,
        hit_rule=hit_rule,
        weight=weight,
        unit=unit,
        options={"measure_last": measure_last, "half_block": half_block, "seed": seed},
    )


def _references(source: Any, model: Model | None) -> _References:
    from kvsim.trace import RequestTrace

    if isinstance(source, RequestTrace):
        tokens = np.asarray(source.block_length, dtype=np.int64)
        sizes = prompts = None
        if model is not None:
            each = model.kv_bytes_per_token
            sizes = np.floor(tokens * each).astype(np.int64)
            prompts = np.floor(source.input_tokens * each).astype(np.int64)
        return _References(
            source.last_block, source.input_tokens, source.block_parent, source.block_position, tokens, sizes, prompts,
            source.block_tokens, source.output_block if (source.output_block >= 0).any() else None,
        )  # fmt: skip
    trace = source.whole() if hasattr(source, "whole") else source
    last = np.ascontiguousarray(trace.block[trace.op == 0])
    blocks = trace.blocks
    sizes = np.asarray(blocks.bytes, dtype=np.int64)
    tokens = np.asarray(blocks.tokens, dtype=np.int64)
    roots = np.full(len(sizes), -1, dtype=np.int32)
    zeros = np.zeros(len(sizes), dtype=np.int32)
    return _References(last, tokens[last], roots, zeros, tokens, sizes, sizes[last], 0)


def _sizes(table: _References, unit: str) -> _Ints:
    if unit == "blocks":
        return np.ones(len(table.parent), dtype=np.int64)
    if unit == "tokens":
        return table.tokens
    if table.bytes is None:
        raise ConfigError("model: found none, expected one: the bytes of a prompt's blocks depend on the model")
    return table.bytes


def _prompt_bytes(table: _References) -> _Ints:
    if table.prompt_bytes is None:
        raise ConfigError("model: found none, expected one: the bytes of a prompt's blocks depend on the model")
    return table.prompt_bytes


def _capacities(given: Sequence[int | float] | None, whole: int, unit: str) -> list[int]:
    if given is None:
        return [max(1, int(share * whole)) for share in SHARES]
    if not len(given):
        raise ConfigError("capacities: found none, expected at least one")
    points = []
    for value in given:
        if isinstance(value, bool) or not 0 <= value <= 1 << 62 or value != int(value):
            raise ConfigError(f"capacities: found {value!r}, expected whole {unit} from 0 to 2^62")
        points.append(int(value))
    return points
