"""The executable specification: small, slow, obviously right; the core must equal it, integer for integer.

`memory` holds policies, store, clock, replay and curve; `engine` the closed loop of `kvsim.run`.
"""

from kvsim.reference.engine import Engine
from kvsim.reference.memory import POLICIES, Clock, Store, chain, curve, replay

__all__ = ["POLICIES", "Clock", "Engine", "Store", "chain", "curve", "replay"]
