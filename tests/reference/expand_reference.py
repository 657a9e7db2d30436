"""The open-loop schedule of `kvsim.accesses` once more, in plain Python: slow and small."""

from __future__ import annotations

from typing import Any, NamedTuple

LOOKUP, READ, WRITE, CONTEXT = 0, 1, 2, 4
OWN = -1  # the block's own bytes


class Row(NamedTuple):
    """One row of steps; `accesses` holds (block, op, bytes)."""

    arrival_ps: int
    flops: tuple[float, float]
    tokens: int
    category: int
    repeat: int
    request: int
    accesses: list[tuple[int, int, int]]


def chain(trace: Any, block: int) -> list[int]:
    """Block and its ancestors, root first."""
    found = []
    while block >= 0:
        found.append(int(block))
        block = trace.block_parent[block]
    return found[::-1]


def own_output(trace: Any, i: int) -> list[int]:
    """The request's output blocks that are not blocks of its prompt."""
    prompt = set(chain(trace, trace.last_block[i]))
    return [block for block in chain(trace, trace.output_block[i]) if block not in prompt]


def checkpoint_holders(trace: Any, model: Any) -> list[int]:
    """The KV blocks that end a prompt or a shared prefix, if the model keeps state."""
    if not model.state_bytes:
        return []
    held = set()
    for i in range(trace.n):
        prompt = chain(trace, trace.last_block[i])
        shared = prompt[: int(trace.prefix_blocks[i])]
        held |= set(prompt[-1:] + shared[-1:])
    return sorted(held)


def table_reference(trace: Any, model: Any, lanes: int, weights: bool) -> list[tuple[Any, ...]]:
    """(bytes, tokens, kind, operation, parent, position, home, recompute FLOPs) of every block."""
    rows: list[tuple[Any, ...]] = []
    for b in range(trace.unique_blocks):
        length, position = int(trace.block_length[b]), int(trace.block_position[b])
        start = position * trace.block_tokens
        flops = tuple(model.prefill_flops(start, start + length))
        rows.append((length * model.kv_bytes_per_token, length, 0, 0, int(trace.block_parent[b]), position, -1, flops))
    none = (0.0, 0.0)
    held = model.weight_blocks() if weights else []
    rows += [(block.bytes, 0, 1, block.operation, -1, -1, -1, none) for block in held]
    ends = checkpoint_holders(trace, model)
    rows += [(model.state_bytes, 0, 2, 0, b, int(trace.block_position[b]), -1, none) for b in ends]
    used = min(lanes, max(trace.n, 1))
    rows += [(0, 0, 0, 0, -1, -1, 0, none)] * used
    rows += [(0, 0, 2, 0, -1, -1, 0, none)] * (used if model.state_bytes else 0)
    rows += [(int(size), 0, 3, 0, -1, -1, -2, none) for size in trace.data_bytes]
    return rows


def expand_reference(trace: Any, model: Any, *, lanes: int = 32, weights: bool = True) -> list[Row]:
    """All rows of the schedule."""
    lanes = min(lanes, max(trace.n, 1))
    weight_blocks = model.weight_blocks() if weights else []
    experts = [k for k, block in enumerate(weight_blocks) if block.is_expert]
    dense_ffn = sum(b.bytes for b in weight_blocks if b.operation == 1 and not b.is_expert)
    first_checkpoint = trace.unique_blocks + len(weight_blocks)
    holders = checkpoint_holders(trace, model)
    checkpoint = {b: first_checkpoint + k for k, b in enumerate(holders)}
    kv_lane = first_checkpoint + len(holders)
    state_lane = kv_lane + lanes
    first_data = kv_lane + lanes * (2 if model.state_bytes else 1)
    per_token = model.kv_stored_bytes(1)

    waiting = list(range(trace.n))
    done: set[int] = set()
    free = list(range(lanes))[::-1]
    running: list[dict[str, int]] = []  # request, lane, left, context; in order of admission
    rows: list[Row] = []
    latest = category = 0

    def after(i: int) -> list[int]:
        return [int(k) for k in trace.after[trace.after_offsets[i] : trace.after_offsets[i + 1]]]

    while waiting or running:
        ready = [i for i in waiting if set(after(i)) <= done]
        new = ready[0] if ready and len(running) < lanes else None
        if new is None and not running:
            raise ValueError("requests wait for each other")
        repeat = 1
        if new is None:
            repeat = min(
                r["left"] - 1 if own_output(trace, r["request"]) and r["left"] > 1 else r["left"] for r in running
            )
        tokens, touched, flops, accesses = len(running), len(running), [0.0, 0.0], []
        ending = [r["request"] for r in running if r["left"] == repeat]

        if new is not None:
            waiting.remove(new)
            latest, category = int(trace.arrival_ps[new]), int(trace.category[new])
            lane = free.pop()
            prompt_tokens = int(trace.input_tokens[new])
            prompt = chain(trace, trace.last_block[new])
            covered = 0
            if prompt:
                last = prompt[-1]
                covered = int(trace.block_position[last]) * trace.block_tokens + int(trace.block_length[last])
            private = max(prompt_tokens - covered, 0)
            computed = max(private, 1)
            start = max(prompt_tokens - computed, 0)
            flops = list(model.prefill_flops(start, start + computed))
            flops[0] += 2 * model.head_parameters
            tokens += computed
            touched += max(prompt_tokens, 1)

        share = model.ffn_read_bytes(touched) - dense_ffn
        for k, block in enumerate(weight_blocks):
            size = OWN
            if block.label == "embedding":
                size = min(block.bytes, touched * model.embedding_row_bytes)
            if k in experts:
                size = share // len(experts) + (experts.index(k) < share % len(experts))
            accesses.append((trace.unique_blocks + k, LOOKUP, size))

        if new is not None:
            accesses += [(first_data + int(d), LOOKUP, OWN) for d in trace.data_of(new)]
            shared = prompt[: int(trace.prefix_blocks[new])]
            if model.state_bytes and shared:
                accesses.append((checkpoint[shared[-1]], LOOKUP, OWN))
            accesses += [(b, LOOKUP, OWN) for b in prompt]
            ends = prompt[-2:]
            if ends and trace.block_length[ends[-1]] == trace.block_tokens:
                ends = ends[-1:]  # it ends with a whole block
            accesses += [(checkpoint[b], WRITE, OWN) for b in ends if b in checkpoint]
            if model.state_bytes:
                accesses.append((state_lane + lane, WRITE, model.state_bytes))
            if private and per_token:
                accesses.append((kv_lane + lane, WRITE, private * per_token))

        for r in running:
            context = r["context"] + repeat // 2
            flops[0] += model.flops_per_token(0) + model.attention_flops(1, context - 1)
            flops[1] += model.flops_per_token(1)
            read = model.kv_read_bytes(context)
            if trace.last_block[r["request"]] >= 0:
                accesses.append((int(trace.last_block[r["request"]]), CONTEXT, read))
            else:
                accesses.append((kv_lane + r["lane"], READ, read))
            if model.state_bytes:
                accesses.append((state_lane + r["lane"], READ, model.state_bytes))
                accesses.append((state_lane + r["lane"], WRITE, model.state_bytes))
            if per_token and not own_output(trace, r["request"]):
                accesses.append((kv_lane + r["lane"], WRITE, per_token))
            r["left"] -= repeat
            r["context"] += repeat

        if new is not None:
            left = max(int(trace.output_tokens[new]) - 1, 0)
            running.append({"request": new, "lane": lane, "left": left, "context": prompt_tokens + 1})
            if left == 0:
                ending.append(new)
        for i in ending:
            own = own_output(trace, i)
            accesses += [(b, WRITE, OWN) for b in own]
            accesses += [(checkpoint[b], WRITE, OWN) for b in own[-1:] if b in checkpoint]
        free += [r["lane"] for r in running if r["left"] == 0]
        done |= {r["request"] for r in running if r["left"] == 0}
        running = [r for r in running if r["left"] > 0]

        request = -1 if new is None else new
        rows.append(Row(latest, (flops[0], flops[1]), tokens, category, repeat, request, accesses))
    return rows
