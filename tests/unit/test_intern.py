"""Interning against a dictionary of tuples, and its door."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim_core._intern import (
    ancestors_at,
    depths,
    expand_chains,
    find_cycle,
    intern_chains,
    intern_ids,
    renumber_chains,
)

IDS = st.one_of(st.integers(0, 4), st.integers(-(1 << 63), (1 << 63) - 1))
ROWS = st.lists(st.tuples(st.integers(0, 2), st.lists(IDS, max_size=8)), max_size=30)
BIG = (1 << 31) - 2


def columns(rows: list[tuple[int, list[int]]]) -> tuple[Any, Any, Any]:
    ids = np.array([i for _, row in rows for i in row], np.int64)
    return ids, np.cumsum([0, *(len(row) for _, row in rows)]), np.array([s for s, _ in rows], np.int32)


def reference(
    rows: list[tuple[int, list[int]]],
) -> tuple[list[int], dict[tuple[int, tuple[int, ...]], tuple[int, int]]]:
    """Return last blocks, and (namespace, whole prefix) -> (dense id, first row)."""
    known: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
    last = []
    for number, (space, row) in enumerate(rows):
        block = -1
        for k in range(len(row)):
            block = known.setdefault((space, tuple(row[: k + 1])), (len(known), number))[0]
        last.append(block)
    return last, known


@given(ROWS)
def test_chains_equal_a_dictionary_of_prefixes(rows: list[tuple[int, list[int]]]) -> None:
    last, parent, position, first_row, original, space = intern_chains(*columns(rows))
    expected, known = reference(rows)
    assert last.tolist() == expected
    assert [c.dtype for c in (last, parent, position, first_row, original, space)] == [np.int32] * 4 + [
        np.int64,
        np.int32,
    ]
    assert len(parent) == len(known)
    for (name, prefix), (block, row) in known.items():
        up = known[name, prefix[:-1]][0] if len(prefix) > 1 else -1
        found = (parent[block], position[block], first_row[block], original[block], space[block])
        assert found == (up, len(prefix) - 1, row, prefix[-1], name)
    blocks, offsets = expand_chains(last, parent, position)
    assert original[blocks].tolist() == [i for _, row in rows for i in row]
    assert offsets.tolist() == columns(rows)[1].tolist()
    assert depths(parent).tolist() == position.tolist()


def test_tables_grow() -> None:
    rng = np.random.default_rng(1)
    rows = [(int(rng.integers(3)), rng.integers(0, 5, int(rng.integers(0, 40))).tolist()) for _ in range(3000)]
    last, parent, *_ = intern_chains(*columns(rows))
    expected, known = reference(rows)
    assert last.tolist() == expected
    assert len(parent) == len(known) > 4096
    dense, original = intern_ids(np.arange(10_000)[::-1].repeat(2))
    assert (dense == np.arange(10_000).repeat(2)).all()
    assert (original == np.arange(10_000)[::-1]).all()


@given(st.lists(IDS, max_size=200))
def test_flat_ids_equal_a_dictionary(ids: list[int]) -> None:
    known: dict[int, int] = {}
    expected = [known.setdefault(i, len(known)) for i in ids]
    dense, original = intern_ids(np.array(ids, np.int64))
    assert dense.tolist() == expected
    assert original.tolist() == list(known)


@given(ROWS, st.data())
def test_ancestors_are_entries_of_the_chain(rows: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    last, parent, position, *_ = intern_chains(*columns(rows))
    blocks, offsets = expand_chains(last, parent, position)
    wanted = [data.draw(st.integers(-1, len(row) - 1)) for _, row in rows]
    found = ancestors_at(last, np.array(wanted, np.int64), parent, position)
    assert found.tolist() == [-1 if w < 0 else blocks[offsets[k] + w] for k, w in enumerate(wanted)]


@given(ROWS, st.randoms())
def test_renumbering_equals_interning_what_remains(rows: list[tuple[int, list[int]]], random: Any) -> None:
    last, parent, position, _, original, _ = intern_chains(*columns(rows))
    order = random.sample(range(len(rows)), random.randint(0, len(rows)))
    kept, new = renumber_chains(last[order], np.full(len(order), -1), parent, position)
    expected = intern_chains(*columns([rows[k] for k in order]))
    assert original[kept].tolist() == expected[4].tolist()
    assert np.append(new, -1)[last[order]].tolist() == expected[0].tolist()
    assert np.append(new, -1)[parent[kept]].tolist() == expected[1].tolist()


@given(
    st.integers(1, 8).flatmap(lambda n: st.lists(st.lists(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
def test_cycles_are_found(waits: list[list[int]]) -> None:
    def reaches(start: int) -> bool:
        seen, todo = set(), list(waits[start])
        while todo:
            row = todo.pop()
            if row == start:
                return True
            if row not in seen:
                seen.add(row)
                todo += waits[row]
        return False

    found = find_cycle(np.cumsum([0, *map(len, waits)]), np.array([r for w in waits for r in w], np.int32))
    in_cycles = [row for row in range(len(waits)) if reaches(row)]
    assert found in in_cycles if in_cycles else found == -1


def test_a_long_chain_of_dependencies_needs_no_stack() -> None:
    n = 300_000
    assert find_cycle(np.arange(n + 1).clip(0, n - 1), np.arange(1, n)) == -1
    assert find_cycle(np.arange(n + 1), np.append(np.arange(1, n), 0)) >= 0


BAD: dict[str, Any] = {
    "offsets too short": lambda: intern_chains([1, 2], [0], [0]),
    "offsets beyond": lambda: intern_chains([1, 2], [0, 3], [0]),
    "offsets fall": lambda: intern_chains([1, 2], [0, 2, 1, 2], [0, 0, 0]),
    "offsets begin late": lambda: intern_chains([1, 2], [1, 2], [0]),
    "offsets negative": lambda: intern_chains([1, 2], [0, -5, 2], [0, 0]),
    "floats": lambda: intern_chains([1.5], [0, 1], [0]),
    "text": lambda: intern_chains(["a"], [0, 1], [0]),
    "two dimensions": lambda: intern_chains([[1]], [0, 1], [0]),
    "ids beyond int64": lambda: intern_chains(np.array([1 << 63], np.uint64), [0, 1], [0]),
    "namespace beyond int32": lambda: intern_chains([1], [0, 1], [1 << 31]),
    "too many blocks": lambda: intern_chains([1, 2, 3], [0, 3], [0], limit=2),
    "limit out of range": lambda: intern_chains([1], [0, 1], [0], limit=BIG + 1),
    "flat floats": lambda: intern_ids([0.5]),
    "parent is later": lambda: expand_chains([1], [1, 0], [0, 1]),
    "parent is itself": lambda: expand_chains([0], [0], [0]),
    "parent below -1": lambda: expand_chains([0], [-2], [0]),
    "position wrong": lambda: expand_chains([1], [-1, 0], [0, 2]),
    "position missing": lambda: expand_chains([1], [-1, 0], [0]),
    "block beyond": lambda: expand_chains([2], [-1, 0], [0, 1]),
    "block below -1": lambda: expand_chains([-2], [-1, 0], [0, 1]),
    "position beyond": lambda: ancestors_at([0], [1], [-1], [0]),
    "rows differ": lambda: ancestors_at([0], [0, 0], [-1], [0]),
    "outputs differ": lambda: renumber_chains([0], [], [-1], [0]),
    "depths of a later parent": lambda: depths([1, -1]),
    "after beyond": lambda: find_cycle([0, 1], [1]),
    "after negative": lambda: find_cycle([0, 1], [-1]),
    "after offsets": lambda: find_cycle([0, 2], [0]),
    "no offsets": lambda: find_cycle([], []),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_value_errors(case: str) -> None:
    with pytest.raises(ValueError, match=r"found|expected"):
        BAD[case]()


def test_more_rows_than_an_int32_can_name_are_refused_before_any_is_read() -> None:
    many = np.broadcast_to(np.int32(0), (1 << 31,))  # no memory behind it
    with pytest.raises((ValueError, MemoryError)):
        intern_chains(np.zeros(0, np.int64), np.zeros(1, np.int64), many)


def test_empty_and_read_only_columns() -> None:
    last, parent, *_ = intern_chains([], [0], [])
    assert len(last) == len(parent) == 0
    assert intern_chains([], [0, 0], [0])[0].tolist() == [-1]
    ids = np.arange(4)
    ids.flags.writeable = False
    assert intern_chains(ids, [0, 4], [0])[0].tolist() == [3]
    assert intern_chains(np.arange(8)[::2], [0, 4], [0])[4].tolist() == [0, 2, 4, 6]
