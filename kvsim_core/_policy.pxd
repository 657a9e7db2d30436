"""The slot: the C struct that every tier policy fills, and the read-only view it decides from.

A policy only answers *which block goes?* Capacity, pins, leaf-only eviction, movement and books belong to the store.
Order of calls for one tier: `grow` (before any block with a new id), `attach` once, then any of the hooks;
`on_request_begin`/`on_request_end` bracket the look-ups of one request.
"""
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t

from kvsim_core._structures cimport heap_remove, heap_set, heap_t, list_t, node_t
from kvsim_core._types cimport block_t, bytes_t, tick_t

cdef enum:
    POLICY_VERSION = 1
    REFUSE = -1              # victim(): nothing may go, or the newcomer is not worth a place

cdef enum policy_flags_t:
    ADMITS_ALL = 1           # never refuses while something may be evicted
    NEEDS_FUTURE = 2         # reads view.next_use: the trace must be known to its end
    NEEDS_PARENTS = 4        # reads view.parent or view.children

cdef enum reason_t:          # why a block leaves a tier
    EVICT = 0
    DEMOTE = 1               # evicted, and written to the tier below
    FREED = 2                # its owner gave it up
    PROMOTE = 3              # moved up and, by an exclusive rule, gone from here

cdef struct view_t:          # what a policy may read; pointers may be NULL where the trace has no such column
    uint32_t struct_size
    int32_t leaf_only        # 1: only blocks without a child in this tier may be evicted
    block_t n_blocks         # ids in use
    block_t resident         # blocks in this tier
    bytes_t capacity         # of this tier, less what permanently lives in it
    bytes_t used
    tick_t now
    int64_t serial           # look-ups so far
    const bytes_t *bytes
    const int8_t *kind
    const block_t *parent
    const int32_t *children  # with a copy in this tier
    const int32_t *position  # in the prompt
    const int32_t *tokens
    const int64_t *next_use  # index of the next look-up; INT64_MAX: never
    const int32_t *session
    const int32_t *priority
    const int32_t *pins
    const int32_t *pinned    # one number: pins of all blocks together; while it is 0 none need be looked at

ctypedef int (*grow_fn)(void *state, block_t n_blocks) noexcept nogil
ctypedef void (*attach_fn)(void *state, const view_t *view) noexcept nogil
ctypedef void (*block_fn)(void *state, block_t b) noexcept nogil
ctypedef void (*remove_fn)(void *state, block_t b, int reason) noexcept nogil
ctypedef block_t (*victim_fn)(void *state, block_t incoming) noexcept nogil
ctypedef void (*request_fn)(void *state, int64_t request) noexcept nogil
ctypedef void (*plain_fn)(void *state) noexcept nogil

cdef struct policy_t:
    uint32_t struct_size
    uint32_t flags
    void *state
    grow_fn grow             # room for ids 0 … n_blocks - 1; -1 if memory is short. May be NULL
    attach_fn attach         # the view this policy decides from, valid while it is attached
    block_fn on_hit          # b, resident here, was looked up (or written) here
    block_fn on_miss         # b was looked up and is not here: for ghosts. May be NULL
    block_fn on_insert       # b now has a copy here
    remove_fn on_remove      # b no longer has
    victim_fn victim         # a resident, evictable block, or REFUSE
    request_fn on_request_begin   # may be NULL
    plain_fn on_request_end       # may be NULL
    plain_fn reset           # forget all; the tier is empty
    block_fn on_free         # b, resident here, lost its last pin or, in a leaf-only tier, its last child. May be NULL
    block_fn hint            # b will be used soon: prefetch its node. For speed only; may be NULL
    int failed               # set by an adapter whose hook raised

cdef inline bint evictable(const view_t *view, block_t b) noexcept nogil:
    """Whether the store lets `b` go: not pinned and, in a leaf-only tier, without a child here."""
    return (view.pinned[0] == 0 or view.pins[b] == 0) and (not view.leaf_only or view.children[b] == 0)

# -- what most policies share ---------------------------------------------------------------------------------

cdef inline block_t oldest(const view_t *view, const node_t *nodes, const list_t *queue) noexcept nogil:
    """The block nearest to the tail that may go, or REFUSE."""
    cdef block_t b = queue.tail
    while b >= 0 and not evictable(view, b):
        b = nodes[b].prev
    return b if b >= 0 else REFUSE

cdef struct search_t:        # of oldest_from(): how far it came; what lies behind cannot go
    block_t at               # the last block passed, -1: none
    int32_t round            # of searches that began at the tail
    int32_t *passed          # the round that passed each block

cdef inline void search_anew(search_t *search) noexcept nogil:
    search.at = -1
    search.round = search.round + 1 if search.round < 0x7ffffff0 else 1

cdef inline void search_leaves(search_t *search, const node_t *nodes, block_t b) noexcept nogil:
    """Tell the search that b is about to leave its place."""
    search.passed[b] = 0
    if search.at == b:
        search.at = nodes[b].next

cdef inline void search_frees(search_t *search, block_t b) noexcept nogil:
    """Tell the search that b may go again."""
    if search.passed[b] == search.round:
        search_anew(search)

cdef inline block_t oldest_from(
        const view_t *view, const node_t *nodes, const list_t *queue, search_t *search) noexcept nogil:
    """As oldest(), from where the last search ended, so that long-lived pins are not passed again for each victim."""
    cdef block_t b = queue.tail if search.at < 0 else nodes[search.at].prev
    while b >= 0 and not evictable(view, b):
        search.at = b
        search.passed[b] = search.round
        b = nodes[b].prev
    return b if b >= 0 else REFUSE

cdef enum:
    ASIDE = -2               # a block's place in the heap while it is set aside

cdef inline block_t smallest(const view_t *view, heap_t *heap, int64_t limit) noexcept nogil:
    """The block of the smallest key below `limit` that may go, or REFUSE; those that may not are set aside."""
    cdef block_t b
    while heap.size > 0:
        b = heap.slots[0]
        if heap.first[b] >= limit:
            break
        if evictable(view, b):
            return b
        heap_remove(heap, b)
        heap.place[b] = ASIDE
    return REFUSE

cdef inline void heap_return(heap_t *heap, block_t b) noexcept nogil:
    """Take b back if it was set aside: it may go again."""
    if heap.place[b] == ASIDE:
        heap_set(heap, b, heap.first[b], heap.second[b])

cdef inline void heap_drop(heap_t *heap, block_t b) noexcept nogil:
    """Take b out, set aside or not."""
    if heap.place[b] == ASIDE:
        heap.place[b] = -1
    else:
        heap_remove(heap, b)

cdef inline void fill(policy_t *slot, void *state, grow_fn grow, attach_fn attach, block_fn on_hit, block_fn on_insert,
                      remove_fn on_remove, victim_fn victim, plain_fn reset) noexcept:
    """Fill the hooks that every policy has, for one that never refuses; the rest is set by name."""
    slot.flags = ADMITS_ALL
    slot.state = state
    slot.grow = grow
    slot.attach = attach
    slot.on_hit = on_hit
    slot.on_insert = on_insert
    slot.on_remove = on_remove
    slot.victim = victim
    slot.reset = reset

cdef class Policy:
    """Owner of one filled slot. A subclass sets the members of `c` in `__cinit__`."""
    cdef policy_t c
    cdef bint attached       # a slot serves one tier; the loop that uses it sets and clears this
    cdef object __weakref__

cdef policy_t *acquire(Policy policy) except NULL
cdef void release(Policy policy) noexcept
cdef int raise_status(int status, list policies) except -1
