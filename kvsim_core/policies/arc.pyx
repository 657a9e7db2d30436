"""ARC (Megiddo & Modha, FAST'03): LRU lists of blocks used once and more, whose balance follows hits on their ghosts.

Variant for sized blocks: lists and the target p are counted in the tier's unit; a miss in a ghost list moves p by the
block's size times the ratio of the ghost lists' sizes (at least 1, whole); the ghosts are trimmed after an insertion
so that once-used blocks and their ghosts fit the capacity, and all four lists twice the capacity. O(1) an access.
"""
from libc.stdint cimport uint8_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport DEMOTE, EVICT, Policy, fill, oldest, view_t
from kvsim_core._structures cimport grow_array, list_clear, list_push, list_t, list_unlink, node_t, prefetch
from kvsim_core._types cimport block_t, bytes_t

from kvsim_core._policy import register

cdef enum:                # the four lists; NONE is a block that ARC does not know
    T1 = 0
    T2 = 1
    B1 = 2
    B2 = 3
    NONE = 4


cdef struct arc_t:
    const view_t *view
    node_t *nodes
    uint8_t *where
    block_t n
    list_t q[4]
    bytes_t size[4]
    bytes_t target        # p: how much of the capacity blocks used once may take


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    if (grow_array(<void **>&s.nodes, sizeof(node_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.where, sizeof(uint8_t), s.n, n, NONE) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<arc_t *>state).view = view


cdef void enter(arc_t *s, block_t b, int to) noexcept nogil:
    list_push(&s.q[to], s.nodes, b)
    s.size[to] += s.view.bytes[b]
    s.where[b] = <uint8_t>to


cdef void leave(arc_t *s, block_t b) noexcept nogil:
    cdef int at = s.where[b]
    list_unlink(&s.q[at], s.nodes, b)
    s.size[at] -= s.view.bytes[b]
    s.where[b] = NONE


cdef void trim(arc_t *s) noexcept nogil:
    cdef bytes_t c = s.view.capacity
    while s.q[B1].size > 0 and s.size[T1] + s.size[B1] > c:
        leave(s, s.q[B1].tail)
    while s.q[B2].size > 0 and s.size[T1] + s.size[B1] + s.size[T2] + s.size[B2] > 2 * c:
        leave(s, s.q[B2].tail)


cdef void on_hit(void *state, block_t b) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    leave(s, b)
    enter(s, b, T2)


cdef void on_miss(void *state, block_t b) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    cdef bytes_t ratio
    if s.where[b] == B1:
        ratio = s.size[B2] // s.size[B1] if s.size[B1] > 0 else 1
        s.target = min(s.view.capacity, s.target + max(<bytes_t>1, ratio) * s.view.bytes[b])
    elif s.where[b] == B2:
        ratio = s.size[B1] // s.size[B2] if s.size[B2] > 0 else 1
        s.target = max(<bytes_t>0, s.target - max(<bytes_t>1, ratio) * s.view.bytes[b])


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    if s.where[b] == B1 or s.where[b] == B2:
        leave(s, b)
        enter(s, b, T2)
    else:
        enter(s, b, T1)
    trim(s)


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    cdef int at = s.where[b]
    leave(s, b)
    if reason == EVICT or reason == DEMOTE:
        enter(s, b, B1 if at == T1 else B2)
        trim(s)


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    cdef int first = T2
    cdef block_t b
    if s.q[T1].size > 0 and (s.size[T1] > s.target or (s.where[incoming] == B2 and s.size[T1] == s.target)):
        first = T1
    b = oldest(s.view, s.nodes, &s.q[first])
    return b if b >= 0 else oldest(s.view, s.nodes, &s.q[T2 if first == T1 else T1])


cdef void hint(void *state, block_t b) noexcept nogil:
    prefetch(&(<arc_t *>state).nodes[b])


cdef void reset(void *state) noexcept nogil:
    cdef arc_t *s = <arc_t *>state
    cdef int at
    for at in range(4):
        list_clear(&s.q[at])
        s.size[at] = 0
    s.target = 0
    if s.n:
        memset(s.where, NONE, <size_t>s.n)


cdef class ARC(Policy):
    """Evict from the blocks used once or those used again, whichever list recent misses say is too large."""
    cdef arc_t s

    def __cinit__(self, *, seed=0):
        memset(&self.s, 0, sizeof(arc_t))
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)
        self.c.hint = hint
        self.c.on_miss = on_miss
        reset(&self.s)

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s.where)


register("arc", ARC)
