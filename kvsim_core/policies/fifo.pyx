"""First in, first out: evicts the block that was inserted first; hits change nothing. O(1) an access."""
from libc.stdint cimport int32_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport Policy, fill, oldest_from, search_anew, search_frees, search_leaves, search_t, view_t
from kvsim_core._structures cimport grow_array, list_clear, list_push, list_t, list_unlink, node_t, prefetch
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct fifo_t:
    const view_t *view
    node_t *nodes
    block_t n
    list_t order
    search_t search


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef fifo_t *s = <fifo_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.search.passed, sizeof(int32_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<fifo_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    pass


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef fifo_t *s = <fifo_t *>state
    list_push(&s.order, s.nodes, b)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef fifo_t *s = <fifo_t *>state
    search_leaves(&s.search, s.nodes, b)
    list_unlink(&s.order, s.nodes, b)


cdef void on_free(void *state, block_t b) noexcept nogil:
    search_frees(&(<fifo_t *>state).search, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef fifo_t *s = <fifo_t *>state
    return oldest_from(s.view, s.nodes, &s.order, &s.search)


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<fifo_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    list_clear(&(<fifo_t *>state).order)
    search_anew(&(<fifo_t *>state).search)


cdef class FIFO(Policy):
    """Evict the block that was inserted first."""
    cdef fifo_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(fifo_t))
        list_clear(&self.s.order)
        search_anew(&self.s.search)
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.on_free = on_free
        self.c.hint = hint

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.search.passed)


register("fifo", FIFO)
