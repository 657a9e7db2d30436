"""The specification of the closed loop is sane: it ends, its sums hold, its books balance at every moment."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from reference.run_worlds import DECODE, LISTS, WEIGHTS, RunWorld, columns, run_worlds, specified

from kvsim import reference
from kvsim.reference.engine import (
    ARRIVE,
    DONE,
    IDLE,
    OVERLAP,
    PREFILL,
    REJECTED,
    STALL,
    STREAM,
    TOOL,
    UNREACHED,
    WAIT,
    Worker,
)  # fmt: skip

PATIENCE = 50_000  # moments looked at; the worlds here need some hundreds


class Watched(reference.Engine):
    """An engine whose books are checked at every moment."""

    moments = 0
    beyond = 0  # sessions that began beyond the concurrency because all others waited for them

    def next_session(self, now: int) -> None:
        comes = any(event <= ARRIVE for _, event, _ in self.events)
        self.beyond += self.moments > 0 and not comes and all(w.state == IDLE for w in self.workers)
        super().next_session(now)

    def sync(self, now: int) -> None:
        self.moments += 1
        assert self.moments < PATIENCE, "it does not come to an end"
        assert all(w.now <= now or w.until == w.now for w in self.workers)
        super().sync(now)
        self.balance()

    def balance(self) -> None:
        """Derive pins and claims again from who holds them."""
        for w in self.workers:
            holders = w.live + [x for row, x in self.staged.items() if self.front_of[row] is w]
            pins = Counter(b for x in holders for b in x.pinned)
            for parkings in self.parked.values():
                for of, end, pinned in parkings:
                    if of is w and pinned:
                        pins.update(reference.chain(self.blocks["parent"], end))
            assert {b: count for b, count in w.store.pins.items() if count} == dict(pins)
            for t in range(w.T):
                claimed = sum(x.claimed[t] for x in holders)
                if t == 1:
                    claimed += sum(size for row, size in self.swapped.items() if self.front_of[row] is w)
                assert w.store.claimed[t] == claimed
                assert 0 <= w.store.used(t) <= w.store.capacity(t)
                assert all(x.far[t] >= 0 and x.claimed[t] >= 0 for x in holders)
                assert all(b in w.store.copies[w.store.nearest(b)] for x in holders for b in x.pinned
                           if w.store.nearest(b) is not None)  # fmt: skip
            assert len(w.live) <= self.option["max_seqs"]
            assert len({x.row for x in w.live}) == len(w.live)
        slots = self.option["cpu_slots"]
        assert 0 <= self.tools_busy <= self.tools
        assert not slots or self.tools_busy <= slots
        assert self.thinking >= 0
        assert self.upstream >= 0
        if self.option["concurrency"]:
            coming = {self.q["session"][rows[0]] for rows in self.queue}
            running = [session for session in self.rooted - coming if self.left[session]]
            assert len(running) <= self.option["concurrency"] + self.beyond

    def give_up(self, w: Worker, now: int) -> None:
        row = w.waiting[0][2]
        # else what fits alone runs: far room is in pieces, a leaf-only tier keeps what is in front of a pinned block,
        # and a prompt that comes back from a decode pool has grown
        tiers = self.option["overflow"] == STREAM or self.option["load"] == OVERLAP
        assert tiers or (self.emitted[row] and w.role == PREFILL)
        super().give_up(w, now)

    def preempt(self, w: Worker, now: int) -> None:
        assert self.option["overflow"] != WAIT
        super().preempt(w, now)

    def step(self, w: Worker, now: int) -> None:
        verified = 1 + self.option["draft"]
        left = max(0, self.option["max_tokens"] - (len(w.batch) * verified if w.decoding else 0))
        prefilled = sum(c for _, _, c in w.chunks)
        assert prefilled <= left or (not self.option["chunked"] and len(w.chunks) == 1)
        assert all(c > 0 for _, _, c in w.chunks)
        assert self.option["mixed"] or not (w.chunks and w.decoding)
        if w.decoding:
            self.roomy(w)
        super().step(w, now)
        assert w.until >= now

    def roomy(self, w: Worker) -> None:
        """Assert that claims cover the tokens that the coming step adds."""
        gain = self.gain(w)
        for x in w.batch:
            tokens = x.tail + min(w.tokens + gain, x.end) - x.joined
            need = self.tail_bytes(w.kind, tokens) + self.fixed_bytes(w.kind, x.row)
            assert sum(x.claimed) >= need


def ran(world: RunWorld) -> Watched:
    """Run a world to its end."""
    engine: Any = specified(world, Watched)
    engine.run()
    engine.balance()
    return engine


def check_machine(e: Watched) -> None:
    """Every unit's time is told apart without a rest."""
    for unit, parts in enumerate(e.parts):
        assert sum(parts) == e.makespan, unit
        assert min(parts) >= 0, unit
    for pool in range(max(e.unit_pool) + 1):
        stalls = [part for tier in e.stall[pool] for kind in tier for part in kind]
        assert min(stalls) >= 0
        assert sum(stalls) == sum(p[STALL] for p, of in zip(e.parts, e.unit_pool, strict=True) if of == pool)
    told = [[0] * 9 for _ in range(max(e.unit_pool) + 1)]
    for pool, part, tier, start, ps in e.ledger:
        assert 0 <= start <= start + ps <= e.makespan
        assert (tier >= 0) == (part == STALL)
        told[pool][part] += ps
    for pool, parts in enumerate(told):
        units = [p for p, of in zip(e.parts, e.unit_pool, strict=True) if of == pool]
        assert parts == [sum(column) for column in zip(*units, strict=True)]


def check_requests(e: Watched) -> None:
    """Every request ends in one way, and its states fill its time."""
    q, status = e.q, e.column["status"]
    for row in range(e.n):
        asked = max(q["output_tokens"][row], 1)
        if status[row] == UNREACHED:
            assert e.done[row] == e.ready[row] == -1
            assert not sum(e.states[row])
            continue
        assert min(e.states[row]) >= 0
        assert sum(e.states[row]) == e.done[row] - e.ready[row]
        if status[row] == REJECTED:
            assert 0 <= e.ready[row] <= e.done[row]
            continue
        assert status[row] == DONE
        assert e.emitted[row] == asked
        order = [e.ready[row], e.admitted[row], e.first_token[row], e.done[row], e.makespan]
        assert order == sorted(order)
        assert order[0] >= 0
        if not q["after"][row] and not e.option["concurrency"]:
            assert e.ready[row] == q["arrival_ps"][row]
        for other in q["after"][row]:
            assert e.done[other] + q["delay_ps"][row] <= e.ready[row]
        column = {name: e.column[name][row] for name in e.column}
        assert 0 <= column["recomputed"] <= column["computed"]
        assert sum(e.loaded[row]) <= column["hit"]
        if column["preemptions"] == 0:
            assert column["hit"] + column["computed"] == q["input_tokens"][row]
        if q["after"][row] and q["pause"][row] == TOOL:
            waited = max(e.done[other] for other in q["after"][row])
            assert column["tool_wait"] >= 0
            assert column["tool"] == q["delay_ps"][row]
            assert e.ready[row] >= waited + column["tool"] + column["tool_wait"]
    assert e.counters["rejected"] == status.count(REJECTED)
    assert sum(column for column in e.column["preemptions"]) == e.counters["preemptions"]
    assert sum(out for _, _, out in e.emissions) == sum(e.emitted)
    assert sum(prompt for _, prompt, _ in e.emissions) <= sum(e.column["computed"])


def check_memory(e: Watched) -> None:
    """Nothing is held at the end, and look-ups add up."""
    assert not e.parked
    assert not e.staged
    assert not e.swapped
    assert not e.tool_queue
    assert e.tools == e.tools_busy == e.thinking == e.upstream == 0
    for w in e.workers:
        assert not w.live
        assert not w.waiting
        assert not any(w.store.claimed)
        assert not any(w.store.pins.values())
        for k in range(4):
            for rule in range(2):
                hits = [sum(w.store.hits[t][k][rule][weight] for t in range(w.T)) for weight in range(3)]
                assert all(a <= b for a, b in zip(hits, w.store.lookups[k], strict=True))
        moved = [m for flow in w.store.totals.values() for tier in flow for m in tier]
        assert min(moved) >= 0
        assert min(sum(w.store.link_totals, [0])) >= 0
        if w.role == DECODE:
            assert {w.store.kind[b] for copies in w.store.copies for b in copies} <= {WEIGHTS}


@given(run_worlds())
@settings(max_examples=400)
def test_the_books_balance(world: RunWorld) -> None:
    e = ran(world)
    check_machine(e)
    check_requests(e)
    check_memory(e)


@given(run_worlds())
@settings(max_examples=50)
def test_the_same_world_runs_the_same(world: RunWorld) -> None:
    one, two = ran(world), ran(world)
    assert (one.parts, one.states, one.ledger, one.makespan) == (two.parts, two.states, two.ledger, two.makespan)


@given(run_worlds())
@settings(max_examples=50)
def test_columns_say_what_the_spec_says(world: RunWorld) -> None:
    of, found = world.spec["requests"], columns(world.spec)["requests"]
    assert set(of) == set(found)
    for name, column in of.items():
        if name in LISTS:
            offsets, values = found[name]
            assert [list(values[a:b]) for a, b in pairwise(offsets.tolist())] == column
        else:
            assert found[name].tolist() == column
    for name, column in columns(world.spec)["blocks"].items():
        assert len(column) == len(world.spec["blocks"][name])
