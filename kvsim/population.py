"""Who asks, and what they ask for: people with times to meet, agents with a cost or a makespan.

A trace's requests belong to populations (`RequestTrace.population`); a goal says what serves one well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvsim.errors import ConfigError, UnknownNameError, shown
from kvsim.units import format_unit, parse

__all__ = ["Population", "populations"]

_GOALS = {
    "ttft": ("ttft_s", "s"),
    "tpot": ("tpot_s", "s"),
    "e2e": ("e2e_s", "s"),
    "cost": ("cost_usd", "USD"),
    "makespan": ("makespan_s", "s"),
}
"""What a goal is called on the command line: its field and its unit."""


@dataclass(frozen=True)
class Population:
    """A part of a trace's requests that share a goal; a goal of None is no goal.

    Parameters
    ----------
    name : str
        As in `RequestTrace.population_names`.
    ttft_s, tpot_s, e2e_s : float, optional
        The most that a request may take to its first token, for each token after it, and in all, in seconds.
    cost_usd : float, optional
        The most that a task may cost, in US dollars.
    makespan_s : float, optional
        The most that all of its requests together may take, from the first arrival on, in seconds.

    Raises
    ------
    ConfigError
        No name, or a goal that is not a finite number above 0.
    """

    name: str
    _: KW_ONLY
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    cost_usd: float | None = None
    makespan_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"population: name: found {shown(self.name)}, expected a name")
        for field, unit in _GOALS.values():
            value = getattr(self, field)
            if value is not None:
                place = f"population {self.name}: {field}"
                object.__setattr__(self, field, float(parse(value, unit, place=place, positive=True)))

    @classmethod
    def parse(cls, words: str) -> Population:
        """Read the words of a command line: "chat:ttft=1s,tpot=50ms", "agents:makespan=2h" or "agents:cost=0.5USD".

        Without a name ("ttft=1s") it is the population "all", a trace's only one where it does not say.

        Raises
        ------
        ConfigError
            Not of that form, a goal given twice, or a value without sense.
        UnknownNameError
            A goal of another name.
        """
        name, colon, listed = words.partition(":")
        if not colon and "=" in words:
            name, listed = "all", words
        place = f"population {shown(words)}"
        if not name.strip():
            raise ConfigError(f"{place}: found no name, expected NAME:GOAL=VALUE")
        goals: dict[str, Any] = {}
        for part in listed.split(",") if listed.strip() else []:
            key, equals, value = (text.strip() for text in part.partition("="))
            if not equals or not value:
                raise ConfigError(f"{place}: found {shown(part)}, expected GOAL=VALUE, a goal of {', '.join(_GOALS)}")
            if key not in _GOALS:
                raise UnknownNameError(key, _GOALS, "goal", place=place)
            field, unit = _GOALS[key]
            if field in goals:
                raise ConfigError(f"{place}: found {key} twice, expected it once")
            goals[field] = float(parse(value, unit, place=f"{place}: {key}", positive=True))
        return cls(name.strip(), **goals)

    @property
    def goals(self) -> dict[str, float]:
        """The goals that there are, by field."""
        return {field: getattr(self, field) for field, _ in _GOALS.values() if getattr(self, field) is not None}

    def met(self, ttft_s: ArrayLike, tpot_s: ArrayLike, e2e_s: ArrayLike) -> NDArray[np.bool_]:
        """Say which requests were served within the goals for one request; cost and makespan are not of one request.

        Parameters
        ----------
        ttft_s, tpot_s, e2e_s : float64 (n,), seconds
            NaN in `tpot_s` (an answer of one token has none) meets its goal; NaN in the others means that there was
            no first token or no end, and meets nothing.

        Returns
        -------
        bool (n,)
        """
        ttft, tpot, e2e = (np.asarray(times, np.float64) for times in (ttft_s, tpot_s, e2e_s))
        served = ~(np.isnan(ttft) | np.isnan(e2e))
        for times, goal in ((ttft, self.ttft_s), (tpot, self.tpot_s), (e2e, self.e2e_s)):
            if goal is not None:
                served &= ~(times > goal)
        return np.asarray(served, np.bool_)

    def __str__(self) -> str:
        """Return the goals as people write them."""
        told = [
            f"{key}={format_unit(getattr(self, field), unit)}"
            for key, (field, unit) in _GOALS.items()
            if getattr(self, field) is not None
        ]
        return f"{self.name}: {', '.join(told)}" if told else self.name


def populations(goals: Iterable[Population | str], names: Sequence[str]) -> tuple[Population, ...]:
    """Return one population for each of a trace's `population_names`, in their order, with the goals given for it.

    Parameters
    ----------
    goals : populations, or words for :meth:`Population.parse`; a population without any has no goal.
    names : `RequestTrace.population_names`.

    Raises
    ------
    UnknownNameError
        Goals for a population that the trace does not have.
    ConfigError
        Words that cannot be read, or goals for a population twice.
    """
    given: dict[str, Population] = {}
    for goal in goals:
        wanted = Population.parse(goal) if isinstance(goal, str) else goal
        if wanted.name not in names:
            raise UnknownNameError(wanted.name, names, "population")
        if wanted.name in given:
            raise ConfigError(f"population {wanted.name}: found goals for it twice, expected all of them once")
        given[wanted.name] = wanted
    return tuple(given.get(name, Population(name)) for name in names)
