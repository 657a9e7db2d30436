"""Coding-agent sessions: what waits for what, how long, and which blocks are whose."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvsim import RequestTrace, TraceError, read_trace
from kvsim.trace import PAUSES

MODEL = "big"


def turn(t: float, tokens: int, ids: list[int], **more: Any) -> dict[str, Any]:
    return {
        "t": t, "type": "n", "model": MODEL, "in": tokens, "out": 100, "hash_ids": ids, "input_types": ["tool_result"],
        "output_types": ["tool_use"], "stop": "tool_use", "api_time": 5.0, "think_time": 0.0, **more,
    }  # fmt: skip


def sub_agent(end: float, length_s: float, requests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "t": end, "type": "subagent", "agent_id": "a", "subagent_type": "Explore", "duration_ms": length_s * 1000,
        "status": "completed", "requests": requests, "tool_tokens": 64, "system_tokens": 64, **more,
    }  # fmt: skip


def session(requests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": "one", "models": [MODEL], "block_size": 64, "hash_id_scope": "local", "tool_tokens": 100,
        "system_tokens": 92, "requests": requests, "totals": {}, **more,
    }  # fmt: skip


# the parent's third turn waits for two sub-agents that ran side by side
SESSION = session(
    [
        turn(0, 200, [1, 2, 3], input_types=["text"], stop="end_turn"),
        turn(35, 330, [1, 2, 3, 4, 5], think_time=30.0, input_types=["text"]),
        sub_agent(60, 19.5, [turn(0, 130, [50, 51]), turn(12, 200, [50, 51, 52], think_time=7.0, api_time=6.0)]),
        sub_agent(71, 30.5, [turn(0, 130, [50, 51])], subagent_type="Plan"),
        turn(75, 400, [1, 2, 3, 4, 5, 6], think_time=35.0),
        turn(90, 470, [1, 2, 3, 4, 5, 6, 7], think_time=10.0),
    ]
)


def read(folder: Path, *sessions: dict[str, Any], **options: Any) -> RequestTrace:
    for k, content in enumerate(sessions):
        (folder / f"s{k}.json").write_text(json.dumps(content))
    trace = read_trace(folder, format="claude-code", **options)
    assert isinstance(trace, RequestTrace)
    return trace


def by_input(trace: RequestTrace) -> dict[tuple[int, int], int]:
    return {(int(trace.category[k]), int(trace.input_tokens[k])): k for k in range(trace.n)}


def test_turns_sub_agents_and_joins(tmp_path: Path) -> None:
    trace = read(tmp_path, SESSION)
    assert trace.category_names == ("main", "Explore", "Plan")
    assert trace.session_names == ("one",)
    row = by_input(trace)
    first, second, third, fourth = (row[0, n] for n in (200, 330, 400, 470))
    explore, explore_next, plan = row[1, 130], row[1, 200], row[2, 130]
    after = {k: sorted(trace.after_of(k).tolist()) for k in range(trace.n)}
    assert after == {
        first: [], second: [first], explore: [second], explore_next: [explore], plan: [second],
        third: sorted([second, explore_next, plan]), fourth: [third],
    }  # fmt: skip
    delay = {k: trace.delay_ps[k] / 1e12 for k in range(trace.n)}
    # sub-agents began half a second after the turn that ended at 40; Explore's last turn ended at 40.5 + 12 + 6, Plan's
    # at 45.5: the parent went on 75 - 58.5 s after the later, not 35 s (its think time, which contains their runs)
    assert delay == {first: 0, second: 30, explore: 0.5, explore_next: 7, plan: 0.5, third: 16.5, fourth: 10}
    pause = {k: int(trace.pause[k]) for k in range(trace.n)}
    assert pause == {first: 0, second: 1, explore: 2, explore_next: 2, plan: 2, third: 2, fourth: 2}


def test_arrivals_do_not_hold_a_faster_machine_back(tmp_path: Path) -> None:
    trace = read(tmp_path, SESSION)
    for k in range(trace.n):
        waits = trace.after_of(k)
        if len(waits):
            assert trace.arrival_ps[k] == trace.arrival_ps[waits].max() + trace.delay_ps[k]
    recorded = read(tmp_path, SESSION, times="recorded")
    assert (recorded.arrival_ps / 1e12).tolist() == [0, 35, 40.5, 40.5, 52.5, 75, 90]
    with pytest.raises(TraceError, match="times: found 'x'"):
        read(tmp_path, SESSION, times="x")


def test_blocks_are_local_to_the_file_and_tails_private(tmp_path: Path) -> None:
    other = copy.deepcopy(SESSION) | {"id": "two"}
    trace = read(tmp_path, SESSION, other, start_every_s=1000)
    assert trace.namespaces == ("s0", "s1")
    assert trace.session_names == ("one", "two")
    assert trace.unique_blocks == 2 * 10
    assert trace.private_tokens.min() >= 2
    assert set(trace.block_length.tolist()) == {64}
    begins = [int(trace.arrival_ps[trace.session == s].min()) for s in (0, 1)]
    assert begins == [0, 1000 * 10**12]
    alone = read_trace(tmp_path / "s1.json")
    assert isinstance(alone, RequestTrace)
    assert alone.unique_blocks == 10
    # the second Explore-like agent finds the first one's two blocks
    assert int(alone.prefix_blocks.sum()) == 3 + 5 + 6 + 2 + 2


def test_global_ids_are_shared(tmp_path: Path) -> None:
    a, b = (copy.deepcopy(SESSION) | {"hash_id_scope": "global", "id": i} for i in "ab")
    trace = read(tmp_path, a, b)
    assert trace.unique_blocks == 10
    assert sorted(np.bincount(trace.session).tolist()) == [7, 7]


def test_sharing_the_system_prompt(tmp_path: Path) -> None:
    b = json.loads(json.dumps(SESSION).replace('"hash_ids": [1, 2, 3', '"hash_ids": [11, 12, 13'))
    c = copy.deepcopy(SESSION) | {"system_tokens": 91}
    plain = read(tmp_path, SESSION, b, c)
    trace = read(tmp_path, SESSION, b, c, share_system=True)
    # (100 + 92) // 64 = 3 blocks of main and (64 + 64) // 64 = 2 of the sub-agents are s0's and s1's; s2 has other
    # tools and system tokens, but the same sub-agents
    assert trace.unique_blocks == plain.unique_blocks - 3 - 2 - 2
    assert trace.references == plain.references
    assert trace.prefix_blocks.sum() == plain.prefix_blocks.sum() + 3 + 2 + 2
    other = json.loads(json.dumps(b).replace(MODEL, "small"))
    assert read(tmp_path, SESSION, other, c, share_system=True).unique_blocks == plain.unique_blocks - 2


def test_what_follows_the_prefix_is_never_shared(tmp_path: Path) -> None:
    trace = read(tmp_path, SESSION, copy.deepcopy(SESSION), share_system=True)
    for block in range(trace.unique_blocks):
        sessions = {int(trace.session[k]) for k in range(trace.n) if block in trace.blocks(k)}
        shared = trace.block_position[block] < (3 if trace.block_id[block] < 50 else 2)
        assert len(sessions) == (2 if shared else 1)


def test_a_wait_after_a_turn_without_an_api_time(tmp_path: Path) -> None:
    content = session(
        [
            turn(0, 200, [1]),  # 5 s for 100 tokens, as the others that say
            turn(20, 200, [1], api_time=None, think_time=15.0, stop="", out=40),
            turn(30, 200, [1], think_time=25.0),  # counted from the end of the first turn, at 5
            turn(36, 200, [1], api_time=None, think_time=1.0, out=4000),
            turn(38, 200, [1], think_time=None),
        ]
    )
    trace = read(tmp_path, content)
    assert (trace.delay_ps / 1e12).tolist() == [0, 15, 8, 1, 0]
    trace = read(
        tmp_path, session([turn(0, 200, [1]), {k: v for k, v in turn(9, 200, [1]).items() if k != "think_time"}])
    )
    assert (trace.delay_ps / 1e12).tolist() == [0, 4]


def test_whose_wait_it_was(tmp_path: Path) -> None:
    text = {"input_types": ["text"], "think_time": 1.0}
    content = session(
        [
            turn(0, 200, [1]),
            turn(10, 201, [1], think_time=1.0),  # a tool's result came back
            turn(20, 202, [1], **text, stop="end_turn"),  # none came: somebody spoke up
            turn(30, 203, [1], think_time=1.0, stop="", api_time=None),  # behind the end of a turn
            turn(50, 204, [1], **text, stop=None, api_time=None),  # behind an answer that was not recorded
            turn(70, 205, [1], **text),  # behind another
            turn(75, 206, [1]),  # at once
        ]
    )
    trace = read(tmp_path, content)
    assert [PAUSES[k] for k in trace.pause] == ["none", "tool", "think", "think", "tool", "tool", "none"]


def test_a_sub_agent_in_the_background_does_not_hold_its_parent(tmp_path: Path) -> None:
    content = session(
        [
            turn(0, 200, [1]),
            turn(10, 210, [1]),
            sub_agent(100, 94.0, [turn(0, 130, [50]), turn(80, 131, [50])]),
            turn(50, 220, [1]),
            turn(120, 230, [1]),
        ]
    )
    trace = read(tmp_path, content)
    row = by_input(trace)
    assert trace.after_of(row[1, 130]).tolist() == [row[0, 200]]
    assert trace.after_of(row[0, 210]).tolist() == [row[0, 200]]
    assert trace.after_of(row[0, 220]).tolist() == [row[0, 210]]
    assert sorted(trace.after_of(row[0, 230]).tolist()) == sorted([row[0, 220], row[1, 131]])


def test_a_sub_agent_without_requests_and_one_that_comes_last(tmp_path: Path) -> None:
    content = session([turn(0, 200, [1]), sub_agent(20, 14.0, []), turn(22, 210, [1], think_time=17.0),
                       sub_agent(50, 20.0, [turn(0, 130, [50])])])  # fmt: skip
    trace = read(tmp_path, content)
    assert trace.n == 3
    assert (trace.delay_ps / 1e12).tolist() == [0, 17, 3]
    assert trace.after_of(2).tolist() == [1]


def test_one_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json.gz"
    path.write_bytes(gzip.compress(json.dumps(SESSION).encode()))
    assert read_trace(path).n == 7
    assert read_trace(tmp_path).n == 7


def changed(path: str, value: Any) -> dict[str, Any]:
    content: Any = copy.deepcopy(SESSION)
    at = content
    keys: list[Any] = [int(k) if k.isdigit() else k for k in path.split(".")]
    for key in keys[:-1]:
        at = at[key]
    if value is ...:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    return dict(content)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no requests": (changed("requests", ...), "found no key 'requests'"),
    "empty requests": (changed("requests", []), "requests: found an empty list"),
    "requests are text": (changed("requests", "x"), "requests: found str, expected array"),
    "block size zero": (changed("block_size", 0), "block_size: found 0"),
    "block size text": (changed("block_size", "64"), "block_size: found str, expected int"),
    "tool tokens": (changed("tool_tokens", -1), "tool_tokens"),
    "no input": (changed("requests.1.in", ...), r"requests\[1\]: found no key 'in'"),
    "input negative": (changed("requests.1.in", -5), r"requests\[1\]: in: found -5"),
    "input enormous": (changed("requests.1.in", 1 << 50), r"requests\[1\]: in: found 1125899906842624"),
    "output text": (changed("requests.1.out", "x"), r"requests\[1\]\.out: found str, expected int"),
    "time negative": (changed("requests.1.t", -1), r"requests\[1\]: t: found -1"),
    "time enormous": (changed("requests.1.t", 1e12), r"requests\[1\]: t: found 1000000000000"),
    "think negative": (changed("requests.1.think_time", -3), r"requests\[1\]: think_time: found -3"),
    "think NaN": (changed("requests.1.think_time", float("nan")), "expected JSON"),
    "duration": (changed("requests.2.duration_ms", -3), r"requests\[2\]: duration_ms: found -3"),
    "too many ids": (
        changed("requests.1.hash_ids", [1] * 9),
        r"requests\[1\]: hash_ids: found 9 ids, expected at most 6",
    ),
    "ids null": (changed("requests.1.hash_ids", None), "hash_ids: found null, expected array"),
    "sub-agent lacks requests": (changed("requests.2.requests", ...), r"requests\[2\]: found no key 'requests'"),
    "nested input": (changed("requests.2.requests.1.in", -5), r"requests\[2\]\.requests\[1\]: in: found -5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sessions_are_one_clear_line(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(TraceError, match=message) as raised:
        read(tmp_path, SESSION, content)
    assert "s1.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sessions_of_different_block_sizes(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"s1\.json: block_size: found 32, expected 64 as in s0\.json"):
        read(tmp_path, SESSION, changed("block_size", 32))


def test_a_truncated_session(tmp_path: Path) -> None:
    text = json.dumps(SESSION)
    for cut in (1, len(text) // 2, len(text) - 1):
        (tmp_path / "s.json").write_text(text[:cut])
        with pytest.raises(TraceError, match=r"s\.json: .*expected JSON"):
            read_trace(tmp_path / "s.json", format="claude-code")
