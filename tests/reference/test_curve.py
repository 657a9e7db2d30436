"""The curve of the core equals the specification's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim import reference
from kvsim_core import curve, next_uses, registered

Case = tuple[list[int], list[int], list[int], list[int]]


@st.composite
def prompts(draw: st.DrawFn) -> Case:
    """Return parents and sizes of blocks, last prompt blocks, and last output blocks of requests."""
    n = draw(st.integers(1, 12))
    parent = [draw(st.integers(-1, b - 1)) if draw(st.booleans()) else b - 1 for b in range(n)]
    last = draw(st.lists(st.integers(-1, n - 1), max_size=25))
    output = [draw(st.integers(-1, n - 1)) for _ in last] if draw(st.booleans()) else [-1] * len(last)
    equal = draw(st.booleans())
    size = [1 if equal else draw(st.integers(1, 4)) for _ in range(n)]
    return parent, size, last, output


@pytest.mark.parametrize("name", sorted(registered()))
@given(case=prompts(), capacity=st.integers(0, 14), prefix=st.booleans(), leaf=st.booleans())
@settings(max_examples=80)
def test_curve_equals_specification(name: str, case: Case, capacity: int, prefix: bool, leaf: bool) -> None:
    parent, size, last, output = case
    expected = reference.curve(
        last,
        parent,
        size,
        reference.POLICIES[name](seed=3),
        capacity=capacity,
        prefix=prefix,
        leaf_only=leaf,
        output=output,
    )
    up, ends, outs = (np.array(column, dtype=np.int32) for column in (parent, last, output))
    lengths = [len(reference.chain(parent, b)) for b in range(len(parent))]
    position = np.array(lengths, dtype=np.int32) - 1
    prompt = np.array([lengths[b] if b >= 0 else 0 for b in last], dtype=np.int64)
    future, output_future = next_uses(ends, up, position, outs)
    hits, halves, blocks, total = curve(
        ends,
        prompt,
        up,
        position,
        np.ones(len(parent), dtype=np.int64),
        np.array(size, dtype=np.int64),
        registered()[name](seed=3),
        capacity=capacity,
        prefix=prefix,
        leaf_only=leaf,
        output_block=outs,
        future=future,
        output_future=output_future,
    )
    assert hits == sum(expected)
    assert halves == 2 * hits
    assert blocks == total == prompt.sum()
