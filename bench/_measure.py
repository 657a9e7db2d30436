"""What the benchmarks share: where things are, how time is taken, and the shape of a figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("KVSIM_SHARED", ROOT.parent / "shared"))
CONVERSATION = SHARED / "data" / "mooncake" / "conversation_trace.jsonl"
# The peers may live in an environment of their own: none of them is ever imported into this process.
PEER_PYTHON = os.environ.get("KVSIM_PEER_PYTHON", sys.executable)


@dataclass(frozen=True)
class Figure:
    """One measured figure: the median of its runs, and their range."""

    question: str
    what: str
    who: str
    value: float
    unit: str
    low: float
    high: float
    runs: int
    note: str = ""


def figure(question: str, what: str, who: str, unit: str, runs: Sequence[float], note: str = "") -> Figure:
    """Return the figure of some runs."""
    return Figure(question, what, who, statistics.median(runs), unit, min(runs), max(runs), len(runs), note)


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the wall seconds of each of some calls, after one that warms the caches."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def cpu_seconds(command: Sequence[str | Path], repeats: int) -> list[float]:
    """Return the CPU seconds (user and system, of all its threads) of some runs of a command, after a first one."""
    taken = []
    for _ in range(repeats + 1):
        before = os.times()
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        taken.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return taken[1:]


def command(name: str, python: str = sys.executable) -> Path | None:
    """Return the program `name` that stands beside `python`, or on the path; None if there is none."""
    beside = Path(python).with_name(name)
    if beside.exists():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def peer_has(module: str) -> bool:
    """Whether the peers' Python has a module, asked without importing it here."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([PEER_PYTHON, "-c", code], check=False).returncode == 0


def machine() -> dict[str, str]:
    """Say what ran: processor, system, Python, kvsim, and the commit if there is one."""
    import numpy as np

    import kvsim

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kvsim": kvsim.__version__,
        "commit": commit.stdout.strip() if commit.returncode == 0 else "",
    }


def table(figures: Sequence[Figure]) -> str:
    """Return figures as text: a line each, with the ratio to kvsim's first figure of the same thing."""
    ours: dict[tuple[str, str, str], float] = {}
    for f in figures:
        if f.who.startswith("kvsim"):
            ours.setdefault((f.question, f.what, f.unit), f.value)
    lines = [f"{'what':44} {'who':34} {'median':>10} {'low … high':>17}  {'unit':14} kvsim/it"]
    for f in figures:
        mine = ours.get((f.question, f.what, f.unit))
        ratio = "" if mine is None or f.who.startswith("kvsim") or not f.value else f"{mine / f.value:.2f}"
        spread = f"{f.low:.4g} … {f.high:.4g}"
        note = f"  ({f.note})" if f.note else ""
        lines.append(f"{f.what:44} {f.who:34} {f.value:>10.4g} {spread:>17}  {f.unit:14} {ratio}{note}".rstrip())
    return "\n".join(lines)


def main(measure: Callable[[int], list[Figure]]) -> None:
    """Run one question from the command line."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs behind each median")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    words = parser.parse_args()
    figures = measure(words.repeats)
    if words.json:
        print(json.dumps({"machine": machine(), "figures": [asdict(f) for f in figures]}, indent=1))
    else:
        print(table(figures))
