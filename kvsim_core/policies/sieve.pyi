from typing_extensions import disjoint_base

from kvsim_core._policy import Policy

@disjoint_base
class Sieve(Policy):
    def __init__(self, *, seed: int = 0) -> None: ...
