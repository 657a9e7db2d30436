"""A third party's Cython policy, built against what kvsim installs, equals the same policy in plain Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvsim_core

SOURCE = Path(__file__).parents[1] / "downstream"

# Runs in a new interpreter beside the built package, where its entry point is found by name.
USE = """
import json, sys
import numpy as np
import kvsim
from kvsim.testing import check_policy

class MRU:
    def __init__(self): self.blocks = []
    def attach(self, view): self.view = view
    def on_hit(self, b): self.on_remove(b, 0); self.on_insert(b)
    def on_insert(self, b): self.blocks.append(b)
    def on_remove(self, b, reason): self.blocks.remove(b)
    def victim(self, incoming): return next((b for b in self.blocks[::-1] if self.view.evictable(b)), None)

rng = np.random.default_rng(1)
chains = [[int(n) for n in rng.integers(0, 4, 1 + int(k))] for k in rng.integers(0, 6, 500)]
trace = kvsim.RequestTrace.from_lists(
    arrival_s=np.arange(500.0), input_tokens=[16 * len(c) for c in chains], output_tokens=[1] * 500,
    block_ids=chains, block_tokens=16,
)
found = kvsim.curve(trace, policies=["mru", "leaf-mru", MRU], capacities=[1, 7, 60, 4000])
check_policy("mru", max_examples=20)
import kvsim_mru
check_policy(kvsim_mru.MRU, max_examples=5)
print(json.dumps(found.to_dict()))
"""


@pytest.mark.slow
def test_a_third_partys_cython_policy(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(SOURCE, package)
    # An editable install serves Python through an import hook, which Cython's search for .pxd files does not know.
    home = str(Path(kvsim_core.__file__).parents[1])
    start = f"import sys; sys.path.insert(1, {home!r}); sys.argv = ['setup.py', *sys.argv[1:]];"
    words = [sys.executable, "-c", start + "exec(open('setup.py').read())"]
    for command in (["build_ext", "--inplace"], ["egg_info"]):
        done = subprocess.run([*words, *command], cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([sys.executable, "-c", USE], cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cython, leaf, python = (c["hit_count"] for c in json.loads(done.stdout)["curves"])
    assert cython == python
    assert sorted(cython) == cython
    assert 0 < cython[1] < cython[3]
    assert leaf[3] == cython[3]
