"""The core's closed loop equals the specification, integer for integer, on random small cases."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from reference.run_adapter import Sampled, answer
from reference.run_worlds import RunWorld, columns, run_worlds, specified

from kvsim_core import Engine, registered

LOOSE = ("peak_blocks", "events", "log_cut", "transfer_bytes", "transfer_busy_ps")


def engine(world: RunWorld, *, record: bool = False) -> Engine:
    """Return the core's engine of a world, not yet run."""
    policies = [
        [registered()[name](seed=world.seed + 16 * i + t) for t, name in enumerate(names)]
        for i, names in enumerate(world.policies)
    ]
    return Engine(columns(world.spec), policies, record=record)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names whose values differ."""
    names = [name for name in expected if name not in LOOSE and not name.startswith(("log/", "bins/"))]
    return [name for name in names if not np.array_equal(np.asarray(found[name]), np.asarray(expected[name]))]


@given(run_worlds())
def test_core_is_specification(world: RunWorld) -> None:
    core = engine(world)
    while not core.run():
        pass
    core.check()
    reference = specified(world, Sampled)
    reference.run()
    found, expected = core.result(), answer(reference)
    assert differences(found, expected) == []
