"""Statistics of real traces: published figures, and figures counted here in plain Python from the raw files."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvsim import RequestTrace, read_trace


@pytest.fixture(scope="module")
def conversation(shared: Path) -> RequestTrace:
    trace = read_trace(shared / "data/mooncake/conversation_trace.jsonl")
    assert isinstance(trace, RequestTrace)
    return trace


@pytest.fixture(scope="module")
def sessions(shared: Path) -> RequestTrace:
    trace = read_trace(shared / "data/claude_code")
    assert isinstance(trace, RequestTrace)
    return trace


def flattened(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for e in entries for r in (flattened(e["requests"]) if e["type"] == "subagent" else [e])]


@pytest.fixture(scope="module")
def raw(shared: Path) -> list[dict[str, Any]]:
    files = sorted((shared / "data/claude_code").glob("*.json"))
    assert len(files) == 48
    return [json.loads(f.read_text()) for f in files]


def test_the_hour_of_conversations(conversation: RequestTrace) -> None:
    found = conversation.statistics()
    assert found["requests"] == 12_031
    assert found["references"] == 288_500
    assert found["unique_blocks"] == 182_790
    assert found["repeated_timestamps"] == 10_851
    assert round(found["duration_s"]) == 3_537
    assert round(found["input_tokens_mean"]) == 12_035
    assert found["input_tokens_p50"] == 6_909
    assert found["input_tokens_max"] == 126_195
    assert round(found["output_tokens_mean"], 1) == 342.6
    assert round(found["infinite_hit_block"], 4) == 0.3664
    assert round(found["infinite_hit_token"], 4) == 0.3736
    # the published p99 is the request below the rank, not between two requests
    assert np.percentile(conversation.input_tokens, 99, method="lower") == 85_399
    assert abs(found["input_tokens_p99"] - 85_399) < 2


def test_the_conversations_lengths_in_blocks(conversation: RequestTrace, shared: Path) -> None:
    rows = [json.loads(x) for x in (shared / "data/mooncake/conversation_trace.jsonl").read_text().splitlines()]
    assert conversation.block_id[conversation.blocks(5000)].tolist() == rows[5000]["hash_ids"]
    assert conversation.prompt_blocks.tolist() == [len(r["hash_ids"]) for r in rows]
    seen: set[int] = set()
    hits = []
    for r in rows:
        hits.append(sum(i in seen for i in r["hash_ids"]))
        seen |= set(r["hash_ids"])
    assert conversation.prefix_blocks.tolist() == hits


def test_azure_code(shared: Path) -> None:
    found = read_trace(shared / "data/azure/AzureLLMInferenceTrace_code.csv").statistics()
    assert found["requests"] == 8_819
    assert round(found["duration_s"]) == 3_436
    assert (found["input_tokens_p50"], round(found["input_tokens_mean"])) == (1_469, 2_048)
    assert found["input_tokens_p99"] == 7_436
    assert (found["output_tokens_p50"], round(found["output_tokens_mean"], 1)) == (13, 27.9)


def test_the_48_sessions(sessions: RequestTrace, raw: list[dict[str, Any]]) -> None:
    turns = [flattened(s["requests"]) for s in raw]
    every = [r for t in turns for r in t]
    found = sessions.statistics()
    assert found["requests"] == len(every) == 2_516
    assert found["sessions"] == 48
    assert found["references"] == sum(len(r["hash_ids"]) for r in every)
    assert found["input_tokens_sum"] == sum(r["in"] for r in every)
    assert found["output_tokens_sum"] == sum(r["out"] for r in every)
    assert found["input_tokens_p50"] == statistics.median(r["in"] for r in every)
    assert found["output_tokens_p50"] == statistics.median(r["out"] for r in every)
    assert found["input_tokens_max"] == max(r["in"] for r in every)
    counted = np.bincount(sessions.session, minlength=48).tolist()
    assert dict(zip(sessions.session_names, counted, strict=True)) == {
        s["id"]: len(t) for s, t in zip(raw, turns, strict=True)
    }


def test_the_48_sessions_totals_say_the_same(sessions: RequestTrace, raw: list[dict[str, Any]]) -> None:
    main = sessions.category == sessions.category_names.index("main")
    for agents, key in ((main, "parent_tokens"), (~main, "subagent_tokens")):
        said = [s["totals"].get(key) or {"input": 0, "output": 0} for s in raw if "parent_tokens" in s["totals"]]
        names = [s["id"] for s in raw if "parent_tokens" in s["totals"]]
        of_these = agents & np.isin(sessions.session, [sessions.session_names.index(n) for n in names])
        assert sessions.input_tokens[of_these].sum() == sum(t["input"] for t in said)
        assert sessions.output_tokens[of_these].sum() == sum(t["output"] for t in said)


def test_the_48_sessions_blocks(sessions: RequestTrace, raw: list[dict[str, Any]]) -> None:
    unique = hits = tokens = 0
    for s in raw:
        tree: set[tuple[int, int]] = set()  # a chain's id is enough: within a file an id has one prefix
        for r in flattened(s["requests"]):
            chain = list(zip([-1, *r["hash_ids"]], r["hash_ids"], strict=False))
            known = 0
            while known < len(chain) and chain[known] in tree:
                known += 1
            hits += known
            tokens += known * 64
            tree |= set(chain)
        unique += len(tree)
    found = sessions.statistics()
    assert found["unique_blocks"] == unique
    assert found["infinite_hit_block"] == hits / found["references"]
    assert found["infinite_hit_token"] == tokens / found["input_tokens_sum"]


def test_the_48_sessions_waits(sessions: RequestTrace, raw: list[dict[str, Any]]) -> None:
    turns = [flattened(s["requests"]) for s in raw]
    subs = [e for s in raw for e in s["requests"] if e["type"] == "subagent"]
    main = [[e for e in s["requests"] if e["type"] != "subagent"] for s in raw]
    assert sum(len(t) for t in turns) - 48 == sessions.statistics()["dependent_requests"]
    # every turn waits for the one before it, and the turn after sub-agents for each of them too
    assert len(sessions.after) == sum(len(m) - 1 for m in main) + sum(len(e["requests"]) for e in subs) + len(subs)
    assert len(subs) == 18
    # where the turn before says how long it took and no sub-agent ran between, the wait is the think time as written
    think = []
    for s in raw:
        for before, entry in zip(s["requests"], s["requests"][1:], strict=False):
            if before.get("api_time") is not None and entry.get("think_time") is not None:
                think.append(entry["think_time"])
    found = np.sort(sessions.delay_ps / 1e12)
    values, counts = np.unique(np.array(think), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        assert np.isclose(found, value, atol=1e-9).sum() >= count


def test_the_48_sessions_pauses(sessions: RequestTrace, raw: list[dict[str, Any]]) -> None:
    """Every pause is a tool's or a person's: behind an end of turn, or where no result came back."""
    counts = np.bincount(sessions.pause, minlength=3).tolist()
    assert counts == [55, 130, 2331]
    assert (sessions.delay_ps[sessions.pause == 0] == 0).all()
    assert (sessions.delay_ps[sessions.pause > 0] > 0).all()
    people = 0
    for s in raw:
        main = sorted((e for e in s["requests"] if e["type"] != "subagent"), key=lambda e: e["t"])
        for before, entry in pairwise(main):
            ended, came_back = before["stop"] == "end_turn", "tool_result" in entry["input_types"]
            people += ended or (bool(before["stop"]) and not came_back)
    assert people == 130
    # 18 sub-agents, started in nine places and joined there: 4 alone, 1 pair, 4 times three
    waits = np.diff(sessions.after_offsets)
    assert np.bincount(waits).tolist() == [48, 2459, 4, 1, 4]
    joins = np.flatnonzero(waits > 1)
    assert (sessions.category[joins] == 0).all()
    assert (sessions.pause[joins] == 2).all()


def test_the_48_sessions_replayed_with_recorded_times_take_as_long_as_recorded(
    sessions: RequestTrace, raw: list[dict[str, Any]]
) -> None:
    """With each request taking its recorded time, waits alone give the recorded moments back, to the rounding."""
    took: dict[tuple[str, int, int, int], list[float | None]] = {}
    sent: dict[tuple[str, int, int, int], list[float]] = {}

    def note(name: str, entries: list[dict[str, Any]], start: float) -> None:
        for e in entries:
            if e["type"] == "subagent":
                note(name, e["requests"], start + e["t"] - e["duration_ms"] / 1000)
            else:
                key = (name, e["in"], e["out"], len(e["hash_ids"]))
                took.setdefault(key, []).append(e.get("api_time"))
                sent.setdefault(key, []).append(start + e["t"])

    whole = [s for s in raw if all(r.get("api_time") is not None for r in flattened(s["requests"]))]
    assert len(whole) > 20
    for s in whole:
        note(s["id"], s["requests"], 0.0)
    begin = np.zeros(sessions.n)
    end = np.zeros(sessions.n)
    checked = 0
    names = {s["id"] for s in whole}
    for k in range(sessions.n):
        name = sessions.session_names[sessions.session[k]]
        if name not in names:
            continue
        key = (name, int(sessions.input_tokens[k]), int(sessions.output_tokens[k]), int(sessions.prompt_blocks[k]))
        waits = sessions.after_of(k)
        begin[k] = end[waits].max() + sessions.delay_ps[k] / 1e12 if len(waits) else 0.0
        end[k] = begin[k] + (took[key][0] or 0.0)
        if len(took[key]) == 1:
            depth = len([x for x in range(k) if sessions.session[x] == sessions.session[k]])
            # each wait is written in whole seconds, so the error of a sum of n grows like its root
            assert abs(begin[k] - sent[key][0]) <= 2 + 1.5 * depth**0.5
            checked += 1
    assert checked > 1000
