"""Golden results: the same integers on every platform, from one version to the next.

A change here is a changed result: it belongs into CHANGELOG.md under *Changed results*, with its reason.
Write the files anew with ``python tests/golden/test_golden.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvsim
from kvsim_core import registered

HERE = Path(__file__).parent
MACHINES = ("a100x8", "cs3", "epyc9965-2s", "groq-lpu-rack", "h100x8", "sn40l")
MODELS = ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gemma-3-27b", "qwen3-next-80b-a3b")
COUNTERS = (
    "hits", "lookups", "stall_ps", "read_bytes", "write_bytes", "writeback_read_bytes", "writeback_write_bytes",
    "link_up_bytes", "link_down_bytes", "evicted", "demoted_out", "promoted_in", "resident_blocks",
)  # fmt: skip


def trace() -> kvsim.RequestTrace:
    """300 requests of 40 growing sessions behind two system prompts, from whole-number arithmetic alone."""
    state = 12345
    histories: list[list[int]] = [[] for _ in range(40)]
    fresh = 10_000
    rows: dict[str, list[Any]] = {"arrival_ps": [], "input_tokens": [], "output_tokens": [], "block_ids": []}
    for r in range(300):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        draw = [state >> shift & 0xFF for shift in (24, 32, 40, 48)]
        s = draw[0] % 40
        if not histories[s] or draw[1] < 8:
            histories[s] = [s % 2 * 100 + i for i in range(6)]
        for _ in range(1 + draw[2] % 12):
            histories[s].append(fresh)
            fresh += 1
        tail = draw[3] % 64 + 1
        rows["arrival_ps"].append(r * 250_000_000_000)
        rows["input_tokens"].append((len(histories[s]) - 1) * 64 + tail)
        rows["output_tokens"].append(1 + draw[1] % 50)
        rows["block_ids"].append(list(histories[s]))
        if tail < 64:
            histories[s].pop()  # a partial block is not what the next turn continues
    return kvsim.RequestTrace.from_lists(block_tokens=64, name="golden", **rows)


def results() -> dict[str, Any]:
    """Return every golden number."""
    requests = trace()
    found: dict[str, Any] = {"replay": {}, "curve": {}}
    for model in MODELS:
        for machine in MACHINES:
            try:
                r = kvsim.replay(requests, machine=machine, model=model, lanes=7, check=True)
            except kvsim.MachineError:
                found["replay"][f"{model} on {machine}"] = "does not hold the weights"
                continue
            columns = {name: np.asarray(r.arrays[name]).tolist() for name in COUNTERS}
            found["replay"][f"{model} on {machine}"] = {"wall": r.identity.parts_ps, **columns}
    names = [leaf + name for name in sorted(registered()) for leaf in ("", "leaf-")]
    for rule in ("block", "prefix"):
        curves = kvsim.curve(requests, policies=names, capacities=[0, 20, 100, 300, 900], hit_rule=rule, seed=11)
        found["curve"][rule] = dict(zip(names, curves.hit_count.tolist(), strict=True))
    return found


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return results()


def golden() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
    return stored


@pytest.mark.parametrize("case", sorted(golden()["replay"]))
def test_replay(case: str, now: dict[str, Any]) -> None:
    assert now["replay"][case] == golden()["replay"][case]


@pytest.mark.parametrize("rule", ["block", "prefix"])
def test_curve(rule: str, now: dict[str, Any]) -> None:
    assert now["curve"][rule] == golden()["curve"][rule]


def test_every_case_is_golden(now: dict[str, Any]) -> None:
    assert sorted(now["replay"]) == sorted(golden()["replay"])


if __name__ == "__main__":
    (HERE / "golden.json").write_text(json.dumps(results(), separators=(",", ":")) + "\n")
