"""What a replica has, where weights lie, what a step reads: worked out here by hand."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from kvsim.errors import ConfigError, MachineError, UnknownNameError
from kvsim.keep import keep_tiers
from kvsim.machine import Link, Machine, Pool, Tier
from kvsim.model import Model
from kvsim.run_lowering import LoweredRun, lower_run
from kvsim.serving import Serving
from kvsim.trace import RequestTrace

PS = 1e12
DENSE = Model(name="dense", layers=4, hidden=64, heads=8, kv_heads=2, head_dim=8, vocab=100, ffn=256)
MOE = Model(
    name="moe", layers=4, hidden=64, heads=8, kv_heads=8, head_dim=8, vocab=100, ffn=256, experts=32,
    experts_per_token=4, moe_ffn=32, moe_layers=3, shared_ffn=32,
)  # fmt: skip


def tier(name: str, capacity: int, rate: float = 1e9, **more: Any) -> Tier:
    given = {"medium": "DRAM", "capacity_bytes": capacity, "read_bytes_per_s": rate, "write_bytes_per_s": rate}
    return Tier(name=name, **{**given, **more})


def pool(name: str = "gpu", **more: Any) -> Pool:
    return Pool(name=name, **{"peak_flops_per_s": {"bf16": 1e12}, **more})


def machine(*tiers: Tier, pools: tuple[Pool, ...] = (), **more: Any) -> Machine:
    given: dict[str, Any] = {"name": "toy", "tiers": tiers, "pools": pools or (pool(),), "reserve": 0.0}
    return Machine(**{**given, **more})


def requests(n: int = 2, inputs: int = 40, outputs: int = 8, **more: Any) -> RequestTrace:
    given: dict[str, Any] = {
        "block_tokens": 16, "input_tokens": [inputs] * n, "output_tokens": [outputs] * n, "arrival_s": [0.0] * n,
        "block_ids": [[10 * i, 10 * i + 1] for i in range(n)],
    }  # fmt: skip
    return RequestTrace.from_lists(**{**given, **more})


def lowered(m: Machine, model: Model = DENSE, trace: RequestTrace | None = None, **words: Any) -> LoweredRun:
    return lower_run(trace or requests(), model, m, Serving(**words))


def ends(model: Model) -> int:
    return sum(b.bytes for b in model.weight_blocks() if b.label in ("embedding", "lm_head"))


LONGEST = 2 * 16 + 16  # two blocks, then eight private tokens and eight to come, in blocks of 16


# ---- replicas ------------------------------------------------------------------------------------------------------


def test_auto_takes_the_fewest_devices_that_hold_weights_and_the_longest_request() -> None:
    kv = LONGEST * DENSE.kv_bytes_per_token
    just = DENSE.weight_bytes + kv
    for devices, capacity, replicas in ((8, just, 8), (8, just - 1, 4), (8, -(-just // 2), 4), (6, just // 2 - 1, 2)):
        m = machine(tier("hbm", capacity, count=devices), pools=(pool(devices=devices),))
        found = lowered(m)
        assert found.placement["gpu"]["replicas"] == replicas, (devices, capacity)
        assert len(found.spec["workers"]) == replicas
        # copies of KV heads count: 3 devices share 2 heads one and a half times
        tensor = devices // replicas
        assert found.placement["gpu"]["kv_copies"] == float(Fraction(tensor, min(tensor, 2)))


def test_replicas_may_be_asked_for() -> None:
    m = machine(tier("hbm", 1 << 30, count=8), pools=(pool(devices=8),))
    assert lowered(m).placement["gpu"]["replicas"] == 8
    assert lowered(m, replicas=2).placement["gpu"]["tensor"] == 4
    with pytest.raises(ConfigError, match="replicas: found 3"):
        lowered(m, replicas=3)
    fixed = machine(tier("hbm", 1 << 30, count=8), pools=(pool(devices=8, tensor=2),))
    with pytest.raises(ConfigError, match="replicas"):
        lowered(fixed, replicas=2)


def test_each_replica_has_an_equal_share_of_everything() -> None:
    m = machine(
        tier("hbm", 1 << 30, 1e9, count=8),
        tier("dram", 8 << 30, 4e8, fragment_bytes=800),
        pools=(pool(devices=8, tensor=2),),
        links=(Link(name="pcie", between=("hbm", "dram"), count=8, read_bytes_per_s=1e7, write_bytes_per_s=2e7),),
    )
    found = lowered(m)
    kind = found.spec["kinds"][0]
    near, far = kind["tiers"]
    assert near["capacity_bytes"] == (8 << 30) // 4 - DENSE.weight_bytes
    assert (far["capacity_bytes"], far["fragment_bytes"]) == (2 << 30, 200)
    assert near["read_ps_per_byte"] == pytest.approx(PS / 2e9)
    assert far["read_ps_per_byte"] == pytest.approx(PS / 1e8)
    assert kind["links"][0]["write_ps_per_byte"] == pytest.approx(PS / 4e7)
    assert (far["path"], kind["link_index"]) == (1, [0])
    assert kind["ps_per_flop"][0] == pytest.approx(PS / 2e12)
    # with the weights the capacities are the machine's again
    total = np.array([4 * near["capacity_bytes"], 4 * far["capacity_bytes"]])
    assert (total + found.more_capacity_bytes).tolist() == [8 << 30, 8 << 30]


def test_an_engines_own_number_of_blocks_is_the_room() -> None:
    m = machine(tier("hbm", 1 << 30))
    found = lowered(m, kv_blocks=50)
    assert found.spec["kinds"][0]["tiers"][0]["capacity_bytes"] == 50 * 16 * DENSE.kv_bytes_per_token
    with pytest.raises(ConfigError, match="kv_blocks"):
        lowered(m, kv_blocks=1 << 30)


def test_copies_of_kv_heads_and_of_attention() -> None:
    m = machine(tier("hbm", 1 << 30, count=8), pools=(pool(devices=8, tensor=8),))
    kind = lowered(m).spec["kinds"][0]
    row = 2 * 2 * 8 * 2
    assert (kind["kv_layer_bytes"], kind["kv_token_bytes"], kind["kv_write_bytes"]) == (4 * row, 16 * row, 16 * row)
    spread = machine(tier("hbm", 1 << 30, count=8), pools=(pool(devices=8, tensor=8, attention_data=4),))
    wide = lowered(spread)
    kind = wide.spec["kinds"][0]
    assert kind["kv_layer_bytes"] == row
    attention = 2 * DENSE.attention_parameters
    head = 2 * DENSE.head_parameters
    assert kind["near_weights"][0] == 4 * attention + head
    assert wide.placement["gpu"]["near_weight_bytes"] == DENSE.weight_bytes + 3 * attention
    latent = Model(
        name="latent", layers=2, hidden=64, heads=8, kv_heads=8, head_dim=8, vocab=100, ffn=64, kv_lora_rank=24,
        qk_rope_head_dim=8, qk_nope_head_dim=8,
    )  # fmt: skip
    assert lowered(m, latent).spec["kinds"][0]["kv_layer_bytes"] == 8 * (24 + 8) * 2


def test_a_pipelines_pace_is_one_stages() -> None:
    p = pool(devices=8, tensor=2, pipeline=4, hop_s=1e-6, hop_bytes_per_s=1e9)
    kind = lowered(machine(tier("hbm", 1 << 30, count=8), pools=(p,))).spec["kinds"][0]
    assert kind["stages"] == 4
    assert kind["tiers"][0]["capacity_bytes"] == (8 << 30) - DENSE.weight_bytes
    assert kind["tiers"][0]["read_ps_per_byte"] == pytest.approx(PS / 2e9)
    assert kind["ps_per_flop"][1] == pytest.approx(PS / 2e12)
    assert (kind["hop_ps"], kind["hop_ps_per_token"]) == pytest.approx((1e6, 64 * 2 * 1e3))


def test_two_all_reduces_a_layer() -> None:
    p = pool(
        devices=4, tensor=4, t_step_s=1e-3, t_layer_s=1e-5, allreduce_latency_s=1e-6, allreduce_bytes_per_s=1e9
    )  # fmt: skip
    kind = lowered(machine(tier("hbm", 1 << 30, count=4), pools=(p,))).spec["kinds"][0]
    assert kind["collective_ps"] == pytest.approx((4e6, 4e6))
    assert kind["collective_ps_per_token"] == pytest.approx((4 * 1.5 * 128 * 1e3,) * 2)
    assert kind["overhead_ps"] == (round(1.04e9), 0)


# ---- weights -------------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_streamed_layer_by_layer() -> None:
    each = (DENSE.weight_bytes - ends(DENSE)) // 4
    kv = LONGEST * DENSE.kv_bytes_per_token
    room = ends(DENSE) + 2 * each + each // 2 + kv
    m = machine(tier("hbm", room), tier("dram", 1 << 30), tier("ssd", 1 << 40))
    found = lowered(m)
    kind = found.spec["kinds"][0]
    attention, dense = 2 * DENSE.attention_parameters // 4, 2 * DENSE.ffn_parameters // 4
    assert kind["near_weights"] == pytest.approx((2 * DENSE.head_parameters + 2 * attention, 2 * dense), abs=200)
    assert kind["far_weights"][1] == pytest.approx([2 * attention, 2 * dense], abs=200)
    assert (kind["far_weights"][0], kind["far_weights"][2]) == ([0, 0], [0, 0])
    told = found.placement["gpu"]
    assert told["streamed_from"] == "dram"
    assert told["near_weight_bytes"] + told["streamed_weight_bytes"] == DENSE.weight_bytes
    assert kind["tiers"][0]["capacity_bytes"] >= kv
    assert kind["tiers"][1]["capacity_bytes"] == (1 << 30) - told["streamed_weight_bytes"]
    # the dram too small for them
    small = machine(tier("hbm", room), tier("dram", each), tier("ssd", 1 << 40))
    assert lowered(small).placement["gpu"]["streamed_from"] == "ssd"
    with pytest.raises(MachineError, match="exceed every tier"):
        lowered(machine(tier("hbm", room), tier("dram", each)))


def test_experts_are_streamed_last() -> None:
    expert_layer = 32 * MOE.expert_bytes
    # a tenth is kept for KV, which here is more than the longest request takes
    m = machine(tier("hbm", (MOE.weight_bytes - 2 * expert_layer) * 10 // 9 + 100), tier("dram", 1 << 30))
    kind = lowered(m, MOE).spec["kinds"][0]
    assert (kind["expert_near"], kind["expert_tier"]) == ((1, 3), 1)
    assert kind["far_weights"] == [[0, 0], [0, 0]]
    whole = lowered(machine(tier("hbm", 1 << 30)), MOE).spec["kinds"][0]
    assert whole["near_weights"] == kind["near_weights"]
    assert whole["expert_near"] == (3, 3)
    table = whole["expert_bytes"]
    dense = whole["near_weights"][1]
    for tokens in (0, 1, 5, 20):
        assert table[tokens] == max(MOE.ffn_read_bytes(tokens) - dense, 0)
    assert table[1] == 3 * 4 * MOE.expert_bytes
    assert table[-1] == 3 * expert_layer


def test_the_fullest_device_decides() -> None:
    m = machine(tier("hbm", 1 << 30, count=4), pools=(pool(devices=4, tensor=4, expert=True),))
    table = lowered(m, MOE).spec["kinds"][0]["expert_bytes"]
    rng = np.random.default_rng(1)
    for tokens in (2, 4, 8, 16):
        drawn = np.array([
            [np.bincount(np.unique([rng.choice(32, 4, replace=False) for _ in range(tokens)]) // 8, minlength=4).max()]
            for _ in range(400)
        ])  # fmt: skip
        wanted = 4 * drawn.mean() * MOE.expert_bytes * 3
        assert (
            wanted <= table[min(tokens, len(table) - 1)] <= 1.3 * wanted
        )  # sqrt(2 ln n) is above the mean of a maximum
    assert (np.diff(table) >= 0).all()
    assert table[-1] == 3 * 32 * MOE.expert_bytes


# ---- several pools -------------------------------------------------------------------------------------------------


def split_machine(**more: Any) -> Machine:
    given: dict[str, Any] = {
        "tiers": (tier("hbm-p", 1 << 30, count=2), tier("hbm-d", 1 << 30, count=4), tier("dram", 1 << 40)),
        "pools": (
            pool("prompts", devices=2, near="hbm-p", roles=("prefill",)),
            pool("answers", devices=4, tensor=2, near="hbm-d", roles=("attention", "ffn")),
        ),
        "links": (
            Link(name="nv", between=("answers", "prompts"), count=2, read_bytes_per_s=1e9, write_bytes_per_s=2e9,
                 latency_s=1e-6, overhead_s=1e-6),
            Link(name="p", between=("hbm-p", "dram"), read_bytes_per_s=1e9, write_bytes_per_s=1e9),
            Link(name="d", between=("hbm-d", "dram"), read_bytes_per_s=1e9, write_bytes_per_s=1e9),
        ),
    }  # fmt: skip
    return machine(**{**given, **more})


def test_prefill_on_a_pool_of_its_own() -> None:
    spec = lowered(split_machine()).spec
    assert [w["role"] for w in spec["workers"]] == [1, 1, 2, 2]
    assert [w["units"] for w in spec["workers"]] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert (spec["unit_pool"], spec["groups"], spec["backs"]) == ([0, 0, 1, 1], [[0, 1]], [2, 3])
    # towards the pool named first, which is where KV goes
    assert spec["transfer"]["write_ps_per_byte"] == pytest.approx(PS / 2e9)
    assert (spec["transfer"]["latency_ps"], spec["transfer"]["link"]) == (pytest.approx(2e6), 0)
    front, back = spec["kinds"]
    assert (front["ladder"], back["ladder"]) == ([0, 2], [1])
    assert front["tiers"][1]["capacity_bytes"] == 1 << 39
    assert front["link_index"] == [1]
    # with streamed KV both use the dram
    front, back = lowered(split_machine(), kv_overflow="stream").spec["kinds"]
    assert (back["ladder"], back["link_index"]) == ([1, 2], [2])
    assert front["tiers"][1]["capacity_bytes"] == back["tiers"][1]["capacity_bytes"] == 1 << 38
    assert front["tiers"][1]["read_ps_per_byte"] == pytest.approx(4 * PS / 1e9)
    loose = split_machine(links=split_machine().links[1:])
    with pytest.raises(MachineError, match="no link between the pools"):
        lowered(loose)


def test_feed_forward_on_a_pool_of_its_own() -> None:
    ffn = 2 * DENSE.ffn_parameters
    m = machine(
        tier("hbm", 1 << 30, count=4),
        tier("sram", ffn, 1e10, count=2),
        pools=(
            pool("gpu", devices=4, near="hbm", roles=("prefill", "attention"), t_layer_s=1e-6),
            pool("lpu", devices=2, near="sram", roles=("ffn",), t_layer_s=2e-6, peak_flops_per_s={"bf16": 4e12}),
        ),
        links=(Link(name="x", between=("gpu", "lpu"), read_bytes_per_s=1e9, write_bytes_per_s=1e9, latency_s=1e-6),),
    )
    found = lowered(m)
    spec, kind = found.spec, found.spec["kinds"][0]
    # two pairs: one device each way would do for the gpus, but the rack is of two
    assert [w["units"] for w in spec["workers"]] == [(0, 2), (1, 3)]
    assert spec["unit_pool"] == [0, 0, 1, 1]
    assert spec["workers"][0]["role"] == 0
    assert kind["near_weights"] == (2 * (DENSE.attention_parameters + DENSE.head_parameters), ffn)
    assert kind["overhead_ps"] == (4_000_000, 8_000_000)
    assert kind["ps_per_flop"] == pytest.approx((PS / 2e12, PS / 4e12))
    assert kind["hop_ps"] == pytest.approx(2 * 4 * 1e6)
    assert kind["hop_ps_per_token"] == pytest.approx(2 * 4 * 128 * 2e3)
    assert kind["ffn_near"]["read_ps_per_byte"] == pytest.approx(PS / 1e10)
    assert (kind["ladder"], kind["ffn_tier"]) == ([0], 1)
    assert found.more_capacity_bytes[1] == 2 * ffn
    small = m.with_(tiers=(m.tiers[0], dataclasses.replace(m.tiers[1], capacity_bytes=ffn // 4)))
    with pytest.raises(MachineError, match="feed-forward weights"):
        lowered(small)
    odd = m.with_(pools=(dataclasses.replace(m.pools[0], tensor=4), dataclasses.replace(m.pools[1], tensor=1)))
    with pytest.raises(MachineError, match="equally many"):
        lowered(odd)
    mixed = m.with_(
        pools=(
            dataclasses.replace(m.pools[0], roles=("attention",)),
            dataclasses.replace(m.pools[1], roles=("prefill", "ffn")),
        )
    )
    with pytest.raises(MachineError, match="prefill with ffn"):
        lowered(mixed)
    with pytest.raises(ConfigError, match="several pools"):
        keep_tiers(m, 1)


def test_populations_may_have_replicas_of_their_own() -> None:
    m = machine(tier("hbm", 1 << 30, count=4), pools=(pool(devices=4),))
    trace = RequestTrace.merge(requests(), requests(), names=("chat", "agents"))
    assert lowered(m, trace=trace).spec["groups"] == [[0, 1, 2, 3]] * 2
    assert lowered(m, trace=trace, partition={"chat": 1, "agents": 3}).spec["groups"] == [[0], [1, 2, 3]]


# ---- columns -------------------------------------------------------------------------------------------------------


def test_room_is_taken_in_engine_blocks() -> None:
    trace = requests(1, inputs=40, block_ids=[[1, 2, 3]])
    blocks = lowered(machine(tier("hbm", 1 << 30)), trace=trace, kv_block_tokens=16).spec["blocks"]
    each = DENSE.kv_bytes_per_token
    assert blocks["tokens"].tolist() == [16, 16, 8, 0]
    assert blocks["bytes"].tolist() == [16 * each, 16 * each, 16 * each, 0]
    assert (blocks["home"].tolist(), blocks["parent"].tolist()) == ([-1, -1, -1, 0], [-1, 0, 1, -1])
    # a trace's blocks that are smaller than an engine's share one
    blocks = lowered(machine(tier("hbm", 1 << 30)), trace=trace, kv_block_tokens=64).spec["blocks"]
    assert blocks["bytes"].tolist() == [16 * each, 16 * each, 8 * each, 0]


def test_data_live_once_in_the_outermost_memory() -> None:
    trace = requests(2, data=[[0, 1], [1]], data_bytes=[1000, 24])
    m = machine(tier("hbm", 1 << 30, count=2), tier("ssd", 10_000), pools=(pool(devices=2),))
    found = lowered(m, trace=trace)
    blocks, q = found.spec["blocks"], found.spec["requests"]
    kv = trace.unique_blocks
    assert blocks["bytes"][kv:].tolist() == [1000, 24, 0]
    assert blocks["home"][kv:].tolist() == [1, 1, 0]
    assert (blocks["kind"][kv:].tolist(), q["data"][1].tolist()) == ([3, 3, 0], [kv, kv + 1, kv + 1])
    share = (10_000 - 1024) // 2 + 1024
    assert found.spec["kinds"][0]["tiers"][1]["capacity_bytes"] == share
    assert 2 * share + found.more_capacity_bytes[1] == 10_000
    with pytest.raises(MachineError, match="data live there"):
        lowered(machine(tier("hbm", 1 << 30), tier("ssd", 1000)), trace=trace)


def test_state_checkpoints_are_those_of_the_expansion() -> None:
    model = Model(
        name="hybrid", layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, vocab=100, ffn=128, linear_layers=2,
        linear_key_heads=2, linear_value_heads=2, linear_key_dim=8, linear_value_dim=8,
    )  # fmt: skip
    trace = requests(3, inputs=40, block_ids=[[1, 2, 3], [1, 2, 9], [1, 2, 3]])
    spec = lowered(machine(tier("hbm", 1 << 30)), model, trace).spec
    q, blocks = spec["requests"], spec["blocks"]
    states = np.flatnonzero(blocks["kind"] == 2)
    at = {int(blocks["parent"][s]): int(s) for s in states}
    assert set(at) == {1, 2, 3}  # the shared prefix, and the ends of the two prompts
    assert q["state_lookup"].tolist() == [-1, at[1], at[2]]
    assert q["state_write"][0].tolist() == [0, 2, 4, 6]
    assert q["state_write"][1].tolist() == [at[1], at[2], at[1], at[3], at[1], at[2]]
    assert (blocks["bytes"][states] == model.state_bytes).all()
    assert spec["model"]["stateful"]


def test_who_goes_on_with_a_context() -> None:
    trace = requests(
        5, inputs=64, session=[0, 0, 0, 1, 0],
        block_ids=[[1, 2], [7], [1, 2, 3], [1, 2, 3, 4], [8]], after=[[], [0], [1], [], [1]],
    )  # fmt: skip
    # 0: row 2 begins with its blocks, though row 1 waits for it; 1: row 2 waits for it; 2: row 3 is another session's
    assert lowered(machine(tier("hbm", 1 << 30)), trace=trace).spec["requests"]["resumer"].tolist() == [
        2,
        2,
        -1,
        -1,
        -1,
    ]


def test_rules_for_pauses_are_lowered() -> None:
    m = machine(tier("hbm", 1 << 30), tier("dram", 1 << 40), tier("ssd", 1 << 50))
    none, think, tool = lowered(m, retention="tool=demote:10:ssd,think=timeout:2").spec["retention"]
    assert (none["pin_ps"], none["demote_ps"], none["prefetch"], none["drop"]) == (-1, -1, 0, False)
    assert (think["pin_ps"], think["demote_ps"]) == (2 * 10**12, -1)
    assert (tool["demote_ps"], tool["tier"]) == (10**13, 2)
    assert lowered(m, retention="pin").spec["retention"][2]["pin_ps"] == 1 << 62
    lead = lowered(m, retention="lead:5").spec["retention"][1]
    assert (lead["demote_ps"], lead["tier"], lead["prefetch"], lead["lead_ps"]) == (0, 1, 2, 5 * 10**12)
    with pytest.raises(UnknownNameError, match="ssd"):
        lowered(m, retention="demote:10:sdd")
    oracle = lowered(m, retention="foresight")
    assert oracle.spec["options"]["oracle"]
    assert {choice.name for own in oracle.policies for choice in own} == {"belady"}
    with pytest.raises(ConfigError, match="foresight"):
        lower_run(requests(), DENSE, m, Serving(retention=oracle_rule()), policy="lru")


def oracle_rule() -> Any:
    from kvsim.retention import Retention

    return Retention.load("foresight")


def test_each_worker_has_policies_of_its_own() -> None:
    m = machine(tier("hbm", 1 << 30, count=2, policy="leaf-lru"), tier("dram", 1 << 40), pools=(pool(devices=2),))
    found = lower_run(requests(), DENSE, m, Serving(), policy={"dram": "random"}, seed=5)
    assert [[choice.name for choice in own] for own in found.policies] == [["leaf-lru", "random"]] * 2
    assert [t["leaf_only"] for t in found.spec["kinds"][0]["tiers"]] == [True, False]

    class Mine:
        def attach(self, view: Any) -> None: ...
        def on_hit(self, block: int) -> None: ...
        def on_insert(self, block: int) -> None: ...
        def on_remove(self, block: int, reason: int) -> None: ...
        def victim(self, incoming: int) -> None: ...

    with pytest.raises(ConfigError, match="one object"):
        lower_run(requests(), DENSE, m, Serving(), policy={"dram": Mine()})


def test_options_become_codes() -> None:
    m = machine(tier("hbm", 1 << 30), cpu_slots=7)
    option = lowered(
        m, order="shortest", kv_overflow="stream", preemption="swap", load="overlap", load_deadline_s=0.5,
        draft_tokens=3, accepted_tokens=2.5, draft_s=1e-3, router="session-affine", concurrency=9,
    ).spec["options"]  # fmt: skip
    assert option == {
        "max_seqs": 256, "max_tokens": 8192, "chunked": True, "mixed": True, "order": 2, "overflow": 2, "swap": True,
        "load": 3, "deadline_ps": 5 * 10**11, "draft": 3, "accepted": 5 << 19, "draft_ps": 10**9, "router": 3,
        "cpu_slots": 7, "concurrency": 9, "oracle": False,
    }  # fmt: skip
    assert lowered(m, cpu_slots=2).spec["options"]["cpu_slots"] == 2
