"""Frozen dataclasses whose fields take numbers with units, and say what is wrong with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from kvsim.errors import MachineError, UnknownNameError, shown
from kvsim.units import UNBOUNDED_BYTES, parse

__all__ = ["Checked", "Rule"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NAME_WORDS = "a name of letters, digits, - and _, at most 64 long"


@dataclass(frozen=True)
class Rule:
    """What one field takes.

    `unit` is one that :func:`kvsim.units.parse` knows, or "count" (whole), "text", "name", "flag";
    `words` are allowed besides (or instead, when unit is "word"); `optional` allows None.
    """

    unit: str
    low: float | None = 0.0
    high: float | None = None
    positive: bool = False
    words: tuple[str, ...] = ()
    optional: bool = False
    short: tuple[str, ...] = ()

    def read(self, value: object, place: str) -> Any:
        """Return the value in SI; MachineError that names `place` if it makes no sense."""
        if value is None and self.optional:
            return None
        if isinstance(value, str) and value in self.words:
            return value
        if self.unit == "word":
            if isinstance(value, str):
                raise UnknownNameError(value, self.words, place)
            raise MachineError(f"{place}: found {shown(value)}, expected one of {', '.join(self.words)}")
        if self.unit in ("text", "name"):
            if not isinstance(value, str) or len(value) > 500:
                raise MachineError(f"{place}: found {shown(value)}, expected text")
            if self.unit == "name" and not _NAME.fullmatch(value):
                raise MachineError(f"{place}: found {shown(value)}, expected {_NAME_WORDS}")
            return value
        if self.unit == "flag":
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
            if not isinstance(value, bool):
                raise MachineError(f"{place}: found {shown(value)}, expected true or false")
            return value
        return self._number(value, place)

    def _number(self, value: object, place: str) -> int | float:
        whole = self.unit in ("count", "bytes")
        unit = "" if self.unit == "count" else self.unit
        high = UNBOUNDED_BYTES if self.unit == "bytes" and self.high is None else self.high
        try:
            number = parse(
                value, unit, place=place, low=self.low, high=high, positive=self.positive, error=MachineError
            )
        except MachineError as error:
            if not self.words:
                raise
            raise MachineError(f"{error}, or one of {', '.join(self.words)}") from None
        if not whole:
            return float(number)
        if number.denominator != 1:
            raise MachineError(f"{place}: found {shown(value)}, expected a whole number")
        return int(number)


class Checked:
    """A dataclass that reads each field by its rule; `RULES` has one for every plain field."""

    RULES: ClassVar[dict[str, Rule]] = {}
    WHAT: ClassVar[str] = ""

    def _label(self) -> str:
        return f"{self.WHAT}.{getattr(self, 'name', '')}".strip(".")

    def _read_fields(self) -> None:
        # the name first: the others' messages say it
        for key, rule in self.RULES.items():
            place = f"{self.WHAT} {key}" if key == "name" else f"{self._label()}.{key}".lstrip(".")
            object.__setattr__(self, key, rule.read(getattr(self, key), place))

    @classmethod
    def full_key(cls, key: str, place: str) -> str:
        """Return the field that a key (or its short form) means; UnknownNameError if none."""
        fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if key in fields:
            return key
        for name, rule in cls.RULES.items():
            if key in rule.short:
                return name
        known = sorted(fields | {short for rule in cls.RULES.values() for short in rule.short})
        raise UnknownNameError(key, known, "key", place=place)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], place: str) -> Self:
        """Make one of a table with full keys; MachineError names a required key that is missing."""
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            bare = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if bare and f.name not in table:
                raise MachineError(f"{place}.{f.name}: found nothing, expected a value")
        return cls(**table)
