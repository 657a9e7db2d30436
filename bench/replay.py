"""How many accesses a second does `replay` serve, on the conversation trace?

Three figures: the loop alone (steps already in memory, bound and replayed), the whole call from requests in memory
(expansion to steps included), and the CPU time of the whole command, from start-up to printed JSON.
"""

from __future__ import annotations

import sys

from _measure import CONVERSATION, Figure, command, cpu_seconds, figure, main, seconds

MODEL, MACHINE = "llama-3.1-70b", "h100x8"


def measure(repeats: int) -> list[Figure]:
    """Return accesses a second, and CPU seconds of the command."""
    import kvsim
    from kvsim.model import Model
    from kvsim.replay import LANES

    model = Model.load(MODEL)
    trace = kvsim.read_trace(CONVERSATION)
    steps = trace.accesses(model, lanes=LANES).whole()
    accesses = len(steps.block)
    note = f"{accesses:,} accesses in {len(steps.arrival_ps):,} step rows"
    program = command("kvsim") or sys.exit("kvsim: found no such command beside this Python, expected `pip install .`")
    words = [program, "replay", CONVERSATION, "--model", MODEL, "--machine", MACHINE, "--json"]
    loop = seconds(lambda: kvsim.replay(steps, machine=MACHINE, model=model), repeats)
    whole = seconds(lambda: kvsim.replay(trace, machine=MACHINE, model=model), repeats)
    cpu = cpu_seconds(words, repeats)
    what = f"conversation trace, {MODEL} on {MACHINE}"
    return [
        figure("replay", what, "kvsim, steps in memory", "M accesses/s", [accesses / s / 1e6 for s in loop], note),
        figure("replay", what, "kvsim, requests in memory", "M accesses/s", [accesses / s / 1e6 for s in whole]),
        figure("replay", what, "kvsim replay, the command", "CPU s", cpu),
    ]


if __name__ == "__main__":
    main(measure)
