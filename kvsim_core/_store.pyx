"""Blocks × tiers: residency, movement and books.

Rules (the same words as `kvsim.reference.Store`, which is the specification):

* Tiers are ordered from compute outwards. A block with a *home* always exists there, outside the policy's space;
  other copies are the policy's.
* ``lookup`` finds the nearest copy. It is the only access that counts as hit or miss. Policies of the tiers above
  the copy
  hear ``on_miss`` (unless the block's kind may not move up to them), the copy's own ``on_hit``, and a tier below with
  ``touch = all`` and a copy ``on_hit`` too.
* A copy found below moves up pair by pair while the rule between two neighbours says so; an exclusive pair takes the
  lower copy away. A copy that was read in part stays where it is.
* A new block is placed nearest; where it is too large, or refused, it goes on downwards as if evicted at once.
* An evicted block moves down by its pair's rule. A block in flight is pinned, so that making room cannot take its
  source.
* A running request keeps what it was admitted with: its context is read where it lies, but what was in the nearest tier
  after its look-up and was evicted since is read there still, as far as the workspace (the tier's reserve) goes.
* Every byte moved is booked with its tier, direction, kind and operation, and with the links it crosses.
"""
cimport cython
from libc.stdint cimport INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from kvsim_core._policy cimport (
    DEMOTE, EVICT, FREED, NEEDS_FUTURE, PROMOTE, Policy, acquire, evictable, policy_t, raise_status, release, view_t,
)
from kvsim_core._structures cimport grow_array
from kvsim_core._types cimport (
    BAD_VICTIM, BYTES_OVERFLOW, CONTEXT, FREE, KV, MAX_LINKS, MAX_TIERS, N_KINDS, N_OPERATIONS,
    NOT_CONSERVED, OK, POLICY_FAILED, READ, WRITE, block_t, bytes_t,
)


cdef inline int add_bytes(bytes_t *sum, bytes_t more, int64_t times) noexcept nogil:
    if <double>sum[0] + <double>more * <double>times > 4.6e18:
        return BYTES_OVERFLOW
    sum[0] += more * times
    return OK


cdef class Store:
    """Residency of blocks in tiers, with the rules of movement.

    Parameters
    ----------
    tiers : sequence of mapping
        From compute outwards: ``capacity_bytes``, ``fragment_bytes``, ``path`` (bit mask of links), ``leaf_only``,
        ``touch_all``.
    movements : sequence of mapping
        One for each pair of neighbours: ``promote_after``, ``exclusive``, ``eviction`` (0 back, 1 through, 2
        discard), ``kinds`` (bit mask).
    policies : sequence of Policy
        One fresh policy a tier.
    n_links : int
        Number of links.
    prefix_rule : bool
        Whether KV behind the first missing block of its request is recomputed.
    workspace_bytes : int
        Room beside the nearest tier's capacity in which running requests keep what was evicted.

    Raises
    ------
    ValueError
        If an argument is out of range, or a policy object serves a tier already.
    """

    @cython.boundscheck(True)
    def __cinit__(self, tiers, movements, policies, *, int n_links=0, bint prefix_rule=True,
                  workspace_bytes=0):
        cdef int t
        cdef Policy policy
        self.policies = []
        if not 1 <= len(tiers) <= MAX_TIERS:
            raise ValueError(f"{len(tiers)} tiers: expected 1 … {MAX_TIERS}")
        if len(movements) != len(tiers) - 1 or len(policies) != len(tiers):
            raise ValueError("expected one policy a tier and one movement rule a pair of neighbours")
        if not 0 <= n_links <= MAX_LINKS:
            raise ValueError(f"{n_links} links: expected 0 … {MAX_LINKS}")
        self.n_tiers = len(tiers)
        self.n_links = n_links
        self.prefix_rule = prefix_rule
        if not 0 <= workspace_bytes <= (1 << 62):
            raise ValueError(f"workspace_bytes is {workspace_bytes}: expected 0 … 2^62")
        self.workspace = workspace_bytes
        self.mult = 1
        for t, spec in enumerate(tiers):
            capacity, fragment, path = spec["capacity_bytes"], spec["fragment_bytes"], spec["path"]
            if not 0 <= capacity <= (1 << 62) or not 0 <= fragment <= (1 << 62) or not 0 <= path < (1 << n_links):
                raise ValueError(f"tier {t}: capacity, fragment or path is out of range")
            self.tier[t].total = capacity
            self.tier[t].fragment = fragment
            self.tier[t].path = path
            self.tier[t].bit = <uint16_t>(1 << t)
            self.tier[t].touch_all = bool(spec["touch_all"])
            self.tier[t].view.struct_size = sizeof(view_t)
            self.tier[t].view.leaf_only = bool(spec["leaf_only"])
            self.tier[t].view.capacity = capacity
        for t, spec in enumerate(movements):
            if (not 0 <= spec["promote_after"] < (1 << 30) or not 0 <= spec["eviction"] <= 2
                    or not 0 <= spec["kinds"] < 16):
                raise ValueError(f"movement {t}: a rule is out of range")
            if spec["exclusive"] and spec["eviction"] == WRITE_THROUGH:
                raise ValueError(f"movement {t}: exclusive and write-through exclude each other")
            self.pair[t].promote_after = spec["promote_after"]
            self.pair[t].exclusive = bool(spec["exclusive"])
            self.pair[t].eviction = spec["eviction"]
            self.pair[t].kinds = spec["kinds"]
        for t, policy in enumerate(policies):
            self.tier[t].policy = acquire(policy)
            self.policies.append(policy)

    def __dealloc__(self):
        cdef int t
        for t in range(self.n_tiers):
            free(self.tier[t].children)
            free(self.tier[t].found)
        free(self.where)
        free(self.seen)
        free(self.held)
        free(self.pins)
        free(self.own_pins)
        free(self.next_use)
        free(self.child_bytes)
        if self.policies is not None:
            for policy in self.policies:
                release(policy)

    def bind(self, const int64_t[::1] size, const int32_t[::1] tokens, const int8_t[::1] kind,
             const int8_t[::1] operation, const int32_t[::1] parent, const int32_t[::1] position,
             const int16_t[::1] home, const double[:, ::1] recompute):
        """Use a table of blocks, or a longer one that begins like the last.

        Raises
        ------
        ValueError
            If lengths differ, a parent does not come before its child, or a value is out of range.
        """
        cdef Py_ssize_t n = size.shape[0], b
        cdef int t
        cdef double total = 0
        cdef bytes_t homes[MAX_TIERS]
        if (tokens.shape[0] != n or kind.shape[0] != n or operation.shape[0] != n or parent.shape[0] != n
                or position.shape[0] != n or home.shape[0] != n or recompute.shape[0] != n):
            raise ValueError("the block columns differ in length")
        if recompute.shape[1] != N_OPERATIONS:
            raise ValueError("recompute_flops needs a column for each operation")
        if self.busy:
            raise RuntimeError("this store is in use")
        if n < self.n:
            raise ValueError("a table of blocks can only grow")
        if n >= 0x7ffffff0:
            raise ValueError("more than 2^31 blocks")
        memset(homes, 0, sizeof(homes))
        for b in range(n):
            if (size[b] < 0 or size[b] > (<int64_t>1 << MAX_SHIFT) or tokens[b] < 0 or kind[b] < 0 or kind[b] >= N_KINDS
                    or operation[b] < 0 or operation[b] >= N_OPERATIONS or parent[b] < -1 or parent[b] >= b
                    or home[b] < -1 or home[b] >= self.n_tiers
                    or not 0 <= recompute[b, 0] <= 1e30 or not 0 <= recompute[b, 1] <= 1e30):
                raise ValueError(f"block {b}: a column is out of range")
            total += <double>size[b]
            if home[b] >= 0:
                homes[home[b]] += size[b]
        if total > 4e18:
            raise OverflowError("the blocks together exceed 2^62 bytes")
        for t in range(self.n_tiers):
            if homes[t] > self.tier[t].total - self.tier[t].view.used:
                raise ValueError(
                    f"tier {t} holds {self.tier[t].total} bytes; {homes[t]} permanently live there and"
                    f" {self.tier[t].view.used} are in use")
        if self.grow(<block_t>n) < 0:
            raise MemoryError("not enough memory for the per-block arrays")
        self.table = (size, tokens, kind, operation, parent, position, home, recompute)
        if n:
            self.bytes = &size[0]
            self.tokens = &tokens[0]
            self.kind = &kind[0]
            self.operation = &operation[0]
            self.parent = &parent[0]
            self.position = &position[0]
            self.home = &home[0]
            self.recompute = &recompute[0, 0]
        for t in range(self.n_tiers):
            self.tier[t].home_bytes = homes[t]
            self.tier[t].view.capacity = self.tier[t].total - homes[t]
            self.tier[t].view.n_blocks = <block_t>n
            self.tier[t].view.bytes = self.bytes
            self.tier[t].view.kind = self.kind
            self.tier[t].view.parent = self.parent
            self.tier[t].view.children = self.tier[t].children
            self.tier[t].view.position = self.position
            self.tier[t].view.tokens = self.tokens
            self.tier[t].view.next_use = self.next_use
            self.tier[t].view.pins = self.pins
            self.tier[t].view.pinned = &self.pinned
            if self.tier[t].policy.attach != NULL:
                self.tier[t].policy.attach(self.tier[t].policy.state, &self.tier[t].view)

    cdef int grow(self, block_t n) except? -1:
        cdef block_t b
        cdef int t
        if (grow_array(<void **>&self.where, sizeof(uint16_t), self.n, n, 0) < 0
                or grow_array(<void **>&self.seen, 1, self.n, n, 0) < 0
                or grow_array(<void **>&self.held, 1, self.n, n, 0) < 0
                or grow_array(<void **>&self.pins, sizeof(int32_t), self.n, n, 0) < 0
                or grow_array(<void **>&self.own_pins, sizeof(int32_t), self.n, n, 0) < 0
                or grow_array(<void **>&self.child_bytes, sizeof(bytes_t), self.n, n, 0) < 0
                or grow_array(<void **>&self.next_use, sizeof(int64_t), self.n, n, 0) < 0):
            return -1
        for b in range(self.n, n):
            self.next_use[b] = INT64_MAX
        for t in range(self.n_tiers):
            if (grow_array(<void **>&self.tier[t].children, sizeof(int32_t), self.n, n, 0) < 0
                    or grow_array(<void **>&self.tier[t].found, sizeof(int32_t), self.n, n, 0) < 0):
                return -1
            if self.tier[t].policy.grow != NULL and self.tier[t].policy.grow(self.tier[t].policy.state, n) < 0:
                return -1
        self.n = n
        return 0

    # -- books of the step ------------------------------------------------------------------------------

    cdef void begin_step(self) noexcept nogil:
        memset(self.traffic, 0, <size_t>self.n_tiers * sizeof(traffic_t))
        memset(self.link_up, 0, sizeof(self.link_up))
        memset(self.link_down, 0, sizeof(self.link_down))
        memset(self.flops, 0, sizeof(self.flops))
        self.broken = False
        self.moved = False
        self.room = self.workspace

    cdef int end_step(self, int64_t repeat) noexcept nogil:
        """Add the step's traffic, which happened `repeat` times, to the run's; OK or BYTES_OVERFLOW."""
        cdef int t, o, k, link, status = OK
        cdef traffic_t *now
        cdef books_t *all
        for t in range(self.n_tiers):
            now = &self.traffic[t]
            all = &self.books[t]
            for o in range(N_OPERATIONS):
                for k in range(N_KINDS):
                    status |= add_bytes(&all.read[k], now.read[o][k], repeat)
                    status |= add_bytes(&all.write[k], now.write[o][k], repeat)
                    status |= add_bytes(&all.back_read[k], now.back_read[o][k], repeat)
                    status |= add_bytes(&all.back_write[k], now.back_write[o][k], repeat)
        for link in range(self.n_links):
            status |= add_bytes(&self.total_up[link], self.link_up[link], repeat)
            status |= add_bytes(&self.total_down[link], self.link_down[link], repeat)
        return status

    cdef void count_read(self, int t, block_t b, bytes_t used) noexcept nogil:
        """Book `used` bytes read from tier t for compute."""
        cdef traffic_t *now = &self.traffic[t]
        cdef int o = self.operation[b]
        cdef uint32_t links = self.tier[t].path
        cdef int link = 0
        if used == 0:
            return
        self.moved = True
        now.read[o][self.kind[b]] += used
        now.transfers[o] += (used + self.tier[t].fragment - 1) // self.tier[t].fragment if self.tier[t].fragment else 1
        while links:
            if links & 1:
                self.link_up[link] += used
            links >>= 1
            link += 1

    cdef void count_write(self, int t, block_t b, bytes_t used, uint32_t links) noexcept nogil:
        """Book `used` bytes written to tier t, come over `links` from compute."""
        cdef traffic_t *now = &self.traffic[t]
        cdef int o = self.operation[b]
        cdef int link = 0
        if used == 0:
            return
        self.moved = True
        now.write[o][self.kind[b]] += used
        now.transfers[o] += (used + self.tier[t].fragment - 1) // self.tier[t].fragment if self.tier[t].fragment else 1
        if links:
            now.down += used
        while links:
            if links & 1:
                self.link_down[link] += used
            links >>= 1
            link += 1

    cdef void count_back(self, int u, int v, block_t b) noexcept nogil:
        """Book a copy of b written from tier u down to tier v."""
        cdef bytes_t used = self.bytes[b]
        cdef int o = self.operation[b], k = self.kind[b]
        cdef uint32_t links = self.tier[u].path ^ self.tier[v].path
        cdef int link = 0
        if used == 0:
            return
        self.moved = True
        self.traffic[u].back_read[o][k] += used
        self.traffic[v].back_write[o][k] += used
        if self.tier[v].fragment:
            self.traffic[v].transfers[o] += (used + self.tier[v].fragment - 1) // self.tier[v].fragment
        else:
            self.traffic[v].transfers[o] += 1
        while links:
            if links & 1:
                self.link_down[link] += used
            links >>= 1
            link += 1

    # -- copies -----------------------------------------------------------------------------------------

    cdef int nearest(self, block_t b) noexcept nogil:
        """The nearest tier with a copy of b, or -1."""
        cdef uint32_t copies = self.where[b]
        cdef int t = 0
        if self.home[b] >= 0:
            copies |= <uint32_t>1 << self.home[b]
        if copies == 0:
            return -1
        while not copies & 1:
            copies >>= 1
            t += 1
        return t

    cdef inline void hold(self, block_t b) noexcept nogil:
        if self.pins[b] == 0 and self.where[b]:
            self.weigh(b, self.bytes[b])
        self.pins[b] += 1
        self.pinned += 1

    cdef inline void let(self, block_t b) noexcept nogil:
        self.pins[b] -= 1
        self.pinned -= 1
        if self.pins[b] == 0 and self.where[b]:
            self.weigh(b, -self.bytes[b])
            self.loosen(b)

    cdef void loosen(self, block_t b) noexcept nogil:
        """Tell the policies of the tiers with a copy of b that it may go again."""
        cdef int t
        for t in range(self.n_tiers):
            if self.where[b] & self.tier[t].bit and self.tier[t].policy.on_free != NULL:
                self.tier[t].policy.on_free(self.tier[t].policy.state, b)

    cdef void weigh(self, block_t b, bytes_t amount) noexcept nogil:
        """Add to the pinned bytes of each tier with a copy of b."""
        cdef int t
        for t in range(self.n_tiers):
            if self.where[b] & self.tier[t].bit:
                self.tier[t].held += amount

    cdef void add_copy(self, int t, block_t b) noexcept nogil:
        cdef tier_t *tier = &self.tier[t]
        cdef block_t p = self.parent[b]
        if self.where[b] == 0:
            if p >= 0:
                self.child_bytes[p] += self.bytes[b]
                if self.where[p] == 0:
                    self.unreachable += self.bytes[b]
            self.unreachable -= self.child_bytes[b]
        self.where[b] |= tier.bit
        self.seen[b] = 1
        if p >= 0:
            tier.children[p] += 1
        tier.found[b] = 0
        tier.view.used += self.bytes[b]
        if self.pins[b] != 0:
            tier.held += self.bytes[b]
        tier.view.resident += 1
        self.books[t].inserted[self.kind[b]] += 1
        self.status |= add_bytes(&self.books[t].bytes_in, self.bytes[b], 1)
        tier.policy.on_insert(tier.policy.state, b)
        if tier.policy.failed:
            self.status = POLICY_FAILED

    cdef void remove_copy(self, int t, block_t b, int reason) noexcept nogil:
        cdef tier_t *tier = &self.tier[t]
        cdef block_t p = self.parent[b]
        self.where[b] &= ~tier.bit
        if p >= 0:
            tier.children[p] -= 1
            if (tier.view.leaf_only and tier.children[p] == 0 and self.where[p] & tier.bit
                    and tier.policy.on_free != NULL):
                tier.policy.on_free(tier.policy.state, p)
        tier.view.used -= self.bytes[b]
        if self.pins[b] != 0:
            tier.held -= self.bytes[b]
        tier.view.resident -= 1
        self.books[t].bytes_out += self.bytes[b]
        if self.where[b] == 0:
            if p >= 0:
                self.child_bytes[p] -= self.bytes[b]
                if self.where[p] == 0:
                    self.unreachable -= self.bytes[b]
            self.unreachable += self.child_bytes[b]
        tier.policy.on_remove(tier.policy.state, b, reason)
        if tier.policy.failed:
            self.status = POLICY_FAILED

    cdef bint make_room(self, int t, bytes_t amount, block_t b) noexcept nogil:
        """Evict from tier t until `amount` bytes, for b, fit; False if the policy refuses."""
        cdef tier_t *tier = &self.tier[t]
        cdef block_t v
        while tier.view.used + amount > tier.view.capacity:
            v = tier.policy.victim(tier.policy.state, b)
            if tier.policy.failed:
                self.status = POLICY_FAILED
                return False
            if v < 0:
                return False
            if v >= self.n or not self.where[v] & tier.bit or not evictable(&tier.view, v):
                self.status = BAD_VICTIM
                return False
            self.evict(t, v)
            if self.status != OK:
                return False
        return True

    cdef void evict(self, int t, block_t b) noexcept nogil:
        cdef int k = self.kind[b]
        cdef bint below = (self.where[b] >> (t + 1)) != 0 or self.home[b] > t
        self.books[t].evicted[k] += 1
        self.books[t].evicted_bytes += self.bytes[b]
        if t == self.n_tiers - 1 or self.pair[t].eviction != WRITE_BACK or below:
            self.remove_copy(t, b, EVICT)
            return
        self.books[t].demoted_out[k] += 1
        self.remove_copy(t, b, DEMOTE)
        self.settle(b, t + 1, t)

    cdef int insert(self, int t, block_t b) noexcept nogil:
        """Put a copy of b into tier t, and below where the rule writes through; -1 if it is too large or refused."""
        cdef int below = t + 1
        if self.bytes[b] > self.tier[t].view.capacity:
            return -1
        self.hold(b)
        if not self.make_room(t, self.bytes[b], b):
            self.let(b)
            self.books[t].refused[self.kind[b]] += 1
            return -1
        self.let(b)
        self.add_copy(t, b)
        if (below < self.n_tiers and self.pair[t].eviction == WRITE_THROUGH
                and not self.where[b] & self.tier[below].bit and self.home[b] != below):
            self.hold(b)
            if self.insert(below, b) == 0:
                self.count_back(t, below, b)
            self.let(b)
        return 0

    cdef int settle(self, block_t b, int u, int source) noexcept nogil:
        """Place b at tier u or below: new (source -1) or on its way down from `source`; the tier, or -1 if it is
        dropped."""
        cdef int v
        for v in range(u, self.n_tiers):
            if self.where[b] & self.tier[v].bit:
                return v
            if self.insert(v, b) == 0:
                if source < 0:
                    self.count_write(v, b, self.bytes[b], self.tier[v].path)
                else:
                    self.count_back(source, v, b)
                return v
            if self.status != OK:
                return -1
            if (v + 1 < self.n_tiers and self.pair[v].eviction == DISCARD
                    and self.bytes[b] <= self.tier[v].view.capacity):
                return -1
        return -1

    cdef int place(self, block_t b, int source) noexcept nogil:
        return self.settle(b, 0, source)

    cdef void promote(self, block_t b, int s) noexcept nogil:
        """Move the copy of b up from tier s as far as the rules between neighbours say."""
        cdef int top = s, v
        cdef uint32_t kind = <uint32_t>1 << self.kind[b]
        cdef bint at_home = self.home[b] == s
        cdef movement_t *rule
        while top > 0:
            rule = &self.pair[top - 1]
            if not rule.kinds & kind or rule.promote_after == 0:
                break
            if rule.promote_after > 1 and (top != s or at_home or self.tier[s].found[b] < rule.promote_after):
                break
            top -= 1
        if top == s:
            return
        self.hold(b)
        if self.pair[s - 1].exclusive and not at_home:
            self.remove_copy(s, b, PROMOTE)
        for v in range(s - 1, top - 1, -1):
            if v > top and self.pair[v - 1].exclusive:
                continue
            if self.where[b] & self.tier[v].bit:
                continue
            if self.insert(v, b) == 0:
                self.books[v].promoted_in[self.kind[b]] += 1
                self.count_write(v, b, self.bytes[b], 0)
            if self.status != OK:
                break
        if self.where[b] == 0 and self.home[b] < 0 and self.status == OK:
            self.insert(s, b)
        self.let(b)

    # -- accesses ---------------------------------------------------------------------------------------

    cdef void lookup(self, block_t b, bytes_t used) noexcept nogil:
        """Find b, count it, bring it: `used` bytes of it (-1: all)."""
        self.find(b, used)
        self.held[b] = self.where[b] & 1

    cdef void find(self, block_t b, bytes_t used) noexcept nogil:
        cdef int t = self.nearest(b), u, k = self.kind[b], top
        cdef tier_t *tier
        cdef bytes_t size = self.bytes[b]
        cdef bint whole = used < 0 or used >= size
        cdef bint usable
        if used < 0:
            used = size
        self.count_found(self.lookups[k], b, used)
        for u in range(self.n_tiers):
            self.tier[u].view.serial += self.mult
        top = t if t >= 0 else self.n_tiers
        for u in range(top):
            tier = &self.tier[u]
            if tier.policy.on_miss != NULL and (u + 1 >= self.n_tiers or self.pair[u].kinds & (1 << k)):
                tier.policy.on_miss(tier.policy.state, b)
                if tier.policy.failed:
                    self.status = POLICY_FAILED
        if t < 0:
            self.broken = True
            self.flops[0][self.seen[b]] += self.recompute[2 * b]
            self.flops[1][self.seen[b]] += self.recompute[2 * b + 1]
            self.settle(b, 0, -1)
            return
        usable = not (self.prefix_rule and self.broken and k == KV)
        self.count_found(self.books[t].hits[k][0], b, used)
        if not self.broken:
            self.count_found(self.books[t].hits[k][1], b, used)
        tier = &self.tier[t]
        if self.where[b] & tier.bit:
            if tier.found[b] < 0x7ffffff0:
                tier.found[b] += 1
            tier.policy.on_hit(tier.policy.state, b)
            if tier.policy.failed:
                self.status = POLICY_FAILED
        for u in range(t + 1, self.n_tiers):
            tier = &self.tier[u]
            if tier.touch_all and self.where[b] & tier.bit:
                tier.policy.on_hit(tier.policy.state, b)
                if tier.policy.failed:
                    self.status = POLICY_FAILED
        if usable:
            self.count_read(t, b, used)
            if t > 0 and whole and self.status == OK:
                self.promote(b, t)
            return
        self.flops[0][1] += self.recompute[2 * b]
        self.flops[1][1] += self.recompute[2 * b + 1]
        if t == 0:
            self.count_write(0, b, size, self.tier[0].path)
        elif self.home[b] < 0 and self.status == OK:
            self.hold(b)
            if self.pair[t - 1].exclusive:
                self.remove_copy(t, b, PROMOTE)
            self.settle(b, 0, -1)
            self.let(b)

    cdef void count_found(self, int64_t *counters, block_t b, bytes_t used) noexcept nogil:
        counters[0] += self.mult
        self.status |= add_bytes(&counters[1], self.tokens[b], self.mult)
        self.status |= add_bytes(&counters[2], used, self.mult)

    cdef void read(self, block_t b, bytes_t used) noexcept nogil:
        """Read `used` bytes (-1: all) of a live block where it lies; what no tier holds is charged to the
        outermost."""
        cdef int t = self.nearest(b)
        if used < 0:
            used = self.bytes[b]
        if t < 0:
            t = self.n_tiers - 1
            self.status |= add_bytes(&self.unheld, used, self.mult)
        self.count_read(t, b, used)

    cdef void write(self, block_t b, bytes_t used) noexcept nogil:
        """Write `used` bytes (-1: all) of b: at its nearest copy, or as a new block."""
        cdef int t
        cdef tier_t *tier
        if used < 0:
            used = self.bytes[b]
        if self.where[b] == 0:
            if self.home[b] >= 0:
                self.count_write(self.home[b], b, used, self.tier[self.home[b]].path)
            else:
                self.settle(b, 0, -1)
                self.held[b] = self.where[b] & 1
            return
        t = self.nearest(b)
        tier = &self.tier[t]
        self.count_write(t, b, used, tier.path)
        if self.where[b] & tier.bit:
            tier.policy.on_hit(tier.policy.state, b)
            if tier.policy.failed:
                self.status = POLICY_FAILED

    cdef void drop(self, block_t b) noexcept nogil:
        """Free every copy of b, unless it is pinned."""
        cdef int t
        if self.pins[b] != 0:
            return
        for t in range(self.n_tiers):
            if self.where[b] & self.tier[t].bit:
                self.books[t].freed[self.kind[b]] += 1
                self.remove_copy(t, b, FREED)

    cdef void context(self, block_t b, bytes_t used) noexcept nogil:
        """Read b and all its ancestors where they lie; `used` (-1: all) is the total, shared out by the bytes
        held."""
        cdef bytes_t held[MAX_TIERS + 1]
        cdef bytes_t sum = 0, before = 0, cum = 0, now, part
        cdef block_t a = b
        cdef int t
        cdef double scale
        memset(held, 0, sizeof(held))
        while a >= 0:
            t = self.nearest(a)
            if t != 0 and self.held[a] and self.bytes[a] <= self.room:
                t = 0
                self.room -= self.bytes[a]
            held[t if t >= 0 else self.n_tiers] += self.bytes[a]
            sum += self.bytes[a]
            a = self.parent[a]
        if used < 0:
            used = sum
        if sum == 0:
            self.read(b, used)
            return
        scale = <double>used / <double>sum
        for t in range(self.n_tiers + 1):
            if held[t] == 0:
                continue
            cum += held[t]
            now = used if cum == sum else min(used, <bytes_t>(<double>cum * scale))
            part = now - before
            before = now
            if t == self.n_tiers:
                self.status |= add_bytes(&self.unheld, part, self.mult)
                self.count_read(self.n_tiers - 1, b, part)
            else:
                self.count_read(t, b, part)

    cdef void prefetch(self, block_t b) noexcept nogil:
        """Bring b up as a look-up would, without counting one."""
        cdef int t = self.nearest(b)
        if t > 0:
            self.count_read(t, b, self.bytes[b])
            self.promote(b, t)

    cdef void demote(self, block_t b, int u) noexcept nogil:
        """Move b's copy from tier u to the one below, as a pause may ask."""
        if self.where[b] & self.tier[u].bit and self.pins[b] == 0 and u + 1 < self.n_tiers:
            self.books[u].demoted_out[self.kind[b]] += 1
            self.remove_copy(u, b, DEMOTE)
            self.settle(b, u + 1, u)

    cdef void pin(self, block_t b) noexcept nogil:
        """Keep b from being a victim until it is unpinned as often."""
        if self.own_pins[b] < 0x3ffffff0:
            self.own_pins[b] += 1
            self.hold(b)

    cdef void unpin(self, block_t b) noexcept nogil:
        if self.own_pins[b] > 0:
            self.own_pins[b] -= 1
            self.let(b)

    # -- for a closed loop: counting, telling and moving apart from each other, and room that is in no block ----

    cdef void count(self, block_t b, int t) noexcept nogil:
        """Count a look-up of b that tier t (-1: none) answered; KV behind a missing block is no hit by the prefix
        rule."""
        cdef int k = self.kind[b]
        self.count_found(self.lookups[k], b, self.bytes[b])
        if t < 0:
            self.broken = True
            return
        self.count_found(self.books[t].hits[k][0], b, self.bytes[b])
        if not self.broken:
            self.count_found(self.books[t].hits[k][1], b, self.bytes[b])

    cdef void touch(self, block_t b) noexcept nogil:
        """Tell the policies of a look-up of b."""
        cdef int t = self.nearest(b), u, k = self.kind[b]
        cdef tier_t *tier
        for u in range(self.n_tiers):
            self.tier[u].view.serial += 1
        for u in range(t if t >= 0 else self.n_tiers):
            tier = &self.tier[u]
            if tier.policy.on_miss != NULL and (u + 1 >= self.n_tiers or self.pair[u].kinds & (1 << k)):
                tier.policy.on_miss(tier.policy.state, b)
                if tier.policy.failed:
                    self.status = POLICY_FAILED
        if t < 0:
            return
        if self.where[b] & self.tier[t].bit:
            tier = &self.tier[t]
            if tier.found[b] < 0x7ffffff0:
                tier.found[b] += 1
            tier.policy.on_hit(tier.policy.state, b)
            if tier.policy.failed:
                self.status = POLICY_FAILED
        for u in range(t + 1, self.n_tiers):
            tier = &self.tier[u]
            if tier.touch_all and self.where[b] & tier.bit:
                tier.policy.on_hit(tier.policy.state, b)
                if tier.policy.failed:
                    self.status = POLICY_FAILED

    cdef void renew(self, block_t b) noexcept nogil:
        """Let the nearest tier's policy take b for one that has come just now."""
        cdef policy_t *policy = self.tier[0].policy
        policy.on_remove(policy.state, b, PROMOTE)
        policy.on_insert(policy.state, b)
        if policy.failed:
            self.status = POLICY_FAILED

    cdef void foresee(self, block_t b, int64_t at) noexcept nogil:
        """Tell the policies when b is used next."""
        cdef int t
        self.next_use[b] = at
        for t in range(self.n_tiers):
            if self.where[b] & self.tier[t].bit and self.tier[t].policy.flags & NEEDS_FUTURE:
                self.tier[t].policy.on_hit(self.tier[t].policy.state, b)
                if self.tier[t].policy.failed:
                    self.status = POLICY_FAILED

    cdef bytes_t available(self, int t) noexcept nogil:
        """Bytes of tier t that a claim could have: all that no pinned block holds."""
        return self.tier[t].view.capacity - self.tier[t].held

    cdef bint claim(self, int t, bytes_t amount) noexcept nogil:
        """Take room of tier t for what is in no block (the last one stands for it), evicting for it."""
        if not self.make_room(t, amount, self.n - 1):
            return False
        self.tier[t].claimed += amount
        self.tier[t].view.capacity -= amount
        return True

    cdef void unclaim(self, int t, bytes_t amount) noexcept nogil:
        """Give claimed room back."""
        self.tier[t].claimed -= amount
        self.tier[t].view.capacity += amount

    cdef bint rises(self, block_t b, int s) noexcept nogil:
        """Whether a copy of b found in tier s may move up."""
        cdef movement_t *rule = &self.pair[s - 1]
        if not rule.kinds & (<uint32_t>1 << self.kind[b]) or rule.promote_after == 0:
            return False
        return rule.promote_after == 1 or (self.home[b] != s and self.tier[s].found[b] >= rule.promote_after)

    cdef void shift(self, int u, int v, bytes_t amount) noexcept nogil:
        """Book the move of private KV from tier u to tier v."""
        cdef uint32_t links = self.tier[u].path ^ self.tier[v].path
        cdef int far = max(u, v), link = 0
        if amount == 0:
            return
        self.moved = True
        if u < v:
            self.traffic[u].back_read[0][<int>KV] += amount
            self.traffic[v].back_write[0][<int>KV] += amount
        else:
            self.traffic[u].read[0][<int>KV] += amount
            self.traffic[v].write[0][<int>KV] += amount
            self.traffic[v].transfers[0] += self.transfers_of(v, amount)
        self.traffic[far].transfers[0] += self.transfers_of(far, amount)
        while links:
            if links & 1:
                if u < v:
                    self.link_down[link] += amount
                else:
                    self.link_up[link] += amount
            links >>= 1
            link += 1

    cdef void land(self, int t, bytes_t amount) noexcept nogil:
        """Book private KV that comes from another pool into tier t."""
        cdef uint32_t links = self.tier[t].path
        cdef int link = 0
        if amount == 0:
            return
        self.moved = True
        self.traffic[t].write[0][<int>KV] += amount
        self.traffic[t].transfers[0] += self.transfers_of(t, amount)
        if links:
            self.traffic[t].down += amount
        while links:
            if links & 1:
                self.link_down[link] += amount
            links >>= 1
            link += 1

    cdef int64_t transfers_of(self, int t, bytes_t amount) noexcept nogil:
        """Transfers that so many bytes take."""
        return (amount + self.tier[t].fragment - 1) // self.tier[t].fragment if self.tier[t].fragment else 1

    cdef bint has_child(self, block_t b, uint32_t tiers) noexcept nogil:
        """Whether a child of b has a copy in one of these tiers."""
        cdef int t
        for t in range(self.n_tiers):
            if tiers >> t & 1 and self.tier[t].children[b] > 0:
                return True
        return False

    cdef void begin_request(self, int64_t request) noexcept nogil:
        cdef int t
        self.broken = False
        for t in range(self.n_tiers):
            if self.tier[t].policy.on_request_begin != NULL:
                self.tier[t].policy.on_request_begin(self.tier[t].policy.state, request)
                if self.tier[t].policy.failed:
                    self.status = POLICY_FAILED

    cdef void end_request(self) noexcept nogil:
        cdef int t
        for t in range(self.n_tiers):
            if self.tier[t].policy.on_request_end != NULL:
                self.tier[t].policy.on_request_end(self.tier[t].policy.state)
                if self.tier[t].policy.failed:
                    self.status = POLICY_FAILED

    cdef bint inert(self, block_t b, int op, bytes_t used) noexcept nogil:
        """Whether the access changes neither residency nor a policy: repeating it only repeats its bytes."""
        cdef int h = self.home[b]
        if op == READ or op == CONTEXT:
            return True
        if h < 0 or self.where[b] != 0:
            return False
        if op == WRITE or op == FREE or h == 0:
            return True
        if used >= 0 and used < self.bytes[b]:
            return self.quiet(b, h)
        if not self.pair[h - 1].kinds & (1 << self.kind[b]) or self.pair[h - 1].promote_after != 1:
            return self.quiet(b, h)
        return False

    cdef bint quiet(self, block_t b, int h) noexcept nogil:
        """Whether no policy above tier h wants to hear of a miss of b."""
        cdef int u
        for u in range(h):
            if self.tier[u].policy.on_miss != NULL and self.pair[u].kinds & (1 << self.kind[b]):
                return False
        return True

    # -- the books, derived again --------------------------------------------------------------------------

    cdef int audit(self) noexcept nogil:
        """Derive used bytes, children, unreachable bytes and pins anew; NOT_CONSERVED if any differs."""
        cdef int t
        cdef block_t b, p
        cdef bytes_t used, lost = 0
        cdef int64_t pins = 0
        cdef block_t count
        cdef bytes_t held
        for t in range(self.n_tiers):
            if self.tier[t].view.capacity + self.tier[t].home_bytes + self.tier[t].claimed != self.tier[t].total:
                return NOT_CONSERVED
            used = 0
            count = 0
            held = 0
            for b in range(self.n):
                if self.where[b] & self.tier[t].bit:
                    used += self.bytes[b]
                    count += 1
                    if self.pins[b] != 0:
                        held += self.bytes[b]
            if held != self.tier[t].held or self.tier[t].claimed < 0:
                return NOT_CONSERVED
            if (used != self.tier[t].view.used or count != self.tier[t].view.resident
                    or used > self.tier[t].view.capacity
                    or self.books[t].bytes_in != self.books[t].bytes_out + used):
                return NOT_CONSERVED
            for b in range(self.n):
                p = self.parent[b]
                if p >= 0 and self.where[b] & self.tier[t].bit:
                    self.tier[t].children[p] -= 1
            for b in range(self.n):
                if self.tier[t].children[b] != 0:
                    return NOT_CONSERVED
            for b in range(self.n):
                p = self.parent[b]
                if p >= 0 and self.where[b] & self.tier[t].bit:
                    self.tier[t].children[p] += 1
        for b in range(self.n):
            p = self.parent[b]
            if p >= 0 and self.where[b] and not self.where[p]:
                lost += self.bytes[b]
            if self.pins[b] != self.own_pins[b]:
                return NOT_CONSERVED
            pins += self.pins[b]
        if pins != self.pinned:
            return NOT_CONSERVED
        return OK if lost == self.unreachable else NOT_CONSERVED

    def check(self):
        """Derive the books again from the residency bits.

        Raises
        ------
        RuntimeError
            If used bytes, counts, children, unreachable bytes or pins do not balance.
        """
        cdef int status
        with nogil:
            status = self.audit()
        raise_status(status, self.policies)

    def act(self, str verb, block_t b, int t=0, bytes_t used=-1):
        """Do one thing to one block: what a loop does to the store, a step at a time.

        Parameters
        ----------
        verb : {"lookup", "read", "write", "free", "context", "pin", "unpin", "prefetch", "demote"}
        b : int
            A block.
        t : int
            The tier that `demote` takes it from.
        used : int
            Bytes of the access, -1 for the block's own.

        Raises
        ------
        ValueError
            If the verb is unknown or a number out of range.
        """
        if not 0 <= b < self.n or not 0 <= t < self.n_tiers or not -1 <= used <= (<int64_t>1 << MAX_SHIFT):
            raise ValueError(f"block {b}, tier {t} or {used} bytes are out of range")
        if self.busy:
            raise RuntimeError("this store is in use")
        self.busy = True
        self.mult = 1
        self.begin_step()
        if verb == "lookup":
            self.lookup(b, used)
        elif verb == "read":
            self.read(b, used)
        elif verb == "write":
            self.write(b, used)
        elif verb == "free":
            self.drop(b)
        elif verb == "context":
            self.context(b, used)
        elif verb == "pin":
            self.pin(b)
        elif verb == "unpin":
            self.unpin(b)
        elif verb == "prefetch":
            self.prefetch(b)
        elif verb == "demote":
            self.demote(b, t)
        else:
            self.busy = False
            raise ValueError(f"the store cannot {verb!r}")
        if self.status == OK:
            self.status = self.end_step(1)
        self.busy = False
        raise_status(self.status, self.policies)

    def resident(self, int t):
        """Return the blocks with a copy in tier t, the home's own not among them, as a list."""
        if not 0 <= t < self.n_tiers:
            raise IndexError(f"tier {t} is not in 0 … {self.n_tiers - 1}")
        return [b for b in range(self.n) if self.where[b] & self.tier[t].bit]
