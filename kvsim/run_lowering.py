"""A trace, a model, a machine and an engine's options as the flat numbers of a closed-loop run.

Here every default and every name is resolved: how a pool's devices are divided into replicas, where weights lie, what a
replica has of each memory and link, and the trace's columns. The loop knows no default.
How replicas are made and where weights lie is said in `kvsim._replicas`; the columns are made by `kvsim._run_columns`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvsim._replicas import ACTIVATION_BYTES, Replicas, Shape, Side, Weights
from kvsim._run_columns import columns, pauses
from kvsim.errors import ConfigError, MachineError, ModelError
from kvsim.lowering import lower
from kvsim.serving import LOADS, ORDERS, OVERFLOWS, ROUTERS, Serving, shared_out
from kvsim_core import KINDS

if TYPE_CHECKING:
    from kvsim._parts import Link, Pool
    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.policies import PolicyChoice
    from kvsim.trace import RequestTrace

__all__ = ["LoweredRun", "lower_run"]

_PS = 1e12
_ONE = 1 << 20  # accepted tokens a step are counted in these parts
_EXPERT_ROWS_MOST = 1 << 20
_PACES = ("read_ps_per_byte", "write_ps_per_byte", "both_ps_per_byte")

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LoweredRun:
    """What the engine takes, and what its answer needs.

    Attributes
    ----------
    spec : the engine's numbers; columns are NumPy arrays.
    policies : for each worker, one choice for each tier of its ladder.
    unit_pool, unit_replica : int64 (units,): the pool of each unit, by its place, and which of its replicas it is.
    more_capacity_bytes, more_used_bytes : int64 (tiers,): what to add to the engine's capacities and uses, which leave
        weights out, and count data once for every replica.
    placement : by pool: how it is divided, and where its weights lie.
    activations : for each pool whose activations cross to another: its place, the link's, a token's bytes each way.
    """

    spec: dict[str, Any]
    policies: list[list[PolicyChoice]]
    unit_pool: _Ints
    unit_replica: _Ints
    more_capacity_bytes: _Ints
    more_used_bytes: _Ints
    placement: dict[str, dict[str, Any]]
    activations: tuple[tuple[int, int, float], ...] = ()


def lower_run(
    trace: RequestTrace, model: Model, machine: Machine, serving: Serving, *, policy: Any = None, seed: int = 0
) -> LoweredRun:
    """Return the numbers of a run.

    Parameters
    ----------
    trace, model, machine, serving : what runs, on what, and how.
    policy : instead of the machine's own policies, as :func:`kvsim.replay` takes it.
    seed : for policies that draw; each worker draws its own.

    Raises
    ------
    MachineError
        The machine cannot hold the weights or the data, or its roles or links cannot serve.
    ConfigError, UnknownNameError, TraceError, ModelError
        An option, a name, a trace or a model that makes no sense here.
    """
    return _Run(trace, model, machine, serving).lowered(policy, seed)


class _Run(Replicas):
    """One run on its way to numbers."""

    def lowered(self, policy: Any, seed: int) -> LoweredRun:
        """Put everything together."""
        sides = self.sides()
        users = self._users(sides)
        for side in sides:
            self._settle(side, users)
        first = self._first_units(sides)
        workers = [
            {
                "kind": k,
                "role": side.role,
                "units": (first[side.shape.pool.name] + i, first[(side.ffn or side.shape).pool.name] + i),
            }
            for k, side in enumerate(sides)
            for i in range(side.replicas)
        ]
        fronts = sides[0].replicas
        names = self.trace.population_names
        partition = self.serving.partition
        groups = [list(range(fronts))] * len(names) if partition is None else shared_out(partition, names, fronts)
        unit_pool, unit_replica = self._units(sides)
        ladders = [side.ladder for side in sides for _ in range(side.replicas)]
        blocks, requests = columns(
            self.trace, self.model, block_tokens=self.serving.kv_block_tokens, token_bytes=sides[0].sizes.token,
            outermost=len(sides[0].ladder) - 1,
            experts=(self.model.experts * len(self.weights.experts) if self.cached else 0, self.model.expert_bytes,
                     sides[0].far_tier),
        )  # fmt: skip
        self.first_expert = len(blocks["bytes"]) - 1 - self.model.experts * len(self.weights.experts)
        self.seed = seed
        link_users = self._link_users(sides)
        kinds = [self._kind(side, users, link_users) for side in sides]
        spec = {
            "tiers": len(self.machine.tiers),
            "links": len(self.machine.links),
            "unit_pool": unit_pool.tolist(),
            "workers": workers,
            "groups": groups,
            "backs": list(range(fronts, len(workers))),
            "transfer": self._transfer(sides),
            "kinds": kinds,
            "model": _model_numbers(self.model),
            "blocks": blocks,
            "requests": requests,
            "retention": pauses(self.serving.retention, self.machine, sides[0].ladder),
            "options": self._options(),
        }
        more_capacity, more_used = self._more(sides)
        return LoweredRun(
            spec, _policies(self.machine, self.serving, policy, seed, ladders, kinds, workers), unit_pool, unit_replica,
            more_capacity, more_used, {k: v for side in sides for k, v in self._placement(side).items()},
            tuple(self._activations(sides)),
        )  # fmt: skip

    def _more(self, sides: Sequence[Side]) -> tuple[_Ints, _Ints]:
        """Return what the engine's books of capacity and use leave out, and count too often, by tier."""
        capacity = np.zeros(len(self.machine.tiers), np.int64)
        used = np.zeros(len(self.machine.tiers), np.int64)
        for side in sides:
            for tier, held in (
                (side.ladder[0], side.near_weight_bytes),
                # the engine counts cached experts itself, as blocks at home there
                (side.ladder[side.far_tier], 0 if self.cached else side.far_weight_bytes),
            ):
                capacity[tier] += side.replicas * held
                used[tier] += side.replicas * held
            if side.ffn is not None:
                tier = self.machine.ladder(side.ffn.pool)[0]
                capacity[tier] += side.replicas * self._near_bytes(side.ffn)
                used[tier] += side.replicas * self.weights.ffn_bytes
            if self._data_place(sides) < len(side.ladder):
                tier = side.ladder[self._data_place(sides)]
                again = side.replicas - (side is sides[0])
                capacity[tier] -= again * self.data_bytes
                used[tier] -= again * self.data_bytes
        return capacity, used

    def _data_place(self, sides: Sequence[Side]) -> int:
        return len(sides[0].ladder) - 1

    # ---- numbers ----

    def _first_units(self, sides: Sequence[Side]) -> dict[str, int]:
        """Return the number of the first unit of each pool."""
        first, at = {}, 0
        for name, count in self._counts(sides).items():
            first[name] = at
            at += count
        return first

    def _counts(self, sides: Sequence[Side]) -> dict[str, int]:
        count = {
            shape.pool.name: shape.replicas for side in sides for shape in (side.shape, side.ffn) if shape is not None
        }
        return {pool.name: count[pool.name] for pool in self.machine.pools}

    def _units(self, sides: Sequence[Side]) -> tuple[_Ints, _Ints]:
        counts = list(self._counts(sides).values())
        return (
            np.repeat(np.arange(len(counts)), counts).astype(np.int64),
            np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        )

    @cached_property
    def _link_places(self) -> dict[str, int]:
        return {link.name: i for i, link in enumerate(self.machine.links)}

    def _link_index(self, side: Side) -> list[int]:
        """Return the machine's own numbers of the links of a side."""
        return [self._link_places[link.name] for link in self.machine.narrowed(side.shape.pool).links]

    def _link_users(self, sides: Sequence[Side]) -> list[int]:
        """Return how many replicas share each link; those whose ladder ends above it do not."""
        users = [0] * len(self.machine.links)
        for side in sides:
            paths = [tier["path"] for tier in side.lowered.tiers[: len(side.ladder)]]
            for bit, i in enumerate(self._link_index(side)):
                users[i] += side.replicas * any(path >> bit & 1 for path in paths)
        return users

    def _kind(self, side: Side, users: Sequence[int], link_users: Sequence[int]) -> dict[str, Any]:
        """Return what workers of a side have in common."""
        model, serving, pool, ffn = self.model, self.serving, side.shape.pool, side.ffn
        sizes, groups = side.sizes, pool.attention_data
        table = _expert_table(model, self.wanted, ffn or side.shape, self._most_tokens())
        experts = len(self.wanted.experts)
        movements = [dict(rule) for rule in side.lowered.movements[: len(side.ladder) - 1]]
        if self.cached:  # a copy comes all the way up from its home
            for rule in movements[: side.far_tier]:
                rule["kinds"] |= 1 << KINDS.index("weights")
        far_weights = [[0, 0] for _ in side.ladder]
        if side.far_weight_bytes:
            far_weights[side.far_tier] = [
                # of the embedding a token reads its row, which is counted near
                side.far.head + groups * sum(side.far.attention),
                sum(side.far.dense) if ffn is None else 0,
            ]
        shapes = (side.shape, ffn or side.shape)
        rings = [self._collectives(side.shape, side.shape.group), self._collectives(shapes[1], shapes[1].tensor)]
        overhead = [self._overhead_ps(side.shape), 0 if ffn is None else self._overhead_ps(ffn)]
        hop_ps, hop_ps_per_token = self._hop(side)
        places = self._link_index(side)
        return {
            "ladder": list(side.ladder),
            "tiers": self._tiers(side, users),
            "links": [_slower(own, max(1, link_users[i])) for own, i in zip(side.lowered.links, places, strict=True)],
            "link_index": places,
            "movements": movements,
            "stages": 1 if ffn is not None else pool.pipeline,
            "microbatches": serving.microbatches,
            "ps_per_flop": tuple(
                _PS / (shape.tensor * shape.pool.peak(model.dtype) * shape.pool.mfu[operation])
                for shape, operation in zip(shapes, ("attention", "ffn"), strict=True)
            ),
            "overhead_ps": tuple(overhead),
            "collective_ps": tuple(ring[0] for ring in rings),
            "collective_ps_per_token": tuple(ring[1] for ring in rings),
            "hop_ps": hop_ps,
            "hop_ps_per_token": hop_ps_per_token,
            "near_weights": (
                side.near.head + groups * sum(side.near.attention),
                sum(side.near.dense if ffn is None else self.weights.dense),
            ),
            "far_weights": far_weights,
            "expert_bytes": table,
            "expert_near": (len(side.near.experts) if ffn is None else experts, experts) if experts else (1, 1),
            "expert_tier": side.far_tier,
            "experts": None
            if not self.cached
            else {
                "first": self.first_expert,
                "layers": len(self.weights.experts),
                "count": model.experts,
                "each": model.experts_per_token,
                "seed": self.seed,
            },
            "token_row_bytes": model.embedding_row_bytes if self.weights.embedding else 0,
            "block_tokens": serving.kv_block_tokens,
            "kv_token_bytes": sizes.token,
            "kv_write_bytes": sizes.written,
            "kv_layer_bytes": sizes.row,
            "window_token_bytes": sizes.window_token,
            "state_bytes": sizes.state,
            "ffn_near": None if ffn is None else self._ffn_near(ffn),
            "ffn_tier": side.ladder[0] if ffn is None else self.machine.ladder(ffn.pool)[0],
        }

    def _tiers(self, side: Side, users: Sequence[int]) -> list[dict[str, Any]]:
        """Return a replica's share of each tier of its ladder."""
        out = []
        for place, (tier, own) in enumerate(zip(side.ladder, side.lowered.tiers, strict=False)):
            share = users[tier] if place else self._pools_on(tier) * side.replicas
            room = self.usable[tier] // share
            if place == 0:
                room = side.room_bytes or room - side.near_weight_bytes
            elif place == side.far_tier and not self.cached:
                room -= side.far_weight_bytes
            # each replica sees the one copy of the data, whose room is already off the share
            home = len(self.machine.ladder(self._front)) - 1
            room += self.data_bytes if place == home else 0
            # of the near memory, what one stage has: it waits for no other
            pace = share * side.shape.pool.pipeline if place == 0 else share
            fragment = own["fragment_bytes"]
            out.append(
                _slower(own, pace)
                | {"capacity_bytes": room, "fragment_bytes": max(1, fragment // share) if fragment else 0}
            )
        return out

    @cached_property
    def _front(self) -> Pool:
        pools = self.machine.pools
        return pools[0] if len(pools) == 1 else self.machine.pool_for("prefill")

    def _ffn_near(self, shape: Shape) -> dict[str, Any]:
        """Return the pace of the memory that feed-forward weights are read from, where it has a pool of its own."""
        own = lower(
            self.machine.narrowed(shape.pool), self.model, layers=self.model.layers, activation_bytes_per_token=0.0
        ).tiers[0]
        tier = self.machine.ladder(shape.pool)[0]
        share = self._pools_on(tier) * shape.replicas
        fragment = own["fragment_bytes"]
        return _slower(own, share * shape.pool.pipeline) | {
            "capacity_bytes": self._near_bytes(shape) - self.weights.ffn_bytes,
            "fragment_bytes": max(1, fragment // share) if fragment else 0,
        }

    def _overhead_ps(self, shape: Shape) -> int:
        return round((shape.pool.t_step_s + self.model.layers * shape.pool.t_layer_s) * _PS)

    def _collectives(self, shape: Shape, devices: int) -> tuple[float, float]:
        """Return the picoseconds of one operation's all-reduces of all layers, and those that each token adds.

        A ring moves 2 (n - 1) / n of the activations; attention's goes over the devices of one group, whose tokens are
        those of its own requests.
        """
        if devices == 1:
            return 0.0, 0.0
        pool, layers = shape.pool, float(self.model.layers)
        moved = 2.0 * (devices - 1) / devices * self.model.hidden * ACTIVATION_BYTES * devices / shape.tensor
        per_token = moved / pool.allreduce_bytes_per_s if pool.allreduce_bytes_per_s else 0.0
        return layers * pool.allreduce_latency_s * _PS, layers * per_token * _PS

    def _hop(self, side: Side) -> tuple[float, float]:
        """Return the picoseconds of a hop between stages, or of all those between the two pools, fixed and a token."""
        pool, activation = side.shape.pool, float(self.model.hidden * ACTIVATION_BYTES)
        if side.ffn is None:
            per_byte = 1.0 / pool.hop_bytes_per_s if pool.hop_bytes_per_s else 0.0
            return pool.hop_s * _PS, activation * per_byte * _PS
        link = self._pool_link(pool, side.ffn.pool, "activations")
        layers, share = float(self.model.layers), link.count / side.replicas
        there_and_back = 1.0 / (share * link.read_bytes_per_s) + 1.0 / (share * link.write_bytes_per_s)
        latency = 2.0 * layers * (link.latency_s + link.overhead_s)
        return latency * _PS, layers * activation * there_and_back * _PS

    def _activations(self, sides: Sequence[Side]) -> Iterator[tuple[int, int, float]]:
        names = [pool.name for pool in self.machine.pools]
        for side in sides:
            if side.ffn is not None:
                link = self._pool_link(side.shape.pool, side.ffn.pool, "activations")
                token = float(self.model.layers * self.model.hidden * ACTIVATION_BYTES)
                yield names.index(side.shape.pool.name), self._link_places[link.name], token

    def _pool_link(self, one: Pool, other: Pool, what: str) -> Link:
        for link in self.machine.links:
            if set(link.between) == {one.name, other.name} and self.machine.joins_pools(link):
                return link
        raise MachineError(
            f"{self.machine.name}: found no link between the pools {one.name!r} and {other.name!r}, expected one: "
            f"{what} cross it"
        )

    def _transfer(self, sides: Sequence[Side]) -> dict[str, Any] | None:
        """Return the pace of the link that KV takes after prefill; "write" is the way it goes."""
        if len(sides) == 1:
            return None
        front, back = (side.shape.pool for side in sides)
        link = self._pool_link(front, back, "prefilled prompts")
        # read is towards the pool named first
        there, back_again = link.write_bytes_per_s, link.read_bytes_per_s
        if link.between[0] == back.name:
            there, back_again = back_again, there
        duplex = link.duplex
        return {
            "read_ps_per_byte": _PS / (link.count * back_again),
            "write_ps_per_byte": _PS / (link.count * there),
            "both_ps_per_byte": 0.0 if isinstance(duplex, str) else _PS / (link.count * duplex),
            "shared": duplex == "half",
            "latency_ps": (link.latency_s + link.overhead_s) * _PS,
            "link": self._link_places[link.name],
            "up": link.between[0] == back.name,
        }

    def _most_tokens(self) -> int:
        """Return the most tokens that a step may have."""
        serving = self.serving
        prompt = 0 if serving.chunked or not self.trace.n else int(self.lengths.final.max())
        return serving.max_seqs * (1 + serving.draft_tokens) + max(serving.max_tokens, prompt)

    def _options(self) -> dict[str, Any]:
        s = self.serving
        slots = self.machine.cpu_slots if s.cpu_slots is None else s.cpu_slots
        return {
            "max_seqs": s.max_seqs,
            "max_tokens": s.max_tokens,
            "chunked": s.chunked,
            "mixed": s.mixed,
            "order": ORDERS.index(s.order),
            "overflow": OVERFLOWS.index(s.kv_overflow),
            "swap": s.preemption == "swap",
            "load": LOADS.index(s.load),
            "deadline_ps": 0 if s.load_deadline_s is None else max(1, round(s.load_deadline_s * _PS)),
            "draft": s.draft_tokens,
            "accepted": round(s.accepted_tokens * _ONE),
            "draft_ps": round(s.draft_s * _PS),
            "router": ROUTERS.index(s.router),
            "cpu_slots": slots or 0,
            "concurrency": s.concurrency or 0,
            "oracle": s.retention.foresight,
        }

    def _placement(self, side: Side) -> dict[str, dict[str, Any]]:
        """Say how a side's pools are divided and where its weights lie."""

        def said(shape: Shape, near: int, far: int) -> dict[str, Any]:
            told: dict[str, Any] = {
                "replicas": shape.replicas,
                "tensor": shape.tensor,
                "pipeline": shape.pool.pipeline,
                "near_weight_bytes": near,
                "streamed_weight_bytes": far,
            }
            if far:
                told["streamed_from"] = self.machine.tiers[side.ladder[side.far_tier]].name
            return told

        own = said(side.shape, side.near_weight_bytes, side.far_weight_bytes)
        own["kv_copies"] = float(side.shape.copies(self.model))
        out = {side.shape.pool.name: own}
        if side.ffn is not None:
            out[side.ffn.pool.name] = said(side.ffn, self.weights.ffn_bytes, 0)
        return out


def _slower(channel: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return a share of a channel: one of `times` equal ones."""
    return {**channel, **{key: channel[key] * times for key in _PACES}}


def _model_numbers(model: Model) -> dict[str, Any]:
    """Return the work of a token: FLOPs through weights, and of each pair of tokens that attend to each other."""
    layers = model.global_layers + model.local_layers  # of one token alone, half a pair each

    def pair(absorbed: bool) -> float:
        return model.attention_flops(1, 0, absorbed=absorbed) / (0.5 * layers) if layers else 0.0

    return {
        "flops": (2.0 * model.attention_parameters, 2.0 * model.ffn_parameters_active),
        "head_flops": 2.0 * model.head_parameters,
        "pair_decode": pair(True),
        "pair_prefill": pair(False),
        "global_layers": model.global_layers - model.sparse_layers,
        "sparse_layers": model.sparse_layers,
        "local_layers": model.local_layers,
        "sparse": model.sparse_tokens,
        "window": model.window,
        "stateful": model.state_bytes > 0,
    }


def _expert_table(model: Model, weights: Weights, shape: Shape, most: int) -> _Ints:
    """Tabulate the bytes of routed experts read in a step of 0, 1, 2 … tokens, until more touch no more."""
    if not weights.experts:
        return np.zeros(1, np.int64)
    dense = sum(weights.dense)
    devices, experts, layers = shape.tensor, model.experts, model.moe_layers
    each, spread = experts / devices, 2.0 * math.log(devices)

    def touched(tokens: int) -> int:
        if not tokens:
            return 0
        if not shape.pool.expert or devices == 1:
            return max(model.ffn_read_bytes(tokens) - dense, 0)
        hit = 1.0 - (1.0 - model.experts_per_token / experts) ** tokens
        fullest = min(each, each * hit + math.sqrt(each * hit * (1.0 - hit) * spread))
        return sum(weights.experts) - round((each - fullest) * devices * model.expert_bytes * layers)

    limit = touched(most)
    low, high = 0, most
    while low < high:  # the first count of tokens that reads as much as the most tokens do
        middle = (low + high) // 2
        if touched(middle) < limit:
            low = middle + 1
        else:
            high = middle
    if low > _EXPERT_ROWS_MOST:
        raise ModelError(
            f"model {model.name}: experts: found all touched after {low} tokens only, expected "
            f"{_EXPERT_ROWS_MOST} or fewer"
        )
    return np.array([max(touched(tokens), 0) for tokens in range(low + 1)], dtype=np.int64)


def _policies(
    machine: Machine, serving: Serving, policy: Any, seed: int, ladders: Sequence[Sequence[int]],
    kinds: Sequence[dict[str, Any]], workers: Sequence[Mapping[str, Any]],
) -> list[list[PolicyChoice]]:  # fmt: skip
    """Choose each worker's policies, and tell the tiers of its kind which of them evict leaves only."""
    from kvsim.replay import tier_policies

    if serving.retention.foresight:
        if policy is not None:
            raise ConfigError(
                "policy: found one beside retention foresight, expected none: it evicts what is used last"
            )
        policy = "belady"
    out = []
    for w, ladder in enumerate(ladders):
        choices = tier_policies(machine, policy, seed=seed + w * len(machine.tiers))
        out.append([choices[tier] for tier in ladder])
    single = [id(choice.make) for own in out for choice in own if not choice.many]
    if len(out) > 1 and single:
        raise ConfigError(
            f"policy: found one object for {len(out)} replicas, expected a factory: each replica needs its own"
        )
    for own, worker in zip(out, workers, strict=True):
        for spec, choice in zip(kinds[worker["kind"]]["tiers"], own, strict=True):
            spec["leaf_only"] = spec["leaf_only"] or choice.leaf_only
    return out
