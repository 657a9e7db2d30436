"""SIEVE (Zhang et al., NSDI'24): a queue whose hand evicts the first block not used since it last passed.

New blocks go to the head; the hand moves from the tail towards the head and survivors keep their place. A block that
may not be evicted is passed over with its bit kept. O(1) amortised.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport REFUSE, Policy, evictable, fill, view_t
from kvsim_core._structures cimport grow_array, list_clear, list_push, list_t, list_unlink, node_t, prefetch
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct sieve_t:
    const view_t *view
    node_t *nodes
    uint8_t *used
    block_t n
    list_t order
    block_t hand          # -1: start from the tail


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef sieve_t *s = <sieve_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.used, sizeof(uint8_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<sieve_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    (<sieve_t *>state).used[b] = 1


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef sieve_t *s = <sieve_t *>state
    s.used[b] = 0
    list_push(&s.order, s.nodes, b)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef sieve_t *s = <sieve_t *>state
    if s.hand == b:
        s.hand = s.nodes[b].prev
    list_unlink(&s.order, s.nodes, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef sieve_t *s = <sieve_t *>state
    cdef block_t b = s.hand
    cdef int64_t _turn
    for _turn in range(2 * <int64_t>s.order.size):
        if b < 0:
            b = s.order.tail
        if evictable(s.view, b):
            if not s.used[b]:
                s.hand = b
                return b
            s.used[b] = 0
        b = s.nodes[b].prev
    s.hand = b
    return REFUSE


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<sieve_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    cdef sieve_t *s = <sieve_t *>state
    list_clear(&s.order)
    s.hand = -1


cdef class Sieve(Policy):
    """Evict the first block from the hand on that was not used since the hand last passed it."""
    cdef sieve_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(sieve_t))
        list_clear(&self.s.order)
        self.s.hand = -1
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.hint = hint

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.used)


register("sieve", Sieve)
