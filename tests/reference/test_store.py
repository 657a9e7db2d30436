"""The store by itself, a step at a time: pins, prefetches and demotions too, as a pause or a scheduler asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.worlds import World, replayer, specified, worlds

VERBS = ("lookup", "read", "write", "free", "context", "pin", "unpin", "prefetch", "demote")


@given(world=worlds(max_steps=0), data=st.data())
def test_the_store_equals_the_specification(world: World, data: st.DataObject) -> None:
    running, expected = replayer(world), specified(world)
    n, tiers = len(world.blocks["bytes"]), len(world.tiers)
    for _ in range(data.draw(st.integers(0, 40))):
        verb = data.draw(st.sampled_from(VERBS))
        b, t = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, tiers - 1))
        running.store.act(verb, b, t)
        expected.begin_step()
        if verb in ("lookup", "read", "write", "context"):
            getattr(expected, verb)(b, -1)
        elif verb == "demote":
            expected.demote(b, t)
        else:
            getattr(expected, verb)(b)
        expected.end_step()
        running.store.check()
        assert [running.store.resident(u) for u in range(tiers)] == [sorted(copies) for copies in expected.copies]
    found = running.result()
    assert found["hits"] == expected.hits
    assert found["read_bytes"] == expected.totals["read"]
    assert found["writeback_write_bytes"] == expected.totals["back_write"]
    assert found["unreachable_bytes"] == expected.unreachable
    assert all(found[name] == counts for name, counts in expected.counts.items())


@given(world=worlds(max_steps=0, max_tiers=3), data=st.data())
def test_a_pinned_block_is_never_a_victim(world: World, data: st.DataObject) -> None:
    store = replayer(world).store
    n = len(world.blocks["bytes"])
    b = data.draw(st.integers(0, n - 1))
    store.act("lookup", b)
    held = [t for t in range(store.n_tiers) if b in store.resident(t)]
    store.act("pin", b)
    for other in data.draw(st.lists(st.integers(0, n - 1), max_size=40)):
        store.act("write" if other != b else "read", other)
        assert all(b in store.resident(t) for t in held)
    store.act("unpin", b)
    store.check()


def test_unknown_verbs_and_numbers() -> None:
    from closed_form.test_closed_forms import tier, world

    store = replayer(world([tier(20)], [10], [])).store
    with pytest.raises(ValueError, match="cannot 'evict'"):
        store.act("evict", 0)
    for wrong in ((1, 0, -1), (-1, 0, -1), (0, 1, -1), (0, 0, -2), (0, 0, 2**51)):
        with pytest.raises(ValueError, match="out of range"):
            store.act("lookup", wrong[0], wrong[1], wrong[2])
