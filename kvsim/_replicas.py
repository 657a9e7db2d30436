"""How a machine's pools are divided into replicas for a run, and where the weights lie.

The rules:

* **Replicas.** A replica of a pool is tensor x pipeline devices; "auto" takes the fewest (a divisor of the pool's)
  whose near memory, less the reserve, holds the weights and the KV of the trace's longest request, else all. Each has
  an equal share of every memory on its ladder and of every link: of capacity, bandwidth, and fragment (devices move
  their fragments side by side). A pool that decodes what another has prefilled takes its share of farther memories
  only where it uses them: when KV may be streamed, or weights must be.
* **KV heads.** Over t devices, stored and read KV count t / min(t, kv_heads) times; latent KV is one head. With
  `attention_data` d, t is tensor / d, and each layer's attention weights are held and read d times.
* **Pipeline.** Near memory and arithmetic are those of one stage, capacity that of all.
* **Experts.** Each touched weight is read once. With `expert`, every device holds e = E/n whole experts and the fullest
  decides: n times its distinct experts count. How many those are is the expected maximum of n binomials of e draws at
  q = 1 - (1 - k/E)^B, by the Gaussian approximation e q + sqrt(2 e q (1 - q) ln n), at most e. It is an estimate from
  above: the square root is twice the mean excess of the largest of two Gaussians, and 1.4 times that of eight.
* **Weights.** All near where they fit. Else a room for KV (the longest request's, at least a tenth of the near memory)
  is kept free, and the rest holds, as far as it goes: embedding and LM head, then the other weights layer by layer,
  then the routed experts layer by layer. What is left over is streamed in each step from the nearest farther memory
  that holds all of it. Where feed-forward has a pool of its own, its near memory must hold the feed-forward weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.errors import ConfigError, MachineError
from kvsim.lowering import Lowered, lower
from kvsim.model import ATTENTION, FFN, Model
from kvsim.units import format_bytes

if TYPE_CHECKING:
    from kvsim._parts import Pool
    from kvsim.machine import Machine
    from kvsim.serving import Serving
    from kvsim.trace import RequestTrace

__all__ = ["ACTIVATION_BYTES", "Replicas", "Shape", "Side", "Sizes", "Weights", "rounded"]

ACTIVATION_BYTES = 2
"""Of one number between devices: bf16, also where weights are smaller."""
_KV_ROOM = Fraction(1, 10)  # of the near memory, kept free where weights are streamed
ALL, PREFILL, DECODE = range(3)
"""What a worker does with a request."""


# ---- what the model and the trace ask for --------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Bytes of weights by what reads them; layers in their order."""

    embedding: int
    head: int
    attention: tuple[int, ...]
    dense: tuple[int, ...]
    experts: tuple[int, ...]

    @classmethod
    def of(cls, model: Model) -> Weights:
        blocks = model.weight_blocks()
        layered = [b for b in blocks if b.label not in ("embedding", "lm_head")]
        return cls(
            sum(b.bytes for b in blocks if b.label == "embedding"),
            sum(b.bytes for b in blocks if b.label == "lm_head"),
            tuple(b.bytes for b in layered if b.operation == ATTENTION),
            tuple(b.bytes for b in layered if b.operation == FFN and not b.is_expert),
            tuple(b.bytes for b in layered if b.is_expert),
        )

    @property
    def ffn_bytes(self) -> int:
        return sum(self.dense) + sum(self.experts)

    def bytes(self, groups: int, *, ffn: bool) -> int:
        """All that `groups` copies of attention take, with feed-forward or without."""
        return self.embedding + self.head + groups * sum(self.attention) + (self.ffn_bytes if ffn else 0)


@dataclass(frozen=True)
class Sizes:
    """Bytes of KV and state on the devices of one replica, copies of KV heads included."""

    token: int  # stored, of what grows
    written: int  # of one token, all layers
    row: int  # of one token in one layer
    window_token: int
    state: int

    @classmethod
    def of(cls, model: Model, copies: Fraction) -> Sizes:
        return cls(
            math.ceil(model.kv_bytes_per_token * copies),
            math.ceil(model.kv_stored_bytes(1) * copies),
            math.ceil(model.kv_layer_bytes * copies),
            math.ceil(model.local_layers * model.kv_layer_bytes * copies),
            model.state_bytes,
        )


class Lengths:
    """The tokens for which each request takes room, in whole engine blocks, by the role of who serves it."""

    def __init__(self, trace: RequestTrace, block_tokens: int) -> None:
        inputs = np.asarray(trace.input_tokens, dtype=np.int64)
        outputs = np.maximum(np.asarray(trace.output_tokens, dtype=np.int64), 1)
        self.final = inputs + outputs
        whole = rounded(np.int64(trace.block_tokens), trace.block_tokens, block_tokens)
        chained = np.zeros(trace.n, np.int64)
        has = trace.last_block >= 0
        last = trace.last_block[has]
        ends = rounded(trace.block_length[last], trace.block_tokens, block_tokens)
        chained[has] = trace.block_position[last].astype(np.int64) * whole + ends
        self.tokens = {
            ALL: chained + _up(trace.private_tokens + outputs, block_tokens),
            PREFILL: chained + _up(trace.private_tokens + 1, block_tokens),
            DECODE: _up(self.final, block_tokens),
        }

    def longest_bytes(self, role: int, sizes: Sizes, window: int) -> int:
        """Return the most bytes that one request takes."""
        if not len(self.final):
            return 0
        windows = sizes.window_token * np.minimum(self.final, window)
        return int((self.tokens[role] * sizes.token + windows).max()) + sizes.state


def _up(tokens: Any, unit: int) -> Any:
    return -(-tokens // unit) * unit


def rounded(tokens: Any, trace_block: int, block_tokens: int) -> Any:
    """Tokens for which a block of the trace takes room; one smaller than an engine's shares it with its neighbours."""
    return _up(tokens.astype(np.int64), block_tokens) if trace_block >= block_tokens else tokens.astype(np.int64)


# ---- how a pool is divided -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How a pool is divided: `replicas` of `tensor` devices in each of `pool.pipeline` stages."""

    pool: Pool
    tensor: int

    @property
    def replicas(self) -> int:
        return self.pool.devices // (self.tensor * self.pool.pipeline)

    @property
    def group(self) -> int:
        """Devices that share the heads of one request."""
        return self.tensor // self.pool.attention_data

    def copies(self, model: Model) -> Fraction:
        """How often each byte of KV is held."""
        heads = 1 if model.kv_lora_rank else model.kv_heads
        return Fraction(self.group, min(self.group, heads))


@dataclass
class Side:
    """The replicas that serve one role, all alike; `ffn` where another pool does feed-forward for them."""

    role: int
    shape: Shape
    ffn: Shape | None
    sizes: Sizes
    near_bytes: int  # of one replica's near memory, less the reserve
    room_bytes: int  # of it, what an engine's number of blocks says; else 0
    ladder: tuple[int, ...]
    lowered: Lowered
    near: Weights  # that lie near
    far: Weights  # the rest, which lies in `far_tier` of the ladder
    far_tier: int = 0

    @property
    def replicas(self) -> int:
        return self.shape.replicas

    @property
    def near_weight_bytes(self) -> int:
        return self.near.bytes(self.shape.pool.attention_data, ffn=self.ffn is None)

    @property
    def far_weight_bytes(self) -> int:
        return self.far.bytes(self.shape.pool.attention_data, ffn=self.ffn is None)


class Replicas:
    """How a machine serves a run: the sides that share its requests' work, and what each replica has."""

    def __init__(self, trace: RequestTrace, model: Model, machine: Machine, serving: Serving) -> None:
        self.trace, self.model, self.machine, self.serving = trace, model, machine, serving
        self.weights = Weights.of(model)
        self.lengths = Lengths(trace, serving.kv_block_tokens)
        # without its reserve and without the trace's data, which live in the outermost memory of who prefills
        self.usable = [machine.usable_bytes(t) for t in range(len(machine.tiers))]
        self.data_bytes = int(trace.data_bytes.sum())
        if serving.kv_blocks is not None and not model.kv_bytes_per_token:
            raise ConfigError(f"serving.kv_blocks: found {serving.kv_blocks}, but the KV of {model.name} does not grow")

    def sides(self) -> list[Side]:
        machine = self.machine
        if len(machine.pools) == 1:
            return [self._side(ALL, machine.pools[0], None)]
        prefill, attention, ffn = (machine.pool_for(role) for role in ("prefill", "attention", "ffn"))
        apart = None if ffn is attention else ffn
        if prefill is attention:
            return [self._side(ALL, attention, apart)]
        if prefill is apart:
            raise MachineError(
                f"{machine.name}: found prefill with ffn on {prefill.name} and attention on {attention.name}, expected "
                "prefill with attention or on a pool of its own: prompts need both"
            )
        return [self._side(PREFILL, prefill, None), self._side(DECODE, attention, apart)]

    def _side(self, role: int, pool: Pool, ffn: Pool | None) -> Side:
        machine = self.machine
        ladder = machine.ladder(pool)
        if role != DECODE and self.data_bytes:
            self._place_data(ladder[-1])
        shape, ffn_shape = self._choose(role, pool, ffn)
        sizes = Sizes.of(self.model, shape.copies(self.model))
        near_bytes = self._near_bytes(shape)
        room = self._room(sizes)
        groups = pool.attention_data
        limit = near_bytes
        if room:  # an engine's log tells what was left when weights and all else were there
            limit = self._total_near(shape) - room
            if limit < 0:
                raise ConfigError(
                    f"serving.kv_blocks: found {self.serving.kv_blocks} blocks, {format_bytes(room)}, expected at most "
                    f"the {format_bytes(self._total_near(shape))} of a replica's {machine.tiers[ladder[0]].name}"
                )
        if self.cached:
            self._check_cached(pool, ffn)
            near, far = self.wanted, dataclasses.replace(_nothing(self.weights), experts=self.weights.experts)
            if near.bytes(groups, ffn=True) > limit:
                raise MachineError(
                    f"{machine.name}: found {format_bytes(limit)} in {machine.tiers[ladder[0]].name} for a replica of "
                    f"{pool.name}, expected the {format_bytes(near.bytes(groups, ffn=True))} of weights that are not "
                    "routed experts: only experts are cached"
                )
        elif self.weights.bytes(groups, ffn=ffn is None) <= limit:
            near, far = self.weights, _nothing(self.weights)
        else:
            kept = self.lengths.longest_bytes(role, sizes, self.model.window)
            kept = max(kept, math.ceil(near_bytes * _KV_ROOM))
            near, far = self._cut(limit if room else limit - kept, groups, ffn=ffn is None)
        used = self.serving.kv_overflow == "stream" or far.bytes(groups, ffn=ffn is None) > 0
        if role == DECODE and not used:
            ladder = ladder[:1]
        lowered = lower(
            machine.narrowed(pool), self.model, layers=self.model.layers,
            activation_bytes_per_token=float(self.model.hidden * ACTIVATION_BYTES),
        )  # fmt: skip
        return Side(role, shape, ffn_shape, sizes, near_bytes, room, ladder, lowered, near, far)

    @property
    def cached(self) -> bool:
        """Whether routed experts are blocks that come and go."""
        return self.serving.experts == "cached"

    @property
    def wanted(self) -> Weights:
        """What should lie near: all weights, or all but the experts that are cached."""
        return dataclasses.replace(self.weights, experts=()) if self.cached else self.weights

    def _check_cached(self, pool: Pool, ffn: Pool | None) -> None:
        if not self.weights.experts:
            raise ConfigError(f"serving.experts: found cached, expected resident: {self.model.name} has no experts")
        if ffn is not None or pool.pipeline > 1:
            raise ConfigError(
                f"serving.experts: found cached, expected resident: {self.machine.name} "
                + ("has a pool for feed-forward alone" if ffn is not None else f"has a pipeline in {pool.name}")
            )

    def _place_data(self, tier: int) -> None:
        """Take the room of the trace's data off the memory that they live in."""
        room = self.usable[tier]
        if self.data_bytes > room:
            raise MachineError(
                f"machine {self.machine.name!r}: found {format_bytes(room)} in {self.machine.tiers[tier].name}, its "
                f"outermost tier, expected {format_bytes(self.data_bytes)} at least: the trace's data live there"
            )
        self.usable[tier] = room - self.data_bytes

    def _pools_on(self, tier: int) -> int:
        return sum(self.machine.ladder(pool)[0] == tier for pool in self.machine.pools)

    def _near_bytes(self, shape: Shape) -> int:
        tier = self.machine.ladder(shape.pool)[0]
        return self.usable[tier] // (self._pools_on(tier) * shape.replicas)

    def _total_near(self, shape: Shape) -> int:
        tier = self.machine.ladder(shape.pool)[0]
        return self.machine.tiers[tier].total_capacity_bytes // (self._pools_on(tier) * shape.replicas)

    def _room(self, sizes: Sizes) -> int:
        return (self.serving.kv_blocks or 0) * self.serving.kv_block_tokens * sizes.token

    # ---- how many devices a replica has ----

    def _choose(self, role: int, pool: Pool, ffn: Pool | None) -> tuple[Shape, Shape | None]:
        """Return the smallest division of the pools that holds what it must, else the largest."""
        shapes = list(self._shapes(role, pool, ffn))
        if not shapes:
            wanted = self.serving.replicas
            both = f"{pool.name} and {ffn.name}" if ffn is not None else pool.name
            if wanted != "auto":
                raise ConfigError(
                    f"serving.replicas: found {wanted}, expected a number of replicas that {both} can be divided into "
                    f"(devices / (tensor x pipeline))"
                )
            raise MachineError(
                f"{self.machine.name}: found no number of replicas for both {both}, expected equally many of each "
                "(devices / (tensor x pipeline)): a replica of the one steps with one of the other"
            )
        for shape, ffn_shape in shapes:
            sizes = Sizes.of(self.model, shape.copies(self.model))
            room = self._room(sizes)
            kept = room or self.lengths.longest_bytes(role, sizes, self.model.window)
            held = self.wanted.bytes(shape.pool.attention_data, ffn=ffn is None) + kept
            near = self._total_near(shape) if room else self._near_bytes(shape)
            if held <= near and (ffn_shape is None or self.weights.ffn_bytes <= self._near_bytes(ffn_shape)):
                return shape, ffn_shape
        shape, ffn_shape = shapes[-1]
        if ffn_shape is not None and self.weights.ffn_bytes > self._near_bytes(ffn_shape):
            tier = self.machine.tiers[self.machine.ladder(ffn_shape.pool)[0]].name
            raise MachineError(
                f"{self.machine.name}: pool {ffn_shape.pool.name}: found "
                f"{format_bytes(self._near_bytes(ffn_shape))} in {tier} for a replica, expected the "
                f"{format_bytes(self.weights.ffn_bytes)} of feed-forward weights"
            )
        return shape, ffn_shape

    def _shapes(self, role: int, pool: Pool, ffn: Pool | None) -> Iterator[tuple[Shape, Shape | None]]:
        """Yield the ways to divide, from the fewest devices a replica."""
        wanted = self.serving.replicas if role != PREFILL else "auto"
        for shape in _tensors(pool):
            if wanted not in ("auto", shape.replicas):
                continue
            if ffn is None:
                yield shape, None
                continue
            for other in _tensors(ffn):
                if other.replicas == shape.replicas:
                    yield shape, other

    # ---- where weights lie ----

    def _cut(self, limit: int, groups: int, *, ffn: bool) -> tuple[Weights, Weights]:
        """Return the weights that lie near, at most `limit` bytes of them, and the others."""
        whole = self.weights
        ends = whole.embedding + whole.head
        left = limit - ends
        if left < 0:
            return _nothing(whole), whole
        layers = 0  # layers whose attention and dense weights are near
        dense = iter(_dense_by_layer(self.model, whole))
        for attention, own in zip(whole.attention, dense, strict=True):
            cost = groups * attention + (own if ffn else 0)
            if cost > left:
                break
            left -= cost
            layers += 1
        cut = sum(1 for own in _dense_by_layer(self.model, whole)[:layers] if own) if ffn else len(whole.dense)
        experts = 0
        if layers == len(whole.attention) and ffn:
            for cost in whole.experts:
                if cost > left:
                    break
                left -= cost
                experts += 1
        near = Weights(
            whole.embedding, whole.head, whole.attention[:layers], whole.dense[:cut], whole.experts[:experts]
        )
        return near, Weights(0, 0, whole.attention[layers:], whole.dense[cut:], whole.experts[experts:])

    def _users(self, sides: Sequence[Side]) -> list[int]:
        """Return how many replicas share each tier that is nobody's nearest."""
        users = [0] * len(self.machine.tiers)
        for side in sides:
            for tier in side.ladder[1:]:
                users[tier] += side.replicas
        return users

    def _settle(self, side: Side, users: Sequence[int]) -> None:
        """Find the memory that holds the weights that are not near."""
        if not side.far_weight_bytes:
            return
        for place, tier in enumerate(side.ladder[1:], start=1):
            if side.far_weight_bytes <= self.usable[tier] // users[tier]:
                side.far_tier = place
                return
        rooms = ", ".join(
            f"{self.machine.tiers[tier].name} {format_bytes(self.usable[tier] // users[tier] if place else near)}"
            for near in [side.near_bytes]
            for place, tier in enumerate(side.ladder)
        )
        raise MachineError(
            f"{self.machine.name}: weights {format_bytes(self.model.weight_bytes)} exceed every tier: "
            f"{format_bytes(side.far_weight_bytes)} of them do not fit beside KV in the nearest, expected another with "
            f"room for these (a replica of {side.shape.pool.name} has {rooms})"
        )


def _tensors(pool: Pool) -> Iterator[Shape]:
    """Yield the divisions that a pool allows, from the fewest devices."""
    stage = pool.devices // pool.pipeline
    if not isinstance(pool.tensor, str):
        yield Shape(pool, pool.tensor)
        return
    for tensor in range(1, stage + 1):
        if stage % tensor == 0 and tensor % pool.attention_data == 0:
            yield Shape(pool, tensor)


def _nothing(weights: Weights) -> Weights:
    return dataclasses.replace(weights, embedding=0, head=0, attention=(), dense=(), experts=())


def _dense_by_layer(model: Model, weights: Weights) -> list[int]:
    """Return the feed-forward weights without routed experts of each layer; 0 where it has none."""
    layers = [0] * model.layers
    for block in model.weight_blocks():
        if block.operation == FFN and not block.is_expert:
            layers[int(block.label.split()[1])] = block.bytes
    return layers
