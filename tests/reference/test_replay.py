"""The core equals the specification: every policy, random tiers, rules, blocks and steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.worlds import World, core, specification, worlds

from kvsim import reference
from kvsim_core import PythonPolicy, registered


def same(found: dict, expected: dict) -> None:
    for key, value in expected.items():
        assert found[key] == value, key


@given(worlds())
def test_core_equals_specification(world: World) -> None:
    same(core(world), specification(world))


@pytest.mark.parametrize("name", sorted(registered()))
@given(world=worlds(max_steps=20))
@settings(max_examples=60)
def test_each_policy_equals_its_twin(name: str, world: World) -> None:
    one = replace(world, policies=[name] * len(world.tiers))
    same(core(one), specification(one))


@given(worlds(max_tiers=2))
@settings(max_examples=50)
def test_twins_run_inside_the_core(world: World) -> None:
    twins = [PythonPolicy(reference.POLICIES[name](seed=world.seed)) for name in world.policies]
    assert core(world, twins) == core(world)


@given(worlds(), st.lists(st.integers(0, 12), max_size=3))
def test_a_trace_cut_in_pieces_is_the_same_trace(world: World, cuts: list[int]) -> None:
    whole, pieces = core(world), core(world, cuts=tuple(min(c, len(world.steps)) for c in cuts))
    assert pieces == whole


def test_every_policy_has_a_twin() -> None:
    assert sorted(registered()) == sorted(reference.POLICIES)
