from typing import Any

from typing_extensions import disjoint_base

from kvsim_core._clock import Clock
from kvsim_core._store import Store

@disjoint_base
class Replayer:
    @property
    def store(self) -> Store: ...
    @property
    def clock(self) -> Clock: ...
    def __init__(self, store: Store, clock: Clock) -> None: ...
    def feed(
        self,
        arrival_ps: Any,
        flops: Any,
        fixed_ps: Any,
        tokens: Any,
        repeat: Any,
        request: Any,
        offsets: Any,
        block: Any,
        op: Any,
        size: Any = None,
        next_use: Any = None,
    ) -> None: ...
    def check(self) -> None: ...
    def result(self) -> dict[str, Any]: ...
