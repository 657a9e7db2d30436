"""Closed forms of the closed loop: whole runs whose every picosecond can be worked out by hand.

Unless a test says otherwise there is one tier of 1 ps a byte; a token takes 10 FLOPs of attention and 100 of
feed-forward at 1 ps each, and 20 more where it makes logits; a step reads 100 + 300 bytes of weights; a token's KV has
2 bytes, of which a step reads 1 for each token of a context and writes 2 for each new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from reference.run_adapter import Sampled, answer
from reference.run_worlds import RunWorld, columns, specified

from kvsim_core import Engine, registered

ONE = 1 << 20
COMPUTE, RECOMPUTE, OVERHEAD, COLLECTIVES, STALL, BUBBLE, NO_REQUEST, IDLE_TOOL, IDLE_THINK = range(9)
NONE, THINK, TOOL = range(3)
Run = Callable[[RunWorld], dict[str, Any]]

PLAN = {"pin_ps": -1, "demote_ps": -1, "tier": 1, "drop": False, "prefetch": 0, "lead_ps": 0}
RULE = {"promote_after": 1, "exclusive": False, "eviction": 0, "kinds": 15}
OPTIONS = {
    "max_seqs": 64, "max_tokens": 1000, "chunked": True, "mixed": True, "order": 0, "overflow": 1, "swap": False,
    "load": 0, "deadline_ps": 0, "draft": 0, "accepted": ONE, "draft_ps": 0, "router": 0, "cpu_slots": 0,
    "concurrency": 0, "oracle": False,
}  # fmt: skip
MODEL = {
    "flops": (10.0, 100.0), "head_flops": 20.0, "pair_decode": 0.0, "pair_prefill": 0.0, "global_layers": 1,
    "sparse_layers": 0, "local_layers": 0, "sparse": 0, "window": 0, "stateful": False,
}  # fmt: skip


def channel(ps: float, **more: Any) -> dict[str, Any]:
    return {"read_ps_per_byte": ps, "write_ps_per_byte": ps, "both_ps_per_byte": 0.0, "shared": False, **more}


def tier(capacity: int = 10**9, ps: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        **channel(ps, shared=True), "capacity_bytes": capacity, "fragment_bytes": 0, "path": 0, "leaf_only": False,
        "touch_all": False, "latency_ps": 0.0, "overhead_ps": 0.0, "norm": 1.0, **more,
    }  # fmt: skip


def kind(*tiers: dict[str, Any], first: int = 0, **more: Any) -> dict[str, Any]:
    """Return a kind of worker; its tiers are the machine's from `first` on."""
    tiers = tiers or (tier(),)
    return {
        "ladder": list(range(first, first + len(tiers))), "tiers": list(tiers), "links": [],
        "movements": [RULE] * (len(tiers) - 1), "stages": 1, "microbatches": 1, "ps_per_flop": (1.0, 1.0),
        "overhead_ps": (0, 0), "collective_ps": (0.0, 0.0), "collective_ps_per_token": (0.0, 0.0), "hop_ps": 0.0,
        "hop_ps_per_token": 0.0, "near_weights": (100, 300), "far_weights": [(0, 0)] * len(tiers), "expert_bytes": [0],
        "expert_near": (1, 1), "expert_tier": 0, "token_row_bytes": 0, "block_tokens": 4, "kv_token_bytes": 2,
        "kv_write_bytes": 2, "kv_layer_bytes": 1, "window_token_bytes": 0, "state_bytes": 0, "ffn_near": None,
        "ffn_tier": 0, **more,
    }  # fmt: skip


def request(inputs: int, outputs: int, **more: Any) -> dict[str, Any]:
    """Return a request; `chain` are its blocks of 4 tokens, each a name of its place in the world's table."""
    return {"input_tokens": inputs, "output_tokens": outputs, **more}


def world(
    asked: Sequence[dict[str, Any]], *kinds: dict[str, Any], chains: Sequence[int] = (), data: Sequence[int] = (),
    retention: Any = (PLAN, PLAN, PLAN), policy: str = "lru", model: Any = MODEL, **more: Any,
) -> RunWorld:  # fmt: skip
    """Return a world of one worker, or of those in `more["workers"]`.

    `chains` are blocks of 4 tokens and 8 bytes, each given by its parent; `data` sizes of pieces that live in the last
    tier. Requests name blocks by `last`, pieces by `data`.
    """
    kinds = kinds or (kind(),)
    home = len(kinds[0]["tiers"]) - 1
    position = [0] * len(chains)
    for b, parent in enumerate(chains):
        position[b] = position[parent] + 1 if parent >= 0 else 0
    kv, pieces = len(chains), len(data)
    blocks = {
        "bytes": [8] * kv + list(data) + [0],
        "tokens": [4] * kv + [0] * (pieces + 1),
        "kind": [0] * kv + [3] * pieces + [0],
        "operation": [0] * (kv + pieces + 1),
        "parent": [*chains, *[-1] * (pieces + 1)],
        "position": position + [0] * (pieces + 1),
        "home": [-1] * kv + [home] * pieces + [0],
        "recompute_flops": [(0.0, 0.0)] * (kv + pieces + 1),
    }
    plain = {
        "arrival_ps": 0, "delay_ps": 0, "last": -1, "output": -1, "session": None, "priority": 0, "population": 0,
        "pause": 0, "after": [], "data": [],
    }  # fmt: skip
    rows = [{**plain, **r} for r in asked]
    q: dict[str, Any] = {
        name: [r[name] for r in rows]
        for name in ("arrival_ps", "input_tokens", "output_tokens", "delay_ps", "priority", "population", "pause",
                     "after")
    }  # fmt: skip
    q["last_block"], q["output_block"] = [r["last"] for r in rows], [r["output"] for r in rows]
    q["session"] = [i if r["session"] is None else r["session"] for i, r in enumerate(rows)]
    q["data"] = [[kv + piece for piece in r["data"]] for r in rows]
    q["state_lookup"], q["state_write"], q["state_output"] = [-1] * len(rows), [[] for _ in rows], [[] for _ in rows]
    q["resumer"] = [next((i for i, r in enumerate(rows) if row in r["after"]), -1) for row in range(len(rows))]
    spec = {
        "tiers": max(max(k["ladder"]) for k in kinds) + 1,
        "unit_pool": [0],
        "workers": [{"kind": 0, "role": 0, "units": (0, 0)}],
        "groups": [[0]],
        "backs": [],
        "transfer": None,
        "kinds": list(kinds),
        "model": dict(model),
        "blocks": blocks,
        "requests": q,
        "retention": [dict(plan) for plan in retention],
    }
    spec |= {key: more.pop(key) for key in [*more] if key in spec}
    spec["tiers"] = max(spec["tiers"], *(k["ffn_tier"] + 1 for k in kinds))
    spec["options"] = {**OPTIONS, **more}
    assert set(more) <= {*OPTIONS, "bin_ps"}, "an option of that name does not exist"
    return RunWorld(spec, [[policy] * len(kinds[w["kind"]]["tiers"]) for w in spec["workers"]])


def core(of: RunWorld) -> dict[str, Any]:
    engine = Engine(columns(of.spec), [[registered()[name]() for name in names] for names in of.policies])
    while not engine.run():
        pass
    engine.check()
    return engine.result()


def specification(of: RunWorld) -> dict[str, Any]:
    engine: Any = specified(of, Sampled)
    engine.run()
    return answer(engine)


@pytest.fixture(params=["core", "specification"])
def run(request: pytest.FixtureRequest) -> Run:
    """The core's loop, then the specification's."""
    return {"core": core, "specification": specification}[request.param]


def parts(found: dict[str, Any], unit: int = 0) -> dict[int, int]:
    """What a unit's time went to, where it is not 0."""
    return {i: int(ps) for i, ps in enumerate(found["parts_ps"][unit]) if ps}


def fast(*more: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A kind of worker whose nearest memory takes no time."""
    return kind(tier(ps=0.0), *more, **changes)


# ---- one tier ------------------------------------------------------------------------------------------------------


def test_one_request_on_one_tier(run: Run) -> None:
    of = kind(overhead_ps=(5, 0), collective_ps=(1.0, 2.0), collective_ps_per_token=(1.0, 0.0))
    found = run(world([request(8, 4, arrival_ps=1000)], of, max_tokens=6))
    # 6 tokens: attention 60 FLOPs, 100 + 12 bytes; ffn 600 FLOPs, 300 bytes; 5 overhead; 1 + 6 + 2 collectives
    first = 112 + 600 + 5 + 9
    # 2 tokens behind 6: 20 + 20 FLOPs, 100 + 6 + 4 bytes; 200 FLOPs, 300 bytes; 5; 1 + 2 + 2
    second = 110 + 300 + 5 + 5
    # one token each: 30 FLOPs, 100 + (9, 10, 11) + 2 bytes; 100 FLOPs, 300 bytes; 5; 1 + 1 + 2
    decode = [111 + 300 + 9, 112 + 300 + 9, 113 + 300 + 9]
    assert found["ready_ps"].tolist() == found["admitted_ps"].tolist() == [1000]
    assert found["first_token_ps"].tolist() == [1000 + first + second]
    assert found["done_ps"].tolist() == [1000 + first + second + sum(decode)]
    assert found["makespan_ps"] == found["done_ps"][0]
    assert (found["prefill_ps"][0], found["decode_ps"][0], found["queued_ps"][0]) == (1146, 1263, 0)
    assert parts(found) == {
        COMPUTE: 660 + 240 + 3 * 130, OVERHEAD: 5 * 5, COLLECTIVES: 9 + 5 + 3 * 4,
        STALL: 52 + (70 + 100) + (81 + 82 + 83) + 3 * 200, NO_REQUEST: 1000,
    }  # fmt: skip
    assert found["stall_ps"][0, 0, :, 2].sum() == 1068  # all of it for want of bandwidth
    assert found["read_bytes"][0].tolist() == [0 + 6 + 9 + 10 + 11, 5 * 400, 0, 0]
    assert found["write_bytes"][0].tolist() == [2 * (8 + 3), 0, 0, 0]
    assert found["steps"].tolist() == [5]


def test_attention_among_the_tokens_of_a_prompt(run: Run) -> None:
    """Pairs: c tokens behind n attend to c (n + c/2) pairs, a decoded one to its context less half of itself."""
    model = {**MODEL, "flops": (0.0, 0.0), "head_flops": 0.0, "pair_prefill": 2.0, "pair_decode": 4.0}
    found = run(world([request(10, 3)], fast(), model=model, max_tokens=6))
    assert found["first_token_ps"].tolist() == [2 * (6 * 3) + 2 * (4 * 6 + 4 * 2)]
    assert found["decode_ps"].tolist() == [4 * 11 - 2 + 4 * 12 - 2]
    # a window of 4: the first 4 as above, then 4 each
    windowed = {**model, "global_layers": 0, "local_layers": 1, "window": 4}
    found = run(world([request(10, 3)], fast(), model=windowed))
    assert found["first_token_ps"].tolist() == [2 * (4 * 2 + 6 * 4)]
    assert found["decode_ps"].tolist() == [2 * 4 * 4]


def test_latency_overhead_and_norm_of_the_nearest_tier(run: Run) -> None:
    """Each of the two operations of a step is one transfer of ceil(bytes / 64) fragments."""
    near = tier(latency_ps=7.0, overhead_ps=3.0, fragment_bytes=64)
    found = run(world([request(4, 2)], kind(near, ps_per_flop=(0.0, 0.0))))
    # prefill 108 and 300 bytes: 2 and 5 fragments; decode 107 and 300
    assert found["first_token_ps"].tolist() == [(7 + 2 * 3 + 108) + (7 + 5 * 3 + 300)]
    assert found["decode_ps"].tolist() == [(7 + 2 * 3 + 107) + (7 + 5 * 3 + 300)]
    normed = run(world([request(4, 1)], kind(tier(latency_ps=81.0, norm=2.0), ps_per_flop=(0.0, 0.0))))
    assert normed["first_token_ps"].tolist() == [135 + round((81**2 + 300**2) ** 0.5)]


def test_a_saturated_batch(run: Run) -> None:
    found = run(world([request(4, 11) for _ in range(4)]))
    # 16 tokens: 160 + 80 FLOPs over 132 bytes, 1600 over 300
    assert found["first_token_ps"].tolist() == [1840] * 4
    # contexts of 5 … 14: 120 FLOPs under 100 + 4 c + 8 bytes, 400 over 300
    steps = [108 + 4 * c + 400 for c in range(5, 15)]
    assert found["done_ps"].tolist() == [1840 + sum(steps)] * 4
    assert parts(found) == {COMPUTE: 1840 + 10 * (120 + 400), STALL: sum(steps) - 10 * 520}
    # one after another, a step takes 102 + c + 300, of which the batch shares 100 + 300 - 300
    alone = run(world([request(4, 11) for _ in range(4)], max_seqs=1))
    each = 108 + 400 + sum(102 + c + 300 for c in range(5, 15))
    assert alone["done_ps"].tolist() == [each, 2 * each, 3 * each, 4 * each]
    assert alone["queued_ps"].tolist() == [0, each, 2 * each, 3 * each]


def test_littles_law() -> None:
    """Mean number in the system = rate x mean time in it: the timeline's samples of 1 ps against the requests' view.

    Of the last bin the timeline tells what is left at its end: nothing.
    """
    asked = [request(4 + i % 3, 1 + i % 4, arrival_ps=37 * i) for i in range(40)]
    small = fast(ps_per_flop=(0.0, 0.1), overhead_ps=(3, 0))
    found = core(world(asked, small, max_seqs=3, bin_ps=1))
    assert found["bin_ps"] == 1
    counts = sum(found[f"bins/{name}"] for name in ("running", "waiting", "loading"))
    last = found["makespan_ps"] - 1
    assert counts.sum() == (np.minimum(found["done_ps"], last) - found["ready_ps"]).sum()
    running = (np.minimum(found["done_ps"], last) - found["admitted_ps"]).sum()
    assert found["bins/running"].sum() == running
    assert found["bins/running"].max() == 3
    assert found["bins/waiting"].max() > 3


# ---- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_a_pipeline_of_four_stages(run: Run, batch: int) -> None:
    """A microbatch takes 130 ps a token through all stages; m = min(B, 4) are under way, so m/4 of a device is busy."""
    m = min(batch, 4)
    found = run(world([request(0, 5) for _ in range(batch)], fast(stages=4, hop_ps=7.0)))
    # the first token of an empty prompt is made by no step; then 4 steps
    microbatch = batch // m * 130
    assert found["done_ps"].tolist() == [found["first_token_ps"][0] + 4 * (microbatch + 4 * 7)] * batch
    work = 4 * (microbatch * m // 4)
    assert parts(found)[COMPUTE] == work
    assert parts(found)[BUBBLE] == found["makespan_ps"] - work
    # weights are read by every microbatch, KV once
    kv = sum(batch * (c + 1) for c in range(4))
    assert found["read_bytes"][0].tolist() == [kv, 4 * m * 400, 0, 0]


def prefill_decode(asked: Sequence[dict[str, Any]], **options: Any) -> RunWorld:
    """Prompts on pool 0 over tier 0, answers on pool 1 over tier 1; 3 ps a byte and 50 ps in between."""
    return world(
        asked, kind(), kind(first=1), unit_pool=[0, 1], groups=[[0]], backs=[1],
        workers=[{"kind": 0, "role": 1, "units": (0, 0)}, {"kind": 1, "role": 2, "units": (1, 1)}],
        transfer={**channel(3.0), "latency_ps": 50.0}, **options,
    )  # fmt: skip


def test_prefill_and_decode_on_pools_of_their_own(run: Run) -> None:
    found = run(prefill_decode([request(8, 4)]))
    # 8 tokens: 80 + 20 FLOPs, 116 bytes; 800 FLOPs, 300 bytes
    assert found["first_token_ps"].tolist() == [116 + 800]
    assert found["transfer_ps"].tolist() == [50 + 3 * 16]
    # the 16 bytes land in the decode pool's memory with its first step
    steps = [100 + 9 + 2 + 16 + 300, 100 + 10 + 2 + 300, 100 + 11 + 2 + 300]
    assert found["decode_ps"].tolist() == [sum(steps)]
    done = 916 + 98 + sum(steps)
    assert found["done_ps"].tolist() == [done]
    assert parts(found, 0) == {COMPUTE: 100 + 800, STALL: 16, NO_REQUEST: done - 916}
    assert parts(found, 1) == {COMPUTE: 3 * 130, STALL: sum(steps) - 390, BUBBLE: 916 + 98}


def test_decoding_does_not_wait_for_prefills_elsewhere(run: Run) -> None:
    asked = [request(8, 20), request(200, 1, arrival_ps=1500), request(40, 1, arrival_ps=1600)]
    alone, busy = run(prefill_decode(asked[:1])), run(prefill_decode(asked))
    assert alone["done_ps"][0] == busy["done_ps"][0]
    assert busy["first_token_ps"][1] > busy["first_token_ps"][0] > 0
    together = run(world(asked))
    assert together["done_ps"][0] > run(world(asked[:1]))["done_ps"][0]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_attention_and_feed_forward_on_pools_of_their_own(run: Run, microbatches: int) -> None:
    """Four sequences: 40 ps of attention, 120 of feed-forward, 6 of hops; in halves, the one hides behind the other."""
    model = {**MODEL, "flops": (10.0, 30.0), "head_flops": 0.0}
    of = kind(
        tier(ps=0.0), microbatches=microbatches, hop_ps=6.0, ffn_near=tier(ps=0.0), ffn_tier=1
    )  # fmt: skip
    found = run(
        world(
            [request(0, 6) for _ in range(4)], of, unit_pool=[0, 1], model=model,
            workers=[{"kind": 0, "role": 0, "units": (0, 1)}],
        )
    )  # fmt: skip
    step = 40 + 120 + 6 if microbatches == 1 else max(2 * 20, 2 * 60, 20 + 60 + 6)
    assert found["makespan_ps"] == 5 * step
    bubbles = [step - 40, step - 120]
    for unit, busy in ((0, 40), (1, 120)):
        assert parts(found, unit) == {part: ps for part, ps in ((COMPUTE, 5 * busy), (BUBBLE, 5 * bubbles[unit])) if ps}
    # each pool reads its own weights, once for each part of the batch
    assert found["read_bytes"][0, 1] == 5 * microbatches * 100
    assert found["read_bytes"][1, 1] == 5 * microbatches * 300


def test_replicas_take_turns(run: Run) -> None:
    two = [{"kind": 0, "role": 0, "units": (i, i)} for i in range(2)]
    found = run(world([request(4, 3) for _ in range(5)], unit_pool=[0, 0], workers=two, groups=[[0, 1]]))
    assert found["unit"].tolist() == [0, 1, 0, 1, 0]
    # 3 and 2 sequences: prefill 4 tokens each, then contexts of 5 and 6
    for unit, b in ((0, 3), (1, 2)):
        prefill = max(60 * b, 100 + 8 * b) + 400 * b
        decode = sum(max(30 * b, 100 + c * b + 2 * b) + max(100 * b, 300) for c in (5, 6))
        assert set(found["done_ps"][found["unit"] == unit].tolist()) == {prefill + decode}


# ---- farther tiers -------------------------------------------------------------------------------------------------


def test_a_queue_on_one_link(run: Run) -> None:
    """Two loads asked for at once: the second waits for exactly the bytes of the first over the link's bandwidth."""
    far = tier(ps=5.0, latency_ps=20.0, path=1)
    of = fast(far, links=[channel(7.0)])
    found = run(world([request(0, 2, data=[0]), request(0, 2, data=[1])], of, data=[100, 60]))
    assert found["loading_ps"][:, 1].tolist() == [7 * 100 + 20, 7 * 100 + 7 * 60 + 20]
    assert found["link_up_bytes"].tolist() == [160]
    assert found["link_busy_ps"].tolist() == [[7 * 160, 0]]
    assert found["tier_busy_ps"][1].tolist() == [5 * 160, 0]
    # the worker waits for the first, runs it for one step, and waits again for what is left of the second
    step = 130
    assert parts(found) == {COMPUTE: 2 * step, STALL: 720 + (1140 - 720 - step)}
    latency, bandwidth, queue = (int(found["stall_ps"][0, 1, 3, c]) for c in (0, 2, 3))
    assert latency + bandwidth + queue == parts(found)[STALL]
    assert abs(queue - 290 * 700 / 1140) <= 1  # the second load: 20 latency, 420 of its own, 700 in the queue
    # alone, each takes its own time
    for piece, size in enumerate((100, 60)):
        alone = run(world([request(0, 2, data=[piece])], of, data=[100, 60]))
        assert alone["loading_ps"][0, 1] == 7 * size + 20


def returned(*more: dict[str, Any], place: int = 1, tail: int = 1, **options: Any) -> RunWorld:
    """A prompt of two blocks, moved down to a tier in a pause, and asked for again with `tail` more tokens."""
    plan = {**PLAN, "demote_ps": 0, "tier": place}
    rules = [{**RULE, "exclusive": True}] * len(more)
    return world(
        [request(8, 1, last=1), request(8 + tail, 1, last=1, after=[0], delay_ps=100_000, pause=THINK, session=0)],
        fast(*more, movements=rules), chains=[-1, 0], retention=(PLAN, plan, PLAN), **options,
    )  # fmt: skip


@pytest.mark.parametrize(("ps", "latency", "loads"), [
    (54.0, 0.0, True), (55.0, 0.0, True), (56.0, 0.0, False), (48.0, 100.0, True), (48.75, 100.0, True),
    (49.0, 100.0, False),
])  # fmt: skip
def test_load_or_recompute(run: Run, ps: float, latency: float, loads: bool) -> None:
    """Two blocks of 8 bytes, or their 8 tokens of 110 FLOPs each: what is sooner there; of equals the load."""
    found = run(returned(tier(ps=ps, latency_ps=latency)))
    # the last token makes logits: 130
    first = 16 * ps + latency + 130 if loads else 8 * 110 + 130
    assert found["first_token_ps"][1] - found["ready_ps"][1] == first
    assert found["loading_ps"][1, 1] == (16 * ps + latency if loads else 0)
    assert found["hit_tokens"].tolist() == [0, 8 if loads else 0]
    assert found["loaded_tokens"].tolist() == [[0, 0], [0, 8 if loads else 0]]
    assert found["recomputed_tokens"].tolist() == [0, 0 if loads else 8]
    assert found["recompute_ps"][1] == (0 if loads else 1010 * 8 // 9)
    # at the break-even point both take the same time
    if ps == 55.0 or ps == 48.75:
        assert first == 8 * 110 + 130
        never = run(returned(tier(ps=ps, latency_ps=latency), load=2))
        assert never["first_token_ps"].tolist() == found["first_token_ps"].tolist()


def test_load_or_recompute_counts_what_a_step_takes(run: Run) -> None:
    """The estimate of a prefill is that of its steps, weights read and all.

    Here 8 tokens are 880 ps of arithmetic, but the last one, which is computed in any case, takes a step of 410: to
    load the others would have to take less than the difference.
    """
    found = {}
    for ps in (54.0, 56.0):
        of = returned(tier(ps=ps))
        of.spec["kinds"][0]["tiers"][0] |= channel(1.0, shared=True)
        got = run(of)
        found[ps] = int(got["first_token_ps"][1] - got["ready_ps"][1])
    # the 16 bytes near that have left for the far tier are read; all are computed: 118 bytes over 110 FLOPs, and 900
    assert found == {54.0: (16 + 118) + 900, 56.0: (16 + 118) + 900}


def test_a_deadline_for_loads(run: Run) -> None:
    for deadline, loaded in ((799, 0), (800, 8)):
        found = run(returned(tier(ps=50.0), deadline_ps=deadline))
        assert found["hit_tokens"][1] == loaded


def test_the_front_computes_while_the_tail_loads(run: Run) -> None:
    """A block loads in 440 as it computes: one of each, then the token behind."""
    found = run(returned(tier(ps=55.0), load=3))
    assert found["first_token_ps"][1] - found["ready_ps"][1] == 440 + 130
    assert (found["hit_tokens"][1], found["computed_tokens"][1]) == (4, 5)


def test_a_full_hit_computes_its_last_block(run: Run) -> None:
    found = run(returned(tier(ps=1.0), tail=0))
    assert found["hit_tokens"].tolist() == [0, 4]
    assert found["first_token_ps"][1] - found["ready_ps"][1] == 8 + 4 * 110 + 20


def test_an_ssd_behind_dram(run: Run) -> None:
    dram, ssd = tier(ps=2.0, latency_ps=10.0), tier(ps=9.0, latency_ps=300.0)
    found = run(returned(dram, ssd, place=2))
    assert found["loading_ps"][1].tolist() == [0, 0, 16 * 9 + 300]
    assert found["hits"][2, 0, 0].tolist() == [2, 8, 16]
    assert found["writeback_write_bytes"][:, 0].tolist() == [0, 16, 16]  # down by way of DRAM
    found = run(returned(dram, ssd, place=1))
    assert found["loading_ps"][1].tolist() == [0, 16 * 2 + 10, 0]
    # what is far from both is computed: 8 tokens
    found = run(returned(dram, tier(ps=90.0), place=2))
    assert found["hit_tokens"][1] == 0


def test_streamed_weights(run: Run) -> None:
    """300 bytes at 3 ps and 50 of latency, behind a step that takes less."""
    of = kind(tier(), tier(ps=3.0, latency_ps=50.0), far_weights=[(0, 0), (60, 240)])
    found = run(world([request(8, 4)], of))
    # prefill: 116 + 800 under 950; decode 102 + (9, 10, 11) + 300
    assert found["first_token_ps"].tolist() == [950]
    assert found["done_ps"].tolist() == [4 * 950]
    waits = [950 - 916, *(950 - 402 - c for c in (9, 10, 11))]
    assert found["stall_ps"][0, 1, 1].sum() == sum(waits)
    assert found["stall_ps"][0, 1, 1, 2] == pytest.approx(sum(waits) * 900 / 950, abs=4)
    assert found["read_bytes"][1, 1] == 4 * 300


def test_streamed_kv(run: Run) -> None:
    """KV that does not fit near is read by every step from where it lies: a prompt of 16 bytes; the next 8 lie near."""
    of = kind(tier(8), tier(ps=100.0))
    found = run(world([request(8, 3)], of, overflow=2))
    assert found["status"].tolist() == [0]
    assert found["loading_ps"].sum() == 0
    assert found["first_token_ps"].tolist() == [1600]
    assert found["makespan_ps"] == 3 * 1600
    # prefill: 116 + 800; of contexts of 9 and 10 rows none is left for near beside the 16 bytes
    assert parts(found)[STALL] - found["stall_ps"][0, 0].sum() == 3 * 1600 - (916 + 402 + 402)
    assert found["read_bytes"][:, 0].tolist() == [0, 3 * 16]


# ---- time --------------------------------------------------------------------------------------------------------


def test_speculation(run: Run) -> None:
    """2.5 of 4 tokens a step on average: 2, 3, 2, 3; each step checks four and pays the draft."""
    for outputs, steps in ((11, 4), (12, 5), (3, 1), (4, 2)):
        found = run(world([request(4, outputs)], fast(), draft=3, accepted=5 * ONE // 2, draft_ps=17))
        assert found["steps"].tolist() == [1 + steps]
        prefill = 4 * 110 + 20 + 17
        assert found["first_token_ps"].tolist() == [prefill]
        assert found["done_ps"].tolist() == [prefill + steps * (4 * 130 + 17)]
        assert found["output_tokens"].tolist() == [outputs]


@pytest.mark.parametrize("slots", [0, 1, 3, 7])
def test_tools_on_cpu_slots(run: Run, slots: int) -> None:
    """n equal tools on k slots take ceil(n/k) times as long as one."""
    n, tool = 7, 1000
    roots = [request(0, 1, session=i) for i in range(n)]
    calls = [request(0, 1, session=i, after=[i], delay_ps=tool, pause=TOOL) for i in range(n)]
    found = run(world(roots + calls, fast(), cpu_slots=slots))
    assert found["makespan_ps"] == -(-n // (slots or n)) * tool
    waits = [j // (slots or n) * tool for j in range(n)]
    assert found["tool_wait_ps"][n:].tolist() == waits
    assert found["tool_ps"][n:].tolist() == [tool] * n
    assert (found["ready_ps"][n:] == np.array(waits) + tool).all()
    assert parts(found) == {IDLE_TOOL: found["makespan_ps"]}


def test_thinking_is_idle_time_of_its_own(run: Run) -> None:
    found = run(world([request(4, 1), request(4, 1, session=0, after=[0], delay_ps=900, pause=THINK)], fast()))
    assert parts(found) == {COMPUTE: 2 * 460, IDLE_THINK: 900}
    assert found["think_ps"].tolist() == [0, 900]


@pytest.mark.parametrize(("sessions", "at_once"), [(6, 2), (7, 3), (5, 5), (4, 9)])
def test_fixed_concurrency(run: Run, sessions: int, at_once: int) -> None:
    """A step takes 400 whatever the batch: sessions of 5 tokens run in ceil(n/c) rounds."""
    of = kind(ps_per_flop=(0.0, 0.0), kv_layer_bytes=0, kv_write_bytes=0)
    found = run(world([request(4, 5, arrival_ps=77) for _ in range(sessions)], of, concurrency=at_once))
    assert found["makespan_ps"] == -(-sessions // at_once) * 5 * 400
    assert found["ready_ps"].tolist() == [i // at_once * 2000 for i in range(sessions)]


def test_preemption_by_swap(run: Run) -> None:
    """Two sequences of 4 + 8 tokens in room for 20, 5 engine blocks of 8 bytes.

    Both ask for a third block at their 9th token: the first gets it, the second goes out with its 16 bytes. These fit
    beside the first, so it comes back at once, asks for the third again, and goes again.
    """
    of = fast(tier(ps=1.0))
    of["tiers"][0]["capacity_bytes"] = 40
    found = run(world([request(4, 8), request(4, 8)], of, swap=True))
    assert found["preemptions"].tolist() == [0, 2]
    out = found["swapped_bytes"]
    assert out == 2 * 16
    assert found["read_bytes"][1, 0] + found["writeback_read_bytes"][1, 0] == out
    assert found["write_bytes"][1, 0] + found["writeback_write_bytes"][1, 0] == out
    assert found["tier_busy_ps"][1].tolist() == [out, out]
    assert found["computed_tokens"].tolist() == [4, 4]
    assert found["output_tokens"].tolist() == [8, 8]
    assert found["recomputed_tokens"].sum() == 0
    assert found["private_bytes"].tolist() == [0, 0]
    # by recomputation instead: all that was there is computed again
    again = run(world([request(4, 8), request(4, 8)], of))
    assert again["swapped_bytes"] == 0
    assert again["recomputed_tokens"].tolist() == [0, again["computed_tokens"][1] - 4]
    assert again["computed_tokens"][1] > 4 + 4


def test_waiting_for_room_instead(run: Run) -> None:
    of = kind()
    of["tiers"][0]["capacity_bytes"] = 40
    found = run(world([request(4, 8), request(4, 8)], of, overflow=0))
    assert found["preemptions"].sum() == 0
    assert found["queued_ps"].tolist() == [0, found["done_ps"][0]]
    assert found["done_ps"][1] == 2 * found["done_ps"][0]
