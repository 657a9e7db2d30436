"""The façade of the core: every name that Python may use, and nothing else.

Functions and classes here check their arguments once, for memory safety; friendly checks and every default live in
`kvsim`.
"""

from __future__ import annotations

import importlib
import pkgutil

from kvsim_core import policies as _policies
from kvsim_core._clock import Clock
from kvsim_core._curve import curve, next_uses
from kvsim_core._engine import Engine
from kvsim_core._expand import Expander
from kvsim_core._intern import (
    LARGEST_BLOCKS,
    ancestors_at,
    depths,
    expand_chains,
    find_cycle,
    intern_chains,
    intern_ids,
    renumber_chains,
)
from kvsim_core._policy import CAPSULE_NAME, CPolicy, Policy, PythonPolicy, View, register, registered
from kvsim_core._replay import Replayer
from kvsim_core._store import Store

KINDS = ("kv", "weights", "state", "data")
OPERATIONS = ("attention", "ffn")
OPS = ("lookup", "read", "write", "free", "context")
RULES = ("block", "prefix")
WEIGHTS = ("block", "token", "byte")
CAUSES = ("latency", "overhead", "bandwidth", "channel", "write_back")
MAX_TIERS = 8
MAX_LINKS = 16

for _module in pkgutil.iter_modules(_policies.__path__):
    importlib.import_module(f"kvsim_core.policies.{_module.name}")

__all__ = [
    "CAPSULE_NAME",
    "CAUSES",
    "KINDS",
    "LARGEST_BLOCKS",
    "MAX_LINKS",
    "MAX_TIERS",
    "OPERATIONS",
    "OPS",
    "RULES",
    "WEIGHTS",
    "CPolicy",
    "Clock",
    "Engine",
    "Expander",
    "Policy",
    "PythonPolicy",
    "Replayer",
    "Store",
    "View",
    "ancestors_at",
    "curve",
    "depths",
    "expand_chains",
    "find_cycle",
    "intern_chains",
    "intern_ids",
    "next_uses",
    "register",
    "registered",
    "renumber_chains",
]
