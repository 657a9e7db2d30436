"""Differences: which input, which number, and parts that explain the change of the time exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_core

from kvsim.diff import Diff, Measure, Reason, diff
from kvsim.errors import KvsimError
from kvsim.result import Result

PS = 10**12


def replayed(idle_ps: int = 0, dram_ps: int = 100, **options: Any) -> Result:
    machine = run_core.machine()
    core = run_core.core(on=machine)
    stall = np.zeros((3, 4, 5), np.int64)
    stall[0, 1, 2], stall[1, 0, 2] = 40, dram_ps
    core |= {
        "clock_ps": 60 + 40 + dram_ps + idle_ps, "compute_ps": 60, "recompute_ps": 0, "overhead_ps": 0,
        "collectives_ps": 0, "bubble_ps": 0, "idle_ps": idle_ps, "stall_ps": stall, "steps": 3, "step_rows": 3,
        "unheld_read_bytes": 0,
        "samples": {k: np.zeros((0, 3) if k in ("used_bytes", "stall_ps", "hits") else 0, np.int64)
                    for k in ("clock_ps", "step", "lookups", "used_bytes", "stall_ps", "hits")},
    }  # fmt: skip
    return Result.from_core(core, trace={"name": "t"}, machine=machine, options=options)


@pytest.fixture(scope="module")
def runs() -> Diff:
    machine = run_core.machine()
    tiers = (machine.tiers[0], replace(machine.tiers[1], capacity_bytes=4 * 10**12), machine.tiers[2])
    larger = replace(machine, tiers=tiers)
    return diff(run_core.run_result(60, extra=1), run_core.run_result(66, on=larger, seed=3, batch=128))


def test_the_same_result_did_not_change() -> None:
    for make in (run_core.run_result, replayed):
        found = diff(make(), make())
        assert found.same
        assert "nothing changed" in repr(found)
        assert "nothing changed" in found._repr_html_()
        assert not found.changed
        assert not found.inputs
        assert all(r.change == 0 for r in found.reasons)


def test_inputs_that_differ_by_dotted_path(runs: Diff) -> None:
    assert runs.inputs["machine.tier.dram.capacity_bytes"] == (2 * 10**12, 4 * 10**12)
    assert runs.inputs["options.batch"] == (256, 128)
    assert runs.inputs["options.extra"] == (1, "(none)")
    assert runs.inputs["trace.requests"] == (60, 66)
    assert "options.policies" not in runs.inputs
    assert "options.batch: 256 → 128" in repr(runs)


def test_parts_explain_the_change_of_e2e_exactly(runs: Diff) -> None:
    old, new = run_core.run_result(60), run_core.run_result(66, seed=3)
    found = diff(old, new)
    reason = next(r for r in found.reasons if r.what == "E2E mean")

    def mean(run: Any) -> Fraction:
        spent = (run.arrays["done_ps"] - run.arrays["ready_ps"])[run.done]
        return Fraction(sum(spent.tolist()), int(run.done.sum()))

    assert Fraction(reason.change, reason.scale) == mean(new) - mean(old)
    assert sum(reason.parts.values()) == reason.change
    sizes = [abs(v) for v in reason.parts.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert [r.what for r in runs.reasons] == ["makespan", "E2E mean", "E2E mean of people", "E2E mean of agents"]


def test_one_population_is_told_once() -> None:
    # also where it is called "all", as the whole is
    old, new = run_core.run_result(60, two=False), run_core.run_result(66, two=False, seed=3)
    assert old.population_names == ("all",)
    found = diff(old, new)
    assert [r.what for r in found.reasons] == ["makespan", "E2E mean"]
    assert sum("E2E mean" in line for line in found.sentences) == 1


def test_parts_explain_the_change_of_the_makespan_exactly() -> None:
    # also where the machines have different numbers of units
    old, new = run_core.run_result(60), run_core.run_result(60, pools=2, replicas=3, seed=2)
    reason = diff(old, new).reasons[0]
    assert reason.change == (new.makespan_ps - old.makespan_ps) * 2 * 6
    assert sum(reason.parts.values()) == reason.change
    assert "stalls on hbm" in reason.parts


def test_two_replays() -> None:
    found = diff(replayed(), replayed(idle_ps=20, dram_ps=30, usable="block"))
    assert found.inputs == {"options.usable": ("(none)", "block")}
    (reason,) = found.reasons
    assert (reason.what, reason.change) == ("wall", -50)
    assert dict(list(reason.parts.items())[:2]) == {"stalls on dram": -70, "idle": 20}
    assert found.sentences == ["wall fell by 50 ps: -70 ps stalls on dram, +20 ps idle"]
    changed = {m.name: m for m in found.changed}
    assert changed["wall"].relative == pytest.approx(-50 / 200)
    assert changed["stalls on dram, bandwidth"].change == pytest.approx(-70e-12)
    assert "hit rate hbm" not in changed


def test_sentences_say_it_in_words() -> None:
    def e2e(old: dict[str, float], new: dict[str, float], n: int = 1) -> str:
        def spent(seconds: dict[str, float]) -> dict[str, int]:
            return {k: round(v * PS) * n for k, v in seconds.items()}

        return Reason("E2E mean", spent(old), spent(new), n, n).sentence()

    rose = e2e({"queued": 1, "prefill": 0.5}, {"queued": 3.9, "prefill": 0.4, "loading from ssd": 0.4}, n=7)
    assert rose == "E2E mean rose by 3.2 s: +2.9 s queued, +400 ms loading from ssd, -100 ms prefill"
    assert e2e({"queued": 1}, {"queued": 1}) == "E2E mean did not change"
    assert e2e({"queued": 1, "decode": 2}, {"queued": 2, "decode": 1}) == (
        "E2E mean is as before: +1 s queued, -1 s decode"
    )
    many = e2e({}, {f"state{i}": 1 + i / 10 for i in range(7)})
    assert many.endswith("+3.3 s in 3 more")
    assert "n/a" in Reason("E2E mean", {}, {"queued": 5}, 0, 1).sentence()


def test_what_does_not_exist_has_no_change() -> None:
    for measure in (Measure("x", "s", None, 1.0), Measure("x", "s", 1.0, None)):
        assert (measure.change, measure.relative) == (None, None)
    assert Measure("x", "", 0, 3).relative is None
    none = diff(run_core.run_result(0), run_core.run_result(60))
    assert "n/a" in repr(none)
    json.dumps(none.to_dict(), allow_nan=False)


def test_files_objects_and_wrong_kinds(tmp_path: Path) -> None:
    a, b = run_core.run_result(12), run_core.run_result(12, seed=4)
    a.save(tmp_path / "a.npz")
    b.save(tmp_path / "b.json")
    assert diff(tmp_path / "a.npz", str(tmp_path / "b.json")).to_dict() == diff(a, b).to_dict()
    for wrong in ((a, replayed()), (a, 3), (None, None)):
        with pytest.raises(KvsimError, match="expected two results") as error:
            diff(*wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="nowhere"):
        diff(a, tmp_path / "nowhere.npz")


def test_it_shows_itself(runs: Diff) -> None:
    text = repr(runs)
    assert max(map(len, text.split("\n"))) <= 100
    assert "E2E mean rose by" in text or "E2E mean fell by" in text
    for name in ("makespan", "TTFT mean", "TPOT p99", "output tokens/s", "stalls on hbm, bandwidth"):
        assert name in text
    page = runs._repr_html_()
    assert "<table" in page
    assert "http" not in page
    document = json.loads(json.dumps(runs.to_dict(), allow_nan=False))
    assert document["inputs"]["options.batch"] == {"old": 256, "new": 128}
    assert document["reasons"][1]["change_s"] == pytest.approx(sum(document["reasons"][1]["parts_s"].values()))
    assert {m.name for m in runs.measures} >= {"hit rate dram", "evictions from dram", "preemptions"}
    assert {m.name for m in runs.measures if m.unit == "USD"} == {
        f"{view} {per}" for view in ("rent", "owned") for per in ("an hour", "per M output tokens", "a task")
    }
    assert list(runs.table["name"]) == [m.name for m in runs.measures]


def test_a_hostile_name_is_only_text() -> None:
    one = replayed(note="<script>a")
    assert "<script>" not in diff(one, replayed(note="<script>b"))._repr_html_()
