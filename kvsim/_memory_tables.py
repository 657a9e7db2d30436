"""Tables of tiers, links and stalls that a replay's result and a run's have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kvsim._table import Table, plain
from kvsim.errors import UnknownNameError
from kvsim_core import CAUSES, KINDS, RULES, WEIGHTS

__all__ = [
    "BLOCKS",
    "DEVICES",
    "PS",
    "WARRANTY_YEARS",
    "Infos",
    "IntArray",
    "Memory",
    "index",
    "link_info",
    "members",
    "of_rows",
    "plain_object",
    "shapes",
    "take",
    "tier_info",
    "trace_info",
]

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Infos = Sequence[Mapping[str, Any]]

WARRANTY_YEARS = 5
"""Drive writes per day are rated over five years: the warranty of the datacentre drives in the presets."""
PS = 10**12
_DAY_S = 86400
DEVICES = ("read_bytes", "write_bytes", "writeback_read_bytes", "writeback_write_bytes")
BLOCKS = ("inserted", "evicted", "demoted_out", "promoted_in", "refused", "freed")
_K, _W, _R = len(KINDS), len(WEIGHTS), len(RULES)


def shapes(tiers: int, links: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array that says what the memories did."""
    by_kind = dict.fromkeys((*DEVICES, *BLOCKS), (tiers, _K))
    by_tier = dict.fromkeys(("evicted_bytes", "used_bytes", "capacity_bytes", "resident_blocks"), (tiers,))
    by_link = dict.fromkeys(("link_up_bytes", "link_down_bytes"), (links,))
    return {"lookups": (_K, _W), "hits": (tiers, _K, _R, _W), **by_kind, **by_tier, **by_link}


class Memory:
    """What the memories did: a view of a result's arrays.

    Parameters
    ----------
    tiers, links : what is known of each tier and link.
    arrays : the columns of :func:`shapes`.
    wall_ps : the time in which it happened.
    """

    def __init__(self, tiers: Infos, links: Infos, arrays: Mapping[str, np.ndarray[Any, Any]], wall_ps: int) -> None:
        self._tiers, self._links, self._arrays, self._wall_ps = tiers, links, arrays, wall_ps
        self.names = tuple(str(t["name"]) for t in tiers)

    def hits(self) -> Table:
        """Columns tier, kind, rule, weight, hits, lookups, rate."""
        looked = self._arrays["lookups"]
        rows = [
            (tier, kind, rule, weight, hits, total, hits / total if total else None)
            for t, tier in enumerate(self.names)
            for k, kind in enumerate(KINDS)
            for r, rule in enumerate(RULES)
            for w, weight in enumerate(WEIGHTS)
            for hits, total in [(int(self._arrays["hits"][t, k, r, w]), int(looked[k, w]))]
        ]
        return of_rows("hits", ("tier", "kind", "rule", "weight", "hits", "lookups", "rate"), rows)

    def misses(self) -> Table:
        """Columns kind, rule, weight, misses, lookups, rate."""
        rows = []
        found = self._arrays["hits"].sum(axis=0)
        for k, kind in enumerate(KINDS):
            for r, rule in enumerate(RULES):
                for w, weight in enumerate(WEIGHTS):
                    total = int(self._arrays["lookups"][k, w])
                    missed = total - int(found[k, r, w])
                    rows.append((kind, rule, weight, missed, total, missed / total if total else None))
        return of_rows("misses", ("kind", "rule", "weight", "misses", "lookups", "rate"), rows)

    def hit_rate(self, tier: str | None, kind: str, rule: str, weight: str) -> float | None:
        """Return a tier's hit rate (of all tiers together for None) over all look-ups; None without look-ups."""
        k, r, w = index(KINDS, kind, "kind"), index(RULES, rule, "rule"), index(WEIGHTS, weight, "weight")
        total = int(self._arrays["lookups"][k, w])
        if not total:
            return None
        hits = self._arrays["hits"][:, k, r, w]
        return int(hits.sum() if tier is None else hits[index(self.names, tier, "tier")]) / total

    def stall_ps(self, stalls: IntArray, tier: str | None, kind: str | None, cause: str | None) -> int:
        """Return the picoseconds of a tier, a kind and a cause in `stalls` [..., T, K, C]; None is all of them."""
        chosen = stalls[..., slice(None) if tier is None else [index(self.names, tier, "tier")], :, :]
        chosen = chosen[..., slice(None) if kind is None else [index(KINDS, kind, "kind")], :]
        return int(chosen[..., slice(None) if cause is None else [index(CAUSES, cause, "cause")]].sum())

    def traffic(self) -> Table:
        """One row a tier and kind: bytes read and written (by need, and by write-back), blocks moved and evicted."""
        keys = (*DEVICES, *BLOCKS)
        rows = [
            (tier, kind, *(int(self._arrays[key][t, k]) for key in keys))
            for t, tier in enumerate(self.names)
            for k, kind in enumerate(KINDS)
        ]
        return of_rows("traffic", ("tier", "kind", *keys), rows)

    def links(self) -> Table:
        """One row a link: what it joins, bytes up (towards compute) and down."""
        a = self._arrays
        rows = [
            (info["name"], info["between"][0], info["between"][1], int(up), int(down))
            for info, up, down in zip(self._links, a["link_up_bytes"], a["link_down_bytes"], strict=True)
        ]
        return of_rows("links", ("link", "upper", "lower", "up_bytes", "down_bytes"), rows)

    def memory(self) -> Table:
        """One row a tier: medium, capacity and use at the end, resident blocks, bytes evicted."""
        keys = ("capacity_bytes", "used_bytes", "resident_blocks", "evicted_bytes")
        columns = {key: self._arrays[key] for key in keys}
        return Table("memory", {"tier": list(self.names), "medium": [t["medium"] for t in self._tiers], **columns})

    def wear(self) -> Table:
        """One row an SSD tier: bytes written, drive writes a day, years until the rated writes are used up.

        years = endurance_dwpd x capacity x 365 d x 5 y of warranty / bytes written a year at this pace.
        None where the tier's endurance is not known, or where nothing was written.
        """
        rows = []
        days = self._wall_ps / (PS * _DAY_S)
        for t, info in enumerate(self._tiers):
            rated = info["endurance_dwpd"]
            if rated is None and str(info["medium"]).upper() != "SSD":
                continue
            a = self._arrays
            written = int(a["write_bytes"][t].sum() + a["writeback_write_bytes"][t].sum())
            size = info["capacity_bytes"]
            writes = written / size / days if size and days else None
            years = rated * WARRANTY_YEARS / writes if rated is not None and writes else None
            rows.append((info["name"], written, size, writes, rated, years))
        names = ("tier", "written_bytes", "capacity_bytes", "drive_writes_per_day", "endurance_dwpd", "life_years")
        return of_rows("wear", names, rows)


# ---- small helpers ------------------------------------------------------------------------------------------------


def of_rows(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table made of rows."""
    listed = list(rows)
    return Table(name, {c: [r[i] for r in listed] for i, c in enumerate(columns)})


def index(names: Sequence[str], name: str, what: str) -> int:
    """Return the place of a name; UnknownNameError if it is not there."""
    if name not in names:
        raise UnknownNameError(name, names, what)
    return list(names).index(name)


def members(machine: Any, name: str) -> Iterable[Any]:
    """Return the machine's tiers, links or pools, whether it is an object or a mapping."""
    found = machine.get(name, ()) if isinstance(machine, Mapping) else getattr(machine, name)
    return found.values() if isinstance(found, Mapping) else tuple(found)


def take(thing: Any, name: str, default: Any = None) -> Any:
    """Return a mapping's entry or an object's attribute."""
    return thing.get(name, default) if isinstance(thing, Mapping) else getattr(thing, name, default)


def tier_info(tier: Any) -> dict[str, Any]:
    """Return name, medium, count, capacity and endurance of a tier, as plain data."""
    count = int(take(tier, "count", 1))
    total = take(tier, "total_capacity_bytes", None)
    if total is None:
        total = count * int(take(tier, "capacity_bytes", 0))
    return {
        "name": str(take(tier, "name")),
        "medium": str(take(tier, "medium", "")),
        "count": count,
        "capacity_bytes": int(total),
        "endurance_dwpd": plain(take(tier, "endurance_dwpd", None)),
    }


def link_info(link: Any) -> dict[str, Any]:
    """Return name and ends of a link, as plain data."""
    return {"name": str(take(link, "name")), "between": [str(x) for x in take(link, "between", ("", ""))]}


def trace_info(trace: Any) -> dict[str, Any]:
    """Return name, source and size of a trace (or the mapping that says them), as plain data."""
    if isinstance(trace, Mapping):
        return dict(plain(trace))
    if not hasattr(trace, "unique_blocks") and hasattr(trace, "blocks"):  # steps and a table of blocks, no requests
        return {"name": trace.meta.name, "unique_blocks": trace.blocks.n}
    wanted = {"name": "name", "source": "source", "requests": "n", "unique_blocks": "unique_blocks"}
    info = {key: plain(getattr(trace, attribute, None)) for key, attribute in wanted.items()}
    return {k: v for k, v in info.items() if v is not None}


def plain_object(thing: Any) -> dict[str, Any]:
    """Return a configuration object as plain data with its name."""
    if isinstance(thing, Mapping):
        return dict(plain(thing))
    if hasattr(thing, "to_dict"):
        found = plain(thing.to_dict())
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        found = plain(dataclasses.asdict(thing))
    else:
        found = {}
    return {"name": str(getattr(thing, "name", thing)), **found}
