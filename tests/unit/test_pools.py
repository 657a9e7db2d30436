"""Machines of several pools: ladders, what may be joined, what is refused, and narrowing to one pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kvsim
from kvsim.errors import ConfigError, MachineError, UnknownNameError
from kvsim.fits import fits
from kvsim.machine import Link, Machine, Movement, Pool, Tier
from kvsim.show import show

SEVERAL = ("h100x8-pd", "gpu-lpx")


def tier(name: str, **changes: Any) -> Tier:
    base: dict[str, Any] = {
        "medium": "DRAM",
        "capacity_bytes": "1 TB",
        "read_bytes_per_s": 1e9,
        "write_bytes_per_s": 1e9,
    }
    return Tier(name=name, **base | changes)


def pool(name: str, near: str, *roles: str) -> Pool:
    return Pool(name=name, near=near, roles=roles, peak_flops_per_s={"bf16": 1e15}, devices=4)


def link(*between: str) -> Link:
    return Link(name="l", between=between, read_bytes_per_s=1e9, write_bytes_per_s=1e9)  # type: ignore[arg-type]


def split(**changes: Any) -> Machine:
    """Two pools on a and b over the shared x and y."""
    parts: dict[str, Any] = {
        "name": "toy",
        "tiers": (tier("a"), tier("b"), tier("x"), tier("y")),
        "pools": (pool("p", "a", "prefill"), pool("d", "b", "attention", "ffn")),
    }
    return Machine(**parts | changes)


# ------------------------------------------------------------------ ladders


def test_the_ladder_is_the_near_tier_then_what_all_share() -> None:
    made = split()
    assert made.ladder("p") == (0, 2, 3)
    assert made.ladder(made.pools[1]) == (1, 2, 3)
    with pytest.raises(UnknownNameError, match="toy: unknown pool 'q'"):
        made.ladder("q")
    one = Machine.load("h100x8")
    assert one.ladder("gpu") == (0, 1, 2)
    # pools that say no near tier stand on the first
    both = split(pools=(pool("p", "", "prefill"), pool("d", "", "attention", "ffn")))
    assert both.ladder("p") == both.ladder("d") == (0, 1, 2, 3)


def test_movements_are_complete_for_every_ladder() -> None:
    given = Movement(upper="b", lower="x", promote="never")
    made = split(movements=(given,))
    assert [(m.upper, m.lower) for m in made.movements] == [("a", "x"), ("x", "y"), ("b", "x")]
    assert made.movement("b", "x") is made.movement(1, 2) is given
    assert made.movement("a", "x") == Movement(upper="a", lower="x")
    assert made.movement("a", "y") == Movement(upper="a", lower="y")  # no neighbours: the defaults
    with pytest.raises(UnknownNameError, match="unknown tier 'z'"):
        made.movement("a", "z")


def test_the_reserve_is_kept_in_every_near_tier() -> None:
    made = split(reserve=0.25)
    assert [made.usable_bytes(t) for t in range(4)] == [750 * 10**9, 750 * 10**9, 10**12, 10**12]
    assert made.weights_home(700 * 10**9, pool="d") == 1
    assert made.weights_home(900 * 10**9, pool="d") == 2
    assert made.weights_home(900 * 10**9) == 2
    with pytest.raises(MachineError, match=r"weights 2 TB exceed every tier \(largest x: 1 TB\)"):
        made.weights_home(2 * 10**12, pool="p")


def test_links_between_pools_and_tiers() -> None:
    made = split(links=(link("p", "d"),))
    assert made.joins_pools(made.links[0])
    made = split(links=(link("b", "y"),))
    assert not made.joins_pools(made.links[0])
    # a name of both kinds is the tier's
    same = split(pools=(pool("a", "a", "prefill"), pool("x", "b", "attention", "ffn")), links=(link("a", "x"),))
    assert not same.joins_pools(same.links[0])


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"pools": (pool("p", "a", "prefill", "ffn"), pool("d", "b", "attention", "ffn"))},
            "pools: found the role 'ffn' of both 'p' and 'd', expected one pool to have it",
        ),
        (
            {"pools": (pool("p", "a", "prefill"), pool("d", "b", "attention"))},
            "pools: found none of p, d with the role 'ffn', expected one pool to have it",
        ),
        (
            {"pools": (pool("p", "a", "prefill", "attention", "ffn"), pool("d", "b"))},
            "pool.d.roles: found none, expected one at least, or no such pool",
        ),
        (
            {"pools": (pool("p", "a", "prefill"), pool("d", "x", "attention", "ffn"))},
            "pool.d.near: found 'x' behind 'b', which is no pool's near tier, expected near tiers first (a/b/x/y)",
        ),
        ({"pools": (pool("p", "a", "prefill"), pool("d", "c", "attention", "ffn"))}, "pool.d.near: unknown tier 'c'"),
        (
            {"links": (link("p", "x"),)},
            "link.l.between: found 'p' and 'x', expected two tiers of one pool, or two pools",
        ),
        (
            {"links": (link("p", "p"),)},
            "link.l.between: found 'p' and 'p', expected two tiers of one pool, or two pools",
        ),
        ({"links": (link("p", "e"),)}, "link.l.between: unknown tier or pool 'e'"),
        (
            {"links": (link("a", "b"),)},
            "link.l.between: found 'a' and 'b', expected two tiers of one pool (a/x/y or b/x/y)",
        ),
        ({"links": (link("x", "b"),)}, "link.l.between: found 'x' before 'b', expected the nearer tier first (b/x/y)"),
        (
            {"movements": (Movement(upper="a", lower="b"),)},
            "movement.\"a/b\": found 'a' and 'b', expected two tiers of one pool (a/x/y or b/x/y)",
        ),
        (
            {"movements": (Movement(upper="b", lower="y"),)},
            "found tiers that are not neighbours, expected two in a row of a/x/y or b/x/y",
        ),
    ],
)
def test_what_makes_no_machine_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split(**changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_pool_may_have_any_roles() -> None:
    assert Machine(name="toy", tiers=(tier("a"),), pools=(pool("p", "", "prefill"),)).narrowed().pools[0].name == "p"


# ------------------------------------------------------------------ files

TOML = """
[tier.hbm-p]
medium = "HBM"
capacity = "80 GB"
bandwidth = "3 TB/s"
[tier.hbm-d]
medium = "HBM"
capacity = "80 GB"
bandwidth = "3 TB/s"
[tier.dram]
medium = "DRAM"
capacity = "1 TB"
bandwidth = "300 GB/s"
[pool.prefill]
roles = ["prefill"]
peak = {bf16 = "1 PFLOP/s"}
[pool.decode]
near = "hbm-d"
roles = ["attention", "ffn"]
peak = {bf16 = "1 PFLOP/s"}
devices = 8
tensor = 4
pipeline = 2
attention_data = 2
expert = true
hop = "3 us"
[link.nic]
between = ["prefill", "decode"]
bandwidth = "50 GB/s"
"""


def test_pools_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("cpu_slots = 8\n" + TOML, "utf-8")
    mine = Machine.load(path)
    decode = mine.pool("decode")
    assert (decode.near, decode.pipeline, decode.attention_data, decode.expert) == ("hbm-d", 2, 2, True)
    assert (decode.hop_s, decode.hop_bytes_per_s) == (3e-6, 0.0)
    assert mine.links[0].between == ("prefill", "decode")
    assert (mine.cpu_slots, mine.electricity_usd_per_kwh) == (8, 0.08)
    assert Machine.from_dict(json.loads(json.dumps(mine.to_dict()))) == mine
    assert "decode x 8 (attention ffn) on hbm-d" in repr(mine)
    shown = {row.key: row.text for row in show(mine).rows}
    assert shown["pool.decode.ladder"] == "hbm-d > dram"
    assert shown["pool.decode.expert"] == "true"
    assert shown["pool.decode.near"] == "hbm-d"
    assert shown["link.nic.between"] == "prefill, decode"
    assert {row.key: row.text for row in show("gpu-lpx").rows}["pool.gpu.roles"] == "prefill, attention"
    assert "pool.gpu.ladder" not in {row.key for row in show("h100x8").rows}


def test_order_keeps_what_ladders_join(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "h100x8-pd"\norder = ["hbm-p", "hbm-d", "dram"]\n', "utf-8")
    mine, whole = Machine.load(path), Machine.load("h100x8-pd")
    assert [(m.upper, m.lower) for m in mine.movements] == [("hbm-p", "dram"), ("hbm-d", "dram")]
    assert mine.movement("hbm-d", "dram") == whole.movement("hbm-d", "dram")
    assert mine.links == whole.links
    path.write_text('base = "h100x8-pd"\norder = ["hbm-p", "dram"]\n', "utf-8")
    with pytest.raises(UnknownNameError, match=r"mine.toml: pool.decode.near: unknown tier 'hbm-d'"):
        Machine.load(path)


def test_none_undoes_what_a_base_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "h100x8"\ncpu_slots = "none"\nprice = "none"\n', "utf-8")
    mine = Machine.load(path)
    assert mine.cpu_slots is None
    assert mine.price_usd_per_h is None
    assert Machine.load("h100x8").set("cpu_slots", "none").cpu_slots is None
    with pytest.raises(MachineError, match="reserve: found 'none'"):
        mine.set("reserve", "none")


# ------------------------------------------------------------------ narrowing


@pytest.mark.parametrize("name", SEVERAL)
def test_narrowing_keeps_one_pool_and_its_ladder(name: str) -> None:
    whole = Machine.load(name)
    for held in whole.pools:
        one = whole.narrowed(held)
        assert one == whole.narrowed(held.name)
        assert one.tier_names == tuple(whole.tier_names[t] for t in whole.ladder(held))
        assert [kept.name for kept in one.pools] == [held.name]
        assert one.ladder(held.name) == tuple(range(len(one.tiers)))
        assert one.name == whole.name
        assert not any(one.joins_pools(k) for k in one.links)
        assert {k.name for k in one.links} == {k.name for k in whole.links if set(k.between) <= set(one.tier_names)}
        for m in one.movements:
            assert m == whole.movement(m.upper, m.lower)
        assert one.unsourced() == []
        assert Machine.from_dict(one.to_dict()) == one
        assert one.narrowed() is one
    assert whole.narrowed() == whole.narrowed(whole.pool_for("attention"))


def test_one_pool_is_narrow_already() -> None:
    machine = Machine.load("h100x8")
    assert machine.narrowed() is machine
    assert machine.narrowed("gpu") is machine
    with pytest.raises(UnknownNameError, match="unknown pool 'cpu'"):
        machine.narrowed("cpu")


def test_dropping_a_pool_drops_its_links() -> None:
    whole = Machine.load("h100x8-pd")
    kept = whole.with_(pools=(whole.pool("prefill"),), tiers=tuple(t for t in whole.tiers if t.name != "hbm-d"))
    assert {k.name for k in kept.links} == {"pcie-p"}
    assert [(m.upper, m.lower) for m in kept.movements] == [("hbm-p", "dram"), ("dram", "ssd")]


@pytest.mark.parametrize("name", SEVERAL)
def test_replay_compare_and_fits_ask_the_attention_pool(name: str) -> None:
    whole = Machine.load(name)
    narrow = whole.narrowed()
    near = narrow.tiers[0]
    answer = fits("llama-3.1-8b", whole)
    assert tuple(room.tier for room in answer.rooms) == narrow.tier_names
    assert answer.rooms[0].capacity_bytes == near.total_capacity_bytes
    assert any("alone" in warning for warning in answer.warnings)
    assert fits("llama-3.1-8b", narrow).rooms == answer.rooms
    trace = kvsim.generate("chat", sessions=3, seed=1)
    result = kvsim.replay(trace, machine=whole, model="llama-3.1-8b", lanes=2, check=True)
    assert result.tiers == narrow.tier_names
    assert result == kvsim.replay(trace, machine=narrow, model="llama-3.1-8b", lanes=2)
    row = kvsim.compare(["chat"], [whole], "llama-3.1-8b", scale=0.02, threads=1).rows[0]
    assert (row.machine, row.tiers, row.error) == (name, narrow.tier_names, "")


# ------------------------------------------------------------------ presets


def test_presets_of_several_pools() -> None:
    pd = Machine.load("h100x8-pd")
    whole = Machine.load("h100x8")
    assert sum(p.devices for p in pd.pools) == whole.pools[0].devices
    assert pd.tier("hbm-p").total_capacity_bytes + pd.tier("hbm-d").total_capacity_bytes == 640 * 10**9
    assert [k.name for k in pd.links if pd.joins_pools(k)] == ["nvlink"]
    assert (pd.price_usd_per_h, pd.power_w, pd.cpu_slots) == (whole.price_usd_per_h, whole.power_w, 112)
    lpx = Machine.load("gpu-lpx")
    assert lpx.pool_for("ffn").near == "sram"
    assert lpx.pool_for("prefill") is lpx.pool_for("attention")
    assert lpx.tier("sram").total_capacity_bytes == 128 * 10**9
    assert lpx.tier("sram").total_read_bytes_per_s == pytest.approx(38.4e15)
    assert (lpx.capex_usd, lpx.price_usd_per_h) == (None, None)  # not known: not that of the GPUs alone


def test_presets_of_one_pool_for_running() -> None:
    rack = Machine.load("h100x8-rack")
    assert rack.tier_names == ("hbm", "dram", "rack-dram", "rack-ssd")
    assert rack.tier("rack-dram").medium == rack.tier("rack-ssd").medium == "remote"
    card = Machine.load("rtx4090")
    assert card.tier("gddr").total_capacity_bytes == 24 * 10**9
    assert card.pools[0].peak("bf16") == 165.2e12
    lpu = Machine.load("groq-lpu-rack").pools[0]
    assert lpu.tensor == 36
    assert lpu.devices == 36 * lpu.pipeline
    assert [Machine.load(n).cpu_slots for n in ("h100x8", "a100x8", "epyc9965-2s", "cs3")] == [112, 128, 384, None]
