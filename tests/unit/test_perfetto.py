"""Traces for Perfetto: valid JSON in which nothing overlaps wrongly, exact times, the same bytes each time."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_core import run_result

from kvsim.errors import KvsimError
from kvsim.reports import perfetto

PS_PER_US = 10**6


def written(result: Any, path: Path) -> dict[str, Any]:
    perfetto.write(result, path)
    data = path.read_bytes()
    # numbers stay as they are written: a float would hide a lost picosecond
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data, parse_float=Fraction)


def check_nesting(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[tuple[str, int, int]]]:
    """Walk each track as a viewer does; return the slices of each: name, start and end in picoseconds."""
    slices: dict[tuple[int, int], list[tuple[str, int, int]]] = defaultdict(list)
    opened: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    last: dict[tuple[int, int], Any] = {}
    for event in events:
        if event["ph"] not in "BE":
            continue
        track = (event["pid"], event["tid"])
        exact = Fraction(event["ts"]) * PS_PER_US
        assert exact.denominator == 1, "a fraction of a picosecond"
        assert event["ts"] >= last.get(track, 0), f"{track} goes back in time"
        # what viewers make of it (nanoseconds, cut off) must stay in order too
        assert int(float(event["ts"]) * 1000) >= int(float(last.get(track, 0)) * 1000)
        last[track] = event["ts"]
        if event["ph"] == "B":
            assert event["name"]
            opened[track].append((event["name"], int(exact)))
        else:
            name, start = opened[track].pop()
            slices[track].append((name, start, int(exact)))
    assert not any(opened.values()), "a slice that never ends"
    return slices


def names(events: list[dict[str, Any]], sort: str) -> dict[Any, str]:
    key = (lambda e: e["pid"]) if sort == "process_name" else (lambda e: (e["pid"], e["tid"]))
    return {key(e): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == sort}


def test_every_track_nests_and_has_a_name(tmp_path: Path) -> None:
    result = run_result(120, pools=2, record=True)
    document = written(result, tmp_path / "out.json")
    events = document["traceEvents"]
    slices = check_nesting(events)
    processes, threads = names(events, "process_name"), names(events, "thread_name")
    assert set(slices) <= set(threads)
    assert {pid for pid, _ in slices} <= set(processes)
    assert len({tid for _, tid in threads}) == len(threads)
    assert {"pool prefill, replica 0", "pool prefill, replica 1", "pool decode, replica 0", "requests"} <= set(
        processes.values()
    )
    assert document["otherData"]["config_hash"] == result.config_hash


def test_steps_are_all_there_with_exact_times(tmp_path: Path) -> None:
    result = run_result(60, record=True)
    events = written(result, tmp_path / "out.json.gz")["traceEvents"]
    slices = check_nesting(events)
    log = {key: result.arrays[f"log/step_{key}"].tolist() for key in ("start_ps", "end_ps", "unit", "prefill")}
    expected = defaultdict(list)
    for start, end, unit, prefill in zip(*log.values(), strict=True):
        expected[(perfetto.UNITS + unit, perfetto.UNITS + unit)].append(
            (f"step: {prefill} prefill + 8 decode", start, end)
        )
    assert {track: found for track, found in slices.items() if track[0] >= perfetto.UNITS} == dict(expected)


def test_a_request_spends_in_each_state_what_the_columns_say(tmp_path: Path) -> None:
    result = run_result(80, record=True)
    slices = check_nesting(written(result, tmp_path / "out.json")["traceEvents"])
    whole, state = {}, defaultdict(int)
    for (pid, _), found in slices.items():
        if pid != perfetto.REQUESTS:
            continue
        inside: list[tuple[str, int, int]] = []
        for name, start, end in found:  # a request ends after all of its phases
            if not name.startswith("request "):
                inside.append((name, start, end))
                continue
            r = int(name.removeprefix("request "))
            whole[r] = end - start
            assert all(start <= s <= e <= end for _, s, e in inside)
            for what, s, e in inside:
                state[r, what] += e - s
            inside = []
    done = np.flatnonzero(result.done).tolist()
    a = result.arrays
    assert sorted(whole) == done
    assert [whole[r] for r in done] == (a["done_ps"] - a["ready_ps"])[done].tolist()
    for name, key in (("queued", "queued_ps"), ("decode", "decode_ps"), ("preempted", "preempted_ps")):
        assert [state[r, name] for r in done] == a[key][done].tolist()
    assert [state[r, "loading from ssd"] for r in done] == a["loading_ps"][done, 2].tolist()


def test_moves_that_overlap_get_lanes_of_their_own(tmp_path: Path) -> None:
    moves = {
        "start_ps": [0, 5, 5, 20], "end_ps": [10, 15, 5, 30], "channel": [1, 1, 1, 3], "way": [0, 0, 0, 1],
        "bytes": [7, 8, 9, 10], "request": [4, -1, 2, 0], "replica": [0, 0, 0, 1],
    }  # fmt: skip
    changes = {f"log/move_{key}": np.array(values) for key, values in moves.items()}
    result = run_result(30, record=True, changes=changes)
    events = written(result, tmp_path / "out.json")["traceEvents"]
    slices, threads = check_nesting(events), names(events, "thread_name")
    found = {threads[track]: rows for track, rows in slices.items() if track[0] == perfetto.CHANNELS}
    assert found == {
        "dram read, replica 0": [("request 4", 0, 10)],
        "dram read, replica 0 (2)": [("request 2", 5, 5), ("move", 5, 15)],
        "link pcie away from compute, replica 1": [("request 0", 20, 30)],
    }
    args = {e["name"]: e["args"] for e in events if e["ph"] == "B" and e["pid"] == perfetto.CHANNELS}
    assert args["request 4"] == {"bytes": 7, "request": 4}


def test_counters_say_the_bins_and_end_with_the_run(tmp_path: Path) -> None:
    result = run_result(60, record=True)
    events = written(result, tmp_path / "out.json")["traceEvents"]
    counters = defaultdict(dict)
    for e in events:
        if e["ph"] == "C":
            counters[e["name"]][int(Fraction(e["ts"]) * PS_PER_US)] = next(iter(e["args"].values()))
    assert set(counters) == {"running", "waiting", "loading", "hbm used", "dram used", "ssd used"}
    bins, width = len(result.arrays["bins/running"]), result.counters["bin_ps"]
    for name, values in (
        ("running", result.arrays["bins/running"]),
        ("ssd used", result.arrays["bins/used_bytes"][:, 2]),
    ):
        held, last = [], None
        for i in range(bins):
            last = counters[name].get(min((i + 1) * width, result.makespan_ps), last)
            held.append(last)
        assert held == values.tolist()
        assert max(counters[name]) == result.makespan_ps


@pytest.mark.parametrize(
    ("count", "decode", "prefill", "name"),
    [
        (120, 32, 0, "decode x120, batch 32"), (1, 3, 0, "decode, batch 3"), (1, 0, 512, "step: 512 prefill"),
        (1, 31, 2048, "step: 2048 prefill + 31 decode"),
    ],
)  # fmt: skip
def test_a_step_is_named_by_what_it_does(count: int, decode: int, prefill: int, name: str) -> None:
    assert perfetto._step_name(count, decode, prefill) == name


def test_same_run_same_bytes(tmp_path: Path) -> None:
    for n in (1, 2):
        perfetto.write(run_result(40, record=True), tmp_path / f"{n}.json.gz")
    one, two = ((tmp_path / f"{n}.json.gz").read_bytes() for n in (1, 2))
    assert one == two
    assert one[4:8] == bytes(4), "gzip's time stamp"


def test_a_run_that_was_not_recorded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KvsimError, match="record=True"):
        perfetto.write(run_result(20), tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


def test_a_log_that_was_full_is_said_in_the_file_and_beside_it(tmp_path: Path) -> None:
    assert written(run_result(40, record=True), tmp_path / "whole.json")["otherData"]["cut"] is False
    result = run_result(40, record=True, changes={"log_cut": True})
    path = tmp_path / "cut.json"
    with pytest.warns(UserWarning, match=r"cut\.json: found more than the \d+ entries") as told:
        perfetto.write(result, path)
    (warning,) = told
    assert "\n" not in str(warning.message)
    about = json.loads(path.read_text())["otherData"]
    assert about["cut"] is True
    # the phases are the longest log of the three
    assert about["missing"].endswith(" s")
    assert "phases after about" in about["missing"]
    assert "steps" not in about["missing"]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvsimError, match=r"'\.txt', expected \.json or \.json\.gz"):
        perfetto.write(run_result(20, record=True), tmp_path / "out.txt")


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    states = np.full(len(run_result(40, record=True).arrays["log/phase_state"]), 99)  # no such state
    result = run_result(40, record=True, changes={"log/phase_state": states})
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(IndexError):
        perfetto.write(result, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_run_of_nothing_is_a_trace_of_nothing(tmp_path: Path) -> None:
    events = written(run_result(0, record=True), tmp_path / "out.json")["traceEvents"]
    assert {e["ph"] for e in events} == {"M"}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=40))
def test_lanes_never_overlap_and_are_as_few_as_can_be(drawn: list[tuple[int, int]]) -> None:
    start = np.array([s for s, _ in drawn], np.int64)
    end = start + np.array([d for _, d in drawn], np.int64)
    lane = perfetto.lanes(start, end)
    for n in set(lane.tolist()):
        mine = np.flatnonzero(lane == n)
        order = mine[np.lexsort((end[mine], start[mine]))]
        assert (start[order][1:] >= end[order][:-1]).all()
    # as many lanes as intervals that share an instant (one of no length counts where it begins inside another)
    most = max((int(((start <= s) & (end > s)).sum() + ((start == s) & (end == s)).any()) for s in start), default=0)
    assert len(set(lane.tolist())) <= max(most, 0) if len(start) else not lane.size


@given(st.integers(0, 2**62))
def test_microseconds_are_written_exactly(ps: int) -> None:
    text = perfetto._us(ps)
    assert Fraction(text) * PS_PER_US == ps
    assert not text.endswith(".")
