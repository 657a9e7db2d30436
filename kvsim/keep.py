"""A machine with fewer tiers: what `--tiers` asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from kvsim.errors import ConfigError, MachineError, UnknownNameError

if TYPE_CHECKING:
    from kvsim.machine import Link, Machine

__all__ = ["keep_tiers"]


def keep_tiers(machine: Machine, wanted: int | Sequence[str]) -> Machine:
    """Return the machine with some of its tiers only, in their order.

    Parameters
    ----------
    machine : Machine
    wanted : how many of the nearest tiers, or the names of those to keep.

    Notes
    -----
    What lay behind a tier that went is reached over the same links as before: both the links into that tier and the
    links out of it. The new neighbours move blocks by the rule that stood above the tier that went.

    Raises
    ------
    UnknownNameError
        No tier of that name.
    ConfigError
        The machine has several pools, none is left, more are asked for than there are, or links of two tiers pass
        through one that went.
    """
    names = machine.tier_names
    if len(machine.pools) > 1:
        pools = ", ".join(pool.name for pool in machine.pools)
        raise ConfigError(f"tiers: found several pools in {machine.name} ({pools}), expected a machine of one pool")
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(names):
            raise ConfigError(
                f"tiers: found {wanted}, expected 1 to {len(names)} ({', '.join(names)} of {machine.name})"
            )
        kept = set(names[:wanted])
    else:
        kept = set(wanted)
        for name in wanted:
            if name not in names:
                raise UnknownNameError(name, names, f"tier of {machine.name}")
        if not kept:
            raise ConfigError("tiers: found none, expected at least one")
    links: tuple[Link, ...] = machine.links
    rules = {(m.upper, m.lower): m for m in machine.movements}
    stack = list(names)
    for gone in [name for name in names if name not in kept]:
        at = stack.index(gone)
        links = _without(links, stack, at, machine.name)
        above = rules.pop((stack[at - 1], gone), None) if at else None
        if at + 1 < len(stack):
            rules.pop((gone, stack[at + 1]), None)
            if above is not None:
                lower = stack[at + 1]
                rules[(above.upper, lower)] = dataclasses.replace(above, lower=lower)
        stack.remove(gone)
    order = {pair: i for i, pair in enumerate(pairwise(stack))}
    movements = tuple(rules[pair] for pair in sorted(rules, key=lambda pair: order[pair]))
    tiers = tuple(tier for tier in machine.tiers if tier.name in kept)
    return machine.with_(tiers=tiers, links=links, movements=movements)


def _without(links: tuple[Link, ...], stack: Sequence[str], at: int, machine: str) -> tuple[Link, ...]:
    """Return the links once the tier at a place of the stack is gone.

    A tier that no link leads to hangs on its upper neighbour: it is reached the same way.
    """
    gone = stack[at]
    uppers = {k.between[0] for k in links if k.between[1] == gone} or set(stack[max(at - 1, 0) : at])
    lowers = {k.between[1] for k in links if k.between[0] == gone}
    below = stack[at + 1 : at + 2]
    lowers |= {name for name in below if not any(k.between[1] == name for k in links)}
    if len(uppers) > 1 or len(lowers) > 1:
        raise MachineError(f"{machine}: tiers: links of several tiers pass through {gone!r}, expected it to be kept")
    joined = next(((upper, lower) for upper in uppers for lower in lowers), None)
    out = []
    for link in links:
        if gone not in link.between:
            out.append(link)
        elif joined is not None:
            out.append(dataclasses.replace(link, between=joined))
    return tuple(out)
