"""Agent tasks and documents while nobody waits: many, for hours, contexts parked in between.

A task is a session of tool calls whose context grows by a step each; some of them wait once for
very long (a build, a queue, another system) with their whole context parked. A document is one long
prompt with one answer. All start together, or so many run at a time: then a lane's next session
starts when the one before it in that lane is through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvsim.workloads._builder import NONE, TOOL, TrieBuilder, runs, segment_cumsum
from kvsim.workloads._parameters import Draws, Quantiles, bounded

if TYPE_CHECKING:
    from kvsim.trace import RequestTrace

__all__ = ["Parameters", "generate"]

CATEGORIES = ("task", "tool", "document")
TASK, TOOL_RESULT, DOCUMENT = range(3)
PRIORITY = 1
"""Behind the 0 of requests that a person waits for."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What `overnight-batch` can be asked for; defaults: presets/workloads/overnight-batch.toml.

    Attributes
    ----------
    sessions : how many tasks and documents.
    concurrency : how many run at a time; 0 starts all at once.
    block_tokens : tokens in a block.
    prefix_tokens : system prompt and tools, shared by all tasks.
    task_tokens : what a task's first prompt holds beyond that.
    turns : turns of a task.
    added_tokens : what a tool's result adds in a turn, the output before it apart.
    output_tokens : output of a turn.
    tool_s : time from an output to the next turn.
    parked_share : the share of tasks that wait once for very long.
    parked_s : how long that is.
    document_share : the share of sessions that are documents.
    document_tokens, document_output_tokens : a document's prompt and answer.
    max_context_tokens : a task whose prompt and output would be longer ends before.
    """

    sessions: int = bounded(1, 10_000_000)
    concurrency: int = bounded(0, 10_000_000)
    block_tokens: int = bounded(1, 1_000_000)
    prefix_tokens: int = bounded(0, 1_000_000)
    task_tokens: Quantiles
    turns: Quantiles
    added_tokens: Quantiles
    output_tokens: Quantiles
    tool_s: Quantiles
    parked_share: float = bounded(0.0, 1.0)
    parked_s: Quantiles
    document_share: float = bounded(0.0, 1.0)
    document_tokens: Quantiles
    document_output_tokens: Quantiles
    max_context_tokens: int = bounded(2, 1_000_000_000)


def generate(parameters: Parameters, seed: int = 0) -> RequestTrace:
    """Generate the requests of `parameters.sessions` tasks and documents."""
    p, draws = parameters, Draws(seed)
    n = p.sessions
    document = draws("documents").random(n) < p.document_share
    turns = np.where(document, 1, np.clip(np.rint(p.turns.sample(draws("turns"), n)), 1, 100_000)).astype(np.int64)
    session, turn = runs(turns)
    total = len(turn)
    first = turn == 0

    output = p.output_tokens.tokens(draws("outputs"), total)
    answers = p.document_output_tokens.tokens(draws("answers"), n)
    output = np.minimum(np.where(document[session], answers[session], output), p.max_context_tokens - 1)
    text = p.added_tokens.tokens(draws("added"), total)
    opening = p.prefix_tokens + p.task_tokens.tokens(draws("tasks"), n)
    opening = np.where(document, p.document_tokens.tokens(draws("document sizes"), n), opening)
    # at least the shared beginning, or at least one token of a document
    least = np.where(document, 1, np.maximum(p.prefix_tokens, 1))
    text[first] = np.clip(opening, least, np.maximum(p.max_context_tokens - output[first], least))
    text[1:] += np.where(first[1:], 0, output[:-1])
    prompt = segment_cumsum(text, turns)
    keep = first | (segment_cumsum((prompt + output > p.max_context_tokens).astype(np.int64), turns) == 0)
    turns = np.add.reduceat(keep.astype(np.int64), np.cumsum(turns) - turns)
    delay_ps = np.where(first, 0, p.tool_s.picoseconds(draws("tool"), total))
    session, first, prompt, output, delay_ps = (a[keep] for a in (session, first, prompt, output, delay_ps))

    rng = draws("parked")
    chosen, where = rng.random(n) < p.parked_share, rng.random(n)
    parked = np.flatnonzero(chosen & (turns > 1))
    starts = np.cumsum(turns) - turns
    at = starts[parked] + 1 + (where[parked] * (turns[parked] - 1)).astype(np.int64)
    delay_ps[at] = p.parked_s.picoseconds(draws("parked for"), n)[parked]

    lasts = np.add.reduceat(delay_ps, starts)
    start_ps = np.zeros(n, np.int64)
    if p.concurrency:
        for k in range(p.concurrency, n, p.concurrency):  # lane by lane: one behind the other
            lane = slice(k, min(k + p.concurrency, n))
            above = slice(k - p.concurrency, lane.stop - p.concurrency)
            start_ps[lane] = start_ps[above] + lasts[above]

    row = np.arange(len(session))
    before = np.maximum(row - 1, 0)
    builder = TrieBuilder(p.block_tokens)
    shared = builder.template(p.prefix_tokens)
    kind = np.where(document[session], DOCUMENT, np.where(first, TASK, TOOL_RESULT))
    builder.add(
        len(row),
        arrival_ps=start_ps[session] + segment_cumsum(delay_ps, turns),
        input_tokens=prompt,
        output_tokens=output,
        session=session,
        category=kind,
        priority=PRIORITY,
        delay_ps=delay_ps,
        pause=np.where(first, NONE, TOOL),
        base=np.where(first, -1, before),
        keep_tokens=(prompt + output)[before],
        template=np.where(first & ~document[session], shared, -1),
    )
    builder.depend(row[~first], before[~first])
    if p.concurrency and n > p.concurrency:
        builder.depend(starts[p.concurrency :], (starts + turns - 1)[: n - p.concurrency])
    return builder.build(
        name="overnight-batch",
        source=f"kvsim overnight-batch, seed {draws.seed}",
        session_names=tuple(f"batch-{k}" for k in range(n)),
        category_names=CATEGORIES,
    )
