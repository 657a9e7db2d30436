"""The closed loop in plain Python: per step, per sequence.

What the numbers of `spec` are is said in `kvsim.serving`, which makes them. The rules, in the order in which they
matter:

* Time is whole picoseconds. At one moment steps end first, then events happen (tools end, requests arrive, pins end,
  demotions, prefetches; each by row), then workers begin steps (by number). A worker is one replica of a pool, or of
  the attention and feed-forward pools that step together.
* A step advances every running sequence by one token (by as many as speculation accepts) and prefills chunks of
  prompts, oldest admission first, up to a budget. What it reads where it lies is its traffic; everything else that
  moves (loads, write-downs, demotions, prefetches) queues on devices and links, first come first served.
* A request is admitted when its KV fits: blocks found in front of its prompt are pinned, what lies in a farther tier
  is loaded up to the split point, room for the rest is claimed. A block can be found once it has been computed: when
  its prefill ends. Claims and blocks compete for the nearest tier; a policy says which unpinned block goes.
* A request is at every instant in one state. A worker's time is compute, recompute, overhead, collectives, stall,
  bubble or idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

from kvsim.reference.memory import FLOWS, NEVER, PROMOTE, Store, chain, combine, power, rounded, split, splitmix64

KV, WEIGHTS, STATE, DATA = range(4)
ALL, PREFILL, DECODE = range(3)  # roles of a worker
WAIT, PREEMPT, STREAM = range(3)  # overflow
FCFS, PRIORITY, SHORTEST = range(3)
SPLIT, ALWAYS, NEVER_LOAD, OVERLAP = range(4)
ROUND_ROBIN, LEAST_LOADED, PREFIX_AWARE, SESSION_AFFINE = range(4)
NONE, THINK, TOOL = range(3)
TOOL_END, ARRIVE, UNPIN, DEMOTE, PREFETCH = range(5)
FINISH, EVENT, BEGIN = range(3)
IDLE, READY, BUSY, LOADING = range(4)
QUEUED, TRANSFER, PREFILLING, RECOMPUTING, DECODING, PREEMPTED, FROM_TIER = range(7)
COMPUTE, RECOMPUTE, OVERHEAD, COLLECTIVES, STALL, BUBBLE, NO_REQUEST, IDLE_TOOL, IDLE_THINK = range(9)
DONE, REJECTED, UNREACHED = range(3)
ONE = 1 << 20  # accepted tokens a step are counted in these parts


class Channel:
    """A device or a link that serves moves in the order in which they are asked for."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec, self.until, self.busy = spec, [0, 0], [0, 0]

    def use(self, now: int, up: int, down: int) -> list[tuple[int, float]]:
        """Queue bytes towards compute and away; return the end and the own time of each way (`now`, 0: no bytes)."""
        spec = self.spec
        if spec["shared"]:
            if up + down == 0:
                return [(now, 0.0), (now, 0.0)]
            own = up * spec["read_ps_per_byte"] + down * spec["write_ps_per_byte"]
            end = max(now, self.until[0]) + rounded(own)
            self.until = [end, end]
            self.busy[0] += rounded(up * spec["read_ps_per_byte"])
            self.busy[1] += rounded(down * spec["write_ps_per_byte"])
            return [(end, own), (end, own)]
        out = [(now, 0.0), (now, 0.0)]
        for way, moved in ((1, down), (0, up)):
            if moved == 0:
                continue
            pace = spec["write_ps_per_byte"] if way else spec["read_ps_per_byte"]
            other = spec["read_ps_per_byte"] if way else spec["write_ps_per_byte"]
            start = max(now, self.until[way])
            time = moved * pace
            overlap = float(max(0, self.until[1 - way] - start))
            both = spec["both_ps_per_byte"]
            if both > 0.0 and overlap > 0.0:
                # while the other way is busy at its full rate, what is left of the sum of both
                rest = 1.0 / both - 1.0 / other if other > 0.0 else 0.0
                slow = 1.0 / rest if rest > 0.0 else 0.0
                if slow > pace:
                    time = moved * slow if moved * slow <= overlap else overlap + (moved - overlap / slow) * pace
                elif rest <= 0.0:
                    time = overlap + time
            self.until[way] = start + rounded(time)
            self.busy[way] += rounded(time)
            out[way] = (self.until[way], time)
        return out


class Load:
    """When a bundle of moves ends, by tier, and what its time is made of."""

    def __init__(self, now: int, tiers: int) -> None:
        self.end = [now] * tiers
        self.causes = [[0.0] * 5 for _ in range(tiers)]
        self.kinds = [[0.0] * 4 for _ in range(tiers)]

    @property
    def ready(self) -> int:
        """When all of it is there."""
        return max(self.end)

    @property
    def slowest(self) -> int:
        """The nearest of the tiers that end last."""
        return self.end.index(self.ready)


class Live:
    """A request between its admission and its release by one worker."""

    def __init__(self, row: int, key: tuple[int, int], tiers: int) -> None:
        self.row, self.key = row, key
        self.pinned: list[int] = []
        self.chain: list[int] = []
        self.blocks: list[int] = []  # of it, to publish when the prefill ends
        self.told: dict[int, bool] = {}  # pinned near: whether the policies still have to hear of its look-up
        self.claimed = [0] * tiers
        self.far = [0] * tiers  # bytes of its context in each tier, read there at every step
        self.first = self.second = 0  # tokens in front of the first part to compute, and of the second
        self.front = self.total = self.done = self.again = 0  # tokens: of the first part, of both, computed, once had
        self.emits = True  # the end of the prefill gives a token
        self.chain_tokens = 0
        self.load: Load | None = None
        self.ready = 0
        self.tail = self.joined = self.end = 0  # private tokens when it began to decode; the token clock then, and last


class Worker:
    """One replica: its memory, its queues, its clock."""

    def __init__(self, number: int, spec: Mapping[str, Any], kind: Mapping[str, Any], store: Store) -> None:
        self.number, self.role, self.units = number, spec["role"], spec["units"]
        self.kind, self.store, self.ladder = kind, store, kind["ladder"]
        self.T = len(self.ladder)
        self.state, self.now, self.until = IDLE, 0, 0
        self.waiting: list[tuple[int, int, int]] = []  # key, serial, row
        self.loading: list[Live] = []
        self.prefill: list[Live] = []
        self.batch: list[Live] = []
        self.chunks: list[tuple[Live, int, int]] = []  # request, context, tokens
        self.decoding = False
        self.tokens = 0  # the token clock: tokens that a sequence decoding since the start would have
        self.acceptance = 0
        self.extra = [[[0] * 4 for _ in range(4)] for _ in range(2)]  # near traffic of moves: operation, flow, kind
        self.devices = [Channel(tier) for tier in kind["tiers"]]
        self.links = [Channel(link) for link in kind["links"]]
        self.gate = [0] * self.T
        self.ffn_read = 0  # bytes of the feed-forward pool's own memory
        self.waited = 0  # for the load in flight that ends first, not yet charged to its causes

    @property
    def live(self) -> list[Live]:
        """All admitted requests."""
        return self.loading + self.prefill + self.batch

    def carries(self, t: int) -> list[Channel]:
        """Return what the bytes of tier t cross."""
        path = self.kind["tiers"][t]["path"]
        return [self.devices[t], *(link for i, link in enumerate(self.links) if path >> i & 1)]


def transfer(tier: Mapping[str, Any], n: float, time: float) -> float:
    """(latency^p + (n overhead + time)^p)^(1/p), in picoseconds."""
    body: float = n * tier["overhead_ps"] + time
    p = tier["norm"]
    if p == 1.0:
        return float(tier["latency_ps"] + body)
    return power(power(tier["latency_ps"], p) + power(body, p), 1.0 / p)


def fragments(tier: Mapping[str, Any], amount: int) -> int:
    """Transfers that so many bytes take."""
    size = tier["fragment_bytes"]
    return int(amount > 0) if not size else -(-amount // size)


class Engine:
    """Requests in, both views of the stall out.

    `spec` holds kinds and workers, groups of workers for each population, the requests' and the blocks' columns, the
    model's numbers and the options; `make_policies(kind)` gives a worker its policies.
    """

    def __init__(self, spec: Mapping[str, Any], make_policies: Callable[[Mapping[str, Any]], list[Any]]) -> None:
        self.spec, self.option, self.model = spec, spec["options"], spec["model"]
        self.q, self.blocks = spec["requests"], spec["blocks"]
        self.n, self.T = len(self.q["arrival_ps"]), spec["tiers"]
        self.workers: list[Worker] = []
        for i, w in enumerate(spec["workers"]):
            kind = spec["kinds"][w["kind"]]
            store = Store(
                kind["tiers"], kind["movements"], make_policies(kind), self.blocks, n_links=len(kind["links"])
            )
            store.next_use[store.private] = -1
            self.workers.append(Worker(i, w, kind, store))
        self.unit_pool = spec["unit_pool"]
        self.parts = [[0] * 9 for _ in self.unit_pool]
        self.stall = [[[[0] * 5 for _ in range(4)] for _ in range(self.T)] for _ in range(max(self.unit_pool) + 1)]
        self.steps = [0] * len(self.unit_pool)
        self.passed = [0] * len(self.unit_pool)  # tokens through each unit
        self.ledger: list[tuple[int, int, int, int, int]] = []  # pool, part, tier, start, picoseconds
        self.emissions: list[tuple[int, int, int]] = []  # time, prompt tokens, output tokens
        self.events: list[tuple[int, int, int]] = []
        self.serials = 0
        self.turn = [0] * len(spec["groups"])
        self.tools_busy = self.tools = self.thinking = self.upstream = 0
        self.tool_queue: list[tuple[int, int]] = []
        self.ready, self.admitted, self.first_token, self.done = ([-1] * self.n for _ in range(4))
        self.states = [[0] * (FROM_TIER + self.T) for _ in range(self.n)]
        self.state, self.since = [QUEUED] * self.n, [0] * self.n
        names = ("think", "tool", "tool_wait", "hit", "computed", "recomputed", "preemptions", "unit", "decode_unit",
                 "status")  # fmt: skip
        self.column = {name: [0] * self.n for name in names}
        self.loaded = [[0] * self.T for _ in range(self.n)]
        self.emitted, self.lost = [0] * self.n, [0] * self.n
        self.key: list[tuple[int, int]] = [(0, 0)] * self.n
        self.front_of: dict[int, Worker] = {}
        self.staged: dict[int, Live] = {}  # prefilled, its KV still where it was prefilled
        self.swapped: dict[int, int] = {}
        self.parked: dict[int, list[list[Any]]] = {}  # by the row that resumes: worker, last block, pinned
        self.coming: dict[tuple[int, int], Load] = {}  # (worker, block) that a load brings
        self.waits = [len(after) for after in self.q["after"]]
        self.dependents: list[list[int]] = [[] for _ in range(self.n)]
        for row, after in enumerate(self.q["after"]):
            for other in after:
                self.dependents[other].append(row)
        self.left: dict[int, int] = {}
        for session in self.q["session"]:
            self.left[session] = self.left.get(session, 0) + 1
        self.counters = dict.fromkeys(("preemptions", "rejected", "pins_broken", "swapped_bytes"), 0)
        self.transfer = Channel(spec["transfer"]) if spec["transfer"] else None
        self.transferred = 0
        self.makespan = 0
        self.unfinished = self.n

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until every request has come to its end."""
        self.start()
        while self.unfinished:
            found = [(w.until, FINISH if w.state == BUSY else BEGIN, w.number) for w in self.workers if w.state != IDLE]
            if not found and all(event > ARRIVE for _, event, _ in self.events):
                if not self.queue:
                    break
                self.next_session(self.makespan)  # all that has begun waits for sessions that have not
                continue
            if self.events:
                found.append((self.events[0][0], EVENT, 0))
            now, what, i = min(found)
            self.sync(now)
            self.makespan = max(self.makespan, now)
            if what == FINISH:
                self.finish(self.workers[i], now)
            elif what == BEGIN:
                self.begin(self.workers[i], now)
            else:
                _, event, row = heappop(self.events)
                (self.tool_end, self.arrive, self.unpin, self.demote, self.prefetch)[event](row, now)
        self.sync(self.makespan)

    def start(self) -> None:
        """Let the requests come that wait for nothing."""
        roots = [row for row in range(self.n) if not self.q["after"][row]]
        self.queue: list[list[int]] = []
        if not self.option["concurrency"]:
            for row in roots:
                heappush(self.events, (self.q["arrival_ps"][row], ARRIVE, row))
            return
        by_session: dict[int, list[int]] = {}
        for row in roots:
            by_session.setdefault(self.q["session"][row], []).append(row)
        self.queue = list(by_session.values())
        self.rooted = set(by_session)
        for _ in range(min(self.option["concurrency"], len(self.queue))):
            self.next_session(0)

    def next_session(self, now: int) -> None:
        """Let the next session begin."""
        if self.queue:
            for row in self.queue.pop(0):
                heappush(self.events, (now, ARRIVE, row))

    def sync(self, now: int) -> None:
        """Book the time of the workers that do nothing, up to now."""
        for w in self.workers:
            if w.state == BUSY or w.now >= now:
                continue
            waited, start, w.now = now - w.now, w.now, now
            load = self.next_load(w).load if w.state == LOADING else None
            if load is not None:
                w.waited += waited
                self.book(w.units[0], [(STALL, w.ladder[load.slowest], waited)], start)
                if w.units[1] != w.units[0]:
                    self.book(w.units[1], [(BUBBLE, -1, waited)], start)
                continue
            part = NO_REQUEST
            if w.state == LOADING or w.waiting or (w.role == DECODE and self.upstream > 0):
                part = BUBBLE
            elif self.tools > 0:
                part = IDLE_TOOL
            elif self.thinking > 0:
                part = IDLE_THINK
            for unit in dict.fromkeys(w.units):
                self.book(unit, [(part, -1, waited)], start)

    def book(self, unit: int, parts: Sequence[tuple[int, int, int]], start: int) -> None:
        """Lay parts (part, tier, picoseconds) one after the other from `start`."""
        for part, tier, ps in parts:
            self.parts[unit][part] += ps
            self.ledger.append((self.unit_pool[unit], part, tier, start, ps))
            start += ps

    def charge(self, pool: int, tier: int, stall: int, kinds: Sequence[float], causes: Sequence[float]) -> None:
        """Share a stall out over kinds by bytes, and over causes by their terms."""
        for k, part in enumerate(split(stall, kinds)):
            for c, piece in enumerate(split(part, causes) if part else []):
                self.stall[pool][tier][k][c] += piece

    def enter(self, row: int, state: int, now: int) -> None:
        """Let a request pass to another state."""
        self.states[row][self.state[row]] += now - self.since[row]
        self.state[row], self.since[row] = state, now

    # -- requests come and go -----------------------------------------------------------------------------------

    def release(self, row: int, now: int) -> None:
        """Begin the pause of `row`: what it waited for is complete."""
        delay, pause = self.q["delay_ps"][row], self.q["pause"][row]
        at = max(self.q["arrival_ps"][row], now + delay)
        if pause == TOOL and delay > 0:
            self.tools += 1
            if self.option["cpu_slots"] == 0 or self.tools_busy < self.option["cpu_slots"]:
                self.begin_tool(row, now, now)
            else:
                self.tool_queue.append((row, now))
                self.expect(row, now, at, known=False)
            return
        if pause == THINK:
            self.thinking += 1
            self.column["think"][row] = at - now
        heappush(self.events, (at, ARRIVE, row))
        self.expect(row, now, at)

    def begin_tool(self, row: int, since: int, now: int) -> None:
        """Let a tool run in a slot."""
        self.tools_busy += 1
        self.column["tool_wait"][row] = now - since
        self.column["tool"][row] = self.q["delay_ps"][row]
        end = now + self.q["delay_ps"][row]
        heappush(self.events, (end, TOOL_END, row))
        self.expect(row, now, max(end, self.q["arrival_ps"][row]))

    def tool_end(self, row: int, now: int) -> None:
        """End a tool; its slot goes to the one that waited longest."""
        self.tools -= 1
        self.tools_busy -= 1
        heappush(self.events, (max(now, self.q["arrival_ps"][row]), ARRIVE, row))
        if self.tool_queue:
            self.begin_tool(*self.tool_queue.pop(0), now)

    def arrive(self, row: int, now: int) -> None:
        """Let a request join a queue, or reject it."""
        if self.q["after"][row] and self.q["pause"][row] == THINK:
            self.thinking -= 1
        self.ready[row] = self.since[row] = now
        for parking in self.parked.pop(row, []):
            self.unpark(parking)
            if self.plan(row)["prefetch"] == 1:
                self.bring(parking[0], parking[1], now)
        w = self.route(row)
        self.front_of[row] = w
        self.column["unit"][row] = w.units[0]
        if not self.fits_alone(w, row):
            self.reject(row, now)
            return
        self.serials += 1
        order = {FCFS: 0, PRIORITY: self.q["priority"][row], SHORTEST: self.q["input_tokens"][row]}
        self.key[row] = (order[self.option["order"]], self.serials)
        self.upstream += w.role == PREFILL
        self.enqueue(w, row, now)

    def enqueue(self, w: Worker, row: int, now: int) -> None:
        """Put a request into a worker's queue, and wake the worker."""
        heappush(w.waiting, (*self.key[row], row))
        self.wake(w, now)

    def wake(self, w: Worker, now: int) -> None:
        """Let a worker that does nothing look again."""
        if w.state in (IDLE, LOADING):
            w.state, w.until = READY, now

    def reject(self, row: int, now: int) -> None:
        """Give a request up, and all that wait for it."""
        self.counters["rejected"] += 1
        self.enter(row, QUEUED, now)
        self.done[row] = now
        self.column["status"][row] = REJECTED
        self.gone(row, now)
        lost = [row]
        while lost:
            for other in self.dependents[lost.pop()]:
                if self.column["status"][other] == DONE:
                    self.column["status"][other] = UNREACHED
                    for parking in self.parked.pop(other, []):
                        self.unpark(parking)
                    self.gone(other, now)
                    lost.append(other)

    def gone(self, row: int, now: int) -> None:
        """Count a request off its session; the last one lets the next session begin."""
        session = self.q["session"][row]
        self.unfinished -= 1
        self.left[session] -= 1
        if self.option["concurrency"] and self.left[session] == 0 and session in self.rooted:
            self.next_session(now)

    def route(self, row: int) -> Worker:
        """Choose the worker that takes a request."""
        g = self.q["population"][row]
        group: list[Worker] = [self.workers[i] for i in self.spec["groups"][g]]
        router = self.option["router"]
        if router == ROUND_ROBIN:
            self.turn[g] += 1
            return group[int(self.turn[g] - 1) % len(group)]
        if router == SESSION_AFFINE:
            return group[int(self.q["session"][row]) % len(group)]
        if router == LEAST_LOADED:
            return self.least_loaded(group)
        return min(group, key=lambda w: (-self.resident(w, row), len(w.waiting) + len(w.live), w.number))

    def least_loaded(self, group: Sequence[Worker]) -> Worker:
        """Return the worker with the fewest requests, the first of equals."""
        return min(group, key=lambda w: (len(w.waiting) + len(w.live), w.number))

    def resident(self, w: Worker, row: int) -> int:
        """Tokens in front of a prompt that a worker's memory holds."""
        tokens = 0
        for b in chain(self.blocks["parent"], self.q["last_block"][row]):
            if w.store.nearest(b) is None:
                break
            tokens += self.blocks["tokens"][b]
        return tokens

    # -- pauses -------------------------------------------------------------------------------------------------

    def plan(self, row: int) -> Mapping[str, Any]:
        """Return the retention rule of the pause before `row`."""
        found: Mapping[str, Any] = self.spec["retention"][self.q["pause"][row]]
        return found

    def park(self, w: Worker, row: int, end: int, now: int) -> None:
        """Request `row` is complete: do with its blocks what the rule of the coming pause says."""
        resumer = self.q["resumer"][row]
        blocks = chain(self.blocks["parent"], end)
        store = w.store
        if resumer < 0 or self.ready[resumer] >= 0 or self.column["status"][resumer] != DONE:
            if self.option["oracle"]:
                for b in blocks:
                    if store.next_use.get(b, NEVER) <= now:
                        self.foresee(store, b, NEVER)
            return
        plan = self.plan(resumer)
        if self.option["oracle"]:
            for b in blocks:
                at = store.next_use.get(b, NEVER)
                self.foresee(store, b, min(at if at > now else NEVER, now + self.q["delay_ps"][resumer]))
        if plan["drop"]:
            for b in reversed(blocks):
                if store.pins.get(b) or any(self.blocks["parent"][c] == b for held in store.copies for c in held):
                    break
                store.free(b)
            return
        pinned = plan["pin_ps"] >= 0
        if pinned:
            for b in blocks:
                store.pin(b)
            heappush(self.events, (now + plan["pin_ps"], UNPIN, resumer))
        if plan["demote_ps"] >= 0:
            heappush(self.events, (now + plan["demote_ps"], DEMOTE, resumer))
        self.parked.setdefault(resumer, []).append([w, end, pinned])

    def foresee(self, store: Store, b: int, at: int) -> None:
        """Tell the policies when b is used next."""
        store.next_use[b] = at
        for copies, policy in zip(store.copies, store.policies, strict=True):
            if b in copies and getattr(policy, "needs_future", False):
                policy.on_hit(b)

    def expect(self, row: int, now: int, at: int, *, known: bool = True) -> None:
        """Know or guess the end of the pause before `row`: prefetch in time, and tell the oracle's policies."""
        for w, end, _ in self.parked.get(row, []):
            blocks = chain(self.blocks["parent"], end)
            plan = self.plan(row)
            lead = plan["lead_ps"]
            if self.option["oracle"]:
                for b in blocks:
                    held = w.store.next_use.get(b, NEVER)
                    self.foresee(w.store, b, min(held if held > now else NEVER, at))
                amounts = [0] * w.T
                if w.T > 1:
                    amounts[1] = sum(self.blocks["bytes"][b] for b in blocks)
                lead = 10 * self.estimate(w, now, amounts, [0, len(blocks)] + [0] * w.T, queued=False)
            if known and plan["prefetch"] == 2:
                heappush(self.events, (max(now, at - lead), PREFETCH, row))

    def unpark(self, parking: list[Any]) -> None:
        """Take the pins of a pause back."""
        w, end, pinned = parking
        if pinned:
            for b in chain(self.blocks["parent"], end):
                w.store.unpin(b)
            parking[2] = False

    def unpin(self, row: int, now: int) -> None:
        """Take back the pins of a pause whose time is over."""
        for parking in self.parked.get(row, []):
            self.unpark(parking)
            self.wake(parking[0], now)

    def demote(self, row: int, now: int) -> None:
        """Move what a pause leaves behind to a farther tier, its end first."""
        for w, end, pinned in self.parked.get(row, []):
            store = w.store
            for b in [] if pinned else reversed(chain(self.blocks["parent"], end)):
                if store.pins.get(b) or any(self.blocks["parent"][c] == b for c in store.copies[0]):
                    break
                for t in range(min(self.plan(row)["tier"], w.T - 1)):
                    store.demote(b, t)
            self.settle(w, now)

    def prefetch(self, row: int, now: int) -> None:
        """Bring what a resume needs: its lead time has begun."""
        for w, end, _ in self.parked.get(row, []):
            self.bring(w, end, now)

    def bring(self, w: Worker, end: int, now: int) -> None:
        """Prefetch a chain into the nearest tier, from the front as far as it is held."""
        moved = []
        for b in chain(self.blocks["parent"], end):
            t = w.store.nearest(b)
            if t is None:
                break
            if t > 0 and w.store.rises(b, t):
                w.store.prefetch(b)
                moved.append(b)
        if moved:
            load = self.settle(w, now)
            for b in moved:
                if b in w.store.copies[0]:
                    self.coming[w.number, b] = load

    # -- moves --------------------------------------------------------------------------------------------------

    def settle(self, w: Worker, now: int) -> Load:
        """Queue what the store has moved on devices and links; what it did to the nearest tier joins the next step."""
        store, load = w.store, Load(now, w.T)
        for o in range(2):
            for f, flow in enumerate(FLOWS):
                for k in range(4):
                    w.extra[o][f][k] += store.flows[flow][0][o][k]
        links = [
            link.use(now, up, down) for link, up, down in zip(w.links, store.links[0], store.links[1], strict=True)
        ]
        for t in range(1, w.T):
            tier = w.kind["tiers"][t]
            kinds = [[sum(store.flows[f][t][o][k] for o in range(2)) for k in range(4)] for f in FLOWS]
            r, wr, br, bw = (sum(kind) for kind in kinds)
            ways = [w.devices[t].use(now, r + br, wr + bw)]
            ways += [way for i, way in enumerate(links) if tier["path"] >> i & 1]
            n = float(sum(store.transfers[t]))
            times, owns, queues = [0, 0], [0.0, 0.0], [0.0, 0.0]
            for way, amount in enumerate((r + br, wr + bw)):
                if amount:
                    owns[way] = max(own[way][1] for own in ways)
                    queues[way] = max(0.0, float(max(end[way][0] for end in ways) - now) - owns[way])
                    times[way] = rounded(transfer(tier, n, owns[way]) + queues[way])
            load.end[t] = now + max(times)
            load.kinds[t] = [float(sum(kind[k] for kind in kinds)) for k in range(4)]
            load.causes[t] = [tier["latency_ps"], n * tier["overhead_ps"], owns[0], queues[0],
                              float(max(0, times[1] - times[0]))]  # fmt: skip
        store.end_step()
        store.begin_step()
        return load

    def estimate(
        self, w: Worker, now: int, amounts: Sequence[int], counts: Sequence[int], *, queued: bool = True
    ) -> int:
        """Picoseconds until so many bytes of each tier would be near."""
        longest = 0.0
        for t in range(1, w.T):
            if not amounts[t]:
                continue
            tier = w.kind["tiers"][t]
            own = amounts[t] * tier["read_ps_per_byte"]
            wait = max(0, w.devices[t].until[0] - now)
            for i, link in enumerate(w.links):
                if tier["path"] >> i & 1:
                    crossing = sum(amounts[u] for u in range(1, w.T) if w.kind["tiers"][u]["path"] >> i & 1)
                    own = max(own, crossing * link.spec["read_ps_per_byte"])
                    wait = max(wait, link.until[0] - now)
            longest = max(longest, (wait if queued else 0) + transfer(tier, float(counts[t]), own))
        return rounded(longest)

    # -- sizes --------------------------------------------------------------------------------------------------

    def tail_bytes(self, kind: Mapping[str, Any], tokens: int) -> int:
        """Bytes that private tokens take in whole engine blocks."""
        bt = kind["block_tokens"]
        return int(-(-max(tokens, 0) // bt) * bt * kind["kv_token_bytes"])

    def fixed_bytes(self, kind: Mapping[str, Any], row: int) -> int:
        """Bytes of a sequence beside what grows: windows and states."""
        final = self.q["input_tokens"][row] + max(self.q["output_tokens"][row], 1)
        return int(kind["window_token_bytes"] * min(final, self.model["window"]) + kind["state_bytes"])

    def prompt(self, w: Worker, row: int) -> list[int]:
        """Return the blocks of a prompt; a decode pool gets its KV as a whole."""
        return chain(self.blocks["parent"], self.q["last_block"][row]) if w.role != DECODE else []

    def fits_alone(self, w: Worker, row: int) -> bool:
        """Whether a request could run with the machine for itself."""
        backs = [self.workers[i] for i in self.spec["backs"][:1]] if w.role == PREFILL else []
        for worker in [w, *backs]:
            blocks = self.prompt(worker, row)
            tail = self.q["input_tokens"][row] - sum(self.blocks["tokens"][b] for b in blocks)
            tail += 1 if worker.role == PREFILL else max(self.q["output_tokens"][row], 1)
            need = sum(self.blocks["bytes"][b] for b in blocks) + self.tail_bytes(worker.kind, tail)
            need += self.fixed_bytes(worker.kind, row)
            tiers = range(worker.T if self.option["overflow"] == STREAM else 1)
            if need > sum(worker.store.capacity(t) + worker.store.claimed[t] for t in tiers):
                return False
        return True

    # -- admission ----------------------------------------------------------------------------------------------

    def admit(self, w: Worker, now: int, decoding: int) -> None:
        """Admit from the front of the queue while limits and room allow."""
        planned = decoding * (1 + self.option["draft"]) + sum(x.total - x.done for x in w.prefill)
        while w.waiting and len(w.live) < self.option["max_seqs"]:
            row = w.waiting[0][2]
            if w.role != DECODE and planned >= self.option["max_tokens"]:
                break
            live = self.receive(w, row, now) if w.role == DECODE else self.try_admit(w, row, now)
            if live is None:
                break
            heappop(w.waiting)
            if self.admitted[row] < 0:
                self.admitted[row] = now
            if not live.total or (live.ready > now and not live.front):
                # what needs no prefill joins the batch when the worker looks next, before it makes room for tokens
                self.enter(row, TRANSFER if w.role == DECODE else FROM_TIER, now)
                w.loading.append(live)
            else:
                self.enter(row, PREFILLING, now)
                self.proceed(w, live, now)
                planned += live.total

    def proceed(self, w: Worker, live: Live, now: int) -> None:
        """Nothing keeps a request from prefilling, or, where nothing is left to compute, from decoding."""
        if live.done < live.total:
            w.prefill.append(live)
            w.prefill.sort(key=lambda x: x.key)
        else:
            self.prefilled(w, live, now)

    def try_admit(self, w: Worker, row: int, now: int) -> Live | None:
        """Find, pin, load and claim what a request needs; None if it does not fit now."""
        store, tokens, size = w.store, self.blocks["tokens"], self.blocks["bytes"]
        blocks = self.prompt(w, row)
        where = [store.nearest(b) for b in blocks]
        found = where.index(None) if None in where else len(blocks)
        state = self.q["state_lookup"][row]
        place = store.nearest(state) if state >= 0 else None
        if self.model["stateful"] and place is None:
            found = 0
        resumes, swapped = self.emitted[row] > 0, self.swapped.get(row, 0)
        total_tokens = sum(tokens[b] for b in blocks)
        context = self.q["input_tokens"][row] + self.emitted[row] - (1 if swapped else 0)
        tail = max(context - total_tokens, 0)
        if not swapped and tail == 0 and found == len(blocks) and found > 0:
            found -= 1  # the last token makes logits: its block is computed again
        near = next((i for i in range(found) if where[i] != 0), found)

        # whether it fits, whatever is loaded: all but the blocks in front that are near already
        private = swapped or self.tail_bytes(w.kind, tail) + self.fixed_bytes(w.kind, row)
        if self.option["overflow"] == WAIT and w.role == ALL:
            final = self.q["input_tokens"][row] + max(self.q["output_tokens"][row], 1) - total_tokens
            private = self.tail_bytes(w.kind, final) + self.fixed_bytes(w.kind, row)
        need = sum(size[b] for b in blocks[near:]) + private
        tiers = range(w.T if self.option["overflow"] == STREAM else 1)
        loose = sum(size[b] for b in blocks[:near] if not store.pins.get(b))
        if need > sum(store.available(t) for t in tiers) - loose:
            return None

        live = Live(row, self.key[row], w.T)
        begin, end = self.choose(w, now, blocks, where, near, found, total_tokens + tail)
        kept = [*range(near), *range(begin, end)]
        for i in kept:
            store.pin(blocks[i])
            live.pinned.append(blocks[i])
            if self.option["oracle"]:
                self.foresee(store, blocks[i], -1)  # in use: nothing is worth its place more
        computed = [*range(near, begin), *range(end, len(blocks))]
        for amount in [*(size[blocks[i]] for i in computed), private]:
            t = next((t for t in tiers if self.try_claim(w, t, amount)), None)
            if t is None:
                self.let_go(w, live)
                self.settle(w, now)
                return None
            live.claimed[t] += amount
            live.far[t] += amount if t else 0

        # count the look-ups, once; tell the policies, deepest first, so that a prefix outlives what hangs on it
        store.request("on_request_begin", row)
        if self.admitted[row] < 0:
            for b in self.q["data"][row]:
                store.count(b, store.nearest(b))
            if state >= 0:
                store.count(state, place)
            for b, t in zip(blocks, where, strict=True):
                store.count(b, t)
        for i in reversed(range(len(blocks))):
            if i in kept and store.nearest(blocks[i]) == 0:
                live.told[blocks[i]] = True  # when the prefill ends, so that what hangs on it is not younger
            else:
                store.touch(blocks[i])
        if state >= 0:
            store.touch(state)
        for b in self.q["data"][row]:
            store.touch(b)
        store.request("on_request_end")

        # load
        moved = []
        loaded = [0] * w.T
        if state >= 0 and found > 0 and store.nearest(state):
            store.prefetch(state)
        if self.admitted[row] < 0:
            for b in self.q["data"][row]:
                t = store.nearest(b)
                if t == 0:
                    store.count_read(0, b, size[b])
                else:
                    store.prefetch(b)
        live.load = None
        for i in kept:
            b = blocks[i]
            t = store.nearest(b)
            assert t is not None
            if t > 0 and store.rises(b, t):
                store.prefetch(b)
                moved.append(b)
                loaded[t] += tokens[b]
                live.told[b] = False
                held = store.nearest(b)
                t = t if held is None else held  # no tier takes it: it is read from where it came
            if t > 0:
                live.far[t] += size[b]
            elif b not in moved and (w.number, b) in self.coming:
                load = self.coming[w.number, b]
                if load.ready > now and (live.load is None or load.ready > live.load.ready):
                    live.load = load
        if swapped:
            store.claimed[1] -= self.swapped.pop(row)
            store.shift(1, 0, swapped)
        own = self.settle(w, now)
        if live.load is None or own.ready > live.load.ready:
            live.load = own
        live.ready = live.load.ready
        for b in moved:
            self.coming[w.number, b] = own

        live.blocks = [blocks[i] for i in computed]
        live.chain = blocks
        live.first = sum(tokens[b] for b in blocks[:near])
        live.second = sum(tokens[b] for b in blocks[:end])
        live.front = sum(tokens[b] for b in blocks[near:begin])
        live.total = live.front + sum(tokens[b] for b in blocks[end:]) + (0 if swapped else tail)
        live.chain_tokens = total_tokens
        live.emits = not swapped
        had = sum(tokens[b] for b in live.blocks if b in store.seen)
        live.again = live.total if resumes else min(live.total, had + self.lost[row])
        if self.admitted[row] < 0:
            self.column["hit"][row] = sum(tokens[blocks[i]] for i in kept)
            for t in range(w.T):
                self.loaded[row][w.ladder[t]] = loaded[t]
        return live

    def choose(
        self, w: Worker, now: int, blocks: Sequence[int], where: Sequence[int | None], near: int, found: int, total: int
    ) -> tuple[int, int]:
        """Return which blocks to load: all of [near, s) to compute the rest, or [s, found) while the front computes."""
        rule = self.option["load"]
        if rule == NEVER_LOAD or near == found:
            return near, near
        tokens, size = self.blocks["tokens"], self.blocks["bytes"]
        places = [sum(tokens[b] for b in blocks[:i]) for i in range(found + 1)]
        best: tuple[int, int] | None = None
        chosen = (near, found)
        time = 0
        for s in range(near, found + 1):
            part = range(s, found) if rule == OVERLAP else range(near, s)
            amounts, counts = [0] * w.T, [0] * w.T
            for i in part:
                t = where[i]
                assert t is not None
                amounts[t] += size[blocks[i]]
                counts[t] += fragments(w.kind["tiers"][t], size[blocks[i]])
            load = self.estimate(w, now, amounts, counts)
            if rule == OVERLAP:
                ready = max(load, self.prefill_time(w, places[near], places[s]))
                ready += self.prefill_time(w, places[found], total)
                rank = (ready, s)
            else:
                ready = load + self.prefill_time(w, places[s], total)
                rank = (ready, -s)
            if rule == ALWAYS and s < found:
                continue
            if best is None or rank < best:
                best, time = rank, load
                chosen = (s, found) if rule == OVERLAP else (near, s)
        if self.option["deadline_ps"] and time > self.option["deadline_ps"]:
            return near, near
        return chosen

    def prefill_time(self, w: Worker, start: int, end: int) -> int:
        """Picoseconds that the tokens from `start` to `end` of a prompt take by themselves."""
        m, pace = self.model, w.kind["ps_per_flop"]
        new = max(end - start, 0)
        if new == 0:
            return 0
        attention = new * m["flops"][0] + m["pair_prefill"] * (self.pairs(start + new) - self.pairs(start))
        work = (attention * pace[0], new * m["flops"][1] * pace[1])
        steps = -(-new // self.option["max_tokens"])
        time = 0.0
        for o in range(2):
            tier = w.kind["ffn_near"] if o and w.units[0] != w.units[1] else w.kind["tiers"][0]
            time += max(work[o], steps * (w.kind["near_weights"][o] * tier["read_ps_per_byte"]))
        return rounded(time + float(steps * sum(w.kind["overhead_ps"])))

    def try_claim(self, w: Worker, t: int, amount: int) -> bool:
        """Claim room in a tier if unpinned blocks and free room suffice."""
        return w.store.available(t) >= amount and w.store.claim(t, amount)

    def receive(self, w: Worker, row: int, now: int) -> Live | None:
        """Admit a prefilled request to a decode pool: claim room, and bring its KV over the link between the pools."""
        context = self.q["input_tokens"][row] + self.emitted[row] - 1
        tokens = context
        if self.option["overflow"] == WAIT:
            tokens = self.q["input_tokens"][row] + max(self.q["output_tokens"][row], 1)
        private = self.tail_bytes(w.kind, tokens) + self.fixed_bytes(w.kind, row)
        tiers = range(w.T if self.option["overflow"] == STREAM else 1)
        t = next((t for t in tiers if self.try_claim(w, t, private)), None)
        if t is None:
            return None
        live = Live(row, self.key[row], w.T)
        live.claimed[t] = private
        live.far[t] = private if t else 0
        live.emits = False
        moved = context * w.kind["kv_token_bytes"] + self.fixed_bytes(w.kind, row)
        self.transferred += moved
        assert self.transfer is not None
        end, own = self.transfer.use(now, 0, moved)[1]
        queue = max(0.0, float(end - now) - own)
        live.ready = now + rounded(self.spec["transfer"]["latency_ps"] + own + queue)
        if t:
            w.store.land(t, moved)
            live.ready = max(live.ready, self.settle(w, now).ready)
        else:
            w.extra[0][1][KV] += moved
        return live

    # -- room for tokens ----------------------------------------------------------------------------------------

    def gain(self, w: Worker) -> int:
        """Tokens that every sequence gains in the coming step."""
        return int(w.acceptance + self.option["accepted"]) // ONE

    def grow(self, w: Worker, now: int) -> bool:
        """Claim room for the tokens of the coming step; False if requests had to be preempted for it."""
        if self.option["overflow"] == WAIT:
            return True
        kind, calm = w.kind, True
        bt = kind["block_tokens"]
        for i in range(self.gain(w)):
            while w.batch:
                full = [x for x in w.batch if w.tokens + i < x.end and (x.tail + w.tokens + i - x.joined) % bt == 0]
                amount = len(full) * bt * kind["kv_token_bytes"]
                tiers = range(w.T if self.option["overflow"] == STREAM else 1)
                t = next((t for t in tiers if self.try_claim(w, t, amount)), None)
                if t is not None:
                    for x in full:
                        x.claimed[t] += bt * kind["kv_token_bytes"]
                        x.far[t] += bt * kind["kv_token_bytes"] if t else 0
                    break
                if not self.break_pin(w):
                    calm = False
                    self.preempt(w, now)
        load = self.settle(w, now)
        w.gate = [max(a, b) for a, b in zip(w.gate, load.end, strict=True)]
        return calm

    def preempt(self, w: Worker, now: int) -> None:
        """Send the request of the worst key back to the queue."""
        live = max(w.live, key=lambda x: x.key)
        row = live.row
        if live in w.loading:
            self.loaded_until(w, live, now)
        elif live in w.prefill:
            self.prefilled_until(live, now)
        decoding = live in w.batch
        for queue in (w.loading, w.prefill, w.batch):
            if live in queue:
                queue.remove(live)
        self.enter(row, PREEMPTED, now)
        self.counters["preemptions"] += 1
        self.column["preemptions"][row] += 1
        if not decoding:
            self.lost[row] = max(self.lost[row], live.done)
        private = self.tail_bytes(w.kind, self.q["input_tokens"][row] + self.emitted[row] - 1 - live.chain_tokens)
        private += self.fixed_bytes(w.kind, row)
        whole = not any(live.far)
        if w.role == DECODE and row in self.staged:
            self.hand_over(row, now)
        self.let_go(w, live)
        swap = self.option["swap"] and self.option["overflow"] == PREEMPT and w.role == ALL and w.T > 1
        if swap and decoding and whole and private and self.try_claim(w, 1, private):
            w.store.shift(0, 1, private)
            self.swapped[row] = private
            self.counters["swapped_bytes"] += private
            load = self.settle(w, now)
            w.gate = [max(a, b) for a, b in zip(w.gate, load.end, strict=True)]
        front = self.front_of[row]
        self.upstream += w.role == DECODE
        self.enqueue(front, row, now)

    def break_pin(self, w: Worker) -> bool:
        """Take back the pins of the pause that ends last by row; False if there is none."""
        for row in sorted(self.parked, reverse=True):
            for parking in self.parked[row]:
                if parking[0] is w and parking[2]:
                    self.unpark(parking)
                    self.counters["pins_broken"] += 1
                    return True
        return False

    def let_go(self, w: Worker, live: Live) -> None:
        """Take back the pins and claims of a request."""
        for b in live.pinned:
            w.store.unpin(b)
        live.pinned = []
        for t, amount in enumerate(live.claimed):
            w.store.claimed[t] -= amount
        live.claimed = [0] * w.T

    # -- a worker begins ------------------------------------------------------------------------------------------

    def begin(self, w: Worker, now: int) -> None:
        """Look at what has come, make room, admit, and step."""
        if w.waited:
            load = self.next_load(w).load
            assert load is not None
            t = load.slowest
            self.charge(self.unit_pool[w.units[0]], w.ladder[t], w.waited, load.kinds[t], load.causes[t])
            w.waited = 0
        w.state, w.gate = READY, [now] * w.T
        for live in sorted((x for x in w.loading if x.ready <= now), key=lambda x: x.key):
            w.loading.remove(live)
            self.loaded_until(w, live, now)
            if w.role == DECODE:
                self.hand_over(live.row, now)
            self.proceed(w, live, now)
        self.settle(w, now)
        mixed = self.option["mixed"]
        calm = self.grow(w, now) if mixed else True
        if calm:
            self.admit(w, now, len(w.batch) if mixed else 0)
        if not mixed and not w.prefill:
            calm = self.grow(w, now)
        w.decoding = bool(w.batch) and (mixed or not w.prefill)
        self.compose(w)
        if w.chunks or w.decoding:
            self.step(w, now)
        elif w.loading:
            w.state, w.until = LOADING, min(x.ready for x in w.loading)
        elif not w.waiting or any(self.front_of[row] is w for row in self.staged):
            w.state = IDLE  # until a request comes, or the decode pool takes what is staged here
        else:
            w.until = now
            if calm and not self.break_pin(w):
                self.give_up(w, now)

    def give_up(self, w: Worker, now: int) -> None:
        """Nothing runs, and the first in the queue does not fit: it never will."""
        row = heappop(w.waiting)[2]
        if w.role == DECODE:
            self.hand_over(row, now)
        self.upstream -= w.role == PREFILL
        if row in self.swapped:
            w.store.claimed[1] -= self.swapped.pop(row)
        self.reject(row, now)

    def next_load(self, w: Worker) -> Live:
        """Return the load that ends first."""
        return min(w.loading, key=lambda x: (x.ready, x.key))

    def loaded_until(self, w: Worker, live: Live, now: int) -> None:
        """Tell the time of a load apart by tier, nearest first; what the worker was busy beyond it is prefill's."""
        row = live.row
        if live.load is not None:
            for t in range(1, w.T):
                end = min(live.load.end[t], now)
                if end > self.since[row]:
                    self.state[row] = FROM_TIER + w.ladder[t]
                    self.enter(row, self.state[row], end)
            self.state[row] = PREFILLING
        self.enter(row, PREFILLING, now)

    def prefilled_until(self, live: Live, now: int) -> None:
        """Tell prefill and recomputation apart by their tokens."""
        row = live.row
        again = (now - self.since[row]) * live.again // live.total if live.total else 0
        self.state[row] = RECOMPUTING
        self.enter(row, PREFILLING, self.since[row] + again)
        self.enter(row, DECODING, now)

    def compose(self, w: Worker) -> None:
        """Choose the chunks of prompts that the coming step computes."""
        left = self.option["max_tokens"] - (len(w.batch) * (1 + self.option["draft"]) if w.decoding else 0)
        w.chunks = []
        for live in w.prefill:
            part = (live.front if live.done < live.front else live.total) - live.done
            if self.option["chunked"]:
                part = min(part, left)
            elif w.chunks and part > left:
                break
            if part <= 0:
                break
            context = live.first + live.done if live.done < live.front else live.second + live.done - live.front
            w.chunks.append((live, context, part))
            left -= part

    # -- a step -------------------------------------------------------------------------------------------------

    def rows(self, context: int) -> int:
        """Rows of KV, over the layers, that attention reads for a context of so many tokens."""
        m = self.model
        return int(m["global_layers"] * context + m["sparse_layers"] * min(context, m["sparse"])
                   + m["local_layers"] * min(context, m["window"]))  # fmt: skip

    def pairs(self, tokens: int) -> float:
        """Pairs of tokens, over the layers, that attend to each other among the first `tokens`."""
        m = self.model

        def capped(limit: int) -> float:
            if tokens <= limit:
                return 0.5 * tokens * tokens
            return 0.5 * limit * limit + float(limit) * (tokens - limit)

        whole = m["global_layers"] * (0.5 * tokens * tokens)
        return float(whole + m["sparse_layers"] * capped(m["sparse"]) + m["local_layers"] * capped(m["window"]))

    def step(self, w: Worker, now: int) -> None:
        """Compute how long the coming step takes, and of what its time is made."""
        kind, m, store = w.kind, self.model, w.store
        batch = w.batch if w.decoding else []
        verified = 1 + self.option["draft"]
        new = len(batch) * verified + sum(c for _, _, c in w.chunks)
        logits = len(batch) * verified + sum(x.done + c == x.total for x, _, c in w.chunks)
        contexts = [self.q["input_tokens"][x.row] + self.emitted[x.row] for x in batch]
        rows = sum(self.rows(c) for c in contexts)
        halves = sum(
            m["global_layers"] + m["sparse_layers"] * (c <= m["sparse"]) + m["local_layers"] * (c <= m["window"])
            for c in contexts
        )
        fresh = [
            len(batch) * verified * m["flops"][0] + logits * m["head_flops"]
            + verified * m["pair_decode"] * (rows - 0.5 * halves),
            len(batch) * verified * m["flops"][1],
        ]  # fmt: skip
        again = [0.0, 0.0]
        for live, context, c in w.chunks:
            repeated = (live.done + c) * live.again // live.total - live.done * live.again // live.total
            work = (c * m["flops"][0] + m["pair_prefill"] * (self.pairs(context + c) - self.pairs(context)),
                    c * m["flops"][1])  # fmt: skip
            for o in range(2):
                part = work[o] * repeated / c
                fresh[o] += work[o] - part
                again[o] += part
            rows += self.rows(context)
            self.column["computed"][live.row] += c
            self.column["recomputed"][live.row] += repeated

        stages, parted = kind["stages"], w.units[0] != w.units[1]
        cuts = min(kind["microbatches"] if parted else stages, new)
        tokens = -(-new // cuts)
        active = [*batch, *(x for x, _, _ in w.chunks)]
        far_kv = [sum(x.far[t] for x in active) for t in range(w.T)]
        near_kv = max(0, rows * kind["kv_layer_bytes"] - sum(far_kv))
        written = new * kind["kv_write_bytes"]
        state = len(active) * kind["state_bytes"]
        experts = kind["expert_bytes"][min(tokens, len(kind["expert_bytes"]) - 1)]
        near_experts = experts * kind["expert_near"][0] // kind["expert_near"][1]
        far_weights = [sum(kind["far_weights"][t]) for t in range(w.T)]
        if experts > near_experts:
            far_weights[kind["expert_tier"]] += experts - near_experts
        near_experts += self.use_experts(w, now, far_weights)
        rows_read = new * kind["token_row_bytes"]
        weights = [kind["near_weights"][0], kind["near_weights"][1] + near_experts]

        # the nearest memory and the arithmetic, operation by operation, of one microbatch
        compute, stalls, charges = [], [], []
        for o in range(2):
            reads = [0.0, float(weights[o]), 0.0, 0.0]
            writes = [0.0, 0.0, 0.0, 0.0]
            if o == 0:
                reads = [near_kv / cuts, weights[0] + rows_read / cuts, state / cuts, 0.0]
                writes = [written / cuts, 0.0, state / cuts, 0.0]
            r, wr = (sum(a) + sum(w.extra[o][f]) / cuts for f, a in ((0, reads), (1, writes)))
            br, bw = (sum(w.extra[o][f]) / cuts for f in (2, 3))
            kinds = [reads[k] + writes[k] + sum(w.extra[o][f][k] for f in range(4)) / cuts for k in range(4)]
            tier = kind["ffn_near"] if o and parted else kind["tiers"][0]
            time, causes = 0, [0.0] * 5
            if r + wr + br + bw > 0.0:
                own, both = combine(tier, r, wr), combine(tier, r + br, wr + bw)
                n = float(fragments(tier, rounded(r + wr + br + bw)))
                time = rounded(transfer(tier, n, both))
                causes = [tier["latency_ps"], n * tier["overhead_ps"], own, 0.0, both - own]
            c = rounded((fresh[o] + again[o]) / cuts * kind["ps_per_flop"][o])
            compute.append(split(c, [fresh[o], again[o]]) if fresh[o] + again[o] > 0.0 else [c, 0])
            stalls.append(max(0, time - c))
            charges.append((kinds, causes))
        overheads = list(kind["overhead_ps"])
        overheads[0] += self.option["draft_ps"]
        collectives = [
            rounded(kind["collective_ps"][o] + new / cuts * kind["collective_ps_per_token"][o]) for o in range(2)
        ]
        spent = [sum(compute[o]) + stalls[o] + overheads[o] + collectives[o] for o in range(2)]
        hop = rounded(kind["hop_ps"] + new / cuts * kind["hop_ps_per_token"])
        if not parted:
            length = sum(spent) + (stages * hop if stages > 1 else 0)
        else:
            length = sum(spent) + hop
            if cuts > 1:
                length = max(cuts * spent[0], cuts * spent[1], length)

        def share(ps: int) -> int:
            """Return what of one microbatch's time, over all stages, one device is busy with."""
            return int(ps * cuts // (1 if parted else stages))

        # farther memories, read through the whole step
        ready, far_stalls = length, []
        for t in range(1, w.T):
            tier, amount = kind["tiers"][t], far_kv[t] + far_weights[t]
            time, own, queue, n = 0, 0.0, 0.0, float(fragments(tier, amount))
            if amount:
                ways = [channel.use(now, amount, 0)[0] for channel in w.carries(t)]
                own = max(way[1] for way in ways)
                queue = max(0.0, float(max(way[0] for way in ways) - now) - own)
                time = rounded(transfer(tier, n, own) + queue)
            gate = w.gate[t] - now
            if max(time, gate) > ready:
                stall = max(time, gate) - ready
                causes = [tier["latency_ps"] if amount else 0.0, n * tier["overhead_ps"], own, queue,
                          float(max(0, gate - time))]  # fmt: skip
                kinds = [float(far_kv[t]), float(far_weights[t]), 0.0, 0.0]
                if gate > time:
                    kinds[KV] += 1.0
                pool = self.unit_pool[w.units[0]]
                self.charge(pool, w.ladder[t], stall, kinds, causes)
                far_stalls.append((STALL, w.ladder[t], stall))
                ready += stall

        # the books
        for o, unit in enumerate(w.units):
            if o and not parted:
                break
            mine = [o] if parted else [0, 1]
            tiers = [kind["ffn_tier"] if p and parted else w.ladder[0] for p in mine]
            parts = [(COMPUTE, -1, sum(share(compute[p][0]) for p in mine)),
                     (RECOMPUTE, -1, sum(share(compute[p][1]) for p in mine)),
                     (OVERHEAD, -1, sum(share(overheads[p]) for p in mine)),
                     (COLLECTIVES, -1, sum(share(collectives[p]) for p in mine))]  # fmt: skip
            for p, tier in zip(mine, tiers, strict=True):
                self.charge(self.unit_pool[unit], tier, share(stalls[p]), *charges[p])
                parts.append((STALL, tier, share(stalls[p])))
            parts += far_stalls if o == 0 else []
            parts.append((BUBBLE, -1, ready - sum(ps for _, _, ps in parts)))
            self.book(unit, parts, now)
            self.steps[unit] += 1
            self.passed[unit] += new
        totals = store.totals
        totals["read"][0][KV] += near_kv
        totals["write"][0][KV] += written
        totals["read"][0][STATE] += state
        totals["write"][0][STATE] += state
        totals["read"][0][WEIGHTS] += weights[0] * cuts + rows_read + (0 if parted else weights[1] * cuts)
        w.ffn_read += weights[1] * cuts if parted else 0
        for t in range(1, w.T):
            totals["read"][t][KV] += far_kv[t]
            totals["read"][t][WEIGHTS] += far_weights[t]
            for i in range(len(w.links)):
                if kind["tiers"][t]["path"] >> i & 1:
                    store.link_totals[0][i] += far_kv[t] + far_weights[t]
        w.extra = [[[0] * 4 for _ in range(4)] for _ in range(2)]
        w.state, w.until, w.now = BUSY, now + ready, now + ready

    def use_experts(self, w: Worker, now: int, far: list[int]) -> int:
        """Look up the cached experts of the coming step; return bytes found near, and add the others to `far`."""
        cached, store, near = w.kind.get("experts"), w.store, 0
        if cached is None:
            return 0
        used = []  # row and position of the step's tokens
        for x in w.batch if w.decoding else []:
            # the token that a step computes is the last one given
            first = self.q["input_tokens"][x.row] + self.emitted[x.row] - 1
            used += [(x.row, p) for p in range(first, first + 1 + self.option["draft"])]
        used += [(x.row, p) for x, context, c in w.chunks for p in range(context, context + c)]
        for layer in range(cached["layers"]):
            for e in sorted({e for row, p in used for e in self.draw(cached, layer, row, p)}):
                b = cached["first"] + layer * cached["count"] + e
                t = store.nearest(b)
                assert t is not None
                store.count(b, t)
                store.touch(b)
                if t == 0:
                    near += self.blocks["bytes"][b]
                else:
                    far[t] += self.blocks["bytes"][b]
                    if store.rises(b, t):
                        store.promote(b, t)
        load = self.settle(w, now)
        w.gate = [max(a, b) for a, b in zip(w.gate, load.end, strict=True)]
        return near

    @staticmethod
    def draw(cached: Mapping[str, int], layer: int, row: int, position: int) -> set[int]:
        """Return the experts of a layer that a token uses: drawn without replacement, by seed, layer and token."""
        whole = (1 << 64) - 1
        state = (cached["seed"] + layer) & whole
        for own in (row, position):
            state, number = splitmix64(state)
            state = number ^ own
        drawn: set[int] = set()
        while len(drawn) < cached["each"]:
            state, number = splitmix64(state)
            drawn.add(number % cached["count"])
        return drawn

    def finish(self, w: Worker, now: int) -> None:
        """End a step: tokens are there, prompts go on, requests complete."""
        w.state = READY
        if w.decoding:
            gain = self.gain(w)
            w.acceptance = int(w.acceptance + self.option["accepted"]) % ONE
            w.tokens += gain
            ended = []
            emitted = 0
            for live in w.batch:
                step = min(gain, live.end - (w.tokens - gain))
                self.emitted[live.row] += step
                emitted += step
                if w.tokens >= live.end:
                    ended.append(live)
            self.emissions.append((now, 0, emitted))
            for live in sorted(ended, key=lambda x: x.row):
                w.batch.remove(live)
                self.complete(w, live, now)
        for live, _, c in w.chunks:
            live.done += c
            self.emissions.append((now, c, 0))
            if live.done == live.front and live.ready > now:
                w.prefill.remove(live)
                self.prefilled_until(live, now)
                self.enter(live.row, FROM_TIER, now)
                w.loading.append(live)
            elif live.done == live.total:
                w.prefill.remove(live)
                self.prefilled(w, live, now)
        self.settle(w, now)

    def prefilled(self, w: Worker, live: Live, now: int) -> None:
        """Publish a computed prompt: its blocks can be found, and a token is there."""
        row, store = live.row, w.store
        if self.state[row] == PREFILLING:
            self.prefilled_until(live, now)
        for b in reversed(live.chain):
            if b in live.blocks:
                self.publish(w, live, b)
            elif b in store.copies[0] and b in live.told:
                if live.told[b]:
                    store.touch(b)
                else:
                    store.renew(b)
        live.chain, live.told = [], {}
        live.blocks = []
        for b in self.q["state_write"][row] if w.role != DECODE else []:
            if store.nearest(b) is None:
                store.settle(b, 0, None)
        if live.emits:
            self.emitted[row] += 1
            self.emissions.append((now, 0, 1))
            if self.first_token[row] < 0:
                self.first_token[row] = now
        if self.emitted[row] >= max(self.q["output_tokens"][row], 1):
            self.upstream -= w.role == PREFILL
            self.complete(w, live, now)
        elif w.role == PREFILL:
            self.enter(row, TRANSFER, now)
            self.staged[row] = live
            back = self.least_loaded([self.workers[i] for i in self.spec["backs"]])
            self.column["decode_unit"][row] = back.units[0]
            self.upstream -= 1
            self.enqueue(back, row, now)
        else:
            self.enter(row, DECODING, now)
            live.tail = max(self.q["input_tokens"][row] + self.emitted[row] - 1 - live.chain_tokens, 0)
            live.joined = w.tokens
            live.end = w.tokens + self.q["output_tokens"][row] - self.emitted[row]
            w.batch.append(live)

    def publish(self, w: Worker, live: Live, b: int) -> None:
        """Let a block that has been computed be found: it takes the room that was claimed for it."""
        store, size = w.store, self.blocks["bytes"][b]
        t = next((t for t in range(w.T) if live.claimed[t] >= size), None)
        if t is None:
            return
        held = store.nearest(b)
        store.claimed[t] -= size
        if held is not None and held <= t:
            live.far[t] -= size if t else 0
            live.far[held] += size if held else 0
        else:
            if not store.insert(t, b):
                store.claimed[t] += size
                return
            if held is not None and store.movements[held - 1]["exclusive"] and not store.pins.get(b):
                store._remove(held, b, PROMOTE)
        live.claimed[t] -= size
        store.pin(b)
        live.pinned.append(b)

    def hand_over(self, row: int, now: int) -> None:
        """Free the room of a prompt whose KV has left the pool that prefilled it."""
        live = self.staged.pop(row, None)
        if live is not None:
            front = self.front_of[row]
            self.let_go(front, live)
            self.wake(front, now)

    def complete(self, w: Worker, live: Live, now: int) -> None:
        """Complete a request: its room is free, its pause rules hold, and what waits for it goes on."""
        row, front = live.row, self.front_of[live.row]
        if self.state[row] != DECODING:
            self.enter(row, DECODING, now)
        self.enter(row, DECODING, now)
        self.done[row] = now
        end = self.q["output_block"][row]
        pinned, live.pinned = live.pinned, []
        self.let_go(w, live)
        if end >= 0:
            prompt = set(chain(self.blocks["parent"], self.q["last_block"][row]))
            for b in reversed([b for b in chain(self.blocks["parent"], end) if b not in prompt]):
                if front.store.nearest(b) is None:
                    if front is w:
                        front.store.insert(0, b)
                    elif front.T > 1:
                        front.store.settle(b, 1, None)
        for b in self.q["state_output"][row]:
            if front.store.nearest(b) is None:
                front.store.settle(b, 0, None)
        for b in pinned:
            w.store.unpin(b)
        self.park(front, row, end if end >= 0 else self.q["last_block"][row], now)
        self.settle(front, now)
        if front is not w:
            self.wake(front, now)
        self.gone(row, now)
        for other in self.dependents[row]:
            self.waits[other] -= 1
            if self.waits[other] == 0 and self.column["status"][other] == DONE:
                self.release(other, now)
