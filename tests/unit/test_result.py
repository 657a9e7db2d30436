"""Results: their tables, the identity, what they look like, and that a file gives back an equal one."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvsim.errors import KvsimError, UnknownNameError
from kvsim.result import CurveResult, Result, load
from kvsim.trace import TraceMeta

KINDS, CAUSES = ("kv", "weights", "state", "data"), ("latency", "overhead", "bandwidth", "channel", "write_back")


def tier(name: str, medium: str, capacity: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, medium=medium, count=1, capacity_bytes=capacity, **more)


MACHINE = SimpleNamespace(
    name="toy",
    tiers=(
        tier("hbm", "HBM", 1000, endurance_dwpd=None),
        tier("dram", "DRAM", 10_000, endurance_dwpd=None),
        tier("nvme", "SSD", 100_000, endurance_dwpd=1.0),
    ),
    links=(
        SimpleNamespace(name="pcie", between=("hbm", "dram")),
        SimpleNamespace(name="nvme-pcie", between=("dram", "nvme")),
    ),
)


def core_dict(**changes: Any) -> dict[str, Any]:
    """A core's answer for three tiers and two links, small enough to add up by hand."""
    tiers = 3
    stall = np.zeros((tiers, 4, 5), np.int64)
    stall[0, 1, 2] = 40  # hbm, weights, bandwidth
    stall[1, 0, 0] = 3  # dram, kv, latency
    stall[2, 0, 2] = 7  # nvme, kv, bandwidth
    lookups = np.zeros((4, 3), np.int64)
    lookups[0] = (10, 5120, 10_000)
    hits = np.zeros((tiers, 4, 2, 3), np.int64)
    hits[0, 0, 0], hits[0, 0, 1] = (4, 2048, 4000), (3, 1536, 3000)
    hits[1, 0, 0], hits[1, 0, 1] = (2, 1024, 2000), (1, 512, 1000)
    hits[2, 0, 0], hits[2, 0, 1] = (1, 512, 1000), (0, 0, 0)
    core: dict[str, Any] = {
        "clock_ps": 200, "compute_ps": 60, "recompute_ps": 30, "overhead_ps": 20, "collectives_ps": 10,
        "bubble_ps": 5, "idle_ps": 25, "stall_ps": stall, "steps": 12, "step_rows": 4,
        "lookups": lookups, "hits": hits, "link_up_bytes": np.array([500, 70]), "link_down_bytes": np.array([80, 9]),
        "evicted_bytes": np.array([900, 90, 0]), "used_bytes": np.array([1000, 5000, 800]),
        "capacity_bytes": np.array([1000, 10_000, 100_000]), "resident_blocks": np.array([1, 5, 2]),
        "unreachable_bytes": 64, "unheld_read_bytes": 0,
        "samples": {
            "clock_ps": np.array([0, 100, 200]), "step": np.array([0, 6, 12]), "lookups": np.array([0, 4, 10]),
            "used_bytes": np.arange(9).reshape(3, 3), "stall_ps": np.arange(9).reshape(3, 3),
            "hits": np.zeros((3, 3), np.int64),
        },
    }  # fmt: skip
    for name in ("read_bytes", "write_bytes", "writeback_read_bytes", "writeback_write_bytes", "inserted", "evicted",
                 "demoted_out", "promoted_in", "refused", "freed"):  # fmt: skip
        core[name] = np.zeros((tiers, 4), np.int64)
    core["write_bytes"][2, 0], core["writeback_write_bytes"][2, 0] = 150, 50
    core["evicted"][0, 0] = 9
    return core | changes


def make(**changes: Any) -> Result:
    return Result.from_core(
        core_dict(**changes),
        trace={"name": "toy.jsonl", "requests": 3, "unique_blocks": 10},
        machine=MACHINE,
        model={"name": "llama", "weights_dtype": "fp8"},
        options={"policies": ["lru"] * 3, "lanes": 32},
    )


def test_identity_is_exact_and_says_when_it_is_not() -> None:
    identity = make().identity
    assert identity.exact
    assert identity.stalls_ps == 50
    assert sum(identity.parts_ps.values()) == identity.wall_ps == 200
    assert identity.share("stalls") == 0.25
    assert sum(s for s in identity.table["share"] if s is not None) == pytest.approx(1)
    assert not make(idle_ps=26).identity.exact
    assert "do NOT sum" in repr(make(idle_ps=26))
    with pytest.raises(UnknownNameError, match="compute"):
        identity.share("compte")


def test_hits_and_misses_sum_to_lookups() -> None:
    result = make()
    for rule in ("block", "prefix"):
        for weight in ("block", "token", "byte"):
            chosen = {"kind": "kv", "rule": rule, "weight": weight}
            missed = result.misses.where(**chosen)
            assert result.hits.where(**chosen).sum("hits") + missed["misses"][0] == missed["lookups"][0]
    assert result.hit_rate("hbm", rule="block", weight="block") == 0.4
    assert result.hit_rate(rule="prefix", weight="token") == pytest.approx(2048 / 5120)
    # no look-ups of weights: there is no rate, and it is not zero
    assert result.hit_rate(kind="weights") is None
    assert set(result.hits.where(kind="weights")["rate"]) == {None}


def test_stalls_by_tier_kind_and_cause() -> None:
    result = make()
    assert len(result.stalls) == 3 * 4 * 5
    assert result.stalls.sum("ps") == 50
    assert result.stall_s(tier="hbm") == 40e-12
    assert result.stall_s(kind="kv") == 10e-12
    assert result.stall_s(cause="bandwidth", kind="kv", tier="nvme") == 7e-12
    assert result.stalls.where(tier="hbm", kind="weights", cause="bandwidth").rows() == [
        {"tier": "hbm", "kind": "weights", "cause": "bandwidth", "ps": 40, "seconds": 40e-12, "share": 0.2}
    ]
    with pytest.raises(UnknownNameError, match="nvme"):
        result.stall_s(tier="nvmee")


def test_traffic_and_links() -> None:
    result = make()
    row = result.traffic.where(tier="nvme", kind="kv").rows()[0]
    assert (row["write_bytes"], row["writeback_write_bytes"]) == (150, 50)
    assert result.traffic.where(tier="hbm").sum("evicted") == 9
    assert result.links.rows()[0] == {
        "link": "pcie", "upper": "hbm", "lower": "dram", "up_bytes": 500, "down_bytes": 80,
    }  # fmt: skip
    assert result.unreachable_bytes == 64


def test_occupancy_is_a_time_series() -> None:
    occupancy = make().occupancy
    assert list(occupancy["step"]) == [0, 6, 12]
    assert list(occupancy["dram_used_bytes"]) == [1, 4, 7]
    assert occupancy["nvme_stall_s"][2] == 8e-12


def test_wear_follows_the_formula_and_is_missing_without_endurance() -> None:
    # half a day in which 200 bytes of a 100,000-byte drive were written: 0.004 drive writes a day
    half_day = 43_200 * 10**12
    row = make(clock_ps=half_day).wear.rows()
    assert [r["tier"] for r in row] == ["nvme"]
    assert row[0]["written_bytes"] == 200
    assert row[0]["drive_writes_per_day"] == pytest.approx(200 / 100_000 * 2)
    # one rated write a day for five years, used at 0.004 a day
    assert row[0]["life_years"] == pytest.approx(5 / 0.004)

    unknown = SimpleNamespace(
        name="x", tiers=(*MACHINE.tiers[:2], tier("nvme", "SSD", 100_000, endurance_dwpd=None)), links=MACHINE.links
    )
    result = Result.from_core(core_dict(), trace={}, machine=unknown, options={})
    assert result.wear["life_years"] == [None]
    assert "n/a" in repr(result)


def test_nothing_is_nan_and_the_dictionary_is_json() -> None:
    for result in (make(), make(clock_ps=0, lookups=np.zeros((4, 3), np.int64), hits=np.zeros((3, 4, 2, 3), np.int64))):
        text = json.dumps(result.to_dict(), allow_nan=False)
        assert "NaN" not in text
    document = make().to_dict()
    assert document["identity"]["ps"]["wall"] == 200
    assert isinstance(document["stalls"][0]["ps"], int)
    assert document["lookups"]["kv"] == {"block": 10, "token": 5120, "byte": 10_000}
    assert document["tiers"] == ["hbm", "dram", "nvme"]


def test_repr_fits_a_terminal_and_says_what_counts() -> None:
    text = repr(make())
    assert max(map(len, text.split("\n"))) <= 100
    for word in ("toy.jsonl", "llama (fp8)", "lru", "hbm", "weights", "20.0 %", "nowhere", "60.0 %", "unreachable"):
        assert word in text
    assert "nan" not in text.lower().replace("unreachable", "")


def test_html_is_self_contained() -> None:
    page = make()._repr_html_()
    assert "<svg" in page
    assert "currentColor" in page
    assert not re.search(r"https?://|<script|<link", page)
    hostile = Result.from_core(core_dict(), trace={"name": "<script>x"}, machine=MACHINE, options={})
    assert "<script>" not in hostile._repr_html_()


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_saves_and_loads_back_equal(tmp_path, suffix: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"result{suffix}"
    result = make()
    result.save(path)
    back = Result.load(path)
    assert back == result == load(path)
    assert hash(back) == hash(result)
    assert repr(back) == repr(result)
    assert back.to_dict() == result.to_dict()
    assert back != make(steps=13)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saving_twice_gives_the_same_bytes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("a.npz", "b.npz", "a.json", "b.json"):
        make().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_saves_without_samples(tmp_path) -> None:  # type: ignore[no-untyped-def]
    empty = {
        k: np.zeros((0, 3) if k in ("used_bytes", "stall_ps", "hits") else 0, np.int64) for k in core_dict()["samples"]
    }
    result = make(samples=empty)
    for name in ("a.npz", "a.json"):
        result.save(tmp_path / name)
        assert Result.load(tmp_path / name) == result


def test_unknown_version_and_damaged_files_are_clear_errors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "r.json"
    make().save(path)
    document = json.loads(path.read_text())
    for changes, expected in (
        ({"format_version": 99}, "format version 99, expected 1"),
        ({"format": "kvsim curve"}, "kvsim result"),
        ({"counters": {}}, "damaged"),
    ):
        path.write_text(json.dumps(document | changes))
        with pytest.raises(KvsimError, match=expected) as error:
            Result.load(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    make().save(tmp_path / "r.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    for bad in (b"", b"PK", whole[: len(whole) // 2], b"[1]", b"{}", b"\xff\xfe"):
        path.write_bytes(bad)
        with pytest.raises(KvsimError, match="expected a file saved by kvsim"):
            Result.load(path)


def test_refuses_to_save_where_it_cannot(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for path, expected in (
        (tmp_path / "r.txt", r"expected \.npz or \.json"),
        (tmp_path / "no" / "r.npz", "does not exist"),
    ):
        with pytest.raises(KvsimError, match=expected):
            make().save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "r.npz"
    make().save(path)
    before = path.read_bytes()

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(steps=99).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]


def test_the_hash_follows_the_inputs() -> None:
    other = Result.from_core(core_dict(), trace={"name": "toy.jsonl"}, machine=MACHINE, options={"policy": "fifo"})
    assert other.config_hash != make().config_hash
    assert make().config_hash == make(steps=99).config_hash


def test_a_core_that_does_not_fit_the_machine_is_an_error() -> None:
    broken = core_dict()
    del broken["hits"]
    with pytest.raises(KvsimError, match="hits"):
        Result.from_core(broken, trace={}, machine=MACHINE, options={})
    with pytest.raises(KvsimError, match="used_bytes"):
        make(used_bytes=np.zeros(2, np.int64))


def test_hands_over_to_pandas_and_arrow() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    result = make()
    frames, tables = result.to_pandas(), result.to_arrow()
    assert set(frames) == set(tables) == set(result.tables)
    assert frames["stalls"]["ps"].sum() == 50
    assert tables["hits"].column("rate").null_count == len(result.hits.where(lambda r: r["lookups"] == 0))
    assert tables["occupancy"].num_rows == 3


def curve(**changes: Any) -> CurveResult:
    fields: dict[str, Any] = {
        "trace": "t", "unique_blocks": 100, "policies": ("lru", "fifo"), "capacities": (10, 20, 40),
        "hit_count": np.array([[1, 2, 4], [1, 1, 3]]), "total": 8,
    }  # fmt: skip
    return CurveResult(**(fields | changes))


def test_curve_dictionary_is_the_documented_one() -> None:
    assert curve().to_dict() == {
        "trace": "t",
        "unique_blocks": 100,
        "curves": [
            {
                "policy": policy, "hit_rule": "block", "weight": "block", "capacity_blocks": [10, 20, 40],
                "hit_count": hits, "hit_rate": [h / 8 for h in hits], "total": 8,
            }
            for policy, hits in (("lru", [1, 2, 4]), ("fifo", [1, 1, 3]))
        ],
    }  # fmt: skip
    assert "capacity_tokens" in curve(unit="tokens").to_dict()["curves"][0]
    json.dumps(curve().to_dict(), allow_nan=False)


def test_curve_without_lookups_has_no_rate() -> None:
    empty = curve(hit_count=np.zeros((2, 3), np.int64), total=0)
    assert empty.to_dict()["curves"][0]["hit_rate"] == [None] * 3
    assert "n/a" in repr(empty)
    empty._repr_html_()


@pytest.mark.parametrize("name", ["c.npz", "c.json"])
def test_curve_saves_and_loads_back_equal(tmp_path, name: str) -> None:  # type: ignore[no-untyped-def]
    for made in (curve(), curve(hit_count=np.array([[0.5, 2, 4], [1, 1, 3]]), options={"half_block": True})):
        made.save(tmp_path / name)
        assert CurveResult.load(tmp_path / name) == made == load(tmp_path / name)
        with pytest.raises(KvsimError, match="kvsim result"):
            Result.load(tmp_path / name)
    assert curve() != curve(total=9)


def test_curve_shows_itself() -> None:
    text = repr(curve())
    assert "50.00 %" in text
    assert max(map(len, text.split("\n"))) <= 100
    many = curve(policies=tuple(f"policy-number-{i}" for i in range(12)), hit_count=np.zeros((12, 3), np.int64))
    assert max(map(len, repr(many).split("\n"))) <= 100
    assert all(p in repr(many) for p in many.policies)
    page = curve()._repr_html_()
    assert page.count("<polyline") == 2
    assert "http" not in page


def test_curve_of_the_wrong_shape_is_an_error() -> None:
    with pytest.raises(KvsimError, match="shape"):
        curve(hit_count=np.zeros((3, 2), np.int64))
    with pytest.raises(KvsimError, match="unit"):
        curve(unit="pages")


def test_tables_name_their_columns() -> None:
    with pytest.raises(UnknownNameError, match="seconds"):
        make().stalls["second"]
    assert make().stalls == make().stalls
    assert "tier" in repr(make().stalls)
    assert "<table" in make().stalls._repr_html_()


def test_steps_of_an_access_trace_are_not_called_requests() -> None:
    import kvsim

    table = kvsim.BlockTable.of_data([10, 20, 30])
    steps = {name: [0, 0] for name in ("arrival_ps", "fixed_ps", "tokens", "stream", "category")}
    trace = kvsim.AccessTrace(
        blocks=table, meta=TraceMeta(name="raw"), **steps, flops=np.zeros((2, 2)), repeat=[1, 1], request=[-1, -1],
        offsets=[0, 1, 3], block=[0, 1, 2], op=[0, 0, 0], bytes=None,
    )  # fmt: skip
    for source in (trace, trace.first(2)):
        found = kvsim.replay(source, machine="h100x8")
        assert found.trace == {"name": "raw", "unique_blocks": 3}
        assert "requests" not in repr(found)
