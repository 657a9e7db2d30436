"""First in, first out: evicts the block that was inserted first; hits change nothing. O(1) an access."""
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport ADMITS_ALL, REFUSE, Policy, evictable, view_t
from kvsim_core._structures cimport grow_array, list_clear, list_push, list_t, list_unlink, node_t
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct fifo_t:
    const view_t *view
    node_t *nodes
    block_t n
    list_t order


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef fifo_t *s = <fifo_t *>state
    if grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0xff) < 0:
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
    list_unlink(&s.order, s.nodes, b)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef fifo_t *s = <fifo_t *>state
    cdef block_t b = s.order.tail
    while b >= 0 and not evictable(s.view, b):
        b = s.nodes[b].prev
    return b if b >= 0 else REFUSE


cdef void reset(void *state) noexcept nogil:
    list_clear(&(<fifo_t *>state).order)


cdef class FIFO(Policy):
    """Evict the block that was inserted first."""
    cdef fifo_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(fifo_t))
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


register("fifo", FIFO)
