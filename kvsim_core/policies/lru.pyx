"""Least recently used: evicts the block whose last use is oldest. O(1) an access.

Within one request of a leaf-only tier, deeper blocks count as older, so the oldest block is a leaf and the scan for
one is short.
"""
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport Policy, fill, oldest_from, search_anew, search_frees, search_leaves, search_t, view_t
from kvsim_core._structures cimport (
    grow_array, list_clear, list_push, list_t, list_to_head, list_unlink, node_t, prefetch,
)
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct lru_t:
    const view_t *view
    node_t *nodes
    block_t n
    list_t order
    search_t search
    block_t touched       # blocks that the request being served put at the head
    block_t *mark         # mark[b] == serial of the request that touched b last
    block_t request


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.search.passed, sizeof(int32_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.mark, sizeof(block_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<lru_t *>state).view = view


cdef void touch(lru_t *s, block_t b) noexcept nogil:
    if s.view.leaf_only and s.mark[b] != s.request:
        s.mark[b] = s.request
        s.touched += 1


cdef void on_hit(void *state, block_t b) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    search_leaves(&s.search, s.nodes, b)
    list_to_head(&s.order, s.nodes, b)
    touch(s, b)


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    list_push(&s.order, s.nodes, b)
    touch(s, b)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    search_leaves(&s.search, s.nodes, b)
    list_unlink(&s.order, s.nodes, b)
    if s.view.leaf_only and s.mark[b] == s.request:
        s.mark[b] = -1
        s.touched -= 1


cdef void on_free(void *state, block_t b) noexcept nogil:
    search_frees(&(<lru_t *>state).search, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    return oldest_from(s.view, s.nodes, &s.order, &s.search)


cdef void on_request_begin(void *state, int64_t request) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    s.touched = 0
    s.request = s.request + 1 if s.request < 0x7ffffff0 else 1


cdef void on_request_end(void *state) noexcept nogil:
    """Turn the run at the head round, so that the deepest block of the request is its oldest."""
    cdef lru_t *s = <lru_t *>state
    cdef block_t _k, b, below
    if s.view.leaf_only:
        b = s.order.head
        for _k in range(s.touched):
            below = s.nodes[b].next
            search_leaves(&s.search, s.nodes, b)
            list_to_head(&s.order, s.nodes, b)
            b = below
        s.touched = 0


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<lru_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    cdef lru_t *s = <lru_t *>state
    list_clear(&s.order)
    search_anew(&s.search)
    s.touched = 0
    s.request = 1
    if s.n:
        memset(s.mark, 0, <size_t>s.n * sizeof(block_t))


cdef class LRU(Policy):
    """Evict the block whose last use is oldest."""
    cdef lru_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(lru_t))
        list_clear(&self.s.order)
        search_anew(&self.s.search)
        self.s.request = 1
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.on_free = on_free
        self.c.hint = hint
        self.c.on_request_begin = on_request_begin
        self.c.on_request_end = on_request_end

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.mark)
        free(self.s.search.passed)


register("lru", LRU)
