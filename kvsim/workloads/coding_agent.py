"""Coding agents that a person steers: long sessions, many short calls, a context that only grows.

Every session begins with the system prompt and tools that all share, then what its project's
sessions share. A turn holds the whole context before it, its own output included, plus a tool's
result or what the person wrote. Some turns wait for sub-agents: contexts of their own, which share
the beginning of the parent's prompt and run side by side until the parent's next turn joins them. A
context that reaches its limit is compacted: one call reads all of it and writes a summary, and the
next turn starts again from the shared beginning with that summary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvsim.workloads._builder import NONE, THINK, TOOL, TrieBuilder, runs, segment_cumsum
from kvsim.workloads._parameters import Draws, Quantiles, bounded

if TYPE_CHECKING:
    from kvsim.trace import RequestTrace

__all__ = ["Parameters", "generate"]

CATEGORIES = ("human", "tool", "subagent", "compaction")
HUMAN, TOOL_RESULT, SUBAGENT, COMPACTION = range(4)
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What `coding-agent` can be asked for; defaults are in presets/workloads/coding-agent.toml.

    Attributes
    ----------
    sessions : how many sessions.
    sessions_per_h : their rate of arrival, a Poisson process.
    block_tokens : tokens in a block.
    prefix_tokens : system prompt and tools, shared by all sessions.
    sessions_per_project : sessions that share a project's context, on average.
    project_tokens : a project's context (its instructions, its map), shared by its sessions.
    task_tokens : what the first prompt of a new session holds beyond that.
    turns : turns of a new session, those of sub-agents and compactions apart.
    resumed_share : the share of sessions that take up an old context.
    resumed_tokens : the first prompt of those.
    resumed_turns : the turns of those.
    added_tokens : what a tool's result or a person adds in a turn, the output before it apart.
    long_session_exponent : sessions of n turns add (n/50)**-exponent times as much a turn.
    output_tokens : output of a turn.
    person_share : the chance that a turn waits for a person; else for a tool.
    person_s, tool_s : how long those wait.
    compacted_share : the share of sessions that compact their context, as far as so many grow to
        their limit.
    limit_tokens : the context at which those compact.
    summary_tokens : output of a compaction.
    compacted_tokens : the first prompt after a compaction: shared beginning, summary, files read
        again.
    rebuilt_share : the chance that a turn's context is written anew behind the shared beginning (an
        edit, a rewind), same length.
    break_s : a wait from which on that chance is `rebuilt_after_break_share`.
    max_context_tokens : a session whose prompt and output would be longer ends before.
    subagent_share : the share of sessions that start sub-agents.
    subagent_calls : how often such a session does, at least once.
    subagent_fan_out : how many at a time, on average, at least one.
    subagent_prefix_tokens : how much of system prompt and tools a sub-agent shares.
    subagent_task_tokens : what its first prompt holds beyond that.
    subagent_turns, subagent_added_tokens, subagent_output_tokens, subagent_tool_s : as for the
        session itself.
    """

    sessions: int = bounded(1, 10_000_000)
    sessions_per_h: float = bounded(1e-6, 1e9)
    block_tokens: int = bounded(1, 1_000_000)
    prefix_tokens: int = bounded(0, 1_000_000)
    sessions_per_project: float = bounded(1.0, 1e9)
    project_tokens: Quantiles
    task_tokens: Quantiles
    turns: Quantiles
    resumed_share: float = bounded(0.0, 1.0)
    resumed_tokens: Quantiles
    resumed_turns: Quantiles
    added_tokens: Quantiles
    long_session_exponent: float = bounded(-2.0, 2.0)
    output_tokens: Quantiles
    person_share: float = bounded(0.0, 1.0)
    person_s: Quantiles
    tool_s: Quantiles
    compacted_share: float = bounded(0.0, 1.0)
    limit_tokens: Quantiles
    summary_tokens: Quantiles
    compacted_tokens: Quantiles
    rebuilt_share: float = bounded(0.0, 1.0)
    rebuilt_after_break_share: float = bounded(0.0, 1.0)
    break_s: float = bounded(0.0, 1e6)
    max_context_tokens: int = bounded(2, 1_000_000_000)
    subagent_share: float = bounded(0.0, 1.0)
    subagent_calls: float = bounded(1.0, 1000.0)
    subagent_fan_out: float = bounded(1.0, 1000.0)
    subagent_prefix_tokens: int = bounded(0, 1_000_000)
    subagent_task_tokens: Quantiles
    subagent_turns: Quantiles
    subagent_added_tokens: Quantiles
    subagent_output_tokens: Quantiles
    subagent_tool_s: Quantiles


@dataclass
class _Main:
    """The sessions' own turns, laid end to end; `fresh` marks the first turn after a compaction."""

    lengths: Ints
    session: Ints
    turn: Ints
    prompt: Ints
    output: Ints
    person: npt.NDArray[np.bool_]
    delay_ps: Ints
    fresh: npt.NDArray[np.bool_]
    summary: Ints


@dataclass
class _Sub:
    """The sub-agents' turns, laid end to end; `joins` is the parent's turn that waits for them."""

    lengths: Ints
    joins: Ints
    agent: Ints
    step: Ints
    prompt: Ints
    output: Ints
    delay_ps: Ints


def generate(parameters: Parameters, seed: int = 0) -> RequestTrace:
    """Generate the requests of `parameters.sessions` coding sessions."""
    p, draws = parameters, Draws(seed)
    n = p.sessions
    start = np.cumsum(draws("arrivals").standard_exponential(n)) * (3600 / p.sessions_per_h)
    start_ps = np.rint(start * 1e6).astype(np.int64) * 1_000_000
    projects = max(round(n / p.sessions_per_project), 1)
    project = draws("projects").integers(projects, size=n)
    shared = p.prefix_tokens + p.project_tokens.tokens(draws("project sizes"), projects)
    shared = np.minimum(shared, p.max_context_tokens - 1)

    main = _main(p, draws, shared[project])
    sub = _subagents(p, draws, main)

    # the parent's turn that joins sub-agents starts when the slowest is through, whatever its own
    # pause was
    wait_ps = main.delay_ps.copy()
    slowest = np.zeros(len(wait_ps), np.int64)
    if len(sub.lengths):
        ends = np.cumsum(sub.lengths) - sub.lengths
        np.maximum.at(slowest, sub.joins, np.add.reduceat(sub.delay_ps, ends))
    wait_ps += slowest
    arrival_ps = start_ps[main.session] + segment_cumsum(wait_ps, main.lengths)

    # rows in the order in which they happen: a turn's sub-agents, its compaction, then the turn
    # itself
    rows = len(main.turn)
    main_row = np.arange(rows)
    compact = np.flatnonzero(main.fresh)
    of_turn = np.concatenate([main_row[sub.joins[sub.agent]], compact, main_row])
    rank = np.repeat([0, 1, 2], [len(sub.step), len(compact), rows])
    order = np.lexsort((np.arange(len(of_turn)), rank, of_turn))
    at = np.empty(len(order), np.int64)
    at[order] = np.arange(len(order))
    sub_at, compact_at, main_at = np.split(at, [len(sub.step), len(sub.step) + len(compact)])

    builder = TrieBuilder(p.block_tokens)
    for_subagents = builder.template(min(p.subagent_prefix_tokens, p.prefix_tokens))
    for_all = builder.template(p.prefix_tokens, parent=for_subagents)
    for_project = np.array([builder.template(int(tokens), parent=for_all) for tokens in shared])

    chance = np.where(main.delay_ps >= p.break_s * 1e12, p.rebuilt_after_break_share, p.rebuilt_share)
    rebuilt = (draws("rebuilt").random(rows) < chance) & (main.turn > 0) & ~main.fresh
    begins = (main.turn == 0) | main.fresh
    anew = begins | rebuilt
    before = np.maximum(main_row - 1, 0)
    context = main.prompt + main.output
    spawned_ps = arrival_ps[before[sub.joins]]
    sub_first = sub.step == 0
    sub_before = np.maximum(np.arange(len(sub.step)) - 1, 0)
    parts = [
        {  # sub-agents
            "arrival_ps": spawned_ps[sub.agent] + segment_cumsum(sub.delay_ps, sub.lengths),
            "input_tokens": sub.prompt,
            "output_tokens": sub.output,
            "session": main.session[sub.joins[sub.agent]],
            "category": np.full(len(sub.step), SUBAGENT),
            "delay_ps": sub.delay_ps,
            "pause": np.where(sub.delay_ps > 0, TOOL, NONE),
            "base": np.where(sub_first, -1, sub_at[sub_before]) if len(sub_at) else sub.step,
            "keep_tokens": (sub.prompt + sub.output)[sub_before] if len(sub_at) else sub.step,
            "template": np.where(sub_first, for_subagents, -1),
            "known_output": np.ones(len(sub.step), np.int64),
        },
        {  # compactions wait as the turn behind them would have, and read the whole context
            "arrival_ps": arrival_ps[compact],
            "input_tokens": context[before[compact]],
            "output_tokens": main.summary[compact],
            "session": main.session[compact],
            "category": np.full(len(compact), COMPACTION),
            "delay_ps": main.delay_ps[compact],
            "pause": np.where(main.person[compact], THINK, TOOL),
            "base": main_at[before[compact]],
            "keep_tokens": context[before[compact]],
            "template": np.full(len(compact), -1),
            "known_output": np.zeros(len(compact), np.int64),
        },
        {  # the sessions' own turns
            "arrival_ps": arrival_ps,
            "input_tokens": main.prompt,
            "output_tokens": main.output,
            "session": main.session,
            "category": np.where(main.person, HUMAN, TOOL_RESULT),
            "delay_ps": np.where(main.fresh, 0, main.delay_ps),
            "pause": np.where(begins, NONE, np.where(main.person, THINK, TOOL)),
            "base": np.where(anew, -1, main_at[before]),
            "keep_tokens": context[before],
            "template": np.where(anew, for_project[project[main.session]], -1),
            "known_output": np.ones(rows, np.int64),
        },
    ]
    builder.add(len(order), **{key: np.concatenate([part[key] for part in parts])[order] for key in parts[0]})

    plain = np.flatnonzero(~begins & (slowest == 0) & ~np.isin(main_row, sub.joins))
    builder.depend(main_at[plain], main_at[before[plain]])
    builder.depend(compact_at, main_at[before[compact]])
    builder.depend(main_at[compact], compact_at)
    if len(sub_at):
        builder.depend(sub_at[sub_first], main_at[before[sub.joins]])
        builder.depend(sub_at[~sub_first], sub_at[sub_before[~sub_first]])
        builder.depend(main_at[sub.joins], sub_at[np.cumsum(sub.lengths) - 1])
    return builder.build(
        name="coding-agent",
        source=f"kvsim coding-agent, seed {draws.seed}",
        session_names=tuple(f"coding-{k}" for k in range(n)),
        category_names=CATEGORIES,
    )


def _main(p: Parameters, draws: Draws, shared: Ints) -> _Main:
    """Draw the sessions' own turns; `shared` is the length of each session's shared beginning."""
    n = p.sessions
    resumed = draws("resumed").random(n) < p.resumed_share
    rng = draws("turns")
    score = rng.standard_normal(n)
    lengths = np.where(resumed, p.resumed_turns.at(score), p.turns.at(score))
    lengths = np.clip(np.rint(lengths), 1, 100_000).astype(np.int64)
    session, turn = runs(lengths)
    total = len(turn)
    first = turn == 0
    output = np.minimum(p.output_tokens.tokens(draws("outputs"), total), p.max_context_tokens - 1)
    scale = (lengths / 50.0) ** -p.long_session_exponent
    added = np.maximum(p.added_tokens.sample(draws("added"), total) * scale[session], 1)
    text = np.rint(np.minimum(added, 2.0**40)).astype(np.int64)
    opening = shared + p.task_tokens.tokens(draws("tasks"), n)
    opening = np.where(resumed, np.maximum(p.resumed_tokens.tokens(draws("resumed sizes"), n), opening), opening)
    text[first] = np.clip(opening, shared, np.maximum(p.max_context_tokens - output[first], shared))
    text[1:] += np.where(first[1:], 0, output[:-1])
    person = draws("who").random(total) < p.person_share
    person_ps = p.person_s.picoseconds(draws("person"), total)
    tool_ps = p.tool_s.picoseconds(draws("tool"), total)
    main = _Main(
        lengths,
        session,
        turn,
        segment_cumsum(text, lengths),
        output,
        person | first,
        np.where(first, 0, np.where(person, person_ps, tool_ps)),
        np.zeros(total, np.bool_),
        np.zeros(total, np.int64),
    )
    _compact(p, draws, main, text, shared)
    # a session ends before the turn that no longer fits
    over = (main.prompt + main.output > p.max_context_tokens) & ~first
    keep = segment_cumsum(over.astype(np.int64), lengths) == 0
    main.lengths = np.add.reduceat(keep.astype(np.int64), np.cumsum(lengths) - lengths)
    for name in ("session", "turn", "prompt", "output", "person", "delay_ps", "fresh", "summary"):
        setattr(main, name, getattr(main, name)[keep])
    return main


def _compact(p: Parameters, draws: Draws, main: _Main, text: Ints, shared: Ints) -> None:
    """Cut the contexts of some sessions that grow to their limit, each time they reach it."""
    starts = np.cumsum(main.lengths) - main.lengths
    limit = p.limit_tokens.tokens(draws("limits"), p.sessions)
    # only the growth counts: a session resumed beyond its limit runs where there is more room
    opening = main.prompt[starts]
    reach = np.flatnonzero((main.prompt[starts + main.lengths - 1] > limit) & (opening <= limit))
    rng = draws("compacted")
    wanted = min(len(reach), round(p.compacted_share * p.sessions))
    for session in np.sort(rng.permutation(reach)[:wanted]):
        start, stop = starts[session], starts[session] + main.lengths[session]
        at = start
        while True:
            beyond = np.flatnonzero(main.prompt[at + 1 : stop] > limit[session])
            if not len(beyond):
                break
            at = at + 1 + beyond[0]
            main.fresh[at] = True
            main.summary[at] = summary = p.summary_tokens.tokens(rng, 1)[0]
            after = int(np.clip(p.compacted_tokens.tokens(rng, 1)[0], shared[session] + summary, p.max_context_tokens))
            main.prompt[at:stop] = after + np.cumsum(text[at:stop]) - text[at]


def _subagents(p: Parameters, draws: Draws, main: _Main) -> _Sub:
    """Draw sub-agents for turns behind the first that follow no compaction."""
    rng = draws("subagents")
    sessions = np.flatnonzero((rng.random(p.sessions) < p.subagent_share) & (main.lengths > 1))
    calls = 1 + rng.poisson(p.subagent_calls - 1, len(sessions))
    session, _ = runs(calls)
    session = sessions[session]
    starts = np.cumsum(main.lengths) - main.lengths
    turn = 1 + (rng.random(len(session)) * (main.lengths[session] - 1)).astype(np.int64)
    joins = np.unique(starts[session] + turn)
    joins = joins[~main.fresh[joins]]
    main.person[joins] = False
    fan_out = 1 + rng.poisson(p.subagent_fan_out - 1, len(joins))
    joins = np.repeat(joins, fan_out)
    lengths = np.clip(np.rint(p.subagent_turns.sample(rng, len(joins))), 1, 100_000).astype(np.int64)
    agent, step = runs(lengths)
    total = len(step)
    output = np.minimum(p.subagent_output_tokens.tokens(draws("subagent outputs"), total), p.max_context_tokens - 1)
    text = p.subagent_added_tokens.tokens(draws("subagent added"), total)
    first = step == 0
    prefix = min(p.subagent_prefix_tokens, p.prefix_tokens)
    text[first] = prefix + p.subagent_task_tokens.tokens(draws("subagent tasks"), len(joins))
    text[1:] += np.where(first[1:], 0, output[:-1])
    prompt = segment_cumsum(text, lengths)
    keep = first | (segment_cumsum((prompt + output > p.max_context_tokens).astype(np.int64), lengths) == 0)
    delay_ps = np.where(first, 0, p.subagent_tool_s.picoseconds(draws("subagent tool"), total))
    if total:
        lengths = np.add.reduceat(keep.astype(np.int64), np.cumsum(lengths) - lengths)
    return _Sub(lengths, joins, agent[keep], step[keep], prompt[keep], output[keep], delay_ps[keep])
