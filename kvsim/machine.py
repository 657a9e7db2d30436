"""Machines: pools of devices, tiers of memory, links, and what moves between neighbours.

All objects are frozen. Numbers may be given as text with units ("3.35 TB/s"); they are held in SI.
Tiers are ordered from compute outwards; a tier or a link is `count` identical ones, and its numbers
are those of one. A machine of several pools gives each a near tier of its own; the tiers behind are
shared, and a pool's near tier with these is its ladder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kvsim import _toml
from kvsim._fields import Checked, Rule
from kvsim._ladder import check_link, check_pools, full_movements, kept_paths, ladders, neighbours
from kvsim._parts import KINDS, Link, Movement, Pool, Tier
from kvsim._toml import DOUBTFUL, Source, find_source
from kvsim.errors import MachineError, UnknownNameError, shown
from kvsim.units import UNBOUNDED_BYTES, format_bytes, format_rate, format_time, parse

__all__ = ["KINDS", "Link", "Machine", "Movement", "Pool", "Tier"]

MOST_TIERS, MOST_LINKS, MOST_POOLS = 8, 16, 8


@dataclass(frozen=True, kw_only=True)
class Machine(Checked):
    """Pools of devices over an ordered stack of memories.

    Attributes
    ----------
    tiers : from compute outwards, the near tiers of pools first, 1 to 8; links : at most 16;
        movements : one for each pair of neighbours in a pool's ladder (a pair that is not given gets
        the defaults).
    pools : 1 to 8; where there are several, each role is had by exactly one.
    reserve : fraction of a pool's near tier that neither weights nor KV may use.
    price_usd_per_h, capex_usd, power_w : rent, purchase, all-in power; None where not known, which
        is written "none".
    cpu_slots : tool calls that run at once beside the machine; None is no limit.
    electricity_usd_per_kwh : what US industry paid on average in 2023 and 2024, 0.08 USD (Energy
        Information Administration, Electric Power Monthly, table 5.3), unless given.
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
    cpu_slots: int | None = None
    electricity_usd_per_kwh: float = 0.08
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)

    RULES: ClassVar[dict[str, Rule]] = {
        "name": Rule("text"),
        "title": Rule("text"),
        "date": Rule("text"),
        "reserve": Rule("", high=0.99),
        "price_usd_per_h": Rule("USD/h", optional=True, short=("price", "rent")),
        "capex_usd": Rule("USD", optional=True, short=("capex",)),
        "power_w": Rule("W", optional=True, short=("power",)),
        "cpu_slots": Rule("count", low=1, high=1_000_000, optional=True),
        "electricity_usd_per_kwh": Rule("", short=("electricity",)),
    }

    def _label(self) -> str:
        return ""

    def __post_init__(self) -> None:
        put = object.__setattr__
        for key, rule in self.RULES.items():
            if rule.optional and getattr(self, key) == "none":  # TOML has no null, to undo what a base says
                put(self, key, None)
        self._read_fields()
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
        check_pools(order, self.pools)
        steps = self._ladders()
        for link in self.links:
            check_link(link, order, self.pools, steps)
        put(self, "movements", full_movements(self.movements, order, steps))

    def _ladders(self) -> tuple[tuple[str, ...], ...]:
        return ladders(self.tier_names, (pool.near for pool in self.pools))

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

    def pool(self, name: str) -> Pool:
        """Return the pool of a name; UnknownNameError if there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise UnknownNameError(name, [pool.name for pool in self.pools], "pool", place=self.name)

    def ladder(self, pool: Pool | str) -> tuple[int, ...]:
        """Return the places of a pool's tiers among the machine's: its near tier, then those that all pools share.

        Raises
        ------
        UnknownNameError
            The machine has no pool of that name.
        """
        names = [held.name for held in self.pools]
        at = names.index(self.pool(pool if isinstance(pool, str) else pool.name).name)
        return tuple(self.tier_names.index(name) for name in self._ladders()[at])

    def movement(self, upper: str | int, lower: str | int) -> Movement:
        """Return what moves between two tiers (names or places): their rule, or the defaults if they are no neighbours.

        Raises
        ------
        UnknownNameError
            No tier of that name.
        """
        pair = tuple(self.tiers[end].name if isinstance(end, int) else self.tier(end).name for end in (upper, lower))
        for movement in self.movements:
            if (movement.upper, movement.lower) == pair:
                return movement
        return Movement(upper=pair[0], lower=pair[1])

    def joins_pools(self, link: Link) -> bool:
        """Say whether a link joins two pools rather than two tiers."""
        return not set(link.between) <= set(self.tier_names)

    def narrowed(self, pool: Pool | str | None = None) -> Machine:
        """Return the machine with one pool only and its ladder, links and movements; itself if it has one pool.

        Name, price and power stay those of the whole.

        Parameters
        ----------
        pool : by default the one with the role attention, which holds the KV.

        Raises
        ------
        UnknownNameError
            The machine has no pool of that name.
        """
        if pool is None:
            chosen = self.pool_for("attention") if len(self.pools) > 1 else self.pools[0]
        else:
            chosen = self.pool(pool if isinstance(pool, str) else pool.name)
        if len(self.pools) == 1:
            return self
        tiers = tuple(self.tiers[place] for place in self.ladder(chosen))
        return self.with_(tiers=tiers, pools=(dataclasses.replace(chosen, near=""),))

    def usable_bytes(self, tier: int) -> int:
        """Bytes that blocks may take in a tier: all, less the reserve where it is a pool's near tier."""
        total = self.tiers[tier].total_capacity_bytes
        near = self.tiers[tier].name in {ladder[0] for ladder in self._ladders()}
        return total - round(total * self.reserve) if near else total

    def weights_home(self, weight_bytes: int, *, pool: Pool | str | None = None) -> int:
        """Return the place of the nearest tier that holds all weights (in a near tier: less the reserve).

        Parameters
        ----------
        pool : whose ladder they must lie on; by default any tier will do.

        Raises
        ------
        MachineError
            No tier is large enough.
        """
        places = tuple(range(len(self.tiers))) if pool is None else self.ladder(pool)
        for index in places:
            if weight_bytes <= self.usable_bytes(index):
                return index
        largest = max(places, key=self.usable_bytes)
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
        bare = {f.name: f.default for f in dataclasses.fields(self)}
        for key in ("reserve", "price_usd_per_h", "capex_usd", "power_w", "cpu_slots", "electricity_usd_per_kwh"):
            if getattr(self, key) != bare[key] or key == "reserve":  # the reserve has its source even at its default
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
        """Return a copy with some fields changed; movements, links and sources of dropped tiers or pools go too."""
        known = [f.name for f in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise UnknownNameError(key, known, "field of a machine")
        if "tiers" in changes or "pools" in changes:
            self._drop_loose(changes)
        return dataclasses.replace(self, **changes)

    def _drop_loose(self, changes: dict[str, Any]) -> None:
        """Put into changes of tiers or pools what is left of movements, links and sources."""
        tiers = [tier.name for tier in changes.get("tiers", self.tiers) if isinstance(tier, Tier)]
        pools = [pool for pool in changes.get("pools", self.pools) if isinstance(pool, Pool)]
        names = {pool.name for pool in pools}
        steps = ladders(tiers, (pool.near for pool in pools))
        pairs = neighbours(steps)
        sets = [set(ladder) for ladder in steps]
        if len(pools) > 1:
            sets.append(names)
        changes.setdefault("movements", tuple(m for m in self.movements if (m.upper, m.lower) in pairs))
        changes.setdefault("links", tuple(k for k in self.links if any(set(k.between) <= ends for ends in sets)))
        left = {
            "tier": tiers,
            "pool": names,
            "link": [link.name for link in changes["links"] if isinstance(link, Link)],
            "movement": [f"{upper}/{lower}" for upper, lower in pairs],
        }
        changes.setdefault("sources", {path: self.sources[path] for path in kept_paths(self.sources, left)})

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
        if len(self.pools) > 1:
            pools = ", ".join(
                f"{pool.name} x {pool.devices} ({' '.join(pool.roles)}) on {ladder[0]}"
                for pool, ladder in zip(self.pools, self._ladders(), strict=True)
            )
        return f"<Machine {self.name}: {pools} | {tiers}>"


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
