"""Machines: the presets and their sources, files that start from another, changes, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvsim.errors import ConfigError, KvsimError, MachineError, UnknownNameError
from kvsim.machine import KINDS, Link, Machine, Movement, Pool, Tier
from kvsim.show import show
from kvsim.units import UNBOUNDED_BYTES

PRESETS = (
    "a100x8", "cs3", "epyc9965-2s", "gpu-lpx", "groq-lpu-rack", "h100x8", "h100x8-pd", "h100x8-rack", "rtx4090",
    "sn40l",
)  # fmt: skip


def tier(name: str = "hbm", **changes: Any) -> Tier:
    base: dict[str, Any] = {
        "name": name,
        "medium": "HBM",
        "capacity_bytes": "80 GB",
        "read_bytes_per_s": "3 TB/s",
        "write_bytes_per_s": "3 TB/s",
    }
    return Tier(**base | changes)


def pool(**changes: Any) -> Pool:
    return Pool(**{"name": "gpu", "peak_flops_per_s": {"bf16": "1 PFLOP/s"}, "mfu": 0.5} | changes)


def machine(*tiers: Tier, **changes: Any) -> Machine:
    return Machine(**{"name": "toy", "tiers": tiers or (tier(),), "pools": (pool(),)} | changes)


# ------------------------------------------------------------------ presets


def test_the_ladder_is_there() -> None:
    assert set(PRESETS) <= set(Machine.names())


@pytest.mark.parametrize("name", Machine.names())
def test_every_number_of_a_preset_has_its_own_source(name: str) -> None:
    loaded = Machine.load(name)
    numbers = [path for path, _, _ in loaded.numbers()]
    assert len(numbers) > 12
    for path in numbers:
        assert path in loaded.sources, f"{name}: {path} has no source"
        assert len(loaded.sources[path].text) > 5
    assert loaded.unsourced() == []
    assert {path for path, _ in loaded.doubtful()} == {
        path for path in numbers if loaded.sources[path].quality in ("estimate", "memory")
    }
    assert loaded.power_w
    assert loaded.date


@pytest.mark.parametrize("name", Machine.names())
def test_round_trips(name: str) -> None:
    loaded = Machine.load(name)
    again = Machine.from_dict(json.loads(json.dumps(loaded.to_dict())))
    assert again == loaded
    assert again.sources == loaded.sources
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy == loaded
    assert hash(copy) == hash(loaded)
    assert Machine.load(loaded) is loaded
    assert Machine.load(loaded.to_dict()) == loaded
    assert loaded.name in repr(loaded)
    assert loaded.tiers[0].name in repr(loaded)


def test_figures_that_decide() -> None:
    h100 = Machine.load("h100x8")
    assert h100.tier_names == ("hbm", "dram", "ssd")
    assert h100.tier("hbm").total_capacity_bytes == 640 * 10**9
    assert h100.tier("dram").total_capacity_bytes == 2 * 10**12
    assert h100.tier("hbm").total_read_bytes_per_s == pytest.approx(8 * 3.35e12 * 0.89)
    link = h100.links[0]
    assert (link.read_bytes_per_s, link.duplex, link.overhead_s) == (51.5e9, 83.4e9, 3.3e-6)
    assert h100.tier("ssd").norm == 1.6
    assert h100.tier("ssd").endurance_dwpd == 1.0
    wafer = Machine.load("cs3")
    assert wafer.tier("sram").read_bytes_per_s == 21e15  # petabytes
    assert wafer.tier("sram").read_bytes_per_s / 3.35e12 == pytest.approx(6269, rel=1e-3)
    assert "weights" not in wafer.movements[0].kinds
    assert "kv" in wafer.movements[0].kinds
    rack = Machine.load("groq-lpu-rack")
    assert rack.tier("sram").total_capacity_bytes == 576 * 230 * 10**6
    assert len(rack.tiers) == 1
    assert Machine.load("sn40l").tier_names == ("sram", "hbm", "ddr")
    assert Machine.load("epyc9965-2s").tier("dram").medium == "DRAM"
    assert Machine.load("cs3").price_usd_per_h is None


def test_weights_home() -> None:
    h100, wafer = Machine.load("h100x8"), Machine.load("cs3")
    assert h100.weights_home(141 * 10**9) == 0
    assert h100.weights_home(576 * 10**9) == 0  # 640 GB less a tenth
    assert h100.weights_home(577 * 10**9) == 1
    assert wafer.weights_home(39 * 10**9) == 0
    assert wafer.weights_home(141 * 10**9) == 1
    with pytest.raises(MachineError, match=r"weights 141 GB exceed every tier \(largest sram: 119.2 GB\)"):
        Machine.load("groq-lpu-rack").weights_home(141 * 10**9)


def test_peaks_fall_back_to_the_next_wider_unit() -> None:
    h100, a100 = Machine.load("h100x8").pools[0], Machine.load("a100x8").pools[0]
    assert h100.peak("fp8") == 1979e12
    assert h100.peak("mxfp4") == 1979e12
    assert a100.peak("fp8") == a100.peak("bf16") == 312e12
    assert a100.peak("int8") == 624e12
    assert Machine.load("groq-lpu-rack").pools[0].peak("bf16") == 188e12


def test_show_lists_every_number_with_its_source() -> None:
    shown = show("cs3")
    rows = {row.key: row for row in shown.rows}
    assert shown.sort == "machine"
    assert rows["tier.sram.read_bytes_per_s"].text == "21 PB/s"
    assert rows["tier.sram.read_bytes_per_s"].quality == "vendor"
    assert rows["tier.memoryx.read_bytes_per_s"].doubtful
    assert {path for path, _, _ in Machine.load("cs3").numbers()} <= set(rows)
    assert "hndistilled" in str(shown)
    json.dumps(shown.to_dict())
    model = show("llama-3.1-70b")
    assert model.sort == "model"
    assert {row.key: row.value for row in model.rows}["kv_bytes_per_token"] == 327_680
    assert not any(row.doubtful for row in model.rows)
    with pytest.raises(UnknownNameError, match="unknown machine or model 'h100x9': did you mean 'h100x8'"):
        show("h100x9")


def test_show_tells_files_apart(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('base = "h100x8"\n')
    (tmp_path / "n.toml").write_text('base = "llama-3.1-8b"\n')
    (tmp_path / "o.toml").write_text('base = "n.toml"\n')
    assert show(tmp_path / "m.toml").sort == "machine"
    assert show(str(tmp_path / "n.toml")).sort == "model"
    assert show(tmp_path / "o.toml").sort == "model"


# ------------------------------------------------------------------ files


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_file_starts_from_another(tmp_path: Path) -> None:
    write(tmp_path, 'base = "h100x8"\ntitle = "more DRAM"\n[tier.dram]\ncapacity = "4 TB"\n', "more.toml")
    path = write(tmp_path, 'base = "more.toml"\nprice = "25 USD/h"\n[tier.dram]\nprice = "1 USD"\n')
    mine, base = Machine.load(path), Machine.load("h100x8")
    assert mine.name == "mine"
    assert mine.tier("dram").capacity_bytes == 4 * 10**12
    assert mine.tier("dram").read_bytes_per_s == base.tier("dram").read_bytes_per_s
    assert mine.tier("hbm") == base.tier("hbm")
    assert mine.price_usd_per_h == 25
    assert mine.links == base.links
    # the base's sources do not vouch for what changed, and still do for the rest
    assert mine.source("tier.dram.capacity_bytes") == ("set in more.toml", "given")
    assert mine.source("price_usd_per_h") == ("set in mine.toml", "given")
    assert mine.source("tier.hbm.capacity_bytes") == base.source("tier.hbm.capacity_bytes")
    assert mine.unsourced() == []


def test_a_file_may_state_its_own_sources(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'base = "h100x8"\n[tier.dram]\ncapacity = "4 TB"\n'
        '[sources]\n"tier.dram.capacity" = {text = "invoice", quality = "measured"}\n',
    )
    assert Machine.load(path).source("tier.dram.capacity_bytes") == ("invoice", "measured")


def test_order_keeps_drops_and_adds_tiers(tmp_path: Path) -> None:
    text = 'base = "h100x8"\norder = ["hbm", "ssd"]\n'
    mine = Machine.load(write(tmp_path, text))
    assert mine.tier_names == ("hbm", "ssd")
    assert mine.links == ()
    assert [(m.upper, m.lower) for m in mine.movements] == [("hbm", "ssd")]
    assert mine.set("reserve", 0.2).tier_names == ("hbm", "ssd")
    text = (
        'base = "h100x8"\norder = ["hbm", "dram", "cxl", "ssd"]\n[tier.cxl]\nmedium = "DRAM"\n'
        'capacity = "256 GB"\ncount = 4\nread = "28 GB/s"\nwrite = "25 GB/s"\nlatency = "275 ns"\n'
    )
    mine = Machine.load(write(tmp_path, text))
    assert mine.tier_names == ("hbm", "dram", "cxl", "ssd")
    assert mine.tier("cxl").total_capacity_bytes == 1024 * 10**9
    assert mine.movements[1] == Movement(upper="dram", lower="cxl")


def test_tiers_as_a_list_of_tables(tmp_path: Path) -> None:
    text = (
        '[[tier]]\nname = "near"\nmedium = "SRAM"\ncapacity = "1 GB"\nbandwidth = "1 TB/s"\n'
        '[[tier]]\nname = "far"\nmedium = "remote"\ncapacity = "unbounded"\nbandwidth = "1 GB/s"\ncount = 3\n'
        '[pool.p]\npeak = {bf16 = "1 TFLOP/s"}\n[movement."near/far"]\npromote = 2\ninclusion = "exclusive"\n'
    )
    mine = Machine.load(write(tmp_path, text))
    assert mine.tier("far").total_capacity_bytes == UNBOUNDED_BYTES
    assert mine.tier("near").write_bytes_per_s == 1e12
    assert mine.movements == (Movement(upper="near", lower="far", promote=2, inclusion="exclusive"),)
    assert "tier.near.capacity_bytes" in mine.unsourced()


HEAD = '[pool.p]\npeak = {bf16 = "1 TFLOP/s"}\n'
NEAR = '[tier.near]\nmedium = "SRAM"\ncapacity = "1 GB"\nbandwidth = "1 TB/s"\n'
FAR = '[tier.far]\nmedium = "DRAM"\ncapacity = "1 TB"\nbandwidth = "1 GB/s"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "tiers: found none, expected 1 to 8"),
        (HEAD, "tiers: found none, expected 1 to 8"),
        (NEAR, "pools: found none, expected 1 to 8"),
        (HEAD + NEAR.replace("1 TB/s", "0 TB/s"), "tier.near.read_bytes_per_s: found '0 TB/s', expected"),
        (HEAD + NEAR.replace('"1 TB/s"', "nan"), "tier.near.read_bytes_per_s: found nan, expected a finite"),
        (HEAD + NEAR.replace('"1 TB/s"', "inf"), "found inf, expected a finite number"),
        (HEAD + NEAR.replace("1 GB", "-1 GB"), "tier.near.capacity_bytes: found '-1 GB', expected"),
        (HEAD + NEAR.replace("1 GB", "9e30 GB"), "found '9e30 GB', expected"),
        (HEAD + NEAR.replace("1 GB", "2 EiB"), "found '2 EiB', expected"),
        (HEAD + NEAR + "count = 1000000\n", ""),
        (HEAD + NEAR.replace("1 GB", "1 PB") + "count = 10000\n", "expected at most 1152921504606846976 bytes in all"),
        (HEAD + NEAR + "count = 0\n", "tier.near.count: found 0, expected"),
        (HEAD + NEAR + "efficiency = 1.1\n", "tier.near.efficiency: found 1.1, expected"),
        (HEAD + NEAR + "efficiency = 0\n", "expected a number, above 0"),
        (HEAD + NEAR + "norm = 0.5\n", "tier.near.norm: found 0.5"),
        (HEAD + NEAR + 'latency = "2 h"\n', "tier.near.latency_s: found '2 h'"),
        (HEAD + NEAR + 'duplex = "both"\n', "or one of half, full"),
        (HEAD + NEAR + "leaf_only = 1\n", "expected true or false"),
        (HEAD + NEAR + "capcity = 3\n", "unknown key 'capcity': did you mean 'capacity'"),
        (HEAD + NEAR.replace("SRAM", "SRAMM"), "did you mean 'SRAM'"),
        (HEAD + NEAR.replace('medium = "SRAM"\n', ""), "tier.near.medium: found nothing, expected a value"),
        (HEAD + NEAR + "[teir.far]\n", "unknown key of a machine 'teir': did you mean 'tier'"),
        (HEAD + NEAR + 'tier = "x"\n', "tier.near: unknown key 'tier'"),
        ("tier = 3\n" + HEAD, "tier: found 3, expected tables with a name"),
        ('tier = [{name = "a"}, {name = "a"}]\n' + HEAD, "tier: found two of the name 'a'"),
        (HEAD + NEAR + '[link.x]\nbetween = ["near", "fra"]\nbandwidth = 1e9\n', "unknown tier 'fra'"),
        (
            HEAD + NEAR + FAR + '[link.x]\nbetween = ["far", "near"]\nbandwidth = 1e9\n',
            "found 'far' before 'near', expected the nearer tier first",
        ),
        (HEAD + NEAR + FAR + '[link.x]\nbetween = ["near"]\nbandwidth = 1e9\n', "expected the names of two"),
        (
            HEAD + NEAR + FAR + '[link.x]\nbetween = ["near", "far"]\nbandwidth = 0\n',
            "link.x.read_bytes_per_s: found 0",
        ),
        (HEAD + NEAR + FAR + '[movement."far/near"]\n', "expected the nearer tier first"),
        (HEAD + NEAR + FAR + "[movement.near]\n", 'expected two tiers written "upper/lower"'),
        (
            HEAD + NEAR + FAR + '[movement."near/far"]\ninclusion = "exclusive"\neviction = "write_through"\n',
            "found inclusion 'exclusive' with eviction 'write_through', expected another eviction",
        ),
        (HEAD + NEAR + FAR + '[movement."near/far"]\npromote = 0\n', "or one of always, never"),
        (HEAD + NEAR + FAR + '[movement."near/far"]\neviction = "write-back"\n', "did you mean 'write_back'"),
        (HEAD + NEAR + FAR + '[movement."near/far"]\nkinds = ["kvs"]\n', "unknown kind 'kvs'"),
        (HEAD.replace("bf16", "bf61") + NEAR, "unknown precision 'bf61': did you mean 'bf16'"),
        (HEAD + "mfu = {ffn = 0.5}\n" + NEAR, "expected both attention and ffn"),
        (HEAD + "mfu = 0\n" + NEAR, "mfu"),
        (HEAD + "devices = 8\ntensor = 3\n" + NEAR, "expected a divisor of devices (8)"),
        (HEAD + "devices = 8\npipeline = 3\n" + NEAR, "pool.p.pipeline: found 3, expected a divisor of devices (8)"),
        (
            HEAD + "devices = 8\npipeline = 2\ntensor = 8\n" + NEAR,
            "pool.p.tensor: found 8, expected a divisor of devices / pipeline (8 / 2)",
        ),
        (
            HEAD + "devices = 8\ntensor = 4\nattention_data = 8\n" + NEAR,
            "pool.p.attention_data: found 8, expected a divisor of tensor (4)",
        ),
        (HEAD + "devices = 8\nattention_data = 3\n" + NEAR, "expected a divisor of devices (8)"),
        (HEAD + "expert = 1\n" + NEAR, "pool.p.expert: found 1, expected true or false"),
        (HEAD + 'hop = "2 h"\n' + NEAR, "pool.p.hop_s: found '2 h'"),
        (HEAD + 'near = "naer"\n' + NEAR, "pool.p.near: unknown tier 'naer': did you mean 'near'"),
        (
            HEAD + 'near = "far"\n' + NEAR + FAR,
            "pool.p.near: found 'far' behind 'near', which is no pool's near tier, expected near tiers first",
        ),
        ("cpu_slots = 0\n" + HEAD + NEAR, "cpu_slots: found 0"),
        ("electricity = -1\n" + HEAD + NEAR, "electricity_usd_per_kwh: found -1"),
        (HEAD + 'roles = ["prefil"]\n' + NEAR, "did you mean 'prefill'"),
        ("reserve = 1.5\n" + HEAD + NEAR, "reserve: found 1.5"),
        ('power = "3 GB"\n' + HEAD + NEAR, "found the unit 'GB'"),
        ('order = ["near", "fra"]\n' + HEAD + NEAR + FAR, "unknown tier 'fra': did you mean 'far'"),
        ('base = "h100"\n', "unknown machine 'h100': did you mean 'h100x8'"),
        ('base = "mine.toml"\n', "leads back to itself"),
        ('base = "gone.toml"\n', "no such file"),
        (HEAD + NEAR + '[sources]\n"tier.nera.capacity" = {text = "x", quality = "vendor"}\n', "unknown tier 'nera'"),
        (HEAD + NEAR + '[sources]\n"tier.near.cap" = {text = "x", quality = "vendor"}\n', "unknown key 'cap'"),
        (HEAD + NEAR + '[sources]\n"tier.near" = {text = "x", quality = "sure"}\n', "quality = one of measured"),
        ("[[[", "readable TOML"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    if not says:
        Machine.load(path)
        return
    with pytest.raises(ConfigError) as caught:
        Machine.load(path)
    message = str(caught.value)
    assert says in message
    assert "mine.toml" in message or "gone.toml" in message or "did you mean 'h100x8'" in message
    assert "\n" not in message


def test_too_many_and_twice() -> None:
    with pytest.raises(MachineError, match="tiers: found 9, expected 1 to 8"):
        machine(*(tier(f"t{i}") for i in range(9)))
    assert len(machine(*(tier(f"t{i}") for i in range(8))).movements) == 7
    with pytest.raises(MachineError, match="tiers: found two of the name 'a'"):
        machine(tier("a"), tier("a"))
    links = [Link(name=f"l{i}", between=("a", "b"), read_bytes_per_s=1e9, write_bytes_per_s=1e9) for i in range(17)]
    with pytest.raises(MachineError, match="links: found 17, expected 0 to 16"):
        machine(tier("a"), tier("b"), links=links)
    machine(tier("a"), tier("b"), links=links[:16])
    with pytest.raises(MachineError, match="not neighbours"):
        machine(tier("a"), tier("b"), tier("c"), movements=[Movement(upper="a", lower="c")])
    with pytest.raises(MachineError, match="found two, expected one for each pair"):
        machine(tier("a"), tier("b"), movements=[Movement(upper="a", lower="b")] * 2)
    with pytest.raises(MachineError, match="expected a name of letters"):
        tier("a b")
    with pytest.raises(MachineError, match="expected a list of Tier"):
        machine(tiers=[1])


def test_unreadable_things(tmp_path: Path) -> None:
    for thing in (tmp_path, tmp_path / "none.toml", "", "a\0b.toml", "h100x8\n", str(tmp_path) + "/x"):
        with pytest.raises(KvsimError):
            Machine.load(thing)
    with pytest.raises(MachineError, match="expected a name, a path or a Machine"):
        Machine.load(3)  # type: ignore[arg-type]
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(MachineError, match="readable TOML"):
        Machine.load(tmp_path / "b.toml")


# ------------------------------------------------------------------ changes


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("tier.dram.capacity", "4TB", lambda m: m.tier("dram").capacity_bytes == 4 * 10**12),
        ("tier.dram.capacity_bytes", 5, lambda m: m.tier("dram").capacity_bytes == 5),
        ("tier.dram.capacity", "unbounded", lambda m: m.tier("dram").capacity_bytes == UNBOUNDED_BYTES),
        ("tier.ssd.total_capacity", "30 TB", lambda m: m.tier("ssd").total_capacity_bytes == 30 * 10**12),
        ("tier.ssd.count", "16", lambda m: m.tier("ssd").count == 16),
        ("tier.hbm.bandwidth", "8 TB/s", lambda m: m.tier("hbm").write_bytes_per_s == 8e12),
        ("tier.hbm.latency", "1 us", lambda m: m.tier("hbm").latency_s == 1e-6),
        ("tier.hbm.policy", "s3-fifo", lambda m: m.tier("hbm").policy == "s3-fifo"),
        ("tier.hbm.leaf_only", "true", lambda m: m.tier("hbm").leaf_only is True),
        ("tier.ssd.dwpd", "3", lambda m: m.tier("ssd").endurance_dwpd == 3),
        ("link.pcie.read", "25 GB/s", lambda m: m.links[0].read_bytes_per_s == 25e9),
        ("link.pcie.duplex", "half", lambda m: m.links[0].duplex == "half"),
        ("movement.hbm/dram.promote", "never", lambda m: m.movements[0].promote == "never"),
        ("movement.hbm/dram.promote", "3", lambda m: m.movements[0].promote == 3),
        ("movement.hbm/dram.kinds", "kv,weights", lambda m: m.movements[0].kinds == ("kv", "weights")),
        ("pool.gpu.mfu.ffn", 0.4, lambda m: m.pools[0].mfu == {"attention": 0.55, "ffn": 0.4}),
        ("pool.gpu.mfu", "0.4", lambda m: m.pools[0].mfu == {"attention": 0.4, "ffn": 0.4}),
        ("pool.gpu.peak.bf16", "2 PFLOP/s", lambda m: m.pools[0].peak("bf16") == 2e15),
        ("pool.gpu.tensor", "4", lambda m: m.pools[0].tensor == 4),
        ("reserve", "5 %", lambda m: m.reserve == 0.05),
        ("price", "20 USD/h", lambda m: m.price_usd_per_h == 20),
        ("power", "10 kW", lambda m: m.power_w == 10_000),
        ("cpu_slots", "64", lambda m: m.cpu_slots == 64),
        ("electricity", "0.15", lambda m: m.electricity_usd_per_kwh == 0.15),
        ("pool.gpu.pipeline", 2, lambda m: m.pools[0].pipeline == 2),
        ("pool.gpu.attention_data", "4", lambda m: m.pools[0].attention_data == 4),
        ("pool.gpu.expert", "true", lambda m: m.pools[0].expert is True),
        ("pool.gpu.hop", "3 us", lambda m: m.pools[0].hop_s == 3e-6),
        ("pool.gpu.hop_bandwidth", "50 GB/s", lambda m: m.pools[0].hop_bytes_per_s == 50e9),
        ("pool.gpu.near", "hbm", lambda m: m.pools[0].near == "hbm"),
    ],
)
def test_set_changes_one_thing(path: str, value: object, found: Any) -> None:
    base = Machine.load("h100x8")
    changed = base.set(path, value)
    assert found(changed)
    assert base == Machine.load("h100x8")
    assert changed.name == base.name
    assert changed.unsourced() == []
    assert changed != base or path == "movement.hbm/dram.kinds"
    given = [path for path, source in changed.sources.items() if source.quality == "given"]
    assert 1 <= len(given) <= 2


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("tier.drma.capacity", "2TB", "unknown tier 'drma': did you mean 'dram'"),
        ("tier.dram.capcity", "2TB", "unknown key 'capcity': did you mean 'capacity'"),
        ("teir.dram.capacity", "2TB", "unknown key 'teir': did you mean 'tier'"),
        ("tier.dram", "2TB", "unknown key ''"),
        ("tier", "2TB", "unknown tier ''"),
        ("", "2TB", "unknown key ''"),
        ("tier.dram.capacity.x", "2TB", "unknown key below capacity_bytes 'x'"),
        ("tier.dram.capacity", "2 T", "found the unit 'T'"),
        ("tier.dram.capacity", "nan", "tier.dram.capacity_bytes: found 'nan'"),
        ("tier.dram.read", 0, "tier.dram.read_bytes_per_s: found 0"),
        ("tier.dram.name", "x", "found a name, expected"),
        ("movement.hbm/ssd.promote", "never", "unknown movement 'hbm/ssd': did you mean"),
        ("pool.gpu.mfu.attn", 0.4, "unknown operation 'attn'"),
        ("tier.ssd.total_capacity", "-1 TB", "0 B or more"),
        ("prise", 3, "did you mean 'price'"),
    ],
)
def test_set_refuses_with_the_nearest(path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Machine.load("h100x8").set(path, value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_drops_what_hangs_on_tiers_that_went() -> None:
    base = Machine.load("h100x8")
    one = base.with_(tiers=base.tiers[:1], name="hbm-only")
    assert one.movements == ()
    assert one.links == ()
    assert one.name == "hbm-only"
    assert base.with_(reserve="20 %").reserve == 0.2
    with pytest.raises(UnknownNameError, match="did you mean 'reserve'"):
        base.with_(reserved=0.1)
    # and the sources of what went, which a machine made of its tables refuses
    assert "tier.dram.capacity_bytes" not in one.sources
    assert one.source("tier.hbm.capacity_bytes") == base.source("tier.hbm.capacity_bytes")
    assert Machine.from_dict(one.to_dict()) == one
    assert one.set("reserve", 0.2).reserve == 0.2


def test_objects_read_units_and_default() -> None:
    made = tier(duplex="4 TB/s", fragment_bytes="2 MiB", endurance_dwpd=None)
    assert made.duplex == 4e12
    assert made.fragment_bytes == 2 << 20
    assert made.policy == "lru"
    mine = machine(made, tier("dram", medium="DRAM"))
    assert mine.movements == (Movement(upper="hbm", lower="dram"),)
    assert mine.movements[0].kinds == KINDS
    assert mine.pool_for("ffn").name == "gpu"
    assert mine.title == "toy"
    assert tier(capacity_bytes=0).total_capacity_bytes == 0
    with pytest.raises(MachineError, match="no pool with the role"):
        machine(pools=(pool(roles=["prefill"]),)).pool_for("ffn")


def test_names_may_come_from_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    points = [EntryPoint("theirs", f"{__name__}:machine_of_theirs", "kvsim.machines")]

    class Theirs:
        def __init__(self) -> None:
            self.name, self.value = "theirs", "elsewhere:machine"

        def load(self) -> Machine:
            return machine(name="theirs")

    def entry_points(*, group: str) -> list[Any]:
        return [Theirs()] if group == points[0].group else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert Machine.load("theirs").name == "theirs"
    with pytest.raises(UnknownNameError, match="did you mean 'theirs'"):
        Machine.load("thiers")


def test_importing_is_light() -> None:
    heavy = ("numpy", "importlib.metadata", "msgspec", "click", "rich", "kvsim.fits")
    code = f"import sys, kvsim.model, kvsim.machine; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
