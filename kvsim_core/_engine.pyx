"""The closed loop: requests in, steps of workers, both views of the stall out.

The rules are those of `kvsim.reference.engine`, which is the specification and is equalled integer for integer; what
differs is that a step of a batch that does not change costs the same for any batch: sums over the running sequences
are kept, not taken, and steps with nothing to decide follow one another without the loop around them.
"""
cimport cython
from libc.stdint cimport INT64_MAX, int8_t, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

import numpy as np

from kvsim_core._clock cimport (
    combine, larger, number, pace_t, read_channel, round_ps, split, transfer,
)
from kvsim_core._policy cimport PROMOTE, raise_status
from kvsim_core._store cimport MAX_SHIFT, Store, books_t, traffic_t
from kvsim_core._structures cimport splitmix64
from kvsim_core._types cimport (
    BYTES_OVERFLOW, MAX_LINKS, MAX_TIERS, N_CAUSES, N_KINDS, N_OPERATIONS, N_RULES, N_WEIGHTS, NO_MEMORY,
    NOT_CONSERVED, OK, TIME_OVERFLOW, block_t, bytes_t, tick_t,
)

cdef extern from *:
    """
    #ifndef KVSIM_DEBUG
    #define KVSIM_DEBUG 0
    #endif
    """
    int KVSIM_DEBUG

cdef double LIMIT = 4.6e18        # below 2^62 ps


cdef class Engine:
    """One run of requests on a machine.

    Parameters
    ----------
    spec : mapping
        Numbers and columns as `kvsim.run_lowering` makes them; every one is copied or kept, and checked here.
    policies : sequence of sequences of Policy
        Fresh ones, one a tier of each worker.
    record : bool
        Keep logs of steps, moves and states for a timeline.

    Raises
    ------
    ValueError
        If a column or a number is out of range; nothing has run then.
    """
    cdef list kept                 # what the pointers below point into
    cdef readonly list stores
    cdef object is_kv, session_column, latest
    cdef readonly int64_t n
    cdef int T, P, U, L, n_workers, n_groups
    cdef int state_width
    cdef kind_t *kinds
    cdef int n_kinds
    cdef worker_t *workers
    cdef int32_t *unit_pool
    cdef int32_t *unit_replica
    cdef const int32_t *group
    cdef const int64_t *group_at
    cdef const int32_t *backs
    cdef int n_backs
    cdef chan_t pipe               # between the prefill and the decode pool
    cdef double pipe_latency
    cdef bint piped
    cdef bytes_t transferred
    # requests
    cdef const int64_t *arrival
    cdef const int64_t *inputs
    cdef const int64_t *outputs
    cdef const int64_t *delay
    cdef const int32_t *last
    cdef const int32_t *output
    cdef const int32_t *session
    cdef const int32_t *session_rank
    cdef const int32_t *priority
    cdef const int32_t *population
    cdef const int32_t *pause
    cdef const int32_t *resumer
    cdef const int32_t *state_lookup
    cdef const int64_t *after_at
    cdef const int32_t *after
    cdef const int64_t *next_at    # dependents
    cdef const int32_t *next_rows
    cdef const int64_t *data_at
    cdef const int32_t *data
    cdef const int64_t *write_at
    cdef const int32_t *write_rows
    cdef const int64_t *out_at
    cdef const int32_t *out_rows
    # blocks
    cdef const int64_t *size
    cdef const int32_t *block_tokens
    cdef const int32_t *parent
    cdef const int32_t *position
    cdef block_t n_blocks
    # model
    cdef double flops[N_OPERATIONS]
    cdef double head_flops, pair_decode, pair_prefill
    cdef int64_t global_layers, sparse_layers, local_layers, sparse, window
    cdef bint stateful
    # options
    cdef int64_t max_seqs, max_tokens, draft, accepted, cpu_slots, concurrency
    cdef bint chunked, mixed, swap, oracle
    cdef int order, overflow, load_rule, router
    cdef tick_t deadline, draft_ps
    cdef plan_t plans[3]
    # per request
    cdef int64_t *ready_at
    cdef int64_t *admitted_at
    cdef int64_t *first_at
    cdef int64_t *done_at
    cdef int64_t *states
    cdef int8_t *state
    cdef int64_t *since
    cdef int64_t *think
    cdef int64_t *tool
    cdef int64_t *tool_wait
    cdef int64_t *hit
    cdef int64_t *loaded
    cdef int64_t *computed
    cdef int64_t *recomputed
    cdef int64_t *preemptions
    cdef int64_t *emitted
    cdef int32_t *unit
    cdef int32_t *decode_unit
    cdef int8_t *status_of
    cdef int64_t *lost
    cdef int64_t *key
    cdef int64_t *serial
    cdef int32_t *front_of
    cdef int32_t *staged
    cdef int64_t *swapped
    cdef int32_t *waits
    cdef int32_t *parked           # first parking of the row that resumes, -1
    cdef int64_t *left             # requests of each session still to come
    cdef const int64_t *roots_at   # rows that begin each session, sessions in order of their first
    cdef const int32_t *roots
    cdef const uint8_t *rooted
    cdef int64_t n_queue, at_queue
    cdef dict columns
    # what is live
    cdef live_t **lives
    cdef int32_t n_lives, free_live
    cdef parking_t *parkings
    cdef int32_t n_parkings, room_parkings, free_parking
    cdef event_t *events
    cdef int64_t n_events, room_events
    cdef int64_t n_arriving        # of these events, those that bring a request: tools that end, and arrivals
    cdef int32_t *tool_rows        # a ring of rows that wait for a slot
    cdef int64_t *tool_since
    cdef int64_t tool_first, tool_count, tool_room
    cdef int64_t serials
    cdef int64_t *turn
    cdef int64_t tools_busy, tools, thinking, upstream
    cdef int64_t unfinished, rejected, pins_broken, n_preempted, n_events_done
    cdef bytes_t swapped_bytes
    # time
    cdef tick_t makespan
    cdef bint started, ended
    cdef int status
    cdef int64_t *parts            # [unit][part]
    cdef int64_t *stall            # [pool][tier][kind][cause]
    cdef int64_t *steps
    cdef int64_t *passed           # tokens through each unit
    cdef tick_t bin_ps
    cdef tick_t bin_end            # of the next sample
    cdef int64_t n_bins            # with anything in them
    cdef int64_t *bin_parts        # [bin][pool][part]
    cdef int64_t *bin_stall        # [bin][pool][tier]
    cdef int64_t *bin_used         # [bin][tier]
    cdef int64_t *bin_counts       # [bin]: running, waiting, loading, prompt tokens, output tokens
    cdef bint record
    cdef log_t log_steps, log_moves, log_phases
    cdef bint busy

    def __cinit__(self, spec, policies, *, bint record=False):
        self.kept = []
        self.stores = []
        self.columns = {}
        self.record = record
        self.free_live = -1
        self.free_parking = -1
        try:
            self.read_blocks(spec["blocks"])
            self.read_requests(spec["requests"])
            self.read_model(spec["model"])
            self.read_options(spec["options"], spec["retention"])
            self.read_machine(spec, policies)
            self.make_columns()
        except IndexError as error:
            raise ValueError("spec: found something shorter than expected") from error

    def __dealloc__(self):
        cdef int i
        cdef worker_t *w
        free(self.kinds)
        if self.workers != NULL:
            for i in range(self.n_workers):
                w = &self.workers[i]
                free(w.waiting)
                free(w.loading)
                free(w.prefill)
                free(w.batch)
                free(w.ended)
                free(w.touched)
                free(w.chunks)
                free(w.phase)
                free(w.grown)
                free(w.coming)
                free(w.coming_load)
                free(w.loads)
        free(self.workers)
        free(self.unit_pool)
        free(self.unit_replica)
        if self.lives != NULL:
            for i in range(self.n_lives):
                free(self.lives[i].blocks)
                free(self.lives[i].tier)
                free(self.lives[i])
        free(self.lives)
        free(self.parkings)
        free(self.events)
        free(self.tool_rows)
        free(self.tool_since)
        free(self.turn)
        free(self.parts)
        free(self.stall)
        free(self.steps)
        free(self.passed)
        free(self.bin_parts)
        free(self.bin_stall)
        free(self.bin_used)
        free(self.bin_counts)
        free(self.log_steps.data)
        free(self.log_moves.data)
        free(self.log_phases.data)

    # -- the door ---------------------------------------------------------------------------------------------------

    @cython.boundscheck(True)
    def _keep(self, values, dtype, str name, *, rows=None, low=None, high=None):
        """Keep a checked copy of a column, and return its address."""
        given = np.asarray(values)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iub"):
            raise ValueError(f"{name}: expected one column of whole numbers")
        if rows is not None and given.shape[0] != rows:
            raise ValueError(f"{name}: expected {rows} rows, found {given.shape[0]}")
        if given.size:
            limits = np.iinfo(dtype)
            least = int(given.min())
            most = int(given.max())
            floor_, ceiling = (limits.min if low is None else low), (limits.max if high is None else high)
            if least < floor_ or most > ceiling:
                raise ValueError(f"{name}: expected {floor_} … {ceiling}, found {least} … {most}")
        column = np.array(given, dtype=dtype, order="C", copy=True)
        self.kept.append(column)
        self.latest = column
        return column.__array_interface__["data"][0]

    @cython.boundscheck(True)
    cdef tuple keep_lists(self, pair, str name, high):
        """Keep a checked pair of offsets and values, one run a request."""
        offsets = np.asarray(pair[0])
        values = np.asarray(pair[1])
        if offsets.ndim != 1 or offsets.shape[0] != self.n + 1 or values.ndim != 1:
            raise ValueError(f"{name}: expected offsets of {self.n + 1} rows, and values")
        if (offsets.dtype.kind not in "iu" or int(offsets[0]) != 0 or int(offsets[self.n]) != values.shape[0]
                or (self.n and int(np.diff(offsets).min()) < 0)):
            raise ValueError(f"{name}: expected offsets that rise from 0 to {values.shape[0]}")
        return self._keep(offsets, np.int64, name), self._keep(values, np.int32, name, low=0, high=high)

    @cython.boundscheck(True)
    cdef void read_blocks(self, blocks) except *:
        n = len(blocks["bytes"])
        if not 1 <= n < 0x7ffffff0:
            raise ValueError("blocks: expected the private block at least, and fewer than 2^31")
        self.n_blocks = <block_t>n
        self.size = <const int64_t *><size_t>self._keep(
            blocks["bytes"], np.int64, "blocks.bytes", low=0, high=<int64_t>1 << MAX_SHIFT)
        self.block_tokens = <const int32_t *><size_t>self._keep(
            blocks["tokens"], np.int32, "blocks.tokens", rows=n, low=0)
        self.parent = <const int32_t *><size_t>self._keep(
            blocks["parent"], np.int32, "blocks.parent", rows=n, low=-1, high=n - 1)
        self.position = <const int32_t *><size_t>self._keep(blocks["position"], np.int32, "blocks.position", rows=n)
        self._keep(blocks["kind"], np.int8, "blocks.kind", rows=n, low=0, high=N_KINDS - 1)
        kind = self.latest
        parent, position = self.kept[2], self.kept[3]
        self.is_kv = kind == K_KV
        if (parent >= np.arange(n)).any():
            raise ValueError("blocks.parent: expected every parent before its child")
        chained = self.is_kv & (parent >= 0)
        if (position[chained] != position[parent[chained]] + 1).any() or not self.is_kv[parent[chained]].all():
            raise ValueError("blocks.position: expected each child one place behind its parent")
        if (position[self.is_kv & (parent < 0)] != 0).any():
            raise ValueError("blocks.position: expected chains that begin at place 0")
        if n and self.size[n - 1] != 0:
            raise ValueError("blocks: expected the last, which stands for private KV, to have no bytes")

    @cython.boundscheck(True)
    cdef void read_requests(self, q) except *:
        n = len(q["arrival_ps"])
        if n >= 0x7ffffff0:
            raise ValueError("requests: expected fewer than 2^31")
        self.n = n
        limit = 1 << 62
        tokens = 1 << 40
        self.arrival = <const int64_t *><size_t>self._keep(q["arrival_ps"], np.int64, "arrival_ps", low=0, high=limit)
        self.inputs = <const int64_t *><size_t>self._keep(
            q["input_tokens"], np.int64, "input_tokens", rows=n, low=0, high=tokens)
        self.outputs = <const int64_t *><size_t>self._keep(
            q["output_tokens"], np.int64, "output_tokens", rows=n, low=0, high=tokens)
        self.delay = <const int64_t *><size_t>self._keep(q["delay_ps"], np.int64, "delay_ps", rows=n, low=0, high=limit)
        block = self.n_blocks - 1
        self.last = <const int32_t *><size_t>self._keep(
            q["last_block"], np.int32, "last_block", rows=n, low=-1, high=block)
        last = self.latest
        self.output = <const int32_t *><size_t>self._keep(
            q["output_block"], np.int32, "output_block", rows=n, low=-1, high=block)
        for ends in (last, self.latest):
            if not self.is_kv[ends[ends >= 0]].all():
                raise ValueError("last_block, output_block: expected blocks of kind kv")
        self.session = <const int32_t *><size_t>self._keep(q["session"], np.int32, "session", rows=n, low=0)
        self.session_column = self.latest
        self.priority = <const int32_t *><size_t>self._keep(q["priority"], np.int32, "priority", rows=n)
        self.population = <const int32_t *><size_t>self._keep(q["population"], np.int32, "population", rows=n, low=0)
        self.pause = <const int32_t *><size_t>self._keep(q["pause"], np.int32, "pause", rows=n, low=0, high=2)
        self.resumer = <const int32_t *><size_t>self._keep(
            q["resumer"], np.int32, "resumer", rows=n, low=-1, high=n - 1)
        self.state_lookup = <const int32_t *><size_t>self._keep(
            q["state_lookup"], np.int32, "state_lookup", rows=n, low=-1, high=block)
        at, rows = self.keep_lists(q["after"], "after", n - 1)
        self.after_at = <const int64_t *><size_t>at
        self.after = <const int32_t *><size_t>rows
        after = self.latest
        offsets = self.kept[len(self.kept) - 2]
        if (np.diff(offsets) >= (1 << 31)).any():
            raise ValueError("after: a request waits for too many")
        owner = np.repeat(np.arange(n, dtype=np.int32), np.diff(offsets))
        next_at = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(after, minlength=n)[:n], out=next_at[1:])
        self.next_at = <const int64_t *><size_t>self._keep(next_at, np.int64, "dependents")
        self.next_rows = <const int32_t *><size_t>self._keep(
            owner[np.argsort(after, kind="stable")], np.int32, "dependents")
        at, rows = self.keep_lists(q["data"], "data", block)
        self.data_at = <const int64_t *><size_t>at
        self.data = <const int32_t *><size_t>rows
        at, rows = self.keep_lists(q["state_write"], "state_write", block)
        self.write_at = <const int64_t *><size_t>at
        self.write_rows = <const int32_t *><size_t>rows
        at, rows = self.keep_lists(q["state_output"], "state_output", block)
        self.out_at = <const int64_t *><size_t>at
        self.out_rows = <const int32_t *><size_t>rows

    @cython.boundscheck(True)
    cdef void read_model(self, m) except *:
        cdef int o
        for o in range(N_OPERATIONS):
            self.flops[o] = number({"flops": m["flops"][o]}, "flops")
        self.head_flops = number(m, "head_flops")
        self.pair_decode = number(m, "pair_decode")
        self.pair_prefill = number(m, "pair_prefill")
        self.global_layers = whole(m, "global_layers", 0, 1 << 20)
        self.sparse_layers = whole(m, "sparse_layers", 0, 1 << 20)
        self.local_layers = whole(m, "local_layers", 0, 1 << 20)
        self.sparse = whole(m, "sparse", 0, 1 << 40)
        self.window = whole(m, "window", 0, 1 << 40)
        self.stateful = bool(m["stateful"])

    @cython.boundscheck(True)
    cdef void read_options(self, option, retention) except *:
        cdef int i
        self.max_seqs = whole(option, "max_seqs", 1, 1 << 24)
        self.max_tokens = whole(option, "max_tokens", 1, 1 << 40)
        self.chunked = bool(option["chunked"])
        self.mixed = bool(option["mixed"])
        self.order = whole(option, "order", 0, 2)
        self.overflow = whole(option, "overflow", 0, 2)
        self.swap = bool(option["swap"])
        self.load_rule = whole(option, "load", 0, 3)
        self.deadline = whole(option, "deadline_ps", 0, 1 << 62)
        self.draft = whole(option, "draft", 0, 1 << 16)
        self.accepted = whole(option, "accepted", ONE, (self.draft + 1) * ONE)
        self.draft_ps = whole(option, "draft_ps", 0, 1 << 60)
        self.router = whole(option, "router", 0, 3)
        self.cpu_slots = whole(option, "cpu_slots", 0, 1 << 40)
        self.concurrency = whole(option, "concurrency", 0, 1 << 40)
        self.oracle = bool(option["oracle"])
        self.bin_ps = whole(option, "bin_ps", 1, 1 << 60) if "bin_ps" in option else 1000000000000
        self.bin_end = self.bin_ps
        if len(retention) != 3:
            raise ValueError("retention: expected a plan for each of three pauses")
        for i in range(3):
            self.plans[i].pin = whole(retention[i], "pin_ps", -1, 1 << 62)
            self.plans[i].demote = whole(retention[i], "demote_ps", -1, 1 << 62)
            self.plans[i].lead = whole(retention[i], "lead_ps", 0, 1 << 62)
            self.plans[i].tier = whole(retention[i], "tier", 0, MAX_TIERS)
            self.plans[i].drop = bool(retention[i]["drop"])
            self.plans[i].prefetch = whole(retention[i], "prefetch", 0, 2)

    @cython.boundscheck(True)
    cdef void read_machine(self, spec, policies) except *:
        cdef int i, t, o
        cdef worker_t *w
        cdef Store store
        self.T = whole(spec, "tiers", 1, MAX_TIERS)
        self.L = max([len(k["links"]) for k in spec["kinds"]] + [int(spec.get("links", 0))])
        if self.L > MAX_LINKS:
            raise ValueError("links: expected at most 16")
        self.state_width = FROM_TIER + self.T
        self.n_kinds = len(spec["kinds"])
        self.kinds = <kind_t *>calloc(max(1, self.n_kinds), sizeof(kind_t))
        if self.kinds == NULL:
            raise MemoryError("not enough memory for the machine")
        for i, k in enumerate(spec["kinds"]):
            self.read_kind(k, &self.kinds[i])
        pools = list(spec["unit_pool"])
        self.U = len(pools)
        if not self.U or not all(0 <= p < MAX_POOLS for p in pools):
            raise ValueError("unit_pool: expected pools 0 … 7")
        self.P = max(pools) + 1
        self.unit_pool = <int32_t *>calloc(self.U, sizeof(int32_t))
        self.unit_replica = <int32_t *>calloc(self.U, sizeof(int32_t))
        self.parts = <int64_t *>calloc(self.U * N_PARTS, sizeof(int64_t))
        self.steps = <int64_t *>calloc(self.U, sizeof(int64_t))
        self.passed = <int64_t *>calloc(self.U, sizeof(int64_t))
        self.stall = <int64_t *>calloc(self.P * self.T * N_KINDS * N_CAUSES, sizeof(int64_t))
        self.bin_parts = <int64_t *>calloc(MAX_BINS * self.P * N_PARTS, sizeof(int64_t))
        self.bin_stall = <int64_t *>calloc(MAX_BINS * self.P * self.T, sizeof(int64_t))
        self.bin_used = <int64_t *>calloc(MAX_BINS * self.T, sizeof(int64_t))
        self.bin_counts = <int64_t *>calloc(MAX_BINS * 5, sizeof(int64_t))
        self.n_workers = len(spec["workers"])
        self.workers = <worker_t *>calloc(max(1, self.n_workers), sizeof(worker_t))
        if (self.unit_pool == NULL or self.unit_replica == NULL or self.parts == NULL or self.steps == NULL
                or self.passed == NULL
                or self.stall == NULL or self.bin_parts == NULL or self.bin_stall == NULL or self.bin_used == NULL
                or self.bin_counts == NULL or self.workers == NULL):
            raise MemoryError("not enough memory for the machine")
        seen = {}
        for i, p in enumerate(pools):
            self.unit_pool[i] = p
            self.unit_replica[i] = seen.get(p, 0)
            seen[p] = seen.get(p, 0) + 1
        if not 1 <= self.n_workers <= 1 << 20 or len(policies) != self.n_workers:
            raise ValueError("workers: expected one at least, each with policies")
        blocks = spec["blocks"]
        self._keep(blocks["operation"], np.int8, "blocks.operation", rows=self.n_blocks, low=0, high=N_OPERATIONS - 1)
        columns = [self.kept[0], self.kept[1], self.kept[4], self.latest, self.kept[2], self.kept[3]]
        self._keep(blocks["home"], np.int16, "blocks.home", rows=self.n_blocks, low=-1)
        home = self.latest
        recompute = np.zeros((self.n_blocks, N_OPERATIONS))
        for i, given in enumerate(spec["workers"]):
            w = &self.workers[i]
            if not 0 <= given["kind"] < self.n_kinds or not 0 <= given["role"] <= 2:
                raise ValueError(f"worker {i}: kind or role is out of range")
            k = spec["kinds"][given["kind"]]
            w.kind = &self.kinds[given["kind"]]
            w.role = given["role"]
            for o in range(2):
                if not 0 <= given["units"][o] < self.U:
                    raise ValueError(f"worker {i}: a unit is out of range")
                w.unit[o] = given["units"][o]
            w.parted = w.unit[0] != w.unit[1]
            if w.parted and w.kind.cached_layers:
                raise ValueError(f"worker {i}: cached experts and parted pools exclude each other")
            w.touched = <uint8_t *>calloc(max(<int64_t>1, w.kind.expert_count), 1)
            if w.touched == NULL:
                raise MemoryError("not enough memory for the workers")
            if w.parted and w.kind.stages > 1:
                raise ValueError(f"worker {i}: a pipeline cannot be parted")
            w.blocked_row = -1
            w.next_end = INT64_MAX
            w.next_cross = INT64_MAX
            store = Store(k["tiers"], k["movements"], policies[i], n_links=len(k["links"]))
            store.bind(columns[0], columns[1], columns[2], columns[3], columns[4], columns[5],
                       np.where(home >= w.kind.T, w.kind.T - 1, home).astype(np.int16), recompute)
            store.next_use[self.n_blocks - 1] = -1
            store.mult = 1
            store.begin_step()
            self.stores.append(store)
            w.store = <void *>store
            for t in range(w.kind.T):
                w.device[t].pace = w.kind.pace[t].device
            for t, link in enumerate(k["links"]):
                read_channel(link, &w.link[t].pace)
            w.phase = <int64_t *>calloc(w.kind.block_tokens, sizeof(int64_t))
            w.grown = <int64_t *>calloc(w.kind.block_tokens * w.kind.T, sizeof(int64_t))
            w.coming = <tick_t *>calloc(self.n_blocks, sizeof(tick_t))
            w.coming_load = <int32_t *>calloc(self.n_blocks, sizeof(int32_t))
            if w.phase == NULL or w.grown == NULL or w.coming == NULL or w.coming_load == NULL:
                raise MemoryError("not enough memory for the workers")
        self.n_groups = len(spec["groups"])
        if self.n and (self.n_groups == 0 or int(self.kept_max(self.population)) >= self.n_groups):
            raise ValueError("groups: expected workers for each population")
        flat = [int(i) for group in spec["groups"] for i in group]
        for group in spec["groups"]:
            if not len(group):
                raise ValueError("groups: expected a worker at least in each")
            for i in group:
                if not 0 <= i < self.n_workers or self.workers[i].role == DECODE:
                    raise ValueError("groups: expected workers that prefill")
        at = np.zeros(self.n_groups + 1, np.int64)
        np.cumsum([len(group) for group in spec["groups"]], out=at[1:])
        self.group = <const int32_t *><size_t>self._keep(np.array(flat, np.int32), np.int32, "groups")
        self.group_at = <const int64_t *><size_t>self._keep(at, np.int64, "groups")
        self.n_backs = len(spec["backs"])
        self.backs = <const int32_t *><size_t>self._keep(
            np.array(spec["backs"], np.int32), np.int32, "backs", low=0, high=self.n_workers - 1)
        for i in spec["backs"]:
            if self.workers[i].role != DECODE:
                raise ValueError("backs: expected workers that decode")
        self.piped = spec["transfer"] is not None
        if self.piped:
            read_channel(spec["transfer"], &self.pipe.pace)
            self.pipe_latency = number(spec["transfer"], "latency_ps")
        for i in range(self.n_workers):
            if self.workers[i].role == PREFILL and (not self.n_backs or not self.piped):
                raise ValueError("backs: expected a decode pool, and a link to it")
        self.turn = <int64_t *>calloc(max(1, self.n_groups), sizeof(int64_t))
        if self.turn == NULL:
            raise MemoryError("not enough memory for the machine")

    cdef int64_t kept_max(self, const int32_t *column) noexcept:
        cdef int64_t most = 0, i
        for i in range(self.n):
            most = max(most, column[i])
        return most

    @cython.boundscheck(True)
    cdef void read_kind(self, k, kind_t *kind) except *:
        cdef int t, o
        tiers, links = k["tiers"], k["links"]
        if not 1 <= len(tiers) <= MAX_TIERS or len(k["ladder"]) != len(tiers) or len(links) > MAX_LINKS:
            raise ValueError("kind: expected 1 … 8 tiers, and at most 16 links")
        kind.T = len(tiers)
        kind.n_links = len(links)
        for t, spec in enumerate(tiers):
            if not 0 <= k["ladder"][t] < self.T:
                raise ValueError("ladder: a tier is out of range")
            kind.ladder[t] = k["ladder"][t]
            read_pace(spec, &kind.pace[t])
            kind.fragment[t] = whole(spec, "fragment_bytes", 0, 1 << 62)
            kind.path[t] = whole(spec, "path", 0, (1 << len(links)) - 1)
        for t, link in enumerate(k.get("link_index", range(len(links)))):
            if not 0 <= link < self.L:
                raise ValueError("link_index: a link is out of range")
            kind.link_index[t] = link
        kind.stages = whole(k, "stages", 1, 1024)
        kind.microbatches = whole(k, "microbatches", 1, 1024)
        for o in range(N_OPERATIONS):
            kind.ps_per_flop[o] = number({"ps_per_flop": k["ps_per_flop"][o]}, "ps_per_flop")
            kind.overhead[o] = whole({"overhead_ps": k["overhead_ps"][o]}, "overhead_ps", 0, 1 << 58)
            kind.collective[o] = number({"collective_ps": k["collective_ps"][o]}, "collective_ps")
            kind.collective_token[o] = number({"per_token": k["collective_ps_per_token"][o]}, "per_token")
            kind.near_weights[o] = whole(
                {"near_weights": k["near_weights"][o]}, "near_weights", 0, <int64_t>1 << MAX_SHIFT)
        kind.hop = number(k, "hop_ps")
        kind.hop_token = number(k, "hop_ps_per_token")
        if len(k["far_weights"]) != kind.T:
            raise ValueError("far_weights: expected a pair for each tier")
        for t in range(kind.T):
            kind.far_weights[t] = whole(
                {"far_weights": sum(int(x) for x in k["far_weights"][t])}, "far_weights", 0, <int64_t>1 << MAX_SHIFT)
        table = k["expert_bytes"]
        if not len(table):
            raise ValueError("expert_bytes: expected a table")
        kind.experts = <const int64_t *><size_t>self._keep(
            table, np.int64, "expert_bytes", low=0, high=<int64_t>1 << MAX_SHIFT)
        kind.n_experts = len(table)
        kind.expert_num = whole({"expert_near": k["expert_near"][0]}, "expert_near", 0, 1 << 12)
        kind.expert_den = whole({"expert_near": k["expert_near"][1]}, "expert_near", 1, 1 << 12)
        if kind.expert_num > kind.expert_den:
            raise ValueError("expert_near: expected a share")
        kind.expert_tier = whole(k, "expert_tier", 0, kind.T - 1)
        if kind.expert_tier == 0 and kind.expert_num != kind.expert_den:
            raise ValueError("expert_tier: expected a tier below the nearest")
        cached = k.get("experts")
        if cached is not None:
            kind.cached_layers = whole(cached, "layers", 1, 1 << 20)
            kind.expert_count = whole(cached, "count", 1, 1 << 16)
            kind.expert_each = whole(cached, "each", 1, min(64, cached["count"]))
            kind.expert_first = whole(cached, "first", 0, self.n_blocks - 1)
            kind.expert_seed = whole(cached, "seed", 0, (1 << 63) - 1)
            last = kind.expert_first + kind.cached_layers * kind.expert_count
            if last >= self.n_blocks or not (self.kept[4][kind.expert_first:last] == K_WEIGHTS).all():
                raise ValueError("experts: expected a block of kind weights for each expert of each layer")
            if kind.stages > 1:
                raise ValueError("experts: cached ones and a pipeline exclude each other")
        kind.token_row = whole(k, "token_row_bytes", 0, 1 << 40)
        kind.block_tokens = whole(k, "block_tokens", 1, 1 << 20)
        kind.kv_token = whole(k, "kv_token_bytes", 0, 1 << 40)
        kind.kv_write = whole(k, "kv_write_bytes", 0, 1 << 40)
        kind.kv_layer = whole(k, "kv_layer_bytes", 0, 1 << 40)
        kind.window_token = whole(k, "window_token_bytes", 0, 1 << 40)
        kind.state = whole(k, "state_bytes", 0, 1 << 48)
        if k.get("ffn_near") is not None:
            read_pace(k["ffn_near"], &kind.ffn_near)
            kind.ffn_fragment = whole(k["ffn_near"], "fragment_bytes", 0, 1 << 62)
        kind.ffn_tier = whole(k, "ffn_tier", 0, self.T - 1)

    cdef size_t column(self, str name, dtype, fill, int64_t width=1) except? 0:
        """Make a column of the result, and return its address."""
        made = np.full(self.n * width, fill, dtype)
        self.columns[name] = made.reshape(self.n, width) if width != 1 else made
        return <size_t>made.__array_interface__["data"][0]

    @cython.boundscheck(True)
    cdef void make_columns(self) except *:
        cdef int64_t row
        self.ready_at = <int64_t *>self.column("ready_ps", np.int64, -1)
        self.admitted_at = <int64_t *>self.column("admitted_ps", np.int64, -1)
        self.first_at = <int64_t *>self.column("first_token_ps", np.int64, -1)
        self.done_at = <int64_t *>self.column("done_ps", np.int64, -1)
        self.states = <int64_t *>self.column("states", np.int64, 0, self.state_width)
        self.state = <int8_t *>self.column("state", np.int8, QUEUED)
        self.since = <int64_t *>self.column("since", np.int64, 0)
        self.think = <int64_t *>self.column("think_ps", np.int64, 0)
        self.tool = <int64_t *>self.column("tool_ps", np.int64, 0)
        self.tool_wait = <int64_t *>self.column("tool_wait_ps", np.int64, 0)
        self.hit = <int64_t *>self.column("hit_tokens", np.int64, 0)
        self.loaded = <int64_t *>self.column("loaded_tokens", np.int64, 0, self.T)
        self.computed = <int64_t *>self.column("computed_tokens", np.int64, 0)
        self.recomputed = <int64_t *>self.column("recomputed_tokens", np.int64, 0)
        self.preemptions = <int64_t *>self.column("preemptions", np.int64, 0)
        self.emitted = <int64_t *>self.column("output_tokens", np.int64, 0)
        self.unit = <int32_t *>self.column("unit", np.int32, 0)
        self.decode_unit = <int32_t *>self.column("decode_unit", np.int32, 0)
        self.status_of = <int8_t *>self.column("status", np.int8, DONE)
        self.lost = <int64_t *>self.column("lost", np.int64, 0)
        self.key = <int64_t *>self.column("key", np.int64, 0)
        self.serial = <int64_t *>self.column("serial", np.int64, 0)
        self.front_of = <int32_t *>self.column("front", np.int32, -1)
        self.staged = <int32_t *>self.column("staged", np.int32, -1)
        self.swapped = <int64_t *>self.column("swapped", np.int64, 0)
        self.waits = <int32_t *>self.column("waits", np.int32, 0)
        self.parked = <int32_t *>self.column("parked", np.int32, -1)
        for row in range(self.n):
            self.waits[row] = <int32_t>(self.after_at[row + 1] - self.after_at[row])
        # session numbers may be sparse: what is kept for each goes by its rank
        session = np.unique(self.session_column, return_inverse=True)[1].reshape(-1)
        self.session_rank = <const int32_t *><size_t>self._keep(session, np.int32, "sessions")
        sessions = int(session.max()) + 1 if self.n else 0
        left = np.bincount(session, minlength=sessions).astype(np.int64) if self.n else np.zeros(0, np.int64)
        self.columns["left"] = left
        self.left = <int64_t *><size_t>left.__array_interface__["data"][0]
        free_rows = np.flatnonzero(self.columns["waits"] == 0)
        begins = session[free_rows] if self.n else np.zeros(0, np.int64)
        rooted = np.zeros(sessions, np.uint8)
        rooted[begins] = 1
        self.rooted = <const uint8_t *><size_t>self._keep(rooted, np.uint8, "sessions")
        _, first, which = np.unique(begins, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        at = np.zeros(len(first) + 1, np.int64)
        order = rank[which.reshape(-1)] if len(first) else np.zeros(0, np.int64)
        np.cumsum(np.bincount(order, minlength=len(first)), out=at[1:])
        self.roots = <const int32_t *><size_t>self._keep(
            free_rows[np.argsort(order, kind="stable")], np.int32, "sessions")
        self.roots_at = <const int64_t *><size_t>self._keep(at, np.int64, "sessions")
        self.n_queue = len(first)
        self.unfinished = self.n

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, int64_t budget=1 << 62):
        """Run until nothing is left to do, or until so many steps and events have passed.

        Returns
        -------
        bool
            Whether the run has ended.

        Raises
        ------
        OverflowError
            If the clock or a counter passes 2^62.
        MemoryError
            If a queue cannot grow.
        """
        cdef int status
        if self.busy:
            raise RuntimeError("this engine is in use, in another thread or by this call's own policy")
        self.busy = True
        for store in self.stores:
            (<Store>store).busy = True
        with nogil:
            status = self.loop(budget)
        self.busy = False
        for store in self.stores:
            (<Store>store).busy = False
        for store in self.stores:
            raise_status((<Store>store).status, (<Store>store).policies)
        raise_status(status, [])
        if self.ended and KVSIM_DEBUG:
            self.check()
        return self.ended

    cdef int loop(self, int64_t budget) noexcept nogil:
        cdef int i, best, what
        cdef tick_t now, until
        cdef worker_t *w
        cdef event_t event
        if not self.started:
            self.started = True
            self.start()
        while self.status == OK:
            if self.unfinished == 0:
                self.sync(self.makespan)
                self.ended = True
                break
            if budget <= 0:
                break
            budget -= 1
            best = -1
            what = 3
            now = INT64_MAX
            for i in range(self.n_workers):
                w = &self.workers[i]
                if w.state == IDLE:
                    continue
                until = w.until
                if until < now or (until == now and (0 if w.state == BUSY else 2) < what):
                    now = until
                    what = 0 if w.state == BUSY else 2
                    best = i
            if self.n_events and (self.events[0].time < now or (self.events[0].time == now and what == 2)):
                now = self.events[0].time
                what = 1
            if best < 0 and not self.n_arriving:
                # all that has begun waits for sessions that have not
                if self.at_queue == self.n_queue:
                    self.status = NOT_CONSERVED
                self.next_session(self.makespan)
                continue
            if now > <tick_t>LIMIT:
                self.status = TIME_OVERFLOW
                break
            while now >= self.bin_end:
                self.sample()
            self.sync(now)
            self.makespan = max(self.makespan, now)
            if what == 0:
                w = &self.workers[best]
                self.finish(w, <Store>w.store, now)
                self.check_store(<Store>w.store)
            elif what == 2:
                w = &self.workers[best]
                self.begin(w, <Store>w.store, now)
                self.check_store(<Store>w.store)
            else:
                event = self.pop_event()
                self.n_events_done += 1
                if event.kind == TOOL_END:
                    self.tool_end(event.row, now)
                elif event.kind == ARRIVE:
                    self.arrive(event.row, now)
                elif event.kind == UNPIN:
                    self.unpin_all(event.row, now)
                elif event.kind == DEMOTE:
                    self.demote(event.row, now)
                else:
                    self.prefetch(event.row, now)
        return self.status

    cdef void check_store(self, Store s) noexcept nogil:
        if s.status != OK:
            self.status = s.status

    cdef void start(self) noexcept nogil:
        """Let the requests come that wait for nothing."""
        cdef int64_t row, _i
        if self.concurrency == 0:
            for row in range(self.n):
                if self.waits[row] == 0:
                    self.push_event(self.arrival[row], ARRIVE, <int32_t>row)
            return
        for _i in range(min(self.concurrency, self.n_queue)):
            self.next_session(0)

    cdef void next_session(self, tick_t now) noexcept nogil:
        cdef int64_t i
        if self.at_queue < self.n_queue:
            for i in range(self.roots_at[self.at_queue], self.roots_at[self.at_queue + 1]):
                self.push_event(now, ARRIVE, self.roots[i])
            self.at_queue += 1

    cdef void push_event(self, tick_t time, int kind, int32_t row) noexcept nogil:
        cdef int64_t i, p
        cdef event_t event
        if self.n_events == self.room_events:
            if not grow(<void **>&self.events, &self.room_events, sizeof(event_t)):
                self.status = NO_MEMORY
                return
        event.time = time
        event.kind = kind
        event.row = row
        i = self.n_events
        self.n_events += 1
        self.n_arriving += kind <= ARRIVE
        while i > 0:
            p = (i - 1) >> 1
            if not before(&event, &self.events[p]):
                break
            self.events[i] = self.events[p]
            i = p
        self.events[i] = event

    cdef event_t pop_event(self) noexcept nogil:
        cdef event_t top = self.events[0], event
        cdef int64_t i = 0, child
        self.n_events -= 1
        self.n_arriving -= top.kind <= ARRIVE
        event = self.events[self.n_events]
        while True:
            child = 2 * i + 1
            if child >= self.n_events:
                break
            if child + 1 < self.n_events and before(&self.events[child + 1], &self.events[child]):
                child += 1
            if not before(&self.events[child], &event):
                break
            self.events[i] = self.events[child]
            i = child
        self.events[i] = event
        return top

    # -- time that passes -------------------------------------------------------------------------------------------

    cdef void sync(self, tick_t now) noexcept nogil:
        """Book the time of the workers that do nothing, up to now."""
        cdef int i
        cdef worker_t *w
        for i in range(self.n_workers):
            w = &self.workers[i]
            if w.state != BUSY and w.now < now:
                self.rest(w, now)

    cdef void rest(self, worker_t *w, tick_t now) noexcept nogil:
        cdef tick_t waited = now - w.now, start = w.now
        cdef live_t *live = NULL
        cdef int t, part
        w.now = now
        if w.state == LOADING:
            live = self.next_load(w)
            if live.load.given:
                w.waited += waited
                t = self.slowest(w, live)
                self.book(w.unit[0], STALL, w.kind.ladder[t], start, waited)
                if w.parted:
                    self.book(w.unit[1], BUBBLE, -1, start, waited)
                return
        part = NO_REQUEST
        if w.state == LOADING or w.n_waiting or (w.role == DECODE and self.upstream > 0):
            part = BUBBLE
        elif self.tools > 0:
            part = IDLE_TOOL
        elif self.thinking > 0:
            part = IDLE_THINK
        self.book(w.unit[0], part, -1, start, waited)
        if w.parted:
            self.book(w.unit[1], part, -1, start, waited)

    cdef int slowest(self, worker_t *w, live_t *live) noexcept nogil:
        """The nearest of the tiers that end last."""
        cdef int t
        for t in range(w.kind.T):
            if live.load.end[t] == live.load.ready:
                return t
        return 0

    cdef void charge_wait(self, worker_t *w) noexcept nogil:
        """Share out what the worker has waited for the load that ends first."""
        cdef live_t *live = self.next_load(w)
        cdef int t = self.slowest(w, live)
        self.charge(self.unit_pool[w.unit[0]], w.kind.ladder[t], w.waited, live.load.kinds[t], live.load.causes[t])
        w.waited = 0

    cdef live_t *next_load(self, worker_t *w) noexcept nogil:
        """The load that ends first."""
        cdef live_t *found = NULL
        cdef live_t *live
        cdef int32_t i
        for i in range(w.n_loading):
            live = self.lives[w.loading[i]]
            if (found == NULL or live.ready < found.ready or (live.ready == found.ready and (
                    live.key < found.key or (live.key == found.key and live.serial < found.serial)))):
                found = live
        return found

    cdef void fold(self) noexcept nogil:
        """Make the bins twice as wide."""
        cdef int64_t i, k, m = self.P * N_PARTS, t = self.P * self.T
        for i in range(MAX_BINS // 2):
            for k in range(m):
                self.bin_parts[i * m + k] = self.bin_parts[2 * i * m + k] + self.bin_parts[(2 * i + 1) * m + k]
            for k in range(t):
                self.bin_stall[i * t + k] = self.bin_stall[2 * i * t + k] + self.bin_stall[(2 * i + 1) * t + k]
            for k in range(self.T):
                self.bin_used[i * self.T + k] = self.bin_used[(2 * i + 1) * self.T + k]
            for k in range(3):
                self.bin_counts[i * 5 + k] = self.bin_counts[(2 * i + 1) * 5 + k]
            for k in range(3, 5):
                self.bin_counts[i * 5 + k] = self.bin_counts[2 * i * 5 + k] + self.bin_counts[(2 * i + 1) * 5 + k]
        i = MAX_BINS // 2
        memset(self.bin_parts + i * m, 0, <size_t>(i * m) * sizeof(int64_t))
        memset(self.bin_stall + i * t, 0, <size_t>(i * t) * sizeof(int64_t))
        memset(self.bin_used + i * self.T, 0, <size_t>(i * self.T) * sizeof(int64_t))
        memset(self.bin_counts + i * 5, 0, <size_t>(i * 5) * sizeof(int64_t))
        self.bin_ps *= 2
        self.bin_end = (self.bin_end + self.bin_ps - 1) // self.bin_ps * self.bin_ps

    cdef void sample(self) noexcept nogil:
        """Keep what the memory holds and who runs at the end of a bin."""
        cdef int64_t bin
        while self.bin_end > self.bin_ps * MAX_BINS:
            self.fold()
        bin = self.bin_end // self.bin_ps - 1
        self.look(bin)
        self.bin_end += self.bin_ps

    cdef void look(self, int64_t bin) noexcept nogil:
        cdef int i, t
        cdef worker_t *w
        cdef int64_t *counts = &self.bin_counts[bin * 5]
        counts[0] = 0
        counts[1] = 0
        counts[2] = 0
        memset(&self.bin_used[bin * self.T], 0, self.T * sizeof(int64_t))
        for i in range(self.n_workers):
            w = &self.workers[i]
            counts[0] += w.n_prefill + w.n_batch
            counts[1] += w.n_waiting
            counts[2] += w.n_loading
            for t in range(w.kind.T):
                self.bin_used[bin * self.T + w.kind.ladder[t]] += (
                    (<Store>w.store).tier[t].view.used + (<Store>w.store).tier[t].home_bytes
                    + (<Store>w.store).tier[t].claimed)

    cdef int64_t bin_of(self, tick_t at) noexcept nogil:
        while at >= self.bin_ps * MAX_BINS:
            self.fold()
        self.n_bins = max(self.n_bins, at // self.bin_ps + 1)
        return at // self.bin_ps

    cdef void book(self, int unit, int part, int tier, tick_t start, tick_t ps) noexcept nogil:
        """Book `ps` picoseconds from `start` to a part of a unit's time, and to the bins that they lie in."""
        cdef int pool = self.unit_pool[unit]
        cdef int64_t bin
        cdef tick_t here
        if ps == 0:
            return
        self.parts[unit * N_PARTS + part] += ps
        self.bin_of(start + ps - 1)
        while ps > 0:
            bin = start // self.bin_ps
            here = min(ps, (bin + 1) * self.bin_ps - start)
            self.bin_parts[(bin * self.P + pool) * N_PARTS + part] += here
            if tier >= 0:
                self.bin_stall[(bin * self.P + pool) * self.T + tier] += here
            ps -= here
            start += here

    cdef void charge(
            self, int pool, int tier, tick_t stall, const double *kinds, const double *causes) noexcept nogil:
        """Share a stall out over kinds by bytes, and over causes by their terms."""
        cdef tick_t by_kind[N_KINDS]
        cdef tick_t by_cause[N_CAUSES]
        cdef int64_t *all = &self.stall[(pool * self.T + tier) * N_KINDS * N_CAUSES]
        cdef int k, c
        if stall == 0:
            return
        split(stall, kinds, N_KINDS, by_kind)
        for k in range(N_KINDS):
            if by_kind[k] != 0:
                split(by_kind[k], causes, N_CAUSES, by_cause)
                for c in range(N_CAUSES):
                    all[k * N_CAUSES + c] += by_cause[c]

    cdef void enter(self, int32_t row, int state, tick_t now) noexcept nogil:
        """A request passes to another state."""
        cdef int old = self.state[row]
        self.states[row * self.state_width + old] += now - self.since[row]
        if self.record and now > self.since[row]:
            self.note(&self.log_phases, row, old, self.since[row], now, 0, 0, 0)
        self.state[row] = state
        self.since[row] = now

    cdef void note(self, log_t *log, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f,
                   int64_t g) noexcept nogil:
        cdef int64_t *at
        if log.n == LOG_MOST:
            log.cut = True
            return
        if log.n == log.room and not grow(<void **>&log.data, &log.room, 7 * sizeof(int64_t)):
            self.status = NO_MEMORY
            return
        at = log.data + log.n * 7
        at[0] = a
        at[1] = b
        at[2] = c
        at[3] = d
        at[4] = e
        at[5] = f
        at[6] = g
        log.n += 1

    # -- requests come and go ---------------------------------------------------------------------------------------

    cdef void release(self, int32_t row, tick_t now) noexcept nogil:
        """What `row` waited for is complete: its pause begins."""
        cdef tick_t at = max(self.arrival[row], now + self.delay[row])
        if self.pause[row] == TOOL and self.delay[row] > 0:
            self.tools += 1
            if self.cpu_slots == 0 or self.tools_busy < self.cpu_slots:
                self.begin_tool(row, now, now)
            else:
                self.queue_tool(row, now)
                self.expect(row, now, at, False)
            return
        if self.pause[row] == THINK:
            self.thinking += 1
            self.think[row] = at - now
        self.push_event(at, ARRIVE, row)
        self.expect(row, now, at, True)

    cdef void queue_tool(self, int32_t row, tick_t now) noexcept nogil:
        cdef int64_t i, old = self.tool_room
        if self.tool_count == self.tool_room:
            # a ring that grows: what lies in front of the first one moves behind the old end
            if not grow(<void **>&self.tool_rows, &self.tool_room, sizeof(int32_t)):
                self.status = NO_MEMORY
                return
            i = old
            if not grow(<void **>&self.tool_since, &i, sizeof(int64_t)):
                self.status = NO_MEMORY
                return
            for i in range(self.tool_first):
                self.tool_rows[old + i] = self.tool_rows[i]
                self.tool_since[old + i] = self.tool_since[i]
        i = (self.tool_first + self.tool_count) % self.tool_room
        self.tool_rows[i] = row
        self.tool_since[i] = now
        self.tool_count += 1

    cdef void begin_tool(self, int32_t row, tick_t since, tick_t now) noexcept nogil:
        """Let a tool run in a slot."""
        cdef tick_t end = now + self.delay[row]
        self.tools_busy += 1
        self.tool_wait[row] = now - since
        self.tool[row] = self.delay[row]
        self.push_event(end, TOOL_END, row)
        self.expect(row, now, max(end, self.arrival[row]), True)

    cdef void tool_end(self, int32_t row, tick_t now) noexcept nogil:
        """A tool ends; its slot goes to the one that waited longest."""
        cdef int32_t other
        cdef tick_t since
        self.tools -= 1
        self.tools_busy -= 1
        self.push_event(max(now, self.arrival[row]), ARRIVE, row)
        if self.tool_count:
            other = self.tool_rows[self.tool_first]
            since = self.tool_since[self.tool_first]
            self.tool_first = (self.tool_first + 1) % self.tool_room
            self.tool_count -= 1
            self.begin_tool(other, since, now)

    cdef void arrive(self, int32_t row, tick_t now) noexcept nogil:
        """A request joins a queue, or is rejected."""
        cdef worker_t *w
        cdef int best
        if self.after_at[row + 1] > self.after_at[row] and self.pause[row] == THINK:
            self.thinking -= 1
        self.ready_at[row] = now
        self.since[row] = now
        self.free_parked(row, True, now)
        best = self.route(row)
        w = &self.workers[best]
        self.front_of[row] = best
        self.unit[row] = w.unit[0]
        if not self.fits_alone(w, row):
            self.reject(row, now)
            return
        self.serials += 1
        self.key[row] = 0 if self.order == 0 else self.priority[row] if self.order == 1 else self.inputs[row]
        self.serial[row] = self.serials
        if w.role == PREFILL:
            self.upstream += 1
        self.enqueue(w, row, now)

    cdef void enqueue(self, worker_t *w, int32_t row, tick_t now) noexcept nogil:
        """Put a request into a worker's queue, and wake the worker."""
        cdef queued_t item
        cdef int32_t i, p
        cdef int64_t room = w.room_waiting
        if w.n_waiting == w.room_waiting:
            if not grow(<void **>&w.waiting, &room, sizeof(queued_t)):
                self.status = NO_MEMORY
                return
            w.room_waiting = <int32_t>room
        item.key = self.key[row]
        item.serial = self.serial[row]
        item.row = row
        i = w.n_waiting
        w.n_waiting += 1
        while i > 0:
            p = (i - 1) >> 1
            if not sooner(&item, &w.waiting[p]):
                break
            w.waiting[i] = w.waiting[p]
            i = p
        w.waiting[i] = item
        self.wake(w, now)

    cdef int32_t dequeue(self, worker_t *w) noexcept nogil:
        cdef int32_t row = w.waiting[0].row, i = 0, child
        cdef queued_t item
        w.n_waiting -= 1
        item = w.waiting[w.n_waiting]
        while True:
            child = 2 * i + 1
            if child >= w.n_waiting:
                break
            if child + 1 < w.n_waiting and sooner(&w.waiting[child + 1], &w.waiting[child]):
                child += 1
            if not sooner(&w.waiting[child], &item):
                break
            w.waiting[i] = w.waiting[child]
            i = child
        w.waiting[i] = item
        return row

    cdef void wake(self, worker_t *w, tick_t now) noexcept nogil:
        """Let a worker that does nothing look again."""
        w.version += 1
        if w.state == IDLE or w.state == LOADING:
            w.state = READY
            w.until = now

    cdef void reject(self, int32_t row, tick_t now) noexcept nogil:
        """Give a request up, and all that wait for it."""
        cdef int64_t i
        cdef int32_t other
        cdef int32_t lost = row
        self.rejected += 1
        self.enter(row, QUEUED, now)
        self.done_at[row] = now
        self.status_of[row] = REJECTED
        self.gone(row, now)
        # `waits` of a request that is never reached serves as the list of those still to be looked at
        self.waits[row] = -1
        while lost >= 0:
            row = lost
            lost = self.waits[row]
            for i in range(self.next_at[row], self.next_at[row + 1]):
                other = self.next_rows[i]
                if self.status_of[other] == DONE:
                    self.status_of[other] = UNREACHED
                    self.free_parked(other, False, now)
                    self.gone(other, now)
                    self.waits[other] = lost
                    lost = other

    cdef void free_parked(self, int32_t row, bint resumes, tick_t now) noexcept nogil:
        """The pause before `row` is over: take its pins back and, where the rule says so, bring what it left."""
        cdef int32_t i = self.parked[row], following
        cdef worker_t *w
        self.parked[row] = -1
        while i >= 0:
            w = &self.workers[self.parkings[i].worker]
            self.unpark(i)
            if resumes and self.plans[self.pause[row]].prefetch == 1:
                self.bring(w, <Store>w.store, self.parkings[i].end, now)
            following = self.parkings[i].next
            self.parkings[i].next = self.free_parking
            self.parkings[i].row = -1
            self.free_parking = i
            i = following

    cdef void gone(self, int32_t row, tick_t now) noexcept nogil:
        """Count a request off its session; the last one lets the next session begin."""
        cdef int32_t session = self.session_rank[row]
        self.unfinished -= 1
        self.left[session] -= 1
        if self.concurrency and self.left[session] == 0 and self.rooted[session]:
            self.next_session(now)

    cdef int route(self, int32_t row) noexcept nogil:
        """The worker that takes a request."""
        cdef int g = self.population[row]
        cdef int64_t first = self.group_at[g], n = self.group_at[g + 1] - self.group_at[g], i
        cdef int best = -1, k
        cdef int64_t load, least = 0, tokens, most = -1
        cdef worker_t *w
        if self.router == ROUND_ROBIN:
            self.turn[g] += 1
            return self.group[first + (self.turn[g] - 1) % n]
        if self.router == SESSION_AFFINE:
            return self.group[first + self.session[row] % n]
        for i in range(n):
            k = self.group[first + i]
            w = &self.workers[k]
            load = w.n_waiting + w.n_loading + w.n_prefill + w.n_batch
            tokens = self.resident(w, <Store>w.store, row) if self.router == PREFIX_AWARE else 0
            if best < 0 or tokens > most or (tokens == most and (load < least or (load == least and k < best))):
                best = k
                most = tokens
                least = load
        return best

    cdef int least_loaded_back(self) noexcept nogil:
        cdef int best = -1, i, k
        cdef int64_t load, least = 0
        cdef worker_t *w
        for i in range(self.n_backs):
            k = self.backs[i]
            w = &self.workers[k]
            load = w.n_waiting + w.n_loading + w.n_prefill + w.n_batch
            if best < 0 or load < least or (load == least and k < best):
                best = k
                least = load
        return best

    cdef int64_t resident(self, worker_t *w, Store s, int32_t row) noexcept nogil:
        """Tokens in front of a prompt that a worker's memory holds."""
        cdef block_t b = self.last[row]
        cdef int64_t tokens = 0
        # from the end: whatever lies behind the last missing block does not count
        while b >= 0:
            if s.nearest(b) < 0:
                tokens = 0
            else:
                tokens += self.block_tokens[b]
            b = self.parent[b]
        return tokens

    # -- pauses -----------------------------------------------------------------------------------------------------

    cdef void park(self, worker_t *w, Store s, int32_t row, block_t end, tick_t now) noexcept nogil:
        """Request `row` is complete: do with its blocks what the rule of the coming pause says."""
        cdef int32_t resumer = self.resumer[row], p, i
        cdef plan_t *plan
        cdef block_t b
        cdef int64_t at
        cdef bint pinned
        if resumer < 0 or self.ready_at[resumer] >= 0 or self.status_of[resumer] != DONE:
            if self.oracle:
                self.foresee_chain(w, s, end, now, INT64_MAX, True)
            return
        plan = &self.plans[self.pause[resumer]]
        if self.oracle:
            self.foresee_chain(w, s, end, now, now + self.delay[resumer], False)
        if plan.drop:
            b = end
            while b >= 0:
                if s.pins[b] != 0 or s.has_child(b, 0xffff):
                    break
                s.drop(b)
                b = self.parent[b]
            w.version += 1
            return
        pinned = plan.pin >= 0
        if pinned:
            b = end
            while b >= 0:
                s.pin(b)
                b = self.parent[b]
            self.push_event(now + plan.pin, UNPIN, resumer)
        if plan.demote >= 0:
            self.push_event(now + plan.demote, DEMOTE, resumer)
        if self.free_parking >= 0:
            p = self.free_parking
            self.free_parking = self.parkings[p].next
        else:
            if self.n_parkings == self.room_parkings:
                at = self.room_parkings
                if not grow(<void **>&self.parkings, &at, sizeof(parking_t)):
                    self.status = NO_MEMORY
                    return
                self.room_parkings = <int32_t>at
            p = self.n_parkings
            self.n_parkings += 1
        self.parkings[p].row = resumer
        self.parkings[p].worker = <int32_t>(w - self.workers)
        self.parkings[p].end = end
        self.parkings[p].pinned = pinned
        self.parkings[p].next = -1
        i = self.parked[resumer]
        if i < 0:
            self.parked[resumer] = p
        else:
            while self.parkings[i].next >= 0:
                i = self.parkings[i].next
            self.parkings[i].next = p

    cdef void foresee_chain(
            self, worker_t *w, Store s, block_t end, tick_t now, int64_t at, bint passed) noexcept nogil:
        """Tell the policies when a chain is used next; `passed`: only where what they know has passed."""
        cdef live_t *scratch
        cdef block_t b
        cdef int64_t held
        cdef int32_t m, i
        if end < 0:
            return
        m = self.position[end] + 1
        i = self.new_live(m)
        if i < 0:
            return
        scratch = self.lives[i]
        b = end
        while b >= 0:
            m -= 1
            scratch.blocks[m] = b
            b = self.parent[b]
        for m in range(self.position[end] + 1):
            b = scratch.blocks[m]
            held = s.next_use[b]
            if passed:
                if held <= now:
                    s.foresee(b, INT64_MAX)
            else:
                s.foresee(b, min(held if held > now else INT64_MAX, at))
        self.free_one(i)

    cdef void expect(self, int32_t row, tick_t now, tick_t at, bint known) noexcept nogil:
        """The end of the pause before `row` is known, or guessed: prefetch in time, and tell the oracle's policies."""
        cdef int32_t i = self.parked[row]
        cdef plan_t *plan = &self.plans[self.pause[row]]
        cdef worker_t *w
        cdef tick_t lead
        cdef bytes_t amounts[MAX_TIERS]
        cdef int64_t counts[MAX_TIERS]
        cdef block_t b
        while i >= 0:
            w = &self.workers[self.parkings[i].worker]
            lead = plan.lead
            if self.oracle:
                self.foresee_chain(w, <Store>w.store, self.parkings[i].end, now, at, False)
                memset(amounts, 0, sizeof(amounts))
                memset(counts, 0, sizeof(counts))
                if w.kind.T > 1:
                    b = self.parkings[i].end
                    while b >= 0:
                        amounts[1] += self.size[b]
                        counts[1] += 1
                        b = self.parent[b]
                lead = 10 * self.estimate(w, now, amounts, counts, False)
            if known and plan.prefetch == 2:
                self.push_event(max(now, at - lead), PREFETCH, row)
            i = self.parkings[i].next

    cdef void unpark(self, int32_t p) noexcept nogil:
        """Take the pins of a pause back."""
        cdef worker_t *w = &self.workers[self.parkings[p].worker]
        cdef block_t b = self.parkings[p].end
        if not self.parkings[p].pinned:
            return
        while b >= 0:
            (<Store>w.store).unpin(b)
            b = self.parent[b]
        self.parkings[p].pinned = False
        w.version += 1

    cdef void unpin_all(self, int32_t row, tick_t now) noexcept nogil:
        """The time of a pin is over."""
        cdef int32_t i = self.parked[row]
        while i >= 0:
            self.unpark(i)
            self.wake(&self.workers[self.parkings[i].worker], now)
            i = self.parkings[i].next

    cdef void demote(self, int32_t row, tick_t now) noexcept nogil:
        """Move what a pause leaves behind to a farther tier, its end first."""
        cdef int32_t i = self.parked[row]
        cdef worker_t *w
        while i >= 0:
            w = &self.workers[self.parkings[i].worker]
            if not self.parkings[i].pinned:
                self.demote_chain(w, <Store>w.store, self.parkings[i].end, self.plans[self.pause[row]].tier)
            self.settle(w, <Store>w.store, now, NULL, -1)
            w.version += 1
            i = self.parkings[i].next

    cdef void demote_chain(self, worker_t *w, Store s, block_t b, int tier) noexcept nogil:
        cdef int t
        while b >= 0:
            if s.pins[b] != 0 or s.has_child(b, 1):
                break
            for t in range(min(tier, w.kind.T - 1)):
                s.demote(b, t)
            b = self.parent[b]

    cdef void prefetch(self, int32_t row, tick_t now) noexcept nogil:
        """The lead time before a resume has begun."""
        cdef int32_t i = self.parked[row]
        cdef worker_t *w
        while i >= 0:
            w = &self.workers[self.parkings[i].worker]
            self.bring(w, <Store>w.store, self.parkings[i].end, now)
            i = self.parkings[i].next

    cdef void bring(self, worker_t *w, Store s, block_t end, tick_t now) noexcept nogil:
        """Prefetch a chain into the nearest tier, from the front as far as it is held."""
        cdef int32_t i, m, k, index
        cdef live_t *scratch
        cdef block_t b
        cdef int t
        cdef bint moved = False
        cdef load_t load
        if end < 0:
            return
        m = self.position[end] + 1
        i = self.new_live(m)
        if i < 0:
            return
        scratch = self.lives[i]
        b = end
        k = m
        while b >= 0:
            k -= 1
            scratch.blocks[k] = b
            b = self.parent[b]
        for k in range(m):
            scratch.tier[k] = 0
        for k in range(m):
            b = scratch.blocks[k]
            t = s.nearest(b)
            if t < 0:
                break
            if t > 0 and s.rises(b, t):
                s.prefetch(b)
                scratch.tier[k] = 1
                moved = True
        if moved:
            w.version += 1
            self.settle(w, s, now, &load, -1)
            index = self.keep_load(w, &load, now)
            for k in range(m):
                b = scratch.blocks[k]
                if scratch.tier[k] and s.where[b] & 1:
                    w.coming[b] = load.ready
                    w.coming_load[b] = index
        self.free_one(i)

    cdef int32_t keep_load(self, worker_t *w, load_t *load, tick_t now) noexcept nogil:
        """Keep a load while something may wait for it; what has ended makes room."""
        cdef int32_t i
        cdef int64_t room = w.room_loads
        if w.n_loads == w.room_loads:
            for i in range(w.n_loads):
                if w.loads[i].ready <= now:
                    w.loads[i] = load[0]
                    return i
            if not grow(<void **>&w.loads, &room, sizeof(load_t)):
                self.status = NO_MEMORY
                return 0
            w.room_loads = <int32_t>room
        w.loads[w.n_loads] = load[0]
        w.n_loads += 1
        return w.n_loads - 1

    # -- moves ------------------------------------------------------------------------------------------------------

    cdef void settle(self, worker_t *w, Store s, tick_t now, load_t *load, int32_t row) noexcept nogil:
        """Queue what the store has moved on devices and links; what it did to the nearest tier joins the next step."""
        cdef int o, k, t, link, way, c, status
        cdef traffic_t *moved
        cdef way_t ways[2]
        cdef way_t links[MAX_LINKS][2]
        cdef bytes_t sums[4]
        cdef bytes_t amount
        cdef double owns[2]
        cdef double queues[2]
        cdef tick_t times[2]
        cdef tick_t end
        cdef double n
        if load != NULL:
            load.given = True
            load.ready = now
            for t in range(w.kind.T):
                load.end[t] = now
                for c in range(N_CAUSES):
                    load.causes[t][c] = 0.0
                for k in range(N_KINDS):
                    load.kinds[t][k] = 0.0
        if not s.moved:
            return
        moved = &s.traffic[0]
        w.extras = True
        for o in range(N_OPERATIONS):
            for k in range(N_KINDS):
                w.extra[o][0][k] += moved.read[o][k]
                w.extra[o][1][k] += moved.write[o][k]
                w.extra[o][2][k] += moved.back_read[o][k]
                w.extra[o][3][k] += moved.back_write[o][k]
        for link in range(w.kind.n_links):
            self.log_use(w, &w.link[link], self.T + w.kind.link_index[link], now, s.link_up[link], s.link_down[link],
                         links[link], row)
        for t in range(1, w.kind.T):
            moved = &s.traffic[t]
            memset(sums, 0, sizeof(sums))
            for o in range(N_OPERATIONS):
                for k in range(N_KINDS):
                    sums[0] += moved.read[o][k]
                    sums[1] += moved.write[o][k]
                    sums[2] += moved.back_read[o][k]
                    sums[3] += moved.back_write[o][k]
                    if load != NULL:
                        load.kinds[t][k] += <double>(
                            moved.read[o][k] + moved.write[o][k] + moved.back_read[o][k] + moved.back_write[o][k])
            n = <double>(moved.transfers[0] + moved.transfers[1])
            self.log_use(w, &w.device[t], w.kind.ladder[t], now, sums[0] + sums[2], sums[1] + sums[3], ways, row)
            for way in range(2):
                owns[way] = 0.0
                queues[way] = 0.0
                times[way] = 0
                amount = sums[1] + sums[3] if way else sums[0] + sums[2]
                if amount:
                    owns[way] = ways[way].own
                    end = ways[way].end
                    for link in range(w.kind.n_links):
                        if w.kind.path[t] >> link & 1:
                            owns[way] = larger(owns[way], links[link][way].own)
                            end = max(end, links[link][way].end)
                    queues[way] = larger(0.0, <double>(end - now) - owns[way])
                    times[way] = round_ps(transfer(&w.kind.pace[t], n, owns[way]) + queues[way])
            end = now + max(times[0], times[1])
            if load != NULL:
                load.end[t] = end
                load.ready = max(load.ready, end)
                load.causes[t][0] = w.kind.pace[t].latency_ps
                load.causes[t][1] = n * w.kind.pace[t].overhead_ps
                load.causes[t][2] = owns[0]
                load.causes[t][3] = queues[0]
                load.causes[t][4] = <double>max(<tick_t>0, times[1] - times[0])
        status = s.end_step(1)
        if status != OK:
            self.status = status
        s.begin_step()

    cdef void log_use(self, worker_t *w, chan_t *c, int number_, tick_t now, bytes_t up, bytes_t down, way_t *ways,
                      int32_t row) noexcept nogil:
        cdef int way
        cdef bytes_t amount
        use(c, now, up, down, ways)
        if self.record:
            for way in range(2):
                amount = down if way else up
                if amount:
                    self.note(&self.log_moves, ways[way].end - round_ps(ways[way].own), ways[way].end, number_, way,
                              amount, row, w - self.workers)

    cdef tick_t estimate(self, worker_t *w, tick_t now, const bytes_t *amounts, const int64_t *counts,
                         bint queued) noexcept nogil:
        """Picoseconds until so many bytes of each tier would be near."""
        cdef double longest = 0.0, own
        cdef tick_t wait
        cdef bytes_t crossing
        cdef int t, u, link
        for t in range(1, w.kind.T):
            if amounts[t] == 0:
                continue
            own = <double>amounts[t] * w.kind.pace[t].device.read_ps_per_byte
            wait = max(<tick_t>0, w.device[t].until[0] - now)
            for link in range(w.kind.n_links):
                if w.kind.path[t] >> link & 1:
                    crossing = 0
                    for u in range(1, w.kind.T):
                        if w.kind.path[u] >> link & 1:
                            crossing += amounts[u]
                    own = larger(own, <double>crossing * w.link[link].pace.read_ps_per_byte)
                    wait = max(wait, w.link[link].until[0] - now)
            longest = larger(longest, (<double>wait if queued else 0.0) + transfer(
                &w.kind.pace[t], <double>counts[t], own))
        return round_ps(longest)

    # -- sizes ------------------------------------------------------------------------------------------------------

    cdef bytes_t tail_bytes(self, kind_t *kind, int64_t tokens) noexcept nogil:
        """Bytes that private tokens take in whole engine blocks."""
        if tokens <= 0:
            return 0
        return ceil_div(tokens, kind.block_tokens) * kind.block_tokens * kind.kv_token

    cdef bytes_t fixed_bytes(self, kind_t *kind, int32_t row) noexcept nogil:
        """Bytes of a sequence beside what grows: windows and states."""
        return kind.window_token * min(self.inputs[row] + max(self.outputs[row], 1), self.window) + kind.state

    cdef bint fits_alone(self, worker_t *w, int32_t row) noexcept nogil:
        """Whether a request could run with the machine for itself."""
        cdef worker_t *back
        cdef block_t b = self.last[row]
        cdef int64_t tokens = 0
        cdef bytes_t need = 0
        cdef double most = <double>self.inputs[row] + <double>self.outputs[row] + <double>w.kind.block_tokens
        if most * (<double>w.kind.kv_token + <double>w.kind.window_token) > 2e18:
            return False
        if w.role == PREFILL:
            back = &self.workers[self.backs[0]]
            most += <double>back.kind.block_tokens
            if most * (<double>back.kind.kv_token + <double>back.kind.window_token) > 2e18:
                return False
        while b >= 0:
            tokens += self.block_tokens[b]
            need += self.size[b]
            b = self.parent[b]
        need += self.tail_bytes(
            w.kind, self.inputs[row] - tokens + (1 if w.role == PREFILL else max(self.outputs[row], 1)))
        need += self.fixed_bytes(w.kind, row)
        if need > self.room_alone(w, <Store>w.store):
            return False
        if w.role == PREFILL:
            back = &self.workers[self.backs[0]]
            need = self.tail_bytes(back.kind, self.inputs[row] + max(self.outputs[row], 1))
            need += self.fixed_bytes(back.kind, row)
            return need <= self.room_alone(back, <Store>back.store)
        return True

    cdef bytes_t room_alone(self, worker_t *w, Store s) noexcept nogil:
        cdef int t
        cdef bytes_t room = 0
        for t in range(w.kind.T if self.overflow == STREAM else 1):
            room += s.tier[t].view.capacity + s.tier[t].claimed
        return room

    # -- admission --------------------------------------------------------------------------------------------------

    cdef int32_t new_live(self, int32_t m) noexcept nogil:
        """A place for a live request with a chain of m blocks, or -1 if memory is short."""
        cdef int32_t i = self.free_live, room
        cdef live_t *live
        cdef block_t *blocks
        cdef int8_t *tier
        cdef void *p
        if i >= 0:
            self.free_live = self.lives[i].next_free
        else:
            p = realloc(self.lives, <size_t>(self.n_lives + 1) * sizeof(live_t *))
            live = <live_t *>calloc(1, sizeof(live_t))
            if p != NULL:
                self.lives = <live_t **>p
            if p == NULL or live == NULL:
                free(live)
                self.status = NO_MEMORY
                return -1
            i = self.n_lives
            live.index = i
            self.lives[i] = live
            self.n_lives += 1
        live = self.lives[i]
        if m > live.room:
            room = m + m // 2 + 8
            blocks = <block_t *>malloc(<size_t>room * sizeof(block_t))
            tier = <int8_t *>malloc(<size_t>room)
            free(live.blocks)
            free(live.tier)
            live.blocks = blocks
            live.tier = tier
            live.room = room if blocks != NULL and tier != NULL else 0
            if live.room == 0:
                self.status = NO_MEMORY
                live.m = 0
                return -1
        live.m = m
        live.where = NOWHERE
        return i

    cdef void free_one(self, int32_t i) noexcept nogil:
        self.lives[i].next_free = self.free_live
        self.lives[i].where = NOWHERE
        self.free_live = i

    cdef live_t *fresh(self, worker_t *w, int32_t row, int32_t m) noexcept nogil:
        """A live request of a worker, all of it at its beginning; NULL if memory is short."""
        cdef int32_t i = self.new_live(m)
        cdef live_t *live
        if i < 0:
            return NULL
        live = self.lives[i]
        live.row = row
        live.worker = <int32_t>(w - self.workers)
        live.key = self.key[row]
        live.serial = self.serial[row]
        memset(live.claimed, 0, sizeof(live.claimed))
        memset(live.far, 0, sizeof(live.far))
        live.first = live.second = live.front = live.total = live.done = live.again = live.chain_tokens = 0
        live.emits = True
        live.load.given = False
        live.ready = 0
        live.tail = live.joined = live.end = 0
        return live

    cdef bint room_for_live(self, worker_t *w) noexcept nogil:
        """Make sure that one more live request finds a place in each list."""
        cdef int32_t more = w.n_loading + w.n_prefill + w.n_batch + 1, room
        cdef void *p
        if more <= w.room_live:
            return True
        room = max(2 * w.room_live, 16)
        p = realloc(w.loading, <size_t>room * sizeof(int32_t))
        if p != NULL:
            w.loading = <int32_t *>p
            p = realloc(w.prefill, <size_t>room * sizeof(int32_t))
        if p != NULL:
            w.prefill = <int32_t *>p
            p = realloc(w.batch, <size_t>room * sizeof(int32_t))
        if p != NULL:
            w.batch = <int32_t *>p
            p = realloc(w.ended, <size_t>room * sizeof(int32_t))
        if p != NULL:
            w.ended = <int32_t *>p
            p = realloc(w.chunks, <size_t>room * sizeof(chunk_t))
        if p == NULL:
            self.status = NO_MEMORY
            return False
        w.chunks = <chunk_t *>p
        w.room_live = room
        return True

    cdef void admit(self, worker_t *w, Store s, tick_t now, int64_t decoding) noexcept nogil:
        """Admit from the front of the queue while limits and room allow."""
        cdef int64_t planned = decoding * (1 + self.draft)
        cdef int32_t i, row
        cdef live_t *live
        if w.n_waiting == 0:
            return
        for i in range(w.n_prefill):
            live = self.lives[w.prefill[i]]
            planned += live.total - live.done
        while w.n_waiting and w.n_loading + w.n_prefill + w.n_batch < self.max_seqs and self.status == OK:
            row = w.waiting[0].row
            if w.role != DECODE and planned >= self.max_tokens:
                break
            if w.blocked_row == row and w.blocked_version == w.version:
                break
            if not self.room_for_live(w):
                break
            i = self.receive(w, s, row, now) if w.role == DECODE else self.try_admit(w, s, row, now)
            if i < 0:
                break
            live = self.lives[i]
            self.dequeue(w)
            if self.admitted_at[row] < 0:
                self.admitted_at[row] = now
            if live.total == 0 or (live.ready > now and live.front == 0):
                # what needs no prefill joins the batch when the worker looks next, before it makes room for tokens
                self.enter(row, TRANSFER if w.role == DECODE else FROM_TIER, now)
                self.put_loading(w, i)
            else:
                self.enter(row, PREFILLING, now)
                self.proceed(w, s, i, now)
                planned += live.total

    cdef void put_loading(self, worker_t *w, int32_t i) noexcept nogil:
        w.loading[w.n_loading] = i
        w.n_loading += 1
        self.lives[i].where = IN_LOADING

    cdef bint first_in_order(self, live_t *a, live_t *b) noexcept nogil:
        if a.key != b.key:
            return a.key < b.key
        return a.serial < b.serial

    cdef void proceed(self, worker_t *w, Store s, int32_t i, tick_t now) noexcept nogil:
        """Nothing keeps a request from prefilling, or, where nothing is left to compute, from decoding."""
        cdef live_t *live = self.lives[i]
        cdef int32_t k
        if live.done < live.total:
            k = w.n_prefill
            while k > 0 and self.first_in_order(live, self.lives[w.prefill[k - 1]]):
                w.prefill[k] = w.prefill[k - 1]
                k -= 1
            w.prefill[k] = i
            w.n_prefill += 1
            live.where = IN_PREFILL
        else:
            self.prefilled(w, s, i, now)

    cdef bint try_claim(self, Store s, int t, bytes_t amount) noexcept nogil:
        """Claim room in a tier if unpinned blocks and free room suffice."""
        return s.available(t) >= amount and s.claim(t, amount)

    cdef int32_t try_admit(self, worker_t *w, Store s, int32_t row, tick_t now) noexcept nogil:
        """Find, pin, load and claim what a request needs; -1 if it does not fit now."""
        cdef kind_t *kind = w.kind
        cdef block_t b = self.last[row], state = self.state_lookup[row]
        cdef int32_t m = self.position[b] + 1 if b >= 0 else 0
        cdef int32_t i, index, found, near, begin, end
        cdef int64_t k
        cdef live_t *live = self.fresh(w, row, m)
        cdef int t, place, held, tiers = kind.T if self.overflow == STREAM else 1
        cdef int64_t chain_tokens = 0, context, tail, had, moved_tokens
        cdef bytes_t private, need = 0, loose = 0, amount, size
        cdef bytes_t room
        cdef bytes_t swapped = self.swapped[row]
        cdef bint first = self.admitted_at[row] < 0, any_moved = False
        cdef load_t own
        if live == NULL:
            return -1
        index = live.index
        i = m
        while b >= 0:
            i -= 1
            live.blocks[i] = b
            live.tier[i] = <int8_t>s.nearest(b)
            chain_tokens += self.block_tokens[b]
            b = self.parent[b]
        found = m
        for i in range(m):
            if live.tier[i] < 0:
                found = i
                break
        place = s.nearest(state) if state >= 0 else -1
        if self.stateful and place < 0:
            found = 0
        context = self.inputs[row] + self.emitted[row] - (1 if swapped else 0)
        tail = max(context - chain_tokens, 0)
        if not swapped and tail == 0 and found == m and found > 0:
            found -= 1             # the last token makes logits: its block is computed again
        near = found
        for i in range(found):
            if live.tier[i] != 0:
                near = i
                break

        # whether it fits, whatever is loaded: all but the blocks in front that are near already
        private = swapped if swapped else self.tail_bytes(kind, tail) + self.fixed_bytes(kind, row)
        if self.overflow == WAIT and w.role == ALL:
            private = self.tail_bytes(kind, self.inputs[row] + max(self.outputs[row], 1) - chain_tokens)
            private += self.fixed_bytes(kind, row)
        for i in range(near):
            if s.pins[live.blocks[i]] == 0:
                loose += self.size[live.blocks[i]]
        for i in range(near, m):
            need += self.size[live.blocks[i]]
        need += private
        room = 0
        for t in range(tiers):
            room += s.available(t)
        if need > room - loose:
            w.blocked_row = row
            w.blocked_version = w.version
            self.free_one(index)
            return -1
        w.version += 1

        begin = near
        end = near
        self.choose(w, now, live, near, found, chain_tokens + tail, &begin, &end)
        for i in range(m):
            if i < near or begin <= i < end:
                s.pin(live.blocks[i])
                if self.oracle:
                    s.foresee(live.blocks[i], -1)    # in use: nothing is worth its place more
        for i in range(m + 1):
            if i < near or begin <= i < end:
                continue
            amount = self.size[live.blocks[i]] if i < m else private
            held = -1
            for t in range(tiers):
                if self.try_claim(s, t, amount):
                    held = t
                    break
            if held < 0:
                for k in range(m):
                    if k < near or begin <= k < end:
                        s.unpin(live.blocks[k])
                for t in range(kind.T):
                    if live.claimed[t]:
                        s.unclaim(t, live.claimed[t])
                self.settle(w, s, now, NULL, -1)
                self.free_one(index)
                return -1
            live.claimed[held] += amount
            if held:
                live.far[held] += amount

        # count the look-ups, once; tell the policies, deepest first, so that a prefix outlives what hangs on it
        s.begin_request(row)
        if first:
            for k in range(self.data_at[row], self.data_at[row + 1]):
                s.count(self.data[k], s.nearest(self.data[k]))
            if state >= 0:
                s.count(state, place)
            for i in range(m):
                s.count(live.blocks[i], live.tier[i])
        for i in range(m - 1, -1, -1):
            # of what is pinned near they hear when the prefill ends, so that what hangs on it is not younger
            if not ((i < near or begin <= i < end) and s.nearest(live.blocks[i]) == 0):
                s.touch(live.blocks[i])
        if state >= 0:
            s.touch(state)
        for k in range(self.data_at[row], self.data_at[row + 1]):
            s.touch(self.data[k])
        s.end_request()

        # load
        if state >= 0 and found > 0 and s.nearest(state) > 0:
            s.prefetch(state)
        if first:
            for k in range(self.data_at[row], self.data_at[row + 1]):
                b = self.data[k]
                if s.nearest(b) == 0:
                    s.count_read(0, b, self.size[b])
                else:
                    s.prefetch(b)
        had = 0
        for i in range(m):
            b = live.blocks[i]
            size = self.size[b]
            if i < near or begin <= i < end:
                t = s.nearest(b)
                live.tier[i] = TELL if t == 0 else PINNED
                if t > 0 and s.rises(b, t):
                    s.prefetch(b)
                    any_moved = True
                    live.tier[i] = LOADED
                    if first:
                        self.loaded[row * self.T + kind.ladder[t]] += self.block_tokens[b]
                    held = s.nearest(b)
                    if held >= 0:
                        t = held
                if t > 0:
                    live.far[t] += size
                elif live.tier[i] == TELL and w.coming[b] > now:
                    if not live.load.given or w.coming[b] > live.load.ready:
                        live.load = w.loads[w.coming_load[b]]
            else:
                live.tier[i] = PUBLISH
        if swapped:
            s.unclaim(1, swapped)
            self.swapped[row] = 0
            s.shift(1, 0, swapped)
        self.settle(w, s, now, &own, row)
        if not live.load.given or own.ready > live.load.ready:
            live.load = own
        live.ready = live.load.ready
        if any_moved:
            held = self.keep_load(w, &own, now) if own.ready > now else 0
            for i in range(m):
                if live.tier[i] == LOADED:
                    w.coming[live.blocks[i]] = own.ready
                    w.coming_load[live.blocks[i]] = held

        moved_tokens = 0
        live.total = 0 if swapped else tail
        for i in range(m):
            k = self.block_tokens[live.blocks[i]]
            if i < near:
                live.first += k
            if i < end:
                live.second += k
            if near <= i < begin:
                live.front += k
            if live.tier[i] == PUBLISH:
                live.total += k
                if s.seen[live.blocks[i]]:
                    had += k
            else:
                moved_tokens += k
        live.chain_tokens = chain_tokens
        live.emits = swapped == 0
        live.again = live.total if self.emitted[row] > 0 else min(live.total, had + self.lost[row])
        if first:
            self.hit[row] = moved_tokens
        return index

    cdef void choose(self, worker_t *w, tick_t now, live_t *live, int32_t near, int32_t found, int64_t total,
                     int32_t *begin, int32_t *end) noexcept nogil:
        """Which blocks to load: all of [near, s) to compute the rest, or [s, found) while the front computes."""
        cdef bytes_t amounts[MAX_TIERS]
        cdef int64_t counts[MAX_TIERS]
        cdef int64_t place, near_place = 0, found_place
        cdef tick_t load, ready, front, rest, best = -1, time = 0
        cdef int32_t s, i
        cdef int t
        cdef block_t b
        begin[0] = near
        end[0] = near
        if self.load_rule == NEVER or near == found:
            return
        memset(amounts, 0, sizeof(amounts))
        memset(counts, 0, sizeof(counts))
        for i in range(near):
            near_place += self.block_tokens[live.blocks[i]]
        found_place = near_place
        for i in range(near, found):
            b = live.blocks[i]
            t = live.tier[i]
            found_place += self.block_tokens[b]
            amounts[t] += self.size[b]
            counts[t] += fragments(w.kind.fragment[t], self.size[b])
        end[0] = found
        if self.load_rule == OVERLAP:
            place = near_place
            rest = self.prefill_time(w, found_place, total)
            for s in range(near, found + 1):
                front = self.prefill_time(w, near_place, place)
                if best < 0 or max(front, self.at_least(w, now, amounts)) + rest <= best:
                    load = self.estimate(w, now, amounts, counts, True)
                    ready = max(load, front) + rest
                    if best < 0 or ready < best:
                        best = ready
                        time = load
                        begin[0] = s
                if s < found:
                    b = live.blocks[s]
                    t = live.tier[s]
                    place += self.block_tokens[b]
                    amounts[t] -= self.size[b]
                    counts[t] -= fragments(w.kind.fragment[t], self.size[b])
        else:
            # from the end: where loading pays at all, the longest load is best, and the others need only a bound
            place = found_place
            for s in range(found, near - 1, -1):
                rest = self.prefill_time(w, place, total)
                if best < 0 or self.at_least(w, now, amounts) + rest <= best:
                    load = self.estimate(w, now, amounts, counts, True)
                    ready = load + rest
                    if best < 0 or ready < best:
                        best = ready
                        time = load
                        end[0] = s
                if self.load_rule == ALWAYS:
                    break
                if s > near:
                    b = live.blocks[s - 1]
                    t = live.tier[s - 1]
                    place -= self.block_tokens[b]
                    amounts[t] -= self.size[b]
                    counts[t] -= fragments(w.kind.fragment[t], self.size[b])
        if self.deadline and time > self.deadline:
            begin[0] = near
            end[0] = near

    cdef tick_t at_least(self, worker_t *w, tick_t now, const bytes_t *amounts) noexcept nogil:
        """A time that estimate() is never below, without its powers; rounding is a part in 10^9 at most."""
        cdef double longest = 0.0
        cdef int t
        for t in range(1, w.kind.T):
            if amounts[t]:
                longest = larger(longest, larger(
                    w.kind.pace[t].latency_ps, <double>amounts[t] * w.kind.pace[t].device.read_ps_per_byte))
        return <tick_t>(longest * (1.0 - 1e-9)) if longest < LIMIT else <tick_t>LIMIT

    cdef tick_t prefill_time(self, worker_t *w, int64_t start, int64_t end) noexcept nogil:
        """Picoseconds that the tokens from `start` to `end` of a prompt take by themselves."""
        cdef int64_t new = max(end - start, <int64_t>0)
        cdef int64_t steps = ceil_div(new, self.max_tokens)
        cdef double attention, time = 0.0
        cdef double work[N_OPERATIONS]
        cdef pace_t *pace
        cdef int o
        if new == 0:
            return 0
        attention = <double>new * self.flops[0] + self.pair_prefill * (self.pairs(start + new) - self.pairs(start))
        work[0] = attention * w.kind.ps_per_flop[0]
        work[1] = <double>new * self.flops[1] * w.kind.ps_per_flop[1]
        for o in range(N_OPERATIONS):
            pace = &w.kind.ffn_near if o and w.parted else &w.kind.pace[0]
            time += larger(work[o], <double>steps * (<double>w.kind.near_weights[o] * pace.device.read_ps_per_byte))
        return round_ps(time + <double>(steps * (w.kind.overhead[0] + w.kind.overhead[1])))

    cdef int32_t receive(self, worker_t *w, Store s, int32_t row, tick_t now) noexcept nogil:
        """Admit a prefilled request to a decode pool: claim room, and bring its KV over the link between the pools."""
        cdef int64_t context = self.inputs[row] + self.emitted[row] - 1, tokens = context
        cdef bytes_t private, moved
        cdef live_t *live
        cdef way_t ways[2]
        cdef double queue
        cdef int t, held = -1
        cdef load_t load
        if self.overflow == WAIT:
            tokens = self.inputs[row] + max(self.outputs[row], 1)
        private = self.tail_bytes(w.kind, tokens) + self.fixed_bytes(w.kind, row)
        for t in range(w.kind.T if self.overflow == STREAM else 1):
            if self.try_claim(s, t, private):
                held = t
                break
        if held < 0:
            # what a claim evicted in vain waits for the next bundle; nothing is cached in a decode pool
            w.blocked_row = row
            w.blocked_version = w.version
            return -1
        live = self.fresh(w, row, 0)
        if live == NULL:
            return -1
        live.claimed[held] = private
        if held:
            live.far[held] = private
        live.emits = False
        moved = context * w.kind.kv_token + self.fixed_bytes(w.kind, row)
        self.transferred += moved
        use(&self.pipe, now, 0, moved, ways)
        queue = larger(0.0, <double>(ways[1].end - now) - ways[1].own)
        live.ready = now + round_ps(self.pipe_latency + ways[1].own + queue)
        if held:
            s.land(held, moved)
            self.settle(w, s, now, &load, row)
            live.ready = max(live.ready, load.ready)
        else:
            w.extra[0][1][K_KV] += moved
            w.extras = True
        return live.index

    # -- room for tokens --------------------------------------------------------------------------------------------

    cdef int64_t gain(self, worker_t *w) noexcept nogil:
        """Tokens that every sequence gains in the coming step."""
        return (w.acceptance + self.accepted) // ONE

    cdef int64_t count_full(self, worker_t *w, int64_t i, bint each, int t) noexcept nogil:
        """Sequences that need a block for token i of the coming step; `each`: book it to them, one by one."""
        cdef int64_t n = 0, bt = w.kind.block_tokens
        cdef int32_t k
        cdef live_t *live
        for k in range(w.n_batch):
            live = self.lives[w.batch[k]]
            if w.tokens + i < live.end and (live.tail + w.tokens + i - live.joined) % bt == 0:
                n += 1
                if each:
                    live.claimed[t] += bt * w.kind.kv_token
                    if t:
                        live.far[t] += bt * w.kind.kv_token
        return n

    cdef bint make_way(self, worker_t *w, Store s, tick_t now) noexcept nogil:
        """Claim room for the tokens of the coming step; False if requests had to be preempted for it."""
        cdef int64_t i, count, phase, bt = w.kind.block_tokens, gain = self.gain(w)
        cdef bytes_t amount
        cdef bint calm = True, each
        cdef int t, held
        cdef load_t load
        if self.overflow == WAIT:
            return True
        for i in range(gain):
            phase = (w.tokens + i) % bt
            while w.n_batch:
                each = w.tokens + i >= w.next_end
                count = self.count_full(w, i, False, 0) if each else w.phase[phase]
                if count == 0:
                    break
                amount = count * bt * w.kind.kv_token
                held = -1
                for t in range(w.kind.T if self.overflow == STREAM else 1):
                    if self.try_claim(s, t, amount):
                        held = t
                        break
                if held >= 0:
                    if each:
                        self.count_full(w, i, True, held)
                    else:
                        w.grown[held * bt + phase] += 1
                    if held:
                        w.far_batch[held] += amount
                    break
                if not self.break_pin(w):
                    calm = False
                    self.preempt(w, s, now)
                if self.status != OK or s.status != OK:
                    return calm
        if s.moved:
            self.settle(w, s, now, &load, -1)
            for t in range(w.kind.T):
                w.gate[t] = max(w.gate[t], load.end[t])
        return calm

    cdef void join(self, worker_t *w, int32_t i) noexcept nogil:
        """A request begins to decode."""
        cdef live_t *live = self.lives[i]
        cdef int64_t bt = w.kind.block_tokens
        cdef int64_t phase = ((live.joined - live.tail) % bt + bt) % bt
        cdef int t
        w.batch[w.n_batch] = i
        w.n_batch += 1
        live.where = IN_BATCH
        w.phase[phase] += 1
        for t in range(w.kind.T):
            live.grown[t] = w.grown[t * bt + phase]
            w.far_batch[t] += live.far[t]
        w.sum_context += self.inputs[live.row] + self.emitted[live.row]
        w.next_end = min(w.next_end, live.end)
        if self.sparse_layers or self.local_layers:
            self.rebuild(w)

    cdef void leave(self, worker_t *w, int32_t place) noexcept nogil:
        """The request at this place of the batch decodes no more."""
        cdef int32_t i = w.batch[place], k
        cdef live_t *live = self.lives[i]
        cdef int64_t bt = w.kind.block_tokens
        cdef int64_t phase = ((live.joined - live.tail) % bt + bt) % bt
        cdef int64_t reached = min(w.tokens, live.end)
        cdef bytes_t more
        cdef int t
        w.sum_context -= self.inputs[live.row] + self.emitted[live.row] + w.tokens - live.joined
        self.emitted[live.row] += reached - live.joined
        w.phase[phase] -= 1
        for t in range(w.kind.T):
            more = (w.grown[t * bt + phase] - live.grown[t]) * bt * w.kind.kv_token
            live.claimed[t] += more
            if t:
                live.far[t] += more
            w.far_batch[t] -= live.far[t]
        for k in range(place, w.n_batch - 1):
            w.batch[k] = w.batch[k + 1]
        w.n_batch -= 1
        live.where = NOWHERE
        if live.end == w.next_end or self.sparse_layers or self.local_layers:
            self.rebuild(w)

    cdef void rebuild(self, worker_t *w) noexcept nogil:
        """Take the sums over the batch anew."""
        cdef int64_t limits[2]
        cdef int64_t context
        cdef int32_t k
        cdef int o
        cdef live_t *live
        limits[0] = self.sparse
        limits[1] = self.window
        w.next_end = INT64_MAX
        w.next_cross = INT64_MAX
        w.below[0] = w.below[1] = w.sum_below[0] = w.sum_below[1] = 0
        for k in range(w.n_batch):
            live = self.lives[w.batch[k]]
            w.next_end = min(w.next_end, live.end)
            context = self.inputs[live.row] + self.emitted[live.row] + w.tokens - live.joined
            for o in range(2):
                if context <= limits[o]:
                    w.below[o] += 1
                    w.sum_below[o] += context
                    w.next_cross = min(w.next_cross, w.tokens + limits[o] - context + 1)

    cdef void preempt(self, worker_t *w, Store s, tick_t now) noexcept nogil:
        """Send the request of the worst key back to the queue."""
        cdef int32_t place = -1, k, where = NOWHERE, index, row
        cdef live_t *live = NULL
        cdef live_t *other
        cdef bint decoding, far = False
        cdef bytes_t private
        cdef int t
        cdef load_t load
        cdef worker_t *front
        self.sync(now)
        self.makespan = max(self.makespan, now)
        for k in range(w.n_loading):
            other = self.lives[w.loading[k]]
            if live == NULL or self.first_in_order(live, other):
                live, place, where = other, k, IN_LOADING
        for k in range(w.n_prefill):
            other = self.lives[w.prefill[k]]
            if live == NULL or self.first_in_order(live, other):
                live, place, where = other, k, IN_PREFILL
        for k in range(w.n_batch):
            other = self.lives[w.batch[k]]
            if live == NULL or self.first_in_order(live, other):
                live, place, where = other, k, IN_BATCH
        row = live.row
        index = live.index
        decoding = where == IN_BATCH
        if where == IN_LOADING:
            self.loaded_until(w, live, now)
            self.cut(w.loading, &w.n_loading, place)
        elif where == IN_PREFILL:
            self.prefilled_until(live, now)
            self.cut(w.prefill, &w.n_prefill, place)
        else:
            self.leave(w, place)
        self.enter(row, PREEMPTED, now)
        self.n_preempted += 1
        self.preemptions[row] += 1
        if not decoding:
            self.lost[row] = max(self.lost[row], live.done)
        private = self.tail_bytes(w.kind, self.inputs[row] + self.emitted[row] - 1 - live.chain_tokens)
        private += self.fixed_bytes(w.kind, row)
        for t in range(w.kind.T):
            far = far or live.far[t] != 0
        if w.role == DECODE and self.staged[row] >= 0:
            self.hand_over(row, now)
        self.let_go(w, s, live)
        self.free_one(index)
        if (self.swap and self.overflow == PREEMPT and w.role == ALL and w.kind.T > 1 and decoding and not far
                and self.try_claim(s, 1, private)):
            s.shift(0, 1, private)
            self.swapped[row] = private
            self.swapped_bytes += private
            self.settle(w, s, now, &load, row)
            for t in range(w.kind.T):
                w.gate[t] = max(w.gate[t], load.end[t])
        front = &self.workers[self.front_of[row]]
        if w.role == DECODE:
            self.upstream += 1
        self.enqueue(front, row, now)

    cdef void cut(self, int32_t *found, int32_t *n, int32_t place) noexcept nogil:
        """Take one out of a list."""
        memmove(found + place, found + place + 1, <size_t>(n[0] - place - 1) * sizeof(int32_t))
        n[0] -= 1

    cdef bint break_pin(self, worker_t *w) noexcept nogil:
        """Take back the pins of the pause that ends last by row; False if there is none."""
        cdef int32_t worker = <int32_t>(w - self.workers), k, row = -1, i
        for k in range(self.n_parkings):
            if self.parkings[k].row > row and self.parkings[k].pinned and self.parkings[k].worker == worker:
                row = self.parkings[k].row
        if row < 0:
            return False
        i = self.parked[row]
        while i >= 0:
            if self.parkings[i].pinned and self.parkings[i].worker == worker:
                self.unpark(i)
                self.pins_broken += 1
                return True
            i = self.parkings[i].next
        return False

    cdef void let_go(self, worker_t *w, Store s, live_t *live) noexcept nogil:
        """Take back the pins and claims of a request."""
        cdef int32_t i
        cdef int t
        for i in range(live.m):
            if live.tier[i] >= TELL:
                s.unpin(live.blocks[i])
                live.tier[i] = FREE
        for t in range(w.kind.T):
            if live.claimed[t]:
                s.unclaim(t, live.claimed[t])
                live.claimed[t] = 0
        w.version += 1

    # -- a worker begins --------------------------------------------------------------------------------------------

    cdef void begin(self, worker_t *w, Store s, tick_t now) noexcept nogil:
        """Look at what has come, make room, admit, and step; and step on while there is nothing to decide."""
        cdef int32_t i, k, best, index
        cdef int64_t gain
        cdef live_t *live
        cdef bint calm
        cdef tick_t horizon
        cdef int t
        w.state = READY
        if w.waited:
            self.charge_wait(w)
        while w.n_loading and self.status == OK:
            best = -1
            for k in range(w.n_loading):
                live = self.lives[w.loading[k]]
                if live.ready <= now and (best < 0 or self.first_in_order(live, self.lives[w.loading[best]])):
                    best = k
            if best < 0:
                break
            index = w.loading[best]
            live = self.lives[index]
            self.cut(w.loading, &w.n_loading, best)
            live.where = NOWHERE
            self.loaded_until(w, live, now)
            if w.role == DECODE:
                self.hand_over(live.row, now)
            self.proceed(w, s, index, now)
        self.settle(w, s, now, NULL, -1)
        horizon = -1
        while True:
            for t in range(w.kind.T):
                w.gate[t] = now
            calm = self.make_way(w, s, now) if self.mixed else True
            if calm:
                self.admit(w, s, now, w.n_batch if self.mixed else 0)
            if not self.mixed and w.n_prefill == 0:
                calm = self.make_way(w, s, now)
            if self.status != OK or s.status != OK:
                return
            w.decoding = w.n_batch > 0 and (self.mixed or w.n_prefill == 0)
            self.compose(w)
            if w.n_chunks or w.decoding:
                self.step(w, s, now)
                if self.status != OK:
                    return
            elif w.n_loading:
                w.state = LOADING
                w.until = self.next_load(w).ready
                return
            elif w.n_waiting == 0 or w.n_staged > 0:
                w.state = IDLE     # until a request comes, or the decode pool takes what is staged here
                return
            else:
                w.until = now
                if calm and not self.break_pin(w):
                    self.give_up(w, s, now)
                return
            # steps with nothing to decide follow one another
            if not calm or w.n_chunks or w.n_prefill or not self.settled(w):
                return
            gain = self.gain(w)
            if w.tokens + gain >= w.next_end:
                return
            if horizon < 0:
                horizon = self.bin_end
                if self.n_events:
                    horizon = min(horizon, self.events[0].time)
                for i in range(self.n_workers):
                    if self.workers[i].state != IDLE and &self.workers[i] != w:
                        horizon = min(horizon, self.workers[i].until)
                if w.n_loading:
                    horizon = min(horizon, self.next_load(w).ready)
            if w.until >= horizon:
                return
            now = w.until
            self.advance(w, now, gain)

    cdef bint settled(self, worker_t *w) noexcept nogil:
        """Whether nothing would be admitted before something makes room."""
        if w.n_waiting == 0 or w.n_loading + w.n_batch >= self.max_seqs:
            return True
        return w.blocked_row == w.waiting[0].row and w.blocked_version == w.version

    cdef void advance(self, worker_t *w, tick_t now, int64_t gain) noexcept nogil:
        """The running sequences have `gain` tokens more each; none has ended."""
        w.acceptance = (w.acceptance + self.accepted) % ONE
        w.tokens += gain
        w.sum_context += gain * w.n_batch
        if w.tokens >= w.next_cross:
            self.rebuild(w)
        else:
            w.sum_below[0] += gain * w.below[0]
            w.sum_below[1] += gain * w.below[1]
        self.bin_counts[self.bin_of(now) * 5 + 4] += gain * w.n_batch

    cdef void give_up(self, worker_t *w, Store s, tick_t now) noexcept nogil:
        """Nothing runs, and the first in the queue does not fit: it never will."""
        cdef int32_t row = self.dequeue(w)
        if w.role == DECODE:
            self.hand_over(row, now)
        if w.role == PREFILL:
            self.upstream -= 1
        if self.swapped[row]:
            s.unclaim(1, self.swapped[row])
            self.swapped[row] = 0
            w.version += 1
        self.reject(row, now)

    cdef void loaded_until(self, worker_t *w, live_t *live, tick_t now) noexcept nogil:
        """Tell the time of a load apart by tier, nearest first; what the worker was busy beyond it is prefill's."""
        cdef int32_t row = live.row
        cdef int t
        cdef tick_t end
        if live.load.given:
            for t in range(1, w.kind.T):
                end = min(live.load.end[t], now)
                if end > self.since[row]:
                    self.state[row] = <int8_t>(FROM_TIER + w.kind.ladder[t])
                    self.enter(row, self.state[row], end)
            self.state[row] = PREFILLING
        self.enter(row, PREFILLING, now)

    cdef void prefilled_until(self, live_t *live, tick_t now) noexcept nogil:
        """Tell prefill and recomputation apart by their tokens."""
        cdef int32_t row = live.row
        cdef int64_t spent = now - self.since[row]
        cdef int64_t again = 0
        if live.total:
            again = spent // live.total * live.again + spent % live.total * live.again // live.total
        self.state[row] = RECOMPUTING
        self.enter(row, PREFILLING, self.since[row] + again)
        self.enter(row, DECODING, now)

    cdef void compose(self, worker_t *w) noexcept nogil:
        """Choose the chunks of prompts that the coming step computes."""
        cdef int64_t left = self.max_tokens - (w.n_batch * (1 + self.draft) if w.decoding else 0), part
        cdef int32_t k
        cdef live_t *live
        w.n_chunks = 0
        for k in range(w.n_prefill):
            live = self.lives[w.prefill[k]]
            part = (live.front if live.done < live.front else live.total) - live.done
            if self.chunked:
                part = min(part, left)
            elif w.n_chunks and part > left:
                break
            if part <= 0:
                break
            w.chunks[w.n_chunks].live = w.prefill[k]
            w.chunks[w.n_chunks].tokens = part
            if live.done < live.front:
                w.chunks[w.n_chunks].context = live.first + live.done
            else:
                w.chunks[w.n_chunks].context = live.second + live.done - live.front
            w.n_chunks += 1
            left -= part

    # -- a step -----------------------------------------------------------------------------------------------------

    cdef int64_t rows(self, int64_t context) noexcept nogil:
        """Rows of KV, over the layers, that attention reads for a context of so many tokens."""
        return (self.global_layers * context + self.sparse_layers * min(context, self.sparse)
                + self.local_layers * min(context, self.window))

    cdef double capped(self, int64_t tokens, int64_t limit) noexcept nogil:
        if tokens <= limit:
            return 0.5 * <double>tokens * <double>tokens
        return 0.5 * <double>limit * <double>limit + <double>limit * <double>(tokens - limit)

    cdef double pairs(self, int64_t tokens) noexcept nogil:
        """Pairs of tokens, over the layers, that attend to each other among the first `tokens`."""
        return (<double>self.global_layers * (0.5 * <double>tokens * <double>tokens)
                + <double>self.sparse_layers * self.capped(tokens, self.sparse)
                + <double>self.local_layers * self.capped(tokens, self.window))

    cdef void step(self, worker_t *w, Store s, tick_t now) noexcept nogil:
        """Compute how long the coming step takes, and of what its time is made."""
        cdef kind_t *kind = w.kind
        cdef int64_t batch = w.n_batch if w.decoding else 0, verified = 1 + self.draft
        cdef int64_t new = batch * verified, logits = batch * verified, rows = 0, halves = 0, tokens, cuts, active
        cdef int64_t c, repeated, context, prompt = 0
        cdef double fresh[N_OPERATIONS]
        cdef double again[N_OPERATIONS]
        cdef double work[N_OPERATIONS]
        cdef double part, cut
        cdef bytes_t far_kv[MAX_TIERS]
        cdef bytes_t far_weights[MAX_TIERS]
        cdef bytes_t near_kv, written, state, experts, near_experts, rows_read, amount
        cdef bytes_t weights[N_OPERATIONS]
        cdef double reads[N_KINDS]
        cdef double writes[N_KINDS]
        cdef double kinds[N_OPERATIONS][N_KINDS]
        cdef double causes[N_OPERATIONS][N_CAUSES]
        cdef double far_kinds[N_KINDS]
        cdef double far_causes[N_CAUSES]
        cdef double r, wr, br, bw, own, both, n, queue
        cdef tick_t computed[N_OPERATIONS][2]
        cdef tick_t stalls[N_OPERATIONS]
        cdef tick_t overheads[N_OPERATIONS]
        cdef tick_t collectives[N_OPERATIONS]
        cdef tick_t spent[N_OPERATIONS]
        cdef tick_t far_stall[MAX_TIERS]
        cdef tick_t time, length, hop, ready, gate, end, at, mine, total
        cdef pace_t *pace
        cdef way_t ways[2]
        cdef live_t *live
        cdef chunk_t *chunk
        cdef int32_t k
        cdef int o, t, f, i, unit, tier
        if batch:
            rows = self.global_layers * w.sum_context
            rows += self.sparse_layers * (w.sum_below[0] + (batch - w.below[0]) * self.sparse)
            rows += self.local_layers * (w.sum_below[1] + (batch - w.below[1]) * self.window)
            if <double>w.sum_context * (
                    <double>self.global_layers + <double>self.sparse_layers + <double>self.local_layers) > 4e18:
                self.status = BYTES_OVERFLOW
                return
            halves = self.global_layers * batch + self.sparse_layers * w.below[0] + self.local_layers * w.below[1]
        for k in range(w.n_chunks):
            chunk = &w.chunks[k]
            live = self.lives[chunk.live]
            new += chunk.tokens
            prompt += chunk.tokens
            if live.done + chunk.tokens == live.total:
                logits += 1
        fresh[0] = <double>(batch * verified) * self.flops[0] + <double>logits * self.head_flops + (
            <double>verified * self.pair_decode * (<double>rows - 0.5 * <double>halves))
        fresh[1] = <double>(batch * verified) * self.flops[1]
        again[0] = 0.0
        again[1] = 0.0
        for t in range(kind.T):
            far_kv[t] = w.far_batch[t] if batch else 0
        for k in range(w.n_chunks):
            chunk = &w.chunks[k]
            live = self.lives[chunk.live]
            c = chunk.tokens
            context = chunk.context
            repeated = (live.done + c) * live.again // live.total - live.done * live.again // live.total
            work[0] = <double>c * self.flops[0] + self.pair_prefill * (self.pairs(context + c) - self.pairs(context))
            work[1] = <double>c * self.flops[1]
            for o in range(N_OPERATIONS):
                part = work[o] * <double>repeated / <double>c
                fresh[o] += work[o] - part
                again[o] += part
            rows += self.rows(context)
            self.computed[live.row] += c
            self.recomputed[live.row] += repeated
            for t in range(kind.T):
                far_kv[t] += live.far[t]

        cuts = min(kind.microbatches if w.parted else kind.stages, new)
        cut = <double>cuts
        tokens = ceil_div(new, cuts)
        active = batch + w.n_chunks
        amount = 0
        for t in range(kind.T):
            amount += far_kv[t]
            far_weights[t] = kind.far_weights[t]
        if <double>rows * <double>kind.kv_layer > 4e18 or <double>new * <double>(kind.kv_write + kind.token_row) > 4e18:
            self.status = BYTES_OVERFLOW
            return
        near_kv = max(<bytes_t>0, rows * kind.kv_layer - amount)
        written = new * kind.kv_write
        state = active * kind.state
        experts = kind.experts[min(tokens, kind.n_experts - 1)]
        near_experts = experts // kind.expert_den * kind.expert_num + (
            experts % kind.expert_den * kind.expert_num // kind.expert_den)
        if experts > near_experts:
            far_weights[kind.expert_tier] += experts - near_experts
        if kind.cached_layers:
            near_experts += self.use_experts(w, s, now, far_weights)
        rows_read = new * kind.token_row
        weights[0] = kind.near_weights[0]
        weights[1] = kind.near_weights[1] + near_experts

        # the nearest memory and the arithmetic, operation by operation, of one microbatch
        for o in range(N_OPERATIONS):
            for i in range(N_KINDS):
                reads[i] = 0.0
                writes[i] = 0.0
            reads[K_WEIGHTS] = <double>weights[o]
            if o == 0:
                reads[K_KV] = <double>near_kv / cut
                reads[K_WEIGHTS] = <double>weights[0] + <double>rows_read / cut
                reads[K_STATE] = <double>state / cut
                writes[K_KV] = <double>written / cut
                writes[K_STATE] = <double>state / cut
            r = reads[0] + reads[1] + reads[2] + reads[3]
            wr = writes[0] + writes[1] + writes[2] + writes[3]
            br = 0.0
            bw = 0.0
            for i in range(N_KINDS):
                kinds[o][i] = reads[i] + writes[i]
            if w.extras:
                r += <double>(w.extra[o][0][0] + w.extra[o][0][1] + w.extra[o][0][2] + w.extra[o][0][3]) / cut
                wr += <double>(w.extra[o][1][0] + w.extra[o][1][1] + w.extra[o][1][2] + w.extra[o][1][3]) / cut
                br = <double>(w.extra[o][2][0] + w.extra[o][2][1] + w.extra[o][2][2] + w.extra[o][2][3]) / cut
                bw = <double>(w.extra[o][3][0] + w.extra[o][3][1] + w.extra[o][3][2] + w.extra[o][3][3]) / cut
                for i in range(N_KINDS):
                    kinds[o][i] += <double>(
                        w.extra[o][0][i] + w.extra[o][1][i] + w.extra[o][2][i] + w.extra[o][3][i]) / cut
            pace = &kind.ffn_near if o and w.parted else &kind.pace[0]
            time = 0
            for i in range(N_CAUSES):
                causes[o][i] = 0.0
            if r + wr + br + bw > 0.0:
                own = combine(&pace.device, r, wr)
                both = combine(&pace.device, r + br, wr + bw) if br + bw > 0.0 else own
                n = <double>fragments(
                    kind.ffn_fragment if o and w.parted else kind.fragment[0], round_ps(r + wr + br + bw))
                time = round_ps(transfer(pace, n, both))
                causes[o][0] = pace.latency_ps
                causes[o][1] = n * pace.overhead_ps
                causes[o][2] = own
                causes[o][4] = both - own
            mine = round_ps((fresh[o] + again[o]) / cut * kind.ps_per_flop[o])
            work[0] = fresh[o]
            work[1] = again[o]
            if again[o] > 0.0:
                split(mine, work, 2, computed[o])
            else:
                computed[o][0] = mine
                computed[o][1] = 0
            stalls[o] = max(<tick_t>0, time - mine)
            overheads[o] = kind.overhead[o]
            collectives[o] = round_ps(kind.collective[o] + <double>new / cut * kind.collective_token[o])
        overheads[0] += self.draft_ps
        for o in range(N_OPERATIONS):
            spent[o] = computed[o][0] + computed[o][1] + stalls[o] + overheads[o] + collectives[o]
        hop = round_ps(kind.hop + <double>new / cut * kind.hop_token)
        if (<double>spent[0] + <double>spent[1]) * cut + <double>hop * <double>kind.stages > LIMIT / 2:
            self.status = TIME_OVERFLOW
            return
        if not w.parted:
            length = spent[0] + spent[1] + (kind.stages * hop if kind.stages > 1 else 0)
        else:
            length = spent[0] + spent[1] + hop
            if cuts > 1:
                length = max(max(cuts * spent[0], cuts * spent[1]), length)

        # farther memories, read through the whole step
        ready = length
        for t in range(1, kind.T):
            far_stall[t] = 0
            amount = far_kv[t] + far_weights[t]
            time = 0
            own = 0.0
            queue = 0.0
            n = <double>fragments(kind.fragment[t], amount)
            if amount:
                self.log_use(w, &w.device[t], kind.ladder[t], now, amount, 0, ways, -1)
                own = ways[0].own
                end = ways[0].end
                for i in range(kind.n_links):
                    if kind.path[t] >> i & 1:
                        self.log_use(w, &w.link[i], self.T + kind.link_index[i], now, amount, 0, ways, -1)
                        own = larger(own, ways[0].own)
                        end = max(end, ways[0].end)
                        s.total_up[i] += amount
                queue = larger(0.0, <double>(end - now) - own)
                time = round_ps(transfer(&kind.pace[t], n, own) + queue)
                if (<double>s.books[t].read[K_KV] + <double>far_kv[t] > 9e18
                        or <double>s.books[t].read[K_WEIGHTS] + <double>far_weights[t] > 9e18):
                    self.status = BYTES_OVERFLOW
                    return
                s.books[t].read[K_KV] += far_kv[t]
                s.books[t].read[K_WEIGHTS] += far_weights[t]
            gate = w.gate[t] - now
            if max(time, gate) > ready:
                far_stall[t] = max(time, gate) - ready
                far_causes[0] = kind.pace[t].latency_ps if amount else 0.0
                far_causes[1] = n * kind.pace[t].overhead_ps
                far_causes[2] = own
                far_causes[3] = queue
                far_causes[4] = <double>max(<tick_t>0, gate - time)
                far_kinds[0] = <double>far_kv[t]
                far_kinds[1] = <double>far_weights[t]
                far_kinds[2] = 0.0
                far_kinds[3] = 0.0
                if gate > time:
                    far_kinds[0] += 1.0
                self.charge(self.unit_pool[w.unit[0]], kind.ladder[t], far_stall[t], far_kinds, far_causes)
                ready += far_stall[t]
        if ready > <tick_t>(LIMIT / 2):
            self.status = TIME_OVERFLOW
            return

        # the books
        for unit in range(2 if w.parted else 1):
            at = now
            total = 0
            for f in range(4):
                mine = 0
                for o in range(N_OPERATIONS):
                    if not w.parted or o == unit:
                        time = (computed[o][0] if f == COMPUTE else computed[o][1] if f == RECOMPUTE
                                else overheads[o] if f == OVERHEAD else collectives[o])
                        mine += self.share(w, time, cuts)
                self.book(w.unit[unit], f, -1, at, mine)
                at += mine
                total += mine
            for o in range(N_OPERATIONS):
                if not w.parted or o == unit:
                    tier = kind.ffn_tier if o and w.parted else kind.ladder[0]
                    mine = self.share(w, stalls[o], cuts)
                    self.charge(self.unit_pool[w.unit[unit]], tier, mine, kinds[o], causes[o])
                    self.book(w.unit[unit], STALL, tier, at, mine)
                    at += mine
                    total += mine
            if unit == 0:
                for t in range(1, kind.T):
                    self.book(w.unit[unit], STALL, kind.ladder[t], at, far_stall[t])
                    at += far_stall[t]
                    total += far_stall[t]
            self.book(w.unit[unit], BUBBLE, -1, at, ready - total)
            self.steps[w.unit[unit]] += 1
            self.passed[w.unit[unit]] += new
        if (<double>s.books[0].read[K_KV] + <double>near_kv > 9e18
                or <double>s.books[0].write[K_KV] + <double>written > 9e18
                or <double>s.books[0].read[K_STATE] + <double>state > 9e18
                or <double>s.books[0].read[K_WEIGHTS] + <double>w.ffn_read + <double>rows_read
                + (<double>weights[0] + <double>weights[1]) * cut > 9e18):
            self.status = BYTES_OVERFLOW
            return
        s.books[0].read[K_KV] += near_kv
        s.books[0].write[K_KV] += written
        s.books[0].read[K_STATE] += state
        s.books[0].write[K_STATE] += state
        s.books[0].read[K_WEIGHTS] += weights[0] * cuts + rows_read
        if w.parted:
            w.ffn_read += weights[1] * cuts
        else:
            s.books[0].read[K_WEIGHTS] += weights[1] * cuts
        if w.extras:
            memset(w.extra, 0, sizeof(w.extra))
            w.extras = False
        if self.record:
            self.note_step(w, now, now + ready, batch, prompt)
        w.state = BUSY
        w.until = now + ready
        w.now = w.until

    cdef bytes_t use_experts(self, worker_t *w, Store s, tick_t now, bytes_t *far) noexcept nogil:
        """Look up the experts that the coming step uses; return the bytes found near, and add the others to `far`."""
        cdef kind_t *kind = w.kind
        cdef int64_t layer, e, n, first, p
        cdef int32_t k
        cdef int t
        cdef bytes_t near = 0
        cdef block_t b
        cdef live_t *live
        cdef load_t load
        s.broken = False
        for layer in range(kind.cached_layers):
            memset(w.touched, 0, <size_t>kind.expert_count)
            n = 0
            if w.decoding:
                for k in range(w.n_batch):
                    live = self.lives[w.batch[k]]
                    # the token that a step computes is the last one given
                    first = self.inputs[live.row] + self.emitted[live.row] + w.tokens - live.joined - 1
                    for p in range(first, first + 1 + self.draft):
                        if n < kind.expert_count:
                            n += self.draw(w, layer, live.row, p)
            for k in range(w.n_chunks):
                live = self.lives[w.chunks[k].live]
                for p in range(w.chunks[k].context, w.chunks[k].context + w.chunks[k].tokens):
                    if n == kind.expert_count:
                        break
                    n += self.draw(w, layer, live.row, p)
            for e in range(kind.expert_count):
                if w.touched[e]:
                    b = <block_t>(kind.expert_first + layer * kind.expert_count + e)
                    t = s.nearest(b)
                    s.count(b, t)
                    s.touch(b)
                    if t == 0:
                        near += self.size[b]
                    else:
                        far[t] += self.size[b]
                        if s.rises(b, t):
                            s.promote(b, t)
        self.settle(w, s, now, &load, -1)
        for t in range(kind.T):
            w.gate[t] = max(w.gate[t], load.end[t])
        return near

    cdef int64_t draw(self, worker_t *w, int64_t layer, int32_t row, int64_t position) noexcept nogil:
        """Mark the experts of a layer that a token uses; return how many of them no token of the step used before."""
        cdef uint64_t state = w.kind.expert_seed + <uint64_t>layer
        cdef int64_t e, more = 0
        cdef int64_t drawn[64]
        cdef int64_t k = 0, i
        state = splitmix64(&state) ^ <uint64_t>row
        state = splitmix64(&state) ^ <uint64_t>position
        while k < w.kind.expert_each:
            e = <int64_t>(splitmix64(&state) % <uint64_t>w.kind.expert_count)
            for i in range(k):
                if drawn[i] == e:
                    break
            else:
                drawn[k] = e
                k += 1
                if not w.touched[e]:
                    w.touched[e] = 1
                    more += 1
        return more

    cdef tick_t share(self, worker_t *w, tick_t ps, int64_t cuts) noexcept nogil:
        """What of one microbatch's time, over all stages, one device is busy with."""
        return ps * cuts if w.parted else ps * cuts // w.kind.stages

    cdef void note_step(self, worker_t *w, tick_t start, tick_t end, int64_t batch, int64_t prompt) noexcept nogil:
        cdef int64_t *last
        if prompt == 0 and w.log_at > 0 and self.log_steps.n == w.log_at:
            last = self.log_steps.data + (w.log_at - 1) * 7
            if last[1] == start and last[2] == w.unit[0] and last[4] == batch and last[5] == 0:
                last[1] = end
                last[3] += 1
                return
        self.note(&self.log_steps, start, end, w.unit[0], 1, batch, prompt, w.unit[1])
        w.log_at = self.log_steps.n

    cdef void finish(self, worker_t *w, Store s, tick_t now) noexcept nogil:
        """A step has ended: tokens are there, prompts go on, requests complete."""
        cdef int64_t gain = self.gain(w), emitted, bin = self.bin_of(now)
        cdef int32_t k, i, j, n_ended = 0
        cdef live_t *live
        cdef chunk_t *chunk
        w.state = READY
        if w.decoding:
            emitted = gain * w.n_batch
            if w.tokens + gain >= w.next_end:
                for k in range(w.n_batch):
                    live = self.lives[w.batch[k]]
                    if live.end <= w.tokens + gain:
                        emitted -= w.tokens + gain - live.end
                        j = n_ended
                        while j > 0 and self.lives[w.ended[j - 1]].row > live.row:
                            w.ended[j] = w.ended[j - 1]
                            j -= 1
                        w.ended[j] = w.batch[k]
                        n_ended += 1
            self.advance(w, now, gain)
            self.bin_counts[bin * 5 + 4] += emitted - gain * w.n_batch
            for k in range(n_ended):
                for i in range(w.n_batch):
                    if w.batch[i] == w.ended[k]:
                        self.leave(w, i)
                        break
                self.complete(w, s, w.ended[k], now)
                bin = self.bin_of(now)
        for k in range(w.n_chunks):
            chunk = &w.chunks[k]
            live = self.lives[chunk.live]
            live.done += chunk.tokens
            self.bin_counts[self.bin_of(now) * 5 + 3] += chunk.tokens
            if live.done == live.front and live.ready > now:
                self.take_prefill(w, chunk.live)
                self.prefilled_until(live, now)
                self.enter(live.row, FROM_TIER, now)
                self.put_loading(w, chunk.live)
            elif live.done == live.total:
                self.take_prefill(w, chunk.live)
                self.prefilled(w, s, chunk.live, now)
        w.n_chunks = 0
        self.settle(w, s, now, NULL, -1)

    cdef void take_prefill(self, worker_t *w, int32_t i) noexcept nogil:
        cdef int32_t k
        for k in range(w.n_prefill):
            if w.prefill[k] == i:
                self.cut(w.prefill, &w.n_prefill, k)
                return

    cdef void prefilled(self, worker_t *w, Store s, int32_t index, tick_t now) noexcept nogil:
        """A prompt is computed: its blocks can be found, and a token is there."""
        cdef live_t *live = self.lives[index]
        cdef int32_t row = live.row, i, back
        cdef block_t b
        cdef int64_t k
        if self.state[row] == PREFILLING:
            self.prefilled_until(live, now)
        w.version += 1
        for i in range(live.m - 1, -1, -1):
            b = live.blocks[i]
            if live.tier[i] == PUBLISH:
                self.publish(w, s, live, i)
            elif live.tier[i] >= TELL:
                if s.where[b] & 1:
                    if live.tier[i] == TELL:
                        s.touch(b)
                    elif live.tier[i] == LOADED:
                        s.renew(b)
                live.tier[i] = PINNED
        if w.role != DECODE:
            for k in range(self.write_at[row], self.write_at[row + 1]):
                if s.nearest(self.write_rows[k]) < 0:
                    s.settle(self.write_rows[k], 0, -1)
        if live.emits:
            self.emitted[row] += 1
            self.bin_counts[self.bin_of(now) * 5 + 4] += 1
            if self.first_at[row] < 0:
                self.first_at[row] = now
        if self.emitted[row] >= max(self.outputs[row], 1):
            if w.role == PREFILL:
                self.upstream -= 1
            self.complete(w, s, index, now)
        elif w.role == PREFILL:
            self.enter(row, TRANSFER, now)
            self.staged[row] = index
            live.where = STAGED
            w.n_staged += 1
            back = self.least_loaded_back()
            self.decode_unit[row] = self.workers[back].unit[0]
            self.upstream -= 1
            self.enqueue(&self.workers[back], row, now)
        else:
            self.enter(row, DECODING, now)
            live.tail = max(self.inputs[row] + self.emitted[row] - 1 - live.chain_tokens, <int64_t>0)
            live.joined = w.tokens
            live.end = w.tokens + self.outputs[row] - self.emitted[row]
            self.join(w, index)

    cdef void publish(self, worker_t *w, Store s, live_t *live, int32_t i) noexcept nogil:
        """Let a block that has been computed be found: it takes the room that was claimed for it."""
        cdef block_t b = live.blocks[i]
        cdef bytes_t size = self.size[b]
        cdef int t = -1, held
        live.tier[i] = FREE
        for held in range(w.kind.T):
            if live.claimed[held] >= size:
                t = held
                break
        if t < 0:
            return
        held = s.nearest(b)
        s.unclaim(t, size)
        if 0 <= held <= t:
            if t:
                live.far[t] -= size
            if held:
                live.far[held] += size
        else:
            if s.insert(t, b) < 0:
                s.tier[t].claimed += size
                s.tier[t].view.capacity -= size
                return
            if held >= 0 and s.pair[held - 1].exclusive and s.pins[b] == 0 and s.home[b] != held:
                s.remove_copy(held, b, PROMOTE)
        live.claimed[t] -= size
        s.pin(b)
        live.tier[i] = PINNED

    cdef void hand_over(self, int32_t row, tick_t now) noexcept nogil:
        """The KV of a prompt has left the pool that prefilled it."""
        cdef int32_t i = self.staged[row]
        cdef worker_t *front
        if i < 0:
            return
        self.staged[row] = -1
        front = &self.workers[self.front_of[row]]
        front.n_staged -= 1
        self.let_go(front, <Store>front.store, self.lives[i])
        self.free_one(i)
        self.wake(front, now)

    cdef void complete(self, worker_t *w, Store s, int32_t index, tick_t now) noexcept nogil:
        """A request has all its tokens: its room is free, its pause rules hold, and what waits for it goes on."""
        cdef live_t *live = self.lives[index]
        cdef int32_t row = live.row, other
        cdef int64_t k
        cdef int t
        cdef block_t end = self.output[row]
        cdef worker_t *front = &self.workers[self.front_of[row]]
        if self.state[row] != DECODING:
            self.enter(row, DECODING, now)
        self.enter(row, DECODING, now)
        self.done_at[row] = now
        for t in range(w.kind.T):
            if live.claimed[t]:
                s.unclaim(t, live.claimed[t])
                live.claimed[t] = 0
        if end >= 0:
            self.keep_output(w, front, <Store>front.store, live, end)
        for k in range(self.out_at[row], self.out_at[row + 1]):
            if (<Store>front.store).nearest(self.out_rows[k]) < 0:
                (<Store>front.store).settle(self.out_rows[k], 0, -1)
        self.let_go(w, s, live)
        self.free_one(index)
        self.park(front, <Store>front.store, row, end if end >= 0 else self.last[row], now)
        self.settle(front, <Store>front.store, now, NULL, -1)
        front.version += 1
        if front != w:
            self.wake(front, now)
        self.gone(row, now)
        for k in range(self.next_at[row], self.next_at[row + 1]):
            other = self.next_rows[k]
            if self.status_of[other] == DONE:
                self.waits[other] -= 1
                if self.waits[other] == 0:
                    self.release(other, now)

    cdef void keep_output(self, worker_t *w, worker_t *front, Store s, live_t *live, block_t end) noexcept nogil:
        """Let the blocks of an answer be found, deepest first."""
        cdef block_t b = end, prompt = self.last[live.row], a
        while b >= 0:
            # a block that the prompt has too ends the answer's own
            a = prompt
            while a > b:
                a = self.parent[a]
            if a == b:
                break
            if s.nearest(b) < 0:
                if front == w:
                    s.insert(0, b)
                elif front.kind.T > 1:
                    s.settle(b, 1, -1)
            b = self.parent[b]

    # -- what came out ----------------------------------------------------------------------------------------------

    def progress(self):
        """Return how many requests have ended, of how many, and the time in picoseconds."""
        return self.n - self.unfinished, self.n, self.makespan

    def check(self):
        """Derive the books of every store again, and the identities of time.

        Raises
        ------
        RuntimeError
            If something does not balance.
        """
        cdef int u, p, t, k, c
        cdef int64_t sum, stalls
        for store in self.stores:
            store.check()
        if not self.ended:
            return
        for u in range(self.U):
            sum = 0
            for p in range(N_PARTS):
                if self.parts[u * N_PARTS + p] < 0:
                    raise RuntimeError(f"unit {u}: part {p} is negative")
                sum += self.parts[u * N_PARTS + p]
            if sum != self.makespan:
                raise RuntimeError(f"the parts of unit {u} make {sum} ps, the run took {self.makespan}")
        for p in range(self.P):
            sum = 0
            stalls = 0
            for u in range(self.U):
                if self.unit_pool[u] == p:
                    stalls += self.parts[u * N_PARTS + STALL]
            for t in range(self.T):
                for k in range(N_KINDS):
                    for c in range(N_CAUSES):
                        sum += self.stall[((p * self.T + t) * N_KINDS + k) * N_CAUSES + c]
            if sum != stalls:
                raise RuntimeError(f"pool {p} stalled {stalls} ps, its tiers say {sum}")
        for i in range(self.n_workers):
            if (self.workers[i].n_batch or self.workers[i].n_prefill or self.workers[i].n_loading
                    or self.workers[i].n_waiting or self.workers[i].n_staged):
                raise RuntimeError(f"worker {i} is not done")
            for t in range(self.workers[i].kind.T):
                if (<Store>self.workers[i].store).tier[t].claimed != 0:
                    raise RuntimeError(f"worker {i}: room of tier {t} is still claimed")

    def result(self):
        """Return everything as a dict of NumPy arrays and numbers.

        Returns
        -------
        dict
            Per request, per unit, per pool and tier, in bins of time, and logs if they were kept; what each is is said
            in `kvsim.run_result`.
        """
        cdef int64_t nb, clipped
        cdef int i, t, k, r, c, way
        cdef Store s
        cdef books_t *books
        cdef worker_t *w
        T, P, U, L = self.T, self.P, self.U, self.L
        out = {name: self.columns[name] for name in (
            "ready_ps", "admitted_ps", "first_token_ps", "done_ps", "think_ps", "tool_ps", "tool_wait_ps", "hit_tokens",
            "loaded_tokens", "computed_tokens", "recomputed_tokens", "preemptions", "output_tokens", "unit",
            "decode_unit", "status")}
        states = self.columns["states"]
        out["loaded_tokens"] = out["loaded_tokens"].reshape(self.n, T)
        for k, name in enumerate((
                "queued_ps", "transfer_ps", "prefill_ps", "recompute_ps", "decode_ps", "preempted_ps")):
            out[name] = np.ascontiguousarray(states[:, k])
        out["loading_ps"] = np.ascontiguousarray(states[:, FROM_TIER:])
        out["makespan_ps"] = self.makespan
        out["parts_ps"] = table(self.parts, (U, N_PARTS))
        out["unit_pool"] = np.array([self.unit_pool[i] for i in range(U)], np.int64)
        out["unit_replica"] = np.array([self.unit_replica[i] for i in range(U)], np.int64)
        out["stall_ps"] = table(self.stall, (P, T, N_KINDS, N_CAUSES))
        out["steps"] = table(self.steps, (U,))
        out["unit_tokens"] = table(self.passed, (U,))
        # the last bin ends with the run
        while self.makespan > self.bin_ps * MAX_BINS:
            self.fold()
        nb = ceil_div(self.makespan, self.bin_ps)
        clipped = self.bin_of(self.makespan)
        counts = table(self.bin_counts, (MAX_BINS, 5))
        if clipped == nb and 0 < nb < MAX_BINS:
            counts[nb - 1, 3:] += counts[nb, 3:]
        if self.ended and nb:
            self.look(nb - 1)
            counts[nb - 1, :3] = [self.bin_counts[(nb - 1) * 5 + k] for k in range(3)]
        out["bin_ps"] = self.bin_ps
        out["bins/parts_ps"] = table(self.bin_parts, (MAX_BINS, P, N_PARTS))[:nb].copy()
        out["bins/stall_ps"] = table(self.bin_stall, (MAX_BINS, P, T))[:nb].copy()
        out["bins/used_bytes"] = table(self.bin_used, (MAX_BINS, T))[:nb].copy()
        for k, name in enumerate(("running", "waiting", "loading", "prompt_tokens", "output_tokens")):
            out[f"bins/{name}"] = np.ascontiguousarray(counts[:nb, k])
        sums = {name: np.zeros((T, N_KINDS), np.int64) for name in (
            "read_bytes", "write_bytes", "writeback_read_bytes", "writeback_write_bytes", "inserted", "evicted",
            "demoted_out", "promoted_in", "refused", "freed")}
        lookups = np.zeros((N_KINDS, N_WEIGHTS), np.int64)
        hits = np.zeros((T, N_KINDS, N_RULES, N_WEIGHTS), np.int64)
        of_tier = {name: np.zeros(T, np.int64) for name in (
            "evicted_bytes", "used_bytes", "capacity_bytes", "resident_blocks", "private_bytes")}
        of_link = {name: np.zeros(L, np.int64) for name in ("link_up_bytes", "link_down_bytes")}
        tier_busy, link_busy = np.zeros((T, 2), np.int64), np.zeros((L, 2), np.int64)
        unreachable = 0
        for i in range(self.n_workers):
            w = &self.workers[i]
            s = self.stores[i]
            unreachable += s.unreachable
            for k in range(N_KINDS):
                for c in range(N_WEIGHTS):
                    lookups[k, c] += s.lookups[k][c]
            for t in range(w.kind.T):
                books = &s.books[t]
                at = w.kind.ladder[t]
                for k in range(N_KINDS):
                    for name, value in (
                            ("read_bytes", books.read[k]), ("write_bytes", books.write[k]),
                            ("writeback_read_bytes", books.back_read[k]),
                            ("writeback_write_bytes", books.back_write[k]),
                            ("inserted", books.inserted[k]), ("evicted", books.evicted[k]),
                            ("demoted_out", books.demoted_out[k]), ("promoted_in", books.promoted_in[k]),
                            ("refused", books.refused[k]), ("freed", books.freed[k])):
                        sums[name][at, k] += value
                    for r in range(N_RULES):
                        for c in range(N_WEIGHTS):
                            hits[at, k, r, c] += books.hits[k][r][c]
                of_tier["evicted_bytes"][at] += books.evicted_bytes
                of_tier["used_bytes"][at] += s.tier[t].view.used + s.tier[t].home_bytes
                of_tier["capacity_bytes"][at] += s.tier[t].total
                of_tier["resident_blocks"][at] += s.tier[t].view.resident
                of_tier["private_bytes"][at] += s.tier[t].claimed
                for way in range(2):
                    tier_busy[at, way] += w.device[t].busy[way]
            if w.parted:
                sums["read_bytes"][w.kind.ffn_tier, K_WEIGHTS] += w.ffn_read
            for k in range(w.kind.n_links):
                at = w.kind.link_index[k]
                of_link["link_up_bytes"][at] += s.total_up[k]
                of_link["link_down_bytes"][at] += s.total_down[k]
                for way in range(2):
                    link_busy[at, way] += w.link[k].busy[way]
        out |= sums | of_tier | of_link
        out |= {"lookups": lookups, "hits": hits, "unreachable_bytes": unreachable, "tier_busy_ps": tier_busy,
                "link_busy_ps": link_busy, "transfer_bytes": self.transferred, "transfer_busy_ps": self.pipe.busy[1],
                "rejected": self.rejected, "pins_broken": self.pins_broken, "swapped_bytes": self.swapped_bytes,
                "peak_blocks": self.n_blocks, "events": self.n_events_done,
                "log_cut": bool(self.log_steps.cut or self.log_moves.cut or self.log_phases.cut)}
        steps = table(self.log_steps.data, (self.log_steps.n, 7))
        for k, name in enumerate(("start_ps", "end_ps", "unit", "count", "decode", "prefill")):
            out[f"log/step_{name}"] = np.ascontiguousarray(steps[:, k])
        phases = table(self.log_phases.data, (self.log_phases.n, 7))
        for k, name in enumerate(("request", "state", "start_ps", "end_ps")):
            out[f"log/phase_{name}"] = np.ascontiguousarray(phases[:, k])
        moves = table(self.log_moves.data, (self.log_moves.n, 7))
        for k, name in enumerate(("start_ps", "end_ps", "channel", "way", "bytes", "request", "replica")):
            out[f"log/move_{name}"] = np.ascontiguousarray(moves[:, k])
        return out


cdef object table(const int64_t *data, shape):
    """A copy of the numbers at `data`."""
    cdef int64_t[::1] flat
    cdef Py_ssize_t n = 1
    for extent in shape:
        n *= extent
    made = np.empty(n, np.int64)
    if n:
        flat = made
        memcpy(&flat[0], data, <size_t>n * sizeof(int64_t))
    return made.reshape(shape)


cdef bint grow(void **array, int64_t *room, size_t item) noexcept nogil:
    """Make an array twice as large; False if memory is short."""
    cdef int64_t more = max(2 * room[0], <int64_t>64)
    cdef void *p = realloc(array[0], <size_t>more * item)
    if p == NULL:
        return False
    array[0] = p
    room[0] = more
    return True


cdef int64_t whole(spec, str name, low, high) except? -2:
    value = spec[name]
    number_ = int(value)
    if number_ != value or not low <= number_ <= high:
        raise ValueError(f"{name} is {value}: expected a whole number from {low} to {high}")
    return number_


cdef int read_pace(spec, pace_t *pace) except -1:
    read_channel(spec, &pace.device)
    pace.latency_ps = number(spec, "latency_ps")
    pace.overhead_ps = number(spec, "overhead_ps")
    pace.norm = number(spec, "norm")
    if not 0.25 <= pace.norm <= 64.0:
        raise ValueError(f"norm is {pace.norm}: expected 0.25 … 64")
    return 0
