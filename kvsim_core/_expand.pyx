"""The open-loop schedule: requests in, rows of steps and their accesses out, chunk by chunk.

What the schedule is, and what each row holds, is said once in :mod:`kvsim.accesses`; the plain
twin that this file must equal exactly is tests/reference/expand_reference.py. Every argument is
copied and checked when an `Expander` is made; after that one loop runs without the GIL over
arrays that nobody else can change.
"""

from libc.math cimport floor
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy

import numpy as np

from kvsim_core._types cimport CONTEXT, LOOKUP, READ, WRITE, block_t, bytes_t, tick_t

__all__ = ["Expander"]

cdef enum:  # how a call of `_fill` ended
    FULL = 0
    DONE = 1
    GROW = 2
    STUCK = 3

cdef double LARGEST_BYTES = 4.0e18  # below 2**62: sums of two such numbers still fit in an int64
cdef int64_t LARGEST_TOKENS = 1 << 53
cdef int64_t LARGEST_WEIGHT = 1 << 62


cdef size_t _address(array) except? 0:
    """The address of an array's numbers; the caller keeps the array."""
    return array.__array_interface__["data"][0]


def _column(values, dtype, str name, *, rows=None, minimum=None, below=None):
    """Copy `values` into an array of our own, or say what is wrong with it in a ValueError."""
    given = np.asarray(values)
    if given.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, found {given.ndim}")
    if given.size and given.dtype.kind not in "iub" and np.dtype(dtype).kind == "i":
        raise ValueError(f"{name}: expected integers, found {given.dtype}")
    if given.size and given.dtype.kind not in "iubf":
        raise ValueError(f"{name}: expected numbers, found {given.dtype}")
    if rows is not None and given.shape[0] != rows:
        raise ValueError(f"{name}: expected {rows} rows, found {given.shape[0]}")
    if given.size:
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
        low, high = given.min(), given.max()
        if np.dtype(dtype).kind == "i":
            limits = np.iinfo(dtype)
            if low < limits.min or high > limits.max:
                raise ValueError(
                    f"{name}: expected numbers within {np.dtype(dtype)}, found {low}..{high}"
                )
        if minimum is not None and low < minimum:
            raise ValueError(f"{name}: expected at least {minimum}, found {low}")
        if below is not None and high >= below:
            raise ValueError(f"{name}: expected less than {below}, found {high}")
    return np.array(given, dtype=dtype, order="C", copy=True)


def _offsets(values, str name, rows, total):
    """Copy a CSR offsets column of `rows` + 1 entries that ends at `total`, or raise ValueError."""
    out = _column(values, np.int64, name, rows=rows + 1, minimum=0)
    if out[0] != 0 or out[rows] != total or (np.diff(out) < 0).any():
        raise ValueError(f"{name}: expected offsets that rise from 0 to {total}")
    return out


def _chains(parent, position):
    """Copy the trie of blocks, checked: parents first, each child one place behind its parent."""
    parent = _column(parent, np.int32, "block_parent", minimum=-1)
    position = _column(position, np.int32, "block_position", rows=parent.shape[0], minimum=0)
    if (parent >= np.arange(parent.shape[0])).any():
        raise ValueError("block_parent: expected every parent before its child")
    before = np.where(parent < 0, -1, position[parent]) if parent.shape[0] else position
    if (position != before + 1).any():
        row = int(np.flatnonzero(position != before + 1)[0])
        raise ValueError(
            f"block_position: block {row}: expected {before[row] + 1}, found {position[row]}"
        )
    return parent, position


cdef class _Line:
    """A piecewise linear function of a whole number: value at knots, straight between them."""

    cdef const int64_t *at
    cdef const double *value
    cdef const double *slope
    cdef int64_t knots
    cdef object kept

    def __init__(self, knots, str name):
        at, value, slope = knots
        at = _column(at, np.int64, f"{name} knots", minimum=0)
        if at.shape[0] == 0 or at[0] != 0 or (np.diff(at) <= 0).any():
            raise ValueError(f"{name} knots: expected numbers that rise from 0")
        value = _column(value, np.float64, f"{name} values", rows=at.shape[0], minimum=0.0)
        slope = _column(slope, np.float64, f"{name} slopes", rows=at.shape[0])
        self.kept, self.knots = (at, value, slope), at.shape[0]
        self.at = <const int64_t *>_address(at)
        self.value = <const double *>_address(value)
        self.slope = <const double *>_address(slope)

    cdef inline double get(self, int64_t x) noexcept nogil:
        cdef int64_t k = self.knots - 1
        while k > 0 and self.at[k] > x:
            k -= 1
        return self.value[k] + self.slope[k] * <double>(x - self.at[k])


cdef inline int64_t _whole(double bytes_) noexcept nogil:
    """Round half up to whole bytes, kept within what an int64 holds."""
    if not bytes_ > 0.0:
        return 0
    if bytes_ > LARGEST_BYTES:
        return <int64_t>LARGEST_BYTES
    return <int64_t>floor(bytes_ + 0.5)


cdef class Expander:
    """The schedule of one trace on one model, handed out in chunks.

    Parameters
    ----------
    arrival_ps, input_tokens, output_tokens : int64 (requests,).
    last_block, output_block : int32 (requests,), -1 for none.
    category : int16 (requests,).
    after_offsets, after : int64 (requests + 1,), int32: the rows that must complete first.
    data_offsets, data : int64 (requests + 1,), int32: the blocks looked up before the prompt.
    prompt_flops : float64 (requests, 2), attention and ffn FLOPs of what hits cannot save.
    prompt_tokens : int64 (requests,), tokens through the model at admission, hits or not.
    private_tokens : int64 (requests,), prompt tokens beyond the blocks: their KV is written.
    block_parent, block_position : int32 (KV blocks,).
    checkpoint_lookup, checkpoint_last, checkpoint_whole, checkpoint_output : int32 (requests,), the
        state checkpoints looked up before the prompt, written after it at its last and at its last
        whole block, and written at completion; -1 for none.
    weight_block : int32 (weights,), looked up once a step.
    weight_expert : bool (weights,), the blocks that share `expert_bytes`.
    weight_most, weight_token_bytes : int64 (weights,), a block's bytes, and where not 0, what each
        token of the step reads of it (up to all of them).
    expert_bytes : int64 (k,), bytes that all experts' reads come to in a step of 0 … k-1 tokens,
        constant from there on.
    kv_read, decode_attention : (knots, values, slopes), bytes read and attention FLOPs of one
        decode token: of the context including that token, and of the tokens before it.
    decode_flops : (attention, ffn) FLOPs of one decode token without its context.
    kv_write_bytes, state_bytes : int, KV written for a new token, state of a sequence.
    lane_block, lane_state : int, the first of `lanes` KV and state pseudo-blocks (`lane_state`
        -1: no state).
    blocks : int, rows of the block table.
    lanes : int, at least 1; no more than there are requests are used.
    access_room : int, accesses after which a chunk ends (a longer step makes a longer chunk).

    Raises
    ------
    ValueError : anything above does not fit together.
    """

    cdef list kept  # the arrays that the pointers below point into
    cdef int64_t n
    cdef const tick_t *arrival
    cdef const int64_t *inputs
    cdef const int64_t *outputs
    cdef const int64_t *prompt_tokens
    cdef const int64_t *private_tokens
    cdef const double *prompt_flops  # two a request
    cdef const int16_t *category
    cdef const block_t *last
    cdef const block_t *output
    cdef const int64_t *after_offsets
    cdef const int64_t *data_offsets
    cdef const block_t *data
    cdef const int64_t *dependent_offsets
    cdef const int32_t *dependents
    cdef const block_t *parent
    cdef const int32_t *position
    cdef const block_t *checkpoint_lookup
    cdef const block_t *checkpoint_last
    cdef const block_t *checkpoint_whole
    cdef const block_t *checkpoint_output
    cdef _Line kv_read
    cdef _Line attention
    cdef double decode_attention
    cdef double decode_ffn
    cdef bytes_t kv_write_bytes
    cdef bytes_t state_bytes
    cdef block_t lane_block
    cdef block_t lane_state
    # the weights part of every step, copied in one go
    cdef int64_t weights
    cdef const block_t *weight_block
    cdef const uint8_t *weight_op
    cdef const bytes_t *weight_bytes
    cdef int64_t sliced             # blocks of which a token reads its own part
    cdef const int32_t *slice_at
    cdef const bytes_t *slice_bytes
    cdef const bytes_t *slice_most
    cdef int64_t experts
    cdef const int32_t *expert_at
    cdef int64_t expert_rows
    cdef const bytes_t *expert_bytes
    # where the schedule stands
    cdef int64_t cursor             # the next row without dependencies
    cdef int32_t *ready             # a heap of the rows whose dependencies have completed
    cdef int64_t ready_count
    cdef int32_t *waits             # dependencies still open, by row
    cdef readonly int64_t admitted
    """Requests admitted so far."""
    cdef tick_t latest_ps           # arrival and category of the request admitted last
    cdef int16_t latest_category
    cdef int64_t lanes
    cdef int32_t *running           # lanes in order of admission
    cdef int64_t running_count
    cdef int32_t *free              # a stack of lanes
    cdef int64_t free_count
    cdef int32_t *lane_request
    cdef int64_t *lane_left         # tokens still to come
    cdef int64_t *lane_context      # tokens the next step attends to, its own included
    cdef int64_t *lane_written      # output blocks to write at completion
    # the chunk being written
    cdef object access_columns
    cdef int64_t room
    cdef int64_t needed
    cdef int64_t used
    cdef int64_t rows
    cdef block_t *block
    cdef uint8_t *op
    cdef bytes_t *bytes
    cdef tick_t *row_arrival
    cdef int64_t *row_tokens
    cdef int64_t *row_repeat
    cdef int64_t *row_request
    cdef int64_t *row_end
    cdef int16_t *row_category
    cdef double *row_flops
    cdef bint counting
    cdef bint busy

    def __init__(
        self, *, arrival_ps, input_tokens, output_tokens, last_block, output_block, category,
        after_offsets, after, data_offsets, data, prompt_flops, prompt_tokens, private_tokens, block_parent,
        block_position, checkpoint_lookup, checkpoint_last, checkpoint_whole, checkpoint_output,
        weight_block, weight_expert, weight_most, weight_token_bytes, expert_bytes, kv_read,
        decode_attention, decode_flops, kv_write_bytes, state_bytes, lane_block, lane_state,
        blocks, lanes, access_room=1 << 20,
    ):
        if self.busy:
            raise RuntimeError("an Expander serves one caller at a time")
        self.busy = True  # until everything below has been checked
        self.kept = []
        parent, position = _chains(block_parent, block_position)
        cdef int64_t kv_blocks = parent.shape[0]
        cdef int64_t table = blocks
        if not kv_blocks <= table < (1 << 31):
            raise ValueError(f"blocks: expected {kv_blocks} up to 2147483647, found {table}")
        self.parent = <const block_t *>self._keep(parent)
        self.position = <const int32_t *>self._keep(position)

        arrival = _column(arrival_ps, np.int64, "arrival_ps")
        cdef int64_t n = arrival.shape[0]
        if n >= (1 << 31):
            raise ValueError(f"arrival_ps: expected fewer than 2147483648 requests, found {n}")
        block = {"rows": n, "minimum": -1, "below": kv_blocks}
        tokens = {"rows": n, "minimum": 0, "below": LARGEST_TOKENS}
        inputs = _column(input_tokens, np.int64, "input_tokens", **tokens)
        outputs = _column(output_tokens, np.int64, "output_tokens", **tokens)
        last = _column(last_block, np.int32, "last_block", **block)
        output = _column(output_block, np.int32, "output_block", **block)
        block["below"] = table
        looked = _column(checkpoint_lookup, np.int32, "checkpoint_lookup", **block)
        at_last = _column(checkpoint_last, np.int32, "checkpoint_last", **block)
        at_whole = _column(checkpoint_whole, np.int32, "checkpoint_whole", **block)
        at_end = _column(checkpoint_output, np.int32, "checkpoint_output", **block)
        category = _column(category, np.int16, "category", rows=n)
        prompt = _column(prompt_tokens, np.int64, "prompt_tokens", **tokens)
        private = _column(private_tokens, np.int64, "private_tokens", **tokens)
        flops = np.array(prompt_flops, dtype=np.float64, order="C", copy=True)
        if flops.shape != (n, 2) or not np.isfinite(flops).all() or (flops < 0).any():
            raise ValueError(
                f"prompt_flops: expected {n} rows of two finite numbers from 0, found {flops.shape}"
            )
        self.n = n
        self.arrival = <const tick_t *>self._keep(arrival)
        self.inputs = <const int64_t *>self._keep(inputs)
        self.outputs = <const int64_t *>self._keep(outputs)
        self.last = <const block_t *>self._keep(last)
        self.output = <const block_t *>self._keep(output)
        self.checkpoint_lookup = <const block_t *>self._keep(looked)
        self.checkpoint_last = <const block_t *>self._keep(at_last)
        self.checkpoint_whole = <const block_t *>self._keep(at_whole)
        self.checkpoint_output = <const block_t *>self._keep(at_end)
        self.category = <const int16_t *>self._keep(category)
        self.prompt_tokens = <const int64_t *>self._keep(prompt)
        self.private_tokens = <const int64_t *>self._keep(private)
        self.prompt_flops = <const double *>self._keep(flops)

        first = _column(after, np.int32, "after", minimum=0, below=n)
        if first.shape[0] >= (1 << 31):
            raise ValueError(f"after: expected fewer than 2147483648 rows, found {first.shape[0]}")
        offsets = _offsets(after_offsets, "after_offsets", n, first.shape[0])
        dependent_offsets = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(first, minlength=n), out=dependent_offsets[1:])
        owner = np.repeat(np.arange(n, dtype=np.int32), np.diff(offsets))
        self.after_offsets = <const int64_t *>self._keep(offsets)
        self.dependent_offsets = <const int64_t *>self._keep(dependent_offsets)
        self.dependents = <const int32_t *>self._keep(owner[np.argsort(first, kind="stable")])
        self.waits = <int32_t *>self._keep(np.empty(n, np.int32))
        self.ready = <int32_t *>self._keep(np.empty(n if first.shape[0] else 0, np.int32))

        read = _column(data, np.int32, "data", minimum=0, below=table)
        reads = _offsets(data_offsets, "data_offsets", n, read.shape[0])
        self.data_offsets = <const int64_t *>self._keep(reads)
        self.data = <const block_t *>self._keep(read)

        weight = _column(weight_block, np.int32, "weight_block", minimum=0, below=table)
        size = {"rows": weight.shape[0], "minimum": 0, "below": LARGEST_WEIGHT}
        whole = _column(weight_most, np.int64, "weight_most", **size)
        token = _column(weight_token_bytes, np.int64, "weight_token_bytes", **size)
        size["below"] = 2
        expert = np.flatnonzero(_column(weight_expert, np.int8, "weight_expert", **size))
        cut = np.flatnonzero(token).astype(np.int32)
        self.sliced = cut.shape[0]
        self.slice_at = <const int32_t *>self._keep(cut)
        self.slice_bytes = <const bytes_t *>self._keep(token[cut])
        self.slice_most = <const bytes_t *>self._keep(whole[cut])
        touched = _column(expert_bytes, np.int64, "expert_bytes", minimum=0)
        self.weights, self.experts = weight.shape[0], expert.shape[0]
        self.expert_rows = touched.shape[0]
        if self.experts and not self.expert_rows:
            raise ValueError("expert_bytes: expected one row or more, found none")
        self.weight_block = <const block_t *>self._keep(weight)
        self.weight_op = <const uint8_t *>self._keep(np.full(self.weights, LOOKUP, np.uint8))
        self.weight_bytes = <const bytes_t *>self._keep(np.full(self.weights, -1, np.int64))
        self.expert_at = <const int32_t *>self._keep(expert.astype(np.int32))
        self.expert_bytes = <const bytes_t *>self._keep(touched)

        self.kv_read = _Line(kv_read, "kv_read")
        self.attention = _Line(decode_attention, "decode_attention")
        self.decode_attention, self.decode_ffn = _column(
            decode_flops, np.float64, "decode_flops", rows=2, minimum=0.0
        )
        self.kv_write_bytes, self.state_bytes = kv_write_bytes, state_bytes
        if self.kv_write_bytes < 0 or self.state_bytes < 0:
            raise ValueError("kv_write_bytes and state_bytes: expected 0 or more")
        if lanes < 1:
            raise ValueError(f"lanes: expected 1 or more, found {lanes}")
        lanes = min(lanes, max(n, 1))
        for name, given, least in (("lane_block", lane_block, 0), ("lane_state", lane_state, -1)):
            if not least <= given <= table - lanes:
                raise ValueError(f"{name}: expected {least} up to {table - lanes}, found {given}")
        self.lanes, self.lane_block, self.lane_state = lanes, lane_block, lane_state
        self.running = <int32_t *>self._keep(np.empty(lanes, np.int32))
        self.free = <int32_t *>self._keep(np.empty(lanes, np.int32))
        self.lane_request = <int32_t *>self._keep(np.empty(lanes, np.int32))
        self.lane_left = <int64_t *>self._keep(np.empty(lanes, np.int64))
        self.lane_context = <int64_t *>self._keep(np.empty(lanes, np.int64))
        self.lane_written = <int64_t *>self._keep(np.empty(lanes, np.int64))
        if not 1 <= access_room <= (1 << 31):
            raise ValueError(f"access_room: expected 1 up to 2147483648, found {access_room}")
        self._grow(access_room)
        self._rewind()
        self.busy = False

    cdef size_t _keep(self, array) except? 0:
        """Keep a contiguous array of our own for as long as this object lives; its address."""
        self.kept.append(array)
        return _address(array)

    cdef int _grow(self, int64_t room) except -1:
        columns = np.empty(room, np.int32), np.empty(room, np.uint8), np.empty(room, np.int64)
        self.access_columns, self.room = columns, room
        self.block = <block_t *>_address(columns[0])
        self.op = <uint8_t *>_address(columns[1])
        self.bytes = <bytes_t *>_address(columns[2])
        return 0

    cdef void _rewind(self) noexcept nogil:
        cdef int64_t k
        cdef int64_t row
        self.cursor = self.ready_count = self.admitted = self.running_count = 0
        self.latest_ps = 0
        self.latest_category = 0
        self.free_count = self.lanes
        for k in range(self.lanes):
            self.free[k] = <int32_t>(self.lanes - 1 - k)
        for row in range(self.n):
            self.waits[row] = <int32_t>(self.after_offsets[row + 1] - self.after_offsets[row])

    def count_rows(self):
        """Count the rows that all chunks will hold together, and start again from the first.

        Raises
        ------
        ValueError : requests wait for each other in a circle.
        """
        cdef int64_t total = 0
        cdef int status
        if self.busy:
            raise RuntimeError("an Expander serves one caller at a time")
        self.busy = True
        try:
            self._rewind()
            self.counting = True
            status = FULL
            while status == FULL:
                with nogil:
                    status = self._fill(1 << 20)
                total += self.rows
            if status == STUCK:
                raise ValueError(self._stuck())
        finally:
            self.counting = False
            self._rewind()
            self.busy = False
        return total

    def next_chunk(self, steps=2048):
        """Write up to `steps` further rows.

        Returns
        -------
        None behind the last row, else a dict of columns: arrival_ps, flops, tokens, category,
        repeat, request and offsets by row; block, op and bytes by access.

        Raises
        ------
        ValueError : `steps` is not 1 or more; requests wait for each other in a circle.
        MemoryError : one step has more accesses than there is memory for.
        """
        if not 1 <= steps <= (1 << 31):
            raise ValueError(f"steps: expected 1 up to 2147483648, found {steps}")
        if self.busy:
            raise RuntimeError("an Expander serves one caller at a time")
        self.busy = True
        try:
            return self._chunk(steps)
        finally:
            self.busy = False

    cdef object _chunk(self, int64_t steps):
        arrival, tokens = np.empty(steps, np.int64), np.empty(steps, np.int64)
        repeat, request = np.empty(steps, np.int64), np.empty(steps, np.int64)
        end, category = np.zeros(steps + 1, np.int64), np.empty(steps, np.int16)
        flops = np.empty((steps, 2))
        self.row_arrival = <tick_t *>_address(arrival)
        self.row_tokens = <int64_t *>_address(tokens)
        self.row_repeat = <int64_t *>_address(repeat)
        self.row_request = <int64_t *>_address(request)
        self.row_end = <int64_t *>_address(end)
        self.row_category = <int16_t *>_address(category)
        self.row_flops = <double *>_address(flops)
        cdef int status = GROW
        while status == GROW:
            with nogil:
                status = self._fill(steps)
            if status == GROW:
                self._grow(self.needed)
        if status == STUCK and self.rows == 0:
            raise ValueError(self._stuck())
        if self.rows == 0:
            return None
        rows, used = self.rows, self.used
        block, op, bytes_ = self.access_columns
        return {
            "arrival_ps": arrival[:rows], "flops": flops[:rows], "tokens": tokens[:rows],
            "category": category[:rows], "repeat": repeat[:rows], "request": request[:rows],
            "offsets": end[:rows + 1], "block": block[:used].copy(), "op": op[:used].copy(),
            "bytes": bytes_[:used].copy(),
        }

    cdef str _stuck(self):
        return f"after: {self.n - self.admitted} requests wait for each other, none can start"

    cdef int _fill(self, int64_t steps) noexcept nogil:
        """Write rows until the chunk is full, all requests are done, or none can go on."""
        cdef int64_t row, repeat, need, k, events, slot
        self.rows = self.used = 0
        while self.rows < steps:
            row = self._next_ready() if self.running_count < self.lanes else -1
            if row < 0 and self.running_count == 0:
                return DONE if self.admitted == self.n else STUCK
            repeat = 1
            if row < 0:
                repeat = LARGEST_TOKENS
                for k in range(self.running_count):
                    slot = self.running[k]
                    events = self.lane_left[slot]
                    if self.lane_written[slot] > 0 and events > 1:
                        events -= 1  # known output is written once: a row of its own
                    if events < repeat:
                        repeat = events
            if not self.counting:
                need = self._room_for(row, repeat)
                if need > self.room - self.used:
                    if self.rows > 0:
                        return FULL
                    self.needed = need
                    return GROW
                self._emit(row, repeat)
            self.rows += 1
            self._advance(row, repeat)
        return FULL

    # -- which request is next ---------------------------------------------------------------------

    cdef int64_t _next_ready(self) noexcept nogil:
        """The first row, in the trace's order, that may be admitted; -1 if there is none."""
        cdef const int64_t *offsets = self.after_offsets
        while self.cursor < self.n and offsets[self.cursor + 1] > offsets[self.cursor]:
            self.cursor += 1  # rows with dependencies come through the heap
        if self.ready_count > 0 and (self.cursor >= self.n or self.ready[0] < self.cursor):
            return self.ready[0]
        return self.cursor if self.cursor < self.n else -1

    cdef void _take(self, int64_t row) noexcept nogil:
        """Remove `row`, which `_next_ready` has just named."""
        cdef int64_t hole = 0
        cdef int64_t child
        cdef int32_t moved
        if row == self.cursor:
            self.cursor += 1
            return
        self.ready_count -= 1
        moved = self.ready[self.ready_count]
        while True:
            child = 2 * hole + 1
            if child >= self.ready_count:
                break
            if child + 1 < self.ready_count and self.ready[child + 1] < self.ready[child]:
                child += 1
            if self.ready[child] >= moved:
                break
            self.ready[hole] = self.ready[child]
            hole = child
        if self.ready_count > 0:
            self.ready[hole] = moved

    cdef void _release(self, int64_t row) noexcept nogil:
        """Row `row` has completed: let go those that waited for it alone."""
        cdef int64_t k, hole, above
        cdef int32_t waiting
        for k in range(self.dependent_offsets[row], self.dependent_offsets[row + 1]):
            waiting = self.dependents[k]
            self.waits[waiting] -= 1
            if self.waits[waiting] > 0:
                continue
            hole = self.ready_count
            self.ready_count += 1
            while hole > 0:
                above = (hole - 1) // 2
                if self.ready[above] <= waiting:
                    break
                self.ready[hole] = self.ready[above]
                hole = above
            self.ready[hole] = waiting

    # -- output blocks: the ancestors of output_block that are not the prompt's --------------------

    cdef int64_t _output_blocks(self, int64_t row, int32_t *into) noexcept nogil:
        """Count a request's own output blocks; write them, front to back, to `into` if given."""
        cdef int32_t block = self.output[row]
        cdef int32_t prompt = self.last[row]
        cdef int64_t count = 0
        cdef int64_t total
        if block < 0:
            return 0
        while block >= 0 and block != prompt:
            if prompt < 0 or self.position[block] >= self.position[prompt]:
                block = self.parent[block]
                count += 1
            else:
                prompt = self.parent[prompt]
        total = count
        if into != NULL:
            block = self.output[row]
            while count > 0:
                count -= 1
                into[count] = block
                block = self.parent[block]
        return total

    # -- one row -----------------------------------------------------------------------------------

    cdef int64_t _room_for(self, int64_t row, int64_t repeat) noexcept nogil:
        """At least as many accesses as the row has: lanes have up to 5, an admission up to 6."""
        cdef int64_t need = self.weights + 5 * self.running_count + 6
        cdef int64_t k
        for k in range(self.running_count):
            if self.lane_left[self.running[k]] == repeat:
                need += self.lane_written[self.running[k]]
        if row >= 0:
            if self.last[row] >= 0:
                need += self.position[self.last[row]] + 1
            need += self.data_offsets[row + 1] - self.data_offsets[row]
            if self.outputs[row] <= 1:
                need += self._output_blocks(row, NULL)
        return need

    cdef inline void _put(self, int32_t block, uint8_t op, int64_t bytes_) noexcept nogil:
        self.block[self.used] = block
        self.op[self.used] = op
        self.bytes[self.used] = bytes_
        self.used += 1

    cdef void _emit(self, int64_t row, int64_t repeat) noexcept nogil:
        cdef int64_t tokens = self.running_count
        cdef int64_t expert_tokens = self.running_count
        cdef double attention = 0.0
        cdef double ffn = 0.0
        cdef int64_t k, slot, context
        cdef int32_t slot_request
        if row >= 0:
            tokens += self.prompt_tokens[row]
            expert_tokens += max(self.inputs[row], 1)
            attention = self.prompt_flops[2 * row]
            ffn = self.prompt_flops[2 * row + 1]
        self._put_weights(expert_tokens)
        if row >= 0:
            self._put_prompt(row)
            self._put_prompt_writes(row)
        for k in range(self.running_count):
            slot = self.running[k]
            slot_request = self.lane_request[slot]
            # contexts c, c+1 … c+repeat-1: their mean, rounded half up
            context = self.lane_context[slot] + repeat // 2
            attention += self.decode_attention + self.attention.get(context - 1)
            ffn += self.decode_ffn
            if self.last[slot_request] >= 0:
                self._put(self.last[slot_request], CONTEXT, _whole(self.kv_read.get(context)))
            else:
                self._put(self.lane_block + <int32_t>slot, READ, _whole(self.kv_read.get(context)))
            if self.lane_state >= 0:
                self._put(self.lane_state + <int32_t>slot, READ, self.state_bytes)
                self._put(self.lane_state + <int32_t>slot, WRITE, self.state_bytes)
            if self.kv_write_bytes > 0 and self.lane_written[slot] == 0:
                self._put(self.lane_block + <int32_t>slot, WRITE, self.kv_write_bytes)
        for k in range(self.running_count):
            slot = self.running[k]
            if self.lane_left[slot] == repeat and self.lane_written[slot] > 0:
                self._put_output(self.lane_request[slot])
        if row >= 0 and self.outputs[row] <= 1:
            self._put_output(row)

        if row >= 0:
            self.latest_ps = self.arrival[row]
            self.latest_category = self.category[row]
        k = self.rows
        self.row_arrival[k] = self.latest_ps
        self.row_flops[2 * k] = attention
        self.row_flops[2 * k + 1] = ffn
        self.row_tokens[k] = tokens
        self.row_category[k] = self.latest_category
        self.row_repeat[k] = repeat
        self.row_request[k] = row if row >= 0 else -1
        self.row_end[k + 1] = self.used

    cdef void _put_prompt(self, int64_t row) noexcept nogil:
        """Look up the data, the checkpoint of the prompt's shared part, the prompt front to back."""
        cdef block_t block = self.last[row]
        cdef int64_t start, k
        for k in range(self.data_offsets[row], self.data_offsets[row + 1]):
            self._put(self.data[k], LOOKUP, -1)
        if self.checkpoint_lookup[row] >= 0:
            self._put(self.checkpoint_lookup[row], LOOKUP, -1)
        start = self.used
        if block >= 0:
            self.used += self.position[block] + 1
        for k in range(self.used - 1, start - 1, -1):
            self.block[k] = block
            self.op[k] = LOOKUP
            self.bytes[k] = -1
            block = self.parent[block]

    cdef void _put_weights(self, int64_t tokens) noexcept nogil:
        cdef int64_t total, k, at, part, rest
        if self.weights == 0:
            return
        memcpy(self.block + self.used, self.weight_block, self.weights * sizeof(block_t))
        memcpy(self.op + self.used, self.weight_op, self.weights * sizeof(uint8_t))
        memcpy(self.bytes + self.used, self.weight_bytes, self.weights * sizeof(bytes_t))
        for k in range(self.sliced):
            at = self.used + self.slice_at[k]
            total = self.slice_most[k]
            if tokens < total // self.slice_bytes[k]:
                total = tokens * self.slice_bytes[k]
            self.bytes[at] = total
        if self.experts > 0:
            total = self.expert_bytes[min(tokens, self.expert_rows - 1)]
            part = total // self.experts
            rest = total % self.experts
            for k in range(self.experts):
                at = self.used + self.expert_at[k]
                self.bytes[at] = part + 1 if k < rest else part
        self.used += self.weights

    cdef void _put_prompt_writes(self, int64_t row) noexcept nogil:
        """What an admission leaves behind: a checkpoint, its lane's state, its private KV."""
        cdef int32_t slot = self.free[self.free_count - 1]
        cdef int64_t private = self.private_tokens[row]
        if self.checkpoint_whole[row] >= 0:
            self._put(self.checkpoint_whole[row], WRITE, -1)
        if self.checkpoint_last[row] >= 0:
            self._put(self.checkpoint_last[row], WRITE, -1)
        if self.lane_state >= 0:
            self._put(self.lane_state + slot, WRITE, self.state_bytes)
        if private > 0 and self.kv_write_bytes > 0:
            self._put(
                self.lane_block + slot, WRITE, _whole(<double>private * <double>self.kv_write_bytes)
            )

    cdef void _put_output(self, int64_t row) noexcept nogil:
        cdef int64_t k
        cdef int64_t count = 0
        if self.output[row] >= 0:
            count = self._output_blocks(row, self.block + self.used)
        for k in range(self.used, self.used + count):
            self.op[k] = WRITE
            self.bytes[k] = -1
        self.used += count
        if count > 0 and self.checkpoint_output[row] >= 0:
            self._put(self.checkpoint_output[row], WRITE, -1)

    cdef void _advance(self, int64_t row, int64_t repeat) noexcept nogil:
        """Let all running requests make `repeat` tokens, admit `row`, complete what is through."""
        cdef int64_t k
        cdef int64_t kept = 0
        cdef int32_t slot
        for k in range(self.running_count):
            slot = self.running[k]
            self.lane_left[slot] -= repeat
            self.lane_context[slot] += repeat
        if row >= 0:
            self._take(row)
            self.admitted += 1
            self.free_count -= 1
            slot = self.free[self.free_count]
            self.lane_request[slot] = <int32_t>row
            self.lane_left[slot] = max(self.outputs[row] - 1, 0)
            self.lane_context[slot] = self.inputs[row] + 1
            self.lane_written[slot] = self._output_blocks(row, NULL)
            self.running[self.running_count] = slot
            self.running_count += 1
        for k in range(self.running_count):
            slot = self.running[k]
            if self.lane_left[slot] > 0:
                self.running[kept] = slot
                kept += 1
            else:
                self.free[self.free_count] = slot
                self.free_count += 1
                self._release(self.lane_request[slot])
        self.running_count = kept
