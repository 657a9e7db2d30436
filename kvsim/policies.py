"""Names, objects and addresses to policies that a tier can use.

A policy is named by its registered name (``"lru"``), with ``leaf-`` before it for leaf-only eviction
(``"leaf-lru"``); or it
is a factory (a `kvsim_core.Policy` subclass, or any callable that returns a policy); or an object: a
`kvsim_core.Policy`, a
capsule over C functions, a mapping of their addresses, or a plain Python object with the slot's methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.errors import ConfigError, UnknownNameError
from kvsim_core import CPolicy, Policy, PythonPolicy, registered

__all__ = ["GROUP", "PolicyChoice", "choose", "names"]

GROUP = "kvsim.policies"
LEAF = "leaf-"
SEEDS = 1 << 64


@dataclass(frozen=True)
class PolicyChoice:
    """A policy that was asked for: what it is called, and how to make one for a tier."""

    name: str
    leaf_only: bool
    make: Callable[[], Policy]
    #: whether each call of `make` gives a new one, so that several tiers may use it
    many: bool


def _outside() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Return the names of all policies, of entry points too, sorted."""
    return tuple(sorted({*registered(), *_outside()}))


def _wrap(thing: Any) -> Policy:
    """Return the slot that `thing` is, or adapt it."""
    if isinstance(thing, Policy):
        return thing
    if isinstance(thing, Mapping) or type(thing).__name__ == "PyCapsule":
        return CPolicy(thing)
    return PythonPolicy(thing)


def choose(policy: Any, *, seed: int = 0) -> PolicyChoice:
    """Return what `policy` asks for.

    Parameters
    ----------
    policy : str, callable or object
        See the module.
    seed : int
        For policies that draw, 0 … 2^64 - 1.

    Raises
    ------
    UnknownNameError
        No policy has that name.
    ConfigError
        The object is no policy, or the seed is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ConfigError(f"seed: found {seed!r}, expected a whole number from 0 to 2^64 - 1")
    if isinstance(policy, PolicyChoice):
        return policy
    if isinstance(policy, str):
        leaf_only = policy.startswith(LEAF)
        name = policy.removeprefix(LEAF)
        factory = registered().get(name)
        if factory is None:
            point = _outside().get(name)
            if point is None:
                known = [n for each in names() for n in (each, LEAF + each)]
                raise UnknownNameError(policy, known, "policy")
            factory = point.load()
        return PolicyChoice(policy, leaf_only, lambda: _made(factory, seed, policy), True)
    label = getattr(policy, "name", None) or getattr(policy, "__name__", None) or type(policy).__name__
    leaf_only = bool(getattr(policy, "leaf_only", False))
    if isinstance(policy, type) or (callable(policy) and not hasattr(policy, "victim")):
        return PolicyChoice(str(label), leaf_only, lambda: _made(policy, seed, str(label)), True)
    try:
        made = _wrap(policy)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"policy {label!r}: {error}") from error
    return PolicyChoice(str(label), leaf_only, lambda: made, False)


def _made(factory: Callable[..., Any], seed: int, label: str) -> Policy:
    takes_seed = isinstance(factory, type) and issubclass(factory, Policy)
    try:
        return _wrap(factory(seed=seed) if takes_seed else factory())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"policy {label!r}: {error}") from error
