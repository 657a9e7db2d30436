"""Laws of policies on random prompts: the optimum, inclusion, relabelling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvsim
from kvsim_core import curve, next_uses, registered

ADMIT_ALL = sorted(name for name, make in registered().items() if make().admits_all)


@st.composite
def traces(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 25))
    parent = np.array([draw(st.integers(-1, b - 1)) if draw(st.booleans()) else b - 1 for b in range(n)], np.int32)
    position = np.zeros(n, np.int32)
    for b in range(n):
        if parent[b] >= 0:
            position[b] = position[parent[b]] + 1
    last = np.array(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=60)), np.int32)
    return last, parent, position


def hits(trace, policy: str, capacity: int, **options) -> int:
    last, parent, position = trace
    ones = np.ones(len(parent), np.int64)
    prompt = (position[last] + 1).astype(np.int64)
    made = registered()[policy](seed=1)
    return curve(
        last, prompt, parent, position, ones, ones, made, capacity=capacity,
        future=next_uses(last, parent, position)[0],
        **options,
    )[0]  # fmt: skip


@pytest.mark.parametrize("policy", ADMIT_ALL)
@given(trace=traces(), capacity=st.integers(0, 25))
@settings(max_examples=60)
def test_belady_is_never_beaten(policy: str, trace, capacity: int) -> None:
    assert hits(trace, "belady", capacity) >= hits(trace, policy, capacity)


@pytest.mark.parametrize("leaf", [False, True])
@given(trace=traces())
def test_lru_inclusion(leaf: bool, trace) -> None:
    """More capacity never hurts: what a smaller LRU holds, a larger one holds too."""
    curve_ = [hits(trace, "lru", c, leaf_only=leaf, prefix=leaf) for c in range(0, 30, 2)]
    assert all(a <= b for a, b in pairwise(curve_))


@given(trace=traces())
def test_belady_inclusion(trace) -> None:
    curve_ = [hits(trace, "belady", c) for c in range(0, 30, 2)]
    assert all(a <= b for a, b in pairwise(curve_))


@given(trace=traces(), capacity=st.integers(0, 25))
def test_lru_loses_no_hit_to_the_prefix_rule(trace, capacity: int) -> None:
    """Touched front to back, a resident block behind a missing one was touched after it: LRU keeps no such block."""
    last, parent, position = trace
    if capacity < int(position.max()) + 1:
        return  # a prompt longer than the tier evicts its own front
    flat = (last, parent, position)
    assert hits(flat, "lru", capacity, prefix=True) <= hits(flat, "lru", capacity)


@pytest.mark.parametrize("policy", sorted(registered()))
@given(trace=traces())
@settings(max_examples=40)
def test_room_for_all_hits_all_but_the_first(policy: str, trace) -> None:
    last, parent, position = trace
    references = int((position[last] + 1).sum())
    seen: set[int] = set()
    for b in last:
        while b >= 0:
            seen.add(int(b))
            b = parent[b]
    assert hits(trace, policy, len(parent)) == references - len(seen)


@pytest.mark.parametrize("policy", sorted(registered()))
@given(trace=traces())
@settings(max_examples=20)
def test_no_room_hits_nothing(policy: str, trace) -> None:
    assert hits(trace, policy, 0) == 0


def test_a_hit_is_worth_its_part_of_the_prompt() -> None:
    """An id that was first seen as a partial block counts whole where a prompt fills it."""
    trace = kvsim.RequestTrace.from_lists(
        block_tokens=4, input_tokens=[6, 8, 8], output_tokens=[1] * 3, block_ids=[[1, 2]] * 3, arrival_s=[0, 1, 2]
    )
    found = kvsim.curve(trace, capacities=[10], weight="token")
    assert found.hit_count.tolist() == [[16]]
    assert found.total == 22
    half = kvsim.curve(trace, capacities=[0], weight="token", hit_rule="prefix", half_block=True)
    assert half.hit_count.tolist() == [[6.0]]


def test_a_prompt_longer_than_a_leaf_only_tier() -> None:
    """Five blocks into three: the fourth takes the third's place, stands on no parent, and admission ends at two."""
    trace = kvsim.RequestTrace.from_lists(
        block_tokens=4, input_tokens=[20, 20], output_tokens=[1, 1], block_ids=[[1, 2, 3, 4, 5]] * 2, arrival_s=[0, 1]
    )
    found = kvsim.curve(trace, policies=["leaf-lru", "lru"], capacities=[3, 5], hit_rule="prefix")
    assert found.hit_count.tolist() == [[2, 5], [0, 5]]
