"""What a generator can be asked for: distributions, presets with sources, checks."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeVar, get_type_hints
from zlib import crc32

import numpy as np
import numpy.typing as npt

from kvsim.errors import UnknownNameError, WorkloadError, shown

__all__ = ["Draws", "Preset", "Quantiles", "bounded", "preset_names", "read_preset", "resolve"]

T = TypeVar("T")
QUALITIES = ("measured", "vendor", "estimate", "memory")
_BEYOND = 1e15  # no token count or time in seconds comes near; sums stay within int64


@dataclass(frozen=True)
class Quantiles:
    """A positive distribution given by measured quantiles.

    Between two quantiles, and beyond the outermost, log(value) is a straight line in the normal
    score, so two quantiles are exactly a lognormal distribution and one is a constant. `low` and
    `high` cut what is drawn.

    Parameters
    ----------
    points : (percent, value) pairs, both rising, percent within (0, 100), values above zero.
    low, high : bounds of a drawn value.
    """

    points: tuple[tuple[float, float], ...]
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        percents, values = [p for p, _ in self.points], [v for _, v in self.points]
        if not self.points:
            raise WorkloadError("quantiles: found none, expected at least one such as p50 = 10")
        if not all(0 < p < 100 for p in percents) or sorted(set(percents)) != percents:
            raise WorkloadError(f"quantiles: found percents {percents}, expected rising ones within 0 and 100")
        if not all(0 < v <= _BEYOND for v in values) or sorted(values) != values:
            raise WorkloadError(f"quantiles: found values {values}, expected positive ones that do not fall")
        if not 0 <= self.low <= self.high:
            raise WorkloadError(f"quantiles: found min {self.low} and max {self.high}, expected 0 <= min <= max")

    @classmethod
    def of(cls, value: object) -> Quantiles:
        """Read a number, a mapping of p50, min and max, text ("p50=9,p99=30"), a Quantiles."""
        if isinstance(value, Quantiles):
            return value
        if isinstance(value, str):
            value = _from_text(value)
        if isinstance(value, Mapping):
            bounds = {"min": 0.0, "max": math.inf}
            points = []
            for key, number in value.items():
                if key in bounds:
                    bounds[key] = _number(number)
                else:
                    points.append((_percent(key), _number(number)))
            return cls(tuple(sorted(points)), bounds["min"], bounds["max"])
        return cls(((50.0, _number(value)),))

    def sample(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        """Draw `size` values."""
        return self.at(rng.standard_normal(size))

    def at(self, score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the values at normal scores (0 is the median)."""
        if len(self.points) == 1:
            drawn = np.full(len(score), self.points[0][1])
        else:
            knots = np.array([NormalDist().inv_cdf(p / 100) for p, _ in self.points])
            logs = np.log([v for _, v in self.points])
            part = np.clip(np.searchsorted(knots, score, side="right") - 1, 0, len(knots) - 2)
            slope = (logs[part + 1] - logs[part]) / (knots[part + 1] - knots[part])
            drawn = np.exp(np.minimum(logs[part] + slope * (score - knots[part]), math.log(_BEYOND)))
        return np.asarray(np.clip(drawn, self.low, min(self.high, _BEYOND)), np.float64)

    def tokens(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
        """Draw `size` whole numbers of at least 1."""
        return np.maximum(np.rint(np.minimum(self.sample(rng, size), 2.0**40)), 1).astype(np.int64)

    def picoseconds(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
        """Draw `size` times given in seconds as whole microseconds, in picoseconds."""
        return np.rint(np.minimum(self.sample(rng, size), 1e6) * 1e6).astype(np.int64) * 1_000_000


class Draws:
    """One random generator a purpose: no parameter reshuffles another's draws."""

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise WorkloadError(f"seed: found {shown(seed)}, expected a whole number from 0")
        self.seed = int(seed)

    def __call__(self, purpose: str) -> np.random.Generator:
        """Return the generator for `purpose`, always from its start."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, crc32(purpose.encode())])))


@dataclass(frozen=True)
class Preset:
    """A workload's numbers, each with its unit, source and quality, and what generator takes them."""

    name: str
    title: str
    generator: str
    place: str
    values: Mapping[str, object]
    units: Mapping[str, str]
    sources: Mapping[str, tuple[str, str]]

    def doubtful(self) -> list[str]:
        """Return the parameters whose default is an estimate or from memory."""
        return [key for key, (_, quality) in self.sources.items() if quality in ("estimate", "memory")]


def bounded(low: float = 0.0, high: float = math.inf) -> Any:
    """Declare a numeric field of a parameters dataclass with its inclusive range."""
    return dataclasses.field(metadata={"low": low, "high": high})


def preset_names() -> tuple[str, ...]:
    """Return the names of the workload presets that come with kvsim, sorted."""
    home = files("kvsim").joinpath("presets", "workloads")
    if not home.is_dir():
        return ()
    return tuple(sorted(entry.name[:-5] for entry in home.iterdir() if entry.name.endswith(".toml")))


def read_preset(workload: str, known: Iterable[str], *, seen: tuple[str, ...] = ()) -> Preset:
    """Read a preset by name or path, with the `base` it starts from.

    Raises UnknownNameError if there is no such workload and WorkloadError if its file is wrong.
    """
    if not isinstance(workload, str):
        raise WorkloadError(f"workload: found {shown(workload)}, expected a name or the path of a TOML file")
    name = workload.strip().lower().replace("_", "-")
    if workload.endswith(".toml"):
        place = workload
        try:
            text = Path(workload).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WorkloadError(f"{workload}: cannot be read as a workload: {error}") from None
        name = Path(workload).stem
    elif name in preset_names():
        place = f"{name}.toml"
        text = files("kvsim").joinpath("presets", "workloads", place).read_text(encoding="utf-8")
    elif name in known:  # a generator from outside, with the defaults of its own dataclass
        return Preset(name, name, name, name, {}, {}, {})
    else:
        raise UnknownNameError(workload, known, "workload")
    if place in seen:
        raise WorkloadError(f"{place}: base: found a circle ({' -> '.join((*seen, place))}), expected an end")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WorkloadError(f"{place}: not TOML: {error}") from None
    title, generator, base = (data.pop(key, "") for key in ("title", "generator", "base"))
    start = Preset(name, "", "", place, {}, {}, {})
    if base:
        start = read_preset(base, known, seen=(*seen, place))
    elif not generator:
        raise WorkloadError(f"{place}: generator: found nothing, expected one of {', '.join(known)}")
    values, units, sources = dict(start.values), dict(start.units), dict(start.sources)
    for key, entry in data.items():
        if not isinstance(entry, dict) or "value" not in entry:
            raise WorkloadError(f"{place}: {key}: found {shown(entry)}, expected a table with value and source")
        for part in entry:
            if part not in ("value", "unit", "source", "quality"):
                raise UnknownNameError(part, ("value", "unit", "source", "quality"), f"key of [{key}]", place=place)
        quality = entry.get("quality", "estimate")
        if quality not in QUALITIES:
            raise WorkloadError(f"{place}: {key}.quality: found {shown(quality)}, expected {' | '.join(QUALITIES)}")
        values[key] = entry["value"]
        units[key] = entry.get("unit", units.get(key, ""))
        sources[key] = (entry.get("source", ""), quality)
    return Preset(name, title or start.title, generator or start.generator, place, values, units, sources)


def resolve(parameters: type[T], preset: Preset, changes: Mapping[str, object]) -> T:
    """Make a generator's parameters from a preset and changes, every name and value checked."""
    assert dataclasses.is_dataclass(parameters)
    hints = get_type_hints(parameters)
    fields = {field.name: field for field in dataclasses.fields(parameters)}
    final: dict[str, object] = {}
    for given, place in ((preset.values, preset.place), (changes, preset.name)):
        for key, value in given.items():
            if key not in fields:
                raise UnknownNameError(key, fields, f"parameter of {preset.generator}", place=place)
            try:
                final[key] = _checked(value, hints[key], fields[key].metadata)
            except WorkloadError as error:
                raise WorkloadError(f"{place}: {key}: {error}") from None
    for key, field in fields.items():
        if key not in final and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise WorkloadError(f"{preset.place}: {key}: found nothing, expected a value")
    return parameters(**final)


def _checked(value: object, wanted: Any, metadata: Mapping[str, Any]) -> object:
    if wanted is Quantiles:
        return Quantiles.of(value)
    if wanted is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise WorkloadError(f"found {shown(value)}, expected true or false")
    if wanted not in (int, float):  # a generator from outside may have sorts of its own
        return value
    number = _number(value)
    if wanted is int and number != int(number):
        raise WorkloadError(f"found {shown(value)}, expected a whole number")
    low, high = metadata.get("low", -math.inf), metadata.get("high", math.inf)
    if not low <= number <= high:
        upper = "" if math.isinf(high) else f" to {high:,.15g}"
        raise WorkloadError(f"found {shown(value)}, expected a number from {low:,.15g}{upper}")
    return int(number) if wanted is int else number


def _number(value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value.replace("_", ""))
        except ValueError:
            raise WorkloadError(f"found {shown(value)}, expected a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise WorkloadError(f"found {shown(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise WorkloadError(f"found {shown(value)}, expected a finite number")
    return number


def _percent(key: object) -> float:
    try:
        if isinstance(key, str) and key[:1] == "p":
            return float(key[1:])
    except ValueError:
        pass
    raise WorkloadError(f"found key {shown(key)}, expected a quantile such as p50, or min or max")


def _from_text(text: str) -> object:
    if "=" not in text:
        return _number(text)
    return dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
