"""What does a curve of 3 policies at 15 capacities cost, parsing included, beside kvcache-simulator?

Both are run as commands on the conversation trace, and the CPU time of all their threads is taken. Both evict leaves
first (FIFO: any block), count the contiguous run of each prompt in tokens, and measure the last half of the requests;
the hits are compared, so that both are known to have done the same work. The peer leaves out the capacities that the
trace does not fill; kvsim computes all 15. kvcache-simulator compiles its core in its first run, which is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from _measure import CONVERSATION, PEER_PYTHON, Figure, command, cpu_seconds, figure, main

POLICIES = {"fifo": "fifo", "leaf-lru": "lru", "leaf-belady": "optimal"}
# Its 15 budgets, 1 GiB to 16 TiB in powers of two, in blocks of its model (48,758,784 bytes each).
BLOCKS = [(1 << 30 + k) // 48_758_784 for k in range(15)]


def measure(repeats: int) -> list[Figure]:
    """Return CPU seconds of both commands."""
    program = command("kvsim") or sys.exit("kvsim: found no such command beside this Python, expected `pip install .`")
    ours: list[str | Path] = [
        program, "curve", CONVERSATION, "--policy", ",".join(POLICIES), "--hit-rule", "prefix", "--weight", "token",
        "--measure-last", "0.5", "--capacity-blocks", ",".join(map(str, BLOCKS)), "--json",
    ]  # fmt: skip
    what = f"{len(POLICIES)} policies x {len(BLOCKS)} capacities, parsing too"
    figures = [figure("curve", what, "kvsim curve", "CPU s", cpu_seconds(ours, repeats))]
    peer = command("kvcache-simulator", PEER_PYTHON)
    if peer is None:
        return figures
    theirs: list[str | Path] = [
        peer, "run", "--trace", CONVERSATION, "--model", "glm-5.2", "--block-size", "512", "--no-progress",
        "--format", "json",
    ]  # fmt: skip
    note = _same(_json(ours), _json(theirs))
    figures.append(figure("curve", what, "kvcache-simulator", "CPU s", cpu_seconds(theirs, repeats), note))
    return figures


def _json(words: list[str | Path]) -> dict[str, object]:
    done = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _same(ours: dict, theirs: dict) -> str:
    """Say how many of the peer's points kvsim agrees with, token for token."""
    hits = {c["policy"]: dict(zip(c["capacity_blocks"], c["hit_count"], strict=True)) for c in ours["curves"]}
    points = [
        hits[mine].get(point["cacheBlocks"]) == point["results"][its]["hitTokens"]
        for point in theirs["points"]
        for mine, its in POLICIES.items()
    ]
    return f"{sum(points)} of its {len(points)} points agree to the token"


if __name__ == "__main__":
    main(measure)
