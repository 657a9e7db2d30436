"""Populations: their words, their goals, and which requests meet them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kvsim.errors import ConfigError, KvsimError, UnknownNameError
from kvsim.population import Population, populations


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("chat:ttft=1s,tpot=50ms", {"name": "chat", "ttft_s": 1.0, "tpot_s": 0.05}),
        ("agents:makespan=2h", {"name": "agents", "makespan_s": 7200.0}),
        ("agents:cost=0.5USD", {"name": "agents", "cost_usd": 0.5}),
        (" people : e2e = 2 min , ttft = 200 ms ", {"name": "people", "e2e_s": 120.0, "ttft_s": 0.2}),
        ("ttft=1", {"name": "all", "ttft_s": 1.0}),
        ("agents", {"name": "agents"}),
        ("agents:", {"name": "agents"}),
        ("chat.0:ttft=1s", {"name": "chat.0", "ttft_s": 1.0}),  # as merged traces of one name are called
    ],
)
def test_words(words: str, expected: dict[str, object]) -> None:
    found = Population.parse(words)
    assert found == Population(**expected)  # type: ignore[arg-type]
    assert found.goals == {key: value for key, value in expected.items() if key != "name"}


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("chat:tfft=1s", UnknownNameError, "unknown goal 'tfft': did you mean 'ttft'"),
        ("chat:speed=1", UnknownNameError, "known: cost, e2e, makespan, tpot, ttft"),
        ("chat:ttft=1s,ttft=2s", ConfigError, "found ttft twice"),
        ("chat:ttft=1s,tpot", ConfigError, "found 'tpot', expected GOAL=VALUE"),
        ("chat:ttft=", ConfigError, "expected GOAL=VALUE, a goal of ttft, tpot, e2e, cost, makespan"),
        ("chat:ttft=0s", ConfigError, "ttft: found '0s', expected a number like .*, above 0"),
        ("chat:ttft=-1s", ConfigError, "above 0"),
        ("chat:ttft=5GB", ConfigError, "found the unit 'GB'"),
        ("chat:cost=3h", ConfigError, "cost: found the unit 'h'"),
        ("chat:ttft=nan", ConfigError, "finite"),
        (":ttft=1s", ConfigError, "found no name, expected NAME:GOAL=VALUE"),
        ("", ConfigError, "found no name"),
        ("chat:ttft", ConfigError, "found 'ttft', expected GOAL=VALUE"),
    ],
)
def test_wrong_words_are_one_clear_line(words: str, error: type[KvsimError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        Population.parse(words)
    assert "\n" not in str(raised.value)


def test_fields_are_checked_and_read_as_people_write() -> None:
    assert Population("a", ttft_s="250 ms").ttft_s == 0.25  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="population a: tpot_s: found -1"):
        Population("a", tpot_s=-1)
    with pytest.raises(ConfigError, match="expected a name"):
        Population("")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Population("a").ttft_s = 3  # type: ignore[misc]
    assert str(Population.parse("chat:ttft=1s,tpot=50ms")) == "chat: ttft=1 s, tpot=50 ms"
    assert str(Population("chat")) == "chat"


def test_met_at_below_and_beyond_the_goal() -> None:
    nan = np.nan
    chat = Population("chat", ttft_s=1, tpot_s=0.05, e2e_s=10)
    ttft = np.array([1.0, 1.0, 1.1, 0.5, 0.5, nan, 0.5])
    tpot = np.array([0.05, nan, 0.01, 0.06, 0.01, 0.01, 0.01])
    e2e = np.array([10.0, 1.0, 1.0, 1.0, 10.1, nan, nan])
    met = chat.met(ttft, tpot, e2e)
    assert met.dtype == np.bool_
    assert met.tolist() == [True, True, False, False, False, False, False]
    # what is no goal, and what is not of one request, judges none; who was never served was not served well
    agents = Population("agents", cost_usd=1, makespan_s=1)
    assert agents.met(ttft, tpot, e2e).tolist() == [True] * 5 + [False] * 2
    assert chat.met([], [], []).tolist() == []


def test_goals_for_the_populations_of_a_trace() -> None:
    chat = Population("chat", ttft_s=1)
    assert populations([chat], ("agents", "chat")) == (Population("agents"), chat)
    assert populations(["chat:ttft=1s", "agents:makespan=2h"], ("chat", "agents"))[1].makespan_s == 7200
    assert populations([], ("all",)) == (Population("all"),)
    assert populations(["ttft=1s"], ("all",))[0].ttft_s == 1
    with pytest.raises(UnknownNameError, match="unknown population 'chats': did you mean 'chat'"):
        populations(["chats:ttft=1s"], ("chat", "agents"))
    with pytest.raises(ConfigError, match="population chat: found goals for it twice"):
        populations(["chat:ttft=1s", "chat:tpot=1s"], ("chat",))
