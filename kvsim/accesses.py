"""Requests expanded to steps: the open-loop schedule of a trace on a model.

No clock is known here, so the schedule counts steps, not seconds. `lanes` requests run at once.
They start in the trace's order; one that comes `after` others waits until those have completed *in
the schedule*, without holding up the requests behind it, and its `delay_ps` plays no part. A step
is one of two kinds:

* **Admission** (one request, repeat 1, whenever a lane is free and a request is ready). The whole
  prompt is looked up front to back and the request's first token comes out. All other running lanes
  decode one token. Its arrival is the request's: the clock waits for it. Its FLOPs are what hits
  cannot save: the prompt's *private* tokens (those beyond its blocks), at least one, and the last
  token's logits; what a look-up does not find adds its block's `recompute_flops` at replay.
* **Decode** (repeat r). Until the next completion the batch is constant, so r equal steps are one
  row, under the arrival and category of the latest admission. A lane whose context runs c, c + 1,
  … c + r - 1 is charged r times its mean, rounded half up (c + r // 2).

The accesses of a row, in this order:

1. weights: one `lookup` a weights block. Expert blocks carry the bytes that the step's tokens are
   expected to touch (`Model.ffn_read_bytes`), in equal shares by layer, and the embedding a row a
   token; an admission counts its whole prompt, an upper bound when part of it hits.
2. for the request admitted: a `lookup` of each piece of data that it reads; on a model with
   per-sequence state, a `lookup` of the state checkpoint at the end of its shared prefix (missing,
   it breaks the prefix run: a recurrent layer cannot resume without it); a `lookup` of each prompt
   block, root first; a `write` of the checkpoints at its last whole block (where some prefix ends
   there) and at its last block; a `write` of its lane's state; a `write` of its private tokens' KV.
3. for each other running lane, in order of admission: `context` on the prompt's last block (`read`
   of the lane's own pseudo-block where the prompt has no ids) with the bytes that attention reads
   at this context; `read` and `write` of its state; `write` of the new token's KV.
4. for each lane that completes and whose output blocks the trace knows: `write` of these, front to
   back, in a step of its own (they are then not also written token by token), and of the checkpoint
   at the last of them, where some prefix ends there.

Traffic without residency (private KV, state) goes to one pseudo-block a lane, of zero bytes, at
home in the nearest tier: its room is the machine's `reserve`. Nothing is freed.

The block table: the trace's KV blocks with their own ids, then weights, then state checkpoints
(where a prompt or a shared prefix ends), then lanes: KV, then state; then the trace's data, at home
in the outermost tier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvsim.errors import ModelError, TraceError
from kvsim.model import ATTENTION, FFN
from kvsim.trace import OUTERMOST, AccessStream, AccessTrace, BlockTable, RequestTrace, TraceMeta
from kvsim_core import Expander

if TYPE_CHECKING:
    from kvsim.model import Model

__all__ = ["expand"]

_KV, _WEIGHTS, _STATE, _DATA = 0, 1, 2, 3
_EXPERT_ROWS_MOST = 1 << 20
_TOKENS_MOST = 1 << 31  # of one request, each way
_ACTIVATION_BYTES = 2  # of one number between devices: bf16, also where weights are smaller

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]
_Blocks = NDArray[np.int32]
_Knots = tuple[_Ints, _Floats, _Floats]


class _Plan(NamedTuple):
    """What the core needs, and the block table's columns."""

    core: dict[str, Any]
    table: dict[str, Any]


def expand(
    trace: RequestTrace, model: Model, *, lanes: int = 32, chunk_steps: int = 2048, weights: bool = True
) -> AccessStream:
    """Expand the requests of `trace` to the steps that `model` runs for them.

    Parameters
    ----------
    trace : the requests; rows are taken in order, as the module describes.
    model : gives every size and FLOP count.
    lanes : requests that run at once, 1 or more.
    chunk_steps : rows of steps in a chunk, at most; a chunk also ends after a million accesses.
    weights : whether steps look the weights up.

    Returns
    -------
    AccessStream : may be iterated any number of times; memory is O(blocks + one chunk).

    Raises
    ------
    TraceError : counts too large to schedule, or requests that wait for each other.
    ModelError : the model's sizes are not finite, negative, or not piecewise linear in the context.
    ValueError : `lanes` or `chunk_steps` below 1.
    """
    if lanes < 1:
        raise ValueError(f"lanes: expected 1 or more, found {lanes}")
    if not 1 <= chunk_steps <= 1 << 24:
        raise ValueError(f"chunk_steps: expected 1 up to {1 << 24}, found {chunk_steps}")
    core, table = _plan(trace, model, lanes=lanes, weights=weights)
    blocks = BlockTable(**table)
    meta = TraceMeta(
        name=trace.name,
        category_names=trace.category_names,
        layers=model.layers,
        activation_bytes_per_token=float(model.hidden * _ACTIVATION_BYTES),
        model=model.name,
        lanes=lanes,
    )

    def chunks() -> Iterator[AccessTrace]:
        expander = Expander(**core)
        while (columns := expander.next_chunk(chunk_steps)) is not None:
            rows = len(columns["repeat"])
            fixed_ps, stream = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int32)
            yield AccessTrace(blocks=blocks, meta=meta, fixed_ps=fixed_ps, stream=stream, **columns)

    try:
        total_steps = Expander(**core).count_rows()
    except ValueError as error:
        raise TraceError(f"trace {trace.name}: {error}") from None
    return AccessStream(blocks, meta, chunks, total_steps=total_steps)


def _plan(trace: RequestTrace, model: Model, *, lanes: int, weights: bool) -> _Plan:
    """Resolve a trace and a model to flat arrays."""
    weight_blocks = model.weight_blocks() if weights else []
    used_lanes = min(lanes, max(trace.n, 1))
    inputs = np.asarray(trace.input_tokens, dtype=np.int64)
    outputs = np.asarray(trace.output_tokens, dtype=np.int64)
    for name, column in (("input_tokens", inputs), ("output_tokens", outputs)):
        if column.size and not 0 <= int(column.min()) <= int(column.max()) < _TOKENS_MOST:
            row = int(np.flatnonzero((column < 0) | (column >= _TOKENS_MOST))[0])
            raise TraceError(
                f"trace {trace.name}: request {row}: {name}: found {column[row]}, expected 0 to {_TOKENS_MOST - 1}"
            )
    top = int((inputs + outputs).max()) + 1 if trace.n else 1

    # prompts: what the blocks cover, and what is left to compute whatever hits
    private = trace.private_tokens
    computed = np.maximum(private, 1)
    from_token = np.maximum(inputs - computed, 0)

    # the block table
    sizes = np.array([block.bytes for block in weight_blocks], dtype=np.int64)
    is_expert = np.array([block.is_expert for block in weight_blocks], dtype=bool)
    dense_ffn = sum(b.bytes for b in weight_blocks if b.operation == FFN and not b.is_expert)
    # of the embedding a token reads its row alone
    row_bytes = [model.embedding_row_bytes * (b.label == "embedding") for b in weight_blocks]
    kv_blocks, n_weights = trace.unique_blocks, len(weight_blocks)
    first_checkpoint = kv_blocks + n_weights
    checkpoints, holders = _checkpoints(trace, first_checkpoint, wanted=model.state_bytes > 0)
    first_lane = first_checkpoint + len(holders)
    has_state = model.state_bytes > 0
    n_lanes = used_lanes * (2 if has_state else 1)
    first_data = first_lane + n_lanes
    n_data = len(trace.data_bytes)
    blocks = first_data + n_data
    if blocks >= 1 << 31:
        raise TraceError(f"{trace.name}: expected fewer than 2^31 blocks, found {blocks}")
    parts = (kv_blocks, n_weights, len(holders), n_lanes)
    unchained = _filled(n_lanes + n_data, -1)
    kv_bytes = trace.block_length.astype(np.int64) * model.kv_bytes_per_token
    recompute = np.zeros((blocks, 2))
    recompute[:kv_blocks] = _recompute_flops(model, trace)
    table = {
        "bytes": np.concatenate(
            [kv_bytes, sizes, _filled(parts[2], model.state_bytes), _filled(parts[3], 0), trace.data_bytes]
        ),
        "tokens": np.concatenate([trace.block_length, np.zeros(blocks - kv_blocks)]).astype(np.int32),
        "kind": np.repeat(
            np.array([_KV, _WEIGHTS, _STATE, _KV, _STATE, _DATA], dtype=np.int8),
            [*parts[:3], used_lanes, n_lanes - used_lanes, n_data],
        ),
        "operation": np.concatenate(
            [
                _filled(kv_blocks, ATTENTION),
                np.array([block.operation for block in weight_blocks], dtype=np.int64),
                _filled(blocks - first_checkpoint, ATTENTION),
            ]
        ).astype(np.int8),
        "parent": np.concatenate([trace.block_parent, _filled(n_weights, -1), holders, unchained]).astype(np.int32),
        "position": np.concatenate(
            [trace.block_position, _filled(n_weights, -1), trace.block_position[holders], unchained]
        ).astype(np.int32),
        "home": np.repeat(np.array([-1, 0, OUTERMOST], dtype=np.int16), [first_lane, n_lanes, n_data]),
        "recompute_flops": recompute,
    }
    # the prompt's last token makes logits, wherever the rest comes from
    prompt_flops = _flops_of_spans(model, from_token, from_token + computed)
    prompt_flops[:, ATTENTION] += 2.0 * model.head_parameters
    knees = [knee for knee in (model.window, model.sparse_tokens) if knee]
    core = {
        "arrival_ps": trace.arrival_ps,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "last_block": trace.last_block,
        "output_block": trace.output_block,
        "category": trace.category,
        "after_offsets": trace.after_offsets,
        "after": trace.after,
        "data_offsets": trace.data_offsets,
        "data": trace.data.astype(np.int64) + first_data,
        "prompt_flops": prompt_flops,
        "prompt_tokens": computed,
        "private_tokens": private,
        "block_parent": trace.block_parent,
        "block_position": trace.block_position,
        **checkpoints,
        "weight_block": np.arange(kv_blocks, first_checkpoint, dtype=np.int32),
        "weight_expert": is_expert,
        "weight_most": sizes,
        "weight_token_bytes": np.array(row_bytes, dtype=np.int64),
        "expert_bytes": _expert_bytes(
            model, int(inputs.max(initial=1)) + used_lanes, dense_ffn, wanted=bool(is_expert.any())
        ),
        "kv_read": _straight("kv_read_bytes", model.kv_read_bytes, knees, top),
        "decode_attention": _straight("attention_flops", lambda past: model.attention_flops(1, past), knees, top),
        "decode_flops": (model.flops_per_token(ATTENTION), model.flops_per_token(FFN)),
        "kv_write_bytes": model.kv_stored_bytes(1),
        "state_bytes": model.state_bytes,
        "lane_block": first_lane,
        "lane_state": first_lane + used_lanes if has_state else -1,
        "blocks": blocks,
        "lanes": used_lanes,
    }
    return _Plan(core, table)


def _filled(count: int, value: float) -> _Ints:
    return np.full(count, value, dtype=np.int64)


def _checkpoints(trace: RequestTrace, first: int, *, wanted: bool) -> tuple[dict[str, _Blocks], _Ints]:
    """Give a number to each state checkpoint: one where a prompt or a shared prefix ends.

    Returns
    -------
    The core's columns, int32 (requests,), of checkpoints numbered on from `first`, -1 for none.
    int64 (checkpoints,): the KV block that each belongs to.
    """
    last, shared = trace.last_block.astype(np.int64), trace.prefix_last
    ends = np.concatenate([last, shared]) if wanted else np.zeros(0, dtype=np.int64)
    holders = np.unique(ends[ends >= 0])
    number = np.full(trace.unique_blocks + 1, -1, dtype=np.int32)  # the last serves -1: no block
    number[holders] = np.arange(first, first + len(holders), dtype=np.int32)
    partial = np.append(trace.block_length < trace.block_tokens, False)
    before = np.append(trace.block_parent, -1)
    return {
        "checkpoint_lookup": number[shared],
        "checkpoint_last": number[last],
        "checkpoint_whole": np.where(partial[last], number[before[last]], -1),
        "checkpoint_output": number[trace.output_block],
    }, holders


def _recompute_flops(model: Model, trace: RequestTrace) -> _Floats:
    """Prefill FLOPs, float64 (KV blocks, 2), of each block's tokens at its place in the prompt."""
    places = np.arange(int(trace.block_position.max(initial=-1)) + 1) * trace.block_tokens
    flops: _Floats = _flops_of_spans(model, places, places + trace.block_tokens)[trace.block_position]
    partial = np.flatnonzero(trace.block_length < trace.block_tokens)
    starts = trace.block_position[partial].astype(np.int64) * trace.block_tokens
    flops[partial] = _flops_of_spans(model, starts, starts + trace.block_length[partial])
    return flops


def _flops_of_spans(model: Model, starts: _Ints, ends: _Ints) -> _Floats:
    """Prefill FLOPs, float64 (spans, 2), of tokens starts … ends; asked once for each span."""
    end_values, end_index = np.unique(ends, return_inverse=True)
    start_values, start_index = np.unique(starts, return_inverse=True)
    spans, index = np.unique(start_index * len(end_values) + end_index, return_inverse=True)
    each = np.empty((len(spans), 2))
    for row, span in enumerate(spans.tolist()):
        start, end = divmod(span, len(end_values))
        each[row] = model.prefill_flops(int(start_values[start]), int(end_values[end]))
    flops: _Floats = each[index.reshape(-1)]
    return flops


def _expert_bytes(model: Model, most_tokens: int, dense_bytes: int, *, wanted: bool) -> _Ints:
    """Tabulate the experts' bytes read in a step of 0, 1, 2 … tokens, until more touch no more.

    `dense_bytes` are those outside the experts, which `Model.ffn_read_bytes` counts too.
    """
    if not wanted:
        return np.zeros(1, dtype=np.int64)

    def touched(tokens: int) -> int:
        return max(model.ffn_read_bytes(tokens) - dense_bytes, 0)

    limit = touched(most_tokens)
    low, high = 0, most_tokens
    while low < high:  # the first count of tokens that reads as much as the most tokens do
        middle = (low + high) // 2
        if touched(middle) < limit:
            low = middle + 1
        else:
            high = middle
    if low > _EXPERT_ROWS_MOST:
        raise ModelError(
            f"model {model.name}: experts: found all touched after {low} tokens only, expected "
            f"{_EXPERT_ROWS_MOST} or fewer"
        )
    return np.array([touched(tokens) for tokens in range(low + 1)], dtype=np.int64)


def _straight(name: str, function: Callable[[int], float], knees: list[int], top: int) -> _Knots:
    """Write a piecewise linear function of whole numbers 0 … `top` as knots, values and slopes.

    `knees` say where it may bend; it is asked beside each and checked in the middle of each piece.
    """
    near = {at for knee in knees for at in (knee - 1, knee, knee + 1) if 0 < at < top}
    knots = sorted({0, 1, top} | near)
    values = [float(function(at)) for at in knots]
    slopes = [0.0] * len(knots)
    for k in range(len(knots) - 1):
        slopes[k] = (values[k + 1] - values[k]) / (knots[k + 1] - knots[k])
        middle = (knots[k] + knots[k + 1]) // 2
        straight = values[k] + slopes[k] * (middle - knots[k])
        if not abs(float(function(middle)) - straight) <= 1.0 + 1e-6 * abs(straight):
            raise ModelError(
                f"{name}: found {function(middle)} at a context of {middle}, expected {straight} "
                f"on a straight line that bends at {knees} only"
            )
    if not all(0.0 <= value < float("inf") for value in values):
        raise ModelError(f"{name}: found {values} at contexts {knots}, expected finite, from 0")
    return np.array(knots, dtype=np.int64), np.array(values), np.array(slopes)
