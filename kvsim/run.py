"""Run: requests through an engine on a machine, closed loop.

`run` resolves every default and name to flat numbers, lets the core's loop run once, and wraps what comes back. The
core holds no GIL: runs in parallel threads do not wait for each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.errors import ConfigError, UnknownNameError, shown
from kvsim.population import Population
from kvsim.population import populations as goals_of
from kvsim.retention import TRIED
from kvsim.run_lowering import LoweredRun, lower_run
from kvsim.run_result import RunResult
from kvsim.serving import Serving

if TYPE_CHECKING:
    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.trace import RequestTrace

__all__ = ["run"]

_BUDGET = 1 << 20
"""Steps and events between two looks at progress and at the keyboard: some seconds at most."""

_BUSY = 6  # parts of the wall in which a machine works or waits for its work, before the idle ones

Progress = Callable[[int, int | None], object]


def run(
    trace: RequestTrace | str | PathLike[str] | Sequence[RequestTrace | str | PathLike[str]],
    *,
    model: Model | str | PathLike[str] | Mapping[str, Any],
    machine: Machine | str | PathLike[str] | Mapping[str, Any],
    serving: Serving | Mapping[str, Any] | str | Iterable[str] | None = None,
    populations: Iterable[Population | str] | Population | str | None = None,
    policy: Any = None,
    seed: int = 0,
    record: bool = False,
    check: bool = False,
    progress: Progress | None = None,
    **serving_words: Any,
) -> RunResult:
    """Serve requests on a machine, and say where the machine's and the requests' time went.

    Parameters
    ----------
    trace : RequestTrace, path, workload name, or several of these
        Several share the machine, each as a population of its own.
    model, machine : object, preset name or path
    serving : Serving, mapping, or words such as "max_seqs=64", optional
        How the engine batches, queues and places; see :class:`kvsim.Serving`.
    populations : Population or words such as "chat:ttft=1s,tpot=50ms", one or several, optional
        Goals of the trace's populations.
    policy : str, object, or mapping from tier name to either, optional
        Instead of the machine's own policies.
    seed : int
        For workloads and for policies that draw.
    record : bool
        Keep every step, every state of every request and every move, for a timeline.
    check : bool
        Derive all books again at the end.
    progress : callable, optional
        Called with the requests done and their number from time to time.
    **serving_words
        Single options of `serving`: `run(..., max_seqs=64, retention="timeout:60")`.

    Returns
    -------
    RunResult

    Raises
    ------
    KvsimError
        A name is unknown, an input makes no sense, or the machine cannot hold the weights.
    OverflowError
        The clock or a counter passes 2^62.
    RuntimeError
        With `check`: something does not balance.
    """
    from kvsim.machine import Machine
    from kvsim.model import Model

    options = Serving.of(serving).with_(**serving_words)
    requests = _requests(trace, seed)
    wanted = (populations,) if isinstance(populations, Population | str) else populations or ()
    groups = goals_of(wanted, requests.population_names)
    machine, model = Machine.load(machine), Model.load(model)
    if options.retention.name == "oracle" and policy is not None:
        raise ConfigError("policy: found one beside retention 'oracle', expected none: it chooses what leaves a tier")
    hindsight: dict[str, Any] = {}
    best: tuple[tuple[int, int], LoweredRun, dict[str, Any]] | None = None
    for tried in _rules(options):
        lowered = lower_run(requests, model, machine, tried, policy=policy, seed=seed)
        core = _engine(lowered, record=record, check=check, progress=progress)
        price = int(core["makespan_ps"]), int(core["parts_ps"][:, :_BUSY].sum())
        hindsight[tried.retention.name] = price[0] / 10**12
        if best is None or price < best[0]:
            best = price, lowered, core
    assert best is not None
    _, lowered, core = best
    result = RunResult.from_core(
        _whole(core, lowered),
        trace=requests,
        machine=machine,
        model=model,
        options={
            "serving": options.to_dict(),
            "policies": _policy_names(lowered, machine),
            "placement": lowered.placement,
            "seed": seed,
            **({"oracle_tried_makespan_s": hindsight} if len(hindsight) > 1 else {}),
        },
        populations=groups,
    )
    if check:
        result.check()
    return result


def _rules(options: Serving) -> list[Serving]:
    """Return the options of each run that is to be made: one, or one for each rule that the oracle chooses from."""
    if options.retention.name != "oracle":
        return [options]
    return [options.with_(retention=rule) for rule in TRIED]


def _engine(lowered: LoweredRun, *, record: bool, check: bool, progress: Progress | None) -> dict[str, Any]:
    """Let the core's loop run, and return its answer."""
    from kvsim_core import Engine

    engine = Engine(lowered.spec, [[choice.make() for choice in own] for own in lowered.policies], record=record)
    while not engine.run(_BUDGET):
        if progress is not None:
            done, total, _ = engine.progress()
            progress(done, total)
    if check:
        engine.check()
    answer: dict[str, Any] = engine.result()
    return answer


def _whole(core: Mapping[str, Any], lowered: LoweredRun) -> dict[str, Any]:
    """Return the engine's answer with the room that weights take, data counted once, and the pools' own links."""
    out = dict(core)
    moved, busy = out.pop("transfer_bytes", 0), out.pop("transfer_busy_ps", 0)
    if moved:
        link = lowered.spec["transfer"]["link"]
        # away from compute where the pool that decodes is named last, as a link between tiers has it
        way = int(not lowered.spec["transfer"]["up"])
        for key in ("link_up_bytes", "link_down_bytes")[way : way + 1]:
            out[key] = np.array(out[key], np.int64)
            out[key][link] += moved
        out["link_busy_ps"] = np.array(out["link_busy_ps"], np.int64)
        out["link_busy_ps"][link, way] += busy
    tokens = np.asarray(out.pop("unit_tokens"), np.int64)
    for pool, link, size in lowered.activations:
        for key in ("link_up_bytes", "link_down_bytes"):  # to the other pool, and back
            out[key] = np.array(out[key], np.int64)
            out[key][link] += round(float(tokens[lowered.unit_pool == pool].sum()) * size)
    bins = dict(out.pop("bins", {})) or {k[5:]: out.pop(k) for k in [*out] if k.startswith("bins/")}
    out["capacity_bytes"] = np.asarray(out["capacity_bytes"], np.int64) + lowered.more_capacity_bytes
    out["used_bytes"] = np.asarray(out["used_bytes"], np.int64) + lowered.more_used_bytes
    bins["used_bytes"] = np.asarray(bins["used_bytes"], np.int64) + lowered.more_used_bytes
    return out | {"bins": bins, "unit_pool": lowered.unit_pool, "unit_replica": lowered.unit_replica}


def _policy_names(lowered: LoweredRun, machine: Machine) -> dict[str, str]:
    """Return the policy of each tier that evicts, by the tier's name."""
    names: dict[str, str] = {}
    for worker, own in zip(lowered.spec["workers"], lowered.policies, strict=True):
        for tier, choice in zip(lowered.spec["kinds"][worker["kind"]]["ladder"], own, strict=True):
            names[machine.tiers[tier].name] = choice.name
    return names


# ---- requests ------------------------------------------------------------------------------------------------------


def _requests(trace: Any, seed: int) -> RequestTrace:
    """Return the one trace that objects, paths or names of workloads stand for."""
    from kvsim.trace import RequestTrace

    if not isinstance(trace, list | tuple):
        return _one(trace, seed)
    if not trace:
        raise ConfigError("trace: found none, expected one or more")
    # each is drawn by a seed of its own: two of one workload are two groups of people
    traces = [_one(each, seed + i) for i, each in enumerate(trace)]
    if len(traces) == 1:
        return traces[0]
    common = math.gcd(*(each.block_tokens for each in traces))
    return RequestTrace.merge(*(each.split(common) for each in traces))


def _one(trace: Any, seed: int) -> RequestTrace:
    from kvsim import workloads
    from kvsim.trace import RequestTrace
    from kvsim.traces import read_trace

    if isinstance(trace, RequestTrace):
        return trace
    if isinstance(trace, str) and (trace in workloads.names() or trace.endswith(".toml")):
        return workloads.generate(trace, seed=seed)
    if not isinstance(trace, str | PathLike):
        raise ConfigError(f"trace: found {shown(trace)}, expected requests (RequestTrace), a path or a workload's name")
    text = os.fspath(trace)
    if isinstance(trace, str) and not Path(text).exists() and not Path(text).suffix and os.sep not in text:
        raise UnknownNameError(text, workloads.names(), "trace file or workload")
    found: Any = read_trace(trace)
    if not isinstance(found, RequestTrace):
        raise ConfigError(f"trace: found steps in {text}, expected requests: steps are replayed, not run")
    return found
