"""The policy slot: Python objects, C addresses, capsules; and what the core says when one of them misbehaves."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest

from kvsim_core import CAPSULE_NAME, CPolicy, Policy, PythonPolicy, curve, next_uses, register, registered


def hits(policy: object, capacity: int = 3, **options: object) -> int:
    """Hits of a fixed string of 400 single-block prompts over 12 blocks."""
    rng = np.random.default_rng(5)
    last = np.minimum(rng.geometric(0.25, 400) - 1, 11).astype(np.int32)
    parent, position = np.full(12, -1, np.int32), np.zeros(12, np.int32)
    ones = np.ones(12, np.int64)
    return curve(last, np.ones(400, np.int64), parent, position, ones, ones, policy, capacity=capacity, **options)[0]


class Newest:
    """Evicts the block that came last (MRU without hits): something no built-in does."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.seen: list[str] = []

    def attach(self, view: object) -> None:
        self.view = view

    def on_hit(self, b: int) -> None:
        self.seen.append("hit")

    def on_insert(self, b: int) -> None:
        self.blocks.append(b)

    def on_remove(self, b: int, reason: int) -> None:
        assert reason == 0
        self.blocks.remove(b)

    def victim(self, incoming: int) -> int:
        assert self.view.used == self.view.capacity == len(self.blocks)
        assert all(self.view.evictable(b) for b in self.blocks)
        return self.blocks[-1]


def test_python_object() -> None:
    newest = Newest()
    found = hits(PythonPolicy(newest))
    assert found == len(newest.seen) > 100
    assert len(newest.blocks) == 3


def test_an_exception_in_a_hook_is_raised_from_the_run() -> None:
    class Broken(Newest):
        def victim(self, incoming: int) -> int:
            raise ZeroDivisionError("no victim today")

    with pytest.raises(ZeroDivisionError, match="no victim today"):
        hits(PythonPolicy(Broken()))


@pytest.mark.parametrize("victim", [11, 12, 2**31 - 1, "x", 1.5])
def test_a_wrong_victim_is_an_error(victim: object) -> None:
    class Wrong(Newest):
        def victim(self, incoming: int) -> object:
            return victim

    with pytest.raises((RuntimeError, TypeError), match=r"victim|integer|int"):
        hits(PythonPolicy(Wrong()))


def test_refusing_everything_is_no_error() -> None:
    class Stubborn(Newest):
        def victim(self, incoming: int) -> None:
            return None

    assert hits(PythonPolicy(Stubborn())) > 0


def test_an_object_without_the_methods_is_refused() -> None:
    with pytest.raises(TypeError, match="on_hit"):
        PythonPolicy(object())


def test_a_view_that_outlives_its_run_reads_nothing() -> None:
    newest = Newest()
    policy = PythonPolicy(newest)
    hits(policy)
    gc.collect()
    assert newest.view.capacity == newest.view.used == 0
    with pytest.raises(IndexError):
        newest.view.bytes(0)


def test_a_view_checks_its_index() -> None:
    class Prying(Newest):
        def on_hit(self, b: int) -> None:
            self.view.bytes(10**6)

    with pytest.raises(IndexError, match="1000000"):
        hits(PythonPolicy(Prying()))


def fifo_in_c() -> tuple[dict[str, int], list[object], list[int]]:
    """FIFO as four C-callable functions over a Python list (the route of ctypes, cffi and numba)."""
    queue: list[int] = []
    block_fn = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)
    remove_fn = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int)
    victim_fn = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
    hooks = {
        "on_hit": block_fn(lambda state, b: None),
        "on_insert": block_fn(lambda state, b: queue.append(b)),
        "on_remove": remove_fn(lambda state, b, reason: queue.remove(b)),
        "victim": victim_fn(lambda state, incoming: queue[0]),
    }
    return (
        {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in hooks.items()},
        list(hooks.values()),
        queue,
    )


def test_addresses_of_c_functions() -> None:
    addresses, owner, queue = fifo_in_c()
    # ctypes takes the GIL by itself; what comes back equals the built-in FIFO
    assert hits(CPolicy(addresses, owner=owner)) == hits(registered()["fifo"]())
    assert len(queue) == 3


def test_unknown_hook() -> None:
    with pytest.raises(ValueError, match="on_hitt"):
        CPolicy({"on_hitt": 1})


def test_incomplete_addresses() -> None:
    with pytest.raises(ValueError, match="required"):
        hits(CPolicy({}))


def test_capsule() -> None:
    inner = registered()["lru"]()
    assert CAPSULE_NAME in repr(inner.capsule)
    assert hits(CPolicy(inner.capsule, owner=inner)) == hits(registered()["lru"]())


def test_a_capsule_keeps_its_policy() -> None:
    capsule = registered()["lru"]().capsule  # nothing else holds the policy
    gc.collect()
    assert hits(CPolicy(capsule)) == hits(registered()["lru"]())


def test_a_policy_that_reaches_for_its_own_store_is_refused() -> None:
    from closed_form.test_closed_forms import look, tier, world
    from reference.worlds import columns, replayer

    class Reaching(Newest):
        def on_insert(self, b: int) -> None:
            running.store.act("lookup", 0)

    w = world([tier(20)], [10, 10], [{"accesses": look(0, 1)}])
    running = replayer(w, [PythonPolicy(Reaching())])
    with pytest.raises(RuntimeError, match="in use"):
        running.feed(*columns(w.steps))


def test_a_foreign_capsule_is_refused() -> None:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = (ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p])
    name = ctypes.create_string_buffer(b"other")
    with pytest.raises(ValueError, match="incorrect name"):
        CPolicy(make(1, name, None))


def test_a_policy_serves_one_tier_at_a_time() -> None:
    policy = registered()["lru"]()
    barrier: list[BaseException] = []

    class Nested(Newest):
        def victim(self, incoming: int) -> int:
            try:
                hits(outer)
            except ValueError as error:
                barrier.append(error)
            return super().victim(incoming)

    outer = PythonPolicy(Nested())
    hits(outer)
    assert "already serves a tier" in str(barrier[0])
    first = hits(policy)
    assert hits(policy) == first  # reset, and used again


def test_registered_names_are_unique() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register("lru", Policy)


def test_needs_the_future() -> None:
    with pytest.raises(ValueError, match="future"):
        hits(registered()["belady"]())


def test_threads_give_the_same_counts() -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(hits(registered()["s3-fifo"]()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last": [12]}, "not in the table"),
        ({"last": [-2]}, "not in the table"),
        ({"parent": [0] + [-1] * 11}, "do not agree"),
        ({"parent": [-1] * 10 + [11, -1]}, "do not agree"),
        ({"position": [5] * 12}, "do not agree"),
        ({"size": [-1] * 12}, "out of range"),
        ({"size": [2**60] * 12}, "out of range"),
        ({"size": [1] * 11}, "differ in length"),
        ({"tokens": [-1] * 12}, "out of range"),
        ({"capacity": -1}, "capacity"),
        ({"capacity": 2**62 + 1}, "capacity"),
        ({"prompt": []}, "differ in length"),
        ({"future": np.zeros(7, np.int64)}, "do not match"),
    ],
)
def test_the_door_of_the_curve(change: dict[str, object], message: str) -> None:
    case: dict[str, object] = {
        "last": [3], "prompt": [1], "parent": [-1] * 12, "position": [0] * 12, "tokens": [1] * 12, "size": [1] * 12,
        "capacity": 3, "future": None, **change,
    }  # fmt: skip
    ints = {name: np.array(case[name], np.int32) for name in ("last", "parent", "position")}
    longs = {name: np.array(case[name], np.int64) for name in ("prompt", "tokens", "size")}
    with pytest.raises(ValueError, match=message):
        curve(
            ints["last"], longs["prompt"], ints["parent"], ints["position"], longs["tokens"], longs["size"],
            registered()["lru"](), capacity=case["capacity"], future=case["future"],
        )  # fmt: skip


def test_next_uses_of_empty_traces() -> None:
    none = np.empty(0, np.int32)
    assert [len(part) for part in next_uses(none, none, none)] == [0, 0]
    ends = np.array([-1, -1], np.int32)
    assert [len(part) for part in next_uses(ends, none, none, ends)] == [0, 0]
