"""Options of an engine, and rules for pauses: words in, checked numbers out."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from kvsim.errors import ConfigError, UnknownNameError
from kvsim.retention import RULES, Plan, Retention
from kvsim.serving import Serving, shared_out


def test_defaults_are_a_servers() -> None:
    s = Serving()
    assert (s.max_seqs, s.max_tokens, s.kv_block_tokens, s.kv_overflow, s.router) == (
        256,
        8192,
        16,
        "preempt",
        "least-loaded",
    )
    assert s.retention == Retention() == Retention.load("keep")
    assert Serving.of(None) == s
    assert Serving.of(s) is s
    assert hash(s) == hash(Serving())


def test_words_of_a_command_line() -> None:
    s = Serving.parse(
        ["max-seqs=64", "order=shortest", "retention=timeout:60", "partition=chat:1,agents:3", "load_deadline=50 ms",
         "chunked=false", "kv_blocks=1000", "concurrency=none", "replicas=2", "draft=3", "accepted=2.5"]
    )  # fmt: skip
    assert (s.max_seqs, s.order, s.chunked, s.kv_blocks, s.concurrency, s.replicas) == (
        64,
        "shortest",
        False,
        1000,
        None,
        2,
    )
    assert s.partition == {"chat": 1.0, "agents": 3.0}
    assert s.load_deadline_s == 0.05
    assert (s.draft_tokens, s.accepted_tokens) == (3, 2.5)
    assert s.retention.tool.pin_s == 60.0
    assert Serving.of({"seqs": "8"}).max_seqs == 8
    assert Serving.of("seqs=8") == Serving.parse(["max_seqs=8"])
    json.dumps(Serving(retention=Retention.load("pin")).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("max_seqs=0", "serving.max_seqs"),
        ("max_tokens=1.5", "whole number"),
        ("chunked=maybe", "true or false"),
        ("accepted=2", r"1 to draft_tokens \+ 1"),
        ("accepted=0.5", "accepted_tokens"),
        ("load_deadline_s=0", "above 0"),
        ("replicas=all", "or one of auto"),
        ("partition=chat", "POPULATION:SHARE"),
        ("partition=chat:1,chat:2", "twice"),
        ("partition=chat:-1", "above 0"),
        ("max_seqs", "KEY=VALUE"),
    ],
)
def test_what_makes_no_sense(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Serving.parse([word])


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="max_seqs"):
        Serving.parse(["max_seq=3"])
    with pytest.raises(UnknownNameError, match="preempt"):
        Serving(kv_overflow="prempt")
    with pytest.raises(UnknownNameError, match="router"):
        Serving().with_(ruoter="round-robin")
    with pytest.raises(UnknownNameError, match="timeout"):
        Retention.load("timeuot:3")
    with pytest.raises(UnknownNameError, match="tool"):
        Retention.load("tools=pin")
    with pytest.raises(ConfigError, match="twice"):
        Serving.parse(["max_seqs=3", "seqs=4"])


def test_every_rule_says_what_it_does() -> None:
    written = {
        "keep": Plan(),
        "pin": Plan(pin_s=math.inf),
        "timeout:60": Plan(pin_s=60.0),
        "timeout:2 min": Plan(pin_s=120.0),
        "demote:10": Plan(demote_s=10.0),
        "demote:10:ssd": Plan(demote_s=10.0, tier="ssd"),
        "drop": Plan(drop=True),
        "prefetch": Plan(demote_s=0.0, prefetch="resume"),
        "lead:5": Plan(demote_s=0.0, prefetch="lead", lead_s=5.0),
        "foresight": Plan(prefetch="lead"),
        "oracle": Plan(prefetch="lead"),
    }
    assert {words.partition(":")[0] for words in written} == set(RULES)
    for words, plan in written.items():
        found = Retention.load(words)
        assert (found.name, found.think, found.tool, found.foresight) == (
            words,
            plan,
            plan,
            words in ("foresight", "oracle"),
        )
    both = Retention.load("tool=timeout:60, think=demote:10")
    assert (both.tool, both.think) == (Plan(pin_s=60.0), Plan(demote_s=10.0))
    assert Retention.load({"tool": "drop"}) == Retention("tool=drop", tool=Plan(drop=True))
    assert Retention.load(both) is both
    assert dataclasses.replace(both, name="x").tool == both.tool


@pytest.mark.parametrize(
    "words",
    ["timeout", "timeout:x", "timeout:-1", "pin:3", "demote:1:ssd:2", "tool=oracle", "tool=", "tool=pin,tool=drop", ""],
)
def test_rules_that_make_no_sense(words: str) -> None:
    with pytest.raises(ConfigError):
        Retention.load(words)
    with pytest.raises(ConfigError):
        Plan(pin_s=1.0, drop=True)


def test_replicas_are_shared_out() -> None:
    names = ("chat", "agents")
    assert shared_out({"chat": 1, "agents": 3}, names, 8) == [[0, 1], [2, 3, 4, 5, 6, 7]]
    assert shared_out({"agents": 1e6, "chat": 1e-6}, names, 3) == [[0], [1, 2]]
    assert shared_out({"chat": 1, "agents": 1}, names, 3) == [[0, 1], [2]]
    for count in range(2, 20):
        parts = shared_out({"chat": 2, "agents": 5}, names, count)
        assert [replica for part in parts for replica in part] == list(range(count))
    with pytest.raises(ConfigError, match="one each"):
        shared_out({"chat": 1, "agents": 1}, names, 1)
    with pytest.raises(UnknownNameError, match="agents"):
        shared_out({"chat": 1, "agent": 1}, names, 4)
    with pytest.raises(ConfigError, match="no share"):
        shared_out({"chat": 1}, names, 4)
