"""The store: which tiers hold a copy of each block, how copies move, and the books.

See _store.pyx for the rules. One residency bit a tier and block; a policy decides only which block leaves a tier.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t

from kvsim_core._policy cimport policy_t, view_t
from kvsim_core._types cimport (
    MAX_LINKS, MAX_TIERS, N_KINDS, N_OPERATIONS, N_RULES, N_WEIGHTS, block_t, bytes_t, tick_t,
)

cdef enum eviction_t:
    WRITE_BACK = 0
    WRITE_THROUGH = 1
    DISCARD = 2

cdef enum:
    MAX_SHIFT = 50             # no block or access exceeds 2^50 bytes, 1 PB

cdef struct tier_t:
    policy_t *policy
    view_t view                # what the policy sees; capacity and used live here
    int32_t *children          # of each block, with a copy here
    int32_t *found             # look-ups answered here since the copy came; only where a rule counts them
    uint16_t bit               # this tier's residency bit
    bint touch_all             # its policy hears of look-ups answered above it
    bytes_t total              # capacity with what permanently lives here
    bytes_t home_bytes         # what permanently lives here
    bytes_t claimed            # room taken for what is in no block
    bytes_t held               # bytes of pinned blocks with a copy here
    bytes_t fragment           # bytes a transfer moves at once; 0: all
    uint32_t path              # links between this tier and compute, one bit each

cdef struct movement_t:        # between a tier and the one below it
    int32_t promote_after      # hits below before a copy moves up; 0: never
    bint exclusive
    eviction_t eviction
    uint8_t kinds              # which kinds move up, one bit each

cdef struct traffic_t:         # of one tier in one step
    bytes_t read[N_OPERATIONS][N_KINDS]
    bytes_t write[N_OPERATIONS][N_KINDS]
    bytes_t back_read[N_OPERATIONS][N_KINDS]     # for write-backs to the tier below
    bytes_t back_write[N_OPERATIONS][N_KINDS]    # by write-backs and write-throughs from above
    int64_t transfers[N_OPERATIONS]
    bytes_t down               # of write, what came over the links and not from below

cdef struct books_t:           # of one tier, whole run
    int64_t hits[N_KINDS][N_RULES][N_WEIGHTS]
    bytes_t read[N_KINDS]
    bytes_t write[N_KINDS]
    bytes_t back_read[N_KINDS]
    bytes_t back_write[N_KINDS]
    int64_t inserted[N_KINDS]
    int64_t evicted[N_KINDS]
    int64_t demoted_out[N_KINDS]
    int64_t promoted_in[N_KINDS]
    int64_t refused[N_KINDS]
    int64_t freed[N_KINDS]
    bytes_t evicted_bytes
    bytes_t bytes_in           # inserted; bytes_in = bytes_out + used
    bytes_t bytes_out

cdef class Store:
    cdef readonly int n_tiers
    cdef readonly int n_links
    cdef block_t n
    cdef tier_t tier[MAX_TIERS]
    cdef movement_t pair[MAX_TIERS]        # pair[u] lies between tiers u and u + 1
    cdef traffic_t traffic[MAX_TIERS]      # of the step in progress
    cdef bytes_t link_up[MAX_LINKS]        # of the step in progress
    cdef bytes_t link_down[MAX_LINKS]
    cdef books_t books[MAX_TIERS]
    cdef int64_t lookups[N_KINDS][N_WEIGHTS]
    cdef bytes_t total_up[MAX_LINKS]
    cdef bytes_t total_down[MAX_LINKS]
    cdef bytes_t unreachable               # resident blocks whose parent is nowhere
    cdef bytes_t unheld                    # live KV read that no tier held
    cdef bytes_t workspace                 # of the nearest tier, where running requests keep what was evicted
    cdef bytes_t room                      # of it, left in this step
    cdef int status
    cdef bint busy                         # a loop is in it: no other may be
    cdef bint moved                        # something moved in the step in progress
    cdef int64_t mult                      # how often the accesses in progress count
    cdef bint prefix_rule                  # KV behind a missing block of its request is recomputed
    cdef bint broken                       # the request's run of found blocks has ended
    cdef double flops[N_OPERATIONS][2]     # of the step: work that hits could not save; [1] was resident before
    # per block; the first group belongs to the caller's arrays
    cdef const bytes_t *bytes
    cdef const int32_t *tokens
    cdef const int8_t *kind
    cdef const int8_t *operation
    cdef const block_t *parent
    cdef const int32_t *position
    cdef const int16_t *home
    cdef const double *recompute           # [n][N_OPERATIONS]
    cdef uint16_t *where                   # tiers that hold a copy
    cdef uint8_t *seen                     # was resident once
    cdef uint8_t *held                     # was in the nearest tier after its last look-up
    cdef int32_t *pins                     # by callers, and in flight
    cdef int32_t *own_pins                 # by callers
    cdef int32_t pinned                    # all pins together
    cdef int64_t *next_use
    cdef bytes_t *child_bytes              # of the children that are resident somewhere
    cdef readonly list policies
    cdef object table                      # keeps the caller's arrays alive

    cdef int nearest(self, block_t b) noexcept nogil
    cdef void lookup(self, block_t b, bytes_t used) noexcept nogil
    cdef void find(self, block_t b, bytes_t used) noexcept nogil
    cdef void read(self, block_t b, bytes_t used) noexcept nogil
    cdef void write(self, block_t b, bytes_t used) noexcept nogil
    cdef void drop(self, block_t b) noexcept nogil
    cdef void context(self, block_t b, bytes_t used) noexcept nogil
    cdef void prefetch(self, block_t b) noexcept nogil
    cdef void demote(self, block_t b, int u) noexcept nogil
    cdef void pin(self, block_t b) noexcept nogil
    cdef void unpin(self, block_t b) noexcept nogil
    cdef void begin_request(self, int64_t request) noexcept nogil
    cdef void end_request(self) noexcept nogil
    cdef void begin_step(self) noexcept nogil
    cdef int end_step(self, int64_t repeat) noexcept nogil
    cdef bint inert(self, block_t b, int op, bytes_t used) noexcept nogil
    cdef int audit(self) noexcept nogil
    cdef int grow(self, block_t n) except? -1
    cdef bint quiet(self, block_t b, int h) noexcept nogil
    cdef void hold(self, block_t b) noexcept nogil
    cdef void loosen(self, block_t b) noexcept nogil
    cdef void weigh(self, block_t b, bytes_t amount) noexcept nogil
    cdef int64_t transfers_of(self, int t, bytes_t amount) noexcept nogil
    cdef void let(self, block_t b) noexcept nogil
    cdef int insert(self, int t, block_t b) noexcept nogil
    cdef bint make_room(self, int t, bytes_t amount, block_t b) noexcept nogil
    cdef void count(self, block_t b, int t) noexcept nogil
    cdef void touch(self, block_t b) noexcept nogil
    cdef void renew(self, block_t b) noexcept nogil
    cdef void foresee(self, block_t b, int64_t at) noexcept nogil
    cdef bytes_t available(self, int t) noexcept nogil
    cdef bint claim(self, int t, bytes_t amount) noexcept nogil
    cdef void unclaim(self, int t, bytes_t amount) noexcept nogil
    cdef bint rises(self, block_t b, int s) noexcept nogil
    cdef void land(self, int t, bytes_t amount) noexcept nogil
    cdef void shift(self, int u, int v, bytes_t amount) noexcept nogil
    cdef bint has_child(self, block_t b, uint32_t tiers) noexcept nogil
    cdef void evict(self, int t, block_t b) noexcept nogil
    cdef int place(self, block_t b, int source) noexcept nogil
    cdef int settle(self, block_t b, int u, int source) noexcept nogil
    cdef void promote(self, block_t b, int s) noexcept nogil
    cdef void add_copy(self, int t, block_t b) noexcept nogil
    cdef void remove_copy(self, int t, block_t b, int reason) noexcept nogil
    cdef void count_found(self, int64_t *counters, block_t b, bytes_t used) noexcept nogil
    cdef void count_read(self, int t, block_t b, bytes_t used) noexcept nogil
    cdef void count_write(self, int t, block_t b, bytes_t used, uint32_t links) noexcept nogil
    cdef void count_back(self, int u, int v, block_t b) noexcept nogil
