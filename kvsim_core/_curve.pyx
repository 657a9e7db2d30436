"""Hits against capacity: one tier, one policy, requests in order, no time.

A request is its last block: its prompt is the chain of ancestors, root first. Rules:

* ``block``: every block by itself is looked up, touched and, if missing, inserted, front to back.
* ``prefix``: the hits are the contiguous run from the start; every block is touched or inserted front to back until
  one cannot be placed. In a leaf-only tier what was found of the request is pinned while it is served, and a block is
  placed only on a resident parent: a request longer than the tier at last takes the place of its own deepest block,
  and ends.
* Known outputs are written after their prompt: inserted, or touched, and never counted.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from kvsim_core._policy cimport (
    EVICT, Policy, acquire, evictable, policy_t, raise_status, release, view_t,
)
from kvsim_core._structures cimport grow_array, prefetch
from kvsim_core._types cimport BAD_VICTIM, OK, POLICY_FAILED, block_t, bytes_t


cdef enum:
    AHEAD = 12                # look-ups from a prefetch to its use


cdef struct run_t:                # one policy at one capacity
    policy_t *policy
    view_t view
    uint8_t *resident
    int32_t *children
    int32_t *pins
    int64_t *next_use
    int32_t pinned            # pins of all blocks
    const bytes_t *size
    bytes_t equal             # the size of every block, -1 if they differ
    const block_t *parent     # NULL: no block has one
    bint rooted               # a block is placed only on a resident parent
    int status


cdef inline bytes_t size_of(const run_t *r, block_t b) noexcept nogil:
    return r.equal if r.equal >= 0 else r.size[b]


cdef inline bint make_room(run_t *r, block_t b) noexcept nogil:
    cdef bytes_t wanted = size_of(r, b)
    cdef block_t v
    if wanted > r.view.capacity:
        return False
    while r.view.used + wanted > r.view.capacity:
        v = r.policy.victim(r.policy.state, b)
        if v < 0:
            return False
        if v >= r.view.n_blocks or not r.resident[v] or not evictable(&r.view, v):
            r.status = BAD_VICTIM
            return False
        r.resident[v] = 0
        r.view.used -= size_of(r, v)
        r.view.resident -= 1
        if r.parent != NULL and r.parent[v] >= 0:
            r.children[r.parent[v]] -= 1
            if (r.view.leaf_only and r.children[r.parent[v]] == 0 and r.resident[r.parent[v]]
                    and r.policy.on_free != NULL):
                r.policy.on_free(r.policy.state, r.parent[v])
        r.policy.on_remove(r.policy.state, v, EVICT)
    return True


cdef inline void add(run_t *r, block_t b) noexcept nogil:
    r.resident[b] = 1
    r.view.used += size_of(r, b)
    r.view.resident += 1
    if r.parent != NULL and r.parent[b] >= 0:
        r.children[r.parent[b]] += 1
    r.policy.on_insert(r.policy.state, b)


cdef inline bint place(run_t *r, block_t b) noexcept nogil:
    if not make_room(r, b):
        return False
    if r.rooted and r.parent != NULL and r.parent[b] >= 0 and not r.resident[r.parent[b]]:
        return False
    add(r, b)
    return True


cdef inline bint insert(run_t *r, block_t b) noexcept nogil:
    if r.policy.on_miss != NULL:
        r.policy.on_miss(r.policy.state, b)
    return place(r, b)


cdef inline int look(run_t *r, block_t b) noexcept nogil:
    """Look b up: 1 a hit, 0 inserted, -1 refused."""
    r.view.serial += 1
    if r.resident[b]:
        r.policy.on_hit(r.policy.state, b)
        return 1
    return 0 if insert(r, b) else -1


def next_uses(const int32_t[::1] last_block, const int32_t[::1] parent, const int32_t[::1] position,
              output_block=None):
    """For every reference the index of the block's next reference, and the same for the blocks that outputs write.

    Parameters
    ----------
    last_block : int32 array, one entry a request
        The last block of its prompt, or -1.
    parent, position : int32 arrays, one entry a block
    output_block : int32 array, one entry a request, optional
        The last block of its known output, or -1.

    Returns
    -------
    pair of memoryviews of int64
        One entry a reference, requests in order and the blocks of each from the last to the root; and one entry an
        output block, in the same order. Indices count references front to back; 2^63 - 1 is never.

    Raises
    ------
    ValueError
        If a block or parent is out of range.
    """
    cdef Py_ssize_t n = last_block.shape[0], m = parent.shape[0], r
    cdef int64_t total = 0, written = 0, first, at, j
    cdef block_t b, length
    cdef int64_t[::1] out, out_written
    cdef const int32_t[::1] outputs
    cdef int64_t *seen
    check_chains(last_block, parent, position)
    outputs = last_block if output_block is None else output_block
    if output_block is not None:
        if outputs.shape[0] != n:
            raise ValueError("the request columns differ in length")
        check_chains(outputs, parent, position)
    for r in range(n):
        if last_block[r] >= 0:
            total += position[last_block[r]] + 1
        if output_block is not None:
            written += beyond(outputs[r], last_block[r], parent, position)
    result = memoryview(bytearray(max(total, 1) * 8)).cast("q")
    result_written = memoryview(bytearray(max(written, 1) * 8)).cast("q")
    out = result
    out_written = result_written
    seen = <int64_t *>malloc(max(m, 1) * sizeof(int64_t))
    if seen == NULL:
        raise MemoryError("not enough memory for the next uses")
    for r in range(m):
        seen[r] = INT64_MAX
    first = total
    at = written
    for r in range(n - 1, -1, -1):
        if output_block is not None:
            b = outputs[r]
            length = beyond(b, last_block[r], parent, position)
            at -= length
            for j in range(length):
                out_written[at + j] = seen[b]
                b = parent[b]
        b = last_block[r]
        if b < 0:
            continue
        first -= position[b] + 1
        j = first                      # stored deepest first, as the loop below walks; indexed front to back
        while b >= 0:
            out[j] = seen[b]
            seen[b] = first + position[b]
            j += 1
            b = parent[b]
    free(seen)
    return result[:total], result_written[:written]


cdef inline int64_t held(int64_t tokens, int64_t prompt, block_t k, int64_t block_tokens) noexcept nogil:
    """What block k of a prompt holds of it: its part of the prompt, or its own tokens where blocks are not equal."""
    if block_tokens <= 0:
        return tokens
    prompt -= k * block_tokens
    return max(<int64_t>0, min(block_tokens, prompt))


cdef block_t beyond(
        block_t output, block_t prompt, const int32_t[::1] parent, const int32_t[::1] position) noexcept nogil:
    """How many blocks the chain of `output` has that the chain of `prompt` has not."""
    cdef block_t count = 0
    if output < 0:
        return 0
    while output >= 0 and (prompt < 0 or position[output] > position[prompt]):
        output = parent[output]
        count += 1
    while output >= 0 and output != prompt:
        if position[output] < position[prompt]:
            prompt = parent[prompt]
        else:
            output = parent[output]
            prompt = parent[prompt]
            count += 1
    return count


cdef int check_chains(const int32_t[::1] last_block, const int32_t[::1] parent, const int32_t[::1] position) except -1:
    cdef Py_ssize_t n = parent.shape[0], b, r
    if position.shape[0] != n:
        raise ValueError("the block columns differ in length")
    for b in range(n):
        if parent[b] < -1 or parent[b] >= b or position[b] != (position[parent[b]] + 1 if parent[b] >= 0 else 0):
            raise ValueError(
                f"block {b}: its parent is {parent[b]} and its position {position[b]}, which do not agree")
    for r in range(last_block.shape[0]):
        if last_block[r] < -1 or last_block[r] >= n:
            raise ValueError(f"request {r}: block {last_block[r]} is not in the table")
    return 0


def curve(const int32_t[::1] last_block, const int64_t[::1] prompt_tokens, const int32_t[::1] parent,
          const int32_t[::1] position, const int64_t[::1] tokens, const int64_t[::1] size, Policy policy not None, *,
          int64_t capacity, int64_t block_tokens=0, bint prefix=False, bint leaf_only=False,
          bint half_block=False, Py_ssize_t measure_from=0, output_block=None, future=None, output_future=None):
    """Count the hits of one policy at one capacity.

    Parameters
    ----------
    last_block : int32 array, one entry a request
        The last block of its prompt, or -1.
    prompt_tokens : int64 array, one entry a request
        All tokens of the prompt; those beyond its blocks are never found.
    parent, position : int32 arrays, one entry a block
    tokens : int64 array, one entry a block
        What a hit is worth besides one block: its tokens (or bytes).
    size : int64 array, one entry a block
        In the unit of `capacity`.
    policy : Policy
        Fresh, or of an earlier call: it is reset.
    capacity : int
        Of the tier.
    block_tokens : int
        Tokens of every full block: a hit is then worth its part of this prompt; 0: what `tokens` says.
    prefix, leaf_only : bool
        The hit rule; whether only leaves may be evicted.
    half_block : bool
        Add half of the first missing block's tokens to the hit tokens (prefix rule).
    measure_from : int
        First request that is counted.
    output_block : int32 array, one entry a request, optional
        The last block of its known output, or -1: written after the prompt, not looked up.
    future, output_future : int64 buffers, optional
        What `next_uses` returned, for policies that read the future.

    Returns
    -------
    tuple of int
        Blocks hit, half-tokens hit (twice the hit tokens, so that half a block is whole), blocks counted, tokens
        counted.

    Raises
    ------
    ValueError
        If lengths differ or a value is out of range.
    """
    cdef Py_ssize_t n = last_block.shape[0], m = parent.shape[0], i, r
    cdef run_t run
    cdef int64_t hit_blocks = 0, hit_halves = 0, all_blocks = 0, all_tokens = 0, at = 0
    cdef const int64_t[::1] uses, uses_written
    cdef const int32_t[::1] outputs
    cdef const int32_t *output = NULL
    cdef const int64_t *use = NULL
    cdef const int64_t *use_written = NULL
    cdef int64_t at_written = 0, written = 0
    cdef block_t *chain = NULL
    cdef block_t *written_chain = NULL
    cdef block_t deepest = 0, b, length, k, own_blocks, pinned = 0
    cdef int64_t base, total = 0
    cdef bint counted, broken, flat = True, single
    cdef int found
    check_chains(last_block, parent, position)
    if tokens.shape[0] != m or size.shape[0] != m or prompt_tokens.shape[0] != n:
        raise ValueError("the columns differ in length")
    if capacity < 0 or capacity > (1 << 62):
        raise ValueError(f"the capacity is {capacity}: expected 0 … 2^62")
    for i in range(m):
        if size[i] < 0 or size[i] > (<int64_t>1 << 50) or tokens[i] < 0:
            raise ValueError(f"block {i}: size {size[i]} or tokens {tokens[i]} are out of range")
        deepest = max(deepest, position[i] + 1)
        flat = flat and parent[i] < 0
    for r in range(n):
        if last_block[r] >= 0:
            total += position[last_block[r]] + 1
    if output_block is not None:
        outputs = output_block
        if outputs.shape[0] != n:
            raise ValueError("the columns differ in length")
        check_chains(outputs, parent, position)
        if n:
            output = &outputs[0]
            for r in range(n):
                written += beyond(output[r], last_block[r], parent, position)
                if output[r] >= 0:
                    deepest = max(deepest, position[output[r]] + 1)
    single = flat and output_block is None and not (prefix and leaf_only) and total == n
    memset(&run, 0, sizeof(run_t))
    run.equal = size[0] if m else -1
    for i in range(m):
        if size[i] != run.equal:
            run.equal = -1
            break
    if future is not None:
        uses = future
        if uses.shape[0] != total:
            raise ValueError("the next uses do not match the requests")
        if total:
            use = &uses[0]
        if written:
            uses_written = output_future
            if uses_written.shape[0] != written:
                raise ValueError("the next uses do not match the outputs")
            use_written = &uses_written[0]
    elif policy.needs_future:
        raise ValueError("the policy needs the future: give next_uses()")
    run.policy = acquire(policy)
    try:
        if ((run.policy.grow != NULL and run.policy.grow(run.policy.state, <block_t>m) < 0)
                or grow_array(<void **>&run.resident, 1, 0, <block_t>m + 1, 0) < 0
                or grow_array(<void **>&run.children, sizeof(int32_t), 0, <block_t>m + 1, 0) < 0
                or grow_array(<void **>&run.pins, sizeof(int32_t), 0, <block_t>m + 1, 0) < 0
                or grow_array(<void **>&run.next_use, sizeof(int64_t), 0, <block_t>m + 1, 0x7f) < 0
                or grow_array(<void **>&chain, sizeof(block_t), 0, deepest + 1, 0) < 0
                or grow_array(<void **>&written_chain, sizeof(block_t), 0, deepest + 1, 0) < 0):
            raise MemoryError("not enough memory for the per-block arrays")
        run.view.struct_size = sizeof(view_t)
        run.view.leaf_only = leaf_only
        run.rooted = prefix and leaf_only
        run.view.n_blocks = <block_t>m
        run.view.capacity = capacity
        if m:
            run.size = &size[0]
            run.parent = &parent[0] if not flat else NULL
            run.view.position = &position[0]
            run.view.parent = &parent[0]
        run.view.bytes = run.size
        run.view.children = run.children
        run.view.next_use = run.next_use
        run.view.pins = run.pins
        run.view.pinned = &run.pinned
        if run.policy.attach != NULL:
            run.policy.attach(run.policy.state, &run.view)
        with nogil:
            # Prompts of one block each, an access trace: nothing to walk, so what lies ahead can be fetched.
            for r in range(n if single else 0):
                if r + AHEAD < n:
                    b = last_block[r + AHEAD]
                    prefetch(&run.resident[b])
                    if run.policy.hint != NULL:
                        run.policy.hint(run.policy.state, b)
                b = last_block[r]
                if use != NULL:
                    run.next_use[b] = use[r]
                if run.policy.on_request_begin != NULL:
                    run.policy.on_request_begin(run.policy.state, r)
                found = look(&run, b)
                if run.policy.on_request_end != NULL:
                    run.policy.on_request_end(run.policy.state)
                if r >= measure_from:
                    all_tokens += prompt_tokens[r]
                    all_blocks += 1
                    if found > 0:
                        hit_blocks += 1
                        hit_halves += 2 * held(tokens[b], prompt_tokens[r], 0, block_tokens)
                    elif half_block:
                        hit_halves += held(tokens[b], prompt_tokens[r], 0, block_tokens)
                if run.policy.failed:
                    run.status = POLICY_FAILED
                if run.status != OK:
                    break
            for r in range(0 if single else n):
                b = last_block[r]
                counted = r >= measure_from
                if counted:
                    all_tokens += prompt_tokens[r]
                length = position[b] + 1 if b >= 0 else 0
                base = at
                for k in range(length - 1, -1, -1):
                    chain[k] = b
                    b = parent[b]
                at += length
                if counted:
                    all_blocks += length
                if run.policy.on_request_begin != NULL:
                    run.policy.on_request_begin(run.policy.state, r)
                if prefix and leaf_only:
                    pinned = 0
                    while pinned < length and run.resident[chain[pinned]]:
                        run.pins[chain[pinned]] += 1
                        pinned += 1
                    run.pinned += pinned
                broken = False
                for k in range(length):
                    b = chain[k]
                    if use != NULL:
                        run.next_use[b] = use[base + length - 1 - k]
                    found = look(&run, b)
                    if found > 0:
                        if counted and not (prefix and broken):
                            hit_blocks += 1
                            hit_halves += 2 * held(tokens[b], prompt_tokens[r], k, block_tokens)
                        continue
                    if half_block and not broken and counted:
                        hit_halves += held(tokens[b], prompt_tokens[r], k, block_tokens)
                    broken = True
                    if found < 0 and prefix:
                        break
                if output != NULL and output[r] >= 0:
                    own_blocks = beyond(output[r], last_block[r], parent, position)
                    b = output[r]
                    for k in range(own_blocks - 1, -1, -1):
                        written_chain[k] = b
                        b = parent[b]
                    for k in range(own_blocks):
                        b = written_chain[k]
                        if use_written != NULL:
                            run.next_use[b] = use_written[at_written + own_blocks - 1 - k]
                        if run.resident[b]:
                            run.policy.on_hit(run.policy.state, b)
                        elif not place(&run, b) and run.rooted:
                            break
                    at_written += own_blocks
                if prefix and leaf_only:
                    for k in range(pinned):
                        run.pins[chain[k]] -= 1
                        if run.pins[chain[k]] == 0 and run.resident[chain[k]] and run.policy.on_free != NULL:
                            run.policy.on_free(run.policy.state, chain[k])
                    run.pinned -= pinned
                if run.policy.on_request_end != NULL:
                    run.policy.on_request_end(run.policy.state)
                if run.policy.failed:
                    run.status = POLICY_FAILED
                if run.status != OK:
                    break
        raise_status(run.status, [policy])
    finally:
        free(run.resident)
        free(run.children)
        free(run.pins)
        free(run.next_use)
        free(chain)
        free(written_chain)
        release(policy)
    return hit_blocks, hit_halves, all_blocks, all_tokens
