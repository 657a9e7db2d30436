"""People at a chat service: sessions arrive at random, turns follow after the time a person takes.

A session is a first prompt (a system prompt that many share, then the person's own text) and
follow-ups, each of which holds the whole conversation before it, the last answer included, or,
where the person edited, its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvsim.workloads._builder import NONE, THINK, TrieBuilder, runs, segment_cumsum
from kvsim.workloads._parameters import Draws, Quantiles, bounded

if TYPE_CHECKING:
    from kvsim.trace import RequestTrace

__all__ = ["Parameters", "generate"]

CATEGORIES = ("first", "follow-up")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What `chat` can be asked for; defaults are in presets/workloads/chat.toml.

    Attributes
    ----------
    sessions : how many conversations.
    sessions_per_s : their rate of arrival, a Poisson process.
    block_tokens : tokens in a block.
    system_prompt_tokens : length of a system prompt.
    system_prompts : how many there are; the k-th is used in proportion to 1/k.
    first_message_tokens : a first prompt without the system prompt.
    message_tokens : what a follow-up adds to the conversation so far.
    output_tokens : the answer.
    continue_share : the chance of another turn after each, in ordinary sessions.
    long_share : the share of sessions that go on for longer.
    long_continue_share : the chance of another turn after each in those; with `continue_share` it
        moves the hit rate.
    edited_share : follow-ups that keep only a beginning (uniform) of the conversation.
    think_s : time from an answer to the next turn.
    max_context_tokens : no prompt with its answer is longer: a session ends before.
    outputs_known : whether the blocks of an answer can serve the next turn; no, as in traces that
        list only prompts.
    """

    sessions: int = bounded(1, 50_000_000)
    sessions_per_s: float = bounded(1e-6, 1e6)
    block_tokens: int = bounded(1, 1_000_000)
    system_prompt_tokens: int = bounded(0, 1_000_000)
    system_prompts: int = bounded(1, 1_000_000)
    first_message_tokens: Quantiles
    message_tokens: Quantiles
    output_tokens: Quantiles
    continue_share: float = bounded(0.0, 0.99)
    long_share: float = bounded(0.0, 1.0)
    long_continue_share: float = bounded(0.0, 0.99)
    edited_share: float = bounded(0.0, 1.0)
    think_s: Quantiles
    max_context_tokens: int = bounded(2, 1_000_000_000)
    outputs_known: bool


def generate(parameters: Parameters, seed: int = 0) -> RequestTrace:
    """Generate the requests of `parameters.sessions` conversations."""
    p, draws = parameters, Draws(seed)
    n = p.sessions
    arrivals = np.cumsum(draws("arrivals").standard_exponential(n)) / p.sessions_per_s
    start_ps = np.rint(arrivals * 1e6).astype(np.int64) * 1_000_000
    turns = _turns(p, draws)
    system = _zipf(draws("system"), p.system_prompts, n)

    _, turn = runs(turns)
    total = len(turn)
    output = np.minimum(p.output_tokens.tokens(draws("outputs"), total), p.max_context_tokens - 1)
    text = np.empty(total, np.int64)
    first = turn == 0
    most = max(p.max_context_tokens - p.system_prompt_tokens, 2)
    opening = p.first_message_tokens.tokens(draws("openings"), n)
    text[first] = p.system_prompt_tokens + np.clip(opening, 1, np.maximum(most - output[first], 1))
    text[~first] = p.message_tokens.tokens(draws("messages"), total - n)
    text[1:] += np.where(first[1:], 0, output[:-1])
    prompt = segment_cumsum(text, turns)
    # once a session is too long it is over: prompts only grow, so what is kept is a run from its
    # first turn
    keep = first | (segment_cumsum((prompt + output > p.max_context_tokens).astype(np.int64), turns) == 0)
    turns = np.add.reduceat(keep.astype(np.int64), np.cumsum(turns) - turns)
    think_ps = p.think_s.picoseconds(draws("think"), total)
    edited = draws("edited").random(total) < p.edited_share
    kept_part = draws("kept").random(total)
    prompt, output, think_ps, edited, kept_part = (a[keep] for a in (prompt, output, think_ps, edited, kept_part))

    session, turn = runs(turns)
    first = turn == 0
    row = np.arange(len(turn))
    before = np.maximum(row - 1, 0)
    delay_ps = np.where(first, 0, think_ps)
    context = prompt[before] + (output[before] if p.outputs_known else 0)
    # an edit keeps the system prompt: it is not the person's to change
    editable = np.maximum(context - p.system_prompt_tokens, 0)
    context = np.where(
        edited, np.minimum(p.system_prompt_tokens, context) + (editable * kept_part).astype(np.int64), context
    )
    builder = TrieBuilder(p.block_tokens)
    template = np.array([builder.template(p.system_prompt_tokens) for _ in range(p.system_prompts)])
    builder.add(
        len(row),
        arrival_ps=start_ps[session] + segment_cumsum(delay_ps, turns),
        input_tokens=prompt,
        output_tokens=output,
        session=session,
        category=np.where(first, 0, 1),
        delay_ps=delay_ps,
        pause=np.where(first, NONE, THINK),
        base=np.where(first, -1, before),
        keep_tokens=context,
        template=template[system][session],
        known_output=p.outputs_known,
    )
    builder.depend(row[~first], before[~first])
    return builder.build(
        name="chat",
        source=f"kvsim chat, seed {draws.seed}",
        session_names=tuple(f"chat-{k}" for k in range(n)),
        category_names=CATEGORIES,
    )


def _turns(p: Parameters, draws: Draws) -> Ints:
    """Draw how many turns each session has: geometric, with one of two chances to go on."""
    rng = draws("turns")
    longer = rng.random(p.sessions) < p.long_share
    more = rng.standard_exponential(p.sessions)
    chance = np.where(longer, p.long_continue_share, p.continue_share)
    with np.errstate(divide="ignore"):
        extra = np.floor(more / -np.log(chance))
    turns: Ints = np.minimum(1 + extra, 10_000).astype(np.int64)
    return turns


def _zipf(rng: np.random.Generator, kinds: int, n: int) -> Ints:
    share = np.cumsum(1.0 / np.arange(1, kinds + 1))
    drawn: Ints = np.searchsorted(share / share[-1], rng.random(n), side="right").astype(np.int64)
    return np.minimum(drawn, kinds - 1)
