"""Runs: tables against NumPy and sums by hand, what must balance, and that a file gives back an equal one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_core

from kvsim._run_tables import exact_sum
from kvsim.errors import KvsimError, UnknownNameError
from kvsim.population import Population
from kvsim.reports import run_text
from kvsim.result import Result, load
from kvsim.run_result import PARTS, RunResult

PS = 10**12


@pytest.fixture(scope="module")
def run() -> RunResult:
    return run_core.run_result(60, pools=2, record=True)


def test_the_made_up_core_balances() -> None:
    for n in (0, 1, 9, 60):
        for pools in (1, 2):
            run_core.run_result(n, pools=pools, record=True, two=n > 1).check()


@pytest.mark.parametrize(
    ("key", "place", "by", "said"),
    [
        ("parts_ps", (1, 4), 1, "parts of unit 1"),
        ("parts_ps", (0, 0), -(10**18), "negative"),
        ("queued_ps", (3,), 1, "states of request 3"),
        ("loading_ps", (3, 1), -1, "request 3"),
        ("stall_ps", (0, 0, 1, 2), 5, "stalls of prefill"),
        ("bins/parts_ps", (2, 0, 0), 1, "bin 2 of prefill"),
        ("bins/stall_ps", (2, 1, 0), 1, "bin 2 of decode"),
        ("admitted_ps", (5,), 10**18, "moments out of order"),
        ("hits", (0, 0, 0, 0), 10**15, "more hits than look-ups"),
        ("used_bytes", (1,), 10**17, "tier dram"),
        ("recomputed_tokens", (2,), 10**9, "recomputed more"),
        ("loaded_tokens", (2, 1), 10**9, "loaded more"),
    ],
)
def test_check_says_what_does_not_balance(key: str, place: tuple[int, ...], by: int, said: str) -> None:
    array = run_core.core(on=run_core.machine(2))[key].copy()
    array[place] += by
    with pytest.raises(RuntimeError, match=said) as error:
        run_core.run_result(60, pools=2, changes={key: array}).check()
    assert "\n" not in str(error.value)


def test_check_wants_the_bins_to_cover_the_makespan() -> None:
    with pytest.raises(RuntimeError, match="cover"):
        run_core.run_result(60, changes={"bin_ps": 2 * PS}).check()


def test_the_machines_view_sums_to_the_makespan(run: RunResult) -> None:
    assert run.identity.sum("ps") == run.wall_ps == run.makespan_ps * 4
    assert list(run.identity["part"]) == list(PARTS)
    assert sum(run.identity["share"]) == pytest.approx(1)
    for pool in ("prefill", "decode"):
        of = run.pools.where(pool=pool)
        assert of.sum("ps") == run.makespan_ps * 2
        assert run.stalls.where(pool=pool).sum("ps") == of.where(part="stalls")["ps"][0]
        assert run.stall_s(pool=pool) == run.stalls.where(pool=pool).sum("ps") / PS
    assert run.stall_s(tier="hbm") + run.stall_s(tier="dram") + run.stall_s(tier="ssd") == pytest.approx(run.stall_s())
    with pytest.raises(UnknownNameError, match="decode"):
        run.stall_s(pool="decod")


def test_states_sum_to_e2e_exactly(run: RunResult) -> None:
    a = run.arrays
    for name, chosen in (("all", run.done), ("people", a["population"] == 0), ("agents", a["population"] == 1)):
        of = chosen & run.done
        e2e = sum((a["done_ps"] - a["ready_ps"])[of].tolist())
        rows = run.states.where(lambda r: r["share"] is not None, population=name)
        assert rows.sum("ps") == e2e
        assert rows.sum("share") == pytest.approx(1)
        assert set(rows["requests"]) == {int(of.sum())}
    think = run.states.where(population="people", state="think").rows()[0]
    assert think["seconds"] == (a["think_ps"][a["population"] == 0]).sum() / PS > 0
    assert think["share"] is None


def test_percentiles_are_numpys(run: RunResult) -> None:
    a, done = run.arrays, run.arrays["status"] == 0
    ttft = (a["first_token_ps"] - a["ready_ps"])[done] / PS
    row = run.latency.where(population="all", metric="ttft").rows()[0]
    assert row["requests"] == 58
    assert row["mean_s"] == pytest.approx(ttft.mean())
    for p in (50, 90, 95, 99):
        assert row[f"p{p}_s"] == pytest.approx(np.percentile(ttft, p))
    assert row["max_s"] == ttft.max()
    several = done & (a["output_tokens"] > 1)
    tpot = (a["done_ps"] - a["first_token_ps"])[several] / PS / (a["output_tokens"][several] - 1)
    row = run.latency.where(population="all", metric="tpot").rows()[0]
    assert row["requests"] == several.sum() < done.sum()
    assert row["p99_s"] == pytest.approx(np.percentile(tpot, 99))
    assert run.tokens_per_s_per_user == pytest.approx(1 / tpot.mean())


def test_nothing_completed_is_not_zero() -> None:
    empty = run_core.run_result(0)
    assert set(empty.latency["mean_s"]) == {None}
    assert set(empty.goodput["share"]) == {None}
    assert (empty.tokens_per_s, empty.tokens_per_s_per_user) == (None, None)
    assert set(empty.identity["share"]) == {None}
    assert all(len(t.to_dict()) for t in empty.tables.values())
    assert "n/a" in repr(empty)
    json.dumps(empty.to_dict(requests=True), allow_nan=False)


def test_goodput_counts_what_met_every_goal(run: RunResult) -> None:
    a = run.arrays
    people = (a["population"] == 0) & run.done
    good = people & (run.ttft_s <= 3.0) & ~(run.tpot_s > 0.05)
    row = run.goodput.rows()[0]
    assert (row["requests"], row["within"]) == (30, good.sum())
    assert 0 < row["within"] < row["requests"]
    assert row["share"] == good.sum() / 30
    assert row["requests_per_s"] == pytest.approx(good.sum() / run.makespan_s)
    assert row["output_tokens_per_s"] == pytest.approx(a["output_tokens"][good].sum() / run.makespan_s)
    agents = run.goodput.rows()[1]
    # the rejected and the unreached one count as asked for, and as not served
    assert (agents["requests"], agents["done"], agents["within"]) == (30, 28, 28)
    assert agents["makespan_met"] is True
    assert agents["cost_met"] is True
    assert row["cost_met"] is None


def test_cost_by_hand(run: RunResult) -> None:
    hours, out = run.makespan_s / 3600, run.output_tokens / 1e6
    every = out + int(run.arrays["input_tokens"][run.done].sum()) / 1e6
    rent, owned = run.cost.rows()
    assert rent["usd_per_h"] == 19.2
    assert owned["usd_per_h"] == pytest.approx(233_900 / (5 * 365 * 24) + 13.84 * 0.08)
    for row in (rent, owned):
        usd = row["usd_per_h"] * hours
        assert row["usd"] == pytest.approx(usd)
        assert row["usd_per_m_output_tokens"] == pytest.approx(usd / out)
        assert row["usd_per_m_tokens"] == pytest.approx(usd / every)
        # ten sessions, of which the one with the rejected and the unreached request did not finish
        assert row["usd_per_task"] == pytest.approx(usd / 9)
        assert row["joules"] == pytest.approx(13_840 * run.makespan_s)
    assert run.tasks.sum("rent_usd") == pytest.approx(rent["usd"])
    memory = {r["tier"]: r for r in run.memory_cost}
    assert memory["ssd"]["price_usd"] == 8 * 1498
    assert memory["dram"]["share_of_capex"] == pytest.approx(21_880 / 233_900)
    assert memory["hbm"]["price_usd"] is None


def test_a_missing_price_is_not_zero() -> None:
    machine = replace(run_core.machine(), price_usd_per_h=None, capex_usd=None, power_w=None)
    run = run_core.run_result(60, on=machine)
    for row in run.cost:
        assert {v for k, v in row.items() if k != "view"} == {None}
    assert set(run.goodput["cost_usd_per_task"]) == {None}
    assert set(run.goodput["cost_met"]) == {None}
    assert set(run.tasks["rent_usd"]) == set(run.tasks["owned_usd"]) == {None}
    assert [r["share_of_capex"] for r in run.memory_cost] == [None] * 3
    assert "n/a" in next(line for line in repr(run).split("\n") if "rent (USD)" in line)


def test_tasks_are_sessions(run: RunResult) -> None:
    a, rows = run.arrays, run.tasks.rows()
    assert [r["session"] for r in rows] == [f"session-{i}" for i in range(10)]
    of = a["session"] == 3
    assert rows[3]["requests"] == rows[3]["done"] == 6
    assert rows[1]["done"] == 4
    assert rows[3]["start_s"] == a["ready_ps"][of].min() / PS
    assert rows[3]["end_s"] == a["done_ps"][of].max() / PS
    assert rows[3]["output_tokens"] == a["output_tokens"][of].sum()
    assert rows[3]["tool_s"] == a["tool_ps"][of].sum() / PS == 15.0
    assert (rows[2]["think_s"], rows[3]["population"]) == (40.0, "agents")


def test_requests_one_row_each(run: RunResult) -> None:
    table = run.requests
    assert len(table) == 60
    assert isinstance(table["queued_s"], np.ndarray)
    row = table.rows()[7]
    assert (row["status"], row["e2e_s"], row["done_s"], row["population"]) == ("rejected", None, None, "agents")
    assert table["status"][8] == "unreached"
    parts = [c for c in table.columns if c.split("_")[0] in ("queued", "loading", "transfer", "prefill", "recompute",
                                                             "decode", "preempted") and c.endswith("_s")]  # fmt: skip
    assert len(parts) == 9
    spent = sum(np.asarray(table[c]) for c in parts)
    assert np.allclose(spent[run.done], run.e2e_s[run.done])


def test_hits_misses_and_the_rest_of_memory(run: RunResult) -> None:
    for rule in ("block", "prefix"):
        missed = run.misses.where(kind="kv", rule=rule, weight="token").rows()[0]
        assert run.hits.where(kind="kv", rule=rule, weight="token").sum("hits") + missed["misses"] == missed["lookups"]
    assert run.hit_rate("hbm") == pytest.approx(0.25, abs=1e-3)
    assert run.links["up_busy_s"][0] == run.arrays["link_busy_ps"][0, 0] / PS
    assert list(run.memory["tier"]) == ["hbm", "dram", "ssd"]
    assert [r["tier"] for r in run.wear] == ["ssd"]
    assert run.traffic.where(tier="hbm", kind="kv").sum("evicted") == 600


def test_the_timeline_adds_up_to_the_parts(run: RunResult) -> None:
    table = run.timeline
    assert np.sum(table["seconds"]) == pytest.approx(run.makespan_s)
    for pool in ("prefill", "decode"):
        for part in PARTS:
            told = run.pools.where(pool=pool, part=part)["seconds"][0]
            assert np.sum(table[f"{pool}_{part}_s"]) == pytest.approx(told)
        assert np.allclose(sum(table[f"{pool}_stall_{t}_s"] for t in run.tiers), table[f"{pool}_stalls_s"])
    assert np.sum(table["output_tokens"]) == run.output_tokens


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_saves_and_loads_back_equal(tmp_path: Path, suffix: str, run: RunResult) -> None:
    path = tmp_path / f"run{suffix}"
    run.save(path)
    back = RunResult.load(path)
    back.check()
    assert back == run == load(path)
    assert hash(back) == hash(run)
    assert repr(back) == repr(run)
    assert back.to_dict(requests=True) == run.to_dict(requests=True)
    assert all(v.dtype == run.arrays[k].dtype for k, v in back.arrays.items())
    assert back != run_core.run_result(60, pools=2, seed=1, record=True)
    assert back != run_core.run_result(60, pools=2, record=False)
    with pytest.raises(KvsimError, match="expected 'kvsim result'"):
        Result.load(path)


def test_damaged_files_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run_core.run_result(9).save(path)
    document = json.loads(path.read_text())
    assert document["cost"][0]["view"] == "rent"
    for changes in ({"counters": {}}, {"tier_info": []}, {"arrays": {}}):
        path.write_text(json.dumps(document | changes))
        with pytest.raises(KvsimError, match="damaged run") as error:
            RunResult.load(path)
        assert "\n" not in str(error.value)


def test_a_core_that_does_not_fit_is_an_error() -> None:
    core = run_core.core()
    for key, value, said in (
        ("queued_ps", np.zeros(3, np.int64), "queued_ps"),
        ("parts_ps", np.zeros((2, 9)), "float64"),
        ("preemptions", 0, "preemptions"),
    ):
        with pytest.raises(KvsimError, match=said):
            run_core.run_result(60, changes={key: value})
    trace, machine = run_core.trace(), run_core.machine()
    for lost in ("makespan_ps", "hits", "log/move_way"):
        with pytest.raises(KvsimError, match=lost):
            RunResult.from_core(
                {k: v for k, v in core.items() if k != lost}, trace=trace, machine=machine, options={}
            )  # fmt: skip
    with pytest.raises(KvsimError, match="populations"):
        RunResult.from_core(core, trace=trace, machine=machine, options={}, populations=[Population(name="people")])


def test_the_arrays_cannot_be_changed(run: RunResult) -> None:
    with pytest.raises(ValueError, match="read-only"):
        run.arrays["queued_ps"][0] = 1


def test_the_report_fits_a_terminal_and_says_what_counts() -> None:
    for pools in (1, 2):
        for two in (True, False):
            text = repr(run_core.run_result(60, pools=pools, two=two))
            assert max(map(len, text.split("\n"))) <= 100
            assert text.count("\n") < (75 if two else 70)
            assert "..." not in text
            words = "made-up|llama-3.1-70b (fp8)|1 rejected|1 never reached|stalls|loading from ssd|TTFT|goodput|wear"
            for word in (*words.split("|"), "output tokens/s", "owned (USD)", "nowhere"):
                assert word in text
            assert "nan" not in text.lower()
            assert ("agents" in text) is two
    stalls = repr(run_core.run_result(60)).partition("stalls: what")[2].split("\n")[2:]
    assert stalls[0].split()[:3] == ["hbm", "weights", "bandwidth"]  # the largest comes first


def test_latency_of_several_populations_keeps_every_percentile_and_the_makespan() -> None:
    long = "people-who-ask-long-questions-at-night"
    run = run_core.run_result(60)
    groups = ({**run.populations[0], "name": long}, *run.populations[1:])
    run = replace(run, populations=groups)
    text = repr(run)
    assert max(map(len, text.split("\n"))) <= 100
    latency = text.partition("\nlatency\n")[2].partition("\n\n")[0].split("\n")
    assert latency[0].split() == ["metric", "population", "mean", "p50", "p90", "p95", "p99", "max"]
    assert [line.split()[0] for line in latency[1::3]] == ["TTFT", "TPOT", "E2E"]
    assert latency[2].split()[0] == "people-who-ask-lo..."
    goodput = text.partition("\ngoodput: ")[2].partition("\n\n")[0]
    assert "makespan" in goodput.split("\n")[1]
    assert "goals of people-who-ask-lo...: TTFT 3 s, TPOT 50 ms" in goodput
    assert "goals of agents: 0.50 USD a task" in goodput or "goals of agents: 0.5 USD a task" in goodput
    assert "makespan 60 min (met)" in goodput


def test_tables_too_wide_go_on_below() -> None:
    names = tuple(f"population-number-{i}" for i in range(5))
    run = run_core.run_result(60, two=False)
    wide = replace(run, populations=tuple({**run.populations[0], "name": name} for name in names))
    text = repr(wide)
    assert max(map(len, text.split("\n"))) <= 100
    states = text.partition("\nthe requests' time")[2].partition("\n\n")[0]
    assert states.count("\n  state ") > 1
    for name in ("all", *names):
        assert states.count(f" {name} (s)") == 1


@pytest.mark.parametrize(("seconds", "said"), [
    (0.0, "0 s"), (119.9, "120 s"), (120, "2 min"), (1476.6, "24.6 min"), (7199, "120 min"), (7200, "2 h"),
    (40 * 86400, "960 h"), (50 * 86400, "1,200 h"), (None, "n/a"),
])  # fmt: skip
def test_short_times(seconds: float | None, said: str) -> None:
    assert run_text._brief(seconds) == said


def test_a_cut_log_is_kept_and_older_cores_had_none(tmp_path: Path) -> None:
    cut = run_core.run_result(12, changes={"log_cut": True})
    assert cut.log_cut
    assert cut.to_dict()["log_cut"] == 1
    cut.save(tmp_path / "r.json")
    assert RunResult.load(tmp_path / "r.json").log_cut
    trace, machine = run_core.trace(12), run_core.machine()
    core = run_core.core(trace, on=machine)
    del core["log_cut"]
    assert not RunResult.from_core(core, trace=trace, machine=machine, options={}).log_cut


def test_broken_pins_are_pauses() -> None:
    run = run_core.run_result(12, changes={"pins_broken": 3})
    assert "pins broken: 3 pauses" in repr(run)


def test_the_notebooks_form_is_self_contained(run: RunResult) -> None:
    page = run._repr_html_()
    assert "made-up" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_dictionary_is_json_and_short(run: RunResult) -> None:
    document = run.to_dict()
    assert "NaN" not in json.dumps(document, allow_nan=False)
    assert "requests" not in document
    assert document["requests_by_status"] == {"done": 58, "rejected": 1, "unreached": 1}
    assert sum(r["ps"] for r in document["identity"]) == document["wall_ps"]
    assert len(run.to_dict(requests=True)["requests"]["e2e_s"]) == 60


def test_hands_over_to_pandas_and_arrow(run: RunResult) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frames, tables = run.to_pandas(), run.to_arrow()
    assert set(frames) == set(tables) == set(run.tables)
    assert frames["requests"]["e2e_s"].isna().sum() == 2
    assert tables["stalls"].num_rows == len(run.stalls)


def test_sums_beyond_63_bits_are_exact() -> None:
    column = np.array([(1 << 62) - 1, (1 << 62) - 3, (1 << 62) + 5, -7])
    assert exact_sum(column) == sum(column.tolist())


@pytest.mark.uninstrumented
def test_many_requests_cost_no_objects() -> None:
    n = 100_000
    trace, machine = run_core.trace(n), run_core.machine()
    core: dict[str, Any] = run_core.core(trace, on=machine)
    start = time.perf_counter()
    run = RunResult.from_core(core, trace=trace, machine=machine, options={})
    run.check()
    assert len(run.requests) == n
    assert repr(run)
    # 0.15 s on one slow core; building a Python object for each request and column takes many seconds
    assert time.perf_counter() - start < 3
    assert run.arrays["queued_ps"].base is not None  # kept, not copied
