"""What fits where: weights, KV room, and how many contexts a machine holds at once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.errors import ConfigError, shown
from kvsim.machine import Machine
from kvsim.model import Model
from kvsim.units import format_bytes, format_time

__all__ = ["DEFAULT_CONTEXTS", "ContextRoom", "Fits", "TierRoom", "fits"]

DEFAULT_CONTEXTS = (4_096, 32_768, 131_072)
_LARGEST_CONTEXT = 1 << 40


@dataclass(frozen=True)
class TierRoom:
    """What a tier holds: all its bytes are reserve, weights or room for KV.

    `kv_tokens` is how many tokens of growing KV the room takes; None where the model's KV does not
    grow.
    """

    tier: str
    capacity_bytes: int
    reserve_bytes: int
    weights_bytes: int
    kv_bytes: int
    kv_tokens: int | None


@dataclass(frozen=True)
class ContextRoom:
    """How many contexts of one length a machine holds at once.

    `at_once` goes by tier and counts whole contexts in that tier alone; `bytes_each` is the KV and
    state of one.
    """

    tokens: int
    bytes_each: int
    at_once: tuple[int, ...]

    @property
    def total(self) -> int:
        """Contexts at once over all tiers, none split between two."""
        return sum(self.at_once)


@dataclass(frozen=True)
class Fits:
    """The answer of :func:`fits`.

    Attributes
    ----------
    weights_bytes, home : the weights, and the tier that holds them.
    stream_s : seconds to bring all weights to compute once, where their home is not the nearest
        tier; else 0.
    rooms : by tier, from compute outwards.
    contexts : by context length.
    warnings : what a person should know before believing the rest.
    """

    model: str
    machine: str
    weights_bytes: int
    weights_dtype: str
    home: str
    stream_s: float
    kv_bytes_per_token: int
    kv_fixed_bytes: int
    state_bytes: int
    rooms: tuple[TierRoom, ...]
    contexts: tuple[ContextRoom, ...]
    warnings: tuple[str, ...]

    def room(self, tier: str) -> TierRoom:
        """Return the room of a tier; UnknownNameError if there is no such tier."""
        from kvsim.errors import UnknownNameError

        for room in self.rooms:
            if room.tier == tier:
                return room
        raise UnknownNameError(tier, [room.tier for room in self.rooms], "tier", place=self.machine)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python, for JSON."""
        out = dataclasses.asdict(self)
        for row, context in zip(out["contexts"], self.contexts, strict=True):
            names = [room.tier for room in self.rooms]
            row["at_once"] = dict(zip(names, context.at_once, strict=True))
            row["total"] = context.total
        out["rooms"] = list(out["rooms"])
        out["contexts"] = list(out["contexts"])
        out["warnings"] = list(self.warnings)
        return out

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        from kvsim._table import text_table

        per_token = [f"{format_bytes(self.kv_bytes_per_token)} of KV a token"]
        if self.kv_fixed_bytes:
            per_token.append(f"at most {format_bytes(self.kv_fixed_bytes)} in windows")
        if self.state_bytes:
            per_token.append(f"{format_bytes(self.state_bytes)} of state a sequence")
        rows = [
            [
                room.tier,
                format_bytes(room.capacity_bytes),
                format_bytes(room.weights_bytes) if room.weights_bytes else "-",
                format_bytes(room.kv_bytes),
                "-" if room.kv_tokens is None else f"{room.kv_tokens:,}",
                *(f"{context.at_once[place]:,}" for context in self.contexts),
            ]
            for place, room in enumerate(self.rooms)
        ]
        header = ["tier", "capacity", "weights", "KV room", "KV tokens"]
        header += [f"x {context.tokens:,}" for context in self.contexts]
        weights = f"{self.weights_dtype} weights, {format_bytes(self.weights_bytes)}, in {self.home}"
        lines = [f"{self.model} on {self.machine}: {weights}", "  " + ", ".join(per_token), text_table(header, rows)]
        if self.contexts:
            lines.append("  x N: contexts of N tokens held at once in that tier")
        lines += [f"  ! {warning}" for warning in self.warnings]
        return "\n".join(lines)


def fits(
    model: Model | str | os.PathLike[str] | Mapping[str, Any],
    machine: Machine | str | os.PathLike[str] | Mapping[str, Any],
    *,
    context: int | Iterable[int] = DEFAULT_CONTEXTS,
) -> Fits:
    """Say where a model's weights go on a machine, and what room is left for KV.

    Parameters
    ----------
    model, machine : names, paths or objects. Of a machine of several pools the one with the role attention is asked.
    context : context lengths in tokens.

    Raises
    ------
    MachineError
        The weights exceed every tier.
    KvsimError
        A name or a length that makes no sense.
    """
    model, whole = Model.load(model), Machine.load(machine)
    machine = whole.narrowed()
    lengths = _lengths(context)
    home = machine.weights_home(model.weight_bytes)
    rooms = tuple(_room(model, machine, place, home) for place in range(len(machine.tiers)))
    contexts = []
    for tokens in lengths:
        each = model.sequence_bytes(tokens)
        at_once = tuple(room.kv_bytes // each if each else 0 for room in rooms)
        contexts.append(ContextRoom(tokens, each, at_once))
    return Fits(
        model=model.name,
        machine=machine.name,
        weights_bytes=model.weight_bytes,
        weights_dtype=model.dtype,
        home=machine.tiers[home].name,
        stream_s=_stream_s(model, machine, home),
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_fixed_bytes=model.kv_fixed_bytes,
        state_bytes=model.state_bytes,
        rooms=rooms,
        contexts=tuple(contexts),
        warnings=(*_left_out(whole, machine), *_warnings(model, machine, home, rooms, contexts)),
    )


def _lengths(context: int | Iterable[int]) -> tuple[int, ...]:
    many = isinstance(context, Iterable) and not isinstance(context, str)
    given: list[Any] = list(context) if many else [context]  # type: ignore[arg-type]
    for tokens in given:
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= _LARGEST_CONTEXT:
            raise ConfigError(f"context: found {shown(tokens)}, expected a whole number of tokens, 1 or more")
    return tuple(given)


def _room(model: Model, machine: Machine, place: int, home: int) -> TierRoom:
    tier = machine.tiers[place]
    usable = machine.usable_bytes(place)
    weights = model.weight_bytes if place == home else 0
    room = usable - weights
    growth = model.kv_bytes_per_token
    return TierRoom(
        tier=tier.name,
        capacity_bytes=tier.total_capacity_bytes,
        reserve_bytes=tier.total_capacity_bytes - usable,
        weights_bytes=weights,
        kv_bytes=room,
        kv_tokens=room // growth if growth else None,
    )


def _stream_s(model: Model, machine: Machine, home: int) -> float:
    """Return the seconds to read all weights from their home; the slowest on the way decides."""
    if home == 0:
        return 0.0
    rate = machine.tiers[home].total_read_bytes_per_s
    for link in machine.links:
        upper, lower = (machine.tier_index(end) for end in link.between)
        if upper < home <= lower:
            rate = min(rate, link.count * link.read_bytes_per_s)
    return model.weight_bytes / rate


def _left_out(whole: Machine, machine: Machine) -> list[str]:
    """Say which pool was asked, and that all weights count there."""
    if len(whole.pools) == 1:
        return []
    pool = machine.pools[0]
    others = ", ".join(other.name for other in whole.pools if other.name != pool.name)
    found = [f"the rooms are those of the pool {pool.name} alone, which holds the KV; not of {others}"]
    if "ffn" not in pool.roles:
        holder = whole.pool_for("ffn").name
        found.append(f"all weights are counted in the pool {pool.name}; those of feed-forward lie in {holder}")
    return found


def _warnings(
    model: Model, machine: Machine, home: int, rooms: tuple[TierRoom, ...], contexts: list[ContextRoom]
) -> list[str]:
    found = []
    if home:
        seconds = format_time(_stream_s(model, machine, home), digits=3)
        found.append(
            f"the weights exceed {rooms[0].tier} ({format_bytes(machine.usable_bytes(0))} usable): "
            f"they are read from {rooms[home].tier}, {seconds} for all of them"
        )
    devices = max(pool.devices for pool in machine.pools)
    heads = 1 if model.kv_lora_rank else model.kv_heads
    if devices > heads:
        kind = "latent KV, one head" if model.kv_lora_rank else f"{heads} KV heads"
        found.append(
            f"{kind} on {devices} devices: with tensors divided over all of them, a head's KV is held "
            f"{devices / heads:.3g} times; the room here counts it once"
        )
    for context in contexts:
        if model.max_context and context.tokens > model.max_context:
            found.append(f"{context.tokens:,} tokens exceed the model's context of {model.max_context:,}")
        if not context.total:
            found.append(f"no tier holds one context of {context.tokens:,} tokens whole")
        elif not context.at_once[0]:
            found.append(f"no context of {context.tokens:,} tokens fits {rooms[0].tier} whole")
    if model.sparse_tokens:
        found.append(
            f"sparse attention reads at most {model.sparse_tokens:,} tokens a step in "
            f"{model.sparse_layers} layers, but stores all; its index is not counted"
        )
    doubtful = [path for path, _ in machine.doubtful() if path.endswith("capacity_bytes")]
    if doubtful:
        names = ", ".join(path.split(".")[1] for path in doubtful)
        found.append(f"capacities that are estimates: {names} (see: kvsim show {machine.name})")
    return found
