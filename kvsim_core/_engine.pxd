"""What the closed loop keeps of machines, workers, requests and pauses: plain structures, and their codes."""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t

from kvsim_core._clock cimport channel_t, pace_t, round_ps
from kvsim_core._types cimport (
    MAX_LINKS, MAX_TIERS, N_CAUSES, N_KINDS, N_OPERATIONS, block_t, bytes_t, tick_t,
)

cdef enum:
    K_KV = 0
    K_WEIGHTS = 1
    K_STATE = 2
    MAX_POOLS = 8
    MAX_STATES = 14                # six, and loading from each tier
    N_PARTS = 9
    MAX_BINS = 4096
    LOG_MOST = 1 << 22             # entries of each log
    ONE = 1 << 20                  # accepted tokens a step are counted in these parts

cdef enum:                         # roles of a worker
    ALL = 0
    PREFILL = 1
    DECODE = 2

cdef enum:                         # what is done when KV does not fit
    WAIT = 0
    PREEMPT = 1
    STREAM = 2

cdef enum:                         # which part of what is found to load
    BY_SPLIT = 0
    ALWAYS = 1
    NEVER = 2
    OVERLAP = 3

cdef enum:
    ROUND_ROBIN = 0
    LEAST_LOADED = 1
    PREFIX_AWARE = 2
    SESSION_AFFINE = 3

cdef enum:                         # pauses
    THINK = 1
    TOOL = 2

cdef enum:                         # events
    TOOL_END = 0
    ARRIVE = 1
    UNPIN = 2
    DEMOTE = 3
    PREFETCH = 4

cdef enum:                         # what a worker does
    IDLE = 0
    READY = 1
    BUSY = 2
    LOADING = 3

cdef enum:                         # states of a request
    QUEUED = 0
    TRANSFER = 1
    PREFILLING = 2
    RECOMPUTING = 3
    DECODING = 4
    PREEMPTED = 5
    FROM_TIER = 6

cdef enum:                         # parts of a worker's time
    COMPUTE = 0
    RECOMPUTE = 1
    OVERHEAD = 2
    COLLECTIVES = 3
    STALL = 4
    BUBBLE = 5
    NO_REQUEST = 6
    IDLE_TOOL = 7
    IDLE_THINK = 8

cdef enum:
    DONE = 0
    REJECTED = 1
    UNREACHED = 2

cdef enum:                         # what a live request has of a block of its chain (mark_t)
    FREE = 0
    PUBLISH = 2                    # to be found when the prefill ends
    TELL = 3                       # pinned near; the policies hear of its look-up when the prefill ends
    LOADED = 4                     # pinned near, just come: it is renewed when the prefill ends
    PINNED = 5

cdef enum:                         # where a live request is
    NOWHERE = 0
    IN_LOADING = 1
    IN_PREFILL = 2
    IN_BATCH = 3
    STAGED = 4


# -- plain structures ---------------------------------------------------------------------------------------------

cdef struct event_t:
    tick_t time
    int32_t kind
    int32_t row

cdef struct queued_t:
    int64_t key
    int64_t serial
    int32_t row

cdef struct chan_t:                # a device or a link that serves moves in the order they are asked for
    channel_t pace
    tick_t until[2]
    tick_t busy[2]

cdef struct way_t:
    tick_t end
    double own

cdef struct load_t:                # when a bundle of moves ends, by tier, and what its time is made of
    tick_t end[MAX_TIERS]
    tick_t ready
    double causes[MAX_TIERS][N_CAUSES]
    double kinds[MAX_TIERS][N_KINDS]
    bint given

cdef struct live_t:                # a request between its admission and its release by one worker
    int32_t row
    int32_t worker
    int32_t where
    int64_t key
    int64_t serial
    block_t *blocks                # the chain of its prompt
    int8_t *tier                   # of each: where it was found, -1 nowhere; after its admission one of mark_t
    int32_t room                   # of both arrays
    int32_t m
    bytes_t claimed[MAX_TIERS]
    bytes_t far[MAX_TIERS]         # its context in each tier, read there at every step
    int64_t first, second          # tokens in front of the first part to compute, and of the second
    int64_t front, total, done, again
    int64_t chain_tokens
    bint emits
    load_t load
    tick_t ready
    int64_t tail, joined, end      # private tokens when it began to decode; the token clock then, and at its end
    int64_t grown[MAX_TIERS]       # what its phase had grown by in each tier when it began
    int32_t index                  # of itself
    int32_t next_free

cdef struct chunk_t:
    int32_t live
    int64_t context
    int64_t tokens

cdef struct kind_t:                # the numbers of a sort of worker
    int T
    int n_links
    int32_t ladder[MAX_TIERS]
    int32_t link_index[MAX_LINKS]
    pace_t pace[MAX_TIERS]
    pace_t ffn_near
    bytes_t fragment[MAX_TIERS]
    bytes_t ffn_fragment
    uint32_t path[MAX_TIERS]
    int32_t ffn_tier
    int64_t stages
    int64_t microbatches
    double ps_per_flop[N_OPERATIONS]
    tick_t overhead[N_OPERATIONS]
    double collective[N_OPERATIONS]
    double collective_token[N_OPERATIONS]
    double hop
    double hop_token
    bytes_t near_weights[N_OPERATIONS]
    bytes_t far_weights[MAX_TIERS]
    const int64_t *experts
    int64_t n_experts
    int64_t expert_num, expert_den
    int32_t expert_tier
    int64_t cached_layers          # layers whose experts are blocks that come and go; 0: none
    int64_t expert_count           # of a layer
    int64_t expert_each            # of which a token uses
    block_t expert_first
    uint64_t expert_seed
    bytes_t token_row
    int64_t block_tokens
    bytes_t kv_token, kv_write, kv_layer, window_token, state

cdef struct worker_t:
    void *store
    kind_t *kind
    int role
    int32_t unit[2]
    bint parted
    int state
    tick_t now, until
    queued_t *waiting
    int32_t n_waiting, room_waiting
    int32_t *loading
    int32_t n_loading
    int32_t *prefill
    int32_t n_prefill
    int32_t *batch
    int32_t n_batch
    uint8_t *touched               # scratch: the experts of a layer that a step uses
    int32_t *ended                 # scratch: those whose last token a step gives
    int32_t n_staged               # prefilled here, their KV not yet taken over
    int32_t room_live              # of loading, prefill, batch and chunks
    chunk_t *chunks
    int32_t n_chunks
    bint decoding
    int64_t tokens, acceptance
    bytes_t extra[N_OPERATIONS][4][N_KINDS]
    bint extras
    tick_t waited                  # for the load in flight that ends first, not yet charged to its causes
    chan_t device[MAX_TIERS]
    chan_t link[MAX_LINKS]
    tick_t gate[MAX_TIERS]
    # what is kept of the batch, so that a step need not look at each of its sequences
    int64_t sum_context
    int64_t below[2]               # sequences within the sparse limit and the window
    int64_t sum_below[2]           # their contexts
    int64_t next_cross, next_end   # the token clock when that changes, and when one ends
    int64_t *phase                 # sequences that need a new block when the token clock has this remainder
    int64_t *grown                 # [tier][phase] blocks that each of them has been given
    bytes_t far_batch[MAX_TIERS]
    int64_t version                # counts what may make room
    int64_t blocked_version
    int32_t blocked_row
    tick_t *coming                 # when a block that a load brings is there
    int32_t *coming_load
    load_t *loads
    int32_t n_loads, room_loads
    bytes_t ffn_read
    int64_t log_at                 # where its last step is in the log

cdef struct parking_t:             # what a pause leaves behind
    int32_t row
    int32_t worker
    block_t end
    int32_t pinned
    int32_t next

cdef struct plan_t:
    tick_t pin, demote, lead
    int32_t tier
    bint drop
    int prefetch

cdef struct log_t:                 # rows of eight numbers
    int64_t *data
    int64_t n, room
    bint cut


cdef inline bint before(const event_t *a, const event_t *b) noexcept nogil:
    if a.time != b.time:
        return a.time < b.time
    if a.kind != b.kind:
        return a.kind < b.kind
    return a.row < b.row


cdef inline bint sooner(const queued_t *a, const queued_t *b) noexcept nogil:
    if a.key != b.key:
        return a.key < b.key
    return a.serial < b.serial


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t fragments(bytes_t size, bytes_t amount) noexcept nogil:
    """Transfers that so many bytes take."""
    if amount <= 0:
        return 0
    return ceil_div(amount, size) if size else 1


cdef inline void use(chan_t *c, tick_t now, bytes_t up, bytes_t down, way_t *ways) noexcept nogil:
    """Queue bytes towards compute (way 0) and away (way 1)."""
    cdef double own, pace, other, time, overlap, rest, slow
    cdef tick_t start
    cdef bytes_t moved
    cdef int way
    ways[0].end = now
    ways[0].own = 0.0
    ways[1] = ways[0]
    if c.pace.shared:
        if up + down == 0:
            return
        own = <double>up * c.pace.read_ps_per_byte + <double>down * c.pace.write_ps_per_byte
        start = max(now, c.until[0])
        c.until[0] = start + round_ps(own)
        c.until[1] = c.until[0]
        c.busy[0] += round_ps(<double>up * c.pace.read_ps_per_byte)
        c.busy[1] += round_ps(<double>down * c.pace.write_ps_per_byte)
        ways[0].end = c.until[0]
        ways[0].own = own
        ways[1] = ways[0]
        return
    for way in range(1, -1, -1):
        moved = down if way else up
        if moved == 0:
            continue
        pace = c.pace.write_ps_per_byte if way else c.pace.read_ps_per_byte
        other = c.pace.read_ps_per_byte if way else c.pace.write_ps_per_byte
        start = max(now, c.until[way])
        time = <double>moved * pace
        overlap = <double>max(<tick_t>0, c.until[1 - way] - start)
        if c.pace.both_ps_per_byte > 0.0 and overlap > 0.0:
            # while the other way is busy at its full rate, what is left of the sum of both
            rest = 1.0 / c.pace.both_ps_per_byte - 1.0 / other if other > 0.0 else 0.0
            slow = 1.0 / rest if rest > 0.0 else 0.0
            if slow > pace:
                if <double>moved * slow <= overlap:
                    time = <double>moved * slow
                else:
                    time = overlap + (<double>moved - overlap / slow) * pace
            elif rest <= 0.0:
                time = overlap + time
        c.until[way] = start + round_ps(time)
        c.busy[way] += round_ps(time)
        ways[way].end = c.until[way]
        ways[way].own = time
