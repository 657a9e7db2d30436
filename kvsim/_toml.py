"""TOML files of configuration: where a name leads, `base`, sources, and words for what is wrong.

Shared by models and machines; what the tables mean is theirs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvsim.errors import ConfigError, UnknownNameError, shown
from kvsim.registry import Registry

__all__ = [
    "DOUBTFUL",
    "QUALITIES",
    "Document",
    "Source",
    "find_source",
    "is_outside_name",
    "outside",
    "preset_names",
    "read_document",
    "read_sources",
    "with_source",
]

QUALITIES = ("measured", "vendor", "estimate", "memory", "given")
"""How good a number is: measured; its maker's; worked out; remembered; given by the user."""

DOUBTFUL = ("estimate", "memory")
_PRESETS = Path(__file__).parent / "presets"
_MOST_BASES = 8


class Source(NamedTuple):
    """Where a number comes from, and how good it is."""

    text: str
    quality: str


@dataclass(frozen=True)
class Document:
    """A configuration file after its bases were merged in.

    `values` are the tables, `sources` go by dotted path, `place` names the file for messages.
    """

    values: dict[str, Any]
    sources: dict[str, Source]
    place: str
    path: Path | None = None


def preset_names(sort: str) -> tuple[str, ...]:
    """Return the names of the presets of a sort ("machines", "models", "workloads")."""
    return tuple(sorted(path.stem for path in (_PRESETS / sort).glob("*.toml")))


def read_document(
    name: str | Path,
    sort: str,
    *,
    what: str,
    merge: Callable[[dict[str, Any], dict[str, Any], str], dict[str, Any]],
    leaves: Callable[[Mapping[str, Any]], Iterable[str]],
    error: type[ConfigError],
    full_path: Callable[[str, str], str] = lambda path, place: path,
    home: Path | None = None,
    seen: tuple[str, ...] = (),
) -> Document:
    """Read a preset or a TOML file, with what its `base` says first.

    Parameters
    ----------
    name : a preset's name, or a path (relative paths start at `home`, the folder of the file that
        names it).
    sort : the folder of presets.
    what : the sort for messages ("machine").
    merge : puts the second tables over the first.
    leaves : the dotted paths that a table sets, so that a base's sources do not vouch for changed
        numbers.
    error : what to raise for files that cannot be used.
    full_path : writes a source's path in full; its second argument is for messages.
    """
    path = _locate(name, sort, what, home)
    place = path.stem if path.parent == _PRESETS / sort else str(name)
    key = str(path.resolve())
    if key in seen:
        raise error(f"{place}: base: found a file that leads back to itself, expected bases that end")
    if len(seen) >= _MOST_BASES:
        raise error(f"{place}: base: found more than {_MOST_BASES} bases in a row, expected fewer")
    values = _parse(path, place, error)
    own = read_sources(values.pop("sources", {}), place, error)
    own = {full_path(key, place): source for key, source in own.items()}
    base = values.pop("base", None)
    if base is None:
        return Document(values, own, place, path)
    if not isinstance(base, str):
        raise error(f"{place}: base: found {shown(base)}, expected the name of a {what} or a path")
    below = read_document(
        base,
        sort,
        what=what,
        merge=merge,
        leaves=leaves,
        error=error,
        full_path=full_path,
        home=path.parent,
        seen=(*seen, key),
    )
    given = Source(f"set in {path.name}", "given")
    sources = with_source(below.sources, leaves(values), given)
    return Document(merge(below.values, values, place), sources | own, place, path)


def with_source(sources: Mapping[str, Source], paths: Iterable[str], source: Source) -> dict[str, Source]:
    """Return the sources with one for each path; what was said of parts of these is dropped."""
    out = dict(sources)
    for path in paths:
        out = {key: kept for key, kept in out.items() if not key.startswith(f"{path}.")}
        out[path] = source
    return out


def find_source(sources: Mapping[str, Source], path: str) -> Source | None:
    """Return the source of a dotted path: its own, else its table's, else that of all ("*")."""
    while path:
        if path in sources:
            return sources[path]
        path = path.rpartition(".")[0]
    return sources.get("*")


def outside(sort: str, what: str) -> Registry:
    """Return what other packages add to a sort by entry points."""
    return Registry(what, f"kvsim.{sort}")


def is_outside_name(name: object, sort: str) -> bool:
    """Say whether a name is no path and no preset, but an entry point's."""
    if not isinstance(name, str) or _is_path(name) or name in preset_names(sort):
        return False
    return name in outside(sort, sort)


def _is_path(name: str | Path) -> bool:
    if isinstance(name, Path):
        return True
    return name.endswith((".toml", ".json")) or "/" in name or "\\" in name


def _locate(name: str | Path, sort: str, what: str, home: Path | None) -> Path:
    text = str(name)
    if not _is_path(name):
        if text not in preset_names(sort):
            known = {*preset_names(sort), *outside(sort, what).names()}
            raise UnknownNameError(text, sorted(known), what)
        return _PRESETS / sort / f"{text}.toml"
    if "\0" in text:
        raise ConfigError(f"{what}: found {shown(text)}, expected a path without a null character")
    path = Path(text).expanduser()
    return path if path.is_absolute() or home is None else home / path


def _parse(path: Path, place: str, error: type[ConfigError]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise error(f"{place}: found no such file, expected a TOML file") from None
    except (OSError, ValueError) as problem:
        # UnicodeDecodeError and TOMLDecodeError are ValueErrors; both say where
        raise error(f"{place}: found {str(problem).splitlines()[0]}, expected a readable TOML file") from None


def read_sources(table: Any, place: str, error: type[ConfigError]) -> dict[str, Source]:
    """Read a [sources] table: {text, quality} by dotted path."""
    if not isinstance(table, dict):
        raise error(f"{place}: sources: found {shown(table)}, expected a table of {{text, quality}} by dotted path")
    out: dict[str, Source] = {}
    for key, value in table.items():
        text, quality = _source_pair(value)
        if not isinstance(text, str) or quality not in QUALITIES:
            raise error(
                f'{place}: sources."{key}": found {shown(value)}, '
                f"expected {{text = ..., quality = one of {', '.join(QUALITIES)}}}"
            )
        out[key] = Source(text, quality)
    return out


def _source_pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, dict) and set(value) == {"text", "quality"}:
        return value["text"], value["quality"]
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    return None, None
