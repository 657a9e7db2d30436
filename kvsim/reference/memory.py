"""Policies, store, clock, replay and curve in plain Python.

Every policy here has the slot's methods,
so it also runs inside the core's own loop: where the two disagree, that tells whether the policy or the mechanism is
wrong. Times are floats until they are rounded once to whole picoseconds, and every operation is done in the core's
order, so that the bits agree too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, frexp, ldexp
from typing import Any

__all__ = ["POLICIES", "Clock", "Store", "curve", "replay"]

NEVER = 2**63 - 1
EVICT, DEMOTE, FREED, PROMOTE = range(4)
KV, WEIGHTS, STATE, DATA = range(4)
LOOKUP, READ, WRITE, FREE, CONTEXT = range(5)
BACK, THROUGH, DISCARD = range(3)


def splitmix64(state: int) -> tuple[int, int]:
    """Return the next state and number of a stream (Steele, Lea & Flood, OOPSLA'14)."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return state, z ^ z >> 31


# -- policies: which block goes? ---------------------------------------------------------------------------


class Policy:
    """What all policies share: the view, and hooks that do nothing."""

    view: Any

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.reset()

    def attach(self, view: Any) -> None:
        """Decide from `view` from now on."""
        self.view = view

    def reset(self) -> None:
        """Forget all."""

    def on_hit(self, b: int) -> None:
        """Block `b` was looked up here."""

    def oldest(self, blocks: Iterable[int]) -> int | None:
        """Return the first of `blocks` that may be evicted."""
        return next((b for b in blocks if self.view.evictable(b)), None)


class FIFO(Policy):
    """Evict the block that was inserted first."""

    def reset(self) -> None:
        self.order: OrderedDict[int, int] = OrderedDict()

    def on_insert(self, b: int) -> None:
        self.order[b] = 0

    def on_remove(self, b: int, reason: int) -> None:
        del self.order[b]

    def victim(self, incoming: int) -> int | None:
        return self.oldest(self.order)


class LRU(FIFO):
    """Evict the block whose last use is oldest; of one request in a leaf-only tier, the deepest is oldest."""

    def reset(self) -> None:
        super().reset()
        self.touched: list[int] = []

    def on_hit(self, b: int) -> None:
        self.order.move_to_end(b)
        self._touch(b)

    def on_insert(self, b: int) -> None:
        super().on_insert(b)
        self._touch(b)

    def on_remove(self, b: int, reason: int) -> None:
        super().on_remove(b, reason)
        if b in self.touched:
            self.touched.remove(b)

    def _touch(self, b: int) -> None:
        if b in self.touched:
            self.touched.remove(b)
        self.touched.append(b)

    def on_request_begin(self, request: int) -> None:
        self.touched = []

    def on_request_end(self) -> None:
        if self.view.leaf_only:
            for b in reversed(self.touched):
                self.order.move_to_end(b)
        self.touched = []


class Clock_(FIFO):
    """FIFO that spares a block used since the hand last passed."""

    def on_hit(self, b: int) -> None:
        self.order[b] = 1

    def victim(self, incoming: int) -> int | None:
        for _ in range(2 * len(self.order)):
            b = next(iter(self.order))
            if self.view.evictable(b):
                if not self.order[b]:
                    return b
                self.order[b] = 0
            self.order.move_to_end(b)
        return None


class Sieve(Policy):
    """Evict the first block from the hand on that was not used since the hand last passed."""

    def reset(self) -> None:
        self.queue: list[int] = []  # oldest first; the hand moves to the right
        self.used: dict[int, bool] = {}
        self.hand: int | None = None

    def on_hit(self, b: int) -> None:
        self.used[b] = True

    def on_insert(self, b: int) -> None:
        self.queue.append(b)
        self.used[b] = False

    def on_remove(self, b: int, reason: int) -> None:
        if self.hand == b:
            self.hand = self._after(b)
        self.queue.remove(b)

    def _after(self, b: int) -> int | None:
        i = self.queue.index(b) + 1
        return self.queue[i] if i < len(self.queue) else None

    def victim(self, incoming: int) -> int | None:
        b = self.hand
        for _ in range(2 * len(self.queue)):
            b = self.queue[0] if b is None else b
            if self.view.evictable(b):
                if not self.used[b]:
                    self.hand = b
                    return b
                self.used[b] = False
            b = self._after(b)
        self.hand = b
        return None


class S3FIFO(Policy):
    """A small queue filters what is used once, a main queue spares what is used again, a ghost queue remembers."""

    def reset(self) -> None:
        self.small: list[int] = []  # oldest first
        self.main: list[int] = []
        self.ghost: list[int] = []
        self.count: dict[int, int] = {}

    def _bytes(self, queue: list[int]) -> int:
        return sum(self.view.bytes(b) for b in queue)

    def on_hit(self, b: int) -> None:
        self.count[b] = min(3, self.count[b] + 1)

    def on_insert(self, b: int) -> None:
        self.count[b] = 0
        if b in self.ghost:
            self.ghost.remove(b)
            self.main.append(b)
        else:
            self.small.append(b)

    def on_remove(self, b: int, reason: int) -> None:
        if b in self.main:
            self.main.remove(b)
            return
        self.small.remove(b)
        if reason in (EVICT, DEMOTE):
            self.ghost.append(b)
            while self._bytes(self.ghost) > self.view.capacity - self.view.capacity // 10:
                self.ghost.pop(0)

    def _scan_small(self) -> int | None:
        for _ in range(len(self.small)):
            b = self.small[0]
            if not self.view.evictable(b):
                self.small.append(self.small.pop(0))
            elif self.count[b] > 1:
                self.count[b] = 0
                self.main.append(self.small.pop(0))
            else:
                return b
        return None

    def _scan_main(self) -> int | None:
        for _ in range(4 * len(self.main)):
            b = self.main[0]
            if self.view.evictable(b):
                if self.count[b] == 0:
                    return b
                self.count[b] -= 1
            self.main.append(self.main.pop(0))
        return None

    def victim(self, incoming: int) -> int | None:
        scans: list[Callable[[], int | None]] = [self._scan_main, self._scan_small, self._scan_main]
        if not self.main or self._bytes(self.small) >= self.view.capacity // 10:
            scans = scans[1:]
        return next((b for b in (scan() for scan in scans) if b is not None), None)


class LFU(Policy):
    """Evict the block used least often since it came; of these the one used longest ago."""

    def reset(self) -> None:
        self.key: dict[int, tuple[int, int]] = {}
        self.now = 0

    def _use(self, b: int, times: int) -> None:
        self.now += 1
        self.key[b] = (times, self.now)

    def on_hit(self, b: int) -> None:
        self._use(b, self.key[b][0] + 1)

    def on_insert(self, b: int) -> None:
        self._use(b, 1)

    def on_remove(self, b: int, reason: int) -> None:
        del self.key[b]

    def victim(self, incoming: int) -> int | None:
        return self.oldest(sorted(self.key, key=lambda b: self.key[b]))


class Belady(Policy):
    """Evict the block whose next use is farthest, the deepest of them, unless the newcomer's is as far."""

    admits_all = False
    needs_future = True

    def reset(self) -> None:
        self.key: dict[int, tuple[int, int, int]] = {}

    def on_insert(self, b: int) -> None:
        self.key[b] = (-self.view.next_use(b), -self.view.position(b), b)

    on_hit = on_insert

    def on_remove(self, b: int, reason: int) -> None:
        del self.key[b]

    def victim(self, incoming: int) -> int | None:
        later = [b for b in self.key if self.view.evictable(b) and -self.key[b][0] > self.view.next_use(incoming)]
        return min(later, key=lambda b: self.key[b], default=None)


class Random(Policy):
    """Evict a block drawn evenly from the tier (SplitMix64)."""

    def reset(self) -> None:
        self.blocks: list[int] = []
        self.stream = self.seed

    def on_insert(self, b: int) -> None:
        self.blocks.append(b)

    def on_remove(self, b: int, reason: int) -> None:
        i = self.blocks.index(b)
        self.blocks[i] = self.blocks[-1]
        self.blocks.pop()

    def victim(self, incoming: int) -> int | None:
        if not self.blocks:
            return None
        self.stream, number = splitmix64(self.stream)
        i = number % len(self.blocks)
        return self.oldest(self.blocks[i:] + self.blocks[:i])


class SLRU(Policy):
    """New blocks are on probation; a hit moves a block to a protected segment of at most four fifths."""

    def reset(self) -> None:
        self.probation: list[int] = []  # oldest first
        self.protected: list[int] = []

    def on_hit(self, b: int) -> None:
        (self.protected if b in self.protected else self.probation).remove(b)
        self.protected.append(b)
        limit = self.view.capacity - self.view.capacity // 5
        while sum(self.view.bytes(p) for p in self.protected) > limit:
            self.probation.append(self.protected.pop(0))

    def on_insert(self, b: int) -> None:
        self.probation.append(b)

    def on_remove(self, b: int, reason: int) -> None:
        (self.protected if b in self.protected else self.probation).remove(b)

    def victim(self, incoming: int) -> int | None:
        return self.oldest(self.probation + self.protected)


class ARC(Policy):
    """Blocks used once (T1) and again (T2), and their ghosts (B1, B2); misses on ghosts move the target of T1."""

    def reset(self) -> None:
        self.t1: list[int] = []  # oldest first
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.target = 0

    def _size(self, *lists: list[int]) -> int:
        return sum(self.view.bytes(b) for blocks in lists for b in blocks)

    def _trim(self) -> None:
        c = self.view.capacity
        while self.b1 and self._size(self.t1, self.b1) > c:
            self.b1.pop(0)
        while self.b2 and self._size(self.t1, self.b1, self.t2, self.b2) > 2 * c:
            self.b2.pop(0)

    def on_hit(self, b: int) -> None:
        (self.t1 if b in self.t1 else self.t2).remove(b)
        self.t2.append(b)

    def on_miss(self, b: int) -> None:
        one, two = self._size(self.b1), self._size(self.b2)
        if b in self.b1:
            step = max(1, two // one if one else 1) * self.view.bytes(b)
            self.target = min(self.view.capacity, self.target + step)
        elif b in self.b2:
            step = max(1, one // two if two else 1) * self.view.bytes(b)
            self.target = max(0, self.target - step)

    def on_insert(self, b: int) -> None:
        for ghosts in (self.b1, self.b2):
            if b in ghosts:
                ghosts.remove(b)
                self.t2.append(b)
                break
        else:
            self.t1.append(b)
        self._trim()

    def on_remove(self, b: int, reason: int) -> None:
        once = b in self.t1
        (self.t1 if once else self.t2).remove(b)
        if reason in (EVICT, DEMOTE):
            (self.b1 if once else self.b2).append(b)
            self._trim()

    def victim(self, incoming: int) -> int | None:
        size = self._size(self.t1)
        if self.t1 and (size > self.target or (incoming in self.b2 and size == self.target)):
            return self.oldest(self.t1 + self.t2)
        return self.oldest(self.t2 + self.t1)


POLICIES: dict[str, Callable[..., Any]] = {
    "arc": ARC, "belady": Belady, "clock": Clock_, "fifo": FIFO, "lfu": LFU, "lru": LRU, "random": Random,
    "s3-fifo": S3FIFO, "sieve": Sieve, "slru": SLRU,
}  # fmt: skip

# -- the store: blocks x tiers -----------------------------------------------------------------------------


class View:
    """What a policy reads of its tier."""

    def __init__(self, store: Store, t: int) -> None:
        self.store, self.t = store, t
        self.leaf_only = store.tiers[t]["leaf_only"]

    @property
    def capacity(self) -> int:
        """Capacity less what permanently lives in the tier."""
        return self.store.capacity(self.t)

    def bytes(self, b: int) -> int:
        """Size of `b`."""
        return int(self.store.size[b])

    def position(self, b: int) -> int:
        """Place of `b` in its prompt."""
        return int(self.store.position[b])

    def next_use(self, b: int) -> int:
        """Index of the next look-up of `b`."""
        return self.store.next_use.get(b, NEVER)

    def evictable(self, b: int) -> bool:
        """Whether the store lets `b` go."""
        here = self.store.copies[self.t]
        free = not self.store.pins.get(b)
        return free and not (self.leaf_only and any(self.store.parent[c] == b for c in here))


class Store:
    """Which tiers hold a copy of each block; how copies move; what moved. `kvsim_core._store` states the rules."""

    def __init__(
        self, tiers: Sequence[Mapping[str, Any]], movements: Sequence[Mapping[str, Any]], policies: Sequence[Any],
        blocks: Mapping[str, Sequence[Any]], *, n_links: int = 0, prefix_rule: bool = True,
        workspace_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.tiers, self.movements, self.policies, self.prefix_rule = (tiers, movements, policies, prefix_rule)
        self.size, self.tokens, self.kind = blocks["bytes"], blocks["tokens"], blocks["kind"]
        self.operation, self.parent, self.position = (blocks["operation"], blocks["parent"], blocks["position"])
        self.home, self.recompute = blocks["home"], blocks["recompute_flops"]
        self.copies: list[set[int]] = [set() for _ in tiers]
        self.found: list[dict[int, int]] = [{} for _ in tiers]
        self.pins: dict[int, int] = {}
        self.next_use: dict[int, int] = {}
        self.seen: set[int] = set()
        self.held: set[int] = set()
        self.workspace = workspace_bytes
        self.claimed = [0] * len(tiers)
        self.broken = False
        T = len(tiers)
        self.lookups = [[0] * 3 for _ in range(4)]
        self.hits = [[[[0] * 3 for _ in range(2)] for _ in range(4)] for _ in range(T)]
        self.counts = {
            name: [[0] * 4 for _ in range(T)]
            for name in ("inserted", "evicted", "demoted_out", "promoted_in", "refused", "freed")
        }
        self.evicted_bytes = [0] * T
        self.totals = {name: [[0] * 4 for _ in range(T)] for name in FLOWS}
        self.link_totals = [[0] * n_links, [0] * n_links]
        self.unheld = 0
        self.begin_step()
        for t, policy in enumerate(policies):
            policy.attach(View(self, t))

    def begin_step(self) -> None:
        """Start the traffic of a step: flows[flow][tier][operation][kind]."""
        T, L = len(self.tiers), len(self.link_totals[0])
        self.flows = {name: [[[0] * 4 for _ in range(2)] for _ in range(T)] for name in FLOWS}
        self.transfers = [[0, 0] for _ in range(T)]
        self.down = [0] * T
        self.links = [[0] * L, [0] * L]  # towards compute, away
        self.flops = [[0.0, 0.0], [0.0, 0.0]]
        self.broken = False
        self.room = self.workspace

    def end_step(self) -> None:
        """Add the step's traffic to the run's."""
        for name, tiers in self.flows.items():
            for t, (attention, ffn) in enumerate(tiers):
                for k in range(4):
                    self.totals[name][t][k] += attention[k] + ffn[k]
        for total, now in zip(self.link_totals, self.links, strict=True):
            for i, moved in enumerate(now):
                total[i] += moved

    def capacity(self, t: int) -> int:
        """Capacity of tier t for its policy."""
        homes: int = sum(size for size, home in zip(self.size, self.home, strict=True) if home == t)
        return int(self.tiers[t]["capacity_bytes"]) - homes - self.claimed[t]

    def used(self, t: int) -> int:
        """Bytes of the copies in tier t."""
        return sum(int(self.size[b]) for b in self.copies[t])

    @property
    def unreachable(self) -> int:
        """Bytes of resident blocks whose parent is nowhere."""
        held = set().union(*self.copies)
        return sum(int(self.size[b]) for b in held if self.parent[b] >= 0 and self.parent[b] not in held)

    def nearest(self, b: int) -> int | None:
        """Return the nearest tier with a copy of b, its home included."""
        return next((t for t in range(len(self.tiers)) if b in self.copies[t] or self.home[b] == t), None)

    # books

    def _flow(self, name: str, t: int, b: int, used: int, links: int, way: int, transfer: bool = True) -> None:
        if used == 0:
            return
        o = self.operation[b]
        self.flows[name][t][o][self.kind[b]] += used
        if transfer:
            fragment = self.tiers[t]["fragment_bytes"]
            self.transfers[t][o] += -(-used // fragment) if fragment else 1
        for i in range(len(self.links[way])):
            if links >> i & 1:
                self.links[way][i] += used

    def count_read(self, t: int, b: int, used: int) -> None:
        """Book bytes read for compute."""
        self._flow("read", t, b, used, self.tiers[t]["path"], 0)

    def count_write(self, t: int, b: int, used: int, links: int) -> None:
        """Book bytes written from compute, or landing on their way up (no links)."""
        self._flow("write", t, b, used, links, 1)
        if links:
            self.down[t] += used

    def count_back(self, u: int, v: int, b: int) -> None:
        """Book a copy written from tier u down to tier v."""
        self._flow("back_read", u, b, self.size[b], 0, 1, transfer=False)
        self._flow("back_write", v, b, self.size[b], self.tiers[u]["path"] ^ self.tiers[v]["path"], 1)

    def count_found(self, counter: list[int], b: int, used: int) -> None:
        """Count one look-up in blocks, tokens and bytes."""
        for weight, amount in enumerate((1, self.tokens[b], used)):
            counter[weight] += amount

    # copies

    def _add(self, t: int, b: int) -> None:
        self.copies[t].add(b)
        self.found[t][b] = 0
        self.seen.add(b)
        self.counts["inserted"][t][self.kind[b]] += 1
        self.policies[t].on_insert(b)

    def _remove(self, t: int, b: int, reason: int) -> None:
        self.copies[t].remove(b)
        self.policies[t].on_remove(b, reason)

    def _pin(self, b: int, by: int) -> None:
        self.pins[b] = self.pins.get(b, 0) + by

    def insert(self, t: int, b: int, rooted: bool = False) -> bool:
        """Put a copy of b into tier t, and below where the rule writes through; `rooted`: only on a resident parent."""
        if self.size[b] > self.capacity(t):
            return False
        self._pin(b, 1)
        try:
            while self.used(t) + self.size[b] > self.capacity(t):
                victim = self.policies[t].victim(b)
                if victim is None:
                    self.counts["refused"][t][self.kind[b]] += 1
                    return False
                self._evict(t, victim)
        finally:
            self._pin(b, -1)
        if rooted and self.parent[b] >= 0 and self.parent[b] not in self.copies[t]:
            return False
        self._add(t, b)
        through = t + 1 < len(self.tiers) and self.movements[t]["eviction"] == THROUGH
        if through and b not in self.copies[t + 1] and self.home[b] != t + 1:
            self._pin(b, 1)
            if self.insert(t + 1, b):
                self.count_back(t, t + 1, b)
            self._pin(b, -1)
        return True

    def _evict(self, t: int, b: int) -> None:
        k = self.kind[b]
        self.counts["evicted"][t][k] += 1
        self.evicted_bytes[t] += self.size[b]
        below = any(b in copies for copies in self.copies[t + 1 :]) or self.home[b] > t
        if t == len(self.tiers) - 1 or self.movements[t]["eviction"] != BACK or below:
            self._remove(t, b, EVICT)
            return
        self.counts["demoted_out"][t][k] += 1
        self._remove(t, b, DEMOTE)
        self.settle(b, t + 1, t)

    def settle(self, b: int, u: int, source: int | None) -> None:
        """Place b at tier u or below: new, or on its way down from `source`."""
        for v in range(u, len(self.tiers)):
            if b in self.copies[v]:
                return
            if self.insert(v, b):
                if source is None:
                    self.count_write(v, b, self.size[b], self.tiers[v]["path"])
                else:
                    self.count_back(source, v, b)
                return
            last = v == len(self.tiers) - 1
            if not last and self.movements[v]["eviction"] == DISCARD and self.size[b] <= self.capacity(v):
                return

    def promote(self, b: int, s: int) -> None:
        """Move the copy of b up from tier s as far as the rules between neighbours say."""
        top, at_home = s, self.home[b] == s
        while top > 0:
            rule = self.movements[top - 1]
            after = rule["promote_after"]
            if not rule["kinds"] >> self.kind[b] & 1 or after == 0:
                break
            if after > 1 and (top != s or at_home or self.found[s][b] < after):
                break
            top -= 1
        if top == s:
            return
        self._pin(b, 1)
        if self.movements[s - 1]["exclusive"] and not at_home:
            self._remove(s, b, PROMOTE)
        for v in range(s - 1, top - 1, -1):
            passing = v > top and self.movements[v - 1]["exclusive"]
            if not passing and b not in self.copies[v] and self.insert(v, b):
                self.counts["promoted_in"][v][self.kind[b]] += 1
                self.count_write(v, b, self.size[b], 0)
        if self.nearest(b) is None:
            self.insert(s, b)
        self._pin(b, -1)

    # accesses

    def lookup(self, b: int, used: int) -> None:
        """Find b, count it, bring it; remember whether it is near now."""
        self._find(b, used)
        self._hold(b)

    def _hold(self, b: int) -> None:
        (self.held.add if b in self.copies[0] else self.held.discard)(b)

    def _find(self, b: int, used: int) -> None:
        t, k = self.nearest(b), self.kind[b]
        whole = used < 0 or used >= self.size[b]
        used = self.size[b] if used < 0 else used
        self.count_found(self.lookups[k], b, used)
        for u in range(len(self.tiers) if t is None else t):
            may_enter = u + 1 >= len(self.tiers) or self.movements[u]["kinds"] >> k & 1
            if may_enter and hasattr(self.policies[u], "on_miss"):
                self.policies[u].on_miss(b)
        if t is None:
            self.broken = True
            self._compute(b, b in self.seen)
            self.settle(b, 0, None)
            return
        usable = not (self.prefix_rule and self.broken and k == KV)
        self.count_found(self.hits[t][k][0], b, used)
        if not self.broken:
            self.count_found(self.hits[t][k][1], b, used)
        if b in self.copies[t]:
            self.found[t][b] += 1
            self.policies[t].on_hit(b)
        for u in range(t + 1, len(self.tiers)):
            if self.tiers[u]["touch_all"] and b in self.copies[u]:
                self.policies[u].on_hit(b)
        if usable:
            self.count_read(t, b, used)
            if t > 0 and whole:
                self.promote(b, t)
            return
        self._compute(b, True)
        if t == 0:
            self.count_write(0, b, self.size[b], self.tiers[0]["path"])
        elif self.home[b] < 0:
            self._pin(b, 1)
            if self.movements[t - 1]["exclusive"]:
                self._remove(t, b, PROMOTE)
            self.settle(b, 0, None)
            self._pin(b, -1)

    def _compute(self, b: int, again: bool) -> None:
        for o in range(2):
            self.flops[o][again] += self.recompute[b][o]

    def read(self, b: int, used: int) -> None:
        """Read a live block where it lies; what no tier holds is charged to the outermost."""
        t = self.nearest(b)
        used = self.size[b] if used < 0 else used
        if t is None:
            self.unheld += used
        self.count_read(len(self.tiers) - 1 if t is None else t, b, used)

    def write(self, b: int, used: int) -> None:
        """Write b: at its nearest copy, or as a new block."""
        used = self.size[b] if used < 0 else used
        if not any(b in copies for copies in self.copies):
            if self.home[b] >= 0:
                self.count_write(self.home[b], b, used, self.tiers[self.home[b]]["path"])
            else:
                self.settle(b, 0, None)
                self._hold(b)
            return
        t = self.nearest(b)
        assert t is not None
        self.count_write(t, b, used, self.tiers[t]["path"])
        if b in self.copies[t]:
            self.policies[t].on_hit(b)

    def free(self, b: int) -> None:
        """Remove every copy of b, unless it is pinned."""
        for t, copies in enumerate(self.copies):
            if b in copies and not self.pins.get(b):
                self.counts["freed"][t][self.kind[b]] += 1
                self._remove(t, b, FREED)

    def context(self, b: int, used: int) -> None:
        """Read b and all its ancestors where they lie; `used` is the total, shared out by the bytes held.

        What was near at its last look-up and was evicted since is read near while the workspace has room for it.
        """
        held = [0] * (len(self.tiers) + 1)
        a = b
        while a >= 0:
            t = self.nearest(a)
            if t != 0 and a in self.held and self.size[a] <= self.room:
                t = 0
                self.room -= self.size[a]
            held[len(self.tiers) if t is None else t] += self.size[a]
            a = self.parent[a]
        total = sum(held)
        used = total if used < 0 else used
        if total == 0:
            self.read(b, used)
            return
        cum = before = 0
        for t, here in enumerate(held):
            if here == 0:
                continue
            cum += here
            now = used if cum == total else min(used, int(cum * (used / total)))
            part, before = now - before, now
            if t == len(self.tiers):
                self.unheld += part
            self.count_read(min(t, len(self.tiers) - 1), b, part)

    def pin(self, b: int) -> None:
        """Keep b from being a victim until it is unpinned as often."""
        self._pin(b, 1)

    def unpin(self, b: int) -> None:
        """Take one pin back."""
        self._pin(b, -1 if self.pins.get(b) else 0)

    def prefetch(self, b: int) -> None:
        """Bring b up as a look-up would, without counting one."""
        t = self.nearest(b)
        if t:
            self.count_read(t, b, self.size[b])
            self.promote(b, t)

    def demote(self, b: int, u: int) -> None:
        """Move b's copy from tier u to the one below."""
        if b in self.copies[u] and not self.pins.get(b) and u + 1 < len(self.tiers):
            self.counts["demoted_out"][u][self.kind[b]] += 1
            self._remove(u, b, DEMOTE)
            self.settle(b, u + 1, u)

    # what a closed loop needs beside: counting, telling and moving apart from each other, and room that is no block's

    def count(self, b: int, t: int | None) -> None:
        """Count a look-up of b that tier t answered; KV behind a missing block is no hit by the prefix rule."""
        k = self.kind[b]
        self.count_found(self.lookups[k], b, self.size[b])
        if t is None:
            self.broken = True
            return
        self.count_found(self.hits[t][k][0], b, self.size[b])
        if not self.broken:
            self.count_found(self.hits[t][k][1], b, self.size[b])

    def touch(self, b: int) -> None:
        """Tell the policies of a look-up of b."""
        t, k = self.nearest(b), self.kind[b]
        for u in range(len(self.tiers) if t is None else t):
            may_enter = u + 1 >= len(self.tiers) or self.movements[u]["kinds"] >> k & 1
            if may_enter and hasattr(self.policies[u], "on_miss"):
                self.policies[u].on_miss(b)
        if t is None:
            return
        if b in self.copies[t]:
            self.found[t][b] += 1
            self.policies[t].on_hit(b)
        for u in range(t + 1, len(self.tiers)):
            if self.tiers[u]["touch_all"] and b in self.copies[u]:
                self.policies[u].on_hit(b)

    def renew(self, b: int) -> None:
        """Let the nearest tier's policy take b for one that has come just now."""
        self.policies[0].on_remove(b, PROMOTE)
        self.policies[0].on_insert(b)

    def available(self, t: int) -> int:
        """Bytes of tier t that a claim could have: all that no pinned block holds."""
        return self.capacity(t) - sum(int(self.size[b]) for b in self.copies[t] if self.pins.get(b))

    def rises(self, b: int, s: int) -> bool:
        """Whether a copy of b found in tier s may move up."""
        rule = self.movements[s - 1]
        after = rule["promote_after"]
        may = rule["kinds"] >> self.kind[b] & 1 and after > 0
        return bool(may) and (after == 1 or (self.home[b] != s and self.found[s][b] >= after))

    def claim(self, t: int, amount: int) -> bool:
        """Take room of tier t for what is in no block, evicting for it; False, and nothing taken, if there is none."""
        while self.used(t) + amount > self.capacity(t):
            victim = self.policies[t].victim(self.private)
            if victim is None:
                return False
            self._evict(t, victim)
        self.claimed[t] += amount
        return True

    def shift(self, u: int, v: int, amount: int) -> None:
        """Book the move of private KV from tier u to tier v."""
        links = self.tiers[u]["path"] ^ self.tiers[v]["path"]
        b = self.private
        if u < v:
            self._flow("back_read", u, b, amount, 0, 1, transfer=False)
            self._flow("back_write", v, b, amount, links, 1)
        else:
            self._flow("read", u, b, amount, links, 0)
            self._flow("write", v, b, amount, 0, 1)

    def land(self, t: int, amount: int) -> None:
        """Book private KV that comes from another pool into tier t."""
        self._flow("write", t, self.private, amount, self.tiers[t]["path"], 1)

    @property
    def private(self) -> int:
        """The block of no bytes, last in the table, that stands for private KV."""
        return len(self.size) - 1

    def request(self, hook: str, *arguments: Any) -> None:
        """Tell every policy that a request begins or ends."""
        for policy in self.policies:
            getattr(policy, hook, lambda *_: None)(*arguments)


FLOWS = ("read", "write", "back_read", "back_write")

# -- the step clock ----------------------------------------------------------------------------------------


def power(x: float, y: float) -> float:
    """x^y for x >= 0 from the four operations alone: the same bits everywhere."""
    if x <= 0.0:
        return 0.0
    if y == 1.0:
        return x
    m, e = frexp(x)
    if m < 0.7071067811865476:
        m, e = m * 2.0, e - 1
    z = (m - 1.0) / (m + 1.0)
    log = 0.0
    for k in range(23, 0, -2):
        log = log * (z * z) + 1.0 / k
    log = 2.0 * z * log + e * 0.6931471805599453
    r = y * log
    n = floor(r / 0.6931471805599453 + 0.5)
    r = r - n * 0.6931471805599453
    term = result = 1.0
    for k in range(1, 18):
        term = term * r / k
        result = result + term
    return ldexp(result, n)


def split(total: int, shares: Sequence[float]) -> list[int]:
    """Share a whole number out in proportion; the last positive share takes the remainder."""
    out = [0] * len(shares)
    positive = [i for i, share in enumerate(shares) if share > 0.0]
    whole, cum, before = sum(shares[i] for i in positive), 0.0, 0
    for i in positive[:-1]:
        cum += shares[i]
        now = min(total, floor(total * (cum / whole)))
        out[i], before = now - before, now
    out[positive[-1] if positive else -1] = total - before
    return out


def combine(channel: Mapping[str, Any], up: float, down: float) -> float:
    """Time of bytes towards compute and away over one channel."""
    r: float = up * channel["read_ps_per_byte"]
    w: float = down * channel["write_ps_per_byte"]
    return r + w if channel["shared"] else max(r, w, (up + down) * channel["both_ps_per_byte"])


def rounded(t: float) -> int:
    """Round half up, once."""
    return floor(t + 0.5)


class Clock:
    """Bytes and FLOPs in, picoseconds and stalls out. `kvsim_core._clock` states the physics."""

    def __init__(
        self, tiers: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]], *,
        ps_per_flop: Sequence[float] = (0.0, 0.0), overhead_ps: int = 0, collective_ps: float = 0.0,
        collective_ps_per_token: float = 0.0,
    ) -> None:  # fmt: skip
        self.tiers, self.links, self.ps_per_flop = tiers, links, ps_per_flop
        self.overhead_ps, self.fixed, self.per_token = (overhead_ps, collective_ps, collective_ps_per_token)
        self.now = self.compute = self.recompute = self.overhead = self.collectives = self.idle = self.steps = 0
        self.stall = [[[0] * 5 for _ in range(4)] for _ in tiers]

    def terms(self, store: Store, t: int, operations: Sequence[int]) -> tuple[int, list[float]]:
        """Return the time of tier t's traffic in these operations, and its causes."""
        tier = self.tiers[t]
        r, w, br, bw = (float(sum(sum(store.flows[f][t][o]) for o in operations)) for f in FLOWS)
        if r + w + br + bw == 0.0:
            return 0, [0.0] * 5
        n = float(sum(store.transfers[t][o] for o in operations))
        useful, own = combine(tier, r, w), combine(tier, r + br, w + bw)
        time = own
        for i, link in enumerate(self.links):
            if t > 0 and store.tiers[t]["path"] >> i & 1:
                useful = max(useful, combine(link, r, store.down[t]))
                own = max(own, combine(link, r, store.down[t] + bw))
                time = max(time, combine(link, store.links[0][i], store.links[1][i]))
        own = min(own, time)
        useful = min(useful, own)
        body = n * tier["overhead_ps"] + time
        p = tier["norm"]
        total = tier["latency_ps"] + body
        if p != 1.0:
            total = power(power(tier["latency_ps"], p) + power(body, p), 1.0 / p)
        causes = [tier["latency_ps"], n * tier["overhead_ps"], useful, time - own, own - useful]
        return rounded(total), causes

    def charge(self, store: Store, t: int, operations: Sequence[int], stall: int, causes: list[float]) -> None:
        """Share a stall out over kinds by bytes, and over causes by their terms."""
        kinds = [float(sum(store.flows[f][t][o][k] for f in FLOWS for o in operations)) for k in range(4)]
        for k, part in enumerate(split(stall, kinds)):
            for c, piece in enumerate(split(part, causes) if part else []):
                self.stall[t][k][c] += piece

    def step(self, store: Store, flops: Sequence[float], fixed: int, tokens: int, arrival: int) -> None:
        """Advance by one step."""
        self.idle += max(0, arrival - self.now)
        self.now = max(self.now, arrival)
        collectives = rounded(self.fixed + tokens * self.per_token) if tokens > 0 else 0
        near = self.overhead_ps + fixed + collectives
        for o in range(2):
            parts = [flops[o] + store.flops[o][0], store.flops[o][1]]
            c = rounded((parts[0] + parts[1]) * self.ps_per_flop[o])
            fresh, again = split(c, parts) if sum(parts) else (c, 0)
            self.compute += fresh
            self.recompute += again
            time, causes = self.terms(store, 0, [o])
            if time > c:
                self.charge(store, 0, [o], time - c, causes)
            near += max(c, time)
        ready = near
        for t in range(1, len(self.tiers)):
            time, causes = self.terms(store, t, [0, 1])
            if time > ready:
                self.charge(store, t, [0, 1], time - ready, causes)
                ready = time
        self.overhead += self.overhead_ps + fixed
        self.collectives += collectives
        self.now += ready
        self.steps += 1


# -- replay and curve ----------------------------------------------------------------------------------------


def replay(store: Store, clock: Clock, steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Replay steps (arrival_ps, flops, fixed_ps, tokens, repeat, request, accesses) and return the books.

    An access is (block, op, bytes or -1, next use).
    """
    for step in steps:
        looks = any(op == LOOKUP for _, op, _, _ in step["accesses"])
        for _ in range(step["repeat"]):
            store.begin_step()
            if looks:
                store.request("on_request_begin", step["request"])
            for b, op, used, use in step["accesses"]:
                if op in (LOOKUP, WRITE):
                    store.next_use[b] = use
                access = (store.lookup, store.read, store.write, None, store.context)[op]
                if access is None:
                    store.free(b)
                else:
                    access(b, used)
            if looks:
                store.request("on_request_end")
            clock.step(store, step["flops"], step["fixed_ps"], step["tokens"], step["arrival_ps"])
            store.end_step()
    return {
        "clock_ps": clock.now, "compute_ps": clock.compute, "recompute_ps": clock.recompute, "idle_ps": clock.idle,
        "overhead_ps": clock.overhead, "collectives_ps": clock.collectives, "bubble_ps": 0, "steps": clock.steps,
        "stall_ps": clock.stall, "lookups": store.lookups, "hits": store.hits, **store.counts,
        "read_bytes": store.totals["read"], "write_bytes": store.totals["write"],
        "writeback_read_bytes": store.totals["back_read"], "writeback_write_bytes": store.totals["back_write"],
        "link_up_bytes": store.link_totals[0], "link_down_bytes": store.link_totals[1],
        "evicted_bytes": store.evicted_bytes, "resident_blocks": [len(copies) for copies in store.copies],
        "capacity_bytes": [tier["capacity_bytes"] for tier in store.tiers],
        "used_bytes": [
            tier["capacity_bytes"] - store.capacity(t) + store.used(t) for t, tier in enumerate(store.tiers)
        ],
        "unreachable_bytes": store.unreachable, "unheld_read_bytes": store.unheld,
    }  # fmt: skip


def chain(parent: Sequence[int], b: int) -> list[int]:
    """Return a block and its ancestors, root first."""
    return [*chain(parent, parent[b]), b] if b >= 0 else []


def curve(
    last: Sequence[int], parent: Sequence[int], size: Sequence[int], policy: Any, *, capacity: int,
    prefix: bool = False,
    leaf_only: bool = False, output: Sequence[int] = (),
) -> list[int]:  # fmt: skip
    """Return how many blocks each request hits in one tier; a request is the last block of its prompt.

    What it writes afterwards is the part of `output`'s chain that its prompt does not have.
    """
    n = len(size)
    blocks = {
        "bytes": size, "tokens": [0] * n, "kind": [KV] * n, "operation": [0] * n, "parent": parent,
        "position": [len(chain(parent, b)) - 1 for b in range(n)], "home": [-1] * n,
        "recompute_flops": [(0.0, 0.0)] * n,
    }  # fmt: skip
    tier = {"capacity_bytes": capacity, "fragment_bytes": 0, "path": 0, "leaf_only": leaf_only, "touch_all": False}
    store = Store([tier], [], [policy], blocks)
    references = [b for end in last for b in chain(parent, end)]
    out: list[int] = []
    at = 0

    def look_ahead(b: int, now: int) -> None:
        store.next_use[b] = references.index(b, now) if b in references[now:] else NEVER

    for r, end in enumerate(last):
        prompt = chain(parent, end)
        store.request("on_request_begin", r)
        rooted = prefix and leaf_only
        guarded = [b for b in prompt if rooted and b in store.copies[0]]
        for b in guarded:
            store._pin(b, 1)
        hits, broken = 0, False
        for i, b in enumerate(prompt):
            look_ahead(b, at + i + 1)
            if b in store.copies[0]:
                policy.on_hit(b)
                hits += not (prefix and broken)
                continue
            broken = True
            if hasattr(policy, "on_miss"):
                policy.on_miss(b)
            if not store.insert(0, b, rooted) and prefix:
                break
        at += len(prompt)
        for b in chain(parent, output[r]) if output else []:
            if b not in prompt:
                look_ahead(b, at)
                if b in store.copies[0]:
                    policy.on_hit(b)
                elif not store.insert(0, b, rooted) and rooted:
                    break
        for b in guarded:
            store._pin(b, -1)
        store.request("on_request_end")
        out.append(hits)
    return out
