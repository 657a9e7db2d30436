"""The replay of the real hour agrees with the curve's integers and the infinite cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvsim

MODEL = "llama-3.1-70b"
BLOCK = 512 * 327_680


@pytest.fixture(scope="module")
def conversation(shared: Path) -> kvsim.RequestTrace:
    path = shared / "data/mooncake/conversation_trace.jsonl"
    if not path.exists():
        pytest.skip(f"the Mooncake conversation trace is not at {path}")
    return kvsim.read_trace(path)


def one_tier(bytes_of_kv: int) -> kvsim.Machine:
    """One tier with this much room beside the weights."""
    full = kvsim.Machine.load("h100x8")
    weights = kvsim.Model.load(MODEL).weight_bytes
    near = kvsim.Tier(
        name="hbm",
        medium="HBM",
        capacity_bytes=bytes_of_kv + weights,
        read_bytes_per_s=2.4e13,
        write_bytes_per_s=2.4e13,
    )
    return full.with_(tiers=(near,), links=(), movements=(), reserve=0.0)


@pytest.mark.parametrize("policy", ["lru", "fifo", "arc", "s3-fifo", "belady"])
def test_one_tier_has_the_hits_of_the_curve(conversation: kvsim.RequestTrace, policy: str) -> None:
    room = 9139 * BLOCK
    found = kvsim.replay(conversation, machine=one_tier(room), model=MODEL, policy=policy, check=True)
    expected = kvsim.curve(conversation, policies=[policy], capacities=[room], unit="bytes", model=MODEL)
    tokens = kvsim.curve(conversation, policies=[policy], capacities=[room], unit="bytes", model=MODEL, weight="token")
    kv = np.asarray(found.arrays["hits"])[0, 0]
    assert kv[0, 0] == expected.hit_count[0, 0]
    assert kv[0, 1] == tokens.hit_count[0, 0]
    assert found.identity.exact


def test_one_tier_has_the_prefix_hits_of_the_curve(conversation: kvsim.RequestTrace) -> None:
    room = 9139 * BLOCK
    found = kvsim.replay(conversation, machine=one_tier(room), model=MODEL, policy="lru")
    expected = kvsim.curve(
        conversation, policies=["lru"], capacities=[room], unit="bytes", model=MODEL, hit_rule="prefix", weight="token"
    )
    assert np.asarray(found.arrays["hits"])[0, 0, 1, 1] == expected.hit_count[0, 0]


@pytest.mark.parametrize("usable", ["prefix", "block"])
def test_with_an_unbounded_last_tier_hits_sum_to_the_infinite_cache(
    conversation: kvsim.RequestTrace, usable: str
) -> None:
    machine = kvsim.Machine.load("h100x8").set("tier.ssd.capacity", "unbounded")
    found = kvsim.replay(conversation, machine=machine, model=MODEL, usable=usable, check=True)
    kv = np.asarray(found.arrays["hits"])[:, 0]
    assert kv[:, 0, 0].sum() == kv[:, 1, 0].sum() == 288_500 - 182_790
    assert found.identity.exact
    assert (kv[:, 0, 0] > 0).all()  # every tier of the ladder answers some


def test_the_hour_on_eight_h100(conversation: kvsim.RequestTrace) -> None:
    found = kvsim.replay(conversation, machine="h100x8", model=MODEL, check=True)
    parts = found.identity
    assert parts.exact
    assert parts.wall_ps >= int(conversation.arrival_ps[-1])
    assert parts.compute_ps > 0
    assert parts.stalls_ps > 0
    assert np.asarray(found.arrays["stall_ps"]).sum() == parts.stalls_ps
    looked = np.asarray(found.arrays["lookups"])[0]
    assert looked[0] == 288_500
    assert looked[1] == int(conversation.input_tokens.sum())


def test_a_split_hour_is_the_hour(conversation: kvsim.RequestTrace) -> None:
    """Chunks of any length give the same result."""
    model = kvsim.Model.load(MODEL)
    first = conversation.first(3000)
    whole = kvsim.replay(first.accesses(model), machine="h100x8", model=model)
    small = kvsim.replay(first.accesses(model, chunk_steps=17), machine="h100x8", model=model)
    joined = kvsim.replay(first.accesses(model).whole(), machine="h100x8", model=model)
    for other in (small, joined):
        assert other.counters == whole.counters
        for name, column in whole.arrays.items():
            assert np.array_equal(other.arrays[name], column), name


@pytest.mark.parametrize("policy", ["lru", "fifo", "belady"])
def test_known_outputs_are_written_as_the_curve_writes_them(policy: str) -> None:
    """Agents that run one after the other (one lane): replay and curve insert the same blocks in the same order."""
    agents = kvsim.generate("coding-agent", sessions=6, seed=3)
    model = kvsim.Model.load("llama-3.1-8b")
    room = 3_000 * agents.block_tokens * model.kv_bytes_per_token
    machine = one_tier(0).with_(
        tiers=(
            kvsim.Tier(
                name="hbm",
                medium="HBM",
                capacity_bytes=room + model.weight_bytes,
                read_bytes_per_s=1e13,
                write_bytes_per_s=1e13,
            ),
        )
    )
    found = kvsim.replay(agents, machine=machine, model=model, policy=policy, lanes=1)
    expected = kvsim.curve(agents, policies=[policy], capacities=[room], unit="bytes", model=model)
    assert np.asarray(found.arrays["hits"])[0, 0, 0, 0] == expected.hit_count[0, 0]
