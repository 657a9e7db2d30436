"""Concrete C types, limits and codes shared by the whole core."""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef int32_t block_t   # a dense block id, 0 … n_blocks - 1
ctypedef int64_t bytes_t   # a size; the capacity curve also counts blocks or tokens with it
ctypedef int64_t tick_t    # picoseconds

cdef enum:
    MAX_TIERS = 8          # residency of a block is one bit a tier
    MAX_LINKS = 16
    N_KINDS = 4            # kv, weights, state, data
    N_OPERATIONS = 2       # attention, ffn
    N_RULES = 2            # block, prefix
    N_WEIGHTS = 3          # block, token, byte
    N_CAUSES = 5           # latency, overhead, bandwidth, channel, write_back

cdef enum kind_t:
    KV = 0
    WEIGHTS = 1
    STATE = 2
    DATA = 3

cdef enum op_t:
    LOOKUP = 0
    READ = 1
    WRITE = 2
    FREE = 3
    CONTEXT = 4
    N_OPS = 5

cdef enum status_t:        # what a loop without the GIL hands back; see _policy.raise_status
    OK = 0
    NO_MEMORY = 1
    BAD_VICTIM = 2         # a policy named a block that it may not evict
    POLICY_FAILED = 3      # a Python policy raised; its adapter keeps the exception
    TIME_OVERFLOW = 4      # the clock passed 2^62 ps (53 days)
    BYTES_OVERFLOW = 5     # a byte counter passed 2^62
    NOT_CONSERVED = 6      # the books do not balance (debug builds and tests)
