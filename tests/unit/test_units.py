"""Numbers with units: what people write, exactly, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.errors import ConfigError, MachineError
from kvsim.units import (
    UNBOUNDED_BYTES,
    format_bytes,
    format_count,
    format_rate,
    format_time,
    format_unit,
    parse,
    parse_bytes,
    parse_flops,
    parse_number,
    parse_power,
    parse_rate,
    parse_time,
    parse_usd,
    parse_usd_per_h,
    to_picoseconds,
)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("80 GB", "bytes", 80_000_000_000),
        ("64 GiB", "bytes", 64 << 30),
        ("2TB", "bytes", 2 * 10**12),
        ("4 KiB", "bytes", 4096),
        ("1_000 B", "bytes", 1000),
        ("7.68 TB", "bytes", 7_680_000_000_000),
        ("80gb", "bytes", 80 * 10**9),
        ("unbounded", "bytes", UNBOUNDED_BYTES),
        ("3.35 TB/s", "bytes/s", 3_350_000_000_000),
        ("21 PB/s", "bytes/s", 21 * 10**15),
        ("400 Gbit/s", "bytes/s", 50 * 10**9),
        ("500 ns", "s", Fraction(5, 10**7)),
        ("3.3 us", "s", Fraction(33, 10**7)),
        ("3.3 µs", "s", Fraction(33, 10**7)),
        ("2 min", "s", 120),
        ("400 W", "W", 400),
        ("13.84 kW", "W", 13_840),
        ("1.98 PFLOP/s", "FLOP/s", 1_980_000_000_000_000),
        ("750 TOPS", "FLOP/s", 750 * 10**12),
        ("70 USD/h", "USD/h", 70),
        ("2.5 MUSD", "USD", 2_500_000),
        ("85 %", "", Fraction(85, 100)),
        ("1e3", "", 1000),
        (" 0.5 ", "", Fraction(1, 2)),
        (3.3e-6, "s", Fraction(33, 10**7)),
        (7, "bytes", 7),
    ],
)
def test_reads_what_people_write_exactly(text: object, unit: str, value: object) -> None:
    assert parse(text, unit) == value


@pytest.mark.parametrize(
    ("text", "unit", "says"),
    [
        ("80 Gb", "bytes", "may mean bits"),
        ("80 GB/s", "bytes", "'GB/s'"),
        ("five GB", "bytes", "80 GB"),
        ("", "s", "500 ns"),
        ("nan", "s", "finite"),
        ("-inf", "s", "finite"),
        (math.nan, "s", "finite"),
        (math.inf, "bytes", "finite"),
        (-1, "s", "0 s or more"),
        ("-3 GB", "bytes", "0 B or more"),
        (True, "s", "True"),
        (None, "s", "None"),
        ([], "s", "[]"),
        ("1e999", "s", "ordinary size"),
        (10**40, "s", "ordinary size"),
        ("9" * 100, "bytes", "ordinary size"),
        ("5 parsec", "s", "parsec"),
        ("1.2.3", "s", "1.2.3"),
    ],
)
def test_refuses_what_makes_no_sense(text: object, unit: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, unit, place="--set tier.dram.latency")
    message = str(caught.value)
    assert message.startswith("--set tier.dram.latency: found ")
    assert says in message
    assert "\n" not in message


def test_limits_and_error_classes() -> None:
    assert parse(1.0, "", high=1.0) == 1
    with pytest.raises(MachineError, match="at most 1"):
        parse("101 %", "", high=1.0, error=MachineError)
    with pytest.raises(ConfigError, match="above 0"):
        parse(0, "bytes/s", positive=True)
    with pytest.raises(ConfigError, match="at most unbounded"):
        parse_bytes("2 EiB")
    with pytest.raises(ConfigError, match="whole number of bytes"):
        parse_bytes("1.5 B")


def test_the_named_parsers_return_si() -> None:
    assert parse_bytes("1.5 KiB") == 1536
    assert isinstance(parse_bytes(3.0), int)
    assert parse_rate("51.5 GB/s") == 51.5e9
    assert parse_time("3.3 us") == 3.3e-6
    assert parse_power("23 kW") == 23e3
    assert parse_flops("989 TFLOP/s") == 989e12
    assert parse_usd("25000 USD") == 25e3
    assert parse_usd_per_h("19.2 USD/h") == 19.2
    assert parse_number("0.85") == 0.85
    with pytest.raises(ConfigError):
        parse_rate(0)
    assert to_picoseconds(3.3e-6) == 3_300_000
    assert to_picoseconds(0.5e-12) == 0  # ties go to even


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (format_bytes(80e9), "80 GB"),
        (format_bytes(64 << 30, binary=True), "64 GiB"),
        (format_bytes(999_999), "1 MB"),
        (format_bytes(0), "0 B"),
        (format_bytes(UNBOUNDED_BYTES), "unbounded"),
        (format_rate(3.35e12), "3.35 TB/s"),
        (format_rate(21e15), "21 PB/s"),
        (format_time(3.7e-7), "370 ns"),
        (format_time(3.3e-6), "3.3 us"),
        (format_time(1e-12), "1 ps"),
        (format_time(59.99), "59.99 s"),
        (format_time(123), "2 min 3 s"),
        (format_time(7380), "2 h 3 min"),
        (format_time(0), "0 s"),
        (format_count(70.6e9), "70.6 G"),
        (format_count(12), "12"),
        (format_unit(1.98e15, "FLOP/s"), "1.98 PFLOP/s"),
        (format_unit(19.2, "USD/h"), "19.20 USD/h"),
        (format_unit(2.5e6, "USD"), "2,500,000 USD"),
        (format_unit(0.85, ""), "0.85"),
    ],
)
def test_shows_numbers_as_people_write_them(shown: str, text: str) -> None:
    assert shown == text


@given(st.integers(0, 10**17))
def test_what_is_shown_reads_back_within_its_digits(size: int) -> None:
    assert parse(format_bytes(size), "bytes") == pytest.approx(size, rel=1e-3)
    assert parse(format_rate(size), "bytes/s") == pytest.approx(size, rel=1e-3)


@given(st.floats(1e-12, 100, allow_nan=False))
def test_times_read_back_within_their_digits(seconds: float) -> None:
    assert float(parse(format_time(seconds), "s")) == pytest.approx(seconds, rel=1e-3)


@given(st.text(max_size=20))
def test_any_text_is_a_number_or_a_clear_error(text: str) -> None:
    for unit in ("bytes", "s", ""):
        try:
            number = parse(text, unit)
        except ConfigError as error:
            message = str(error)
            assert "\n" not in message
        else:
            assert number >= 0
