from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

from kvsim_core._policy import Policy

@disjoint_base
class Store:
    @property
    def n_tiers(self) -> int: ...
    @property
    def n_links(self) -> int: ...
    @property
    def policies(self) -> list[Policy]: ...
    def __init__(
        self,
        tiers: Sequence[Mapping[str, Any]],
        movements: Sequence[Mapping[str, Any]],
        policies: Sequence[Policy],
        *,
        n_links: int = 0,
        prefix_rule: bool = True,
        workspace_bytes: int = 0,
    ) -> None: ...
    def bind(
        self, size: Any, tokens: Any, kind: Any, operation: Any, parent: Any, position: Any, home: Any, recompute: Any
    ) -> None: ...
    def check(self) -> None: ...
    def act(self, verb: str, b: int, t: int = 0, used: int = -1) -> None: ...
    def resident(self, t: int) -> list[int]: ...
