"""The closed loop's door: whatever arrives, an exception and never a crash; and no case waits for ever."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from closed_form.test_run_closed_forms import (
    NONE,
    PLAN,
    RULE,
    THINK,
    TOOL,
    channel,
    core,
    kind,
    prefill_decode,
    request,
    specification,
    tier,
    world,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.run_worlds import RunWorld, columns

from kvsim import reference
from kvsim.errors import KvsimError, TraceError
from kvsim.run import run
from kvsim.serving import Serving
from kvsim.trace import RequestTrace
from kvsim_core import Engine, PythonPolicy, registered

REFUSED = (ValueError, TypeError, KeyError, OverflowError)
ENDS = 200_000  # steps and events after which a small case counts as endless


def good() -> RunWorld:
    """Return a case with everything in it: blocks, data, pauses, two tiers, a link."""
    of = kind(tier(200), tier(path=1), links=[channel(1.0)])
    return world(
        [
            request(8, 3, last=1, output=2, data=[0]),
            request(16, 3, last=2, after=[0], delay_ps=50, pause=THINK, session=0),
            request(5, 2, arrival_ps=10, pause=TOOL),
        ],
        of, chains=[-1, 0, 1], data=[20], retention=(PLAN, {**PLAN, "pin_ps": 10}, PLAN),
    )  # fmt: skip


def parted() -> RunWorld:
    """Return a case with pools of their own for prefill, attention and feed-forward."""
    of = prefill_decode([request(8, 3), request(8, 3)])
    of.spec["unit_pool"], of.spec["tiers"] = [0, 1, 2], 3
    of.spec["workers"][1]["units"] = (1, 2)
    of.spec["kinds"][1] |= {"ffn_near": tier(), "ffn_tier": 2}
    return of


def made(of: RunWorld, spec: dict[str, Any] | None = None, names: Any = None) -> Engine:
    policies = of.policies if names is None else names
    return Engine(spec or columns(of.spec), [[registered()[name]() for name in own] for own in policies])


def ended(engine: Engine) -> Engine:
    """Run an engine to its end, which it must come to."""
    for _ in range(ENDS // 1000):
        if engine.run(1000):
            engine.check()
            return engine
    raise AssertionError("it does not come to an end")


def put(spec: Any, path: tuple[Any, ...], value: Any) -> None:
    """Set what lies at a path; `value` may be a function of what is there."""
    for key in path[:-1]:
        spec = spec[key]
    spec[path[-1]] = value(spec[path[-1]]) if callable(value) else value


def changed(of: RunWorld, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return the core's spec of a case with one thing changed."""
    spec = copy.deepcopy(columns(of.spec))
    for k in spec["kinds"]:
        k["far_weights"] = [list(pair) for pair in k["far_weights"]]
    for w in spec["workers"]:
        w["units"] = list(w["units"])
    spec["model"]["flops"] = list(spec["model"]["flops"])
    for i, pair in ((i, key) for i in range(len(spec["kinds"])) for key in PAIRS):
        spec["kinds"][i][pair] = list(spec["kinds"][i][pair])
    for key in LISTS:
        spec["requests"][key] = list(spec["requests"][key])
    put(spec, path, value)
    return spec


PAIRS = ("ps_per_flop", "overhead_ps", "collective_ps", "collective_ps_per_token", "near_weights", "expert_near")
LISTS = ("after", "data", "state_write", "state_output")
NAN, INF = float("nan"), float("inf")


def first(value: Any) -> Callable[[Any], Any]:
    """Replace the first of a column."""

    def replace(column: Any) -> Any:
        out = np.array(column)
        out[0] = value
        return out

    return replace


def shorter(column: Any) -> Any:
    return column[:-1]


def floats(column: Any) -> Any:
    return np.asarray(column, np.float64)


def square(column: Any) -> Any:
    return np.asarray(column)[:, None]


REQUEST_COLUMNS = {
    "arrival_ps": (-1, 2**63 - 1), "input_tokens": (-1, 2**41), "output_tokens": (-1, 2**41),
    "delay_ps": (-1, 2**63 - 1),
    "last_block": (-2, 5, 3), "output_block": (-2, 5, 3), "session": (-1,), "population": (-1, 1, 2**31 - 1),
    "pause": (-1, 3), "resumer": (-2, 3), "state_lookup": (-2, 5),
}  # fmt: skip
BLOCK_COLUMNS = {
    "bytes": (-1, 2**60), "tokens": (-1,), "kind": (-1, 4), "operation": (-1, 2), "parent": (-2, 0, 4, 5),
    "position": (-1, 1), "home": (-2,),
}  # fmt: skip


@pytest.mark.parametrize("case", [good, parted])
def test_the_cases_themselves_are_good(case: Callable[[], RunWorld]) -> None:
    engine = ended(made(case()))
    assert engine.progress()[:2] == (engine.n, engine.n)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in REQUEST_COLUMNS.items() for v in values])
def test_requests_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=r"expected|out of range"):
        made(good(), changed(good(), ("requests", name), first(value)))


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BLOCK_COLUMNS.items() for v in values])
def test_blocks_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=r"expected|out of range|differ"):
        made(good(), changed(good(), ("blocks", name), first(value)))


@pytest.mark.parametrize("change", [shorter, floats, square])
@pytest.mark.parametrize("name", [*REQUEST_COLUMNS, "priority"])
def test_columns_of_requests(name: str, change: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        made(good(), changed(good(), ("requests", name), change))


@pytest.mark.parametrize("change", [shorter, square, lambda c: [None] * len(c), lambda c: "text"])
@pytest.mark.parametrize("name", BLOCK_COLUMNS)
def test_columns_of_blocks(name: str, change: Callable[[Any], Any]) -> None:
    with pytest.raises(REFUSED):
        made(good(), changed(good(), ("blocks", name), change))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("offsets", [
    [0, 1], [0, 1, 2, 3, 4], [1, 1, 1, 1], [0, 2, 1, 1], [0, 0, 0, 9], [0, -1, 0, 1], [0.0, 0.0, 1.0, 1.0],
    [[0, 0, 1, 1]], [],
])  # fmt: skip
def test_lists_of_requests(name: str, offsets: list[Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        made(good(), changed(good(), ("requests", name, 0), np.array(offsets)))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("values", [[-1], [7], [2**31], [0.5], [[0]], []])
def test_values_of_lists(name: str, values: list[Any]) -> None:
    spec = changed(good(), ("requests", name, 0), np.array([0, 0, 1, 1]))
    spec["requests"][name][1] = np.array(values)
    with pytest.raises(ValueError, match="expected"):
        made(good(), spec)


OPTIONS = {
    "max_seqs": (0, -1, 1.5, NAN), "max_tokens": (0, NAN), "order": (-1, 3), "overflow": (-1, 3), "load": (-1, 4),
    "deadline_ps": (-1, 2**63), "draft": (-1, 2**40), "accepted": (0, 2**20 - 1, 2**20 + 1, NAN), "draft_ps": (-1,),
    "router": (-1, 4), "cpu_slots": (-1,), "concurrency": (-1,),
}  # fmt: skip
MODEL = {
    "head_flops": (-1.0, NAN, INF), "pair_decode": (-1.0, NAN), "pair_prefill": (-1.0, NAN),
    "global_layers": (-1, 2**40),
    "sparse_layers": (-1,), "local_layers": (-1,), "sparse": (-1,), "window": (-1, 2**41),
}  # fmt: skip
KIND = {
    "stages": (0, -1, NAN), "microbatches": (0, 2**20), "hop_ps": (-1.0, NAN, INF), "hop_ps_per_token": (NAN,),
    "expert_tier": (-1, 2), "token_row_bytes": (-1,), "block_tokens": (0, -1, 2**30), "kv_token_bytes": (-1, 2**62),
    "kv_write_bytes": (-1,), "kv_layer_bytes": (-1,), "window_token_bytes": (-1,), "state_bytes": (-1, 2**60),
    "ffn_tier": (-1, 2, 99), "ladder": ([0], [0, 2], [0, -1], []), "far_weights": ([(0, 0)], []),
    "expert_bytes": ([], [-1]),
    "link_index": ([-1], [1]), "tiers": ([], [tier()], [tier()] * 9), "movements": ([], [RULE] * 2),
}  # fmt: skip
TIER = {
    "capacity_bytes": (-1, 2**63), "fragment_bytes": (-1, 2**63), "path": (-1, 2), "latency_ps": (-1.0, NAN, INF),
    "overhead_ps": (-1.0, NAN), "norm": (0.0, -1.0, NAN, 1e9), "read_ps_per_byte": (-1.0, NAN, INF),
    "write_ps_per_byte": (-1.0, NAN), "both_ps_per_byte": (-1.0, NAN),
}  # fmt: skip
PLANS = {"pin_ps": (-2, NAN), "demote_ps": (-2, 2**63), "tier": (-1, 99), "prefetch": (-1, 3), "lead_ps": (-1, NAN)}
NUMBERS = [
    *((("options", name), value) for name, values in OPTIONS.items() for value in values),
    *((("model", name), value) for name, values in MODEL.items() for value in values),
    *((("model", "flops", o), value) for o in (0, 1) for value in (-1.0, NAN)),
    *((("kinds", 0, name), value) for name, values in KIND.items() for value in values),
    *((("kinds", 0, "tiers", t, name), value) for t in (0, 1) for name, values in TIER.items() for value in values),
    *((("kinds", 0, "links", 0, name), value) for name in list(TIER)[-3:] for value in (-1.0, NAN)),
    *((("kinds", 0, name, o), value) for name in PAIRS for o in (0, 1) for value in (-1, NAN)),
    *((("kinds", 0, "far_weights", t, o), -1) for t in (0, 1) for o in (0, 1)),
    *((("kinds", 0, "movements", 0, name), value) for name, value in
      (("promote_after", -1), ("eviction", 3), ("eviction", -1), ("kinds", 16), ("kinds", -1))),
    *((("retention", i, name), value) for i in range(3) for name, values in PLANS.items() for value in values),
    (("kinds", 0, "expert_near"), (2, 1)), (("kinds", 0, "expert_near"), (0, 0)),
    (("retention",), []), (("retention",), [PLAN] * 2),
    (("tiers",), 0), (("tiers",), 9), (("tiers",), -1), (("kinds",), []),
    (("unit_pool",), []), (("unit_pool",), [-1]), (("unit_pool",), [8]),
    (("workers",), []), (("workers", 0, "kind"), 1), (("workers", 0, "kind"), -1), (("workers", 0, "role"), 3),
    (("workers", 0, "role"), 1), (("workers", 0, "role"), -1), (("workers", 0, "units", 0), 1),
    (("workers", 0, "units", 1), -1), (("groups",), []), (("groups",), [[]]), (("groups",), [[1]]),
    (("groups",), [[-1]]),
    (("backs",), [0]), (("backs",), [5]), (("backs",), [-1]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), NUMBERS, ids=[f"{'.'.join(map(str, p))}={v}" for p, v in NUMBERS])
def test_numbers(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        made(good(), changed(good(), path, value))


@pytest.mark.parametrize(("path", "value"), [
    (("workers", 1, "role"), 0), (("workers", 0, "role"), 2), (("backs",), []), (("transfer",), None),
    (("groups",), [[1]]), (("transfer", "latency_ps"), NAN), (("transfer", "write_ps_per_byte"), -1.0),
    (("kinds", 1, "ffn_near", "norm"), 0.0), (("kinds", 1, "ffn_near", "read_ps_per_byte"), NAN),
    (("kinds", 1, "stages"), 2), (("workers", 1, "units", 1), 3), (("kinds", 1, "ladder"), [3]),
])  # fmt: skip
def test_pools_that_do_not_fit_together(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|out of range|cannot"):
        made(parted(), changed(parted(), path, value))


PLACES = [
    (), ("blocks",), ("requests",), ("model",), ("options",), ("kinds", 0), ("kinds", 0, "tiers", 0),
    ("kinds", 0, "links", 0),
    ("kinds", 0, "movements", 0), ("workers", 0), ("retention", 1),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda p: ".".join(map(str, p)) or "spec")
def test_what_is_missing_or_of_another_type(place: tuple[Any, ...]) -> None:
    table: Any = columns(good().spec)
    for key in place:
        table = table[key]
    for key in table:
        may_be_anything = isinstance(table[key], bool)
        # a closed loop computes its recomputation itself, and a machine without a link or a second pool has none
        optional = key in ("ffn_near", "link_index", "recompute_flops") or (key == "links" and not place)
        if not optional:
            spec = copy.deepcopy(columns(good().spec))
            at: Any = spec
            for step in place:
                at = at[step]
            del at[key]
            with pytest.raises(REFUSED):
                made(good(), spec)
        for other in ("text", object(), [[[]]]) if not may_be_anything else ():
            if optional:
                continue
            with pytest.raises((*REFUSED, AttributeError, IndexError)):
                made(good(), changed(good(), (*place, key), other))


def test_a_session_is_no_reason_to_take_all_memory() -> None:
    """Numbers of sessions may be sparse."""
    for number in (10**6, 2**31 - 1):
        spec = changed(good(), ("requests", "session"), first(number))
        try:
            engine = made(good(), spec)
        except ValueError:
            continue
        ended(engine)


# ---- policies ------------------------------------------------------------------------------------------------------


def test_policies_of_another_number() -> None:
    for names in ([], [["lru"]], [["lru"] * 3], [["lru"] * 2] * 2):
        with pytest.raises(ValueError, match=r"polic"):
            made(good(), names=names)


def test_a_policy_serves_one_tier() -> None:
    lru = registered()["lru"]()
    with pytest.raises(ValueError, match="already serves"):
        Engine(columns(good().spec), [[lru, lru]])
    spare = registered()["lru"]()
    engine = Engine(columns(good().spec), [[lru, spare]])  # the refused engine gave it back
    with pytest.raises(ValueError, match="already serves"):
        Engine(columns(good().spec), [[lru, registered()["lru"]()]])
    ended(engine)
    with pytest.raises((ValueError, TypeError)):
        Engine(columns(good().spec), [[None, spare]])  # type: ignore[list-item]


class Raising(reference.POLICIES["lru"]):  # type: ignore[misc, name-defined]
    """An LRU that has enough after so many calls."""

    def __init__(self, calls: int, where: str) -> None:
        super().__init__()
        self.calls, self.where = calls, where

    def _count(self, where: str) -> None:
        self.calls -= where == self.where
        if self.calls < 0:
            raise LookupError(f"enough of {where}")

    def on_insert(self, b: int) -> None:
        self._count("on_insert")
        super().on_insert(b)

    def on_hit(self, b: int) -> None:
        self._count("on_hit")
        super().on_hit(b)

    def on_remove(self, b: int, reason: int) -> None:
        self._count("on_remove")
        super().on_remove(b, reason)

    def on_request_begin(self, row: int) -> None:
        self._count("on_request_begin")
        super().on_request_begin(row)

    def victim(self, incoming: int) -> int | None:
        self._count("victim")
        return super().victim(incoming)  # type: ignore[no-any-return]


def crowded() -> RunWorld:
    """Five chains of two blocks through a near memory of five blocks, each twice in a row, and all again."""
    chains = [b - 1 if b % 2 else -1 for b in range(10)]
    asked = [request(9, 2, last=2 * (i // 2 % 5) + 1, arrival_ps=5000 * i) for i in range(20)]
    return world(asked, kind(tier(40), tier(60)), chains=chains)


@pytest.mark.parametrize("where", ["on_insert", "on_hit", "on_remove", "on_request_begin", "victim"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_policy_that_raises(where: str, place: int, calls: int) -> None:
    policies: list[Any] = [registered()["lru"](), registered()["lru"]()]
    policies[place] = PythonPolicy(Raising(calls, where))
    engine = Engine(columns(crowded().spec), [policies])
    with pytest.raises(LookupError, match=f"enough of {where}"):
        ended(engine)
    with pytest.raises(LookupError, match=f"enough of {where}"):  # and it stays broken
        engine.run()
    del engine, policies
    gc.collect()


def test_a_policy_that_names_what_may_not_go() -> None:
    class Wrong(Raising):
        def victim(self, incoming: int) -> int | None:
            return 10**6

    for wrong in (Wrong(10**9, ""),):
        engine = Engine(columns(crowded().spec), [[PythonPolicy(wrong), registered()["lru"]()]])
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            ended(engine)


def test_a_policy_that_enters_its_engine_again() -> None:
    found: list[str] = []

    class Curious(Raising):
        def on_insert(self, b: int) -> None:
            super().on_insert(b)
            for call in (engine.run, engine.stores[0].check, lambda: engine.stores[0].lookup(0)):
                try:
                    call()
                except RuntimeError as error:
                    found.append(str(error))
                except AttributeError:
                    pass

    engine = Engine(columns(crowded().spec), [[PythonPolicy(Curious(10**9, "")), registered()["lru"]()]])
    ended(engine)
    assert found
    assert "in use" in found[0]


def test_python_policies_see_the_same_run() -> None:
    of = crowded()
    engine = Engine(columns(of.spec), [[PythonPolicy(reference.POLICIES["lru"]()) for _ in range(2)]])
    own, compiled = ended(engine).result(), core(of)
    assert all(np.array_equal(own[name], compiled[name]) for name in compiled)


# ---- numbers too large ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [
    world([request(1 << 20, 1 << 20, arrival_ps=1 << 61)], kind(ps_per_flop=(1e11, 1e11))),
    world([request(8, 4)], kind(ps_per_flop=(1e30, 0.0))),
    world([request(8, 4)], kind(tier(ps=1e30))),
    world([request(8, 4)], kind(tier(), tier(latency_ps=1e29), far_weights=[(0, 0), (1, 1)])),
    world([request(8, 4)], kind(tier(), tier(ps=1e29), far_weights=[(0, 0), (1, 1)])),
    world([request(8, 4)], kind(tier(), *[tier(ps=1e29)] * 3, far_weights=[(1, 1)] * 4)),
    world([request(8, 4, arrival_ps=1 << 61)], kind(tier(), tier(ps=1e18), far_weights=[(0, 0), (1, 1)])),
    world([request(0, 2, data=[i]) for i in range(4)], kind(tier(), tier(ps=1e30)), data=[100] * 4),
    world([request(0, 2, data=[i]) for i in range(4)], kind(tier(), tier(ps=3e16)), data=[100] * 4),
    world([request(0, 2, data=[0, 1, 2])], kind(tier(), tier(ps=3e16)), data=[100] * 3),
    world([request(8, 1), request(8, 1, after=[0], delay_ps=1 << 62)]),
    world([request(8, 1), request(8, 1, after=[0], delay_ps=1 << 62, pause=TOOL)]),
    world([request(0, 2, data=[0])], kind(tier(), tier(ps=1e30)), data=[1 << 20]),
    world([request(8, 50)], kind(overhead_ps=(1 << 57, 1 << 57))),
    world([request(8, 40)], kind(overhead_ps=(1 << 58, 0))),
    world([request(8, 9)], draft=8, accepted=1 << 20, draft_ps=1 << 60),
    world([request(8, 9)], kind(stages=1000, hop_ps=1e18)),
    world([request(8, 9)], kind(collective_ps=(1e30, 1e30))),
])  # fmt: skip
def test_time_that_overflows_is_an_error_not_a_wrap(of: RunWorld) -> None:
    with pytest.raises(OverflowError):
        ended(made(of))


WINDOWED = {
    "flops": (1.0, 1.0), "head_flops": 0.0, "pair_decode": 0.0, "pair_prefill": 0.0, "global_layers": 0,
    "sparse_layers": 0, "local_layers": 1, "sparse": 0, "window": 1 << 40, "stateful": False,
}  # fmt: skip


def test_sizes_that_overflow() -> None:
    """More bytes than there are numbers for: refused, or rejected, never wrapped around."""
    large = kind(tier(1 << 60), kv_token_bytes=1 << 40)
    for of in (
        world([request(1 << 40, 1)], large),
        world([request(1, 1 << 40)], large),
        world([request(1 << 23, 1)], large),
        world([request(1 << 30, 4)], kind(tier(1 << 60), window_token_bytes=1 << 40), model=WINDOWED),
    ):
        try:
            engine = made(of)
            ended(engine)
        except (ValueError, OverflowError):
            continue
        assert engine.result()["status"].tolist() == [1]


# ---- nothing waits for ever ----------------------------------------------------------------------------------------


def both(of: RunWorld) -> dict[str, Any]:
    """Run a case with the core, which must end, and see that the specification ends alike."""
    ended(made(of))
    found, expected = core(of), specification(of)
    for name in ("status", "done_ps", "output_tokens", "preemptions"):
        assert found[name].tolist() == np.asarray(expected[name]).tolist(), name
    return found


@pytest.mark.parametrize("overflow", [0, 1, 2])
def test_all_blocks_pinned_by_a_pause(overflow: int) -> None:
    """What a pause holds fills the memory; another request needs it: pins are broken, and counted."""
    plan = {**PLAN, "pin_ps": 10**9}
    asked = [
        request(16, 1, last=3, session=0),
        request(17, 1, last=3, session=0, after=[0], delay_ps=10**6, pause=THINK),
        request(16, 4, last=7, session=1, arrival_ps=10_000),
    ]
    of = kind(tier(40))
    found = both(world(asked, of, chains=[-1, 0, 1, 2, -1, 4, 5, 6], retention=(PLAN, plan, PLAN), overflow=overflow))
    assert found["status"].tolist() == [0, 0, 0]
    assert found["pins_broken"] == 1


def test_too_small_for_one_and_all_that_wait_for_it() -> None:
    """A request larger than the machine is rejected; what waits for it, however far behind, is never reached."""
    asked = [
        request(8, 1),
        request(500, 4),
        request(8, 1, after=[1]),
        request(8, 1, after=[0, 2]),
        request(8, 1, after=[0]),
    ]
    for slots in (0, 1):
        found = both(world([{**a, "pause": TOOL, "delay_ps": 5} for a in asked], kind(tier(100)), cpu_slots=slots))
        assert found["status"].tolist() == [0, 1, 2, 2, 0]
        assert found["rejected"] == 1
        assert found["done_ps"][2] == -1


@pytest.mark.parametrize("sizes", [(0,), (0, 0), (0, 1000), (8, 0), (7, 7, 1000)])
@pytest.mark.parametrize("overflow", [0, 1, 2])
def test_tiers_of_no_room(sizes: tuple[int, ...], overflow: int) -> None:
    asked = [request(9, 3, last=1), request(9, 3, last=1, after=[0]), request(0, 1), request(1, 1, arrival_ps=3)]
    found = both(world(asked, kind(*map(tier, sizes)), chains=[-1, 0], overflow=overflow))
    fits = overflow == 2 and sum(sizes) >= 1000
    assert (found["status"] == 0).all() == fits
    if not sum(sizes):
        assert (found["status"] > 0).all()


@pytest.mark.parametrize("load", [0, 1, 2, 3])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_one_at_a_time_with_preemption(load: int, swap: bool, mixed: bool) -> None:
    asked = [request(9, 12, last=1, arrival_ps=i * 200, priority=-i) for i in range(4)]
    for most in (1, 2):
        of = kind(tier(8 * 6), tier(100))
        found = both(
            world(asked, of, chains=[-1, 0], max_seqs=most, swap=swap, load=load, mixed=mixed, order=1, max_tokens=3)
        )
        assert found["status"].tolist() == [0] * 4


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("concurrency", [0, 1, 2])
def test_joins_on_few_slots(slots: int, concurrency: int) -> None:
    """A parent starts four agents, each of which calls a tool, and joins them; sessions wait for each other."""
    asked = [request(4, 2, session=0)]
    asked += [request(4, 2, session=i, after=[0], pause=TOOL, delay_ps=900) for i in range(1, 5)]
    asked += [request(4, 2, session=i, after=[i], pause=TOOL, delay_ps=500) for i in range(1, 5)]
    asked += [request(4, 2, session=0, after=[5, 6, 7, 8], pause=TOOL, delay_ps=100)]
    found = both(world(asked, cpu_slots=slots, concurrency=concurrency))
    assert found["status"].tolist() == [0] * 10
    assert found["tool_ps"].sum() == 4 * 900 + 4 * 500 + 100


def test_sessions_that_wait_for_sessions_that_have_not_begun() -> None:
    """One at a time, and the first waits for the last: it begins out of turn, as nothing else could."""
    asked = [
        request(4, 1, session=0),
        request(4, 1, session=0, after=[0, 3]),
        request(4, 1, session=1),
        request(4, 1, session=2),
        request(4, 1, session=1, after=[1]),
    ]
    found = both(world(asked, concurrency=1))
    assert found["status"].tolist() == [0] * 5
    assert found["done_ps"][1] > found["done_ps"][3]


@pytest.mark.parametrize("pause", [NONE, THINK, TOOL])
def test_a_session_that_has_not_begun_waits_for_no_pin(pause: int) -> None:
    """One at a time; the first waits for the second, its blocks pinned for ever: time does not pass for that."""
    plan = {**PLAN, "pin_ps": 1 << 62}
    asked = [
        request(8, 1, session=0, last=1),
        request(8, 1, session=0, last=1, after=[0, 2], pause=pause, delay_ps=10),
        request(8, 1, session=1),
    ]
    found = both(world(asked, chains=[-1, 0], concurrency=1, retention=(plan, plan, plan)))
    assert found["status"].tolist() == [0] * 3
    assert found["done_ps"].max() < 10_000


def test_cycles_are_told() -> None:
    """The trace refuses these; the loop, given one, says that it cannot go on."""
    of = world([request(4, 1), request(4, 1, after=[2]), request(4, 1, after=[1]), request(4, 1, after=[3])])
    with pytest.raises(RuntimeError):
        ended(made(of))
    only = world([request(4, 1, after=[0])])
    with pytest.raises(RuntimeError):
        ended(made(only))


@pytest.mark.parametrize(("after", "message"), [
    ([[1], [0]], "cycle|wait"), ([[0], []], "cycle|itself|wait"), ([[], [2]], "expected"), ([[], [-1]], "expected"),
])  # fmt: skip
def test_a_trace_refuses_what_cannot_be(after: list[list[int]], message: str) -> None:
    """Cycles, and requests that wait for one outside."""
    with pytest.raises(TraceError, match=message):
        RequestTrace.from_lists(
            block_tokens=16, input_tokens=[4, 4], output_tokens=[1, 1], arrival_s=[0.0, 0.0], after=after
        )


@pytest.mark.parametrize("overflow", ["wait", "preempt", "stream"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_an_engine_of_few_blocks(blocks: int, overflow: str) -> None:
    """What needs more blocks than there are is rejected, or streamed; what needs no more than these is served."""
    trace = RequestTrace.from_lists(
        block_tokens=16, input_tokens=[8, 20, 15, 40], output_tokens=[8, 1, 1, 9], arrival_s=[0.0] * 4,
        after=[[], [], [1], []],
    )  # fmt: skip
    found = run(
        trace, model="llama-3.1-8b", machine="h100x8", kv_blocks=blocks, max_seqs=1, kv_overflow=overflow, replicas=8
    )
    needs = [1, 2, 1, 4]
    if overflow == "stream":
        assert found.arrays["status"].tolist() == [0] * 4
    else:
        expected = [int(need > blocks) for need in needs]
        expected[2] = 2 * expected[1]
        assert found.arrays["status"].tolist() == expected


def test_no_request_and_no_token() -> None:
    found = both(world([]))
    assert found["makespan_ps"] == 0
    found = both(world([request(0, 0), request(0, 1), request(1, 0)], kind(tier(8))))
    assert found["status"].tolist() == [0, 0, 0]
    assert found["output_tokens"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("more", [0, 1])
def test_a_decode_pool_that_is_too_small(more: int) -> None:
    """Whole prompts, staged where they were prefilled, wait for room in the decode pool; what never fits is told."""
    of = prefill_decode([request(8, 8 + 8 * more) for _ in range(3)], overflow=0)
    of.spec["kinds"][1]["tiers"][0]["capacity_bytes"] = 32
    of.spec["kinds"][0]["tiers"][0]["capacity_bytes"] = 50
    found = both(of)
    assert found["status"].tolist() == [more] * 3


@pytest.mark.parametrize("key", [key for key, rule in Serving.RULES.items() if rule.high is not None])
def test_what_an_option_may_be_the_loop_takes(key: str) -> None:
    """The largest of each option: it runs, or the message is kvsim's own."""
    words = {key: Serving.RULES[key].high} | ({"draft_tokens": 1024} if key == "accepted_tokens" else {})
    trace = RequestTrace.from_lists(block_tokens=16, input_tokens=[100], output_tokens=[5], arrival_s=[0.0])
    with contextlib.suppress(KvsimError):
        assert run(trace, model="llama-3.1-8b", machine="h100x8", check=True, **words).arrays["status"].tolist() == [0]


@given(st.data())
@settings(max_examples=60)
def test_noise_is_refused_or_runs(data: st.DataObject) -> None:
    """One number of a good case replaced by any other: refused, or run to an end with books that balance."""
    of = data.draw(st.sampled_from([good, parted]))()
    spec = columns(of.spec)
    table = data.draw(st.sampled_from(["requests", "blocks", "options", "kinds", "tiers", "retention", "model"]))
    at: Any = {
        "kinds": spec["kinds"][0], "tiers": spec["kinds"][0]["tiers"][-1], "retention": spec["retention"][1]
    }.get(table) or spec[table]  # fmt: skip
    key = data.draw(st.sampled_from(sorted(at)))
    number = data.draw(st.sampled_from([-2, -1, 0, 1, 2, 3, 5, 17, 1000, 2**31 - 1, 2**40, 2**62, 0.5, NAN]))
    if isinstance(at[key], np.ndarray) and at[key].size:
        column = at[key].astype(np.float64 if isinstance(number, float) else np.int64)
        column.flat[data.draw(st.integers(0, column.size - 1))] = number
        at[key] = column
    elif isinstance(at[key], int | float):
        at[key] = number
    try:
        engine = made(of, spec)
        for _ in range(20):
            if engine.run(500):
                break
        engine.check()
    except (ValueError, TypeError, OverflowError, MemoryError):
        pass
