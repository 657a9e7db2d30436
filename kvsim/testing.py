"""A property-test kit for tier policies: strategies, laws as plain functions, one call for all.

    from kvsim.testing import check_policy
    check_policy(MyPolicy)  # a class or factory, a registered name, or an object

or law by law, in tests of your own:

    from hypothesis import given
    from kvsim.testing import assert_belady_best, request_traces

    @given(request_traces())
    def test_mine(trace):
        assert_belady_best(MyPolicy, trace, capacities=range(8))

A law is a function that raises AssertionError and says what it found; it does not need Hypothesis,
the strategies do (`pip install hypothesis`; kvsim itself does not need it). A policy given as an
object is copied for every run, so that none learns from another; a class or a factory is called for
each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.errors import KvsimError, TraceError
from kvsim.policies import PolicyChoice, choose, names

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("kvsim.testing needs hypothesis: pip install hypothesis") from error

if TYPE_CHECKING:
    from kvsim.machine import Machine
    from kvsim.result import Result
    from kvsim.trace import AccessTrace, RequestTrace

__all__ = [
    "access_traces",
    "assert_belady_best",
    "assert_conserved",
    "assert_deterministic",
    "assert_identity",
    "assert_inclusion",
    "assert_infinite",
    "assert_keeps_books",
    "assert_labels_mean_nothing",
    "assert_same_hits",
    "check_policy",
    "hits",
    "machines",
    "policies",
    "renamed",
    "request_traces",
]

_EQUAL_BYTES = 10


# -- strategies
# ---------------------------------------------------------------------------------------------


@st.composite
def request_traces(
    draw: st.DrawFn,
    *,
    max_requests: int = 12,
    max_blocks: int = 5,
    block_tokens: int | None = None,
    dependencies: bool = True,
) -> RequestTrace:
    """Draw requests that share beginnings; some have known outputs, some wait for others.

    Parameters
    ----------
    max_requests : most requests, at least 1 is drawn.
    max_blocks : most whole blocks a request adds to what it shares.
    block_tokens : tokens in a block; drawn from 1 to 4 if None.
    dependencies : whether requests may wait for earlier ones.
    """
    from kvsim.workloads._builder import NONE, THINK, TOOL, TrieBuilder

    size = draw(st.integers(1, 4)) if block_tokens is None else block_tokens
    builder = TrieBuilder(size)
    arrival_ps = 0
    lengths: list[int] = []
    for row in range(draw(st.integers(1, max_requests))):
        arrival_ps += draw(st.sampled_from([0, 0, 1_000, 10**9]))
        base = draw(st.integers(-1, row - 1))
        shared = draw(st.integers(0, lengths[base])) if base >= 0 else 0
        tokens = max(shared + draw(st.integers(0, max_blocks * size)), 1)
        output = draw(st.integers(1, 2 * size))
        waits = dependencies and row > 0 and draw(st.booleans())
        pause = draw(st.sampled_from([NONE, THINK, TOOL])) if waits else NONE
        builder.add(
            1,
            arrival_ps=arrival_ps,
            input_tokens=tokens,
            output_tokens=output,
            session=0,
            category=draw(st.integers(0, 1)),
            base=base,
            keep_tokens=shared,
            known_output=draw(st.booleans()),
            pause=pause,
            delay_ps=0 if pause == NONE else draw(st.integers(1, 10**9)),
        )
        if waits:
            on = draw(st.sets(st.integers(0, row - 1), min_size=1, max_size=3))
            builder.depend([row] * len(on), sorted(on))
        lengths.append(tokens)
    return builder.build(
        name="drawn", source="kvsim.testing", session_names=("drawn",), category_names=("one", "other")
    )


@st.composite
def access_traces(
    draw: st.DrawFn, *, max_blocks: int = 14, max_steps: int = 12, equal_sizes: bool = False, lookups_only: bool = False
) -> AccessTrace:
    """Draw raw accesses: chains of KV blocks looked up front to back, and accesses of every sort.

    Parameters
    ----------
    max_blocks, max_steps : most rows of the block table (at least 1) and of the step table.
    equal_sizes : whether all blocks have the same size (10 bytes); else 0 to 40 bytes.
    lookups_only : whether every access is a look-up.
    """
    from kvsim.trace import AccessTrace, BlockTable, TraceMeta

    n = draw(st.integers(1, max_blocks))
    kind = [draw(st.sampled_from([0, 0, 0, 1, 2, 3])) for _ in range(n)]
    parent: list[int] = []
    for b in range(n):
        kin = [a for a in range(b) if kind[a] == 0] if kind[b] == 0 else []
        parent.append(draw(st.sampled_from([-1, kin[-1], *kin])) if kin else -1)
    position = [0] * n
    for b in range(n):
        position[b] = position[parent[b]] + 1 if parent[b] >= 0 else 0
    sizes = st.just(_EQUAL_BYTES) if equal_sizes else st.sampled_from([0, 1, 5, 10, 17, 40])
    work = st.sampled_from([0.0, 10.0, 77.7])
    table = BlockTable(
        bytes=np.array([draw(sizes) for _ in range(n)]),
        tokens=np.array([draw(st.integers(0, 9)) for _ in range(n)]),
        kind=np.array(kind),
        operation=np.array([draw(st.integers(0, 1)) for _ in range(n)]),
        parent=np.array(parent),
        position=np.array(position),
        home=np.full(n, -1),
        recompute_flops=np.array([(draw(work), draw(work)) for _ in range(n)]).reshape(n, 2),
    )
    accesses: list[tuple[int, int, int]] = []
    offsets = [0]
    steps = draw(st.integers(0, max_steps))
    for _ in range(steps):
        block = draw(st.integers(-1, n - 1))  # the end of a prompt, or none
        chain = []
        while block >= 0:
            chain.append((block, 0, -1))
            block = parent[block]
        accesses += reversed(chain)
        for _ in range(draw(st.integers(0, 4))):
            op = 0 if lookups_only else draw(st.sampled_from([0, 0, 1, 2, 3, 4]))
            some = -1 if lookups_only else draw(st.sampled_from([-1, -1, 0, 3, 25]))
            accesses.append((draw(st.integers(0, n - 1)), op, some))
        offsets.append(len(accesses))
    columns = np.array(accesses, np.int64).reshape(-1, 3)
    return AccessTrace(
        blocks=table,
        meta=TraceMeta(name="drawn"),
        arrival_ps=np.cumsum(np.array([draw(st.sampled_from([0, 0, 50, 2_000])) for _ in range(steps)], np.int64)),
        flops=np.array([(draw(work), draw(work)) for _ in range(steps)]).reshape(steps, 2),
        fixed_ps=np.array([draw(st.sampled_from([0, 5])) for _ in range(steps)], np.int64),
        tokens=np.array([draw(st.sampled_from([0, 1, 9])) for _ in range(steps)], np.int64),
        stream=np.zeros(steps, np.int32),
        category=np.zeros(steps, np.int16),
        repeat=np.array([draw(st.sampled_from([1, 1, 1, 2, 5])) for _ in range(steps)], np.int64),
        request=np.arange(steps),
        offsets=np.array(offsets),
        block=columns[:, 0],
        op=columns[:, 1],
        bytes=columns[:, 2],
    )


@st.composite
def machines(
    draw: st.DrawFn,
    *,
    max_tiers: int = 3,
    capacities: Sequence[int] = (5, 20, 30, 50, 80, 10_000),
    home_bytes: int = 1_000,
) -> Machine:
    """Draw small machines: tiers with links and every movement rule, one pool.

    Parameters
    ----------
    max_tiers : most tiers.
    capacities : bytes of a tier, to draw from.
    home_bytes : added to the outermost tier, so that the weights of a small trace fit there.
    """
    from kvsim.machine import Link, Machine, Movement, Pool, Tier

    rates = st.sampled_from([1e11, 1e12, 4e12])
    delays = st.sampled_from([0.0, 10e-12, 33.3e-12])
    count = draw(st.integers(1, max_tiers))
    tiers = tuple(
        Tier(
            name=f"t{t}",
            medium=("HBM", "DRAM", "SSD", "remote")[min(t, 3)],
            capacity_bytes=draw(st.sampled_from(capacities)) + (home_bytes if t == count - 1 else 0),
            read_bytes_per_s=draw(rates),
            write_bytes_per_s=draw(rates),
            latency_s=draw(delays),
            overhead_s=draw(delays),
            fragment_bytes=draw(st.sampled_from([0, 4, 7])),
            duplex=draw(st.sampled_from(["half", "full"])),
            norm=draw(st.sampled_from([1.0, 1.0, 1.6])),
            policy=draw(st.sampled_from(("lru", "fifo", "s3-fifo"))),
            leaf_only=draw(st.booleans()),
            touch=draw(st.sampled_from(["nearest", "all"])),
        )
        for t in range(count)
    )
    links = tuple(
        Link(
            name=f"link{t}",
            between=(f"t{t}", f"t{t + 1}"),
            read_bytes_per_s=draw(rates),
            write_bytes_per_s=draw(rates),
            duplex=draw(st.sampled_from(["half", "full"])),
        )
        for t in range(count - 1)
        if draw(st.booleans())
    )
    movements = []
    for t in range(count - 1):
        promotions: list[str | int] = ["always", "always", "never", 2]
        inclusion = draw(st.sampled_from(["inclusive", "exclusive"]))
        through = () if inclusion == "exclusive" else ("write_through",)
        movements.append(
            Movement(
                upper=f"t{t}",
                lower=f"t{t + 1}",
                promote=draw(st.sampled_from(promotions)),
                inclusion=inclusion,
                eviction=draw(st.sampled_from(["write_back", "discard", *through])),
            )
        )
    pool = Pool(name="pool", peak_flops_per_s={"bf16": draw(rates)}, t_step_s=draw(delays))
    return Machine(name="drawn", tiers=tiers, pools=(pool,), links=links, movements=tuple(movements), reserve=0.0)


def policies(*, leaf: bool = True, admits_all: bool | None = None) -> st.SearchStrategy[str]:
    """Draw the name of a registered policy.

    Parameters
    ----------
    leaf : whether leaf-only forms (`leaf-lru`) are among them.
    admits_all : only policies that never refuse a block (True), or only such as may (False).
    """
    known = [name for name in names() if admits_all is None or choose(name).make().admits_all == admits_all]
    return st.sampled_from([*known, *(f"leaf-{name}" for name in known if leaf)])


# -- laws of a result
# ---------------------------------------------------------------------------------------


def assert_identity(result: Result) -> None:
    """Assert that the parts of the wall time are not negative and sum to it exactly."""
    identity = result.identity
    parts = identity.parts_ps
    _law(identity.exact, f"wall time: found {identity.wall_ps} ps, parts sum to {sum(parts.values())}")
    for name, value in parts.items():
        _law(value >= 0, f"wall time: found {value} ps of {name}, expected 0 or more")
    stalls = result.arrays["stall_ps"]
    _law(bool((stalls >= 0).all()), f"stalls: found {stalls.min()} ps, expected 0 or more")


def assert_conserved(result: Result) -> None:
    """Assert what the books of every replay must show.

    No counter is negative; in each weight the tiers' hits do not exceed the look-ups, and those of
    the prefix rule not those of the block rule; no tier holds more than its capacity; what was
    evicted, demoted or freed had come.
    """
    a = result.arrays
    for name, column in a.items():
        _law(bool((column >= 0).all()), f"{name}: found {column.min() if column.size else 0}, expected 0 or more")
    found = a["hits"].sum(axis=0)
    for rule in range(found.shape[1]):
        over = found[:, rule, :] > a["lookups"]
        _law(not over.any(), f"hits: found {found[:, rule, :].tolist()} in {a['lookups'].tolist()} look-ups")
    longer = a["hits"][:, :, 1, :] > a["hits"][:, :, 0, :]
    _law(not longer.any(), "hits: found more by the prefix rule than by the block rule")
    full = a["used_bytes"] > a["capacity_bytes"]
    _law(not full.any(), f"used bytes: found {a['used_bytes'].tolist()}, capacity {a['capacity_bytes'].tolist()}")
    beyond = a["samples/used_bytes"] > a["capacity_bytes"]
    _law(not beyond.any(), "used bytes: found more than the capacity in a sample")
    _law(bool((a["demoted_out"] <= a["inserted"] + a["refused"]).all()), "found more demoted than ever came")
    for name in ("samples/clock_ps", "samples/step", "samples/lookups", "samples/stall_ps", "samples/hits"):
        falls = np.diff(a[name], axis=0) < 0
        _law(not falls.any(), f"{name}: found a falling series, expected sums so far")


# -- laws of a policy
# ---------------------------------------------------------------------------------------


def hits(
    policy: Any, trace: RequestTrace | AccessTrace, capacities: Iterable[int], *, hit_rule: str = "block", seed: int = 0
) -> list[int]:
    """Return the blocks that `policy` hits in one tier of each capacity (in blocks)."""
    from kvsim.curve import curve

    wanted = [int(capacity) for capacity in capacities]
    if not wanted:
        return []
    try:
        found = curve(trace, policies=[_fresh(policy, seed)], capacities=wanted, hit_rule=hit_rule, seed=seed)
    except (TraceError, ValueError) as error:
        raise KvsimError(f"hits: {error}") from error
    return [int(count) for count in found.hit_count[0]]


def assert_belady_best(policy: Any, trace: RequestTrace | AccessTrace, capacities: Iterable[int]) -> None:
    """Assert that the optimum hits at least as often at every capacity, blocks being equal.

    The optimum among policies that take in every missed block; a policy that may refuse
    (`admits_all` false) is not bound by it and passes. Leaf-only forms are compared with the
    unrestricted optimum.
    """
    wanted = list(capacities)
    if not _fresh(policy, 0).make().admits_all:
        return
    for capacity, own, best in zip(wanted, hits(policy, trace, wanted), hits("belady", trace, wanted), strict=True):
        _law(own <= best, f"{_label(policy)}: found {own} hits at {capacity} blocks, the optimum has {best}")


def assert_inclusion(
    policy: Any, trace: RequestTrace | AccessTrace, capacities: Iterable[int], *, hit_rule: str = "block"
) -> None:
    """Assert that more capacity never hurts: a law of stack policies (LRU, LFU, the optimum)."""
    wanted = sorted(set(capacities))
    found = hits(policy, trace, wanted, hit_rule=hit_rule)
    for k in range(1, len(wanted)):
        _law(
            found[k] >= found[k - 1],
            f"{_label(policy)}: found {found[k]} hits at {wanted[k]} blocks, "
            f"expected the {found[k - 1]} of {wanted[k - 1]} blocks or more",
        )


def assert_infinite(policy: Any, trace: RequestTrace | AccessTrace) -> None:
    """Assert that with room for all blocks each is missed once, and with room for none always.

    A policy that may refuse blocks (`admits_all` false) must hit no more than that.
    """
    blocks, references, unique = _references(trace)
    none, some = hits(policy, trace, [0, max(blocks, 1)])
    _law(none == 0, f"{_label(policy)}: found {none} hits in no room at all, expected none")
    most = references - unique
    exact = _fresh(policy, 0).make().admits_all
    _law(
        some == most if exact else some <= most,
        f"{_label(policy)}: found {some} hits with room for everything, expected {'' if exact else 'at most '}{most}",
    )


def assert_deterministic(policy: Any, trace: RequestTrace | AccessTrace, capacities: Iterable[int]) -> None:
    """Assert that the same run gives the same hits."""
    wanted = list(capacities)
    one, two = hits(policy, trace, wanted, seed=3), hits(policy, trace, wanted, seed=3)
    _law(one == two, f"{_label(policy)}: found {two} hits in a second run, expected the {one} of the first")


def assert_same_hits(
    policy: Any, other: Any, trace: RequestTrace | AccessTrace, capacities: Iterable[int], *, hit_rule: str = "block"
) -> None:
    """Assert that two policies hit equally often, such as a policy and its plain twin."""
    wanted = list(capacities)
    one, two = (hits(p, trace, wanted, hit_rule=hit_rule) for p in (policy, other))
    _law(one == two, f"{_label(policy)}: found {one} hits at {wanted} blocks, {_label(other)} has {two}")


def assert_labels_mean_nothing(policy: Any, trace: AccessTrace, capacities: Iterable[int]) -> None:
    """Assert that a policy decides by what blocks are and when they were used, not by number.

    Not a law of policies that draw at random or break ties by number.
    """
    wanted = list(capacities)
    one, two = hits(policy, trace, wanted), hits(policy, renamed(trace), wanted)
    _law(one == two, f"{_label(policy)}: found {two} hits with blocks renumbered, expected {one}")


def renamed(trace: AccessTrace) -> AccessTrace:
    """Return the trace with its blocks numbered otherwise (parents still before children)."""
    from dataclasses import replace

    table = trace.blocks
    order = np.lexsort((-np.arange(table.n), table.position))
    new = np.empty(table.n, np.int32)
    new[order] = np.arange(table.n, dtype=np.int32)
    changed = {
        name: getattr(table, name)[order]
        for name in ("bytes", "tokens", "kind", "operation", "position", "home", "recompute_flops")
    }
    parent = table.parent[order]
    changed["parent"] = np.where(parent >= 0, new[np.maximum(parent, 0)], -1)
    labels = None if table.labels is None else tuple(table.labels[b] for b in order)
    return replace(trace, blocks=replace(table, labels=labels, **changed), block=new[trace.block])


def assert_keeps_books(policy: Any, trace: AccessTrace, machine: Machine) -> Result:
    """Replay with `policy` in every tier, assert that the books are kept, return the Result."""
    from kvsim.replay import replay

    chosen = {tier.name: _fresh(policy, 0) for tier in machine.tiers}
    result = replay(trace, machine=machine, policy=chosen, check=True)
    assert_identity(result)
    assert_conserved(result)
    return result


def check_policy(policy: Any, *, max_examples: int = 100, stack: bool = False, labels: bool = True) -> None:
    """Try every law on drawn cases; raises AssertionError with the smallest case found.

    Parameters
    ----------
    policy : a registered name, a class or factory, or an object with the slot's methods.
    max_examples : traces drawn for each law.
    stack : whether `assert_inclusion` is promised.
    labels : whether `assert_labels_mean_nothing` is promised (not by policies that draw at random).
    """
    sizes = range(9)
    laws: list[tuple[st.SearchStrategy[Any], Callable[[Any], object]]] = [
        (request_traces(), lambda t: assert_infinite(policy, t)),
        (request_traces(), lambda t: assert_deterministic(policy, t, sizes)),
        (request_traces(), lambda t: assert_belady_best(policy, t, sizes)),
        (st.tuples(access_traces(), machines()), lambda drawn: assert_keeps_books(policy, *drawn)),
    ]
    if stack:
        laws.append((request_traces(), lambda t: assert_inclusion(policy, t, sizes)))
    if labels:
        same = access_traces(equal_sizes=True, lookups_only=True)
        laws.append((same, lambda t: assert_labels_mean_nothing(policy, t, sizes)))
    for strategy, law in laws:
        _run(strategy, law, max_examples)


def _run(strategy: st.SearchStrategy[Any], law: Callable[[Any], object], max_examples: int) -> None:
    @settings(max_examples=max_examples, deadline=None, database=None)
    @given(strategy)
    def holds(drawn: Any) -> None:
        law(drawn)

    holds()


def _fresh(policy: Any, seed: int) -> PolicyChoice:
    """Return the choice of a policy that never remembers an earlier run."""
    chosen = choose(policy, seed=seed)
    if chosen.many:
        return chosen
    return PolicyChoice(chosen.name, chosen.leaf_only, lambda: choose(copy.deepcopy(policy), seed=seed).make(), True)


def _label(policy: Any) -> str:
    return choose(policy).name


def _references(trace: RequestTrace | AccessTrace) -> tuple[int, int, int]:
    """Return blocks in the table, look-ups, and blocks looked up at least once."""
    from kvsim.trace import RequestTrace

    if not isinstance(trace, RequestTrace):
        looked = trace.block[trace.op == 0]
        return trace.blocks.n, len(looked), len(np.unique(looked))
    seen = np.zeros(trace.unique_blocks, np.bool_)
    for row in range(trace.n):
        seen[trace.blocks(row)] = True
    return trace.unique_blocks, int(trace.references), int(seen.sum())


def _law(holds: bool, found: str) -> None:
    if not holds:
        raise AssertionError(found)
