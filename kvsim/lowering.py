"""A machine and a model as the flat numbers that the core computes with.

Here every default and every name is resolved: rates of all identical devices together, picoseconds a byte and a FLOP,
links as bits, movement rules as codes. The core knows no default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvsim.units import UNBOUNDED_BYTES
from kvsim_core import KINDS, OPERATIONS

if TYPE_CHECKING:
    from kvsim.machine import Link, Machine, Movement, Pool, Tier
    from kvsim.model import Model

__all__ = ["Lowered", "lower"]

_PS = 1e12
_EVICTION = {"write_back": 0, "write_through": 1, "discard": 2}


@dataclass(frozen=True)
class Lowered:
    """What `kvsim_core.Store` and `kvsim_core.Clock` take."""

    tiers: tuple[dict[str, Any], ...]
    movements: tuple[dict[str, Any], ...]
    links: tuple[dict[str, Any], ...]
    workspace_bytes: int
    pace: dict[str, Any]


def lower(machine: Machine, model: Model | None, *, layers: int, activation_bytes_per_token: float) -> Lowered:
    """Return the core's numbers for a machine that runs `layers` layers.

    Parameters
    ----------
    machine : Machine
    model : Model or None
        Chooses the arithmetic's precision; None for a trace without FLOPs.
    layers : int
        For overheads and collectives a layer.
    activation_bytes_per_token : float
        What an all-reduce moves for each token.
    """
    places = {tier.name: t for t, tier in enumerate(machine.tiers)}
    paths = _paths(machine, places)
    tiers = []
    for t, tier in enumerate(machine.tiers):
        crossed = [link for i, link in enumerate(machine.links) if paths[t] >> i & 1]
        tiers.append(
            {
                **_channel(tier, tier.efficiency),
                "capacity_bytes": machine.usable_bytes(t),
                # identical memories move their fragments side by side
                "fragment_bytes": min(int(tier.fragment_bytes) * tier.count, UNBOUNDED_BYTES),
                "path": paths[t],
                "leaf_only": tier.leaf_only or tier.policy.startswith("leaf-"),
                "touch_all": tier.touch == "all",
                "latency_ps": (tier.latency_s + sum(link.latency_s for link in crossed)) * _PS,
                "overhead_ps": (tier.overhead_s + sum(link.overhead_s for link in crossed)) * _PS,
                "norm": float(tier.norm),
            }
        )
    pool = machine.pools[0]
    devices = pool.devices if pool.tensor == "auto" else int(pool.tensor)
    rings = 2.0 * layers if devices > 1 else 0.0
    bus = pool.allreduce_bytes_per_s
    per_token = 2.0 * (devices - 1) / devices * activation_bytes_per_token / bus if bus and devices > 1 else 0.0
    return Lowered(
        tuple(tiers),
        tuple(_movement(rule) for rule in machine.movements),
        tuple(_channel(link, 1.0) for link in machine.links),
        machine.tiers[0].total_capacity_bytes - machine.usable_bytes(0),
        {
            "ps_per_flop": _ps_per_flop(pool, model),
            "overhead_ps": round((pool.t_step_s + layers * pool.t_layer_s) * _PS),
            "collective_ps": rings * pool.allreduce_latency_s * _PS,
            "collective_ps_per_token": rings * per_token * _PS,
        },
    )


def _channel(channel: Tier | Link, efficiency: float) -> dict[str, Any]:
    devices = channel.count * efficiency
    duplex = channel.duplex
    return {
        "read_ps_per_byte": _PS / (devices * channel.read_bytes_per_s),
        "write_ps_per_byte": _PS / (devices * channel.write_bytes_per_s),
        "both_ps_per_byte": 0.0 if isinstance(duplex, str) else _PS / (devices * duplex),
        "shared": duplex == "half",
    }


def _paths(machine: Machine, places: dict[str, int]) -> list[int]:
    """Return for each tier the bits of the links between it and compute.

    A tier without a link to one above it hangs on its upper neighbour; the nearest tier has no path.
    """
    paths = [0] * len(machine.tiers)
    for t in range(1, len(paths)):
        above = [
            (places[link.between[0]], i)
            for i, link in enumerate(machine.links)
            if places.get(link.between[1]) == t and places.get(link.between[0], t) < t
        ]
        paths[t] = paths[t - 1] if not above else 0
        for upper, i in above:
            paths[t] |= paths[upper] | 1 << i
    return paths


def _movement(rule: Movement) -> dict[str, Any]:
    after = {"always": 1, "never": 0}.get(str(rule.promote))
    return {
        "promote_after": int(rule.promote) if after is None else after,
        "exclusive": rule.inclusion == "exclusive",
        "eviction": _EVICTION[rule.eviction],
        "kinds": sum(1 << KINDS.index(kind) for kind in rule.kinds),
    }


def _ps_per_flop(pool: Pool, model: Model | None) -> tuple[float, float]:
    peak = pool.peak(model.dtype if model is not None else "bf16")
    rates = [pool.devices * peak * pool.mfu[operation] for operation in OPERATIONS]
    return _PS / rates[0], _PS / rates[1]
