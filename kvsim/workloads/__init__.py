"""Workload generators: seeded request traces with the shapes that real services show.

A generator is one module of this package, found by itself, or an entry point in the group
`kvsim.workloads`. It offers `Parameters` (a frozen dataclass whose fields are what may be asked
for) and `generate(parameters, seed) -> RequestTrace`. Its defaults stand, each with unit, source
and quality, in `presets/workloads/<name>.toml`; such a file may also give another generator's
parameters other values (`generator = "chat"`, `base = "chat"`), and a path to one is as good as a
name.

Times in a generated trace: only the start of a session is an arrival that binds. Every later
request waits for the requests it depends on plus a pause, and its `arrival_ps` is the earliest
start that leaves, the one on a machine that answers in no time. So a trace is ordered the way its
sessions interleave, and no machine is ever held back by a time that another machine produced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvsim.registry import Registry
from kvsim.workloads._parameters import Preset, Quantiles, preset_names, read_preset, resolve

if TYPE_CHECKING:
    from kvsim.trace import RequestTrace

__all__ = ["WORKLOADS", "Preset", "Quantiles", "generate", "names", "parameters", "preset"]

WORKLOADS = Registry("workload", "kvsim.workloads", package="kvsim.workloads")
"""The generators: modules (or objects) with `Parameters` and `generate`."""


def names() -> tuple[str, ...]:
    """Return every workload name that `generate` takes: generators and presets, sorted."""
    return tuple(sorted({*WORKLOADS.names(), *preset_names()}))


def preset(workload: str) -> Preset:
    """Return the numbers of a workload (a name or a TOML file's path) with unit, source, quality.

    Raises UnknownNameError if there is no such workload and WorkloadError if its file is wrong.
    """
    return read_preset(workload, names())


def parameters(workload: str, **changes: Any) -> Any:
    """Return a workload's parameters, checked, with `changes` made.

    Parameters
    ----------
    workload : a name, or a path to a TOML file.
    changes : values by parameter name. A distribution takes a number (always that), a mapping such
        as `{"p50": 10, "p99": 3015}`, the same as text (`"p50=10,p99=3015"`), or a `Quantiles`.

    Raises
    ------
    UnknownNameError : no such workload or parameter.
    WorkloadError : a value has the wrong type or lies outside its range.
    """
    return _resolved(workload, changes)[1]


def generate(workload: str, *, seed: int = 0, **parameters: Any) -> RequestTrace:
    """Generate a request trace, bit for bit the same for the same workload, seed and parameters.

    Parameters
    ----------
    workload : a name (see `names()`), or a path to a TOML file.
    seed : int from 0.
    parameters : values that replace the workload's defaults (see `parameters()`), for instance
        `sessions=500`.

    Raises
    ------
    UnknownNameError : no such workload or parameter.
    WorkloadError : a value has the wrong type or lies outside its range.
    """
    generator, wanted = _resolved(workload, parameters)
    trace: RequestTrace = generator.generate(wanted, seed)
    return trace


def _resolved(workload: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    found = preset(workload)
    generator = WORKLOADS.get(found.generator)
    return generator, resolve(generator.Parameters, found, changes)
