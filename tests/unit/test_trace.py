"""RequestTrace, AccessTrace and AccessStream: views, checks, and traces made from traces."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim import AccessStream, AccessTrace, BlockTable, RequestTrace, TraceError, TraceWarning, read_trace
from kvsim.trace import TraceMeta


def simple(**changes: Any) -> RequestTrace:
    """Four requests in blocks of 4: two share two blocks, one has no ids, one waits for two others."""
    fields: dict[str, Any] = {
        "name": "t",
        "block_tokens": 4,
        "arrival_s": [0, 1, 1, 2],
        "input_tokens": [10, 12, 5, 10],
        "output_tokens": [3, 4, 5, 6],
        "block_ids": [[7, 8, 9], [7, 8, 1], [], [7, 8, 9]],
        "after": [[], [], [], [0, 1]],
        "delay_s": [0, 0, 0, 0.5],
        "pause": [0, 0, 0, 2],
    }
    return RequestTrace.from_lists(**{**fields, **changes})


@st.composite
def traces(draw: st.DrawFn) -> tuple[RequestTrace, list[list[int]], list[list[int]]]:
    """A trace, and the prompts (with outputs) it was made of, in its order."""
    n = draw(st.integers(0, 12))
    prompts = draw(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=n, max_size=n))
    outputs = draw(st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=n, max_size=n))
    arrival = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    after = [sorted(draw(st.sets(st.integers(0, k - 1), max_size=2))) if k else [] for k in range(n)]
    pieces = draw(st.integers(0, 3)) if n else 0
    reads = st.lists(st.integers(0, pieces - 1), max_size=3) if pieces else st.just([])
    data = draw(st.lists(reads, min_size=n, max_size=n))
    trace = RequestTrace.from_lists(
        name="t",
        block_tokens=3,
        arrival_ps=np.array(arrival, np.int64),
        input_tokens=np.array([3 * len(p) for p in prompts], np.int64),
        output_tokens=np.array([3 * len(p) for p in outputs], np.int64),
        block_ids=prompts,
        output_ids=outputs,
        after=after,
        delay_ps=np.arange(n),
        population=np.arange(n) % 2,
        population_names=("even", "odd"),
        data=data,
        data_bytes=np.arange(pieces) * 10,
        notice=False,
    )
    order = np.argsort(arrival, kind="stable").tolist()
    return trace, [prompts[k] for k in order], [prompts[k] + outputs[k] for k in order]


def test_views() -> None:
    trace = simple()
    assert (trace.n, trace.unique_blocks, trace.references) == (4, 4, 9)
    assert trace.block_parent.tolist() == [-1, 0, 1, 1]
    assert trace.block_length.tolist() == [4, 4, 2, 4]
    assert trace.block_id.tolist() == [7, 8, 9, 1]
    assert trace.last_block.tolist() == [2, 3, -1, 2]
    assert trace.prefix_blocks.tolist() == [0, 2, 0, 3]
    assert trace.prefix_of.tolist() == [-1, 0, -1, 0]
    assert trace.prefix_tokens.tolist() == [0, 8, 0, 10]
    assert trace.private_tokens.tolist() == [0, 0, 5, 0]
    assert [list(trace.own_blocks(k)) for k in range(4)] == [[0, 1, 2], [3], [], []]
    assert trace.blocks(1).tolist() == [0, 1, 3]
    assert trace.blocks(-1).tolist() == [0, 1, 2]
    assert trace.after_of(3).tolist() == [0, 1]
    assert not trace.open_loop
    assert trace.delay_ps.tolist() == [0, 0, 0, 5 * 10**11]
    with pytest.raises(IndexError):
        trace.blocks(4)


def test_statistics() -> None:
    found = simple().statistics()
    assert found["infinite_hit_block"] == 5 / 9
    assert found["infinite_hit_token"] == 18 / 37
    assert found["repeated_timestamps"] == 1
    assert found["dependent_requests"] == 1
    assert (found["duration_s"], found["input_tokens_sum"], found["input_tokens_max"]) == (2.0, 37, 12)
    assert (found["tool_s_p50"], found["think_s_p50"]) == (0.5, None)
    empty = simple().first(0).statistics()
    assert (empty["requests"], empty["infinite_hit_block"], empty["input_tokens_mean"]) == (0, None, None)


@given(traces())
def test_every_view_agrees_with_the_lists(made: tuple[RequestTrace, list[list[int]], list[list[int]]]) -> None:
    trace, prompts, whole = made
    flat, offsets = trace.block_lists()
    known: dict[tuple[int, ...], int] = {}
    for k, (prompt, both) in enumerate(zip(prompts, whole, strict=True)):
        blocks = trace.blocks(k)
        assert trace.block_id[blocks].tolist() == prompt
        assert trace.block_id[trace.blocks(k, output=True)].tolist() == both
        assert flat[offsets[k] : offsets[k + 1]].tolist() == blocks.tolist()
        shared = 0
        while shared < len(prompt) and tuple(prompt[: shared + 1]) in known:
            shared += 1
        assert trace.prefix_blocks[k] == shared
        assert trace.prefix_of[k] == (known[tuple(prompt[:shared])] if shared else -1)
        before = len(known)
        for depth in range(len(both)):
            known.setdefault(tuple(both[: depth + 1]), k)
        assert list(trace.own_blocks(k)) == list(range(before, len(known)))
    assert trace.unique_blocks == len(known)


@given(traces(), st.integers(0, 13), st.booleans())
def test_first_and_last_equal_making_the_trace_from_fewer_rows(
    made: tuple[RequestTrace, list[list[int]], list[list[int]]], count: int, front: bool
) -> None:
    trace, prompts, whole = made
    part = trace.first(count) if front else trace.last(count)
    kept = range(min(count, trace.n)) if front else range(max(trace.n - count, 0), trace.n)
    assert part.n == len(kept)
    shift = 0 if front or not len(kept) else trace.arrival_ps[kept[0]]
    assert part.arrival_ps.tolist() == [trace.arrival_ps[k] - shift for k in kept]
    for new, old in enumerate(kept):
        assert part.block_id[part.blocks(new)].tolist() == prompts[old]
        assert part.block_id[part.blocks(new, output=True)].tolist() == whole[old]
        assert part.after_of(new).tolist() == [kept.index(w) for w in trace.after_of(old).tolist() if w in kept]
        assert part.data_of(new).tolist() == trace.data_of(old).tolist()
        assert part.population[new] == trace.population[old]
    assert part.data_bytes.tolist() == trace.data_bytes.tolist()
    assert (np.maximum.accumulate(part.block_parent) < np.arange(part.unique_blocks)).all()
    if count >= trace.n and front:
        assert part == trace


def test_what_waited_for_dropped_requests_starts_at_its_arrival() -> None:
    tail = simple().last(2)
    assert tail.after.tolist() == []
    assert tail.delay_ps.tolist() == [0, 0]
    assert tail.pause.tolist() == [0, 0]
    kept = simple().last(3)
    assert kept.after_of(2).tolist() == [0]
    assert kept.delay_ps[2] == 5 * 10**11


def test_scaling_moves_starts_and_keeps_waits() -> None:
    trace = simple(arrival_s=[4, 8, 8, 10], after=[[], [], [], [1]])
    assert (trace.scaled(2).arrival_ps / 1e12).tolist() == [2, 4, 4, 6]
    assert trace.scaled(2).delay_ps.tolist() == trace.delay_ps.tolist()
    slow = trace.scaled(0.25)
    assert (slow.arrival_ps / 1e12).tolist() == [16, 32, 32, 34]
    # a session that follows an early request overtakes one that starts late
    trace = simple(arrival_s=[0, 8, 8, 10], after=[[], [], [], [0]]).scaled(0.5)
    assert (trace.arrival_ps / 1e12).tolist() == [0, 10, 16, 16]
    assert trace.after_of(1).tolist() == [0]
    for wrong in (0, -1, float("nan"), float("inf"), "2"):
        with pytest.raises(TraceError, match="rate"):
            trace.scaled(wrong)  # type: ignore[arg-type]


@given(traces(), st.sampled_from([1, 3]))
def test_splitting_keeps_tokens_and_sharing(made: tuple[RequestTrace, Any, Any], size: int) -> None:
    trace = made[0]
    part = trace.split(size)
    assert part.block_tokens == size
    assert part.references == trace.references * (3 // size)
    assert part.prefix_tokens.tolist() == trace.prefix_tokens.tolist()
    assert part.block_length.sum() == trace.block_length.sum()


def test_splitting_a_partial_block() -> None:
    part = simple().split(2)
    assert part.block_length.tolist() == [2, 2, 2, 2, 2, 2, 2]
    assert part.block_position.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert part.blocks(1).tolist() == [0, 1, 2, 3, 5, 6]
    for wrong in (3, 8, 0, -4):
        with pytest.raises(TraceError, match="divisor"):
            simple().split(wrong)


@given(traces(), traces())
def test_merging_keeps_both_apart(a: tuple[RequestTrace, Any, Any], b: tuple[RequestTrace, Any, Any]) -> None:
    joined = RequestTrace.merge(a[0], b[0])
    assert joined.n == a[0].n + b[0].n
    assert joined.unique_blocks == a[0].unique_blocks + b[0].unique_blocks
    assert joined.prefix_blocks.sum() == a[0].prefix_blocks.sum() + b[0].prefix_blocks.sum()
    assert len(joined.after) == len(a[0].after) + len(b[0].after)
    assert (np.diff(joined.arrival_ps) >= 0).all()
    place = np.argsort(np.concatenate([a[0].arrival_ps, b[0].arrival_ps]), kind="stable").tolist()
    for new, old in enumerate(place):
        trace, row = (a[0], old) if old < a[0].n else (b[0], old - a[0].n)
        assert joined.block_id[joined.blocks(new)].tolist() == trace.block_id[trace.blocks(row)].tolist()
        assert joined.data_bytes[joined.data_of(new)].tolist() == trace.data_bytes[trace.data_of(row)].tolist()
        owner = joined.population_names[joined.population[new]]
        assert owner == ("t.0/" if old < a[0].n else "t.1/") + trace.population_names[trace.population[row]]
        base = 0 if old < a[0].n else a[0].n
        assert sorted(place[w] - base for w in joined.after_of(new)) == sorted(trace.after_of(row).tolist())


def test_merging_two_populations() -> None:
    people = simple(name="chat", category=[0, 1, 0, 1], category_names=["human", "api"], session=[0, 0, 1, 1],
                    session_names=["x", "y"])  # fmt: skip
    agents = simple(name="agents", arrival_s=[0, 1, 3, 3], category=[0, 0, 0, 1], category_names=["human", "tool"],
                    session=[0, 0, 0, 0], session_names=["z"])  # fmt: skip
    both = RequestTrace.merge(people, agents)
    assert both.name == "chat+agents"
    assert (both.arrival_ps / 1e12).tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert both.population_names == ("chat", "agents")
    assert both.population.tolist() == [0, 1, 0, 0, 1, 0, 1, 1], "of equal arrivals the earlier trace's come first"
    assert both.category_names == ("chat/human", "api", "agents/human", "tool"), "prefixed only where two collide"
    assert both.category.tolist() == [0, 2, 1, 0, 2, 1, 2, 3]
    assert both.session_names == ("x", "y", "z")
    assert both.session.tolist() == [0, 2, 0, 1, 2, 1, 2, 2]
    assert [both.after_of(k).tolist() for k in range(8)] == [[], [], [], [], [], [0, 2], [], [1, 4]]
    assert both.namespaces == ("chat", "agents")
    assert both.unique_blocks == 8
    # the blocks have equal original ids, but are each trace's own
    assert not set(both.blocks(0).tolist()) & set(both.blocks(1).tolist())
    assert "chat, agents" in repr(both)

    named = RequestTrace.merge(people, agents, people, names=["people", "machines", "people"], name="all of it")
    assert (named.name, named.population_names) == ("all of it", ("people", "machines"))
    assert np.bincount(named.population).tolist() == [8, 4]
    assert named.category_names == ("people.0/human", "people.0/api", "machines.1/human", "tool", "people.2/human",
                                    "people.2/api")  # fmt: skip
    # a merged trace keeps its populations when it is merged again
    again = RequestTrace.merge(both, simple(name="batch"))
    assert again.population_names == ("chat", "agents", "batch")
    assert np.bincount(again.population).tolist() == [4, 4, 4]
    assert RequestTrace.merge(RequestTrace.merge(people, names=["people"]), agents).population_names[0] == "people"
    alone = RequestTrace.merge(people)
    assert dataclasses.replace(alone, population_names=("all",)) == people


def test_what_cannot_be_merged() -> None:
    with pytest.raises(TraceError, match="found no traces"):
        RequestTrace.merge()
    with pytest.raises(TraceError, match=r"block_tokens: found t 4, t 2, expected equal ones \(RequestTrace.split"):
        RequestTrace.merge(simple(), simple().split(2))
    for names in ("ab", ["a"], ["a", "b", "c"], ["a", 3]):
        with pytest.raises(TraceError, match="names: found"):
            RequestTrace.merge(simple(), simple(), names=names)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="population: found"):
        RequestTrace.merge(*[simple(name=str(k)) for k in range(129)])


def with_data(**changes: Any) -> RequestTrace:
    """Pages of an index, read by three requests; one page is read by none."""
    return simple(
        **{"data": [["p1"], [], ["p2", "p1"], ["p1"]], "data_bytes": {"p1": 100, "unread": 7, "p2": 50}, **changes}
    )


def test_data_that_requests_read() -> None:
    trace = with_data(arrival_s=[0, 2, 1, 3], notice=False)
    assert [trace.data_of(k).tolist() for k in range(4)] == [[0], [2, 0], [], [0]]
    assert (trace.data_bytes.tolist(), trace.data_label) == ([100, 7, 50], ("p1", "unread", "p2"))
    found = trace.statistics()
    assert {k: found[k] for k in found if k.startswith("data_")} == {
        "data_pieces": 3, "data_bytes": 157, "data_reads": 4, "data_read_bytes": 350, "data_requests": 3,
    }  # fmt: skip
    assert not [k for k in simple().statistics() if k.startswith("data")]
    assert "4 reads of 3 pieces, 157 B in all" in repr(trace)
    assert trace.last(3).data_bytes.tolist() == [100, 7, 50], "an index is as large however much of it is read"
    assert trace.last(3).data_of(0).tolist() == [2, 0]
    assert trace.scaled(2).data.tolist() == trace.data.tolist()
    assert trace.split(2).data_label == trace.data_label
    by_rows = simple(data=[[0], [], [2, 0], [0]], data_bytes=[100, 7, 50])
    flat = simple(data=(np.array([0, 2, 0, 0]), np.array([0, 1, 1, 3, 4])), data_bytes=[100, 7, 50])
    assert by_rows == flat == dataclasses.replace(with_data(), data_label=None)
    numbers = simple(data=[[40], [], [60, 40], [40]], data_bytes={40: 100, 50: 7, 60: 50})
    assert numbers.data_label == ("40", "50", "60")
    assert numbers.data.tolist() == flat.data.tolist()
    pair = (np.array([40, 60, 40, 40]), np.array([0, 1, 1, 3, 4]))
    assert simple(data=pair, data_bytes={40: 100, 50: 7, 60: 50}) == numbers
    assert simple(data_bytes={}) == dataclasses.replace(simple(), data_label=())
    # two traces' data are apart
    both = RequestTrace.merge(with_data(), numbers, simple())
    assert both.data_label == ("p1", "unread", "p2", "40", "50", "60")
    assert sorted(both.data.tolist()) == [0, 0, 0, 2, 3, 3, 3, 5]
    assert RequestTrace.merge(with_data(), flat).data_label == ("p1", "unread", "p2", "0", "1", "2")


def test_older_files_and_files_with_data(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    trace = RequestTrace.merge(with_data(), simple(name="u"))
    for ending in (".npz", ".parquet"):
        trace.save(tmp_path / f"t{ending}")
        assert read_trace(tmp_path / f"t{ending}") == trace
    with_data().first(0).save(tmp_path / "none.npz")
    assert read_trace(tmp_path / "none.npz") == with_data().first(0)
    with pytest.raises(TraceError, match=r"found data and no requests, expected one at least \(or save as .npz\)"):
        with_data().first(0).save(tmp_path / "none.parquet")
    # as they were before there were data and populations
    simple().save(tmp_path / "new.npz")
    members = dict(np.load(tmp_path / "new.npz"))
    head = json.loads(str(members.pop("head.json")))
    for field in ("population_names", "data_label"):
        del head["fields"][field]
    for column in ("population", "data_offsets", "data", "data_bytes"):
        del members[column]
    np.savez(tmp_path / "old.npz", **{"head.json": np.array(json.dumps(head))}, **members)
    assert read_trace(tmp_path / "old.npz") == simple()


def test_unsorted_arrivals_are_sorted_with_a_notice() -> None:
    with pytest.warns(TraceWarning, match="found row 1 earlier"):
        trace = simple(arrival_s=[3, 1, 1, 4], after=[[1], [], [], [0]], delay_s=[1, 0, 0, 2])
    assert (trace.arrival_ps / 1e12).tolist() == [1, 1, 3, 4]
    assert trace.input_tokens.tolist() == [12, 5, 10, 10]
    assert trace.block_id.tolist() == [7, 8, 1, 9]
    assert [trace.after_of(k).tolist() for k in range(4)] == [[], [], [0], [2]]


def test_text_ids() -> None:
    trace = simple(block_ids=[["a", "b", "c"], ["a", "b", "d"], [], ["a", "b", "c"]])
    assert trace.block_label == ("a", "b", "c", "d")
    assert trace.prefix_blocks.tolist() == [0, 2, 0, 3]
    assert trace.last(1).block_label == ("a", "b", "c")


def test_a_million_requests_are_columns() -> None:
    n = 1_000_000
    ids = np.repeat(np.arange(n) // 10, 3) * 4 + np.tile([0, 1, 2], n)
    trace = RequestTrace.from_lists(
        name="big", block_tokens=16, arrival_ps=np.arange(n), input_tokens=np.full(n, 48),
        output_tokens=np.ones(n, "i8"),
        block_ids=(ids, np.arange(n + 1) * 3), session=np.zeros(n, int), session_names=("s",),
    )  # fmt: skip
    assert trace.unique_blocks == 300_000
    assert trace.first(500_000).unique_blocks == 150_000
    assert trace.statistics()["infinite_hit_block"] == pytest.approx(0.9)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rows differ": ({"input_tokens": [1]}, "input_tokens: found 1 rows, expected 4"),
    "negative tokens": ({"input_tokens": [10, -1, 5, 10]}, r"input_tokens: found -1 in row 1, expected 0 to"),
    "enormous tokens": ({"output_tokens": [3, 4, 5, (1 << 40) + 1]}, "output_tokens: found 1099511627777 in row 3"),
    "tokens beyond int64": ({"output_tokens": [3, 4, 5, 1 << 63]}, "output_tokens: found"),
    "fractional tokens": ({"input_tokens": [10.5, 12, 5, 10]}, "input_tokens: found float64, expected whole numbers"),
    "NaN time": ({"arrival_s": [0, float("nan"), 1, 2]}, r"arrival_s: found nan in row 1, expected finite"),
    "endless time": ({"arrival_s": [0, 1, 1, 1e9]}, r"arrival_s: found 1000000000.0 in row 3"),
    "negative time": ({"arrival_s": [-1, 1, 1, 2]}, r"arrival_s: found -1.0 in row 0"),
    "no time": ({"arrival_s": None}, "found no arrivals, expected one of arrival_s, arrival_ps"),
    "text for times": ({"arrival_s": ["a", "b", "c", "d"]}, "arrival_s: found <U1, expected numbers"),
    "negative delay": ({"delay_s": [0, 0, 0, -1]}, "delay_s: found -1.0"),
    "unknown pause": ({"pause": [0, 0, 0, 3]}, "pause: found 3 in row 3, expected 0 to 2"),
    "too many ids": ({"block_ids": [[1, 2, 3, 4], [], [], []]}, "block_ids: found 4 ids in row 0, expected at most 3"),
    "lists differ": ({"block_ids": [[1]]}, "block_ids: found 1 lists, expected 4"),
    "more output ids than tokens": ({"output_ids": [[1, 2], [], [], []]}, "output_ids: found more ids in row 0"),
    "unknown session": (
        {"session": [0, 1, 2, 3], "session_names": ["a"]},
        "session: found 1 in row 1, expected 0 to 0",
    ),
    "unknown category": ({"category": [0, 0, 0, 1]}, "category: found 1 in row 3"),
    "missing dependency": ({"after": [[], [], [], [4]]}, "after: found 4 in entry 0, expected 0 to 3"),
    "waits for itself": ({"after": [[], [], [], [3]]}, "request 3 waits for itself"),
    "cycle": ({"after": [[1], [2], [0], []]}, "expected no cycle"),
    "no block size": ({"block_tokens": 0}, "block_tokens: found 0"),
    "unknown population": ({"population": [0, 0, 0, 1]}, "population: found 1 in row 3, expected 0 to 0"),
    "unknown data": ({"data": [[0], [], [3], []], "data_bytes": [1, 2, 3]}, "data: found 3 in entry 1, expected 0 to"),
    "data without sizes": ({"data": [[0], [], [], []]}, "data_bytes: found none, expected the sizes"),
    "unknown page": ({"data": [["a"], [], ["b"], []], "data_bytes": {"a": 1}}, "data: found 'b' in row 2, expected a"),
    "pages without names": ({"data": [["a"], [], [], []], "data_bytes": [1]}, "expected data_bytes as a mapping"),
    "negative data": ({"data_bytes": [3, -1]}, "data_bytes: found -1 in piece 1"),
    "enormous data": ({"data_bytes": [1 << 60, 1 << 60]}, "data_bytes: found 2.31e.18 in all"),
    "data of fewer requests": ({"data": [[0]], "data_bytes": [1]}, "data: found 1 lists, expected 4"),
    "fractional data": ({"data_bytes": {"a": 1.5}}, "data_bytes: found float64, expected whole numbers"),
    "unknown namespace": ({"namespace": [0, 0, 0, 1]}, "namespace: found 1 in row 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(TraceError, match=message) as raised:
        simple(**changes)
    assert "\n" not in str(raised.value)


BAD_COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "later parent": ({"block_parent": [1, 0, 1, 1]}, "parent: found block 0"),
    "order": ({"block_parent": [-1, 0, 1, 1], "last_block": [3, 2, -1, 3]}, "order of first appearance"),
    "unnamed block": ({"last_block": [2, 2, -1, 2]}, "belongs to no request"),
    "length zero": ({"block_length": [4, 4, 0, 4]}, "block_length: found 0 in block 2"),
    "length too long": ({"block_length": [4, 4, 5, 4]}, "block_length: found 5 in block 2"),
    "falling times": ({"arrival_ps": [3, 2, 1, 0]}, "expected rising times"),
    "offsets": ({"after_offsets": [0, 0, 0, 0, 1]}, "after_offsets"),
    "block beyond": ({"last_block": [2, 3, -1, 4]}, "last_block: found 4 in row 3"),
    "prompt shorter than its blocks": ({"input_tokens": [8, 12, 5, 10]}, "found 3 blocks in row 0, expected at most 2"),
    "data offsets": ({"data_offsets": [0, 0, 0, 0, 1]}, "data_offsets: found"),
    "data labels": ({"data_label": ("a",)}, "data_label: found 1 labels, expected 0"),
    "populations": ({"population": [0, 0, 0, -1]}, "population: found -1 in row 3"),
    "labels": ({"block_label": ("a",)}, "block_label: found 1 labels, expected 4"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns_are_one_clear_line(case: str) -> None:
    changes, message = BAD_COLUMNS[case]
    with pytest.raises(TraceError, match=message):
        dataclasses.replace(simple(), **changes)


def test_columns_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        simple().arrival_ps[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        simple().name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
@given(made=traces())
def test_files_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, ending: str, made: tuple[RequestTrace, Any, Any]
) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("trace") / f"t{ending}"
    made[0].save(path)
    assert RequestTrace.load(path) == made[0]
    assert read_trace(path) == made[0]
    assert os.listdir(path.parent) == [path.name]


def test_labels_and_names_survive_a_file(tmp_path: Path) -> None:
    trace = simple(block_ids=[["ä", "b"], [], [], []], session=[0, 0, 1, 1], session_names=["x", "y"])
    for ending in (".npz", ".parquet"):
        trace.save(tmp_path / f"t{ending}")
        assert read_trace(tmp_path / f"t{ending}") == trace
    assert trace != simple()
    assert trace != 3


def access(**changes: Any) -> AccessTrace:
    fields: dict[str, Any] = {
        "blocks": BlockTable.of_data([10, 20, 30]),
        "meta": TraceMeta(name="a"),
        "arrival_ps": [0, 5, 5],
        "flops": np.zeros((3, 2)),
        "fixed_ps": [0, 0, 0],
        "tokens": [1, 1, 1],
        "stream": [0, 0, 0],
        "category": [0, 0, 0],
        "repeat": [1, 2, 1],
        "request": [-1, -1, -1],
        "offsets": [0, 2, 2, 5],
        "block": [0, 1, 0, 2, 0],
        "op": [0, 0, 0, 1, 0],
        "bytes": None,
    }
    return AccessTrace(**{**fields, **changes})


def test_access_trace_views_and_file(tmp_path: Path) -> None:
    trace = access(bytes=[-1, 7, -1, -1, 0])
    assert (trace.n, trace.accesses, trace.name) == (3, 5, "a")
    found = trace.statistics()
    assert (found["steps"], found["lookups"], found["unique_blocks"], found["infinite_hit_block"]) == (4, 4, 3, 0.5)
    assert list(trace) == [trace]
    assert trace.whole() is trace
    trace.save(tmp_path / "a.npz")
    assert AccessTrace.load(tmp_path / "a.npz") == trace
    assert read_trace(tmp_path / "a.npz", first=2).block.tolist() == [0, 1]
    assert trace.last(1).arrival_ps.tolist() == [0]
    assert trace.scaled(5).arrival_ps.tolist() == [0, 1, 1]
    with pytest.raises(TraceError, match="expected a RequestTrace"):
        RequestTrace.load(tmp_path / "a.npz")
    with pytest.raises(TraceError, match="no prompts"):
        read_trace(tmp_path / "a.npz", block_tokens=4)


@given(st.sets(st.integers(0, 3)))
def test_chunks_join_to_the_whole(cuts: set[int]) -> None:
    whole = access(bytes=[-1, 7, -1, -1, 0])
    places = [0, *sorted(cuts), 3]
    parts = [whole.steps(a, b) for a, b in pairwise(places)]
    stream = AccessStream(whole.blocks, whole.meta, lambda: parts, total_steps=3)
    assert stream.whole() == whole
    assert stream.whole() == whole, "a stream may be read again"
    assert stream.name == "a"


BAD_ACCESSES: dict[str, tuple[dict[str, Any], str]] = {
    "block beyond": ({"block": [0, 1, 0, 2, 3]}, "block: found 3 in access 4, expected 0 to 2"),
    "negative block": ({"block": [0, -1, 0, 2, 0]}, "block: found -1"),
    "unknown op": ({"op": [0, 0, 0, 5, 0]}, "op: found 5 in access 3, expected 0 to 4"),
    "offsets fall": ({"offsets": [0, 3, 2, 5]}, "offsets: found"),
    "offsets short": ({"offsets": [0, 2, 2, 4]}, "rise from 0 to 5"),
    "flops NaN": ({"flops": [[0, 0], [float("nan"), 0], [0, 0]]}, "flops: found"),
    "flops negative": ({"flops": [[0, 0], [-1, 0], [0, 0]]}, "expected 0 or more"),
    "flops flat": ({"flops": [0, 0, 0]}, "found shape"),
    "repeat zero": ({"repeat": [1, 0, 1]}, "repeat: found 0 in step 1"),
    "bytes below": ({"bytes": [-2, 0, 0, 0, 0]}, "bytes: found -2"),
    "category": ({"category": [0, 1, 0]}, "category: found 1"),
}


@pytest.mark.parametrize("case", BAD_ACCESSES)
def test_bad_accesses_are_one_clear_line(case: str) -> None:
    changes, message = BAD_ACCESSES[case]
    with pytest.raises(TraceError, match=message):
        access(**changes)


def test_bad_tables_are_one_clear_line() -> None:
    table = BlockTable.of_data([10, 20, 30])
    for changes, message in (
        ({"bytes": [1, -1, 1]}, "bytes: found -1 in block 1"),
        ({"bytes": [1, 1 << 61, 1]}, "bytes: found"),
        ({"kind": [0, 4, 0]}, "kind: found 4"),
        ({"parent": [0, -1, -1]}, "parent: found 0 in block 0"),
        ({"recompute_flops": np.full((3, 2), -1.0)}, "recompute_flops"),
        ({"labels": ("a",)}, "labels: found 1, expected 3"),
    ):
        with pytest.raises(TraceError, match=message):
            dataclasses.replace(table, **changes)


def test_files_of_others_and_damaged_ones(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    simple().save(good)
    data = good.read_bytes()
    for name, content in (
        ("cut", data[: len(data) // 2]),
        ("flipped", data[:200] + bytes(b ^ 255 for b in data[200:260]) + data[260:]),
        ("zip", b"PK\x03\x04"),
    ):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=name):
            read_trace(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(TraceError, match=r"head\.json"):
        read_trace(tmp_path / "other.npz")
    with zipfile.ZipFile(good) as z:
        members = {n: z.read(n) for n in z.namelist()}
    head = json.loads(str(np.load(good)["head.json"]))
    for change, message in (({"format_version": 99}, "format version 99"), ({"format": "x"}, "found format 'x'")):
        np.savez(tmp_path / "v.npz", **{"head.json": np.array(json.dumps(head | change))})
        with pytest.raises(TraceError, match=message):
            read_trace(tmp_path / "v.npz", format="kvsim-npz")
    del members["after.npy"]
    with zipfile.ZipFile(tmp_path / "lacks.npz", "w") as z:
        for name, content in members.items():
            z.writestr(name, content)
    with pytest.raises(TraceError, match="after"):
        read_trace(tmp_path / "lacks.npz")


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.npz"
    path.write_bytes(b"before")

    def fail(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        simple().save(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["t.npz"]
    with pytest.raises(TraceError, match="ending"):
        simple().save(tmp_path / "t.xyz")


def test_shown_for_people() -> None:
    text = repr(simple())
    assert "4 unique of 4 tokens, 9 references" in text
    assert "0.5556 of blocks" in text
    assert "<table" in simple()._repr_html_()
    assert "&lt;b&gt;" in simple(name="<b>")._repr_html_()
    assert "4 in 3 rows" in repr(access())
    assert "<table" in access()._repr_html_()


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
@pytest.mark.parametrize("sizes", [None, [-1, 5, -1, 7, 0]])
def test_access_traces_read_back_equal(tmp_path: Path, ending: str, sizes: list[int] | None) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    made = access(bytes=sizes)
    made.save(tmp_path / f"t{ending}")
    assert AccessTrace.load(tmp_path / f"t{ending}") == made
    assert read_trace(tmp_path / f"t{ending}") == made


def test_an_access_trace_of_a_model_reads_back_equal(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from kvsim.model import Model

    made = simple().accesses(Model.load("llama-3.1-8b")).whole()
    made.save(tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet") == made
