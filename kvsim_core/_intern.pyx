"""Block ids to dense ids: tries of chained blocks, flat access traces, and what a trie is asked afterwards.

A block is its parent and its own id, so equal ids after different prefixes are different blocks. Dense ids are
given in order of first appearance: a parent's id is below its child's, and what a row adds is one run of ids.
Everything that memory safety needs is checked (and, where another thread could change it, copied) before a loop
without the GIL begins.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

import numpy as np

from kvsim_core._types cimport block_t

__all__ = ["ancestors_at", "depths", "expand_chains", "find_cycle", "intern_chains", "intern_ids", "renumber_chains"]

cdef enum:  # how a loop ended
    DONE = 0
    NO_MEMORY = 1
    TOO_MANY = 2

LARGEST_BLOCKS = 2**31 - 2
"""The most blocks one trace may name: dense ids are int32 and -1 means none."""


cdef struct Trie:
    int64_t size          # blocks so far
    int64_t room          # blocks that the columns have room for
    int64_t limit
    uint64_t mask         # slots - 1, slots a power of two
    block_t *slots        # dense id + 1, 0 for an empty slot
    block_t *parent
    block_t *recent       # the child that was last asked for: most chains repeat the one before
    int32_t *first_row
    int32_t *space        # namespace of the root of the chain
    int64_t *id


cdef inline uint64_t _mix(uint64_t a, uint64_t b) noexcept nogil:
    """Return a well spread hash of two words (the finaliser of SplitMix64 over their combination)."""
    cdef uint64_t x = a + b * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t _key(int64_t parent, int32_t space) noexcept nogil:
    """Return what tells one chain's end from another: the parent, or below zero the namespace of a root."""
    if parent >= 0:
        return <uint64_t>parent
    return <uint64_t>(-1 - <int64_t>space)


cdef int _start(Trie *t, int64_t limit) noexcept nogil:
    memset(t, 0, sizeof(Trie))
    t.limit = limit
    t.mask = 1023
    t.slots = <block_t *>calloc(1024, sizeof(block_t))
    if t.slots == NULL:
        return NO_MEMORY
    return _make_room(t, 512)


cdef void _stop(Trie *t) noexcept nogil:
    free(t.slots)
    free(t.parent)
    free(t.recent)
    free(t.first_row)
    free(t.space)
    free(t.id)


cdef int _make_room(Trie *t, int64_t room) noexcept nogil:
    cdef void *p
    p = realloc(t.parent, <size_t>room * sizeof(block_t))
    if p == NULL:
        return NO_MEMORY
    t.parent = <block_t *>p
    p = realloc(t.recent, <size_t>room * sizeof(block_t))
    if p == NULL:
        return NO_MEMORY
    t.recent = <block_t *>p
    p = realloc(t.first_row, <size_t>room * sizeof(int32_t))
    if p == NULL:
        return NO_MEMORY
    t.first_row = <int32_t *>p
    p = realloc(t.space, <size_t>room * sizeof(int32_t))
    if p == NULL:
        return NO_MEMORY
    t.space = <int32_t *>p
    p = realloc(t.id, <size_t>room * sizeof(int64_t))
    if p == NULL:
        return NO_MEMORY
    t.id = <int64_t *>p
    t.room = room
    return DONE


cdef int _grow(Trie *t) noexcept nogil:
    """Double the columns and the table (which stays at most half full)."""
    cdef int64_t b
    cdef uint64_t mask = t.mask * 2 + 1, i
    cdef block_t *slots
    if _make_room(t, t.room * 2) != DONE:
        return NO_MEMORY
    slots = <block_t *>calloc(<size_t>mask + 1, sizeof(block_t))
    if slots == NULL:
        return NO_MEMORY
    for b in range(t.size):
        i = _mix(<uint64_t>t.id[b], _key(t.parent[b], t.space[b])) & mask
        while slots[i]:
            i = (i + 1) & mask
        slots[i] = <block_t>(b + 1)
    free(t.slots)
    t.slots = slots
    t.mask = mask
    return DONE


cdef int _intern(Trie *t, const int64_t[::1] ids, const int64_t[::1] offsets, const int32_t[::1] spaces,
                 int32_t[::1] last) noexcept nogil:
    cdef int64_t n = spaces.shape[0], row, k, id, b, parent
    cdef uint64_t i
    cdef int32_t space
    cdef int status
    for row in range(n):
        parent = -1
        space = spaces[row]
        for k in range(offsets[row], offsets[row + 1]):
            id = ids[k]
            if parent >= 0:
                b = t.recent[parent]
                if b >= 0 and t.id[b] == id:
                    parent = b
                    continue
            i = _mix(<uint64_t>id, _key(parent, space)) & t.mask
            while True:
                b = <int64_t>t.slots[i] - 1
                if b < 0:
                    break
                if t.id[b] == id and t.parent[b] == parent and (parent >= 0 or t.space[b] == space):
                    break
                i = (i + 1) & t.mask
            if b < 0:
                if t.size >= t.limit:
                    return TOO_MANY
                b = t.size
                t.slots[i] = <block_t>(b + 1)
                t.id[b] = id
                t.parent[b] = <block_t>parent
                t.recent[b] = -1
                t.first_row[b] = <int32_t>row
                t.space[b] = space
                t.size += 1
                if t.size == t.room:
                    status = _grow(t)
                    if status != DONE:
                        return status
            if parent >= 0:
                t.recent[parent] = <block_t>b
            parent = b
        last[row] = <int32_t>parent
    return DONE


cdef _raise(int status, str what, limit):
    if status == NO_MEMORY:
        raise MemoryError(f"{what}: not enough memory")
    if status == TOO_MANY:
        raise ValueError(f"{what}: found more than {limit} different blocks, expected at most that many")


def _column(values, dtype, str name, *, copy=False, rows=False):
    """Return `values` as a contiguous column of whole numbers, or say in a ValueError what is wrong with it.

    With `rows` there may be no more of them than an int32 can number.
    """
    given = np.asarray(values)
    if given.ndim != 1:
        raise ValueError(f"{name}: found {given.ndim} dimensions, expected one")
    if rows and given.shape[0] > LARGEST_BLOCKS:  # before anything is copied
        raise ValueError(f"{name}: found {given.shape[0]} rows, expected at most {LARGEST_BLOCKS}")
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"{name}: found {given.dtype}, expected integers")
    if given.size and not np.can_cast(given.dtype, dtype):
        limits = np.iinfo(dtype)
        low, high = int(given.min()), int(given.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"{name}: found {low}..{high}, expected whole numbers within {np.dtype(dtype)}")
    if copy:
        return np.array(given, dtype=dtype, order="C")
    return np.ascontiguousarray(given, dtype=dtype)


def _offsets(values, rows, total):
    """Return a copy of `values` once it is sure to cut `total` numbers into `rows` runs."""
    offsets = _column(values, np.int64, "offsets", copy=True)
    if offsets.shape[0] != rows + 1:
        raise ValueError(f"offsets: found {offsets.shape[0]} numbers, expected {rows + 1}, one more than rows")
    if offsets[0] != 0 or offsets[rows] != total:
        raise ValueError(f"offsets: found {offsets[0]} to {offsets[rows]}, expected 0 to {total}")
    if rows and (np.diff(offsets) < 0).any():
        raise ValueError("offsets: found a number below the one before it, expected none")
    return offsets


def intern_chains(ids, offsets, namespace, *, limit=LARGEST_BLOCKS):
    """Give every distinct chained block a dense id, in order of first appearance.

    Parameters
    ----------
    ids : i64[R], the original ids of all rows, row after row, each row from the start of its chain.
    offsets : i64[n + 1], where each row begins in `ids`.
    namespace : i32[n], rows of different namespaces share no block.
    limit : the most blocks there may be.

    Returns
    -------
    last_block : i32[n], the end of each row's chain, -1 for an empty row.
    parent : i32[B], -1 for the first block of a chain.
    position : i32[B], how many blocks stand before it.
    first_row : i32[B], the row that named it first.
    original : i64[B], its id as given.
    namespace : i32[B].

    Raises
    ------
    ValueError
        Columns of the wrong type, shape or order, or more than `limit` blocks.
    MemoryError
    """
    ids = _column(ids, np.int64, "ids")
    spaces = _column(namespace, np.int32, "namespace", copy=True, rows=True)
    offsets = _offsets(offsets, spaces.shape[0], ids.shape[0])
    if not 0 <= limit <= LARGEST_BLOCKS:
        raise ValueError(f"limit: found {limit}, expected 0 to {LARGEST_BLOCKS}")
    last = np.empty(spaces.shape[0], np.int32)
    cdef const int64_t[::1] ids_view = ids, offsets_view = offsets
    cdef const int32_t[::1] spaces_view = spaces
    cdef int32_t[::1] last_view = last
    cdef int64_t most = limit
    cdef Trie t
    cdef int status
    with nogil:
        status = _start(&t, most)
        if status == DONE:
            status = _intern(&t, ids_view, offsets_view, spaces_view, last_view)
    try:
        _raise(status, "block ids", limit)
        parent = np.empty(t.size, np.int32)
        first_row = np.empty(t.size, np.int32)
        space = np.empty(t.size, np.int32)
        original = np.empty(t.size, np.int64)
        _copy(parent, t.parent, t.size * sizeof(block_t))
        _copy(first_row, t.first_row, t.size * sizeof(int32_t))
        _copy(space, t.space, t.size * sizeof(int32_t))
        _copy(original, t.id, t.size * sizeof(int64_t))
    finally:
        _stop(&t)
    return last, parent, _positions(parent), first_row, original, space


cdef _copy(array, const void *source, size_t size):
    cdef size_t address = array.__array_interface__["data"][0]
    if size:
        memcpy(<void *>address, source, size)


def depths(parent):
    """Return how many blocks stand before each in its chain.

    Parameters
    ----------
    parent : i32[B], -1 for the first of a chain, else an earlier block.

    Returns
    -------
    i32[B].

    Raises
    ------
    ValueError
        A parent that is not an earlier block.
    """
    parent = _column(parent, np.int32, "parent", copy=True, rows=True)
    wrong = np.flatnonzero((parent < -1) | (parent >= np.arange(parent.shape[0])))
    if wrong.size:
        raise ValueError(f"parent: found {parent[wrong[0]]} for block {wrong[0]}, expected an earlier block or -1")
    return _positions(parent)


cdef _positions(parent):
    position = np.empty(parent.shape[0], np.int32)
    cdef const int32_t[::1] up = parent
    cdef int32_t[::1] out = position
    cdef int64_t b
    with nogil:
        for b in range(up.shape[0]):
            out[b] = 0 if up[b] < 0 else out[up[b]] + 1
    return position


def intern_ids(ids):
    """Give every distinct id a dense id, in order of first appearance.

    Parameters
    ----------
    ids : i64[R].

    Returns
    -------
    dense : i32[R].
    original : i64[B].

    Raises
    ------
    ValueError
        `ids` is not one column of integers, or names more than 2**31 - 2 blocks.
    MemoryError
    """
    ids = _column(ids, np.int64, "ids")
    dense = np.empty(ids.shape[0], np.int32)
    cdef const int64_t[::1] ids_view = ids
    cdef int32_t[::1] dense_view = dense
    cdef int64_t most = LARGEST_BLOCKS
    cdef Trie t
    cdef int status
    with nogil:
        status = _start(&t, most)
        if status == DONE:
            status = _intern_flat(&t, ids_view, dense_view)
    try:
        _raise(status, "block ids", LARGEST_BLOCKS)
        original = np.empty(t.size, np.int64)
        _copy(original, t.id, t.size * sizeof(int64_t))
    finally:
        _stop(&t)
    return dense, original


cdef int _intern_flat(Trie *t, const int64_t[::1] ids, int32_t[::1] dense) noexcept nogil:
    cdef int64_t k, b, id
    cdef uint64_t i, root = _key(-1, 0)
    cdef int status
    for k in range(ids.shape[0]):
        id = ids[k]
        i = _mix(<uint64_t>id, root) & t.mask
        while True:
            b = <int64_t>t.slots[i] - 1
            if b < 0 or t.id[b] == id:
                break
            i = (i + 1) & t.mask
        if b < 0:
            if t.size >= t.limit:
                return TOO_MANY
            b = t.size
            t.slots[i] = <block_t>(b + 1)
            t.id[b] = id
            t.parent[b] = -1
            t.space[b] = 0
            t.size += 1
            if t.size == t.room:
                status = _grow(t)
                if status != DONE:
                    return status
        dense[k] = <int32_t>b
    return DONE


def _forest(parent, position):
    """Return copies of two columns that are sure to be a forest: parents first, positions counted from the root."""
    parent = _column(parent, np.int32, "parent", copy=True, rows=True)
    position = _column(position, np.int32, "position", copy=True)
    if position.shape[0] != parent.shape[0]:
        raise ValueError(f"position: found {position.shape[0]} numbers, expected {parent.shape[0]}")
    cdef const int32_t[::1] up = parent, at = position
    cdef int64_t b, wrong = -1
    with nogil:
        for b in range(up.shape[0]):
            if up[b] < -1 or up[b] >= b or at[b] != (0 if up[b] < 0 else at[up[b]] + 1):
                wrong = b
                break
    if wrong >= 0:
        raise ValueError(
            f"parent: found block {wrong} with parent {parent[wrong]} at position {position[wrong]}, expected an "
            "earlier parent, one position before it (-1 and 0 for the first of a chain)"
        )
    return parent, position


def _named(blocks, str name, total):
    """Return a copy of a column of block ids, each -1 or a block."""
    blocks = _column(blocks, np.int32, name, copy=True, rows=True)
    if blocks.size and (blocks.min() < -1 or blocks.max() >= total):
        raise ValueError(f"{name}: found {blocks.min()}..{blocks.max()}, expected -1 or a block below {total}")
    return blocks


def expand_chains(last_block, parent, position):
    """List whole chains again: the blocks of every row, from the root to `last_block`.

    Parameters
    ----------
    last_block : i32[n], -1 for an empty row.
    parent, position : i32[B], as :func:`intern_chains` returns them.

    Returns
    -------
    blocks : i32[R], row after row.
    offsets : i64[n + 1].

    Raises
    ------
    ValueError
        Not a forest, or a block that is not in it.
    MemoryError
    """
    parent, position = _forest(parent, position)
    last = _named(last_block, "last_block", parent.shape[0])
    offsets = np.zeros(last.shape[0] + 1, np.int64)
    if last.size and parent.size:
        np.cumsum(np.where(last >= 0, position[last].astype(np.int64) + 1, 0), out=offsets[1:])
    blocks = np.empty(int(offsets[last.shape[0]]), np.int32)
    cdef const int32_t[::1] up = parent, ends = last
    cdef const int64_t[::1] cut = offsets
    cdef int32_t[::1] out = blocks
    cdef int64_t row, k, b
    with nogil:
        for row in range(ends.shape[0]):
            b = ends[row]
            k = cut[row + 1]
            while b >= 0:
                k -= 1
                out[k] = <int32_t>b
                b = up[b]
    return blocks, offsets


def ancestors_at(block, wanted, parent, position):
    """Return the ancestor of each block at a wanted position.

    Parameters
    ----------
    block : i32[n], -1 for none.
    wanted : i64[n], the position from the root; below 0 for none.
    parent, position : i32[B].

    Returns
    -------
    i32[n], -1 where either is none.

    Raises
    ------
    ValueError
        A wanted position behind the block, or not a forest.
    """
    parent, position = _forest(parent, position)
    blocks = _named(block, "block", parent.shape[0])
    places = _column(wanted, np.int64, "wanted", copy=True)
    if places.shape[0] != blocks.shape[0]:
        raise ValueError(f"wanted: found {places.shape[0]} numbers, expected {blocks.shape[0]}")
    found = np.full(blocks.shape[0], -1, np.int32)
    cdef const int32_t[::1] up = parent, at = position, start = blocks
    cdef const int64_t[::1] place = places
    cdef int32_t[::1] out = found
    cdef int64_t row, b, wrong = -1
    with nogil:
        for row in range(start.shape[0]):
            b = start[row]
            if b < 0 or place[row] < 0:
                continue
            if at[b] < place[row]:
                wrong = row
                break
            while at[b] > place[row]:
                b = up[b]
            out[row] = <int32_t>b
    if wrong >= 0:
        raise ValueError(
            f"wanted: found position {places[wrong]} in row {wrong}, expected at most {position[blocks[wrong]]}"
        )
    return found


def renumber_chains(last_block, output_block, parent, position):
    """Give dense ids anew, in order of first appearance, after rows were dropped or moved.

    Parameters
    ----------
    last_block, output_block : i32[n], the rows that remain, in their new order; -1 for none.
    parent, position : i32[B], of all old blocks.

    Returns
    -------
    kept : i32[B'], the old id of each new one.
    new : i32[B], the new id of each old one, -1 for a block that no row names any more.

    Raises
    ------
    ValueError
        Not a forest, or a block that is not in it.
    """
    parent, _ = _forest(parent, position)
    first = _named(last_block, "last_block", parent.shape[0])
    second = _named(output_block, "output_block", parent.shape[0])
    if second.shape[0] != first.shape[0]:
        raise ValueError(f"output_block: found {second.shape[0]} rows, expected {first.shape[0]}")
    new = np.full(parent.shape[0], -1, np.int32)
    kept = np.empty(parent.shape[0], np.int32)
    cdef const int32_t[::1] up = parent, ends = first, more = second
    cdef int32_t[::1] label = new, old = kept
    cdef int64_t row, size = 0
    with nogil:
        for row in range(ends.shape[0]):
            size = _label(ends[row], up, label, old, size)
            size = _label(more[row], up, label, old, size)
    return kept[:size].copy(), new


cdef int64_t _label(int64_t end, const int32_t[::1] up, int32_t[::1] label, int32_t[::1] old,
                    int64_t size) noexcept nogil:
    """Number what is new in one chain, from the root on."""
    cdef int64_t b = end, count = 0, k
    while b >= 0 and label[b] < 0:
        count += 1
        b = up[b]
    b = end
    for k in range(size + count - 1, size - 1, -1):
        label[b] = <int32_t>k
        old[k] = <int32_t>b
        b = up[b]
    return size + count


def find_cycle(offsets, after):
    """Return a row that waits for itself, directly or through others, or -1.

    Parameters
    ----------
    offsets : i64[n + 1], where each row begins in `after`.
    after : i32[m], the rows that must complete first.

    Raises
    ------
    ValueError
        Columns of the wrong type, shape or order, or a row that does not exist.
    MemoryError
    """
    waits = _column(after, np.int32, "after", copy=True)
    cuts = _column(offsets, np.int64, "offsets", rows=True)
    rows = max(cuts.shape[0] - 1, 0)
    cuts = _offsets(offsets, rows, waits.shape[0])
    if waits.size and (waits.min() < 0 or waits.max() >= rows):
        raise ValueError(f"after: found {waits.min()}..{waits.max()}, expected rows 0 to {rows - 1}")
    state = np.zeros(rows, np.int8)  # 0 new, 1 on the path, 2 done
    stack = np.empty(rows, np.int32)
    place = cuts[:rows].copy()
    cdef const int64_t[::1] cut = cuts
    cdef const int32_t[::1] wait = waits
    cdef signed char[::1] mark = state
    cdef int32_t[::1] path = stack
    cdef int64_t[::1] at = place
    cdef int64_t root, depth, row, next_row, found = -1
    with nogil:
        for root in range(mark.shape[0]):
            if mark[root]:
                continue
            path[0] = <int32_t>root
            mark[root] = 1
            depth = 1
            while depth and found < 0:
                row = path[depth - 1]
                if at[row] == cut[row + 1]:
                    mark[row] = 2
                    depth -= 1
                    continue
                next_row = wait[at[row]]
                at[row] += 1
                if mark[next_row] == 1:
                    found = next_row
                elif mark[next_row] == 0:
                    mark[next_row] = 1
                    path[depth] = <int32_t>next_row
                    depth += 1
            if found >= 0:
                break
    return found
