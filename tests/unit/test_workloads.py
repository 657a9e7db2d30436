"""Generators and their builder: structure, determinism, parameters."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.errors import UnknownNameError, WorkloadError
from kvsim.trace import PAUSES
from kvsim.workloads import WORKLOADS, Quantiles, generate, names, parameters, preset
from kvsim.workloads._builder import NONE, TrieBuilder, runs, segment_cumsum

GENERATORS = ("chat", "coding-agent", "overnight-batch")
SMALL = {
    "chat": {"sessions": 60, "outputs_known": True, "system_prompts": 3, "edited_share": 0.3},
    "coding-agent": {"sessions": 12, "subagent_share": 0.6, "compacted_share": 0.5},
    "overnight-batch": {"sessions": 20, "concurrency": 6},
}


# -- the builder against lists of contents
# -----------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Requests that extend earlier ones or begin with templates, in order of arrival."""
    size = draw(st.integers(1, 5))
    depth = draw(st.lists(st.integers(0, 3), max_size=3))
    requests = []
    for row in range(draw(st.integers(1, 12))):
        base = draw(st.integers(-1, row - 1))
        template = draw(st.integers(-1, len(depth) - 1)) if base < 0 else -1
        least = size * sum(depth[: template + 1]) if template >= 0 else 0
        requests.append({
            "base": base, "template": template, "input_tokens": draw(st.integers(max(least, 1), least + 17)),
            "output_tokens": draw(st.integers(1, 12)), "keep_tokens": draw(st.integers(0, 40)),
            "known_output": draw(st.booleans()), "arrival_ps": 10 * draw(st.integers(0, 1)) + 20 * row,
        })  # fmt: skip
    return {"size": size, "depth": depth, "requests": requests}


def by_lists(plan: dict[str, Any]) -> dict[str, list[int]]:
    """What the builder must give, from every prompt written out as a list of block contents."""
    size, ids, first_free = plan["size"], {}, iter(range(10**9))
    table: dict[str, list[int]] = {"block_parent": [], "block_position": [], "block_length": []}
    out: dict[str, list[int]] = {"last_block": [], "output_block": []}
    chains: list[list[Any]] = []

    def place(chain: list[Any], lengths: list[int]) -> int:
        block = -1
        for position, (content, length) in enumerate(zip(chain, lengths, strict=True)):
            parent, block = block, ids.get((block, content), -1)
            if block < 0:
                block = ids[(parent, content)] = len(table["block_parent"])
                table["block_parent"].append(parent)
                table["block_position"].append(position)
                table["block_length"].append(length)
        return block

    for request in plan["requests"]:
        tokens, base = request["input_tokens"], request["base"]
        start: list[Any] = []
        if base >= 0:
            start = chains[base][: min(request["keep_tokens"] // size, tokens // size)]
        elif request["template"] >= 0:
            total = sum(plan["depth"][: request["template"] + 1])
            start = [("shared", k) for k in range(total)]
        whole = start + [("own", next(first_free)) for _ in range(tokens // size - len(start))]
        tail = [("own", next(first_free))] if tokens % size else []
        out["last_block"].append(place(whole + tail, [size] * len(whole) + [tokens % size] * len(tail)))
        chain = list(whole)
        if request["known_output"]:
            filled = (tokens + request["output_tokens"]) // size
            chain += [("own", next(first_free)) for _ in range(filled - len(whole))]
            longer = len(chain) > len(whole)
            out["output_block"].append(place(chain, [size] * len(chain)) if longer else out["last_block"][-1])
        else:
            out["output_block"].append(-1)
        chains.append(chain)
    return {**table, **out}


def build(plan: dict[str, Any], shuffle: list[int] | None = None) -> dict[str, Any]:
    builder = TrieBuilder(plan["size"])
    tokens = 0
    for number, blocks in enumerate(plan["depth"]):
        tokens += blocks * plan["size"]
        assert builder.template(tokens + (number % 2 if plan["size"] > 1 else 0), parent=number - 1) == number
    for request in plan["requests"]:
        builder.add(1, session=0, category=0, **request)
    return builder.columns()


@given(plans())
def test_builder_equals_interning_of_lists(plan: dict[str, Any]) -> None:
    built, expected = build(plan), by_lists(plan)
    for key, column in expected.items():
        assert built[key].tolist() == column, key


def test_builder_sorts_rows_by_arrival_and_keeps_ties() -> None:
    builder = TrieBuilder(4)
    later = builder.add(1, arrival_ps=50, input_tokens=8, output_tokens=1, session=1, category=0)
    first = builder.add(2, arrival_ps=[7, 7], input_tokens=[5, 6], output_tokens=1, session=0, category=0)
    end = builder.add(1, arrival_ps=90, input_tokens=9, output_tokens=1, session=1, category=0,
                      base=later, keep_tokens=8)  # fmt: skip
    builder.depend(end, later)
    builder.depend(end, first[:1])
    columns = builder.columns()
    assert columns["input_tokens"].tolist() == [5, 6, 8, 9]
    assert columns["after_offsets"].tolist() == [0, 0, 0, 0, 2]
    assert columns["after"].tolist() == [0, 2]
    assert columns["block_parent"].tolist() == [-1, 0, -1, 2, -1, 4, 5]
    assert columns["block_length"].tolist() == [4, 1, 4, 2, 4, 4, 1]


def test_builder_refuses_a_request_that_extends_or_awaits_a_later_one() -> None:
    builder = TrieBuilder(4)
    rows = builder.add(2, arrival_ps=[9, 3], input_tokens=8, output_tokens=1, session=0, category=0, base=[-1, 0])
    with pytest.raises(WorkloadError, match="extends a later one"):
        builder.columns()
    builder = TrieBuilder(4)
    rows = builder.add(2, arrival_ps=[9, 3], input_tokens=8, output_tokens=1, session=0, category=0)
    builder.depend(rows[1:], rows[:1])
    with pytest.raises(WorkloadError, match="waits for a later one"):
        builder.columns()


def test_builder_refuses_more_blocks_than_can_be_numbered() -> None:
    builder = TrieBuilder(1)
    builder.add(3, arrival_ps=0, input_tokens=2**30, output_tokens=1, session=0, category=0)
    with pytest.raises(WorkloadError, match="unique blocks"):
        builder.columns()


@given(st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=4), max_size=6))
def test_runs_and_their_sums(lists: list[list[int]]) -> None:
    lengths = np.array([len(x) for x in lists], np.int64)
    flat = np.array([v for x in lists for v in x], np.int64)
    run, place = runs(lengths)
    assert run.tolist() == [k for k, x in enumerate(lists) for _ in x]
    assert place.tolist() == [j for x in lists for j in range(len(x))]
    assert segment_cumsum(flat, lengths).tolist() == [v for x in lists for v in np.cumsum(x)]


# -- every generator
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", GENERATORS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_structure(workload: str, seed: int) -> None:
    trace = generate(workload, seed=seed, **SMALL[workload])
    n, size = len(trace.arrival_ps), trace.block_tokens
    parent, position, length = trace.block_parent, trace.block_position, trace.block_length
    blocks = np.arange(len(parent))
    assert (np.diff(trace.arrival_ps) >= 0).all()
    assert (parent < blocks).all()
    assert (parent >= -1).all()
    assert (position == np.where(parent >= 0, position[parent] + 1, 0)).all()
    assert (length > 0).all()
    assert (length <= size).all()
    partial = length < size
    assert partial.any()
    assert not np.isin(np.flatnonzero(partial), parent).any(), "a partial block is a leaf"
    # ids are dense in order of first appearance: each row's new blocks are the next run
    ends = np.maximum.accumulate(np.maximum(trace.last_block, trace.output_block))
    assert ends[-1] == len(blocks) - 1
    low = np.concatenate([[0], ends[:-1] + 1])
    own = np.repeat(np.arange(n), ends - low + 1)
    assert len(own) == len(blocks)
    # a prompt's blocks hold exactly its tokens; whole output blocks only
    at_end = trace.last_block
    assert (position[at_end] * size + length[at_end] == trace.input_tokens).all()
    known = trace.output_block >= 0
    filled = (trace.input_tokens + trace.output_tokens) // size
    whole = trace.input_tokens // size
    out = trace.output_block[known & (filled > whole)]
    assert (position[out] + 1 == filled[known & (filled > whole)]).all()
    assert (length[out] == size).all()
    assert (trace.output_block == trace.last_block)[known & (filled == whole)].all()
    # dependencies: earlier rows of the trace, so no circle; and the arrival is the earliest start
    # they leave
    offsets, after = trace.after_offsets, trace.after
    rows = np.repeat(np.arange(n), np.diff(offsets))
    assert (after < rows).all()
    assert (after >= 0).all()
    earliest = np.zeros(n, np.int64)
    np.maximum.at(earliest, rows, trace.arrival_ps[after])
    waits = np.diff(offsets) > 0
    assert (earliest[waits] + trace.delay_ps[waits] == trace.arrival_ps[waits]).all()
    assert (trace.delay_ps[~waits] == 0).all()
    assert (trace.pause[~waits] == NONE).all()
    assert ((trace.pause == NONE) == (trace.delay_ps == 0)).all()
    assert trace.session.max() == len(trace.session_names) - 1
    assert set(np.unique(trace.category)) == set(range(len(trace.category_names)))


@pytest.mark.parametrize("workload", names())
def test_a_seed_says_all(workload: str) -> None:
    few = {"sessions": 30}
    one, same, other = (generate(workload, seed=seed, **few) for seed in (5, 5, 6))
    assert equal(one, same)
    assert not equal(one, other)
    assert len(generate(workload, sessions=1).arrival_ps) >= 1


def equal(a: Any, b: Any) -> bool:
    keys = [field.name for field in dataclasses.fields(a)]
    arrays = [key for key in keys if isinstance(getattr(a, key), np.ndarray)]
    assert len(arrays) >= 15
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in arrays)


def test_one_parameter_leaves_the_other_draws_alone() -> None:
    one = generate("coding-agent", seed=3, sessions=20)
    other = generate("coding-agent", seed=3, sessions=20, person_s=5, tool_s=1, rebuilt_after_break_share=0.008)
    key = (np.lexsort((one.input_tokens, one.session)), np.lexsort((other.input_tokens, other.session)))
    assert (one.input_tokens[key[0]] == other.input_tokens[key[1]]).all()


def test_subagents_share_the_beginning_and_the_parent_joins_them() -> None:
    trace = generate("coding-agent", seed=1, sessions=30, subagent_share=1.0, subagent_fan_out=3.0)
    subagent = trace.category_names.index("subagent")
    counts = np.diff(trace.after_offsets)
    joins = np.flatnonzero((trace.category != subagent) & [
        any(trace.category[trace.after[trace.after_offsets[i] : trace.after_offsets[i + 1]]] == subagent)
        for i in range(len(counts))
    ])  # fmt: skip
    assert len(joins) >= 30
    assert (counts[joins] > 1).any()

    def ancestor(block: int, position: int) -> int:
        while trace.block_position[block] > position:
            block = trace.block_parent[block]
        return block

    shared = 9998 // trace.block_tokens - 1
    ends = {ancestor(int(trace.last_block[i]), shared) for i in range(0, len(counts), 7)}
    assert len(ends) == 1, "sessions and sub-agents begin with the same blocks"


def test_compaction_reads_all_and_starts_again_from_the_shared_beginning() -> None:
    trace = generate("coding-agent", seed=1, sessions=60, compacted_share=1.0, rebuilt_share=0,
                     rebuilt_after_break_share=0)  # fmt: skip
    rows = np.flatnonzero(trace.category == trace.category_names.index("compaction"))
    assert len(rows) > 10
    for row in rows:
        behind = np.flatnonzero(trace.after == row)
        assert len(behind) == 1
        follower = np.searchsorted(trace.after_offsets, behind[0], side="right") - 1
        assert trace.pause[follower] == NONE
        assert trace.input_tokens[follower] < trace.input_tokens[row]
        assert trace.output_block[row] == -1


def test_a_fleet_of_ten_thousand_agents() -> None:
    """A million requests within seconds, with the joins and compactions of the sessions that it is made of."""
    begin = time.process_time()
    trace = generate("agent-fleet", seed=1)
    assert time.process_time() - begin < 90
    assert (len(trace), len(trace.session_names), trace.block_tokens) == (1_047_516, 10_000, 512)
    assert trace.unique_blocks < 10_000_000
    kinds = np.array(trace.category_names)[trace.category]
    assert len(np.unique(trace.session[kinds == "compaction"])) == 970, "9.7 % of the sessions"
    assert len(np.unique(trace.session[kinds == "subagent"])) == pytest.approx(1250, rel=0.05)
    assert not (trace.pause == PAUSES.index("think")).any()
    waits = np.diff(trace.after_offsets)
    joins = np.flatnonzero(waits > 1)
    assert len(joins) > 1000
    assert (kinds[joins] == "tool").all()
    assert (kinds[trace.after[trace.after_offsets[joins]]] == "subagent").all()
    assert (waits == 0).sum() == 10_000, "all but a session's first request follow another"


def test_concurrency_runs_lanes_behind_each_other() -> None:
    trace = generate("overnight-batch", seed=2, sessions=40, concurrency=5)
    free = np.diff(trace.after_offsets) == 0
    assert free.sum() == 5
    assert (trace.arrival_ps[free] == 0).all()
    together = generate("overnight-batch", seed=2, sessions=40, concurrency=0)
    free = np.diff(together.after_offsets) == 0
    assert free.sum() == 40
    assert (together.arrival_ps[free] == 0).all()
    assert sorted(trace.input_tokens) == sorted(together.input_tokens)


def test_contexts_end_at_their_limit() -> None:
    for workload, limit in (("chat", 9_000), ("coding-agent", 60_000), ("overnight-batch", 30_000)):
        trace = generate(workload, sessions=50, max_context_tokens=limit)
        assert (trace.input_tokens + trace.output_tokens).max() <= limit


def test_extremes_are_defined() -> None:
    chat = generate("chat", sessions=20, system_prompt_tokens=0, continue_share=0, long_share=0)
    assert len(chat.arrival_ps) == 20
    assert len(generate("chat", sessions=5, block_tokens=1, max_context_tokens=2000).block_parent) > 1000
    batch = generate("overnight-batch", sessions=3, document_share=1, document_tokens=10**9)
    assert (batch.input_tokens + batch.output_tokens).max() <= 400_000
    coding = generate("coding-agent", sessions=2, prefix_tokens=0, turns=1, resumed_share=0, subagent_share=1)
    assert len(coding.arrival_ps) == 2


# -- parameters
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", GENERATORS)
def test_every_parameter_has_a_default_with_a_source(workload: str) -> None:
    found = preset(workload)
    fields = {field.name for field in dataclasses.fields(WORKLOADS.get(workload).Parameters)}
    assert set(found.values) == fields
    for name in fields:
        source, quality = found.sources[name]
        assert len(source) > 8, name
        assert quality in ("measured", "vendor", "estimate", "memory"), name
    assert set(found.doubtful()) < fields
    assert "Attributes" in (WORKLOADS.get(workload).Parameters.__doc__ or "")
    for name in fields:
        assert name in WORKLOADS.get(workload).Parameters.__doc__


def test_names_are_generators_and_presets() -> None:
    assert set(names()) >= {*GENERATORS, "chat-azure", "agent-fleet"}
    assert preset("chat-azure").generator == "chat"


@pytest.mark.parametrize(
    ("workload", "changes", "error", "text"),
    [
        ("chatt", {}, UnknownNameError, "did you mean 'chat'"),
        ("coding_agents", {}, UnknownNameError, "'coding-agent'"),
        ("chat", {"sesions": 3}, UnknownNameError, "did you mean 'sessions'"),
        ("chat", {"sessions": 0}, WorkloadError, "sessions: found 0, expected a number from 1"),
        ("chat", {"sessions": 2.5}, WorkloadError, "expected a whole number"),
        ("chat", {"sessions": "many"}, WorkloadError, "sessions: found 'many', expected a number"),
        ("chat", {"sessions": True}, WorkloadError, "expected a number"),
        ("chat", {"sessions_per_s": float("nan")}, WorkloadError, "finite"),
        ("chat", {"edited_share": 1.5}, WorkloadError, "edited_share: found 1.5, expected a number from 0 to 1"),
        ("chat", {"outputs_known": "maybe"}, WorkloadError, "expected true or false"),
        ("chat", {"output_tokens": {"q50": 3}}, WorkloadError, "output_tokens: found key 'q50'"),
        ("chat", {"output_tokens": {"p50": -3}}, WorkloadError, "expected positive"),
        ("chat", {"output_tokens": {"p50": 9, "p90": 3}}, WorkloadError, "do not fall"),
        ("chat", {"output_tokens": {"p100": 9}}, WorkloadError, "within 0 and 100"),
        ("chat", {"output_tokens": {}}, WorkloadError, "found none"),
        ("chat", {"output_tokens": {"p50": 1, "min": 9, "max": 2}}, WorkloadError, "min <= max"),
        ("chat", {"output_tokens": "p50=x"}, WorkloadError, "expected a number"),
        ("chat", {"seed": -1}, WorkloadError, "seed: found -1"),
        ("chat", {"seed": 1.5}, WorkloadError, "seed: found 1.5"),
        ("nowhere.toml", {}, WorkloadError, "cannot be read"),
    ],
)
def test_wrong_parameters(workload: str, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        generate(workload, **changes)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_from_text_and_files(tmp_path: pathlib.Path) -> None:
    asked = parameters("chat", sessions="1_000", output_tokens="p50=10, p90=20, max=30", outputs_known="yes")
    assert asked.sessions == 1000
    assert asked.outputs_known is True
    assert asked.output_tokens == Quantiles(((50.0, 10.0), (90.0, 20.0)), 0.0, 30.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked.sessions = 3
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "chat"\n[sessions]\nvalue = 7\nsource = "mine"\nquality = "measured"\n')
    assert parameters(str(mine)).sessions == 7
    assert parameters(str(mine)).output_tokens == parameters("chat").output_tokens
    for text, found in (
        ("sessions = 7", "generator: found nothing"),
        ('base = "chat"\nsessions = 7', "sessions: found 7, expected a table"),
        ('base = "chat"\n[sessions]\nvalue = 7\nqualty = "x"', "did you mean 'quality'"),
        ('base = "chat"\n[sessions]\nvalue = 7\nquality = "sure"', "found 'sure'"),
        ('base = "chat"\n[sesions]\nvalue = 7', "did you mean 'sessions'"),
        ('base = "chatt"', "unknown workload 'chatt'"),
        ("= 7", "not TOML"),
        (f'base = "{mine}"', "circle"),
    ):
        mine.write_text(text)
        with pytest.raises((WorkloadError, UnknownNameError)) as caught:
            parameters(str(mine))
        assert found in str(caught.value)


def test_presets_are_plain_toml() -> None:
    home = pathlib.Path(__import__("kvsim").__file__).parent / "presets" / "workloads"
    for file in home.glob("*.toml"):
        assert tomllib.loads(file.read_text())["title"]


def test_an_outside_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Parameters:
        sessions: int = 3

    class Mine:
        @staticmethod
        def generate(parameters: Parameters, seed: int) -> tuple[int, int]:
            return parameters.sessions, seed

    Mine.Parameters = Parameters  # type: ignore[attr-defined]
    monkeypatch.setitem(WORKLOADS._added, "mine", Mine)
    assert "mine" in names()
    assert generate("mine", seed=4) == (3, 4)  # type: ignore[comparison-overlap]
    assert generate("mine", sessions=9) == (9, 0)  # type: ignore[comparison-overlap]


# -- distributions
# ------------------------------------------------------------------------------------------


def test_quantiles_draw_what_they_say() -> None:
    asked = Quantiles.of({"p5": 3, "p50": 10, "p90": 162, "p99": 3015})
    drawn = asked.sample(np.random.Generator(np.random.PCG64(1)), 400_000)
    assert np.percentile(drawn, [5, 50, 90, 99]) == pytest.approx([3, 10, 162, 3015], rel=0.03)
    assert asked.at(np.array([0.0]))[0] == pytest.approx(10)
    lognormal = Quantiles.of({"p50": 100, "p90": 300}).sample(np.random.Generator(np.random.PCG64(2)), 400_000)
    sigma = np.log(3) / 1.2815515655446004
    assert lognormal.mean() == pytest.approx(100 * np.exp(sigma**2 / 2), rel=0.02)
    assert set(Quantiles.of(7).tokens(np.random.Generator(np.random.PCG64(3)), 9)) == {7}
    bounded = Quantiles.of({"p50": 5, "p90": 50, "min": 4, "max": 6}).at(np.array([-9.0, 0.0, 9.0]))
    assert bounded == pytest.approx([4, 5, 6])
    assert np.isfinite(Quantiles.of({"p1": 1e-12, "p2": 1e15}).at(np.array([50.0]))).all()
