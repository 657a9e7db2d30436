"""What a run found: every request's time by state, and every pool's time by what it went to.

A :class:`RunResult` is made once from the core's integers and never changes. Its tables are views of those integers,
made when they are asked for; a value that does not exist is None (NaN in a column of numbers), never 0.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim import _run_tables as run_tables
from kvsim import _saved
from kvsim._memory_tables import (
    PS,
    IntArray,
    Memory,
    index,
    link_info,
    members,
    of_rows,
    plain_object,
    take,
    tier_info,
    trace_info,
)
from kvsim._memory_tables import shapes as memory_shapes
from kvsim._run_tables import exact_sum
from kvsim._table import Table, plain
from kvsim.errors import KvsimError
from kvsim_core import CAUSES, KINDS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from kvsim.population import Population

__all__ = ["PARTS", "STATUSES", "RunResult"]

PARTS = (
    "compute", "recompute", "overhead", "collectives", "stalls", "bubble", "idle_no_request", "idle_tool", "idle_think",
)  # fmt: skip
"""What a unit's time goes to, in the order of the core's columns; they sum to the makespan."""
STATUSES = ("done", "rejected", "unreached")
"""What became of a request: rejected is alone larger than the machine, unreached waited for a rejected one."""
_SCALARS = (
    "makespan_ps", "bin_ps", "rejected", "pins_broken", "swapped_bytes", "peak_blocks", "events", "unreachable_bytes",
)  # fmt: skip
_FLAGS = ("log_cut",)
"""Scalars that are 0 where the core does not say them."""
_REQUEST = (
    "status", "ready_ps", "admitted_ps", "first_token_ps", "done_ps", "queued_ps", "transfer_ps", "prefill_ps",
    "recompute_ps", "decode_ps", "preempted_ps", "think_ps", "tool_ps", "tool_wait_ps", "unit", "decode_unit",
    "hit_tokens", "computed_tokens", "recomputed_tokens", "preemptions", "output_tokens",
)  # fmt: skip
_OF_TRACE = {"input_tokens": "i8", "asked_tokens": "i8", "session": "i4", "category": "i2", "population": "i1"}
_LOG = {
    "step": ("start_ps", "end_ps", "unit", "count", "decode", "prefill"),
    "phase": ("request", "state", "start_ps", "end_ps"),
    "move": ("start_ps", "end_ps", "channel", "way", "bytes", "request", "replica"),
}
_HEAD = ("trace", "machine", "model", "options", "populations")
_INFO = ("tier_info", "link_info", "pools_info", "session_names", "category_names")


def _shapes(
    n: int, tiers: int, links: int, pools: int, units: int, bins: int, logs: Mapping[str, int]
) -> dict[str, Any]:
    return {
        **dict.fromkeys((*_REQUEST, *_OF_TRACE), (n,)),
        **dict.fromkeys(("loading_ps", "loaded_tokens"), (n, tiers)),
        **dict.fromkeys(("unit_pool", "unit_replica", "steps"), (units,)),
        "parts_ps": (units, len(PARTS)),
        "stall_ps": (pools, tiers, len(KINDS), len(CAUSES)),
        "bins/parts_ps": (bins, pools, len(PARTS)),
        "bins/stall_ps": (bins, pools, tiers),
        "bins/used_bytes": (bins, tiers),
        **{f"bins/{k}": (bins,) for k in ("running", "waiting", "loading", "prompt_tokens", "output_tokens")},
        **memory_shapes(tiers, links),
        "private_bytes": (tiers,),
        "tier_busy_ps": (tiers, 2),
        "link_busy_ps": (links, 2),
        **{f"log/{kind}_{column}": (logs[kind],) for kind, columns in _LOG.items() for column in columns},
    }


@dataclass(frozen=True, eq=False, repr=False)
class RunResult:
    """What a run found.

    Made by :func:`kvsim.run`, or read back by :meth:`load`. Look at it (it prints as a report), or take its tables,
    each with `to_pandas()` and `to_arrow()`: the machine's view is `identity`, `pools`, `stalls` and `timeline`, the
    request's is `requests`, `states`, `latency`, `goodput` and `tasks`; `hits`, `misses`, `traffic`, `links`,
    `memory` and `wear` say what the memories did, `cost` and `memory_cost` what it costs.

    Attributes
    ----------
    trace, machine, model, options : the inputs, as plain data; `model` is None for a trace that needed none.
    populations : the groups of requests with their goals, as plain data.
    tier_info, link_info, pools_info : what is known of each tier, link and pool.
    session_names, category_names : what the numbers in these columns mean.
    counters : the core's scalars, ints.
    arrays : the core's columns and the trace's (input_tokens, asked_tokens, session, category, population),
        read-only.
    kvsim_version, config_hash : what computed it, from what.
    """

    trace: Mapping[str, Any]
    machine: Mapping[str, Any]
    model: Mapping[str, Any] | None
    options: Mapping[str, Any]
    populations: tuple[Mapping[str, Any], ...]
    tier_info: tuple[Mapping[str, Any], ...]
    link_info: tuple[Mapping[str, Any], ...]
    pools_info: tuple[Mapping[str, Any], ...]
    session_names: Sequence[str] = field(repr=False)
    category_names: Sequence[str] = field(repr=False)
    counters: Mapping[str, int]
    arrays: Mapping[str, IntArray] = field(repr=False)
    kvsim_version: str
    config_hash: str

    # ---- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_core(
        cls,
        core: Mapping[str, Any],
        *,
        trace: Any,
        machine: Any,
        model: Any = None,
        options: Mapping[str, Any],
        populations: Sequence[Population] = (),
    ) -> RunResult:
        """Wrap what the core hands out.

        Parameters
        ----------
        core : the core's dictionary of integers and int64 arrays; they are kept, not copied.
        trace : the RequestTrace that ran.
        machine : the machine it ran on.
        model : the model, or None.
        options : every other input that had a say.
        populations : one for each of the trace's `population_names`, in their order, with its goals; none stands
            for those names without goals.

        Raises
        ------
        KvsimError
            A key is missing, an array has another shape than trace and machine ask for, or `populations` are not
            the trace's.
        """
        names = tuple(trace.population_names)
        groups = tuple(dict(plain(dataclasses.asdict(p))) for p in populations) or tuple({"name": n} for n in names)
        if tuple(g["name"] for g in groups) != names:
            raise KvsimError(f"run: found populations {[g['name'] for g in groups]}, expected {list(names)}")
        inputs = {
            "trace": trace_info(trace),
            "machine": plain_object(machine),
            "model": None if model is None else plain_object(model),
            "options": plain(options),
            "populations": groups,
        }
        flat: dict[str, Any] = {}
        for key, value in core.items():
            flat |= {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
        flat |= {
            "input_tokens": trace.input_tokens,
            "asked_tokens": trace.output_tokens,
            "session": trace.session,
            "category": trace.category,
            "population": trace.population,
        }
        info = {
            "tier_info": tuple(
                {**tier_info(t), "price_usd": plain(take(t, "total_price_usd", None))}
                for t in members(machine, "tiers")
            ),
            "link_info": tuple(link_info(x) for x in members(machine, "links")),
            "pools_info": tuple(_pool_info(p) for p in members(machine, "pools")),
            "session_names": trace.session_names,
            "category_names": trace.category_names,
        }
        return cls._checked(inputs, info, flat, version=_saved.kvsim_version(), digest=_saved.config_hash(inputs))

    @classmethod
    def _checked(
        cls, inputs: Mapping[str, Any], info: Mapping[str, Any], flat: Mapping[str, Any], *, version: str, digest: str
    ) -> RunResult:
        sizes = ("status", "unit_pool", "bins/running", *(f"log/{kind}_start_ps" for kind in _LOG))
        lost = [k for k in (*_SCALARS, *sizes) if k not in flat]
        if lost:
            raise KvsimError(f"run: found no {lost[0]!r}, expected the core's answer")
        n, units, bins, *logs = (len(flat[k]) for k in sizes)
        tiers, links, pools = (len(info[f"{k}_info"]) for k in ("tier", "link", "pools"))
        arrays: dict[str, IntArray] = {}
        for key, shape in _shapes(n, tiers, links, pools, units, bins, dict(zip(_LOG, logs, strict=True))).items():
            if key not in flat:
                raise KvsimError(f"run: found no {key!r}, expected the core's answer")
            array = np.asarray(flat[key])
            if array.size != int(np.prod(shape)) or (array.size and array.dtype.kind not in "iub"):
                raise KvsimError(f"run: found {key!r} of shape {array.shape}, {array.dtype}, expected ints {shape}")
            array = np.ascontiguousarray(array, dtype=_OF_TRACE.get(key, "i8")).reshape(shape).view()
            array.flags.writeable = False
            arrays[key] = array
        return cls(
            **{k: inputs[k] for k in _HEAD},
            **{k: info[k] for k in _INFO},
            counters={k: int(flat[k]) for k in _SCALARS} | {k: int(flat.get(k, 0)) for k in _FLAGS},
            arrays=arrays,
            kvsim_version=version,
            config_hash=digest,
        )

    # ---- the machine's view ---------------------------------------------------------------------------------------

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers' names, in the machine's order."""
        return tuple(str(t["name"]) for t in self.tier_info)

    @property
    def pool_names(self) -> tuple[str, ...]:
        """The pools' names, in the machine's order."""
        return tuple(str(p["name"]) for p in self.pools_info)

    @property
    def makespan_ps(self) -> int:
        """The time from the start to the last completion."""
        return self.counters["makespan_ps"]

    @property
    def makespan_s(self) -> float:
        """The makespan in seconds."""
        return self.makespan_ps / PS

    @property
    def units(self) -> int:
        """How many units (one replica of one pool) worked."""
        return len(self.arrays["unit_pool"])

    @cached_property
    def replicas(self) -> tuple[int, ...]:
        """The units of each pool."""
        return tuple(np.bincount(self.arrays["unit_pool"], minlength=len(self.pools_info)).tolist())

    @cached_property
    def pool_parts_ps(self) -> tuple[dict[str, int], ...]:
        """For each pool, part to picoseconds, summed over its units; they sum to makespan x units."""
        parts, pool = self.arrays["parts_ps"], self.arrays["unit_pool"]
        return tuple(
            {part: exact_sum(parts[pool == p, i]) for i, part in enumerate(PARTS)} for p in range(len(self.pools_info))
        )

    @cached_property
    def parts_ps(self) -> dict[str, int]:
        """Part to picoseconds, summed over all units; they sum to :attr:`wall_ps`."""
        return {part: sum(p[part] for p in self.pool_parts_ps) for part in PARTS}

    @property
    def wall_ps(self) -> int:
        """The makespan times the units: what the parts of :attr:`identity` sum to."""
        return self.makespan_ps * self.units

    @cached_property
    def identity(self) -> Table:
        """Columns part, ps, seconds, share: what the units' time went to, summed over all of them."""
        wall = self.wall_ps
        rows = [(p, v, v / PS, v / wall if wall else None) for p, v in self.parts_ps.items()]
        return of_rows("identity", ("part", "ps", "seconds", "share"), rows)

    @cached_property
    def pools(self) -> Table:
        """Columns pool, replicas, part, ps, seconds, share (of the pool's makespan x replicas)."""
        rows = []
        for pool, replicas, parts in zip(self.pool_names, self.replicas, self.pool_parts_ps, strict=True):
            wall = self.makespan_ps * replicas
            rows += [(pool, replicas, part, v, v / PS, v / wall if wall else None) for part, v in parts.items()]
        return of_rows("pools", ("pool", "replicas", "part", "ps", "seconds", "share"), rows)

    @cached_property
    def stalls(self) -> Table:
        """Columns pool, tier, kind, cause, ps, seconds, share (of the pool's wall): what compute waited for."""
        rows = [
            (pool, tier, kind, cause, ps, ps / PS, ps / wall if wall else None)
            for p, pool in enumerate(self.pool_names)
            for wall in [self.makespan_ps * self.replicas[p]]
            for t, tier in enumerate(self.tiers)
            for k, kind in enumerate(KINDS)
            for c, cause in enumerate(CAUSES)
            for ps in [int(self.arrays["stall_ps"][p, t, k, c])]
        ]
        return of_rows("stalls", ("pool", "tier", "kind", "cause", "ps", "seconds", "share"), rows)

    def stall_s(
        self, *, pool: str | None = None, tier: str | None = None, kind: str | None = None, cause: str | None = None
    ) -> float:
        """Return the stalled seconds of a pool, a tier, a kind and a cause; None stands for all of them."""
        stalls = self.arrays["stall_ps"]
        chosen = stalls if pool is None else stalls[index(self.pool_names, pool, "pool")]
        return self._memory.stall_ps(chosen, tier, kind, cause) / PS

    @cached_property
    def timeline(self) -> Table:
        """One row a time bin: when it starts and how long it is, what each pool did in it, and what was there.

        Columns start_s, seconds, then <pool>_<part>_s (over the pool's units), <pool>_stall_<tier>_s,
        <tier>_used_bytes, running, waiting, loading (at the bin's end), prompt_tokens (computed), output_tokens.
        """
        a, width = self.arrays, self.counters["bin_ps"]
        start = np.arange(len(a["bins/running"]), dtype=np.int64) * width
        columns: dict[str, Any] = {"start_s": start / PS, "seconds": np.minimum(width, self.makespan_ps - start) / PS}
        for p, pool in enumerate(self.pool_names):
            columns |= {f"{pool}_{part}_s": a["bins/parts_ps"][:, p, i] / PS for i, part in enumerate(PARTS)}
            columns |= {f"{pool}_stall_{t}_s": a["bins/stall_ps"][:, p, i] / PS for i, t in enumerate(self.tiers)}
        columns |= {f"{tier}_used_bytes": a["bins/used_bytes"][:, t] for t, tier in enumerate(self.tiers)}
        columns |= {k: a[f"bins/{k}"] for k in ("running", "waiting", "loading", "prompt_tokens", "output_tokens")}
        return Table("timeline", columns)

    # ---- the request's view ---------------------------------------------------------------------------------------

    @property
    def population_names(self) -> tuple[str, ...]:
        """The populations' names."""
        return tuple(str(p["name"]) for p in self.populations)

    @cached_property
    def done(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each request completed, bool[n]."""
        return np.equal(self.arrays["status"], 0)

    @cached_property
    def e2e_s(self) -> np.ndarray[Any, Any]:
        """Done - ready of each request, f8[n]; NaN where it never completed."""
        return run_tables.span_s(self, "ready_ps", "done_ps")

    @cached_property
    def ttft_s(self) -> np.ndarray[Any, Any]:
        """First token - ready of each request, f8[n]; NaN where there was none."""
        return run_tables.span_s(self, "ready_ps", "first_token_ps")

    @cached_property
    def tpot_s(self) -> np.ndarray[Any, Any]:
        """(Done - first token) / (output tokens - 1), f8[n]; NaN for answers of less than two tokens."""
        return run_tables.tpot_s(self)

    @cached_property
    def requests(self) -> Table:
        """One row a request: who it is, when it was where, for how long, and its tokens; NaN where never."""
        return run_tables.requests(self)

    @cached_property
    def states(self) -> Table:
        """Columns population, state, tier, requests, ps, seconds, mean_s, share (of all E2E time).

        Of the requests that completed; "all" first, then each population where there are several. The states sum to
        E2E exactly. The pauses before requests (think, tool, tool_wait) follow; they are the task's and have no share.
        """
        return run_tables.states(self)

    @cached_property
    def latency(self) -> Table:
        """Columns population, metric (ttft, tpot, e2e, queued), requests, mean_s, p50_s, p90_s, p95_s, p99_s, max_s.

        Percentiles are NumPy's linear ones, over completed requests; None where there are none.
        """
        return run_tables.latency(self)

    @cached_property
    def goodput(self) -> Table:
        """One row a population: how many of its requests met its goals, and what that makes a second.

        `within` counts completed requests that meet every goal of latency (all completed ones where there is no such
        goal), `share` is of all requests. Cost a task (rent where that is known, else owned; shared out as in
        :attr:`tasks`) and makespan stand beside their goals; None where not known.
        """
        return run_tables.goodput(self)

    @cached_property
    def tasks(self) -> Table:
        """One row a session: start and end, requests, tokens, waits for tools and people, cost (rented and owned).

        The machine's cost is shared out by the seconds that a session's requests were in service (E2E less queued
        and preempted), so tasks' costs sum to the machine's.
        """
        return run_tables.tasks(self)

    # ---- rates and cost -------------------------------------------------------------------------------------------

    @cached_property
    def prompt_tokens(self) -> int:
        """Prompt tokens of completed requests, computed or found."""
        return int(self.arrays["input_tokens"][self.done].sum())

    @cached_property
    def output_tokens(self) -> int:
        """Tokens emitted."""
        return int(self.arrays["output_tokens"].sum())

    @property
    def tokens_per_s(self) -> float | None:
        """Prompt and output tokens a second of makespan."""
        return (self.prompt_tokens + self.output_tokens) / self.makespan_s if self.makespan_ps else None

    @property
    def output_tokens_per_s(self) -> float | None:
        """Output tokens a second of makespan."""
        return self.output_tokens / self.makespan_s if self.makespan_ps else None

    @property
    def tokens_per_s_per_user(self) -> float | None:
        """How fast one answer streams: 1 / mean TPOT."""
        known = self.tpot_s[~np.isnan(self.tpot_s)]
        mean = float(known.mean()) if known.size else 0.0
        return 1 / mean if mean else None

    @cached_property
    def cost(self) -> Table:
        """Two rows, rent and owned: USD/h, USD in all, per million output and all tokens, per task; joules beside.

        rent = the machine's price an hour; owned = capex / 5 years + power x electricity. joules = power x makespan.
        A task is a session all of whose requests completed. None where a price is not known.
        """
        return run_tables.cost(self)

    @cached_property
    def memory_cost(self) -> Table:
        """Columns tier, price_usd, share_of_capex, usd_per_h (over 5 years), share_of_owned; None where not known."""
        return run_tables.memory_cost(self)

    # ---- memory ---------------------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self.tier_info, self.link_info, self.arrays, self.makespan_ps)

    @cached_property
    def hits(self) -> Table:
        """Columns tier, kind, rule, weight, hits, lookups, rate; as :attr:`kvsim.Result.hits`."""
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
    def traffic(self) -> Table:
        """One row a tier and kind: bytes read and written (by need, and by write-back), blocks moved and evicted."""
        return self._memory.traffic()

    @cached_property
    def links(self) -> Table:
        """One row a link: what it joins, bytes and busy seconds up (towards compute) and down, over replicas."""
        busy = self.arrays["link_busy_ps"] / PS
        more = {"up_busy_s": busy[:, 0], "down_busy_s": busy[:, 1]}
        return Table("links", {**self._memory.links().columns, **more})

    @cached_property
    def memory(self) -> Table:
        """One row a tier, over replicas: capacity and use at the end, private KV, evictions, busy seconds."""
        busy = self.arrays["tier_busy_ps"] / PS
        more = {
            "private_bytes": self.arrays["private_bytes"], "read_busy_s": busy[:, 0], "write_busy_s": busy[:, 1]
        }  # fmt: skip
        return Table("memory", {**self._memory.memory().columns, **more})

    @cached_property
    def wear(self) -> Table:
        """One row an SSD tier; as :attr:`kvsim.Result.wear`."""
        return self._memory.wear()

    @property
    def preemptions(self) -> int:
        """How often a running request was put aside."""
        return int(self.arrays["preemptions"].sum())

    @property
    def unreachable_bytes(self) -> int:
        """Bytes of resident blocks whose parent is in no tier: no prefix can reach them."""
        return self.counters["unreachable_bytes"]

    @property
    def log_cut(self) -> bool:
        """Whether more happened than a log (arrays `log/...`) holds: what came after it was full is not in it."""
        return bool(self.counters["log_cut"])

    # ---- checking -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Derive every identity again.

        Raises
        ------
        RuntimeError
            Something does not balance; the message says what.
        """
        wrong = run_tables.unbalanced(self)
        if wrong:
            raise RuntimeError(f"run: {'; '.join(wrong)}")

    # ---- handing over ---------------------------------------------------------------------------------------------

    @property
    def tables(self) -> dict[str, Table]:
        """Every table by its name."""
        return {name: getattr(self, name) for name in _TABLES}

    def _head(self) -> dict[str, Any]:
        return {
            "kvsim_version": self.kvsim_version,
            "config_hash": self.config_hash,
            **{key: plain(getattr(self, key)) for key in _HEAD},
        }

    def to_dict(self, *, requests: bool = False) -> dict[str, Any]:
        """Return the result, JSON-ready: counts and picoseconds stay ints, rows are dictionaries.

        Parameters
        ----------
        requests : also the rows of `requests` and `tasks`, as columns, which a long trace has many of.
        """
        brief = [t for t in _TABLES if t not in ("requests", "tasks", "timeline")]
        status = np.bincount(self.arrays["status"], minlength=len(STATUSES)).tolist()
        return {
            **self._head(),
            "tiers": list(self.tiers),
            "pool_names": list(self.pool_names),
            "replicas": list(self.replicas),
            "requests_by_status": dict(zip(STATUSES, status, strict=True)),
            "makespan_s": self.makespan_s,
            "wall_ps": self.wall_ps,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "tokens_per_s": self.tokens_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "tokens_per_s_per_user": self.tokens_per_s_per_user,
            "preemptions": self.preemptions,
            **self.counters,
            **{name: getattr(self, name).rows() for name in brief},
            "timeline": self.timeline.to_dict(),
            **({name: getattr(self, name).to_dict() for name in ("requests", "tasks")} if requests else {}),
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
        document = {**self._head(), **{k: getattr(self, k) for k in _INFO}, "counters": dict(self.counters)}
        if _saved.check_suffix(path) == ".json":
            document = {**self.to_dict(), **document}
        _saved.save(path, "run", document, self.arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunResult:
        """Read what :meth:`save` wrote.

        Raises
        ------
        KvsimError
            Not such a file, a damaged one, or one of a format version that this kvsim does not know.
        OSError
            The file cannot be read.
        """
        _, document, arrays = _saved.load(path, "run")
        return cls._from_saved(path, document, arrays)

    @classmethod
    def _from_saved(
        cls, path: str | os.PathLike[str], document: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> RunResult:
        try:
            return cls._checked(
                {k: tuple(document[k]) if k == "populations" else document[k] for k in _HEAD},
                {k: tuple(document[k]) for k in _INFO},
                {**document["counters"], **arrays},
                version=str(document["kvsim_version"]),
                digest=str(document["config_hash"]),
            )
        except (KeyError, TypeError, ValueError, KvsimError) as error:
            raise KvsimError(f"{path}: found a damaged run ({error}), expected a file saved by kvsim") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RunResult):
            return NotImplemented
        return (
            self._head() == other._head()
            and all(plain(getattr(self, k)) == plain(getattr(other, k)) for k in _INFO)
            and dict(self.counters) == dict(other.counters)
            and all(np.array_equal(v, other.arrays[k]) for k, v in self.arrays.items())
        )

    def __hash__(self) -> int:
        return hash((self.config_hash, self.makespan_ps))

    # ---- showing --------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        from kvsim.reports import run_text

        return run_text.result(self)

    def _repr_html_(self) -> str:
        from kvsim.reports import run_page

        return run_page.short(self)


_TABLES = (
    "identity", "pools", "stalls", "states", "latency", "goodput", "cost", "memory_cost", "hits", "misses", "traffic",
    "links", "memory", "wear", "timeline", "tasks", "requests",
)  # fmt: skip


def _pool_info(pool: Any) -> dict[str, Any]:
    return {
        "name": str(take(pool, "name")),
        "devices": int(take(pool, "devices", 1)),
        "roles": [str(r) for r in take(pool, "roles", ())],
    }
