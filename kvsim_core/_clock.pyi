from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Clock:
    def __init__(
        self,
        tiers: Sequence[Mapping[str, Any]],
        links: Sequence[Mapping[str, Any]],
        *,
        ps_per_flop: Sequence[float] = (0.0, 0.0),
        overhead_ps: int = 0,
        collective_ps: float = 0.0,
        collective_ps_per_token: float = 0.0,
    ) -> None: ...
