"""The step clock: bytes and FLOPs in, picoseconds and stalls out.

See _clock.pyx for the physics. Every time is rounded once to an integer; a split gives its remainder to its last
part, so wall = compute + recompute + overhead + collectives + stalls + bubble + idle holds exactly.
"""
from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t, uint32_t

from kvsim_core._store cimport Store
from kvsim_core._types cimport (
    MAX_LINKS, MAX_TIERS, N_CAUSES, N_KINDS, N_OPERATIONS, bytes_t, tick_t,
)

cdef struct channel_t:            # what moves bytes: a tier's device or a link
    double read_ps_per_byte       # towards compute
    double write_ps_per_byte
    double both_ps_per_byte       # of the sum of both; 0: the directions do not disturb each other
    bint shared                   # half duplex: the directions take turns, and both_ps_per_byte is not read

cdef struct pace_t:               # one tier's transfer times
    channel_t device
    double latency_ps
    double overhead_ps            # a fragment
    double norm                   # p of (latency^p + (n * overhead + bytes/bandwidth)^p)^(1/p)

cdef struct terms_t:              # one transfer time and what it is made of, ps
    tick_t total
    double causes[N_CAUSES]

cdef class Clock:
    cdef pace_t pace[MAX_TIERS]
    cdef channel_t link[MAX_LINKS]
    cdef double ps_per_flop[N_OPERATIONS]
    cdef double collective_ps
    cdef double collective_ps_per_token
    cdef tick_t overhead_ps        # of every step
    cdef tick_t now
    cdef tick_t compute
    cdef tick_t recompute
    cdef tick_t overhead
    cdef tick_t collectives
    cdef tick_t bubble
    cdef tick_t idle
    cdef tick_t stall[MAX_TIERS][N_KINDS][N_CAUSES]
    cdef tick_t stall_of[MAX_TIERS]
    cdef int64_t steps

    cdef int step(self, Store store, const double *flops, tick_t fixed, int64_t tokens, int64_t repeat,
                  tick_t arrival) noexcept nogil
    cdef void near_terms(self, Store store, int o, terms_t *out) noexcept nogil
    cdef void far_terms(self, Store store, int t, terms_t *out) noexcept nogil
    cdef void charge(
        self, int t, tick_t stall, const double *kinds, const terms_t *terms, int64_t repeat) noexcept nogil

cdef double power(double x, double y) noexcept nogil
cdef void split(tick_t total, const double *shares, int n, tick_t *out) noexcept nogil
cdef double number(spec, str name) except? -1.0
cdef int read_channel(spec, channel_t *c) except -1

cdef inline double combine(const channel_t *c, double up, double down) noexcept nogil:
    """Time of `up` bytes towards compute and `down` bytes away over one channel."""
    cdef double r = up * c.read_ps_per_byte
    cdef double w = down * c.write_ps_per_byte
    cdef double both
    if c.shared:
        return r + w
    both = (up + down) * c.both_ps_per_byte
    if r < w:
        r = w
    return both if both > r else r


cdef inline double transfer(const pace_t *pace, double n, double time) noexcept nogil:
    cdef double body = n * pace.overhead_ps + time
    if pace.norm == 1.0:
        return pace.latency_ps + body
    return power(power(pace.latency_ps, pace.norm) + power(body, pace.norm), 1.0 / pace.norm)


cdef inline tick_t round_ps(double t) noexcept nogil:
    return <tick_t>floor(t + 0.5) if t < 4.6e18 else <tick_t>4.6e18

cdef inline double smaller(double a, double b) noexcept nogil:
    return a if a < b else b


cdef inline double larger(double a, double b) noexcept nogil:
    return a if a > b else b
