from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

__all__ = ["Expander"]

@disjoint_base
class Expander:
    def __init__(
        self,
        *,
        arrival_ps: ArrayLike,
        input_tokens: ArrayLike,
        output_tokens: ArrayLike,
        last_block: ArrayLike,
        output_block: ArrayLike,
        category: ArrayLike,
        after_offsets: ArrayLike,
        after: ArrayLike,
        data_offsets: ArrayLike,
        data: ArrayLike,
        prompt_flops: ArrayLike,
        prompt_tokens: ArrayLike,
        private_tokens: ArrayLike,
        block_parent: ArrayLike,
        block_position: ArrayLike,
        checkpoint_lookup: ArrayLike,
        checkpoint_last: ArrayLike,
        checkpoint_whole: ArrayLike,
        checkpoint_output: ArrayLike,
        weight_block: ArrayLike,
        weight_expert: ArrayLike,
        weight_most: ArrayLike,
        weight_token_bytes: ArrayLike,
        expert_bytes: ArrayLike,
        kv_read: tuple[ArrayLike, ArrayLike, ArrayLike],
        decode_attention: tuple[ArrayLike, ArrayLike, ArrayLike],
        decode_flops: Sequence[float],
        kv_write_bytes: int,
        state_bytes: int,
        lane_block: int,
        lane_state: int,
        blocks: int,
        lanes: int,
        access_room: int = ...,
    ) -> None: ...
    @property
    def admitted(self) -> int: ...
    def count_rows(self) -> int: ...
    def next_chunk(self, steps: int = ...) -> dict[str, NDArray[Any]] | None: ...
