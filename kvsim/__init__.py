"""kvsim: replay KV-cache and weight accesses through any stack of memories, and see where the time stalls.

>>> import kvsim
>>> trace = kvsim.read_trace("conversation_trace.jsonl")            # doctest: +SKIP
>>> kvsim.replay(trace, model="llama-3.1-70b", machine="h100x8")    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvsim.compare import Comparison, compare
    from kvsim.curve import curve
    from kvsim.curve_result import CurveResult
    from kvsim.diff import Diff, diff
    from kvsim.errors import (
        ConfigError,
        KvsimError,
        MachineError,
        ModelError,
        TraceError,
        TraceWarning,
        UnknownNameError,
        WorkloadError,
    )
    from kvsim.fits import Fits, fits
    from kvsim.machine import Link, Machine, Movement, Pool, Tier
    from kvsim.model import Model
    from kvsim.population import Population
    from kvsim.replay import replay
    from kvsim.result import Result, load
    from kvsim.retention import Retention
    from kvsim.run import run
    from kvsim.run_result import RunResult
    from kvsim.serving import Serving
    from kvsim.trace import AccessStream, AccessTrace, BlockTable, RequestTrace
    from kvsim.traces import read_trace, write_trace
    from kvsim.workloads import generate
    from kvsim_core import Policy, register

__version__ = "0.1.0"

# Each name is imported when it is first asked for: `import kvsim` costs a few milliseconds, and a command only its
# parts.
_HOMES = {
    "Comparison": "kvsim.compare",
    "compare": "kvsim.compare",
    "curve": "kvsim.curve",
    "CurveResult": "kvsim.curve_result",
    "Diff": "kvsim.diff",
    "diff": "kvsim.diff",
    "ConfigError": "kvsim.errors",
    "KvsimError": "kvsim.errors",
    "MachineError": "kvsim.errors",
    "ModelError": "kvsim.errors",
    "TraceError": "kvsim.errors",
    "TraceWarning": "kvsim.errors",
    "UnknownNameError": "kvsim.errors",
    "WorkloadError": "kvsim.errors",
    "Fits": "kvsim.fits",
    "fits": "kvsim.fits",
    "Link": "kvsim.machine",
    "Machine": "kvsim.machine",
    "Movement": "kvsim.machine",
    "Pool": "kvsim.machine",
    "Tier": "kvsim.machine",
    "Model": "kvsim.model",
    "Population": "kvsim.population",
    "replay": "kvsim.replay",
    "Retention": "kvsim.retention",
    "run": "kvsim.run",
    "RunResult": "kvsim.run_result",
    "Serving": "kvsim.serving",
    "Result": "kvsim.result",
    "load": "kvsim.result",
    "AccessStream": "kvsim.trace",
    "AccessTrace": "kvsim.trace",
    "BlockTable": "kvsim.trace",
    "RequestTrace": "kvsim.trace",
    "read_trace": "kvsim.traces",
    "write_trace": "kvsim.traces",
    "generate": "kvsim.workloads",
    "Policy": "kvsim_core",
    "register": "kvsim_core",
}

__all__ = [
    "AccessStream",
    "AccessTrace",
    "BlockTable",
    "Comparison",
    "ConfigError",
    "CurveResult",
    "Diff",
    "Fits",
    "KvsimError",
    "Link",
    "Machine",
    "MachineError",
    "Model",
    "ModelError",
    "Movement",
    "Policy",
    "Pool",
    "Population",
    "RequestTrace",
    "Result",
    "Retention",
    "RunResult",
    "Serving",
    "Tier",
    "TraceError",
    "TraceWarning",
    "UnknownNameError",
    "WorkloadError",
    "__version__",
    "compare",
    "curve",
    "diff",
    "fits",
    "generate",
    "load",
    "read_trace",
    "register",
    "replay",
    "run",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kvsim' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """The package: a verb's name (`kvsim.curve`) means the function, not the module that it lives in."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds every submodule here, some under the name of their function.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
