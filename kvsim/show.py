"""What a preset says, number by number, with where each comes from."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvsim._toml import DOUBTFUL
from kvsim.errors import UnknownNameError
from kvsim.machine import Machine
from kvsim.model import Model
from kvsim.units import format_count, format_unit

__all__ = ["Row", "Shown", "show"]

_BYTES = ("weight_bytes", "kv_bytes_per_token", "kv_fixed_bytes", "state_bytes")
_DERIVED = ("weight_bytes", "kv_bytes_per_token", "kv_fixed_bytes")


@dataclass(frozen=True)
class Row:
    """One number or word of a preset.

    `text` is the value as people read it; `source` and `quality` are None where nothing is said,
    which is so for words and for numbers a user made up. `doubtful` marks estimates and what is
    from memory.
    """

    key: str
    value: Any
    unit: str
    text: str
    source: str | None
    quality: str | None

    @property
    def doubtful(self) -> bool:
        """Whether the number is an estimate or from memory."""
        return self.quality in DOUBTFUL


@dataclass(frozen=True)
class Shown:
    """The answer of :func:`show`: a preset's rows."""

    name: str
    sort: str
    title: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python, for JSON."""
        rows = [dataclasses.asdict(row) | {"doubtful": row.doubtful} for row in self.rows]
        return {"name": self.name, "sort": self.sort, "title": self.title, "rows": rows}

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        from kvsim._table import text_table

        cells = [
            [row.key, row.text, f"{row.quality or ''}{' ?' if row.doubtful else ''}", row.source or ""]
            for row in self.rows
        ]
        lines = [f"{self.sort} {self.name}: {self.title}"]
        lines.append(text_table(["key", "value", "quality", "source"], cells, left=(0, 2, 3)))
        doubtful = sum(row.doubtful for row in self.rows)
        if doubtful:
            lines.append(f"  ? {doubtful} of {len(self.rows)} are estimates or from memory")
        return "\n".join(lines)


def show(thing: Machine | Model | str | os.PathLike[str]) -> Shown:
    """Return what a machine or a model says, number by number, with its sources.

    Parameters
    ----------
    thing : a preset's name, a TOML file or config.json, or an object.

    Raises
    ------
    UnknownNameError
        Neither a machine nor a model has that name.
    KvsimError
        A file that cannot be read.
    """
    found = _load(thing)
    if isinstance(found, Machine):
        return Shown(found.name, "machine", found.title, tuple(_machine_rows(found)))
    return Shown(found.name, "model", found.title, tuple(_model_rows(found)))


def _load(thing: Machine | Model | str | os.PathLike[str]) -> Machine | Model:
    if isinstance(thing, Machine | Model):
        return thing
    if os.fspath(thing).endswith(".json") or Path(thing).is_dir():
        return Model.load(thing)
    if isinstance(thing, str) and not thing.endswith(".toml") and "/" not in thing:
        if thing in Model.names():
            return Model.load(thing)
        try:
            return Machine.load(thing)
        except UnknownNameError as error:
            if error.what != "machine":
                raise
        try:
            return Model.load(thing)
        except UnknownNameError as error:
            if error.what != "model":
                raise
        known = (*Machine.names(), *Model.names())
        raise UnknownNameError(thing, known, "machine or model") from None
    return Machine.load(thing) if _is_machine_file(Path(thing)) else Model.load(thing)


def _is_machine_file(path: Path) -> bool:
    import tomllib

    try:
        tables = tomllib.loads(path.expanduser().read_text("utf-8"))
    except (OSError, ValueError):
        return True  # loading it as a machine says what is wrong
    base = tables.get("base")
    if not {"tier", "pool", "link", "movement", "order"}.isdisjoint(tables):
        return True
    if "layers" in tables or base in Model.names():
        return False
    if isinstance(base, str) and base.endswith(".toml"):
        return _is_machine_file(path.parent / base)
    return True


def _machine_rows(machine: Machine) -> list[Row]:
    rows = [_word("date", machine.date)] if machine.date else []
    if len(machine.pools) > 1:
        for pool in machine.pools:
            ladder = " > ".join(machine.tiers[place].name for place in machine.ladder(pool))
            rows.append(_word(f"pool.{pool.name}.ladder", ladder))
    for path, value, unit in machine.values():
        source = machine.source(path)
        text = format_unit(value, unit) if isinstance(value, int | float) else str(value)
        if isinstance(value, bool | list):
            text = _word(path, value).text
        word = source is None or isinstance(value, str | bool | list)
        rows.append(
            _word(path, value)
            if word and source is None
            else Row(path, value, unit, text, source.text if source else None, source.quality if source else None)
        )
    return rows


def _model_rows(model: Model) -> list[Row]:
    rows = [_word("arch", model.arch)]
    for f in dataclasses.fields(model):
        value = getattr(model, f.name)
        if f.name in ("name", "title", "sources") or value == f.default:
            continue
        source = None if isinstance(value, str) else model.source(f.name)
        unit = "bytes" if f.name in _BYTES else ""
        if isinstance(value, bool | str):
            text = str(value).lower() if isinstance(value, bool) else value
        elif unit:
            text = format_unit(value, unit)
        else:
            text = format_count(value) if value >= 1_000_000 else str(value)
        rows.append(Row(f.name, value, unit, text, source.text if source else None, source.quality if source else None))
    for key in _DERIVED:
        value = getattr(model, key)
        rows.append(Row(key, value, "bytes", format_unit(value, "bytes"), "arithmetic on the above", None))
    return rows


def _word(key: str, value: Any) -> Row:
    text = ", ".join(value) if isinstance(value, list | tuple) else str(value)
    if isinstance(value, bool):
        text = text.lower()
    return Row(key, value, "", text, None, None)
