from typing import Any

from kvsim_core._policy import Policy

def next_uses(
    last_block: Any, parent: Any, position: Any, output_block: Any = None
) -> tuple[memoryview, memoryview]: ...
def curve(
    last_block: Any,
    prompt_tokens: Any,
    parent: Any,
    position: Any,
    tokens: Any,
    size: Any,
    policy: Policy,
    *,
    capacity: int,
    block_tokens: int = 0,
    prefix: bool = False,
    leaf_only: bool = False,
    half_block: bool = False,
    measure_from: int = 0,
    output_block: Any = None,
    future: Any = None,
    output_future: Any = None,
) -> tuple[int, int, int, int]: ...
