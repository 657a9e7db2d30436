"""Machines: pools of devices, tiers of memory, links, and what moves between neighbours.

All objects are frozen. Numbers may be given as text with units ("3.35 TB/s"); they are held in SI.
Tiers are ordered from compute outwards; a tier or a link is `count` identical ones, and its numbers
are those of one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

from kvsim import _toml
from kvsim._fields import Checked, Rule
from kvsim._toml import DOUBTFUL, Source, find_source
from kvsim.errors import MachineError, UnknownNameError, shown
from kvsim.units import UNBOUNDED_BYTES, format_bytes, format_rate, format_time, parse

__all__ = ["KINDS", "Link", "Machine", "Movement", "Pool", "Tier"]

KINDS: Final = ("kv", "weights", "state", "data")
ROLES: Final = ("prefill", "attention", "ffn")
MEDIA: Final = ("SRAM", "HBM", "DRAM", "SSD", "remote")
MOST_TIERS, MOST_LINKS, MOST_POOLS = 8, 16, 8
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
    overhead_s : per fragment of `fragment_bytes` (0: per transfer).
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
    """What a move between two tiers crosses: `count` identical ones; every number is one's.

    `between` names the tier nearer to compute, then the farther one; read is towards compute.
    `overhead_s` is spent for each transfer. `duplex` is "full", "half" or a total in bytes/s of
    one.
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
            raise MachineError(f"link.{self.name}.between: found {shown(ends)}, expected the names of two tiers")
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
    devices : how many; tensor : over how many the weights are divided, or "auto" (the fewest that
        hold them).
    peak_flops_per_s : dense peak of one device by precision.
    mfu : achieved fraction of the peak with many tokens, of each operation ("attention", "ffn") or
        one number.
    t_step_s, t_layer_s : overhead of a step, and of each layer.
    allreduce_latency_s, allreduce_bytes_per_s : of an all-reduce; 0 bytes/s leaves its bandwidth
        term out.
    roles : prefill, attention, ffn.
    """

    name: str
    devices: int = 1
    tensor: str | int = "auto"
    peak_flops_per_s: Mapping[str, float] = field(hash=False)
    mfu: Mapping[str, float] = field(default=1.0, hash=False)  # type: ignore[arg-type]
    t_step_s: float = 0.0
    t_layer_s: float = 0.0
    allreduce_latency_s: float = 0.0
    allreduce_bytes_per_s: float = 0.0
    roles: tuple[str, ...] = ROLES

    WHAT: ClassVar[str] = "pool"
    RULES: ClassVar[dict[str, Rule]] = {
        "name": Rule("name"),
        "devices": Rule("count", low=1, high=1_000_000),
        "tensor": Rule("count", low=1, words=("auto",)),
        "t_step_s": _short(_delay, "t_step"),
        "t_layer_s": _short(_delay, "t_layer"),
        "allreduce_latency_s": _short(_delay, "allreduce_latency"),
        "allreduce_bytes_per_s": Rule("bytes/s", short=("allreduce",)),
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
        if isinstance(self.tensor, int) and (self.tensor > self.devices or self.devices % self.tensor):
            raise MachineError(f"{at}.tensor: found {self.tensor}, expected a divisor of devices ({self.devices})")

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


@dataclass(frozen=True, kw_only=True)
class Machine(Checked):
    """Pools of devices over an ordered stack of memories.

    Attributes
    ----------
    tiers : from compute outwards, 1 to 8; links : at most 16; movements : one for each pair of
        neighbours (a pair that is not given gets the defaults).
    reserve : fraction of the nearest tier that neither weights nor KV may use.
    price_usd_per_h, capex_usd, power_w : rent, purchase, all-in power; None where not known.
    sources : where each number comes from, by dotted path; a table's entry holds for what is in it.

    Raises
    ------
    MachineError, UnknownNameError
        A machine that cannot exist; the message names the key.
    """

    name: str
    tiers: tuple[Tier, ...]
    pools: tuple[Pool, ...]
    title: str = ""
    date: str = ""
    links: tuple[Link, ...] = ()
    movements: tuple[Movement, ...] = ()
    reserve: float = 0.10
    price_usd_per_h: float | None = None
    capex_usd: float | None = None
    power_w: float | None = None
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)

    RULES: ClassVar[dict[str, Rule]] = {
        "name": Rule("text"),
        "title": Rule("text"),
        "date": Rule("text"),
        "reserve": Rule("", high=0.99),
        "price_usd_per_h": Rule("USD/h", optional=True, short=("price", "rent")),
        "capex_usd": Rule("USD", optional=True, short=("capex",)),
        "power_w": Rule("W", optional=True, short=("power",)),
    }

    def _label(self) -> str:
        return ""

    def __post_init__(self) -> None:
        self._read_fields()
        put = object.__setattr__
        if not self.title:
            put(self, "title", self.name)
        for key, sort in (("tiers", Tier), ("pools", Pool), ("links", Link), ("movements", Movement)):
            things = getattr(self, key)
            if not isinstance(things, list | tuple) or not all(isinstance(thing, sort) for thing in things):
                raise MachineError(f"{key}: found {shown(things)}, expected a list of {sort.__name__}")
            put(self, key, tuple(things))
        for key, least, most in (("tiers", 1, MOST_TIERS), ("pools", 1, MOST_POOLS), ("links", 0, MOST_LINKS)):
            found = len(getattr(self, key))
            if not least <= found <= most:
                raise MachineError(f"{key}: found {found or 'none'}, expected {least} to {most}")
            names = [thing.name for thing in getattr(self, key)]
            for name in names:
                if names.count(name) > 1:
                    raise MachineError(f"{key}: found two of the name {name!r}, expected each name once")
        order = self.tier_names
        for link in self.links:
            self._check_pair(link.between, f"link.{link.name}.between", order)
        given: dict[tuple[str, str], Movement] = {}
        for movement in self.movements:
            pair = (movement.upper, movement.lower)
            at = f'movement."{movement.upper}/{movement.lower}"'
            self._check_pair(pair, at, order)
            if order.index(pair[1]) != order.index(pair[0]) + 1:
                raise MachineError(
                    f"{at}: found tiers that are not neighbours, expected two in a row of {'/'.join(order)}"
                )
            if pair in given:
                raise MachineError(f"{at}: found two, expected one for each pair of neighbours")
            given[pair] = movement
        pairs = pairwise(order)
        put(self, "movements", tuple(given.get(p, Movement(upper=p[0], lower=p[1])) for p in pairs))

    def _check_pair(self, pair: tuple[str, str], at: str, order: tuple[str, ...]) -> None:
        for end in pair:
            if end not in order:
                raise UnknownNameError(end, order, "tier", place=at)
        if order.index(pair[0]) >= order.index(pair[1]):
            raise MachineError(
                f"{at}: found {pair[0]!r} before {pair[1]!r}, expected the nearer tier first ({'/'.join(order)})"
            )

    # ---------------------------------------------------------------- parts

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Names of the tiers, from compute outwards."""
        return tuple(tier.name for tier in self.tiers)

    def tier(self, name: str) -> Tier:
        """Return the tier of a name; UnknownNameError if there is none."""
        return self.tiers[self.tier_index(name)]

    def tier_index(self, name: str) -> int:
        """Return the place of a tier, 0 nearest to compute; UnknownNameError if there is none."""
        if name not in self.tier_names:
            raise UnknownNameError(name, self.tier_names, "tier", place=self.name)
        return self.tier_names.index(name)

    def pool_for(self, role: str) -> Pool:
        """Return the pool that has a role; MachineError if none has it."""
        for pool in self.pools:
            if role in pool.roles:
                return pool
        raise MachineError(f"{self.name}: found no pool with the role {shown(role)}, expected one")

    def usable_bytes(self, tier: int) -> int:
        """Bytes that blocks may take in a tier: all, less the reserve in the nearest."""
        total = self.tiers[tier].total_capacity_bytes
        return total - round(total * self.reserve) if tier == 0 else total

    def weights_home(self, weight_bytes: int) -> int:
        """Return the nearest tier that holds all weights (in the nearest tier: less the reserve).

        Raises
        ------
        MachineError
            No tier is large enough.
        """
        for index in range(len(self.tiers)):
            if weight_bytes <= self.usable_bytes(index):
                return index
        largest = max(range(len(self.tiers)), key=self.usable_bytes)
        raise MachineError(
            f"{self.name}: weights {format_bytes(weight_bytes)} exceed every tier "
            f"(largest {self.tiers[largest].name}: {format_bytes(self.usable_bytes(largest))})"
        )

    # ---------------------------------------------------------------- sources

    def values(self) -> Iterator[tuple[str, Any, str]]:
        """Yield each number and word that is not a default: its dotted path, value and unit."""
        for path, value, rule in self._leaves():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            unit = rule.unit if rule is not None and number else ""
            shown_value = list(value) if isinstance(value, tuple) else value
            yield path, shown_value, "" if unit == "count" else unit

    def numbers(self) -> Iterator[tuple[str, float, str]]:
        """Yield each number that is not a default: its dotted path, its value in SI, its unit."""
        for path, value, unit in self.values():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield path, value, unit

    def source(self, path: str) -> Source | None:
        """Return where the number of a dotted path comes from, or None."""
        return find_source(self.sources, path)

    def doubtful(self) -> list[tuple[str, Source]]:
        """Return the numbers that are estimates or from memory: dotted path and source."""
        found = [(path, self.source(path)) for path, _, _ in self.numbers()]
        return [(path, source) for path, source in found if source is not None and source.quality in DOUBTFUL]

    def unsourced(self) -> list[str]:
        """Return the dotted paths of the numbers that have no source."""
        return [path for path, _, _ in self.numbers() if self.source(path) is None]

    def _leaves(self) -> Iterator[tuple[str, Any, Rule | None]]:
        for key in ("reserve", "price_usd_per_h", "capex_usd", "power_w"):
            if getattr(self, key) is not None:
                yield key, getattr(self, key), self.RULES[key]
        for sort, things in (("pool", self.pools), ("tier", self.tiers), ("link", self.links)):
            for thing in things:
                yield from _thing_leaves(f"{sort}.{thing.name}", thing)
        for movement in self.movements:
            yield from _thing_leaves(f"movement.{movement.upper}/{movement.lower}", movement)

    # ---------------------------------------------------------------- making one

    @classmethod
    def load(cls, machine: str | os.PathLike[str] | Mapping[str, Any] | Machine) -> Machine:
        """Return the machine that a name, a TOML file's path, a dict or an object stands for.

        A name is a preset's or an entry point's of the group kvsim.machines; a dict is what
        :meth:`to_dict` gave.

        Raises
        ------
        UnknownNameError
            No preset, or no key, of that name.
        MachineError
            A file that cannot be read, or a machine that cannot exist.
        """
        if isinstance(machine, Machine):
            return machine
        if isinstance(machine, Mapping):
            return cls.from_dict(machine)
        if not isinstance(machine, str | os.PathLike):
            raise MachineError(f"machine: found {shown(machine)}, expected a name, a path or a Machine")
        if _toml.is_outside_name(machine, "machines"):
            return cls.load(_toml.outside("machines", "machine").get(str(machine)))
        from kvsim import _machine_toml

        document = _toml.read_document(
            machine if isinstance(machine, str) else Path(machine),
            "machines",
            what="machine",
            merge=_machine_toml.merge_tables,
            leaves=_machine_toml.table_leaves,
            error=MachineError,
            full_path=_machine_toml.full_source_path,
        )
        values = dict(document.values)
        values.setdefault("name", Path(document.place).name.removesuffix(".toml"))
        return _machine_toml.machine_from_tables(values, document.sources, document.place)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the presets."""
        return _toml.preset_names("machines")

    def with_(self, **changes: Any) -> Machine:
        """Return a copy with some fields changed; movements and links of dropped tiers go too."""
        known = [f.name for f in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise UnknownNameError(key, known, "field of a machine")
        if "tiers" in changes:
            names = [tier.name for tier in changes["tiers"] if isinstance(tier, Tier)]
            pairs = set(pairwise(names))
            kept = tuple(m for m in self.movements if (m.upper, m.lower) in pairs)
            changes.setdefault("movements", kept)
            changes.setdefault("links", tuple(k for k in self.links if set(k.between) <= set(names)))
        return dataclasses.replace(self, **changes)

    def set(self, path: str, value: object) -> Machine:
        """Return a copy with one number changed, as `--set tier.dram.capacity=2TB` does.

        Parameters
        ----------
        path : dotted: "tier.NAME.key", "link.NAME.key", "pool.NAME.key", "pool.NAME.mfu.ffn",
            "movement.UPPER/LOWER.key", or a key of the machine. Keys have short forms: capacity,
            read, write, latency; "bandwidth" is read and write; "total_capacity" is that of all of
            a tier's memories together.
        value : a number in SI or text with a unit.

        Raises
        ------
        UnknownNameError
            A part of the path that does not exist, with the nearest that does.
        MachineError
            A value that makes no sense.
        """
        from kvsim._machine_toml import machine_from_tables

        tables = self.to_dict()
        tables.pop("sources")
        given = Source("set by hand", "given")
        sources = _toml.with_source(self.sources, self._set_in(tables, path, value), given)
        return machine_from_tables(tables, sources, self.name)

    def _set_in(self, tables: dict[str, Any], path: str, value: object) -> list[str]:
        at = f"{self.name}: {path}"
        first, _, rest = path.partition(".")
        sorts: dict[str, type[Checked]] = {"tier": Tier, "link": Link, "pool": Pool, "movement": Movement}
        if first not in sorts:
            known = [*sorts, *self.RULES, *(short for rule in self.RULES.values() for short in rule.short)]
            if first not in known or rest:
                raise UnknownNameError(first, known, "key", place=at)
            key = self.full_key(first, at)
            tables[key] = value
            return [key]
        name, _, key = rest.partition(".")
        if name not in tables[first]:
            raise UnknownNameError(name, tables[first], first, place=at)
        table = tables[first][name]
        if key == "total_capacity" and first == "tier":
            total = parse(value, "bytes", place=at, high=UNBOUNDED_BYTES, error=MachineError)
            value = int(total) // table["count"] if total != UNBOUNDED_BYTES else UNBOUNDED_BYTES
            key = "capacity_bytes"
        if key == "bandwidth" and first in ("tier", "link"):
            table |= dict.fromkeys(("read_bytes_per_s", "write_bytes_per_s"), value)
            return [f"{first}.{name}.read_bytes_per_s", f"{first}.{name}.write_bytes_per_s"]
        key, _, inner = key.partition(".")
        key = sorts[first].full_key(key, at)
        if key in ("name", "upper", "lower"):
            raise MachineError(f"{at}: found a name, expected a number or a word that may change")
        if key in ("kinds", "roles", "between") and isinstance(value, str):
            value = [part for part in value.replace("+", ",").split(",") if part]
        if inner:
            if not isinstance(table[key], dict):
                raise UnknownNameError(inner, (), f"key below {key}", place=at)
            table[key] = table[key] | {inner: value}
            return [f"{first}.{name}.{key}.{inner}"]
        table[key] = value
        return [f"{first}.{name}.{key}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the machine as plain Python in SI, for :meth:`from_dict` and JSON."""
        out: dict[str, Any] = {key: getattr(self, key) for key in self.RULES}
        out["pool"] = {pool.name: _table(pool, "name") for pool in self.pools}
        out["tier"] = {tier.name: _table(tier, "name") for tier in self.tiers}
        out["link"] = {link.name: _table(link, "name") for link in self.links}
        out["movement"] = {f"{m.upper}/{m.lower}": _table(m, "upper", "lower") for m in self.movements}
        out["sources"] = {path: list(source) for path, source in self.sources.items()}
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Machine:
        """Make a machine of what :meth:`to_dict` gave, or of tables like a TOML file's.

        Raises
        ------
        MachineError, UnknownNameError
            As :meth:`load`.
        """
        from kvsim._machine_toml import full_source_path, machine_from_tables

        rest = dict(values)
        place = f"machine {rest.get('name', '')}".strip()
        sources = _toml.read_sources(rest.pop("sources", {}), place, MachineError)
        sources = {full_source_path(path, place): source for path, source in sources.items()}
        return machine_from_tables(rest, sources, place)

    def __repr__(self) -> str:
        tiers = ", ".join(
            f"{t.name} {f'{t.count} x ' if t.count > 1 else ''}{format_bytes(t.capacity_bytes)} "
            f"{format_rate(t.read_bytes_per_s)} {format_time(t.latency_s)}"
            for t in self.tiers
        )
        pools = ", ".join(f"{pool.name} x {pool.devices}" for pool in self.pools)
        return f"<Machine {self.name}: {pools} | {tiers}>"


def _words(value: object, known: tuple[str, ...], at: str, what: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise MachineError(f"{at}: found {shown(value)}, expected a list of {', '.join(known)}")
    for word in value:
        if word not in known:
            raise UnknownNameError(word, known, what, place=at)
    return tuple(word for word in known if word in value)


def _table(thing: Any, *left_out: str) -> dict[str, Any]:
    out = {}
    for f in dataclasses.fields(thing):
        if f.name not in left_out:
            value = getattr(thing, f.name)
            out[f.name] = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value
    return out


def _thing_leaves(at: str, thing: Any) -> Iterator[tuple[str, Any, Rule | None]]:
    for f in dataclasses.fields(thing):
        value = getattr(thing, f.name)
        if value == f.default or f.name in ("name", "upper", "lower"):
            continue
        rule = thing.RULES.get(f.name)
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{at}.{f.name}.{key}", inner, rule
        else:
            yield f"{at}.{f.name}", value, rule
