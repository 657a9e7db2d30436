"""Replay: recorded work through a machine's memories, in order.

`replay` resolves every default and name to flat numbers, hands the core one chunk of steps after another, and wraps
what comes back. The core holds no GIL: replays run in parallel threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.errors import ConfigError, MachineError, UnknownNameError
from kvsim.lowering import lower
from kvsim.policies import PolicyChoice, choose
from kvsim.result import Result
from kvsim.trace import OUTERMOST
from kvsim.units import format_bytes
from kvsim_core import KINDS, OPS, Clock, Replayer, Store

if TYPE_CHECKING:
    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.trace import AccessStream, AccessTrace, BlockTable, RequestTrace

__all__ = ["LANES", "replay"]

LANES = 32
"""Requests that run at once where a trace of requests is expanded open loop: what an 8-GPU server holds of contexts
of
some 12,000 tokens of a 70 B model (16-bit KV, 4 GB each) beside its weights."""

_NEVER = np.iinfo(np.int64).max
_WEIGHTS = KINDS.index("weights")
_LOOKUP, _WRITE = OPS.index("lookup"), OPS.index("write")

Progress = Callable[[int, int | None], object]


def replay(
    trace: RequestTrace | AccessTrace | AccessStream | str | PathLike[str],
    *,
    machine: Machine | str | PathLike[str] | Mapping[str, Any],
    model: Model | str | PathLike[str] | Mapping[str, Any] | None = None,
    policy: Any = None,
    lanes: int = LANES,
    usable: str = "prefix",
    seed: int = 0,
    check: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Replay a trace on a machine and say where the time went.

    Parameters
    ----------
    trace : RequestTrace, AccessTrace, AccessStream, or path
        Requests are expanded to steps first (`RequestTrace.accesses`), which needs a model.
    machine, model : object, preset name or path
        `model` also chooses the arithmetic's precision; a raw access trace needs none. Of a machine of several pools
        the one with the role attention is replayed on.
    policy : str, object, or mapping from tier name to either, optional
        Instead of the machine's own policies.
    lanes : int
        Requests that run at once in the expansion.
    usable : {"prefix", "block"}
        Whether a KV block behind the first missing one of its prompt is recomputed (as engines do), or used.
    seed : int
        For policies that draw.
    check : bool
        Derive all books again at the end.
    progress : callable, optional
        Called with the step rows done and their number, if known, after each chunk.

    Returns
    -------
    Result

    Raises
    ------
    KvsimError
        If a name is unknown, an input makes no sense, or the machine cannot hold the weights.
    OverflowError
        If the clock or a counter passes 2^62.
    """
    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.trace import RequestTrace
    from kvsim.traces import read_trace

    if usable not in ("prefix", "block"):
        raise ConfigError(f"usable: found {usable!r}, expected 'prefix' or 'block'")
    machine = Machine.load(machine).narrowed()
    model = None if model is None else Model.load(model)
    choices = tier_policies(machine, policy, seed=seed)
    source: Any = read_trace(trace) if isinstance(trace, str | PathLike) else trace
    stream: Any = source
    if isinstance(source, RequestTrace):
        if model is None:
            raise ConfigError("model: found none, expected one: requests become bytes and FLOPs only by a model")
        if not isinstance(lanes, int) or isinstance(lanes, bool) or lanes < 1:
            raise ConfigError(f"lanes: found {lanes!r}, expected a whole number of at least 1")
        stream = source.accesses(model, lanes=lanes)
    meta = stream.meta
    lowered = lower(machine, model, layers=meta.layers, activation_bytes_per_token=meta.activation_bytes_per_token)
    tiers = [dict(spec) for spec in lowered.tiers]
    for spec, choice in zip(tiers, choices, strict=True):
        spec["leaf_only"] = spec["leaf_only"] or choice.leaf_only
    store = Store(
        tiers,
        lowered.movements,
        [choice.make() for choice in choices],
        n_links=len(lowered.links),
        prefix_rule=usable == "prefix",
        workspace_bytes=lowered.workspace_bytes,
    )
    blocks: BlockTable = stream.blocks
    store.bind(*_block_columns(blocks, machine))
    replayer = Replayer(store, Clock(tiers, lowered.links, **lowered.pace))
    chunks: Iterable[AccessTrace] = stream.chunks()
    uses: Iterable[Any]
    if any(served.needs_future for served in store.policies):
        kept = list(chunks)
        chunks, uses = kept, next_uses(kept, blocks.n)
    else:
        uses = iter(lambda: None, 0)
    done = 0
    for chunk, use in zip(chunks, uses, strict=False):
        replayer.feed(
            chunk.arrival_ps, chunk.flops, chunk.fixed_ps, chunk.tokens, chunk.repeat, chunk.request,
            chunk.offsets, chunk.block, chunk.op, chunk.bytes, use,
        )  # fmt: skip
        done += len(chunk.arrival_ps)
        if progress is not None:
            progress(done, getattr(stream, "total_steps", None))
    if check:
        replayer.check()
    core = {key: _columns(value) for key, value in replayer.result().items()}
    return Result.from_core(
        core,
        trace=source,
        machine=machine,
        model=model,
        options={
            "policies": [choice.name for choice in choices],
            "lanes": lanes if isinstance(source, RequestTrace) else None,
            "usable": usable,
            "seed": seed,
        },
    )


def tier_policies(machine: Machine, policy: Any, *, seed: int = 0) -> list[PolicyChoice]:
    """Return the policy of each tier: the machine's own, unless `policy` says otherwise.

    Raises
    ------
    UnknownNameError
        A tier or policy of that name does not exist.
    ConfigError
        One policy object is asked to serve several tiers.
    """
    named: dict[str, Any] = {tier.name: tier.policy for tier in machine.tiers}
    if isinstance(policy, Mapping) and not set(policy) & {"victim", "on_insert"}:
        for name, wanted in policy.items():
            if name not in named:
                raise UnknownNameError(str(name), list(named), "tier")
            named[name] = wanted
    elif policy is not None:
        named = dict.fromkeys(named, policy)
    choices = [choose(wanted, seed=seed + t) for t, wanted in enumerate(named.values())]
    objects = [id(wanted) for wanted, choice in zip(named.values(), choices, strict=True) if not choice.many]
    if len(set(objects)) < len(objects):
        raise ConfigError("policy: found one object for several tiers, expected a factory, or one object a tier")
    return choices


def _block_columns(blocks: BlockTable, machine: Machine) -> tuple[Any, ...]:
    """Return the block table as the core takes it, with weights and data placed on the machine."""
    home = np.array(blocks.home, dtype=np.int16)
    outermost = len(machine.tiers) - 1
    data = home == OUTERMOST
    home[data] = outermost
    if home.size and int(home.max()) >= len(machine.tiers):
        raise MachineError(
            f"machine {machine.name!r}: found {len(machine.tiers)} tiers, expected {int(home.max()) + 1} at least:"
            " a block of the trace has its home there"
        )
    loose = (blocks.kind == _WEIGHTS) & (home < 0)
    if loose.any():
        home[loose] = machine.weights_home(int(blocks.bytes[loose].sum()))
    if data.any():
        lives, room = int(blocks.bytes[home == outermost].sum()), machine.usable_bytes(outermost)
        if lives > room:
            raise MachineError(
                f"machine {machine.name!r}: found {format_bytes(room)} in {machine.tiers[outermost].name}, its"
                f" outermost tier, expected {format_bytes(lives)} at least: the trace's data live there"
            )
    return (
        blocks.bytes, blocks.tokens, blocks.kind, blocks.operation, blocks.parent, blocks.position, home,
        blocks.recompute_flops,
    )  # fmt: skip


def next_uses(chunks: Sequence[AccessTrace], n_blocks: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Return for each look-up and write the index of its block's next look-up (2^63 - 1: never), one array a chunk."""
    op = np.concatenate([chunk.op for chunk in chunks]) if chunks else np.empty(0, np.uint8)
    block = np.concatenate([chunk.block for chunk in chunks]) if chunks else np.empty(0, np.int32)
    looks = op == _LOOKUP
    index = np.cumsum(looks) - 1  # of a look-up among the look-ups
    places = np.flatnonzero(looks | (op == _WRITE))
    order = places[np.argsort(block[places], kind="stable")]  # block by block, each in time
    every = np.full(len(op), _NEVER, dtype=np.int64)
    n = len(order)
    if n:
        at = np.where(looks[order], np.arange(n), n)
        after = np.append(np.minimum.accumulate(at[::-1])[::-1][1:], n)  # the next look-up behind each, of any block
        found = np.flatnonzero(after < n)
        found = found[block[order[after[found]]] == block[order[found]]]
        every[order[found]] = index[order[after[found]]]
    ends = np.cumsum([len(chunk.op) for chunk in chunks])
    return [np.ascontiguousarray(part) for part in np.split(every, ends[:-1])]


def _columns(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _columns(inner) for key, inner in value.items()}
    return np.array(value, dtype=np.int64) if isinstance(value, list) else value
