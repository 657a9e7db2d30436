"""Least frequently used: evicts the block used least often since it came; ties go to the least recent use. O(log
n)."""
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memset

from kvsim_core._policy cimport Policy, fill, heap_drop, heap_return, smallest, view_t
from kvsim_core._structures cimport heap_free, heap_grow, heap_set, heap_t
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct lfu_t:
    const view_t *view
    heap_t heap           # first: uses, second: time of the last
    block_t n
    int64_t now


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef lfu_t *s = <lfu_t *>state
    if heap_grow(&s.heap, s.n, n) < 0:
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<lfu_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    cdef lfu_t *s = <lfu_t *>state
    s.now += 1
    heap_set(&s.heap, b, s.heap.first[b] + 1, s.now)


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef lfu_t *s = <lfu_t *>state
    s.now += 1
    heap_set(&s.heap, b, 1, s.now)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    heap_drop(&(<lfu_t *>state).heap, b)


cdef void on_free(void *state, block_t b) noexcept nogil:
    heap_return(&(<lfu_t *>state).heap, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef lfu_t *s = <lfu_t *>state
    return smallest(s.view, &s.heap, INT64_MAX)


cdef void reset(void *state) noexcept nogil:
    cdef lfu_t *s = <lfu_t *>state
    s.heap.size = 0
    s.now = 0
    if s.n:
        memset(s.heap.place, 0xff, <size_t>s.n * sizeof(block_t))


cdef class LFU(Policy):
    """Evict the block used least often since it came."""
    cdef lfu_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(lfu_t))
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.on_free = on_free

    def __dealloc__(self):
        heap_free(&self.s.heap)


register("lfu", LFU)
