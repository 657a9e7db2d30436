"""Which tiers each pool stands on, and what links and movements of a machine may join.

The ladder of a pool is its near tier, then every tier that is no pool's near tier, in the machine's order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from kvsim._parts import ROLES, Link, Movement, Pool
from kvsim.errors import MachineError, UnknownNameError

__all__ = ["check_link", "check_pools", "full_movements", "kept_paths", "ladders", "neighbours"]

Ladder = tuple[str, ...]


def ladders(order: Sequence[str], nears: Iterable[str]) -> tuple[Ladder, ...]:
    """Return the ladder of each pool, by the names of the tiers.

    Parameters
    ----------
    order : the tiers' names, from compute outwards.
    nears : for each pool its near tier; "" is the first of `order`.
    """
    near = [name or next(iter(order), "") for name in nears]
    shared = tuple(name for name in order if name not in near)
    return tuple((name, *shared) for name in near)


def neighbours(steps: Iterable[Ladder]) -> tuple[tuple[str, str], ...]:
    """Return each pair of neighbours of the ladders once, in order of first appearance."""
    return tuple(dict.fromkeys(pair for ladder in steps for pair in pairwise(ladder)))


def check_pools(order: Sequence[str], pools: Sequence[Pool]) -> None:
    """Refuse pools whose near tiers or roles make no machine.

    Raises
    ------
    UnknownNameError
        A near tier that does not exist.
    MachineError
        A near tier behind one that all pools share; among several pools, a role that two have or none has.
    """
    near = {pool.near or order[0] for pool in pools}
    for pool in pools:
        if pool.near and pool.near not in order:
            raise UnknownNameError(pool.near, order, "tier", place=f"pool.{pool.name}.near")
        before = order[: order.index(pool.near or order[0])]
        shared = next((name for name in before if name not in near), None)
        if shared is not None:
            raise MachineError(
                f"pool.{pool.name}.near: found {pool.near!r} behind {shared!r}, which is no pool's near tier, "
                f"expected near tiers first ({'/'.join(order)})"
            )
    if len(pools) == 1:
        return
    for role in ROLES:
        having = [pool.name for pool in pools if role in pool.roles]
        if len(having) > 1:
            raise MachineError(
                f"pools: found the role {role!r} of both {having[0]!r} and {having[1]!r}, expected one pool to have it"
            )
        if not having:
            names = ", ".join(pool.name for pool in pools)
            raise MachineError(f"pools: found none of {names} with the role {role!r}, expected one pool to have it")
    for pool in pools:
        if not pool.roles:
            raise MachineError(f"pool.{pool.name}.roles: found none, expected one at least, or no such pool")


def check_link(link: Link, order: Sequence[str], pools: Sequence[Pool], steps: Sequence[Ladder]) -> None:
    """Refuse a link that joins neither two tiers of one ladder, the nearer first, nor two pools.

    Raises
    ------
    UnknownNameError, MachineError
    """
    at = f"link.{link.name}.between"
    names = [pool.name for pool in pools]
    if len(pools) == 1 or set(link.between) <= set(order):
        _check_pair(link.between, at, order, steps)
        return
    for end in link.between:
        if end not in order and end not in names:
            raise UnknownNameError(end, (*order, *names), "tier or pool", place=at)
    if not set(link.between) <= set(names) or link.between[0] == link.between[1]:
        raise MachineError(
            f"{at}: found {link.between[0]!r} and {link.between[1]!r}, expected two tiers of one pool, or two pools"
        )


def full_movements(given: Iterable[Movement], order: Sequence[str], steps: Sequence[Ladder]) -> tuple[Movement, ...]:
    """Return a movement for each pair of neighbours: the given one, else the defaults.

    Raises
    ------
    UnknownNameError, MachineError
        A tier that does not exist, tiers that are not neighbours, or a pair given twice.
    """
    found: dict[tuple[str, str], Movement] = {}
    pairs = neighbours(steps)
    for movement in given:
        pair = (movement.upper, movement.lower)
        at = f'movement."{movement.upper}/{movement.lower}"'
        _check_pair(pair, at, order, steps)
        if pair not in pairs:
            raise MachineError(f"{at}: found tiers that are not neighbours, expected two in a row of {_shown(steps)}")
        if pair in found:
            raise MachineError(f"{at}: found two, expected one for each pair of neighbours")
        found[pair] = movement
    return tuple(found.get(pair, Movement(upper=pair[0], lower=pair[1])) for pair in pairs)


def kept_paths(paths: Iterable[str], names: Mapping[str, Collection[str]]) -> list[str]:
    """Return the dotted paths whose tier, pool, link or movement is among `names`, and those of nothing of the kind."""
    out = []
    for path in paths:
        sort, _, rest = path.partition(".")
        if sort not in names or rest.partition(".")[0] in names[sort]:
            out.append(path)
    return out


def _check_pair(pair: tuple[str, str], at: str, order: Sequence[str], steps: Sequence[Ladder]) -> None:
    for end in pair:
        if end not in order:
            raise UnknownNameError(end, order, "tier", place=at)
    ladder = next((ladder for ladder in steps if set(pair) <= set(ladder)), None)
    if ladder is None:
        raise MachineError(f"{at}: found {pair[0]!r} and {pair[1]!r}, expected two tiers of one pool ({_shown(steps)})")
    if ladder.index(pair[0]) >= ladder.index(pair[1]):
        raise MachineError(
            f"{at}: found {pair[0]!r} before {pair[1]!r}, expected the nearer tier first ({'/'.join(ladder)})"
        )


def _shown(steps: Iterable[Ladder]) -> str:
    return " or ".join(dict.fromkeys("/".join(ladder) for ladder in steps))
