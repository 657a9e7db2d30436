"""Segmented LRU (Karedla, Love & Wherry, 1994): new blocks are on probation, a hit promotes to a protected segment.

Variant: two segments; the protected one holds at most four fifths of the capacity and its oldest fall back to the
head of probation; victims come from probation, oldest first, then from the protected segment. O(1) an access.
"""
from libc.stdint cimport uint8_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport Policy, fill, oldest, view_t
from kvsim_core._structures cimport (
    grow_array, list_clear, list_push, list_t, list_to_head, list_unlink, node_t, prefetch,
)
from kvsim_core._types cimport block_t, bytes_t

from kvsim_core._policy import register


cdef struct slru_t:
    const view_t *view
    node_t *nodes
    uint8_t *is_protected
    block_t n
    list_t probation
    list_t protected
    bytes_t protected_bytes


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef slru_t *s = <slru_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.is_protected, sizeof(uint8_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<slru_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    cdef slru_t *s = <slru_t *>state
    cdef block_t old
    if s.is_protected[b]:
        list_to_head(&s.protected, s.nodes, b)
    else:
        list_unlink(&s.probation, s.nodes, b)
        list_push(&s.protected, s.nodes, b)
        s.is_protected[b] = 1
        s.protected_bytes += s.view.bytes[b]
    # also where b was there already: a closed loop claims room, and the limit falls with it
    while s.protected_bytes > s.view.capacity - s.view.capacity // 5:
        old = s.protected.tail
        list_unlink(&s.protected, s.nodes, old)
        list_push(&s.probation, s.nodes, old)
        s.is_protected[old] = 0
        s.protected_bytes -= s.view.bytes[old]


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef slru_t *s = <slru_t *>state
    s.is_protected[b] = 0
    list_push(&s.probation, s.nodes, b)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef slru_t *s = <slru_t *>state
    if s.is_protected[b]:
        list_unlink(&s.protected, s.nodes, b)
        s.protected_bytes -= s.view.bytes[b]
    else:
        list_unlink(&s.probation, s.nodes, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef slru_t *s = <slru_t *>state
    cdef block_t b = oldest(s.view, s.nodes, &s.probation)
    return b if b >= 0 else oldest(s.view, s.nodes, &s.protected)


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<slru_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    cdef slru_t *s = <slru_t *>state
    list_clear(&s.probation)
    list_clear(&s.protected)
    s.protected_bytes = 0


cdef class SLRU(Policy):
    """Evict the least recently used block that was not used again, then the least recently used."""
    cdef slru_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(slru_t))
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.hint = hint
        reset(&self.s)

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.is_protected)


register("slru", SLRU)
