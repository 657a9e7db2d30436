"""What a replay found: columns, summaries, and the pictures of them.

A :class:`Result` is made once from the core's integers and never changes. Every table of it is a view of those
integers; a value that does not exist is None (shown as n/a), never 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim import _saved
from kvsim._memory_tables import PS, IntArray, Memory, link_info, members, of_rows, plain_object, tier_info, trace_info
from kvsim._memory_tables import shapes as memory_shapes
from kvsim._table import Table, plain
from kvsim.curve_result import CurveResult
from kvsim.errors import KvsimError, UnknownNameError
from kvsim_core import CAUSES, KINDS, WEIGHTS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["CurveResult", "Identity", "Result", "load"]

PARTS = ("compute", "recompute", "overhead", "collectives", "stalls", "bubble", "idle")
_SCALARS = (
    "clock_ps", "compute_ps", "recompute_ps", "overhead_ps", "collectives_ps", "bubble_ps", "idle_ps",
    "steps", "step_rows", "unreachable_bytes", "unheld_read_bytes",
)  # fmt: skip


def _shapes(tiers: int, links: int, samples: int) -> dict[str, tuple[int, ...]]:
    one = dict.fromkeys(("samples/clock_ps", "samples/step", "samples/lookups"), (samples,))
    many = dict.fromkeys(("samples/used_bytes", "samples/stall_ps", "samples/hits"), (samples, tiers))
    return {"stall_ps": (tiers, len(KINDS), len(CAUSES)), **memory_shapes(tiers, links), **one, **many}


@dataclass(frozen=True)
class Identity:
    """The parts that the wall time is made of, in whole picoseconds.

    wall = compute + recompute + overhead + collectives + stalls + bubble + idle, exactly.
    """

    wall_ps: int
    compute_ps: int
    recompute_ps: int
    overhead_ps: int
    collectives_ps: int
    stalls_ps: int
    bubble_ps: int
    idle_ps: int

    @property
    def parts_ps(self) -> dict[str, int]:
        """Part to picoseconds, in the order of the identity."""
        return {p: getattr(self, f"{p}_ps") for p in PARTS}

    @property
    def exact(self) -> bool:
        """Whether the parts sum to the wall time, to the picosecond."""
        return sum(self.parts_ps.values()) == self.wall_ps

    @property
    def wall_s(self) -> float:
        """The wall time in seconds."""
        return self.wall_ps / PS

    @property
    def busy_ps(self) -> int:
        """The wall time less idle."""
        return self.wall_ps - self.idle_ps

    def share(self, part: str) -> float | None:
        """Return a part's share of the wall, None where the wall is zero."""
        if part not in PARTS:
            raise UnknownNameError(part, PARTS, "part of the wall time")
        return self.parts_ps[part] / self.wall_ps if self.wall_ps else None

    @property
    def table(self) -> Table:
        """Columns part, ps, seconds, share (of the wall)."""
        parts = self.parts_ps
        return Table(
            "identity",
            {
                "part": list(parts),
                "ps": list(parts.values()),
                "seconds": [v / PS for v in parts.values()],
                "share": [self.share(p) for p in parts],
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the parts in picoseconds and seconds, JSON-ready."""
        parts = {"wall": self.wall_ps, **self.parts_ps}
        return {
            "exact": self.exact,
            "ps": parts,
            "seconds": {k: v / PS for k, v in parts.items()},
            "share": {p: self.share(p) for p in PARTS},
        }


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a replay found.

    Made by :func:`kvsim.replay`, or read back by :meth:`load`. Look at it (it prints as a table), or take its
    tables: `hits`, `misses`, `stalls`, `traffic`, `links`, `occupancy`, `wear` and `identity.table`, each with
    `to_pandas()` and `to_arrow()`.

    Attributes
    ----------
    trace, machine, model, options : the inputs, as plain data; `model` is None for a trace that needed none.
    tier_info, link_info : name, medium, count, capacity and endurance of each tier; name and ends of each link.
    counters : the core's scalars, ints.
    arrays : the core's columns, int64 and read-only.
    kvsim_version, config_hash : what computed it, from what.
    """

    trace: Mapping[str, Any]
    machine: Mapping[str, Any]
    model: Mapping[str, Any] | None
    options: Mapping[str, Any]
    tier_info: tuple[Mapping[str, Any], ...]
    link_info: tuple[Mapping[str, Any], ...]
    counters: Mapping[str, int]
    arrays: Mapping[str, IntArray] = field(repr=False)
    kvsim_version: str
    config_hash: str

    # ---- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_core(
        cls, core: Mapping[str, Any], *, trace: Any, machine: Any, model: Any = None, options: Mapping[str, Any]
    ) -> Result:
        """Wrap what the core hands out.

        Parameters
        ----------
        core : the core's dictionary of integers and int64 arrays.
        trace : a mapping (name, source, requests, unique_blocks, ...), or a trace to take these from.
        machine : the machine replayed on (or a mapping with `name`, `tiers`, `links`).
        model : the model, a mapping, or None.
        options : every other input that had a say.

        Raises
        ------
        KvsimError
            A key is missing or an array has another shape than the machine's tiers ask for.
        """
        tiers = tuple(tier_info(t) for t in members(machine, "tiers"))
        links = tuple(link_info(x) for x in members(machine, "links"))
        inputs = {
            "trace": trace_info(trace),
            "machine": plain_object(machine),
            "model": None if model is None else plain_object(model),
            "options": plain(options),
        }
        flat = {k: v for k, v in core.items() if k != "samples"}
        flat |= {f"samples/{k}": v for k, v in core.get("samples", {}).items()}
        return cls._checked(
            inputs, tiers, links, flat, version=_saved.kvsim_version(), digest=_saved.config_hash(inputs)
        )

    @classmethod
    def _checked(
        cls,
        inputs: Mapping[str, Any],
        tiers: tuple[Mapping[str, Any], ...],
        links: tuple[Mapping[str, Any], ...],
        flat: Mapping[str, Any],
        *,
        version: str,
        digest: str,
    ) -> Result:
        if "samples/clock_ps" not in flat:
            raise KvsimError("result: found no 'samples/clock_ps', expected the core's counters")
        shapes = _shapes(len(tiers), len(links), len(flat["samples/clock_ps"]))
        lost = [k for k in (*_SCALARS, *shapes) if k not in flat]
        if lost:
            raise KvsimError(f"result: found no {lost[0]!r}, expected the core's counters")
        arrays: dict[str, IntArray] = {}
        for key, shape in shapes.items():
            array = np.array(flat[key], dtype=np.int64, order="C")
            if array.size != int(np.prod(shape)):
                raise KvsimError(f"result: found {key!r} of shape {array.shape}, expected {shape}")
            arrays[key] = array.reshape(shape)
            arrays[key].flags.writeable = False
        counters = {k: int(flat[k]) for k in _SCALARS}
        return cls(
            trace=inputs["trace"],
            machine=inputs["machine"],
            model=inputs["model"],
            options=inputs["options"],
            tier_info=tiers,
            link_info=links,
            counters=counters,
            arrays=arrays,
            kvsim_version=version,
            config_hash=digest,
        )

    # ---- what it says ---------------------------------------------------------------------------------------------

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers' names, from compute outwards."""
        return tuple(str(t["name"]) for t in self.tier_info)

    @cached_property
    def identity(self) -> Identity:
        """The parts of the wall time; they sum to it exactly."""
        c = self.counters
        return Identity(
            wall_ps=c["clock_ps"],
            compute_ps=c["compute_ps"],
            recompute_ps=c["recompute_ps"],
            overhead_ps=c["overhead_ps"],
            collectives_ps=c["collectives_ps"],
            stalls_ps=int(self.arrays["stall_ps"].sum()),
            bubble_ps=c["bubble_ps"],
            idle_ps=c["idle_ps"],
        )

    @property
    def wall_s(self) -> float:
        """The wall time in seconds."""
        return self.identity.wall_s

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self.tier_info, self.link_info, self.arrays, self.identity.wall_ps)

    @cached_property
    def hits(self) -> Table:
        """Columns tier, kind, rule, weight, hits, lookups, rate.

        A found block counts once, in the nearest tier that holds it. The rate is over *all* look-ups of the kind in
        that weight (None where there were none), so the rates of the tiers and of :attr:`misses` sum to one.
        """
        return self._memory.hits()

    @cached_property
    def misses(self) -> Table:
        """Columns kind, rule, weight, misses, lookups, rate: what no tier answered. hits + misses = look-ups."""
        return self._memory.misses()

    def hit_rate(
        self, tier: str | None = None, *, kind: str = "kv", rule: str = "prefix", weight: str = "token"
    ) -> float | None:
        """Return a tier's hit rate (of all tiers together for None) over all look-ups; None without look-ups."""
        return self._memory.hit_rate(tier, kind, rule, weight)

    @cached_property
    def stalls(self) -> Table:
        """Columns tier, kind, cause, ps, seconds, share (of the wall): where compute waited, and on what."""
        wall = self.identity.wall_ps
        rows = [
            (tier, kind, cause, ps, ps / PS, ps / wall if wall else None)
            for t, tier in enumerate(self.tiers)
            for k, kind in enumerate(KINDS)
            for c, cause in enumerate(CAUSES)
            for ps in [int(self.arrays["stall_ps"][t, k, c])]
        ]
        return of_rows("stalls", ("tier", "kind", "cause", "ps", "seconds", "share"), rows)

    def stall_s(self, *, tier: str | None = None, kind: str | None = None, cause: str | None = None) -> float:
        """Return the stalled seconds of a tier, a kind and a cause; None stands for all of them."""
        return self._memory.stall_ps(self.arrays["stall_ps"], tier, kind, cause) / PS

    @cached_property
    def traffic(self) -> Table:
        """One row a tier and kind: bytes read and written (by need, and by write-back), blocks moved and evicted."""
        return self._memory.traffic()

    @cached_property
    def links(self) -> Table:
        """One row a link: the tiers it joins, bytes up (towards compute) and down."""
        return self._memory.links()

    @cached_property
    def memory(self) -> Table:
        """One row a tier: medium, capacity and use at the end, resident blocks, bytes evicted."""
        return self._memory.memory()

    @property
    def unreachable_bytes(self) -> int:
        """Bytes of resident blocks whose parent is in no tier: no prefix can reach them."""
        return self.counters["unreachable_bytes"]

    @property
    def unheld_read_bytes(self) -> int:
        """Bytes of running requests' KV that were read after every tier had evicted them (charged to the last tier)."""
        return self.counters["unheld_read_bytes"]

    @cached_property
    def occupancy(self) -> Table:
        """The time series (1024 rows at most): time, step, look-ups, and used bytes, stall and hits of each tier.

        Stall, look-ups and hits (block rule, all kinds) are cumulative.
        """
        a = self.arrays
        columns: dict[str, Any] = {
            "time_s": a["samples/clock_ps"] / PS,
            "step": a["samples/step"],
            "lookups": a["samples/lookups"],
        }
        for t, tier in enumerate(self.tiers):
            columns[f"{tier}_used_bytes"] = a["samples/used_bytes"][:, t]
            columns[f"{tier}_stall_s"] = a["samples/stall_ps"][:, t] / PS
            columns[f"{tier}_hits"] = a["samples/hits"][:, t]
        return Table("occupancy", columns)

    @cached_property
    def wear(self) -> Table:
        """One row an SSD tier: bytes written, drive writes a day, years until the rated writes are used up.

        years = endurance_dwpd x capacity x 365 d x 5 y of warranty / bytes written a year at this replay's pace.
        None where the tier's endurance is not known, or where nothing was written.
        """
        return self._memory.wear()

    # ---- handing over ---------------------------------------------------------------------------------------------

    @property
    def tables(self) -> dict[str, Table]:
        """Every table by its name."""
        return {
            "identity": self.identity.table,
            "hits": self.hits,
            "misses": self.misses,
            "stalls": self.stalls,
            "traffic": self.traffic,
            "links": self.links,
            "memory": self.memory,
            "occupancy": self.occupancy,
            "wear": self.wear,
        }

    def _head(self) -> dict[str, Any]:
        return {
            "kvsim_version": self.kvsim_version,
            "config_hash": self.config_hash,
            "trace": plain(self.trace),
            "machine": plain(self.machine),
            "model": plain(self.model),
            "options": plain(self.options),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready: counts and picoseconds stay ints, rows are dictionaries."""
        lookups = self.arrays["lookups"]
        return {
            **self._head(),
            "tiers": list(self.tiers),
            "steps": self.counters["steps"],
            "step_rows": self.counters["step_rows"],
            "identity": self.identity.to_dict(),
            "lookups": {k: dict(zip(WEIGHTS, lookups[i].tolist(), strict=True)) for i, k in enumerate(KINDS)},
            "hits": self.hits.rows(),
            "misses": self.misses.rows(),
            "stalls": self.stalls.rows(),
            "memory": self.memory.rows(),
            "traffic": self.traffic.rows(),
            "links": self.links.rows(),
            "unreachable_bytes": self.unreachable_bytes,
            "unheld_read_bytes": self.unheld_read_bytes,
            "wear": self.wear.rows(),
            "occupancy": self.occupancy.to_dict(),
        }

    def to_pandas(self) -> dict[str, pd.DataFrame]:
        """Return every table as a pandas DataFrame, by name (pip install 'kvsim[pandas]')."""
        return {name: table.to_pandas() for name, table in self.tables.items()}

    def to_arrow(self) -> dict[str, pa.Table]:
        """Return every table as a PyArrow table, by name (pip install 'kvsim[parquet]')."""
        return {name: table.to_arrow() for name, table in self.tables.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to one .npz or .json file, whole or not at all; :meth:`load` reads back an equal one.

        The .json file also holds what :meth:`to_dict` says, for other programs.
        """
        document = {
            **self._head(),
            "tier_info": [dict(t) for t in self.tier_info],
            "link_info": [dict(x) for x in self.link_info],
            "counters": dict(self.counters),
        }
        if _saved.check_suffix(path) == ".json":
            document = {**self.to_dict(), **document}
        _saved.save(path, "result", document, self.arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read what :meth:`save` wrote.

        Raises
        ------
        KvsimError
            Not such a file, a damaged one, or one of a format version that this kvsim does not know.
        OSError
            The file cannot be read.
        """
        _, document, arrays = _saved.load(path, "result")
        return cls._from_saved(path, document, arrays)

    @classmethod
    def _from_saved(
        cls, path: str | os.PathLike[str], document: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> Result:
        try:
            return cls._checked(
                {k: document[k] for k in ("trace", "machine", "model", "options")},
                tuple(document["tier_info"]),
                tuple(document["link_info"]),
                {**document["counters"], **arrays},
                version=str(document["kvsim_version"]),
                digest=str(document["config_hash"]),
            )
        except (KeyError, TypeError, ValueError, KvsimError) as error:
            raise KvsimError(f"{path}: found a damaged result ({error}), expected a file saved by kvsim") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (
            self._head() == other._head()
            and plain(self.tier_info) == plain(other.tier_info)
            and plain(self.link_info) == plain(other.link_info)
            and dict(self.counters) == dict(other.counters)
            and self.arrays.keys() == other.arrays.keys()
            and all(np.array_equal(v, other.arrays[k]) for k, v in self.arrays.items())
        )

    def __hash__(self) -> int:
        return hash((self.config_hash, self.counters["clock_ps"]))

    # ---- showing --------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        from kvsim.reports import text

        return text.result(self)

    def _repr_html_(self) -> str:
        from kvsim.reports import page

        return page.result(self)


def load(path: str | os.PathLike[str]) -> Any:
    """Read a result, a run, a curve or a comparison saved by kvsim; see :meth:`Result.load` for the errors."""
    from kvsim.compare import Comparison
    from kvsim.run_result import RunResult

    kinds: dict[str, Any] = {"result": Result, "run": RunResult, "curve": CurveResult, "comparison": Comparison}
    kind, document, arrays = _saved.load(path)
    if kind not in kinds:
        raise KvsimError(f"{path}: found a kvsim {kind}, expected one of {', '.join(kinds)}")
    return kinds[kind]._from_saved(path, document, arrays)
