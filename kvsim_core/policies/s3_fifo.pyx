"""S3-FIFO (Yang et al., SOSP'23): a small queue filters what is used once, a main queue spares what is used again.

Variant: both queues share the tier's capacity and the small one's target is a tenth of it; a two-bit count, 0 at
insertion;
at the tail of the small queue a count above 1 moves the block to the main queue (count 0), else it goes, and its id
into a
ghost queue of nine tenths of the capacity; at the tail of the main queue a positive count is lowered and the block
spared. A block whose id is in the ghost queue enters the main one. A block that may not be evicted goes round. O(1)
amortised.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport DEMOTE, EVICT, REFUSE, Policy, evictable, fill, view_t
from kvsim_core._structures cimport (
    grow_array, list_clear, list_push, list_t, list_to_head, list_unlink, node_t, prefetch,
)
from kvsim_core._types cimport block_t, bytes_t

from kvsim_core._policy import register

cdef enum:
    NOWHERE = 0
    SMALL = 1
    MAIN = 2
    GHOST = 3


cdef struct s3_t:
    const view_t *view
    node_t *nodes
    uint8_t *where
    uint8_t *count
    block_t n
    list_t small
    list_t main
    list_t ghost
    bytes_t small_bytes
    bytes_t ghost_bytes


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef s3_t *s = <s3_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.where, sizeof(uint8_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.count, sizeof(uint8_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<s3_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    cdef s3_t *s = <s3_t *>state
    if s.count[b] < 3:
        s.count[b] += 1


cdef void leave_ghost(s3_t *s, block_t b) noexcept nogil:
    list_unlink(&s.ghost, s.nodes, b)
    s.ghost_bytes -= s.view.bytes[b]
    s.where[b] = NOWHERE


cdef void to_main(s3_t *s, block_t b) noexcept nogil:
    s.where[b] = MAIN
    s.count[b] = 0
    list_push(&s.main, s.nodes, b)


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef s3_t *s = <s3_t *>state
    if s.where[b] == GHOST:
        leave_ghost(s, b)
        to_main(s, b)
        return
    s.where[b] = SMALL
    s.count[b] = 0
    list_push(&s.small, s.nodes, b)
    s.small_bytes += s.view.bytes[b]


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef s3_t *s = <s3_t *>state
    cdef bint was_small = s.where[b] == SMALL
    if was_small:
        list_unlink(&s.small, s.nodes, b)
        s.small_bytes -= s.view.bytes[b]
    else:
        list_unlink(&s.main, s.nodes, b)
    s.where[b] = NOWHERE
    if was_small and (reason == EVICT or reason == DEMOTE):
        s.where[b] = GHOST
        list_push(&s.ghost, s.nodes, b)
        s.ghost_bytes += s.view.bytes[b]
        while s.ghost_bytes > s.view.capacity - s.view.capacity // 10:
            leave_ghost(s, s.ghost.tail)


cdef block_t scan_small(s3_t *s) noexcept nogil:
    cdef int64_t _turn
    cdef block_t b
    for _turn in range(s.small.size):
        b = s.small.tail
        if not evictable(s.view, b):
            list_to_head(&s.small, s.nodes, b)
        elif s.count[b] > 1:
            list_unlink(&s.small, s.nodes, b)
            s.small_bytes -= s.view.bytes[b]
            to_main(s, b)
        else:
            return b
    return REFUSE


cdef block_t scan_main(s3_t *s) noexcept nogil:
    cdef int64_t _turn
    cdef block_t b
    for _turn in range(4 * <int64_t>s.main.size):
        b = s.main.tail
        if evictable(s.view, b):
            if s.count[b] == 0:
                return b
            s.count[b] -= 1
        list_to_head(&s.main, s.nodes, b)
    return REFUSE


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef s3_t *s = <s3_t *>state
    cdef block_t b
    if s.main.size == 0 or s.small_bytes >= s.view.capacity // 10:
        b = scan_small(s)
        return b if b >= 0 else scan_main(s)
    b = scan_main(s)
    if b >= 0:
        return b
    b = scan_small(s)
    return b if b >= 0 else scan_main(s)


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<s3_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    cdef s3_t *s = <s3_t *>state
    list_clear(&s.small)
    list_clear(&s.main)
    list_clear(&s.ghost)
    s.small_bytes = 0
    s.ghost_bytes = 0
    if s.n:
        memset(s.where, 0, <size_t>s.n)


cdef class S3FIFO(Policy):
    """Evict from a small queue what was used at most once, and from the main queue what was not used again."""
    cdef s3_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(s3_t))
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.hint = hint
        reset(&self.s)

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.where)
        free(self.s.count)


register("s3-fifo", S3FIFO)
