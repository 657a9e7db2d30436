"""Numbers with units: what people write, to SI and back.

GB is 1e9 bytes and GiB is 2**30. Arithmetic on what was written is exact (decimal fractions, no
binary rounding), so "3.3 us" is the float nearest 3.3e-6 and "80 GB" is exactly 80,000,000,000.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from kvsim.errors import ConfigError, shown

__all__ = [
    "UNBOUNDED_BYTES",
    "format_bytes",
    "format_count",
    "format_power",
    "format_rate",
    "format_time",
    "format_unit",
    "parse",
    "parse_bytes",
    "parse_flops",
    "parse_number",
    "parse_power",
    "parse_rate",
    "parse_time",
    "parse_usd",
    "parse_usd_per_h",
    "to_picoseconds",
]

UNBOUNDED_BYTES = 1 << 60
"""The capacity that "unbounded" stands for: 1 EiB, the largest that a tier may have in all."""

_WRITTEN = re.compile(
    r"\s*([+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?))\s*(.*?)\s*", re.I
)
_DECIMAL = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_SMALL = {"m": -3, "u": -6, "µ": -6, "μ": -6, "n": -9, "p": -12}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_TEN = Fraction(10)


def _bytes_table() -> dict[str, Fraction]:
    table = {f"{p}{b}": _TEN**e for p, e in _DECIMAL.items() for b in ("B", "byte", "bytes")}
    table |= {f"{p}{b}": Fraction(2) ** e for p, e in _BINARY.items() for b in ("B", "byte", "bytes")}
    # people also type 80gb and 80g; 80Gb stays an error because it may mean bits
    table |= {f"{p.lower()}b": _TEN**e for p, e in _DECIMAL.items() if p}
    table |= {f"{p.lower()}b": Fraction(2) ** e for p, e in _BINARY.items()}
    return table


def _rate_table() -> dict[str, Fraction]:
    table = {f"{unit}{per}": factor for unit, factor in _bytes_table().items() for per in ("/s", "ps")}
    table |= {f"{p}bit/s": _TEN**e / 8 for p, e in _DECIMAL.items()}
    return table


def _scaled(unit: str, *, small: bool = False) -> dict[str, Fraction]:
    prefixes = _DECIMAL | _SMALL if small else _DECIMAL
    return {f"{p}{unit}": _TEN**e for p, e in prefixes.items()}


_UNITS: dict[str, dict[str, Fraction]] = {
    "bytes": _bytes_table(),
    "bytes/s": _rate_table(),
    "s": {f"{p}s": _TEN**e for p, e in _SMALL.items()}
    | {"s": Fraction(1), "sec": Fraction(1), "min": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)},
    "W": _scaled("W"),
    "FLOP/s": _scaled("FLOP/s") | _scaled("FLOPS") | _scaled("FLOPs/s") | _scaled("OP/s") | _scaled("OPS"),
    "USD": _scaled("USD") | {"$": Fraction(1)},
    "USD/h": _scaled("USD/h") | {"$/h": Fraction(1)},
    "": _scaled("") | {"%": Fraction(1, 100)},
}
_EXAMPLES = {
    "bytes": '"80 GB" or "64 GiB"',
    "bytes/s": '"3.35 TB/s"',
    "s": '"500 ns" or "3.3 us"',
    "W": '"400 W"',
    "FLOP/s": '"1.98 PFLOP/s"',
    "USD": '"25000 USD"',
    "USD/h": '"70 USD/h"',
    "": "0.85",
}
_LARGEST = 10**30


def parse(
    value: object,
    unit: str,
    *,
    place: str = "value",
    low: float | None = 0.0,
    high: float | None = None,
    positive: bool = False,
    error: type[ConfigError] = ConfigError,
) -> Fraction:
    """Parse a number with its unit to an exact fraction in SI.

    Parameters
    ----------
    value : a number (taken as SI) or text such as "3.35 TB/s".
    unit : "bytes", "bytes/s", "s", "W", "FLOP/s", "USD", "USD/h" or "" (a plain number).
    place : the key or option, for messages.
    low, high : inclusive limits; None for none.
    positive : refuse zero as well.
    error : what to raise.

    Raises
    ------
    ConfigError
        Not a number, an unknown unit, NaN, infinite, or outside the limits.
    """
    number = _exact(value, unit, place, error)
    if abs(number) > _LARGEST:
        raise error(f"{place}: found {shown(value)}, expected a number of ordinary size")
    expected = _expected(unit, low, high, positive)
    if (low is not None and number < Fraction(low)) or (high is not None and number > Fraction(high)):
        raise error(f"{place}: found {shown(value)}, expected {expected}")
    if positive and number <= 0:
        raise error(f"{place}: found {shown(value)}, expected {expected}")
    return number


def _expected(unit: str, low: float | None, high: float | None, positive: bool) -> str:
    text = f"a number like {_EXAMPLES[unit]}" if unit else "a number"
    if positive:
        text += ", above 0"
    elif low is not None:
        text += f", {format_unit(low, unit)} or more"
    if high is not None:
        text += f", at most {format_unit(high, unit)}"
    return text


def _exact(value: object, unit: str, place: str, error: type[ConfigError]) -> Fraction:
    expected = f"expected a number like {_EXAMPLES[unit]}" if unit else "expected a number"
    if isinstance(value, bool) or value is None:
        raise error(f"{place}: found {shown(value)}, {expected}")
    if isinstance(value, int):
        return Fraction(value)
    if not isinstance(value, str):
        try:
            plain = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise error(f"{place}: found {shown(value)}, {expected}") from None
        if not math.isfinite(plain):
            raise error(f"{place}: found {plain}, expected a finite number")
        # the shortest decimal that reads back as this float: 3.3e-6 stays 3.3e-6
        return Fraction(repr(plain))
    if unit == "bytes" and value.strip().lower() == "unbounded":
        return Fraction(UNBOUNDED_BYTES)
    match = _WRITTEN.fullmatch(value)
    if match is None:
        raise error(f"{place}: found {shown(value)}, {expected}")
    digits, written = match.groups()
    if not digits.lstrip("+-")[0].isdigit() and not digits.lstrip("+-").startswith("."):
        raise error(f"{place}: found {shown(value)}, expected a finite number")
    _, _, exponent = digits.lower().partition("e")
    if len(digits) > 60 or (exponent and abs(int(exponent)) > 60):
        raise error(f"{place}: found {shown(value)}, expected a number of ordinary size")
    number = Fraction(digits.replace(",", "").replace("_", ""))
    if not written:
        return number
    table = _UNITS[unit]
    factor = table.get(written, table.get(written.replace(" ", "")))
    if factor is None:
        hint = ""
        if unit.startswith("bytes") and re.search(r"b(?:/s|ps)?$", written):
            hint = " (a small b may mean bits: write GB for bytes, Gbit/s for bits a second)"
        raise error(f"{place}: found the unit {shown(written)} in {shown(value)}, {expected}{hint}")
    return number * factor


def parse_bytes(value: object, *, place: str = "bytes", low: int = 0, high: int = UNBOUNDED_BYTES) -> int:
    """Parse "80 GB", "64 GiB", "unbounded" or a plain number to whole bytes."""
    number = parse(value, "bytes", place=place, low=low, high=high)
    if number.denominator != 1:
        raise ConfigError(f"{place}: found {shown(value)}, expected a whole number of bytes")
    return int(number)


def parse_rate(value: object, *, place: str = "bandwidth", positive: bool = True) -> float:
    """Parse "3.35 TB/s" or "400 Gbit/s" to bytes a second."""
    return float(parse(value, "bytes/s", place=place, positive=positive))


def parse_time(value: object, *, place: str = "time") -> float:
    """Parse "500 ns", "3.3 us", "2 min" to seconds."""
    return float(parse(value, "s", place=place))


def parse_power(value: object, *, place: str = "power") -> float:
    """Parse "400 W" or "23 kW" to watts."""
    return float(parse(value, "W", place=place))


def parse_flops(value: object, *, place: str = "peak", positive: bool = True) -> float:
    """Parse "1.98 PFLOP/s" to operations a second."""
    return float(parse(value, "FLOP/s", place=place, positive=positive))


def parse_usd(value: object, *, place: str = "price") -> float:
    """Parse "25000 USD" or "2.5 MUSD" to US dollars."""
    return float(parse(value, "USD", place=place))


def parse_usd_per_h(value: object, *, place: str = "price") -> float:
    """Parse "70 USD/h" to US dollars an hour."""
    return float(parse(value, "USD/h", place=place))


def parse_number(value: object, *, place: str = "number", low: float | None = 0.0, high: float | None = None) -> float:
    """Parse a plain number ("0.85", "85 %", 0.85) within inclusive limits."""
    return float(parse(value, "", place=place, low=low, high=high))


def to_picoseconds(seconds: float) -> int:
    """Return whole picoseconds, rounded to nearest (ties to even)."""
    return round(Fraction(seconds) * 10**12)


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text else text


def _prefixed(value: float, unit: str, digits: int, prefixes: str) -> str:
    if value == 0:
        return f"0 {unit}"
    if not math.isfinite(value):
        return f"{value} {unit}"
    size, scale = abs(value), 1.0
    chosen = ""
    for prefix in prefixes:
        # 999.96 at four digits reads 1000: it belongs to the next prefix
        if float(f"{size / scale:.{digits}g}") < 1000:
            break
        scale, chosen = scale * 1000, prefix
    return f"{_short(value / scale, digits)} {chosen}{unit}"


def format_bytes(value: float, *, binary: bool = False, digits: int = 4) -> str:
    """Show bytes as people write them: 80 GB, or 64 GiB with `binary`."""
    if value >= UNBOUNDED_BYTES:
        return "unbounded"
    if not binary:
        return _prefixed(value, "B", digits, "kMGTPE")
    scaled, chosen = float(value), ""
    for prefix in _BINARY:
        if abs(scaled) < 1024:
            break
        scaled, chosen = scaled / 1024, prefix
    return f"{_short(scaled, digits)} {chosen}B"


def format_rate(value: float, *, digits: int = 4) -> str:
    """Show bytes a second: 3.35 TB/s."""
    return _prefixed(value, "B/s", digits, "kMGTPE")


def format_count(value: float, *, digits: int = 4) -> str:
    """Show a large number short: 70.6 G becomes "70.6 G"; below 1000 it stays as it is."""
    return _prefixed(value, "", digits, "kMGTPE").rstrip()


def format_power(value: float, *, digits: int = 4) -> str:
    """Show watts: 13.84 kW."""
    return _prefixed(value, "W", digits, "kMG")


def format_time(seconds: float, *, digits: int = 4) -> str:
    """Show seconds in the unit a person would choose: 370 ns, 3.3 us, 1.2 s, 2 h 3 min."""
    if seconds == 0:
        return "0 s"
    if not math.isfinite(seconds):
        return f"{seconds} s"
    size = abs(seconds)
    if size >= 7200:
        hours, rest = divmod(round(size / 60), 60)
        return f"{'-' if seconds < 0 else ''}{hours} h {rest} min"
    if size >= 120:
        minutes, rest = divmod(round(size), 60)
        return f"{'-' if seconds < 0 else ''}{minutes} min {rest} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
        if float(f"{size / scale:.{digits}g}") >= 1:
            return f"{_short(seconds / scale, digits)} {unit}"
    return f"{_short(seconds / 1e-12, digits)} ps"


def format_unit(value: float, unit: str, *, digits: int = 4) -> str:
    """Show a number in the unit that :func:`parse` knows it by."""
    if unit == "bytes":
        return format_bytes(value, digits=digits)
    if unit == "bytes/s":
        return format_rate(value, digits=digits)
    if unit == "s":
        return format_time(value, digits=digits)
    if unit in ("W", "FLOP/s"):
        return _prefixed(value, unit, digits, "kMGTPE")
    if unit in ("USD", "USD/h"):
        return f"{value:,.2f} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return f"{value:g}" + (f" {unit}" if unit else "")
