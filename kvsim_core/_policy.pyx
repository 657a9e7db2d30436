"""Registration of policies, adapters to the slot, and the table of errors.

A policy reaches the slot in one of four ways: a Cython class (subclass of `Policy`), a versioned capsule, the
addresses of C functions (ctypes, cffi, numba), or a plain Python object with the slot's methods.
"""
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, uintptr_t
from libc.string cimport memcpy, memset

from collections.abc import Callable, Mapping

from kvsim_core._types cimport (
    BAD_VICTIM, BYTES_OVERFLOW, NO_MEMORY, NOT_CONSERVED, OK, POLICY_FAILED, TIME_OVERFLOW,
)

CAPSULE_NAME = "kvsim_core.policy_v1"
cdef const char *_CAPSULE = "kvsim_core.policy_v1"

_registry = {}


def register(str name, factory):
    """Make a policy known under `name`; `factory(seed=0)` returns a fresh `Policy`.

    Raises
    ------
    ValueError
        If another factory holds the name.
    """
    if _registry.get(name, factory) is not factory:
        raise ValueError(f"policy {name!r} is registered already")
    _registry[name] = factory


def registered():
    """Return the registered policies as a new dict from name to factory."""
    return dict(_registry)


cdef class Policy:
    """A filled slot, ready to serve one tier."""

    def __cinit__(self, *args, **kwargs):
        memset(&self.c, 0, sizeof(policy_t))
        self.c.struct_size = sizeof(policy_t)
        self.attached = False

    @property
    def admits_all(self):
        """Whether the policy never refuses while something may be evicted."""
        return bool(self.c.flags & ADMITS_ALL)

    @property
    def needs_future(self):
        """Whether the policy reads the time of each block's next use."""
        return bool(self.c.flags & NEEDS_FUTURE)

    @property
    def needs_parents(self):
        """Whether the policy reads parents or children of blocks."""
        return bool(self.c.flags & NEEDS_PARENTS)

    @property
    def capsule(self):
        """The slot as a `PyCapsule` named ``kvsim_core.policy_v1``; it keeps this object alive as long as itself."""
        capsule = PyCapsule_New(&self.c, _CAPSULE, forget)
        PyCapsule_SetContext(capsule, <void *>self)
        Py_INCREF(self)
        return capsule


cdef void forget(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


cdef policy_t *acquire(Policy policy) except NULL:
    """Take `policy` for one tier.

    Raises
    ------
    ValueError
        If it already serves a tier, or its slot lacks a required hook.
    """
    if policy.attached:
        raise ValueError("this policy object already serves a tier: make one for each")
    if (policy.c.struct_size != sizeof(policy_t) or policy.c.on_hit == NULL or policy.c.on_insert == NULL
            or policy.c.on_remove == NULL or policy.c.victim == NULL):
        raise ValueError("the policy's slot is incomplete: on_hit, on_insert, on_remove and victim are required")
    policy.attached = True
    if policy.c.reset != NULL:
        policy.c.reset(policy.c.state)
    return &policy.c


cdef void release(Policy policy) noexcept:
    policy.attached = False
    if isinstance(policy, PythonPolicy) and (<PythonPolicy>policy).view is not None:
        (<PythonPolicy>policy).view.v = &_nothing    # the object may outlive the run it looked at


_MESSAGES = {
    NO_MEMORY: (MemoryError, "not enough memory for the per-block arrays"),
    BAD_VICTIM: (RuntimeError, "a policy named a victim that is not resident, is pinned or has children in its tier"),
    TIME_OVERFLOW: (OverflowError, "the clock passed 2^62 ps (53 days): less work, or a faster machine"),
    BYTES_OVERFLOW: (OverflowError, "a byte counter passed 2^62"),
    NOT_CONSERVED: (RuntimeError, "the store's books do not balance"),
}


cdef int raise_status(int status, list policies) except -1:
    """Turn a loop's status into the exception it stands for."""
    if status == OK:
        return 0
    if status == POLICY_FAILED:
        for policy in policies:
            error = getattr(policy, "error", None)
            if error is not None:
                raise error
    kind, message = _MESSAGES.get(status, (RuntimeError, f"status {status}"))
    raise kind(message)


cdef view_t _nothing      # the view of a policy that serves no tier: no blocks
memset(&_nothing, 0, sizeof(view_t))


# -- a plain Python object ------------------------------------------------------------------------------

cdef class View:
    """What a Python policy may read of its tier; numbers, by block id."""
    cdef const view_t *v

    @staticmethod
    cdef View wrap(const view_t *v):
        cdef View view = View.__new__(View)
        view.v = v
        return view

    cdef int _check(self, block_t b) except -1:
        if not 0 <= b < self.v.n_blocks:
            raise IndexError(f"block {b} is not in 0 … {self.v.n_blocks - 1}")
        return 0

    @property
    def leaf_only(self):
        """Whether only blocks without a child in this tier may be evicted."""
        return bool(self.v.leaf_only)

    @property
    def capacity(self):
        """Capacity of the tier in bytes (or blocks, tokens: the unit of the run)."""
        return self.v.capacity

    @property
    def used(self):
        """Bytes in use."""
        return self.v.used

    @property
    def resident(self):
        """Number of blocks in the tier."""
        return self.v.resident

    @property
    def now(self):
        """The clock, picoseconds."""
        return self.v.now

    @property
    def serial(self):
        """Number of look-ups so far."""
        return self.v.serial

    def evictable(self, block_t b):
        """Whether the store lets `b` go."""
        self._check(b)
        return bool(evictable(self.v, b))

    def bytes(self, block_t b):
        """Size of `b`."""
        self._check(b)
        return self.v.bytes[b]

    def kind(self, block_t b):
        """Kind of `b`: 0 kv, 1 weights, 2 state, 3 data."""
        self._check(b)
        return self.v.kind[b] if self.v.kind != NULL else 0

    def parent(self, block_t b):
        """Parent of `b`, -1 for none."""
        self._check(b)
        return self.v.parent[b] if self.v.parent != NULL else -1

    def children(self, block_t b):
        """Number of children of `b` in this tier."""
        self._check(b)
        return self.v.children[b] if self.v.children != NULL else 0

    def position(self, block_t b):
        """Place of `b` in its prompt."""
        self._check(b)
        return self.v.position[b] if self.v.position != NULL else 0

    def tokens(self, block_t b):
        """Tokens in `b`."""
        self._check(b)
        return self.v.tokens[b] if self.v.tokens != NULL else 0

    def next_use(self, block_t b):
        """Index of the next look-up of `b`; 2^63 - 1 for never or unknown."""
        self._check(b)
        return self.v.next_use[b] if self.v.next_use != NULL else INT64_MAX

    def session(self, block_t b):
        """Session that `b` belongs to, -1 if unknown."""
        self._check(b)
        return self.v.session[b] if self.v.session != NULL else -1

    def priority(self, block_t b):
        """Priority of `b`."""
        self._check(b)
        return self.v.priority[b] if self.v.priority != NULL else 0

    def pins(self, block_t b):
        """How often `b` is pinned."""
        self._check(b)
        return self.v.pins[b]


cdef class PythonPolicy(Policy):
    """Adapter from a Python object with the slot's methods.

    Parameters
    ----------
    policy : object
        With ``on_hit(b)``, ``on_insert(b)``, ``on_remove(b, reason)``, ``victim(incoming)`` and, where it wants them,
        ``attach(view)``, ``on_miss(b)``, ``on_request_begin(request)``, ``on_request_end()`` and ``reset()``. The
        reason is
        0 evict, 1 demote, 2 free, 3 promote. Attributes ``admits_all``, ``needs_future`` and ``needs_parents`` are
        its flags.

    Notes
    -----
    An exception in a hook ends the run and is raised from it. Each call takes the GIL: some 0.5 µs, against 10 ns in
    C.
    """
    cdef public object error
    cdef readonly object policy
    cdef View view
    cdef object _hit, _miss, _insert, _remove, _victim, _begin, _end, _reset, _attach

    def __cinit__(self, policy, **kwargs):
        self.policy = policy
        self.error = None
        self._hit = getattr(policy, "on_hit", None)
        self._insert = getattr(policy, "on_insert", None)
        self._remove = getattr(policy, "on_remove", None)
        self._victim = getattr(policy, "victim", None)
        for name, hook in (("on_hit", self._hit), ("on_insert", self._insert), ("on_remove", self._remove),
                           ("victim", self._victim)):
            if not isinstance(hook, Callable):
                raise TypeError(f"{type(policy).__name__} is no policy: it lacks the method {name}")
        self._miss = getattr(policy, "on_miss", None)
        self._begin = getattr(policy, "on_request_begin", None)
        self._end = getattr(policy, "on_request_end", None)
        self._reset = getattr(policy, "reset", None)
        self._attach = getattr(policy, "attach", None)
        self.c.flags = ((ADMITS_ALL if getattr(policy, "admits_all", True) else 0)
                        | (NEEDS_FUTURE if getattr(policy, "needs_future", False) else 0)
                        | (NEEDS_PARENTS if getattr(policy, "needs_parents", False) else 0))
        self.c.state = <void *>self
        self.c.attach = py_attach
        self.c.on_hit = py_hit
        self.c.on_insert = py_insert
        self.c.on_remove = py_remove
        self.c.victim = py_victim
        if self._miss is not None:
            self.c.on_miss = py_miss
        if self._begin is not None:
            self.c.on_request_begin = py_begin
        if self._end is not None:
            self.c.on_request_end = py_end
        if self._reset is not None:
            self.c.reset = py_reset


cdef int py_failed(PythonPolicy p, error) except -1:
    if p.error is None:
        p.error = error
    p.c.failed = 1
    return 0


cdef void py_attach(void *state, const view_t *view) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p._attach is not None:
            try:
                if p.view is None or p.view.v != view:
                    p.view = View.wrap(view)
                p._attach(p.view)
            except BaseException as error:
                py_failed(p, error)


cdef void py_hit(void *state, block_t b) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                p._hit(b)
            except BaseException as error:
                py_failed(p, error)


cdef void py_miss(void *state, block_t b) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                p._miss(b)
            except BaseException as error:
                py_failed(p, error)


cdef void py_insert(void *state, block_t b) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                p._insert(b)
            except BaseException as error:
                py_failed(p, error)


cdef void py_remove(void *state, block_t b, int reason) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                p._remove(b, reason)
            except BaseException as error:
                py_failed(p, error)


cdef block_t py_victim(void *state, block_t incoming) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                chosen = p._victim(incoming)
                return REFUSE if chosen is None else <block_t>chosen
            except BaseException as error:
                py_failed(p, error)
        return REFUSE


cdef void py_begin(void *state, int64_t request) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                p._begin(request)
            except BaseException as error:
                py_failed(p, error)


cdef void py_end(void *state) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        if p.error is None:
            try:
                p._end()
            except BaseException as error:
                py_failed(p, error)


cdef void py_reset(void *state) noexcept nogil:
    with gil:
        p = <PythonPolicy>state
        p.error = None
        p.c.failed = 0
        try:
            p._reset()
        except BaseException as error:
            py_failed(p, error)


# -- C functions ------------------------------------------------------------------------------------------

cdef class CPolicy(Policy):
    """Adapter from C: a capsule named ``kvsim_core.policy_v1``, or the addresses of the hooks.

    Parameters
    ----------
    source : PyCapsule or mapping of str to int
        A capsule over a ``policy_t`` that this version understands, or addresses by hook name
        (``grow attach on_hit on_miss on_insert on_remove victim on_request_begin on_request_end reset hint``).
    state : int, optional
        Address handed to every hook; only with a mapping.
    flags : int, optional
        1 admits all, 2 needs the future, 4 needs parents; only with a mapping.
    owner : object, optional
        Kept alive as long as this policy (a ctypes library, a numba function, an array).

    Raises
    ------
    ValueError
        If the capsule has another name or size, or the mapping names an unknown hook.
    """
    cdef readonly object owner

    def __cinit__(self, source, *, uintptr_t state=0, uint32_t flags=ADMITS_ALL, owner=None, **kwargs):
        cdef policy_t *other
        cdef uintptr_t address
        self.owner = (source, owner)
        if not isinstance(source, Mapping):
            other = <policy_t *>PyCapsule_GetPointer(source, _CAPSULE)
            if other.struct_size != sizeof(policy_t):
                raise ValueError(
                    f"the capsule's struct has {other.struct_size} bytes, this version's {sizeof(policy_t)}")
            memcpy(&self.c, other, sizeof(policy_t))
            return
        self.c.state = <void *>state
        self.c.flags = flags
        for name, value in source.items():
            address = value
            if name == "grow":
                self.c.grow = <grow_fn>address
            elif name == "attach":
                self.c.attach = <attach_fn>address
            elif name == "on_hit":
                self.c.on_hit = <block_fn>address
            elif name == "on_miss":
                self.c.on_miss = <block_fn>address
            elif name == "on_insert":
                self.c.on_insert = <block_fn>address
            elif name == "on_remove":
                self.c.on_remove = <remove_fn>address
            elif name == "victim":
                self.c.victim = <victim_fn>address
            elif name == "on_request_begin":
                self.c.on_request_begin = <request_fn>address
            elif name == "on_request_end":
                self.c.on_request_end = <plain_fn>address
            elif name == "reset":
                self.c.reset = <plain_fn>address
            elif name == "hint":
                self.c.hint = <block_fn>address
            else:
                raise ValueError(f"a policy has no hook {name!r}")
