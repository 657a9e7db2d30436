"""The step clock.

Physics (the same words as `kvsim.reference.Clock`, which is the specification):

* A transfer takes (latency^p + (n·overhead + bytes/bandwidth)^p)^(1/p), zero for zero bytes.
* Operations of a layer wait for each other; far tiers are double-buffered across the whole step:
  near = Σ_ops max(C_op, T0_op) + overhead + collectives; step = max(near, T_1, …, T_n).
* The near tier stalls by Σ_ops max(0, T0_op − C_op), far tier t by max(0, T_t − max(near, T_1 … T_{t−1})); a stall
  is shared out over kinds by bytes and over causes by their terms.
* A far tier's bytes take the longest of its device and the links on its path. What the links carry for other tiers
  is the cause *channel*; what the write-downs add to the tier's own reads and writes is the cause *write_back*.
"""
cimport cython
from libc.math cimport floor, frexp, ldexp
from libc.string cimport memset

from kvsim_core._store cimport Store, traffic_t
from kvsim_core._types cimport (
    MAX_LINKS, MAX_TIERS, N_CAUSES, N_KINDS, N_OPERATIONS, OK, TIME_OVERFLOW, tick_t,
)

cdef enum:
    LATENCY = 0
    OVERHEAD = 1
    BANDWIDTH = 2
    CHANNEL = 3
    BACK = 4

cdef double LN2 = 0.6931471805599453


cdef double power(double x, double y) noexcept nogil:
    """x^y for x >= 0 from the four operations alone, so that every platform gives the same bits (libm's pow does
    not)."""
    cdef int e = 0, k
    cdef double m, z, z2, term, log_x, r, result
    if x <= 0.0:
        return 0.0
    if y == 1.0:
        return x
    m = frexp(x, &e)                       # x = m 2^e, 0.5 <= m < 1
    if m < 0.7071067811865476:
        m *= 2.0
        e -= 1
    z = (m - 1.0) / (m + 1.0)              # ln m = 2 (z + z^3/3 + z^5/5 + …), |z| < 0.1716
    z2 = z * z
    log_x = 0.0
    for k in range(23, 0, -2):
        log_x = log_x * z2 + 1.0 / k
    log_x = 2.0 * z * log_x + e * LN2
    r = y * log_x
    k = <int>floor(r / LN2 + 0.5)
    r = r - k * LN2                        # |r| <= 0.35
    term = 1.0
    result = 1.0
    for e in range(1, 18):
        term = term * r / e
        result = result + term
    return ldexp(result, k)


cdef inline double moved(const traffic_t *now, int o, int k) noexcept nogil:
    return <double>(now.read[o][k] + now.write[o][k] + now.back_read[o][k] + now.back_write[o][k])


cdef void split(tick_t total, const double *shares, int n, tick_t *out) noexcept nogil:
    """Share `total` out in proportion; the last positive share takes the remainder."""
    cdef double sum = 0.0, cum = 0.0
    cdef int i, last = n - 1
    cdef tick_t before = 0, now
    for i in range(n):
        out[i] = 0
        if shares[i] > 0.0:
            sum += shares[i]
            last = i
    for i in range(n):
        if i == last:
            out[i] = total - before
            return
        if shares[i] > 0.0:
            cum += shares[i]
            now = <tick_t>floor(<double>total * (cum / sum))
            if now > total:
                now = total
            out[i] = now - before
            before = now


cdef class Clock:
    """Time, from work and a machine's pace.

    Parameters
    ----------
    tiers : sequence of mapping
        ``read_ps_per_byte``, ``write_ps_per_byte``, ``both_ps_per_byte``, ``shared``, ``latency_ps``,
        ``overhead_ps``, ``norm`` of each tier.
    links : sequence of mapping
        ``read_ps_per_byte``, ``write_ps_per_byte``, ``both_ps_per_byte``, ``shared`` of each link.
    ps_per_flop : pair of float
        Of attention and ffn, at the achieved rate.
    overhead_ps : int
        Of every step.
    collective_ps, collective_ps_per_token : float
        Of every step, and for each of its tokens.

    Raises
    ------
    ValueError
        If a number is negative, not finite or out of range.
    """

    @cython.boundscheck(True)
    def __cinit__(self, tiers, links, *, ps_per_flop=(0.0, 0.0), overhead_ps=0, double collective_ps=0.0,
                  double collective_ps_per_token=0.0):
        cdef int i
        if not 1 <= len(tiers) <= MAX_TIERS or len(links) > MAX_LINKS:
            raise ValueError("too many tiers or links")
        for i, spec in enumerate(tiers):
            read_channel(spec, &self.pace[i].device)
            self.pace[i].latency_ps = number(spec, "latency_ps")
            self.pace[i].overhead_ps = number(spec, "overhead_ps")
            self.pace[i].norm = number(spec, "norm")
            if not 0.25 <= self.pace[i].norm <= 64.0:
                raise ValueError(f"norm is {self.pace[i].norm}: expected 0.25 … 64")
        for i, spec in enumerate(links):
            read_channel(spec, &self.link[i])
        for i in range(N_OPERATIONS):
            self.ps_per_flop[i] = number({"ps_per_flop": ps_per_flop[i]}, "ps_per_flop")
        if not 0 <= overhead_ps <= (1 << 60):
            raise ValueError(f"overhead_ps is {overhead_ps}: out of range")
        self.overhead_ps = overhead_ps
        self.collective_ps = number({"collective_ps": collective_ps}, "collective_ps")
        self.collective_ps_per_token = number(
            {"collective_ps_per_token": collective_ps_per_token}, "collective_ps_per_token")

    cdef void near_terms(self, Store store, int o, terms_t *out) noexcept nogil:
        cdef traffic_t *now = &store.traffic[0]
        cdef pace_t *pace = &self.pace[0]
        cdef double r = 0, w = 0, br = 0, bw = 0, own, time
        cdef int k
        memset(out, 0, sizeof(terms_t))
        for k in range(N_KINDS):
            r += <double>now.read[o][k]
            w += <double>now.write[o][k]
            br += <double>now.back_read[o][k]
            bw += <double>now.back_write[o][k]
        if r + w + br + bw == 0.0:
            return
        own = combine(&pace.device, r, w)
        time = combine(&pace.device, r + br, w + bw)
        out.causes[LATENCY] = pace.latency_ps
        out.causes[OVERHEAD] = <double>now.transfers[o] * pace.overhead_ps
        out.causes[BANDWIDTH] = own
        out.causes[BACK] = time - own
        out.total = round_ps(transfer(pace, <double>now.transfers[o], time))

    cdef void far_terms(self, Store store, int t, terms_t *out) noexcept nogil:
        cdef traffic_t *now = &store.traffic[t]
        cdef pace_t *pace = &self.pace[t]
        cdef double r = 0, w = 0, br = 0, bw = 0, n = 0, useful, own, time, down
        cdef int o, k, link
        memset(out, 0, sizeof(terms_t))
        for o in range(N_OPERATIONS):
            for k in range(N_KINDS):
                r += <double>now.read[o][k]
                w += <double>now.write[o][k]
                br += <double>now.back_read[o][k]
                bw += <double>now.back_write[o][k]
            n += <double>now.transfers[o]
        if r + w + br + bw == 0.0:
            return
        down = <double>now.down
        useful = combine(&pace.device, r, w)
        own = combine(&pace.device, r + br, w + bw)
        time = own
        for link in range(store.n_links):
            if store.tier[t].path >> link & 1:
                useful = larger(useful, combine(&self.link[link], r, down))
                own = larger(own, combine(&self.link[link], r, down + bw))
                time = larger(time, combine(
                    &self.link[link], <double>store.link_up[link], <double>store.link_down[link]))
        own = smaller(own, time)
        useful = smaller(useful, own)
        out.causes[LATENCY] = pace.latency_ps
        out.causes[OVERHEAD] = n * pace.overhead_ps
        out.causes[BANDWIDTH] = useful
        out.causes[CHANNEL] = time - own
        out.causes[BACK] = own - useful
        out.total = round_ps(transfer(pace, n, time))

    cdef void charge(
            self, int t, tick_t stall, const double *kinds, const terms_t *terms, int64_t repeat) noexcept nogil:
        cdef tick_t by_kind[N_KINDS]
        cdef tick_t by_cause[N_CAUSES]
        cdef int k, c
        split(stall, kinds, N_KINDS, by_kind)
        for k in range(N_KINDS):
            if by_kind[k] > 0:
                split(by_kind[k], terms.causes, N_CAUSES, by_cause)
                for c in range(N_CAUSES):
                    self.stall[t][k][c] += by_cause[c] * repeat
        self.stall_of[t] += stall * repeat

    cdef int step(self, Store store, const double *flops, tick_t fixed, int64_t tokens, int64_t repeat,
                  tick_t arrival) noexcept nogil:
        """Advance by `repeat` equal steps of the store's traffic; `flops` is the work known beforehand, by
        operation."""
        cdef terms_t terms
        cdef traffic_t *now
        cdef double kinds[N_KINDS]
        cdef double parts[2]
        cdef tick_t halves[2]
        cdef tick_t near = 0, ready, c, collectives
        cdef tick_t fresh = 0, again = 0
        cdef int o, k, t
        cdef double done
        if arrival > self.now:
            self.idle += arrival - self.now
            self.now = arrival
        collectives = round_ps(self.collective_ps + <double>tokens * self.collective_ps_per_token) if tokens > 0 else 0
        # a first pass that only adds up, so that an overflow leaves the books as they were
        done = <double>self.overhead_ps + <double>fixed + <double>collectives
        for o in range(N_OPERATIONS):
            done += (flops[o] + store.flops[o][0] + store.flops[o][1]) * self.ps_per_flop[o]
            self.near_terms(store, o, &terms)
            done += <double>terms.total
        for t in range(1, store.n_tiers):
            self.far_terms(store, t, &terms)
            done += <double>terms.total
        if done * <double>repeat + <double>self.now > 4.6e18:
            return TIME_OVERFLOW
        for o in range(N_OPERATIONS):
            parts[0] = flops[o] + store.flops[o][0]
            parts[1] = store.flops[o][1]
            c = round_ps((parts[0] + parts[1]) * self.ps_per_flop[o])
            split(c, parts, 2, halves)
            if parts[0] + parts[1] == 0.0:
                halves[0] = c
                halves[1] = 0
            fresh += halves[0]
            again += halves[1]
            near += c
            self.near_terms(store, o, &terms)
            if terms.total > c:
                near += terms.total - c
                now = &store.traffic[0]
                for k in range(N_KINDS):
                    kinds[k] = moved(now, o, k)
                self.charge(0, terms.total - c, kinds, &terms, repeat)
        near += self.overhead_ps + fixed + collectives
        ready = near
        for t in range(1, store.n_tiers):
            self.far_terms(store, t, &terms)
            if terms.total > ready:
                now = &store.traffic[t]
                for k in range(N_KINDS):
                    kinds[k] = 0.0
                    for o in range(N_OPERATIONS):
                        kinds[k] += moved(now, o, k)
                self.charge(t, terms.total - ready, kinds, &terms, repeat)
                ready = terms.total
        self.compute += fresh * repeat
        self.recompute += again * repeat
        self.overhead += (self.overhead_ps + fixed) * repeat
        self.collectives += collectives * repeat
        self.now += ready * repeat
        self.steps += repeat
        return OK


cdef double number(spec, str name) except? -1.0:
    cdef double value = spec[name]
    if not 0.0 <= value <= 1e30:
        raise ValueError(f"{name} is {value}: expected a number from 0 to 1e30")
    return value


cdef int read_channel(spec, channel_t *c) except -1:
    c.read_ps_per_byte = number(spec, "read_ps_per_byte")
    c.write_ps_per_byte = number(spec, "write_ps_per_byte")
    c.both_ps_per_byte = number(spec, "both_ps_per_byte")
    c.shared = bool(spec["shared"])
    return 0
