"""The parts of a machine: tiers, links, movements and pools, each frozen and checked by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from kvsim._fields import Checked, Rule
from kvsim.errors import MachineError, UnknownNameError, shown
from kvsim.units import UNBOUNDED_BYTES

__all__ = ["KINDS", "MEDIA", "ROLES", "Link", "Movement", "Pool", "Tier"]

KINDS: Final = ("kv", "weights", "state", "data")
ROLES: Final = ("prefill", "attention", "ffn")
MEDIA: Final = ("SRAM", "HBM", "DRAM", "SSD", "remote")
_PEAKS = ("fp32", "bf16", "fp16", "fp8", "int8", "fp4")
# What computes weights of a precision when the hardware has no unit for it: the next wider one that
# it has.
_WIDER = {
    "fp4": ("fp4", "fp8", "bf16", "fp16"),
    "nvfp4": ("fp4", "fp8", "bf16", "fp16"),
    "mxfp4": ("fp4", "fp8", "bf16", "fp16"),
    "int4": ("int8", "bf16", "fp16"),
    "fp8": ("fp8", "bf16", "fp16"),
    "int8": ("int8", "bf16", "fp16"),
    "bf16": ("bf16", "fp16"),
    "fp16": ("fp16", "bf16"),
    "fp32": ("fp32",),
}
_HOUR = 3600.0
_rate = Rule("bytes/s", low=1.0)
_delay = Rule("s", high=_HOUR)


def _short(rule: Rule, *names: str) -> Rule:
    return dataclasses.replace(rule, short=names)


@dataclass(frozen=True, kw_only=True)
class Tier(Checked):
    """A memory: `count` identical ones; every number is one's.

    Attributes
    ----------
    medium : SRAM, HBM, DRAM, SSD or remote.
    capacity_bytes : may be 0 (a tier that holds nothing) or "unbounded".
    efficiency : achieved fraction of the bandwidths, above 0 to 1.
    overhead_s : per fragment of `fragment_bytes` (0: per transfer); the `count` memories move theirs side by side.
    norm : p of the transfer time (latency^p + rest^p)^(1/p); 1 adds them up.
    duplex : "half" (reads and writes share the time), "full", or a total in bytes/s of one.
    policy, leaf_only : what evicts, and whether only blocks without children here may go.
    touch : "all" if a look-up that a nearer tier answers also tells this tier's policy, else
        "nearest".
    endurance_dwpd : drive writes a day it is made for; price_usd : of one. None where not known.
    """

    name: str
    medium: str
    capacity_bytes: int
    read_bytes_per_s: float
    write_bytes_per_s: float
    count: int = 1
    efficiency: float = 1.0
    latency_s: float = 0.0
    overhead_s: float = 0.0
    fragment_bytes: int = 0
    norm: float = 1.0
    duplex: str | float = "half"
    policy: str = "lru"
    leaf_only: bool = False
    touch: str = "nearest"
    endurance_dwpd: float | None = None
    price_usd: float | None = None

    WHAT: ClassVar[str] = "tier"
    RULES: ClassVar[dict[str, Rule]] = {
        "name": Rule("name"),
        "medium": Rule("word", words=MEDIA),
        "count": Rule("count", low=1, high=1_000_000),
        "capacity_bytes": Rule("bytes", short=("capacity",)),
        "read_bytes_per_s": _short(_rate, "read"),
        "write_bytes_per_s": _short(_rate, "write"),
        "efficiency": Rule("", high=1.0, positive=True),
        "latency_s": _short(_delay, "latency"),
        "overhead_s": _short(_delay, "overhead"),
        "fragment_bytes": Rule("bytes", short=("fragment",)),
        "norm": Rule("", low=1.0, high=16.0),
        "duplex": Rule("bytes/s", low=1.0, words=("half", "full")),
        "policy": Rule("text"),
        "leaf_only": Rule("flag"),
        "touch": Rule("word", words=("nearest", "all")),
        "endurance_dwpd": Rule("", optional=True, short=("dwpd", "endurance")),
        "price_usd": Rule("USD", optional=True, short=("price",)),
    }

    def __post_init__(self) -> None:
        self._read_fields()
        if self.capacity_bytes != UNBOUNDED_BYTES and self.count * self.capacity_bytes > UNBOUNDED_BYTES:
            raise MachineError(
                f"tier.{self.name}.capacity_bytes: found {self.count} x {self.capacity_bytes}, "
                f"expected at most {UNBOUNDED_BYTES} bytes in all"
            )

    @property
    def total_capacity_bytes(self) -> int:
        """What all of them hold."""
        return min(self.count * self.capacity_bytes, UNBOUNDED_BYTES)

    @property
    def total_read_bytes_per_s(self) -> float:
        """Achieved read bandwidth of all of them."""
        return self.count * self.read_bytes_per_s * self.efficiency

    @property
    def total_write_bytes_per_s(self) -> float:
        """Achieved write bandwidth of all of them."""
        return self.count * self.write_bytes_per_s * self.efficiency

    @property
    def total_price_usd(self) -> float | None:
        """Price of all of them, or None."""
        return None if self.price_usd is None else self.count * self.price_usd


@dataclass(frozen=True, kw_only=True)
class Link(Checked):
    """What a move between two tiers or two pools crosses: `count` identical ones; every number is one's.

    `between` names the tier nearer to compute, then the farther one; read is towards compute. Or it
    names two pools, which KV goes between after prefill, or activations in every layer; read is then
    towards the first named. `overhead_s` is spent for each transfer. `duplex` is "full", "half" or a
    total in bytes/s of one.
    """

    name: str
    between: tuple[str, str]
    read_bytes_per_s: float
    write_bytes_per_s: float
    count: int = 1
    duplex: str | float = "full"
    latency_s: float = 0.0
    overhead_s: float = 0.0

    WHAT: ClassVar[str] = "link"
    RULES: ClassVar[dict[str, Rule]] = {
        "name": Rule("name"),
        "count": Rule("count", low=1, high=1_000_000),
        "read_bytes_per_s": _short(_rate, "read"),
        "write_bytes_per_s": _short(_rate, "write"),
        "duplex": Rule("bytes/s", low=1.0, words=("half", "full")),
        "latency_s": _short(_delay, "latency"),
        "overhead_s": _short(_delay, "overhead"),
    }

    def __post_init__(self) -> None:
        self._read_fields()
        ends = self.between
        if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(isinstance(end, str) for end in ends):
            raise MachineError(
                f"link.{self.name}.between: found {shown(ends)}, expected the names of two tiers or two pools"
            )
        object.__setattr__(self, "between", tuple(ends))


@dataclass(frozen=True, kw_only=True)
class Movement(Checked):
    """What moves between two neighbouring tiers.

    Attributes
    ----------
    upper, lower : the tier nearer to compute, and the next one outwards.
    promote : on a hit below: "always", "never", or after so many hits there.
    inclusion : a promoted block stays below too ("inclusive") or leaves ("exclusive").
    eviction : on eviction above: "write_back" (demote unless below has it), "write_through" (it
        went down when it was inserted) or "discard".
    kinds : which kinds are promoted; weights that are not are streamed from where they lie.

    Raises
    ------
    MachineError
        An unknown word, or exclusive with write_through, which contradict each other.
    """

    upper: str
    lower: str
    promote: str | int = "always"
    inclusion: str = "inclusive"
    eviction: str = "write_back"
    kinds: tuple[str, ...] = KINDS

    WHAT: ClassVar[str] = "movement"
    RULES: ClassVar[dict[str, Rule]] = {
        "upper": Rule("name"),
        "lower": Rule("name"),
        "promote": Rule("count", low=1, high=1_000_000, words=("always", "never")),
        "inclusion": Rule("word", words=("inclusive", "exclusive")),
        "eviction": Rule("word", words=("write_back", "write_through", "discard")),
    }

    def _label(self) -> str:
        return f'movement."{self.upper}/{self.lower}"'

    def __post_init__(self) -> None:
        self._read_fields()
        object.__setattr__(self, "kinds", _words(self.kinds, KINDS, f"{self._label()}.kinds", "kind"))
        if self.inclusion == "exclusive" and self.eviction == "write_through":
            raise MachineError(
                f"{self._label()}: found inclusion 'exclusive' with eviction 'write_through', "
                "expected another eviction: what was written through would be a second copy"
            )


@dataclass(frozen=True, kw_only=True)
class Pool(Checked):
    """Identical devices that compute together.

    Attributes
    ----------
    devices : how many, a multiple of tensor x pipeline, the devices of one replica.
    tensor : over how many the weights of a stage are divided, or "auto" (the fewest that hold them).
    pipeline : stages, each with its share of the layers.
    attention_data : of the `tensor` devices of a stage, how many groups each hold attention's weights
        whole and serve requests of their own; divides `tensor`.
    expert : whether experts lie whole on one device each, instead of every expert being divided.
    near : the tier nearest to the pool; "" is the machine's first.
    peak_flops_per_s : dense peak of one device by precision.
    mfu : achieved fraction of the peak with many tokens, of each operation ("attention", "ffn") or
        one number.
    t_step_s, t_layer_s : overhead of a step, and of each layer.
    allreduce_latency_s, allreduce_bytes_per_s : of an all-reduce; 0 bytes/s leaves its bandwidth
        term out.
    hop_s, hop_bytes_per_s : of a hop from one pipeline stage to the next; 0 bytes/s leaves its
        bandwidth term out.
    roles : prefill, attention, ffn.
    """

    name: str
    devices: int = 1
    tensor: str | int = "auto"
    pipeline: int = 1
    attention_data: int = 1
    expert: bool = False
    near: str = ""
    peak_flops_per_s: Mapping[str, float] = field(hash=False)
    mfu: Mapping[str, float] = field(default=1.0, hash=False)  # type: ignore[arg-type]
    t_step_s: float = 0.0
    t_layer_s: float = 0.0
    allreduce_latency_s: float = 0.0
    allreduce_bytes_per_s: float = 0.0
    hop_s: float = 0.0
    hop_bytes_per_s: float = 0.0
    roles: tuple[str, ...] = ROLES

    WHAT: ClassVar[str] = "pool"
    RULES: ClassVar[dict[str, Rule]] = {
        "name": Rule("name"),
        "devices": Rule("count", low=1, high=1_000_000),
        "tensor": Rule("count", low=1, words=("auto",)),
        "pipeline": Rule("count", low=1, high=1024),
        "attention_data": Rule("count", low=1, high=1_000_000),
        "expert": Rule("flag"),
        "near": Rule("text"),
        "t_step_s": _short(_delay, "t_step"),
        "t_layer_s": _short(_delay, "t_layer"),
        "allreduce_latency_s": _short(_delay, "allreduce_latency"),
        "allreduce_bytes_per_s": Rule("bytes/s", short=("allreduce",)),
        "hop_s": _short(_delay, "hop"),
        "hop_bytes_per_s": Rule("bytes/s", short=("hop_bandwidth",)),
        "peak_flops_per_s": Rule("FLOP/s", positive=True, short=("peak",)),
        "mfu": Rule("", high=1.0, positive=True),
    }

    def __post_init__(self) -> None:
        put = object.__setattr__
        peak, mfu = self.peak_flops_per_s, self.mfu
        put(self, "peak_flops_per_s", 1.0)
        put(self, "mfu", 1.0)
        self._read_fields()
        at = f"pool.{self.name}"
        put(self, "roles", _words(self.roles, ROLES, f"{at}.roles", "role"))
        if not isinstance(mfu, Mapping):
            mfu = dict.fromkeys(("attention", "ffn"), mfu)
        put(self, "peak_flops_per_s", self._table(peak, _PEAKS, "peak_flops_per_s", "precision"))
        put(self, "mfu", self._table(mfu, ("attention", "ffn"), "mfu", "operation"))
        if len(self.mfu) != 2:
            raise MachineError(f"{at}.mfu: found {shown(dict(self.mfu))}, expected both attention and ffn")
        self._check_splits(at)

    def _check_splits(self, at: str) -> None:
        if self.devices % self.pipeline:
            raise MachineError(f"{at}.pipeline: found {self.pipeline}, expected a divisor of devices ({self.devices})")
        stage = self.devices // self.pipeline
        stages = f" / pipeline ({self.devices} / {self.pipeline})" if self.pipeline > 1 else f" ({self.devices})"
        if isinstance(self.tensor, int) and stage % self.tensor:
            raise MachineError(f"{at}.tensor: found {self.tensor}, expected a divisor of devices{stages}")
        whole = stage if isinstance(self.tensor, str) else self.tensor
        if whole % self.attention_data:
            of = f"devices{stages}" if isinstance(self.tensor, str) else f"tensor ({self.tensor})"
            raise MachineError(f"{at}.attention_data: found {self.attention_data}, expected a divisor of {of}")

    def _table(self, table: object, known: tuple[str, ...], key: str, what: str) -> dict[str, float]:
        at = f"pool.{self.name}.{key}"
        if not isinstance(table, Mapping) or not table:
            raise MachineError(f"{at}: found {shown(table)}, expected a table by {what} ({', '.join(known)})")
        for name in table:
            if name not in known:
                raise UnknownNameError(name, known, what, place=at)
        return {name: self.RULES[key].read(table[name], f"{at}.{name}") for name in known if name in table}

    def peak(self, dtype: str) -> float:
        """Return one device's peak FLOP/s for a precision; the next wider unit's if it has none."""
        for name in _WIDER.get(dtype, (dtype,)):
            if name in self.peak_flops_per_s:
                return self.peak_flops_per_s[name]
        return min(self.peak_flops_per_s.values())


def _words(value: object, known: tuple[str, ...], at: str, what: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise MachineError(f"{at}: found {shown(value)}, expected a list of {', '.join(known)}")
    for word in value:
        if word not in known:
            raise UnknownNameError(word, known, what, place=at)
    return tuple(word for word in known if word in value)
