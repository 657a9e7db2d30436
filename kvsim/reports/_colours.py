"""The colours of a run's pictures: one for each part of the wall, tier, state and population, the same everywhere.

Tiers take a ramp from light (near) to dark (far), so that they stay apart in grey too; computing is blue, waiting
between pools pink, idle grey. Each colour has a value for light pages, one for dark pages, and a mid-tone for pages
of unknown background (notebooks). What is stacked together stays at least 10 units of CIELAB apart for people with
protanopia, deuteranopia and tritanopia as well (simulated after Machado, Oliveira and Fernandes, 2009).
"""

from __future__ import annotations

from typing import Final

__all__ = ["COLOURS", "POPULATION_DASHES", "css", "mid", "population_key", "tier_key"]

COLOURS: Final[dict[str, tuple[str, str, str]]] = {
    "compute": ("#2b60c2", "#437cde", "#007adb"),
    "recompute": ("#99cbf9", "#b5d2fd", "#9ebdd9"),
    "overhead": ("#63136d", "#96649c", "#6c4771"),
    "collectives": ("#a182d6", "#b1abf9", "#ce9aeb"),
    "bubble": ("#af5c9c", "#ed8bca", "#d44eb2"),
    "idle_no_request": ("#cad0d6", "#474d55", "#b6babd"),
    "idle_tool": ("#b0b4b8", "#686f77", "#9c9fa2"),
    "idle_think": ("#717477", "#8f959c", "#72797f"),
    "queued": ("#b0b4b8", "#686f77", "#9c9fa2"),
    "decode": ("#369775", "#48bd87", "#00aa68"),
    "preempted": ("#324453", "#e5eefa", "#516270"),
    "nowhere": ("#cad0d6", "#474d55", "#b6babd"),
    "link": ("#56606c", "#a3adba", "#7c8692"),
    "running": ("#0b7683", "#35b3c2", "#1f98a6"),
    "waiting": ("#717477", "#a9afb6", "#8a9199"),
    "loading": ("#77741a", "#c6c14d", "#99942e"),
    "other": ("#b0b4b8", "#686f77", "#9c9fa2"),
    "t0": ("#f2c318", "#f8dc20", "#f0bb05"),
    "t1": ("#e18b38", "#f79136", "#ee893b"),
    "t2": ("#cd3f3b", "#f25d58", "#cc4634"),
    "t3": ("#72041f", "#a93640", "#882c34"),
    "t4": ("#5d3a1d", "#a3764c", "#85592f"),
    "t5": ("#a08a2c", "#c9b352", "#b09a3c"),
    "t6": ("#6d1f1f", "#99504f", "#8a3a3a"),
    "t7": ("#3f2b52", "#85709c", "#6a5580"),
    "p0": ("#0072b2", "#4aa8de", "#2b8cc4"),
    "p1": ("#d55e00", "#f08a3c", "#e0721b"),
    "p2": ("#009e73", "#2fc79c", "#12ab80"),
    "p3": ("#b8558c", "#e08fbd", "#cc79a7"),
    "p4": ("#b88600", "#f0c04a", "#cf9d18"),
    "p5": ("#3c9bd1", "#8fd0f5", "#56b4e9"),
    "p6": ("#1d2127", "#eceff2", "#7f8791"),
    "p7": ("#7a5a2e", "#c7a678", "#9c7c4c"),
}
"""Name to (light page, dark page, unknown page)."""

POPULATION_DASHES: Final = ("", "7 3", "2 2.5", "9 3 2 3", "4 2", "1 3", "12 4", "6 2 1 2 1 2")
"""A pattern for each population's line, so that colour is never the only difference."""


def tier_key(tier: int) -> str:
    """Return the colour name of a tier, 0 nearest to compute."""
    return f"t{tier % 8}"


def population_key(population: int) -> str:
    """Return the colour name of a population."""
    return f"p{population % 8}"


def mid(key: str) -> str:
    """Return the colour for a page whose background is not known."""
    return COLOURS[key][2]


def css() -> str:
    """Return the style rules that give every class `k-NAME` its colour, light and dark."""

    def rules(scope: str, column: int) -> str:
        return "".join(f"{scope}.k-{key}{{--k:{values[column]}}}" for key, values in COLOURS.items())

    dark = rules(":root:not([data-theme=light]) ", 1)
    return (
        f"{rules('', 0)}@media screen and (prefers-color-scheme:dark){{{dark}}}"
        f"@media screen{{{rules(':root[data-theme=dark] ', 1)}}}"
    )
