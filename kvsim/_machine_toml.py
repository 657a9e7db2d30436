"""A machine's tables (a TOML file's, a dict's): to full keys, over each other, and to a Machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvsim._fields import Checked
from kvsim._ladder import kept_paths, ladders, neighbours
from kvsim._toml import Source
from kvsim.errors import ConfigError, MachineError, UnknownNameError, shown
from kvsim.machine import Link, Machine, Movement, Pool, Tier

__all__ = ["full_source_path", "machine_from_tables", "merge_tables", "table_leaves"]

_SORTS: dict[str, type[Checked]] = {"pool": Pool, "tier": Tier, "link": Link, "movement": Movement}


def _full(tables: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Write a file's tables by name, with full keys: {"tier": {name: {...}}, ...}."""
    out: dict[str, Any] = {}
    for key, value in tables.items():
        if key == "order":
            out[key] = value
        elif key in _SORTS:
            out[key] = {
                name: _full_thing(_SORTS[key], table, f"{place}: {key}.{name}")
                for name, table in _by_name(key, value, place)
            }
        else:
            known = {*Machine.RULES, *_SORTS, "order", "base", "sources"}
            known |= {short for rule in Machine.RULES.values() for short in rule.short}
            if key not in known:
                raise UnknownNameError(key, sorted(known), "key of a machine", place=place)
            out[Machine.full_key(key, place)] = value
    return out


def _by_name(key: str, value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
        return
    seen = set()
    for table in value if isinstance(value, list) else [value]:
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise MachineError(f"{place}: {key}: found {shown(table)}, expected tables with a name")
        name = table["name"]
        if name in seen:
            raise MachineError(f"{place}: {key}: found two of the name {name!r}, expected each name once")
        seen.add(name)
        yield name, {k: v for k, v in table.items() if k != "name"}


def _full_thing(sort: type[Checked], table: Any, at: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise MachineError(f"{at}: found {shown(table)}, expected a table")
    out: dict[str, Any] = {}
    for key, value in table.items():
        if key == "bandwidth" and sort in (Tier, Link):
            out |= dict.fromkeys(("read_bytes_per_s", "write_bytes_per_s"), value)
        elif key in ("name", "upper", "lower"):
            raise UnknownNameError(key, sorted(sort.RULES), "key", place=at)
        else:
            out[sort.full_key(key, at)] = value
    return out


def merge_tables(below: dict[str, Any], above: dict[str, Any], place: str) -> dict[str, Any]:
    """Put a file's tables over its base's."""
    out = _full(below, place)
    for key, value in _full(above, place).items():
        if key in _SORTS:
            merged = dict(out.get(key, {}))
            for name, table in value.items():
                merged[name] = _deeper(merged.get(name, {}), table)
            out[key] = merged
        else:
            out[key] = value
    for key in {"name", "title"} - set(above):
        out.pop(key, None)
    return out


def _deeper(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    out = below | above
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            out[key] = dict(below[key]) | dict(value)
    return out


def table_leaves(tables: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted paths of what a file's tables set."""
    for key, value in _full(tables, "").items():
        if key not in _SORTS:
            if key not in ("order", "name", "title", "date"):
                yield key
            continue
        for name, table in value.items():
            for inner, leaf in table.items():
                if isinstance(leaf, Mapping):
                    yield from (f"{key}.{name}.{inner}.{deep}" for deep in leaf)
                else:
                    yield f"{key}.{name}.{inner}"


def machine_from_tables(tables: Mapping[str, Any], sources: Mapping[str, Source], place: str) -> Machine:
    """Make a machine of its tables; `sources` have full paths, `place` names the file."""
    full = _full(tables, place)
    _check_sources(sources, full, place)
    order = full.pop("order", None)
    if order is not None:
        _reorder(full, order, place)
        left = {sort: full.get(sort, {}) for sort in _SORTS}
        sources = {path: sources[path] for path in kept_paths(sources, left)}
    try:
        parts: dict[str, Any] = {
            "tiers": tuple(Tier.from_table({"name": n} | t, f"tier.{n}") for n, t in full.pop("tier", {}).items()),
            "pools": tuple(Pool.from_table({"name": n} | t, f"pool.{n}") for n, t in full.pop("pool", {}).items()),
            "links": tuple(Link.from_table({"name": n} | t, f"link.{n}") for n, t in full.pop("link", {}).items()),
            "movements": tuple(_movement(pair, t) for pair, t in full.pop("movement", {}).items()),
        }
        return Machine(**{"name": place} | full, **parts, sources=dict(sources))
    except UnknownNameError as error:
        if error.place.startswith(place):
            raise
        raise UnknownNameError(
            error.name, error.known, error.what, place=f"{place}: {error.place}".rstrip(": ")
        ) from None
    except ConfigError as error:
        text = str(error)
        raise MachineError(text if text.startswith(f"{place}:") else f"{place}: {text}") from None


def _movement(pair: str, table: dict[str, Any]) -> Movement:
    upper, slash, lower = pair.partition("/")
    if not slash:
        raise MachineError(f'movement."{pair}": found {shown(pair)}, expected two tiers written "upper/lower"')
    return Movement(upper=upper, lower=lower, **table)


def _reorder(full: dict[str, Any], order: Any, place: str) -> None:
    """Keep and order the tiers that `order` lists; what ties to tiers that went goes with them."""
    tiers = full.get("tier", {})
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise MachineError(f"{place}: order: found {shown(order)}, expected a list of tier names")
    for name in order:
        if name not in tiers:
            raise UnknownNameError(name, tiers, "tier", place=f"{place}: order")
    if len(set(order)) != len(order):
        raise MachineError(f"{place}: order: found {shown(order)}, expected each tier once")
    full["tier"] = {name: tiers[name] for name in order}
    near = [str(pool.get("near", "")) for pool in full.get("pool", {}).values()]
    pairs = {f"{a}/{b}" for a, b in neighbours(ladders(order, near))}
    gone = set(tiers) - set(order)
    full["movement"] = {p: t for p, t in full.get("movement", {}).items() if p in pairs}
    full["link"] = {n: t for n, t in full.get("link", {}).items() if not gone & set(t.get("between", ()))}


def full_source_path(path: str, place: str) -> str:
    """Write a source's dotted path with full keys; UnknownNameError for a key that is none."""
    at = f'{place}: sources."{path}"'
    first, _, rest = path.partition(".")
    if path == "*":
        return path
    if first not in _SORTS:
        return Machine.full_key(first, at)
    name, _, key = rest.partition(".")
    if not key:
        return path
    head, dot, inner = key.partition(".")
    return f"{first}.{name}.{_SORTS[first].full_key(head, at)}{dot}{inner}"


def _check_sources(sources: Mapping[str, Source], full: Mapping[str, Any], place: str) -> None:
    """Refuse sources of things that are not there."""
    for path in sources:
        first, _, rest = path.partition(".")
        name = rest.partition(".")[0]
        if first in _SORTS and name not in full.get(first, {}):
            known = tuple(full.get(first, {}))
            raise UnknownNameError(name, known, first, place=f'{place}: sources."{path}"')
