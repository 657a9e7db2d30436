"""Belady's optimum (1966), with bypass: evicts the block used last in the future, if later than the newcomer. O(log
n).

Ties go to the deepest block of a prompt. A newcomer that would be the last used, or is as late as the victim, is
refused. Needs the whole trace: the replay loop keeps each block's next look-up in the view.
"""
from libc.stdint cimport int64_t
from libc.string cimport memset

from kvsim_core._policy cimport NEEDS_FUTURE, Policy, fill, heap_drop, heap_return, smallest, view_t
from kvsim_core._structures cimport heap_free, heap_grow, heap_set, heap_t
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct belady_t:
    const view_t *view
    heap_t heap           # first: minus the next use, second: minus the position
    block_t n


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef belady_t *s = <belady_t *>state
    if heap_grow(&s.heap, s.n, n) < 0:
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<belady_t *>state).view = view


cdef void on_use(void *state, block_t b) noexcept nogil:
    cdef belady_t *s = <belady_t *>state
    cdef int64_t depth = s.view.position[b] if s.view.position != NULL else 0
    heap_set(&s.heap, b, -s.view.next_use[b], -depth)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    heap_drop(&(<belady_t *>state).heap, b)


cdef void on_free(void *state, block_t b) noexcept nogil:
    heap_return(&(<belady_t *>state).heap, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef belady_t *s = <belady_t *>state
    return smallest(s.view, &s.heap, -s.view.next_use[incoming])


cdef void reset(void *state) noexcept nogil:
    cdef belady_t *s = <belady_t *>state
    s.heap.size = 0
    if s.n:
        memset(s.heap.place, 0xff, <size_t>s.n * sizeof(block_t))


cdef class Belady(Policy):
    """Evict the block whose next use is farthest, unless the newcomer's is as far."""
    cdef belady_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(belady_t))
        fill(&self.c, &self.s, grow, attach, on_use, on_use, on_remove, victim, reset)
        self.c.on_free = on_free
        self.c.flags = NEEDS_FUTURE

    def __dealloc__(self):
        heap_free(&self.s.heap)


register("belady", Belady)
