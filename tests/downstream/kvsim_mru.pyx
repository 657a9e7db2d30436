"""Most recently used: evicts the block whose last use is newest. O(1) an access."""
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport ADMITS_ALL, REFUSE, Policy, evictable, view_t
from kvsim_core._structures cimport grow_array, list_clear, list_push, list_t, list_to_head, list_unlink, node_t
from kvsim_core._types cimport block_t


cdef struct mru_t:
    const view_t *view
    node_t *nodes
    block_t n
    list_t order


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef mru_t *s = <mru_t *>state
    if grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0xff) < 0:
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<mru_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    list_to_head(&(<mru_t *>state).order, (<mru_t *>state).nodes, b)


cdef void on_insert(void *state, block_t b) noexcept nogil:
    list_push(&(<mru_t *>state).order, (<mru_t *>state).nodes, b)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    list_unlink(&(<mru_t *>state).order, (<mru_t *>state).nodes, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef mru_t *s = <mru_t *>state
    cdef block_t b = s.order.head
    while b >= 0 and not evictable(s.view, b):
        b = s.nodes[b].next
    return b if b >= 0 else REFUSE


cdef void reset(void *state) noexcept nogil:
    list_clear(&(<mru_t *>state).order)


cdef class MRU(Policy):
    """Evict the block whose last use is newest."""
    cdef mru_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(mru_t))
        list_clear(&self.s.order)
        self.c.flags = ADMITS_ALL
        self.c.state = &self.s
        self.c.grow = grow
        self.c.attach = attach
        self.c.on_hit = on_hit
        self.c.on_insert = on_insert
        self.c.on_remove = on_remove
        self.c.victim = victim
        self.c.reset = reset

    def __dealloc__(self):
        free(self.s.nodes)
