"""Every error that kvsim raises on purpose.

A message is one line that names the place (file, key or line), the value found and the value
expected. The command line turns a :class:`KvsimError` into exit code 1, or into 2 where `exit_code`
says that the words of the command were wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "ConfigError",
    "KvsimError",
    "MachineError",
    "ModelError",
    "TraceError",
    "TraceWarning",
    "UnknownNameError",
    "WorkloadError",
    "nearest_hint",
    "shown",
]


class KvsimError(Exception):
    """The base of every error that kvsim raises on purpose."""

    exit_code = 1


class ConfigError(KvsimError):
    """A configuration (model, machine, option) that cannot be used as it is written."""


class ModelError(ConfigError):
    """A model whose shape, precision or file is wrong."""


class MachineError(ConfigError):
    """A machine whose tiers, links, movements or file are wrong."""


class TraceError(KvsimError):
    """A trace, or a line of a trace file, that cannot be read or makes no sense."""


class WorkloadError(KvsimError):
    """A workload generator's parameter that makes no sense."""


class TraceWarning(UserWarning):
    """A trace was usable only after a repair that is stated (such as a stable sort by arrival)."""


class UnknownNameError(ConfigError):
    """A name that is not among the known ones; the message offers the nearest.

    Parameters
    ----------
    name : the name that was asked for.
    known : the names that exist.
    what : what the name should have been ("machine", "policy", "key of [tier.hbm]").
    place : where it stood (a file, an option), put in front of the message.
    """

    exit_code = 2

    def __init__(self, name: object, known: Iterable[str], what: str, *, place: str = "") -> None:
        self.name = str(name)
        self.known = tuple(known)
        self.what = what
        self.place = place
        prefix = f"{place}: " if place else ""
        super().__init__(f"{prefix}unknown {what} {shown(self.name)}: {nearest_hint(self.name, self.known)}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_unknown_name, (self.name, self.known, self.what, self.place))


def _unknown_name(name: str, known: tuple[str, ...], what: str, place: str) -> UnknownNameError:
    return UnknownNameError(name, known, what, place=place)


def nearest_hint(name: str, known: Sequence[str], *, most: int = 12) -> str:
    """Say what the writer of an unknown `name` probably meant.

    Returns "did you mean 'x'?" when one or more of `known` are near, else the known names, else
    "there are none".
    """
    lowered = {k.lower(): k for k in known}
    near = [lowered[k] for k in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)]
    if not near and len(name) >= 3:
        near = [k for k in known if name.lower() in k.lower()][:3]
    if near:
        return f"did you mean {' or '.join(shown(k) for k in near)}?"
    if not known:
        return "there are none"
    listed = ", ".join(sorted(known)[:most])
    more = len(known) - most
    return f"known: {listed}" + (f" and {more} more" if more > 0 else "")


def shown(value: object, *, most: int = 60) -> str:
    """Show a value in a message: its repr, on one line, cut when long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
