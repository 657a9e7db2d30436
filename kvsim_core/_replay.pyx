"""The replay loop: recorded steps through a store, in order, on a clock."""
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memset

from cpython.mem cimport PyMem_Free, PyMem_Malloc

from kvsim_core._clock cimport Clock
from kvsim_core._policy cimport raise_status
from kvsim_core._store cimport MAX_SHIFT, Store, books_t
from kvsim_core._types cimport (
    CONTEXT, LOOKUP, MAX_TIERS, N_CAUSES, N_KINDS, N_OPERATIONS, N_OPS, N_RULES, N_WEIGHTS, OK,
    READ, WRITE, block_t, bytes_t, tick_t,
)

cdef extern from *:
    """
    #ifndef KVSIM_DEBUG
    #define KVSIM_DEBUG 0
    #endif
    """
    int KVSIM_DEBUG              # a debug build derives the books again at the end of every run

cdef enum:
    MAX_SAMPLES = 1024

cdef struct sample_t:
    tick_t clock
    int64_t step
    int64_t lookups
    bytes_t used[MAX_TIERS]
    tick_t stall[MAX_TIERS]
    int64_t hits[MAX_TIERS]


cdef class Replayer:
    """Replay steps of accesses; feed it chunk by chunk, the state is carried over.

    Parameters
    ----------
    store : Store
        With a table of blocks bound.
    clock : Clock
        Over the same tiers and links.
    """
    cdef readonly Store store
    cdef readonly Clock clock
    cdef int64_t rows
    cdef sample_t *samples
    cdef int n_samples
    cdef int64_t stride           # step rows between two samples; doubles whenever the buffer is full

    def __cinit__(self, Store store not None, Clock clock not None):
        self.store = store
        self.clock = clock
        self.stride = 1
        self.samples = <sample_t *>PyMem_Malloc(MAX_SAMPLES * sizeof(sample_t))
        if self.samples == NULL:
            raise MemoryError("not enough memory for the samples")

    def __dealloc__(self):
        PyMem_Free(self.samples)

    def feed(self, const int64_t[::1] arrival_ps, const double[:, ::1] flops, const int64_t[::1] fixed_ps,
             const int64_t[::1] tokens, const int64_t[::1] repeat, const int64_t[::1] request,
             const int64_t[::1] offsets, const int32_t[::1] block, const uint8_t[::1] op, size=None, next_use=None):
        """Replay a chunk of steps.

        Parameters
        ----------
        arrival_ps, fixed_ps, tokens, repeat, request : int64 arrays, one entry a step
            Not before this time; kernels' fixed time; tokens for the collectives; how often; the request admitted,
            or -1.
        flops : float64 array, steps × operations
            Work that hits cannot save.
        offsets : int64 array, one more than steps
            Where each step's accesses begin.
        block, op : int32 and uint8 arrays, one entry an access
        size : int64 array, optional
            Bytes of each access, -1 for the block's own.
        next_use : int64 array, optional
            For each access the index of the block's next look-up; needed by policies that read the future.

        Raises
        ------
        ValueError
            If lengths differ or a value is out of range; nothing was replayed then.
        OverflowError
            If the clock or a counter passes 2^62.
        """
        cdef Py_ssize_t n = arrival_ps.shape[0], m = block.shape[0], i, a
        cdef Store store = self.store
        cdef Clock clock = self.clock
        cdef const int64_t[::1] sizes, uses
        cdef const int64_t *size_at = NULL
        cdef const int64_t *use_at = NULL
        cdef double table = 0, sum
        cdef int status
        if (flops.shape[0] != n or flops.shape[1] != N_OPERATIONS or fixed_ps.shape[0] != n or tokens.shape[0] != n
                or repeat.shape[0] != n or request.shape[0] != n or offsets.shape[0] != n + 1 or op.shape[0] != m):
            raise ValueError("the step or access columns differ in length")
        if size is not None:
            sizes = size
            if sizes.shape[0] != m:
                raise ValueError("the access columns differ in length")
            if m:
                size_at = &sizes[0]
        if next_use is not None:
            uses = next_use
            if uses.shape[0] != m:
                raise ValueError("the access columns differ in length")
            if m:
                use_at = &uses[0]
        elif any(policy.needs_future for policy in store.policies):
            raise ValueError("a policy needs the future: give next_use")
        if offsets[0] != 0 or offsets[n] != m:
            raise ValueError("the steps' offsets do not cover the accesses")
        for i in range(store.n):
            table += <double>store.bytes[i]
        for i in range(n):
            if (offsets[i + 1] < offsets[i] or fixed_ps[i] < 0 or fixed_ps[i] > (<int64_t>1 << 60) or tokens[i] < 0
                    or repeat[i] < 0 or repeat[i] > (<int64_t>1 << 31) or arrival_ps[i] < 0
                    or arrival_ps[i] > (<int64_t>1 << 62)
                    or not 0 <= flops[i, 0] <= 1e30 or not 0 <= flops[i, 1] <= 1e30):
                raise ValueError(f"step {i}: a column is out of range")
            sum = 0
            for a in range(offsets[i], offsets[i + 1]):
                if block[a] < 0 or block[a] >= self.store.n or op[a] >= N_OPS:
                    raise ValueError(f"access {a}: block {block[a]} or operation {op[a]} is out of range")
                if size_at != NULL and (size_at[a] < -1 or size_at[a] > (<int64_t>1 << MAX_SHIFT)):
                    raise ValueError(f"access {a}: {size_at[a]} bytes are out of range")
                if size_at != NULL and size_at[a] >= 0:
                    sum += <double>size_at[a]
                else:
                    sum += table if op[a] == CONTEXT else <double>self.store.bytes[block[a]]
            if sum * 4 > 4e18:
                raise OverflowError(f"step {i}: its accesses together pass 2^62 bytes")
        for i in range(m):
            if use_at != NULL and use_at[i] < 0:
                raise ValueError(f"access {i}: its next use is negative")
        if store.busy:
            raise RuntimeError("this store is in use, in another thread or by this call's own policy")
        store.busy = True
        with nogil:
            status = self.run(
                store, clock, n, &arrival_ps[0] if n else NULL, &flops[0, 0] if n else NULL,
                &fixed_ps[0] if n else NULL, &tokens[0] if n else NULL, &repeat[0] if n else NULL,
                &request[0] if n else NULL, &offsets[0], &block[0] if m else NULL, &op[0] if m else NULL,
                size_at, use_at)
        store.busy = False
        raise_status(status, store.policies)

    cdef int run(self, Store store, Clock clock, Py_ssize_t n, const int64_t *arrival, const double *flops,
                 const int64_t *fixed, const int64_t *tokens, const int64_t *repeat, const int64_t *request,
                 const int64_t *offsets,
                 const int32_t *block, const uint8_t *op, const int64_t *size, const int64_t *use) noexcept nogil:
        cdef Py_ssize_t i
        cdef int64_t a, left, times
        cdef bytes_t used
        cdef bint looks, inert
        cdef int status
        cdef block_t b
        for i in range(n):
            left = repeat[i]
            looks = False
            inert = True
            if left > 1:
                for a in range(offsets[i], offsets[i + 1]):
                    if not store.inert(block[a], op[a], size[a] if size != NULL else -1):
                        inert = False
                        break
            for a in range(offsets[i], offsets[i + 1]):
                if op[a] == LOOKUP:
                    looks = True
                    break
            while left > 0:
                times = left if inert else 1
                left -= times
                store.mult = times
                store.begin_step()
                if looks:
                    store.begin_request(request[i])
                for a in range(offsets[i], offsets[i + 1]):
                    b = block[a]
                    used = size[a] if size != NULL else -1
                    if use != NULL and (op[a] == LOOKUP or op[a] == WRITE):
                        store.next_use[b] = use[a]
                    if op[a] == LOOKUP:
                        store.lookup(b, used)
                    elif op[a] == READ:
                        store.read(b, used)
                    elif op[a] == CONTEXT:
                        store.context(b, used)
                    elif op[a] == WRITE:
                        store.write(b, used)
                    else:
                        store.drop(b)
                if looks:
                    store.end_request()
                if store.status != OK:
                    return store.status
                status = clock.step(store, &flops[2 * i], fixed[i], tokens[i], times, arrival[i])
                if status == OK:
                    status = store.end_step(times)
                if status != OK:
                    store.status = status
                    return status
                self.tell_time()
            self.rows += 1
            if self.rows % self.stride == 0:
                self.sample()
        return OK

    cdef void tell_time(self) noexcept nogil:
        cdef int t
        for t in range(self.store.n_tiers):
            self.store.tier[t].view.now = self.clock.now

    cdef void sample(self) noexcept nogil:
        """Keep the state after this row; when the buffer is full, keep every second one."""
        cdef sample_t *s
        cdef int t, k, i
        if self.n_samples == MAX_SAMPLES:
            for i in range(MAX_SAMPLES // 2):
                self.samples[i] = self.samples[2 * i + 1]
            self.n_samples = MAX_SAMPLES // 2
            self.stride *= 2
            if self.rows % self.stride != 0:
                return
        s = &self.samples[self.n_samples]
        memset(s, 0, sizeof(sample_t))
        s.clock = self.clock.now
        s.step = self.clock.steps
        for k in range(N_KINDS):
            s.lookups += self.store.lookups[k][0]
        for t in range(self.store.n_tiers):
            s.used[t] = self.store.tier[t].view.used + self.store.tier[t].home_bytes
            s.stall[t] = self.clock.stall_of[t]
            for k in range(N_KINDS):
                s.hits[t] += self.store.books[t].hits[k][0][0]
        self.n_samples += 1

    def check(self):
        """Derive the books of the store again, and the clock's identity.

        Raises
        ------
        RuntimeError
            If they do not balance.
        """
        cdef tick_t sum = 0
        cdef int t, k, c
        cdef Clock clock = self.clock
        self.store.check()
        for t in range(self.store.n_tiers):
            for k in range(N_KINDS):
                for c in range(N_CAUSES):
                    sum += clock.stall[t][k][c]
        sum += clock.compute + clock.recompute + clock.overhead + clock.collectives + clock.bubble + clock.idle
        if sum != clock.now:
            raise RuntimeError(f"the parts of the wall make {sum} ps, the clock says {clock.now}")

    def result(self):
        """Return the books so far as a dict of numbers and nested lists, indexed by tier, kind, rule, weight and
        cause."""
        cdef Store s = self.store
        cdef Clock c = self.clock
        cdef int t, k, r, w, i
        cdef books_t *books
        cdef sample_t *x
        if KVSIM_DEBUG:
            self.check()
        T = s.n_tiers
        out = {
            "clock_ps": c.now, "compute_ps": c.compute, "recompute_ps": c.recompute, "overhead_ps": c.overhead,
            "collectives_ps": c.collectives, "bubble_ps": c.bubble, "idle_ps": c.idle,
            "steps": c.steps, "step_rows": self.rows,
            "stall_ps": [[[c.stall[t][k][i] for i in range(N_CAUSES)] for k in range(N_KINDS)] for t in range(T)],
            "lookups": [[s.lookups[k][w] for w in range(N_WEIGHTS)] for k in range(N_KINDS)],
            "link_up_bytes": [s.total_up[i] for i in range(s.n_links)],
            "link_down_bytes": [s.total_down[i] for i in range(s.n_links)],
            "unreachable_bytes": s.unreachable, "unheld_read_bytes": s.unheld,
            "hits": [], "read_bytes": [], "write_bytes": [], "writeback_read_bytes": [], "writeback_write_bytes": [],
            "inserted": [], "evicted": [], "demoted_out": [], "promoted_in": [], "refused": [], "freed": [],
            "evicted_bytes": [], "used_bytes": [], "capacity_bytes": [], "resident_blocks": [],
        }
        for t in range(T):
            books = &s.books[t]
            out["hits"].append([[[books.hits[k][r][w] for w in range(N_WEIGHTS)] for r in range(N_RULES)]
                                for k in range(N_KINDS)])
            out["read_bytes"].append([books.read[k] for k in range(N_KINDS)])
            out["write_bytes"].append([books.write[k] for k in range(N_KINDS)])
            out["writeback_read_bytes"].append([books.back_read[k] for k in range(N_KINDS)])
            out["writeback_write_bytes"].append([books.back_write[k] for k in range(N_KINDS)])
            out["inserted"].append([books.inserted[k] for k in range(N_KINDS)])
            out["evicted"].append([books.evicted[k] for k in range(N_KINDS)])
            out["demoted_out"].append([books.demoted_out[k] for k in range(N_KINDS)])
            out["promoted_in"].append([books.promoted_in[k] for k in range(N_KINDS)])
            out["refused"].append([books.refused[k] for k in range(N_KINDS)])
            out["freed"].append([books.freed[k] for k in range(N_KINDS)])
            out["evicted_bytes"].append(books.evicted_bytes)
            out["used_bytes"].append(s.tier[t].view.used + s.tier[t].home_bytes)
            out["capacity_bytes"].append(s.tier[t].total)
            out["resident_blocks"].append(s.tier[t].view.resident)
        samples = {"clock_ps": [], "step": [], "lookups": [], "used_bytes": [], "stall_ps": [], "hits": []}
        for i in range(self.n_samples):
            x = &self.samples[i]
            samples["clock_ps"].append(x.clock)
            samples["step"].append(x.step)
            samples["lookups"].append(x.lookups)
            samples["used_bytes"].append([x.used[t] for t in range(T)])
            samples["stall_ps"].append([x.stall[t] for t in range(T)])
            samples["hits"].append([x.hits[t] for t in range(T)])
        out["samples"] = samples
        return out
