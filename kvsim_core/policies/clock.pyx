"""CLOCK, the second-chance queue (Corbató, 1968): FIFO that spares a block used since the hand last passed.

Variant: one reference bit, clear at insertion; the hand is the tail, and a spared block goes to the head with its bit
cleared. A block that may not be evicted is passed over with its bit kept. O(1) amortised.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport REFUSE, Policy, evictable, fill, view_t
from kvsim_core._structures cimport (
    grow_array, list_clear, list_push, list_t, list_to_head, list_unlink, node_t, prefetch,
)
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct clock_t:
    const view_t *view
    node_t *nodes
    uint8_t *used
    block_t n
    list_t order


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef clock_t *s = <clock_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.used, sizeof(uint8_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<clock_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    (<clock_t *>state).used[b] = 1


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef clock_t *s = <clock_t *>state
    s.used[b] = 0
    list_push(&s.order, s.nodes, b)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef clock_t *s = <clock_t *>state
    list_unlink(&s.order, s.nodes, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef clock_t *s = <clock_t *>state
    cdef block_t b
    cdef int64_t _turn
    for _turn in range(2 * <int64_t>s.order.size):
        b = s.order.tail
        if evictable(s.view, b):
            if not s.used[b]:
                return b
            s.used[b] = 0
        list_to_head(&s.order, s.nodes, b)
    return REFUSE


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<clock_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    list_clear(&(<clock_t *>state).order)


cdef class Clock(Policy):
    """Evict the oldest block that was not used since the hand last passed it."""
    cdef clock_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(clock_t))
        list_clear(&self.s.order)
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.hint = hint

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.used)


register("clock", Clock)
