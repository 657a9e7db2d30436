"""Machines with fewer tiers."""

from __future__ import annotations

import pytest

from kvsim.errors import ConfigError, UnknownNameError
from kvsim.keep import keep_tiers
from kvsim.machine import Machine


def test_the_nearest_tiers() -> None:
    machine = Machine.load("h100x8")
    assert keep_tiers(machine, 3) == machine
    two = keep_tiers(machine, 2)
    assert two.tier_names == machine.tier_names[:2]
    assert two.movements == machine.movements[:1]
    one = keep_tiers(machine, 1)
    assert (one.links, one.movements) == ((), ())


def test_what_lay_behind_a_tier_is_reached_over_the_same_links() -> None:
    machine = Machine.load("h100x8")
    for link in machine.links:
        assert set(link.between) <= set(machine.tier_names)
    near, middle, far = machine.tier_names
    kept = keep_tiers(machine, (far, near))
    assert kept.tier_names == (near, far)
    assert {k.name for k in kept.links} == {k.name for k in machine.links}
    assert {k.between for k in kept.links} == {(near, far)}
    # blocks move by the rule that stood above the tier that went
    above = machine.movements[0]
    assert kept.movements[0].promote == above.promote
    assert (kept.movements[0].upper, kept.movements[0].lower) == (near, far)
    assert keep_tiers(machine, (middle, far)).tier_names == (middle, far)


def test_wrong_words() -> None:
    machine = Machine.load("h100x8")
    for wanted in (0, 4, -1, ()):
        with pytest.raises(ConfigError, match="tiers"):
            keep_tiers(machine, wanted)
    with pytest.raises(UnknownNameError, match="hbm"):
        keep_tiers(machine, ("hbn",))
