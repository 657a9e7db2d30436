"""How fast does `run` serve the conversation trace, and in how much memory?

The engine's loop alone (requests already lowered to numbers), the whole call from requests in memory (lowering and
result included), and the whole command, from start-up to printed JSON: its CPU time and its peak memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _measure import CONVERSATION, Figure, command, cpu_seconds, figure, main, seconds

MODEL, MACHINE = "llama-3.1-70b", "h100x8"
# A process counts the memory of the one that it was forked from as its own: so a small one starts the command.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
"""


def peak_bytes(words: Sequence[str | Path], repeats: int) -> list[float]:
    """Return the peak resident bytes of some runs of a command; none where the system does not tell."""
    if sys.platform == "win32":
        return []
    watched = [sys.executable, "-S", "-c", PEAK, *(str(word) for word in words)]
    return [float(subprocess.check_output(watched)) for _ in range(repeats)]


def measure(repeats: int) -> list[Figure]:
    """Return the engine's seconds and rates, and the command's CPU seconds and peak memory."""
    import kvsim
    from kvsim.run_lowering import lower_run
    from kvsim_core import Engine

    model, machine = kvsim.Model.load(MODEL), kvsim.Machine.load(MACHINE)
    trace = kvsim.read_trace(CONVERSATION)
    lowered = lower_run(trace, model, machine, kvsim.Serving())
    found = kvsim.run(trace, model=model, machine=machine)
    steps = int(found.arrays["steps"].sum())
    program = command("kvsim") or sys.exit("kvsim: found no such command beside this Python, expected `pip install .`")
    words = [program, "run", CONVERSATION, "--model", MODEL, "--machine", MACHINE, "--json"]

    def loop() -> None:
        engine = Engine(lowered.spec, [[choice.make() for choice in own] for own in lowered.policies])
        while not engine.run(1 << 20):
            pass

    alone = seconds(loop, repeats)
    whole = seconds(lambda: kvsim.run(trace, model=model, machine=machine), repeats)
    cpu = cpu_seconds(words, repeats)
    peaks = peak_bytes(words, repeats)
    what = f"conversation trace, {MODEL} on {MACHINE}"
    note = f"{trace.n:,} requests, {steps:,} steps, {found.makespan_s:,.0f} s of the machine's time"
    figures = [
        figure("run", what, "kvsim, the engine's loop", "s", alone, note),
        figure("run", what, "kvsim, requests in memory", "s", whole),
        figure("run", what, "kvsim, the engine's loop", "steps/s", [steps / s for s in alone]),
        figure("run", what, "kvsim, the engine's loop", "requests/s", [trace.n / s for s in alone]),
        figure("run", what, "kvsim run, the command", "CPU s", cpu),
    ]
    if peaks:
        figures.append(figure("run", what, "kvsim run, the command", "MB at most", [b / 1e6 for b in peaks]))
    return figures


if __name__ == "__main__":
    main(measure)
