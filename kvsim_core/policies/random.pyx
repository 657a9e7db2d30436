"""Random replacement: evicts a block drawn evenly from the tier. O(1) an access.

The draw is an index into the tier's blocks (SplitMix64 modulo the number of blocks); a block that may not be evicted
passes it to the next index. The array of blocks is kept dense by moving its last entry into a hole.
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport REFUSE, Policy, evictable, fill, view_t
from kvsim_core._structures cimport grow_array, splitmix64
from kvsim_core._types cimport block_t

from kvsim_core._policy import register


cdef struct random_t:
    const view_t *view
    block_t *blocks
    block_t *place
    block_t n
    block_t size
    uint64_t seed
    uint64_t stream


cdef int grow(void *state, block_t n) noexcept nogil:
    cdef random_t *s = <random_t *>state
    if (grow_array(<void **>&s.blocks, sizeof(block_t), s.n, n, 0) < 0
            or grow_array(<void **>&s.place, sizeof(block_t), s.n, n, 0) < 0):
        return -1
    s.n = max(s.n, n)
    return 0


cdef void attach(void *state, const view_t *view) noexcept nogil:
    (<random_t *>state).view = view


cdef void on_hit(void *state, block_t b) noexcept nogil:
    pass


cdef void on_insert(void *state, block_t b) noexcept nogil:
    cdef random_t *s = <random_t *>state
    s.blocks[s.size] = b
    s.place[b] = s.size
    s.size += 1


cdef void on_remove(void *state, block_t b, int reason) noexcept nogil:
    cdef random_t *s = <random_t *>state
    cdef block_t last
    s.size -= 1
    last = s.blocks[s.size]
    s.blocks[s.place[b]] = last
    s.place[last] = s.place[b]


cdef block_t victim(void *state, block_t incoming) noexcept nogil:
    cdef random_t *s = <random_t *>state
    cdef block_t i, _k
    if s.size == 0:
        return REFUSE
    i = <block_t>(splitmix64(&s.stream) % <uint64_t>s.size)
    for _k in range(s.size):
        if evictable(s.view, s.blocks[i]):
            return s.blocks[i]
        i += 1
        if i == s.size:
            i = 0
    return REFUSE


cdef void reset(void *state) noexcept nogil:
    cdef random_t *s = <random_t *>state
    s.size = 0
    s.stream = s.seed


cdef class Random(Policy):
    """Evict a block drawn evenly from the tier.

    Parameters
    ----------
    seed : int
        Start of the random stream, 0 … 2^64 - 1.
    """
    cdef random_t s

    def __cinit__(self, *, uint64_t seed=0):
        memset(&self.s, 0, sizeof(random_t))
        self.s.seed = seed
        self.s.stream = seed
        fill(&self.c, &self.s, grow, attach, on_hit, on_insert, on_remove, victim, reset)

    def __dealloc__(self):
        free(self.s.blocks)
        free(self.s.place)


register("random", Random)
