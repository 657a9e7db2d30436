"""Retention: what becomes of a session's blocks while a person thinks or a tool runs.

A rule is a name, with its numbers behind colons: "keep" (nothing is done; blocks go as the tiers' policies say), "pin"
(they stay near for as long as the pause lasts), "timeout:60" (pinned for so many seconds), "demote:10" or
"demote:10:ssd" (moved to the next tier, or to the one named, after so many seconds), "drop" (freed), "prefetch" (moved
down at once and brought back when the session resumes), "lead:5" (moved down at once and brought back so many seconds
before), "foresight" (it knows when each session resumes, evicts what is used last, and brings back in time), "oracle"
(the yardstick: all of `TRIED` are run, and the cheapest is kept). "tool=timeout:60,think=demote:10" has a rule for each
sort of pause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.errors import ConfigError, UnknownNameError, shown
from kvsim.units import parse

__all__ = ["RULES", "Plan", "Retention"]

PREFETCHES = ("no", "resume", "lead")
PAUSES_RULED = ("think", "tool")
_LONGEST_S = 4_000_000.0  # the clock ends at 2^62 picoseconds, 53 days


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to the blocks of a session in one sort of pause.

    Parameters
    ----------
    pin_s : seconds that they stay pinned; infinity for the whole pause, None for no pin.
    demote_s : seconds until they move to a farther tier; None for never.
    tier : the name of that tier; "" is the next one.
    drop : whether they are freed at once.
    prefetch : when they are brought back near: "no", on "resume", or with a "lead".
    lead_s : seconds before the resume at which that begins.

    Raises
    ------
    ConfigError, UnknownNameError
    """

    pin_s: float | None = None
    demote_s: float | None = None
    tier: str = ""
    drop: bool = False
    prefetch: str = "no"
    lead_s: float = 0.0

    def __post_init__(self) -> None:
        if self.prefetch not in PREFETCHES:
            raise UnknownNameError(self.prefetch, PREFETCHES, "prefetch", place="retention")
        if self.pin_s != math.inf:
            for key in ("pin_s", "demote_s", "lead_s"):
                if getattr(self, key) is not None:
                    object.__setattr__(self, key, _seconds(getattr(self, key), f"retention: {key}"))
        if sum((self.pin_s is not None, self.demote_s is not None, self.drop)) > 1:
            raise ConfigError("retention: found two of pin_s, demote_s and drop, expected one at most")


def _seconds(value: object, place: str) -> float:
    return float(parse(value, "s", place=place, high=_LONGEST_S))


def _timeout(at: str, seconds: str) -> Plan:
    return Plan(pin_s=_seconds(seconds, at))


def _demote(at: str, seconds: str, tier: str = "") -> Plan:
    return Plan(demote_s=_seconds(seconds, at), tier=tier)


def _lead(at: str, seconds: str) -> Plan:
    return Plan(demote_s=0.0, prefetch="lead", lead_s=_seconds(seconds, at))


RULES: dict[str, tuple[Callable[..., Plan], str, int, int]] = {
    "keep": (lambda at: Plan(), "keep", 0, 0),
    "pin": (lambda at: Plan(pin_s=math.inf), "pin", 0, 0),
    "timeout": (_timeout, "timeout:SECONDS", 1, 1),
    "demote": (_demote, "demote:SECONDS or demote:SECONDS:TIER", 1, 2),
    "drop": (lambda at: Plan(drop=True), "drop", 0, 0),
    "prefetch": (lambda at: Plan(demote_s=0.0, prefetch="resume"), "prefetch", 0, 0),
    "lead": (_lead, "lead:SECONDS", 1, 1),
    "foresight": (lambda at: Plan(prefetch="lead"), "foresight", 0, 0),
    "oracle": (lambda at: Plan(prefetch="lead"), "oracle", 0, 0),
}
"""The rules by name: what makes the plan, how it is written, and how many numbers it takes."""

TRIED = (
    "foresight", "keep", "pin", "timeout:10", "timeout:60", "timeout:300", "demote:0", "demote:10", "demote:60", "drop",
    "prefetch", "lead:1", "lead:5", "lead:30",
)  # fmt: skip
"""What the oracle chooses from, in hindsight. Knowing the future alone is no bound: in a closed loop a request that
comes earlier changes all that follows, and of two machines that never wait in vain one still ends first."""


@dataclass(frozen=True)
class Retention:
    """A retention rule: a plan for each sort of pause.

    Parameters
    ----------
    name : what it is called in results.
    think, tool : plans for the pauses of people and of tools. A pause that is neither is left alone.
    foresight : whether every tier evicts what is used last, by the times at which sessions resume.
    """

    name: str = "keep"
    think: Plan = Plan()
    tool: Plan = Plan()
    foresight: bool = False

    @classmethod
    def load(cls, rule: str | Mapping[str, Any] | Plan | Retention) -> Retention:
        """Return the rule that text, a plan, or a mapping from "think" and "tool" to either stands for.

        Raises
        ------
        UnknownNameError
            No rule, or no sort of pause, of that name.
        ConfigError
            A rule without its number, with too many, or with one that makes no sense.
        """
        if isinstance(rule, Retention):
            return rule
        if isinstance(rule, Plan):
            return cls("plan", rule, rule)
        if isinstance(rule, str) and "=" not in rule:
            plan = _plan(rule)
            return cls(rule.strip(), plan, plan, foresight=rule.strip() in ("foresight", "oracle"))
        given: dict[str, Any] = {}
        if isinstance(rule, str):
            name = rule.strip()
            for part in rule.split(","):
                pause, equals, words = (text.strip() for text in part.partition("="))
                if not equals or not words:
                    raise ConfigError(f"retention: found {shown(rule)}, expected PAUSE=RULE,PAUSE=RULE")
                if pause in given:
                    raise ConfigError(f"retention: found {pause} twice in {shown(rule)}, expected it once")
                given[pause] = words
        elif isinstance(rule, Mapping):
            given = dict(rule)
            name = ",".join(f"{k}={v if isinstance(v, str) else 'plan'}" for k, v in given.items())
        else:
            raise ConfigError(f"retention: found {shown(rule)}, expected a rule ({', '.join(RULES)})")
        plans: dict[str, Plan] = {}
        for pause, words in given.items():
            if pause not in PAUSES_RULED:
                raise UnknownNameError(pause, PAUSES_RULED, "pause", place="retention")
            if words in ("foresight", "oracle"):
                raise ConfigError(
                    f"retention: found {words} for one sort of pause, expected it alone: it knows them all"
                )
            plans[pause] = words if isinstance(words, Plan) else _plan(words)
        return cls(name, think=plans.get("think", Plan()), tool=plans.get("tool", Plan()))

    def __str__(self) -> str:
        return self.name


def _plan(words: object) -> Plan:
    if not isinstance(words, str):
        raise ConfigError(f"retention: found {shown(words)}, expected a rule ({', '.join(RULES)})")
    name, *numbers = (part.strip() for part in words.split(":"))
    if name not in RULES:
        raise UnknownNameError(name, RULES, "retention rule")
    make, form, least, most = RULES[name]
    if not least <= len(numbers) <= most:
        raise ConfigError(f"retention: found {shown(words)}, expected {form}")
    return make(f"retention: {name}", *numbers)
