from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

from kvsim_core._policy import Policy
from kvsim_core._store import Store

@disjoint_base
class Engine:
    n: int
    stores: list[Store]
    def __init__(
        self, spec: Mapping[str, Any], policies: Sequence[Sequence[Policy]], *, record: bool = False
    ) -> None: ...
    def run(self, budget: int = ...) -> bool: ...
    def progress(self) -> tuple[int, int, int]: ...
    def check(self) -> None: ...
    def result(self) -> dict[str, Any]: ...
