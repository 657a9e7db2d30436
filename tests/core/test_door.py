"""The core's door: whatever arrives, an exception and never a crash; and nothing is replayed of a chunk that is
refused."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from closed_form.test_closed_forms import look, tier, world
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.worlds import TYPES, columns, replayer

from kvsim_core import Clock, Replayer, Store, registered

GOOD = world([tier(20), tier(100)], [10, 10, 10], [{"accesses": look(0, 1, 2)}])


def policies(n: int) -> list[Any]:
    return [registered()["lru"]() for _ in range(n)]


RULE = {"promote_after": 1, "exclusive": False, "eviction": 0, "kinds": 15}


@pytest.mark.parametrize(
    ("tiers", "rules", "n", "message"),
    [
        ([], [], 0, "0 tiers"),
        ([tier(1)] * 9, [RULE] * 8, 9, "9 tiers"),
        ([tier(1)], [RULE], 1, "one movement rule"),
        ([tier(1)], [], 2, "one policy a tier"),
        ([tier(-1)], [], 1, "out of range"),
        ([tier(2**63)], [], 1, "out of range"),
        ([tier(1, path=4)], [], 1, "out of range"),
        ([tier(1), tier(1)], [{**RULE, "exclusive": True, "eviction": 1}], 2, "exclude each other"),
        ([tier(1), tier(1)], [{**RULE, "promote_after": -1}], 2, "out of range"),
        ([tier(1), tier(1)], [{**RULE, "eviction": 3}], 2, "out of range"),
        ([tier(1), tier(1)], [{**RULE, "kinds": 16}], 2, "out of range"),
    ],
)
def test_store(tiers: list[Any], rules: list[Any], n: int, message: str) -> None:
    with pytest.raises((ValueError, OverflowError), match=message):
        Store(tiers, rules, policies(n))


def test_a_refused_store_gives_its_policies_back() -> None:
    lru = registered()["lru"]()
    with pytest.raises(ValueError, match="already serves"):
        Store([tier(1), tier(1)], [RULE], [lru, lru])
    Store([tier(1)], [], [lru])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("bytes", [-1, 0, 0]),
        ("bytes", [2**51, 0, 0]),
        ("tokens", [0, -1, 0]),
        ("kind", [4, 0, 0]),
        ("kind", [-1, 0, 0]),
        ("operation", [2, 0, 0]),
        ("parent", [0, 0, 0]),
        ("parent", [-1, 2, 0]),
        ("parent", [-2, -1, -1]),
        ("home", [2, -1, -1]),
        ("home", [-2, -1, -1]),
        ("recompute_flops", [(float("nan"), 0.0)] * 3),
        ("recompute_flops", [(-1.0, 0.0)] * 3),
        ("recompute_flops", [(0.0, float("inf"))] * 3),
        ("position", [0, 0]),
    ],
)
def test_blocks(column: str, values: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"out of range|differ"):
        replayer(replace(GOOD, blocks={**GOOD.blocks, column: values}))


def test_blocks_at_home_must_fit() -> None:
    with pytest.raises(ValueError, match="permanently live"):
        replayer(replace(GOOD, blocks={**GOOD.blocks, "home": [0, 0, 0]}))


def test_a_table_only_grows() -> None:
    running = replayer(GOOD)
    with pytest.raises(ValueError, match="only grow"):
        running.store.bind(*(np.array(GOOD.blocks[name][:2], dtype=kind) for name, kind in TYPES.items()))


@pytest.mark.parametrize(
    "change",
    [
        {"arrival_ps": -1},
        {"arrival_ps": 2**63 - 1},
        {"fixed_ps": -1},
        {"fixed_ps": 2**61},
        {"tokens": -1},
        {"repeat": -1},
        {"repeat": 2**32},
        {"flops": (-1.0, 0.0)},
        {"flops": (float("nan"), 0.0)},
        {"flops": (float("inf"), 0.0)},
        {"accesses": [[3, 0, -1, 0]]},
        {"accesses": [[-1, 0, -1, 0]]},
        {"accesses": [[0, 5, -1, 0]]},
        {"accesses": [[0, 0, -2, 0]]},
        {"accesses": [[0, 0, 2**51, 0]]},
        {"accesses": [[0, 0, -1, -5]]},
    ],
)
def test_steps(change: dict[str, Any]) -> None:
    running = replayer(GOOD)
    step = GOOD.steps[0]
    with pytest.raises(ValueError, match=r"range|negative"):
        running.feed(*columns([step, {**step, **change}]))
    assert running.result()["steps"] == 0


def test_offsets_must_cover_the_accesses() -> None:
    good = list(columns(GOOD.steps))
    for offsets in ([0, 2], [1, 3], [0, 4], [0]):
        running = replayer(GOOD)
        with pytest.raises(ValueError, match=r"cover|length"):
            running.feed(*good[:6], np.array(offsets, np.int64), *good[7:])


def test_time_that_overflows_is_an_error_not_a_wrap() -> None:
    w = world([tier(20)], [10], [{"accesses": [], "flops": (1e18, 0.0), "repeat": 2**31}])
    running = replayer(w)
    with pytest.raises(OverflowError, match="53 days"):
        running.feed(*columns(w.steps))
    running.check()


def test_bytes_that_overflow_are_an_error() -> None:
    w = world([tier(2**61, ps=0.0)], [2**50], [{"accesses": [[0, 1, -1, 0]], "repeat": 2**31}], home=[0])
    with pytest.raises(OverflowError, match="2\\^62"):
        replayer(w).feed(*columns(w.steps))


def test_numbers_of_the_clock() -> None:
    for change in (
        {"latency_ps": -1.0},
        {"latency_ps": float("nan")},
        {"read_ps_per_byte": float("inf")},
        {"norm": 0.0},
    ):
        with pytest.raises(ValueError, match="expected"):
            Clock([{**tier(1), **change}], [])
    with pytest.raises(ValueError, match="overhead_ps"):
        Clock([tier(1)], [], overhead_ps=-1)
    with pytest.raises(ValueError, match="ps_per_flop"):
        Clock([tier(1)], [], ps_per_flop=(float("nan"), 0.0))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError):
        Replayer(None, Clock([tier(1)], []))
    good = list(columns(GOOD.steps))
    with pytest.raises(ValueError, match="Buffer dtype mismatch"):
        replayer(GOOD).feed(good[0].astype(np.float64), *good[1:])


@given(st.data())
@settings(max_examples=150)
def test_random_bytes_never_crash(data: st.DataObject) -> None:
    """Columns of noise: refused, or replayed with books that balance."""
    n, m = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    wild = data.draw(st.sampled_from([4, 40, 2**62]))

    def ints(k: int, kind: Any = np.int64) -> np.ndarray:
        top = min(wild, int(np.iinfo(kind).max))
        return rng.integers(-1 if kind != np.uint8 else 0, top, k, dtype=kind, endpoint=True)

    cuts = np.sort(rng.integers(0, m + 1, max(n - 1, 0)))
    offsets = np.concatenate([[0], cuts, [m]] if n else [[0]]).astype(np.int64)
    running = replayer(GOOD)
    with contextlib.suppress(ValueError, OverflowError):
        running.feed(
            np.abs(ints(n)),
            np.abs(rng.normal(size=(n, 2))),
            np.abs(ints(n)),
            np.abs(ints(n)),
            np.abs(ints(n)) % 5,
            ints(n),
            offsets,
            ints(m, np.int32),
            ints(m, np.uint8),
            ints(m),
            np.abs(ints(m)),
        )
    running.check()
