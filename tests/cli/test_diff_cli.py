"""`kvsim diff` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kvsim
from kvsim.cli import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in one number of the machine, one replay, one curve."""
    home = tmp_path_factory.mktemp("saved")
    trace = kvsim.generate("chat", sessions=20)
    machine = kvsim.Machine.load("h100x8")
    kvsim.run(trace, model="llama-3.1-8b", machine=machine).save(home / "a.npz")
    slow = machine.set("tier.hbm.bandwidth", "1 TB/s")
    kvsim.run(trace, model="llama-3.1-8b", machine=slow).save(home / "b.json")
    kvsim.replay(trace, model="llama-3.1-8b", machine=machine).save(home / "replay.npz")
    kvsim.curve(trace, capacities=[10]).save(home / "curve.npz")
    return home


def _ran(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_says_what_changed_and_why(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _ran(capsys, "diff", saved / "a.npz", saved / "b.json")
    assert (code, err) == (0, "")
    for words in (
        "what was changed",
        "machine.tier.hbm.read_bytes_per_s",
        "why the time changed",
        "stalls on hbm",
        "what changed",
    ):
        assert words in out, out
    assert max(map(len, out.split("\n"))) <= 100


def test_json(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _ran(capsys, "diff", saved / "a.npz", saved / "b.json", "--json")
    document = json.loads(out)
    assert document["same"] is False
    assert any("hbm" in path for path in document["inputs"])
    for reason in document["reasons"]:
        old, new = (sum(reason[f"{side}_ps"].values()) / reason[f"{side}_count"] for side in ("old", "new"))
        assert reason["change_s"] == pytest.approx((new - old) / 1e12)
        assert sum(reason["parts_s"].values()) == pytest.approx(reason["change_s"])


def test_a_result_and_itself(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _ran(capsys, "diff", saved / "a.npz", saved / "a.npz")
    assert code == 0
    assert "nothing changed" in out


def test_what_it_refuses(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = tmp_path / "torn.npz"
    torn.write_bytes((saved / "a.npz").read_bytes()[:500])
    cases = (
        (2, ["nosuch.npz", "no such file"], saved / "a.npz", "nosuch.npz"),
        (2, ["missing"], saved / "a.npz"),
        (1, ["torn.npz"], saved / "a.npz", torn),
        (1, ["runresult", "result"], saved / "a.npz", saved / "replay.npz"),
        (1, ["curveresult"], saved / "curve.npz", saved / "curve.npz"),
    )
    for code, words, *files in cases:
        found, out, err = _ran(capsys, "diff", *files)
        assert (found, out, err.count("\n")) == (code, "", 1), err
        assert "fault of kvsim" not in err
        for word in words:
            assert word in err.lower(), err
