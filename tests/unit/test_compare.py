"""Comparisons: the table, its words, and what a comparison of real replays says."""

from __future__ import annotations

import json

import pytest

from kvsim.compare import Comparison, Row
from kvsim.errors import ConfigError, KvsimError, UnknownNameError
from kvsim.reports import comparison as report
from kvsim.result import load


def row(
    workload: str, machine: str, tiers: tuple[str, ...], stalls: tuple[float, ...], found: tuple[float, ...]
) -> Row:
    waits = sum(stalls)
    share = {"compute": 0.5 - waits / 2, "recompute": 0.5 - waits / 2, "overhead": 0.0, "collectives": 0.0}
    share |= {"bubble": 0.0, "stalls": waits}
    kinds = {"kv": waits / 4, "weights": waits * 3 / 4, "state": 0.0, "data": 0.0}
    return Row(workload, machine, "", 3, 40, tiers, 100.0, 20.0, share, stalls, kinds, found, 1 - sum(found))


def made() -> Comparison:
    about = {
        "requests": 1234,
        "sessions": 300,
        "input_tokens": 5_600_000,
        "output_tokens": 78_000,
        "seen_before": 0.61,
        "lanes": 32,
    }
    rows = []
    for workload in ("chat", "coding-agent"):
        rows += [
            row(workload, "h100x8", ("hbm", "dram", "nvme"), (0.6, 0.1, 0.004), (0.3, 0.2, 0.1)),
            row(workload, "epyc", ("dram", "ssd"), (0.9, 0.0), (0.5, 0.1)),
            Row(workload, "tiny", "tiny: weights 141 GB exceed every tier (largest sram: 1 GB)"),
        ]
    options = {
        "model": "llama-3.1-70b", "weights_dtype": "fp8", "weight_bytes": 70_600_000_000, "seed": 0, "scale": 1.0,
        "kv_bytes_per_token": 327_680, "policy": None,
    }  # fmt: skip
    return Comparison(tuple(rows), {"chat": about, "coding-agent": about}, options)


def test_the_table_says_where_time_goes_and_what_is_found() -> None:
    text = repr(made())
    h100 = next(line for line in text.split("\n") if line.startswith("h100x8"))
    for word in ("hbm  60", "dram  10", "nvme  <1", "80 s"):
        assert word in h100
    assert "cannot run it: weights 141 GB exceed every tier" in text
    assert "llama-3.1-70b, weights in fp8 (70.6 GB)" in text
    assert "h100x8 3 of 40" in text
    assert "kvsim show NAME" in text
    assert "tiny 0 of" not in text


def test_a_narrow_terminal_gets_two_tables() -> None:
    found = made()
    whole, narrow = report.text(found), report.text(found, width=100)
    assert narrow.count("h100x8") > whole.count("h100x8")
    table = [line for line in narrow.split("\n") if line.startswith(("h100x8", "epyc", "machine"))]
    assert max(map(len, table)) <= 100


def test_the_page_is_self_contained() -> None:
    page = made()._repr_html_()
    assert page.count("<svg role") == 4  # one a machine that ran
    assert "http" not in page
    assert "currentColor" in page


def test_rows_as_columns_have_no_zero_for_what_is_missing() -> None:
    table = made().table
    rows = table.where(machine="tiny").rows()
    assert all(r["compute"] is None and r["tier_0_stalls"] is None and r["busy_s"] is None for r in rows)
    assert table.where(machine="epyc")["tier_2"] == [None, None]
    assert table.where(machine="h100x8")["busy_s"] == [80.0, 80.0]


@pytest.mark.parametrize("name", ["c.json", "c.npz"])
def test_saves_and_loads_back_equal(tmp_path, name: str) -> None:  # type: ignore[no-untyped-def]
    found = made()
    found.save(tmp_path / name)
    assert Comparison.load(tmp_path / name) == found == load(tmp_path / name)
    assert repr(load(tmp_path / name)) == repr(found)
    (tmp_path / name).write_text(json.dumps({"format": "kvsim comparison", "format_version": 1, "arrays": {}}))
    with pytest.raises(KvsimError, match="damaged"):
        Comparison.load(tmp_path / name)


def test_wrong_words_are_errors() -> None:
    from kvsim.compare import compare

    with pytest.raises(ConfigError, match="scale"):
        compare(scale=0)
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(workloads=())
    with pytest.raises(UnknownNameError, match="h100x8"):
        compare(machines=("h100x9",))
    with pytest.raises(UnknownNameError, match="chat"):
        compare(workloads=("chatt",), scale=0.01)


def test_compares_real_replays() -> None:
    from kvsim.compare import compare

    told: list[tuple[int, int, str]] = []
    found = compare(("chat",), ("h100x8", "epyc9965-2s"), scale=0.05, progress=lambda *said: told.append(said))
    assert [(r.workload, r.machine) for r in found.rows] == [("chat", "h100x8"), ("chat", "epyc9965-2s")]
    assert told[-1][:2] == (2, 2)
    for r in found.rows:
        assert sum(v for v in r.share.values() if v is not None) == pytest.approx(1, abs=1e-12)
        assert sum(v for v in r.stall_by_tier if v is not None) == pytest.approx(r.share["stalls"], abs=1e-12)
        assert sum(v for v in r.stall_by_kind.values() if v is not None) == pytest.approx(r.share["stalls"], abs=1e-12)
        assert sum(v for v in r.found if v is not None) + (r.nowhere or 0) == pytest.approx(1)
        assert found.results[r.workload, r.machine].identity.exact
    # the same steps: both machines looked up the same prompts
    looked = [result.arrays["lookups"].tolist() for result in found.results.values()]
    assert looked[0] == looked[1]
    again = compare(("chat",), ("h100x8", "epyc9965-2s"), scale=0.05, threads=1)
    assert again == found


def test_a_machine_without_room_says_so() -> None:
    from kvsim.compare import compare
    from kvsim.machine import Machine

    small = Machine.load("h100x8").set("tier.hbm.capacity", "1 GB")
    for tier in small.tier_names[1:]:
        small = small.set(f"tier.{tier}.capacity", "1 GB")
    found = compare(("chat",), (small,), scale=0.02)
    assert "exceed every tier" in found.rows[0].error
    assert "cannot run it" in repr(found)
