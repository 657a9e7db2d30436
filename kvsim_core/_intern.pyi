import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST_BLOCKS: int

def intern_chains(
    ids: ArrayLike, offsets: ArrayLike, namespace: ArrayLike, *, limit: int = ...
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.int32],
]: ...
def intern_ids(ids: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
def expand_chains(
    last_block: ArrayLike, parent: ArrayLike, position: ArrayLike
) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
def ancestors_at(
    block: ArrayLike, wanted: ArrayLike, parent: ArrayLike, position: ArrayLike
) -> NDArray[np.int32]: ...
def depths(parent: ArrayLike) -> NDArray[np.int32]: ...
def renumber_chains(
    last_block: ArrayLike, output_block: ArrayLike, parent: ArrayLike, position: ArrayLike
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def find_cycle(offsets: ArrayLike, after: ArrayLike) -> int: ...
