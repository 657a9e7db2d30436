"""The property-test kit: right policies pass, wrong ones are caught by the law they break."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim import testing
from kvsim.trace import AccessTrace, RequestTrace


class PlainLRU:
    """A right policy, as a user writes it."""

    name = "plain-lru"

    def __init__(self) -> None:
        self.order: OrderedDict[int, None] = OrderedDict()

    def attach(self, view: Any) -> None:
        self.view = view

    def reset(self) -> None:
        self.order.clear()

    def on_hit(self, b: int) -> None:
        self.order.move_to_end(b)

    def on_insert(self, b: int) -> None:
        self.order[b] = None

    def on_remove(self, b: int, reason: int) -> None:
        del self.order[b]

    def victim(self, incoming: int) -> int | None:
        return next((b for b in self.order if self.view.evictable(b)), None)


class ByNumber(PlainLRU):
    """Wrong: evicts by number."""

    name = "by-number"

    def victim(self, incoming: int) -> int | None:
        return min((b for b in self.order if self.view.evictable(b)), default=None)


class Refuses(PlainLRU):
    """Wrong: says that it admits all and refuses every other block."""

    name = "refuses"
    admits_all = False

    def victim(self, incoming: int) -> int | None:
        return None if incoming % 2 else super().victim(incoming)


class Forgetful(PlainLRU):
    """Wrong: evicts the newest once all its instances together have evicted six."""

    name = "forgetful"
    evicted = 0

    def victim(self, incoming: int) -> int | None:
        Forgetful.evicted += 1
        order = list(self.order)[:: -1 if Forgetful.evicted > 6 else 1]
        return next((b for b in order if self.view.evictable(b)), None)


@given(testing.request_traces())
@settings(max_examples=50)
def test_drawn_requests_are_traces(trace: RequestTrace) -> None:
    assert isinstance(trace, RequestTrace)
    assert 1 <= trace.n <= 12
    sums = [trace.block_length[trace.blocks(row)].sum() for row in range(trace.n)]
    assert sums == trace.input_tokens.tolist()


@given(st.data())
@settings(max_examples=30)
def test_drawn_accesses_and_machines_replay(data: st.DataObject) -> None:
    trace, machine = data.draw(testing.access_traces()), data.draw(testing.machines())
    assert isinstance(trace, AccessTrace)
    result = testing.assert_keeps_books("lru", trace, machine)
    assert result.tiers == machine.tier_names


@given(testing.access_traces(equal_sizes=True, lookups_only=True))
@settings(max_examples=30)
def test_renaming_twice_is_nothing_but_names(trace: AccessTrace) -> None:
    other = testing.renamed(trace)
    assert sorted(other.blocks.bytes) == sorted(trace.blocks.bytes)
    assert (other.blocks.position[other.block] == trace.blocks.position[trace.block]).all()


@given(testing.policies())
@settings(max_examples=20)
def test_drawn_policies_have_names(name: str) -> None:
    assert testing.hits(name, _three(), [0])[0] == 0


def test_only_policies_that_admit_all() -> None:
    kept = {name.removeprefix("leaf-") for name in testing.policies(admits_all=True).elements}  # type: ignore[attr-defined]
    assert {"lru", "fifo"} <= kept


def _three() -> AccessTrace:
    return _fixed()


def _fixed() -> AccessTrace:
    from kvsim.trace import BlockTable, TraceMeta

    order = [0, 1, 2, 0, 1, 3, 0, 1, 2, 3]
    steps = len(order)
    return AccessTrace(
        blocks=BlockTable.of_data([1, 1, 1, 1]), meta=TraceMeta(name="fixed"), arrival_ps=[0] * steps,
        flops=np.zeros((steps, 2)), fixed_ps=[0] * steps, tokens=[0] * steps, stream=[0] * steps,
        category=[0] * steps, repeat=[1] * steps, request=[-1] * steps, offsets=list(range(steps + 1)),
        block=order, op=[0] * steps,
    )  # fmt: skip


def test_hits_of_a_sequence_done_by_hand() -> None:
    # 0 1 2 0 1 3 0 1 2 3: three blocks of LRU hit 0 1 . 0 1; the optimum also has one of the last
    # two
    assert testing.hits("lru", _fixed(), [0, 1, 2, 3, 4]) == [0, 0, 0, 4, 6]
    assert testing.hits(PlainLRU, _fixed(), [0, 1, 2, 3, 4]) == [0, 0, 0, 4, 6]
    assert testing.hits("belady", _fixed(), [3]) == [5]
    assert testing.hits(PlainLRU(), _fixed(), []) == []


@pytest.mark.parametrize("policy", ["lru", PlainLRU, PlainLRU()])
def test_a_right_policy_passes(policy: Any) -> None:
    testing.check_policy(policy, max_examples=20, stack=True)


@pytest.mark.parametrize("policy", ["fifo", "s3-fifo", "sieve", "arc", "belady"])
def test_those_of_kvsim_pass(policy: str) -> None:
    testing.check_policy(policy, max_examples=10, labels=policy != "belady")


def test_a_twin_hits_as_often() -> None:
    @given(testing.request_traces())
    @settings(max_examples=30)
    def same(trace: RequestTrace) -> None:
        testing.assert_same_hits(PlainLRU, "lru", trace, range(7))

    same()


def test_a_policy_that_looks_at_numbers_is_caught() -> None:
    with pytest.raises(AssertionError, match="renumbered"):
        testing.assert_labels_mean_nothing(ByNumber, _fixed(), range(5))
    testing.assert_labels_mean_nothing(PlainLRU, _fixed(), range(5))


@pytest.mark.slow
def test_check_policy_finds_the_broken_law() -> None:
    with pytest.raises(AssertionError, match="renumbered"):
        testing.check_policy(ByNumber, max_examples=300)


def test_fifo_is_caught_when_it_claims_inclusion() -> None:
    # Belady's anomaly: 9 misses in 3 blocks, 10 in 4
    order = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    fixed = _fixed()
    from dataclasses import replace

    from kvsim.trace import BlockTable

    steps = len(order)
    trace = AccessTrace(
        blocks=BlockTable.of_data([1] * 6), meta=replace(fixed.meta), arrival_ps=[0] * steps,
        flops=np.zeros((steps, 2)), fixed_ps=[0] * steps, tokens=[0] * steps, stream=[0] * steps,
        category=[0] * steps, repeat=[1] * steps, request=[-1] * steps, offsets=list(range(steps + 1)),
        block=order, op=[0] * steps,
    )  # fmt: skip
    assert testing.hits("fifo", trace, [3, 4]) == [3, 2]
    with pytest.raises(AssertionError, match="expected the 3 of 3 blocks or more"):
        testing.assert_inclusion("fifo", trace, [3, 4])
    testing.assert_inclusion("lru", trace, [3, 4])


def test_a_policy_with_a_memory_is_caught() -> None:
    with pytest.raises(AssertionError, match="second run"):
        testing.assert_deterministic(Forgetful, _fixed(), [2])


def test_the_optimum_binds_only_who_admits_all() -> None:
    testing.assert_belady_best(Refuses, _fixed(), range(5))
    testing.assert_infinite(Refuses, _fixed())


def test_a_false_result_is_caught() -> None:
    class Made:
        class identity:
            exact, wall_ps = True, 5
            parts_ps = {"compute": -1, "stalls": 6}  # noqa: RUF012

        arrays = {"stall_ps": np.zeros((1, 4, 5), np.int64)}  # noqa: RUF012

    with pytest.raises(AssertionError, match="-1 ps of compute"):
        testing.assert_identity(Made())  # type: ignore[arg-type]
    Made.identity.exact = False
    with pytest.raises(AssertionError, match="parts sum to 5"):
        testing.assert_identity(Made())  # type: ignore[arg-type]
