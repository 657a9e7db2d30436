"""Compare: workloads on machines, one table of where the time goes and what is found where.

Each workload is generated once and expanded to steps once; the same steps are then replayed on every machine, in
parallel threads (the core holds no GIL).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvsim import _saved
from kvsim._table import Table, plain
from kvsim.errors import ConfigError, KvsimError, MachineError
from kvsim.replay import LANES, replay
from kvsim.result import Result

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.trace import AccessTrace, RequestTrace

__all__ = ["MACHINES", "MODEL", "WORKLOADS", "Comparison", "Row", "compare"]

WORKLOADS = ("chat", "coding-agent", "overnight-batch")
MACHINES: tuple[str, ...] = ("h100x8", "a100x8", "cs3", "groq-lpu-rack", "sn40l", "epyc9965-2s")
"""The presets that span the ladder from SRAM to SSD."""
MODEL = "llama-3.1-70b"
WEIGHTS_DTYPE = "fp8"
"""The weights' precision where none is asked for: what these machines serve a 70 B model in."""
AT_ONCE = {"chat": 32, "coding-agent": 8, "overnight-batch": 16}
"""Requests that run at once: about as many contexts of the workload as 8 x H100 hold in HBM beside the weights.
More would have every machine read running contexts from far tiers, token by token, which no engine does."""

Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Row:
    """One workload on one machine.

    Attributes
    ----------
    error : why there is no result (the machine cannot hold the weights), else "".
    estimates, numbers : how many of the machine's numbers are estimates or from memory, of how many.
    tiers : the tiers' names, from compute outwards.
    wall_s, idle_s : the replay's clock, and its time without any request.
    share : part -> share of the busy time (wall less idle): compute, recompute, overhead, collectives, bubble, stalls.
    stall_by_tier, stall_by_kind : share of the busy time.
    found : by tier, share of the prompt tokens whose KV lay there (prefix rule); `nowhere` is the rest.
        None where no prompt was looked up.
    unheld : share of the KV bytes read for running requests that no tier had room to hold: the machine's lanes are
        too many, and the row is better than the machine.
    """

    workload: str
    machine: str
    error: str = ""
    estimates: int = 0
    numbers: int = 0
    tiers: tuple[str, ...] = ()
    wall_s: float | None = None
    idle_s: float | None = None
    share: Mapping[str, float | None] = field(default_factory=dict)
    stall_by_tier: tuple[float | None, ...] = ()
    stall_by_kind: Mapping[str, float | None] = field(default_factory=dict)
    found: tuple[float | None, ...] = ()
    nowhere: float | None = None
    unheld: float | None = None

    @property
    def busy_s(self) -> float | None:
        """Seconds in which the machine had work, None without a result."""
        return None if self.wall_s is None or self.idle_s is None else self.wall_s - self.idle_s


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What :func:`compare` found: rows, workload by workload, machine by machine.

    Attributes
    ----------
    rows : one a workload and machine, in the order asked for.
    workloads : for each workload what it is made of (requests, sessions, tokens) and how many run at once (lanes).
    options : model, weights_dtype, weight_bytes, kv_bytes_per_token, seed, scale, policy.
    results : (workload, machine) -> Result, where one was made here; not saved.
    """

    rows: tuple[Row, ...]
    workloads: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    kvsim_version: str = field(default_factory=_saved.kvsim_version)
    results: Mapping[tuple[str, str], Result] = field(default_factory=dict)

    @property
    def config_hash(self) -> str:
        """16 hex digits that change when an input does."""
        named = [(r.workload, r.machine) for r in self.rows]
        return _saved.config_hash({"rows": named, "workloads": self.workloads, "options": self.options})

    @property
    def table(self) -> Table:
        """One row a workload and machine; shares are of the busy time, None where there is no result."""
        deep = max((len(r.tiers) for r in self.rows), default=0)
        columns: dict[str, list[Any]] = {}

        def put(name: str, values: Iterator[Any]) -> None:
            columns[name] = list(values)

        for name in ("workload", "machine", "wall_s", "idle_s", "busy_s"):
            put(name, (getattr(r, name) for r in self.rows))
        for part in ("compute", "recompute", "overhead", "collectives", "bubble", "stalls"):
            put(part, (r.share.get(part) for r in self.rows))
        for kind in ("kv", "weights", "state", "data"):
            put(f"stalls_{kind}", (r.stall_by_kind.get(kind) for r in self.rows))
        for t in range(deep):
            put(f"tier_{t}", (r.tiers[t] if t < len(r.tiers) else None for r in self.rows))
            put(f"tier_{t}_stalls", (_at(r.stall_by_tier, t) for r in self.rows))
            put(f"tier_{t}_found", (_at(r.found, t) for r in self.rows))
        put("found_nowhere", (r.nowhere for r in self.rows))
        put("unheld", (r.unheld for r in self.rows))
        put("error", (r.error or None for r in self.rows))
        return Table("comparison", columns)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        rows = []
        for r in self.rows:
            row: dict[str, Any] = {"workload": r.workload, "machine": r.machine, "error": r.error or None}
            row |= {"estimates": r.estimates, "numbers": r.numbers, "wall_s": r.wall_s, "idle_s": r.idle_s}
            row |= {"busy_s": r.busy_s, "share_of_busy": dict(r.share), "stall_by_kind": dict(r.stall_by_kind)}
            row["tiers"] = [
                {"name": name, "stalls": _at(r.stall_by_tier, t), "found": _at(r.found, t)}
                for t, name in enumerate(r.tiers)
            ]
            row["found_nowhere"] = r.nowhere
            row["unheld"] = r.unheld
            rows.append(plain(row))
        return {
            "kvsim_version": self.kvsim_version,
            "config_hash": self.config_hash,
            **plain(self.options),
            "workloads": plain(self.workloads),
            "rows": rows,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return :attr:`table` as a pandas DataFrame (pip install 'kvsim[pandas]')."""
        return self.table.to_pandas()

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table` as a PyArrow table (pip install 'kvsim[parquet]')."""
        return self.table.to_arrow()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table (not the single results) to one .npz or .json file, whole or not at all."""
        _saved.save(path, "comparison", {**self.to_dict(), "options": plain(self.options)}, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`save` wrote; KvsimError for anything else, OSError where the file cannot be read."""
        _, document, arrays = _saved.load(path, "comparison")
        return cls._from_saved(path, document, arrays)

    @classmethod
    def _from_saved(
        cls, path: str | os.PathLike[str], document: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> Comparison:
        try:
            rows = tuple(_row_from(row) for row in document["rows"])
            return cls(rows, document["workloads"], document["options"], document["kvsim_version"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KvsimError(f"{path}: found a damaged comparison ({error}), expected a file saved by kvsim") from None

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Comparison) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.config_hash, self.kvsim_version))

    def __repr__(self) -> str:
        from kvsim.reports import comparison

        return comparison.text(self)

    def _repr_html_(self) -> str:
        from kvsim.reports import comparison

        return comparison.page(self)


def compare(
    workloads: Sequence[str] = WORKLOADS,
    machines: Sequence[Machine | str] = MACHINES,
    model: Model | str = MODEL,
    *,
    weights_dtype: str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    lanes: int | None = None,
    policy: Any = None,
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Replay workloads on machines and say where each machine's time goes.

    Parameters
    ----------
    workloads, machines : names, or paths to TOML files; machines also as objects. Of a machine of several pools the one
        with the role attention is replayed on.
    model : a name, a path or an object.
    weights_dtype : precision of the weights; by default fp8 where `model` is a name, else the model's own.
    seed : of the workloads.
    scale : how many times the sessions that the workloads have by default.
    lanes : requests that run at once; by default each workload's own number (`AT_ONCE`).
    policy : as :func:`kvsim.replay` takes it.
    threads : how many replays at once; by default one a core.
    executor : runs the replays instead of threads of its own.
    progress : called with (replays done, all replays, what is being done).

    Returns
    -------
    Comparison
        A machine that cannot hold the weights says so in its row.

    Raises
    ------
    KvsimError
        A name is unknown or an input makes no sense.
    """
    from kvsim.machine import Machine
    from kvsim.model import Model

    if not workloads or not machines:
        raise ConfigError("compare: found nothing to compare, expected a workload and a machine at least")
    if isinstance(scale, bool) or not 0 < scale <= 1e6:
        raise ConfigError(f"scale: found {scale!r}, expected a number above 0, at most 1e6")
    loaded = [Machine.load(m).narrowed() for m in machines]
    served = Model.load(model)
    if weights_dtype is not None or not isinstance(model, Model):
        served = served.with_(weights_dtype=weights_dtype or WEIGHTS_DTYPE)
    total = len(workloads) * len(loaded)
    done = 0

    def tell(what: str, more: int = 0) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total, what)

    tell("generating")
    at_once = {name: lanes or AT_ONCE.get(name, LANES) for name in workloads}
    traces = [_generate(name, seed, scale) for name in workloads]
    stop = threading.Event()
    own = None if executor is not None else ThreadPoolExecutor(threads or os.cpu_count() or 1)
    pool = executor if executor is not None else own
    assert pool is not None
    rows: list[Row] = []
    results: dict[tuple[str, str], Result] = {}
    try:
        for name, trace in zip(workloads, traces, strict=True):
            tell(f"{name}: steps")
            steps = _Kept.of(trace, served, at_once[name], stop if own is not None else None)
            jobs: list[Future[Result | str]] = [
                pool.submit(_replay_one, steps, machine, served, policy, seed) for machine in loaded
            ]
            for machine, job in zip(loaded, jobs, strict=True):
                tell(f"{name} on {machine.name}")
                found = job.result()
                rows.append(_row(name, machine, found))
                if isinstance(found, Result):
                    results[name, machine.name] = found
                tell(f"{name} on {machine.name}", 1)
    finally:
        stop.set()
        if own is not None:
            own.shutdown(wait=True, cancel_futures=True)
    return Comparison(
        tuple(rows),
        {name: _describe(trace) | {"lanes": at_once[name]} for name, trace in zip(workloads, traces, strict=True)},
        {
            "model": served.name,
            "weights_dtype": str(served.dtype),
            "weight_bytes": int(served.weight_bytes),
            "kv_bytes_per_token": int(served.kv_bytes_per_token),
            "seed": seed,
            "scale": scale,
            "policy": plain(policy),
        },
        results=results,
    )


@dataclass(frozen=True)
class _Kept:
    """An access stream whose chunks are kept, to be replayed several times."""

    name: str
    n: int
    unique_blocks: int
    blocks: Any
    meta: Any
    total_steps: int
    kept: tuple[AccessTrace, ...]
    stop: threading.Event | None

    @classmethod
    def of(cls, trace: RequestTrace, model: Model, lanes: int, stop: threading.Event | None) -> _Kept:
        stream = trace.accesses(model, lanes=lanes)
        kept = tuple(stream.chunks())
        steps = sum(len(chunk.arrival_ps) for chunk in kept)
        return cls(trace.name, trace.n, trace.unique_blocks, stream.blocks, stream.meta, steps, kept, stop)

    def chunks(self) -> Iterator[AccessTrace]:
        for chunk in self.kept:
            if self.stop is not None and self.stop.is_set():
                raise KvsimError("compare: interrupted")
            yield chunk


def _replay_one(steps: Any, machine: Machine, model: Model, policy: Any, seed: int) -> Result | str:
    try:
        machine.weights_home(model.weight_bytes)
    except MachineError as error:
        return str(error)
    return replay(steps, machine=machine, model=model, policy=policy, seed=seed)


def _generate(workload: str, seed: int, scale: float) -> RequestTrace:
    from kvsim.workloads import generate, parameters

    base = int(getattr(parameters(workload), "sessions", 0))
    return generate(workload, seed=seed, **({"sessions": max(1, round(base * scale))} if base else {}))


def _describe(trace: RequestTrace) -> dict[str, Any]:
    import numpy as np

    prompt = int(trace.input_tokens.sum())
    shared = np.minimum(np.asarray(trace.prefix_blocks, np.int64) * trace.block_tokens, trace.input_tokens)
    return {
        "requests": int(trace.n),
        "sessions": len(np.unique(trace.session)) if trace.n else 0,
        "input_tokens": prompt,
        "output_tokens": int(trace.output_tokens.sum()),
        "seen_before": int(shared.sum()) / prompt if prompt else None,
    }


def _row(workload: str, machine: Machine, found: Result | str) -> Row:
    doubtful, numbers = len(machine.doubtful()), sum(1 for _ in machine.numbers())
    if isinstance(found, str):
        return Row(workload, machine.name, found, doubtful, numbers)
    identity = found.identity
    busy = identity.busy_ps

    def share(ps: int) -> float | None:
        return ps / busy if busy else None

    stall = found.arrays["stall_ps"]
    parts = {part: share(ps) for part, ps in identity.parts_ps.items() if part != "idle"}
    kinds = ("kv", "weights", "state", "data")
    hit = found.hit_rate(rule="prefix", weight="token")
    return Row(
        workload,
        machine.name,
        "",
        doubtful,
        numbers,
        found.tiers,
        identity.wall_s,
        identity.idle_ps / 10**12,
        parts,
        tuple(share(int(ps)) for ps in stall.sum(axis=(1, 2))),
        {kind: share(int(ps)) for kind, ps in zip(kinds, stall.sum(axis=(0, 2)), strict=True)},
        tuple(found.hit_rate(t, rule="prefix", weight="token") for t in found.tiers),
        None if hit is None else 1.0 - hit,
        found.unheld_read_bytes / kv_read if (kv_read := int(found.arrays["read_bytes"][:, 0].sum())) else None,
    )


def _row_from(row: Mapping[str, Any]) -> Row:
    return Row(
        row["workload"],
        row["machine"],
        row["error"] or "",
        row["estimates"],
        row["numbers"],
        tuple(t["name"] for t in row["tiers"]),
        row["wall_s"],
        row["idle_s"],
        row["share_of_busy"],
        tuple(t["stalls"] for t in row["tiers"]),
        row["stall_by_kind"],
        tuple(t["found"] for t in row["tiers"]),
        row["found_nowhere"],
        row["unheld"],
    )


def _at(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None
