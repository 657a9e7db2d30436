"""Intrusive lists, an indexed heap and a random stream: plain structs, usable without the GIL.

Every structure is arrays indexed by dense block id, so nothing hashes and nothing allocates between `grow` calls.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from kvsim_core._types cimport block_t

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define KVSIM_PREFETCH(p) __builtin_prefetch(p)
    #else
    #define KVSIM_PREFETCH(p) ((void)(p))
    #endif
    """
    void prefetch "KVSIM_PREFETCH" (const void *) noexcept nogil

# -- growing arrays -----------------------------------------------------------------------------------

cdef inline int grow_array(void **array, size_t item, block_t old, block_t new, int fill) noexcept nogil:
    """Enlarge `array` from `old` to `new` items whose bytes are `fill`; -1 if memory is short."""
    cdef void *p
    if new <= old:
        return 0
    if array[0] == NULL and fill == 0:
        array[0] = calloc(<size_t>new, item)    # pages that nothing touches take no memory
        return 0 if array[0] != NULL else -1
    p = realloc(array[0], <size_t>new * item)
    if p == NULL:
        return -1
    memset(<char *>p + <size_t>old * item, fill, <size_t>(new - old) * item)
    array[0] = p
    return 0

# -- doubly linked lists over shared nodes --------------------------------------------------------------

cdef struct node_t:
    block_t next      # towards the tail; -1 at the tail
    block_t prev      # towards the head; -1 at the head

cdef struct list_t:
    block_t head      # newest, -1 if empty
    block_t tail      # oldest
    block_t size

cdef inline void list_clear(list_t *q) noexcept nogil:
    q.head = -1
    q.tail = -1
    q.size = 0

cdef inline void list_push(list_t *q, node_t *nodes, block_t b) noexcept nogil:
    """Put `b` at the head."""
    nodes[b].prev = -1
    nodes[b].next = q.head
    if q.head >= 0:
        nodes[q.head].prev = b
    else:
        q.tail = b
    q.head = b
    q.size += 1

cdef inline void list_unlink(list_t *q, node_t *nodes, block_t b) noexcept nogil:
    cdef block_t p = nodes[b].prev
    cdef block_t n = nodes[b].next
    if p >= 0:
        nodes[p].next = n
    else:
        q.head = n
    if n >= 0:
        nodes[n].prev = p
    else:
        q.tail = p
    q.size -= 1

cdef inline void list_to_head(list_t *q, node_t *nodes, block_t b) noexcept nogil:
    if q.head != b:
        list_unlink(q, nodes, b)
        list_push(q, nodes, b)

# -- indexed binary heap, smallest (first, second, block) on top ----------------------------------------

cdef struct heap_t:
    block_t size
    block_t *slots     # the heap: slot -> block
    block_t *place     # block -> slot, -1 if absent
    int64_t *first
    int64_t *second

cdef inline int heap_grow(heap_t *h, block_t old, block_t new) noexcept nogil:
    if (grow_array(<void **>&h.slots, sizeof(block_t), old, new, 0) < 0
            or grow_array(<void **>&h.place, sizeof(block_t), old, new, 0xff) < 0
            or grow_array(<void **>&h.first, sizeof(int64_t), old, new, 0) < 0
            or grow_array(<void **>&h.second, sizeof(int64_t), old, new, 0) < 0):
        return -1
    return 0

cdef inline void heap_free(heap_t *h) noexcept nogil:
    free(h.slots)
    free(h.place)
    free(h.first)
    free(h.second)

cdef inline bint heap_before(const heap_t *h, block_t a, block_t b) noexcept nogil:
    if h.first[a] != h.first[b]:
        return h.first[a] < h.first[b]
    if h.second[a] != h.second[b]:
        return h.second[a] < h.second[b]
    return a < b

cdef inline void heap_up(heap_t *h, block_t i) noexcept nogil:
    cdef block_t b = h.slots[i]
    cdef block_t parent
    while i > 0:
        parent = (i - 1) >> 1
        if not heap_before(h, b, h.slots[parent]):
            break
        h.slots[i] = h.slots[parent]
        h.place[h.slots[i]] = i
        i = parent
    h.slots[i] = b
    h.place[b] = i

cdef inline void heap_down(heap_t *h, block_t i) noexcept nogil:
    cdef block_t b = h.slots[i]
    cdef block_t child
    while True:
        child = 2 * i + 1
        if child >= h.size:
            break
        if child + 1 < h.size and heap_before(h, h.slots[child + 1], h.slots[child]):
            child += 1
        if not heap_before(h, h.slots[child], b):
            break
        h.slots[i] = h.slots[child]
        h.place[h.slots[i]] = i
        i = child
    h.slots[i] = b
    h.place[b] = i

cdef inline void heap_set(heap_t *h, block_t b, int64_t first, int64_t second) noexcept nogil:
    """Insert `b`, or move it to its new keys."""
    cdef block_t i = h.place[b]
    h.first[b] = first
    h.second[b] = second
    if i < 0:
        i = h.size
        h.size += 1
        h.slots[i] = b
        h.place[b] = i
        heap_up(h, i)
    else:
        heap_up(h, i)
        heap_down(h, h.place[b])

cdef inline void heap_remove(heap_t *h, block_t b) noexcept nogil:
    cdef block_t i = h.place[b]
    cdef block_t last
    h.size -= 1
    h.place[b] = -1
    if i != h.size:
        last = h.slots[h.size]
        h.slots[i] = last
        h.place[last] = i
        heap_up(h, i)
        heap_down(h, h.place[last])

# -- SplitMix64 (Steele, Lea & Flood, OOPSLA'14): one multiply-xorshift stream, the same on every platform --------

cdef inline uint64_t splitmix64(uint64_t *state) noexcept nogil:
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)
