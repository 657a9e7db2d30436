"""The command line: what it prints, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import kvsim
from kvsim.cli import main
from kvsim.result import CurveResult, Result, load


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def ran(*words: object) -> Ran:
        code = main([str(w) for w in words])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return ran


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Sixty requests in Mooncake's format: twenty conversations of three turns, each turn two blocks longer."""
    rows = []
    for turn in range(3):
        for talk in range(20):
            ids = [talk * 100 + i for i in range(2 * (turn + 1))]
            row = {"timestamp": (turn * 20 + talk) * 500, "input_length": 512 * len(ids), "output_length": 8}
            rows.append(json.dumps(row | {"hash_ids": ids}))
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_help_is_short_and_names_every_command(run: Callable[..., Ran]) -> None:
    for words in ((), ("--help",), ("-h",)):
        ran = run(*words)
        assert ran.code == 0
        for command in ("compare", "replay", "curve", "fits", "generate", "convert", "list", "show"):
            assert command in ran.out
    for command in ("compare", "replay", "curve", "fits", "generate", "convert", "list", "show"):
        ran = run(command, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert "--json" in ran.out
    assert run("--version").out == f"kvsim {kvsim.__version__}\n"


def test_list(run: Callable[..., Ran]) -> None:
    names = run("list", "--json").document
    assert list(names) == ["machines", "models", "workloads", "policies", "retention", "routers", "formats"]
    assert {"h100x8", "a100x8", "cs3", "groq-lpu-rack", "sn40l"} <= set(names["machines"])
    assert "llama-3.1-70b" in names["models"]
    assert {"chat", "coding-agent", "overnight-batch"} <= set(names["workloads"])
    assert {"lru", "fifo", "s3-fifo", "belady"} <= set(names["policies"])
    assert "mooncake" in names["formats"]
    for sort in names:
        assert run("list", sort).out.split("\n")[:-1] == names[sort]
        assert run("list", sort, "--json").document == {sort: names[sort]}
        assert f"{sort}" in run("list").out


@pytest.mark.parametrize("name", ["h100x8", "llama-3.1-70b", "chat"])
def test_show_names_sources(run: Callable[..., Ran], name: str) -> None:
    ran = run("show", name)
    assert ran.code == 0
    assert name in ran.out
    document = run("show", name, "--json").document
    assert document["name"] == name
    assert any(row["source"] and row["quality"] for row in document["rows"])


def test_fits(run: Callable[..., Ran]) -> None:
    assert "KV" in run("fits", "llama-3.1-70b", "h100x8").out
    document = run("fits", "llama-3.1-70b", "h100x8", "--json", "--context", 1000).document
    assert document["home"] == "hbm"
    half = run("fits", "llama-3.1-70b", "h100x8", "--json", "--weights-dtype", "fp8").document
    assert half["weights_bytes"] * 2 == document["weights_bytes"]
    assert len(run("fits", "llama-3.1-70b", "h100x8", "--json", "--tiers", 2).document["rooms"]) == 2


def test_curve_json_is_the_documented_one(run: Callable[..., Ran], trace: Path) -> None:
    words = ("curve", trace, "--policy", "fifo,lru,leaf-lru", "--capacity-blocks", "1,40,1000", "--json")
    document = run(*words).document
    assert list(document) == ["trace", "unique_blocks", "curves"]
    assert document["unique_blocks"] == 120
    assert [c["policy"] for c in document["curves"]] == ["fifo", "lru", "leaf-lru"]
    for curve in document["curves"]:
        assert list(curve) == ["policy", "hit_rule", "weight", "capacity_blocks", "hit_count", "hit_rate", "total"]
        assert curve["capacity_blocks"] == [1, 40, 1000]
        # 20 x (2 + 4 + 6) look-ups; with room for all, everything but the 120 first ones hits
        assert curve["total"] == 240
        assert curve["hit_count"][2] == 120
        assert curve["hit_rate"][2] == 0.5
        assert all(isinstance(h, int) for h in curve["hit_count"])


def test_curve_units_rules_and_cuts(run: Callable[..., Ran], trace: Path) -> None:
    def one(*words: object) -> dict[str, Any]:
        return dict(run("curve", trace, "--json", *words).document["curves"][0])

    tokens = one("--hit-rule", "prefix", "--weight", "token", "--capacity-tokens", "1M")
    assert (tokens["capacity_tokens"], tokens["hit_count"]) == ([1_000_000], [120 * 512])
    in_bytes = one("--weight", "byte", "--capacity-bytes", "1TB", "--model", "llama-3.1-70b")
    assert in_bytes["hit_count"] == [120 * 512 * 327_680]
    assert one("--first", 20, "--capacity-blocks", 1000)["hit_count"] == [0]
    assert one("--last", 20, "--capacity-blocks", 1000)["total"] == 120
    assert one("--measure-last", 0.5, "--capacity-blocks", 1000)["total"] == 10 * 4 + 20 * 6
    assert len(one()["capacity_blocks"]) == 10
    assert "capacity" in run("curve", trace).out


def test_curve_saves(run: Callable[..., Ran], trace: Path, tmp_path: Path) -> None:
    ran = run("curve", trace, "-o", tmp_path / "c.npz", "--json")
    assert CurveResult.load(tmp_path / "c.npz").to_dict() == ran.document


def test_replay_json(run: Callable[..., Ran], trace: Path, tmp_path: Path) -> None:
    words = ("replay", trace, "--machine", "h100x8", "--model", "llama-3.1-70b")
    ran = run(*words, "--json", "-o", tmp_path / "r.json")
    assert (ran.code, ran.err) == (0, "")
    document = ran.document
    assert document["identity"]["exact"] is True
    assert document["tiers"][0] == "hbm"
    assert {(s["tier"], s["kind"], s["cause"]) for s in document["stalls"]} >= {("hbm", "weights", "bandwidth")}
    assert sum(s["ps"] for s in document["stalls"]) == document["identity"]["ps"]["stalls"]
    assert document["lookups"]["kv"]["block"] == 240
    found = sum(h["hits"] for h in document["hits"] if (h["kind"], h["rule"], h["weight"]) == ("kv", "block", "block"))
    assert found == 120
    assert Result.load(tmp_path / "r.json").to_dict() == document
    text = run(*words).out
    assert "stalls" in text
    assert max(map(len, text.split("\n"))) <= 100


def test_replay_with_one_tier_hits_what_the_curve_says(run: Callable[..., Ran], trace: Path) -> None:
    one = json.loads(run("curve", trace, "--capacity-bytes", "10GB", "--model", "llama-3.1-70b", "--json").out)
    words = ("--tiers", "1", "--set", "reserve=0", "--usable", "block", "--policy", "lru")
    model = ("--model", "llama-3.1-70b")
    room = 141_107_412_992 + 10_000_000_000
    document = run(
        "replay", trace, "--machine", "h100x8", *model, *words, "--set", f"tier.hbm.total_capacity={room}", "--json"
    ).document
    assert document["tiers"] == ["hbm"]
    hits = [h for h in document["hits"] if (h["kind"], h["rule"], h["weight"]) == ("kv", "block", "block")]
    assert [h["hits"] for h in hits] == one["curves"][0]["hit_count"]


def test_replay_takes_a_workload_and_changes(run: Callable[..., Ran]) -> None:
    words = (
        "replay",
        "chat",
        "--sessions",
        20,
        "--seed",
        3,
        "--machine",
        "h100x8",
        "--model",
        "llama-3.1-8b",
        "--json",
    )
    plain = run(*words).document
    assert plain["identity"]["exact"]
    assert run(*words).document == plain
    changed = run(*words, "--set", "tier.hbm.bandwidth=100TB/s", "--policy", "fifo", "--lanes", 4).document
    assert changed["config_hash"] != plain["config_hash"]
    assert set(changed["options"]["policies"]) == {"fifo"}
    assert changed["options"]["lanes"] == 4
    mixed = run(*words, "--tiers", "hbm,ssd", "--policy", "ssd=fifo").document
    assert mixed["tiers"] == ["hbm", "ssd"]
    assert mixed["options"]["policies"][1] == "fifo"


def test_generate_and_convert(run: Callable[..., Ran], tmp_path: Path) -> None:
    made = run("generate", "coding-agent", "--sessions", 2, "--seed", 5, "-o", tmp_path / "t.npz", "--json")
    assert made.code == 0
    trace = kvsim.read_trace(tmp_path / "t.npz")
    assert trace == kvsim.generate("coding-agent", sessions=2, seed=5)
    assert made.document["statistics"]
    back = run("convert", tmp_path / "t.npz", tmp_path / "t.jsonl", "--to", "mooncake", "--first", 3)
    assert back.code == 0
    assert kvsim.read_trace(tmp_path / "t.jsonl", trace_block_tokens=64).n == 3
    assert run("curve", tmp_path / "t.jsonl", "--param", "trace-block-tokens=64").code == 0
    shown = run("generate", "chat", "--param", "sessions=5")
    assert shown.code == 0
    assert shown.out


def test_compare(run: Callable[..., Ran], tmp_path: Path) -> None:
    words = ("compare", "--workload", "chat", "--machine", "h100x8,cs3", "--scale", 0.03)
    ran = run(*words, "-o", tmp_path / "c.json")
    assert ran.code == 0
    assert "h100x8" in ran.out
    assert "fp8" in ran.out
    document = run(*words, "--json").document
    assert [r["machine"] for r in document["rows"]] == ["h100x8", "cs3"]
    assert load(tmp_path / "c.json").to_dict() == document


def test_json_has_no_nan(run: Callable[..., Ran], trace: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    for words in (
        ("list",), ("show", "epyc9965-2s"), ("fits", "llama-3.1-8b", "epyc9965-2s"), ("curve", trace),
        ("replay", trace, "--machine", "epyc9965-2s", "--model", "llama-3.1-8b", "--first", 3),
    ):  # fmt: skip
        json.loads(run(*words, "--json").out, parse_constant=refuse)


def test_a_notice_goes_to_standard_error_in_one_line(run: Callable[..., Ran], trace: Path) -> None:
    lines = trace.read_text().splitlines()
    trace.write_text("\n".join(reversed(lines)))
    ran = run("curve", trace, "--json")
    assert ran.code == 0
    assert ran.err.startswith("kvsim: notice: ")
    assert ran.err.count("\n") == 1
    assert ran.document["unique_blocks"] == 120


# ---- what only a process of its own can show ------------------------------------------------------------------------


def process(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvsim", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,
    )


def test_as_a_process() -> None:
    ran = process("list", "machines")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "h100x8" in ran.stdout
    assert process("list", "machine").returncode == 2


def test_a_plain_terminal_gets_plain_signs(trace: Path) -> None:
    ran = process(
        "replay", trace, "--machine", "h100x8", "--model", "llama-3.1-8b",
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "#" in ran.stdout


@pytest.mark.skipif(os.name == "nt", reason="pipes close differently on Windows")
def test_a_closed_pipe_is_one_line() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "kvsim", "list"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_importing_kvsim_is_light() -> None:
    code = "import sys, kvsim, kvsim.cli; print([m for m in ('rich', 'numpy', 'kvsim_core') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_numbers_stay_integers(run: Callable[..., Ran], trace: Path) -> None:
    document = run("replay", trace, "--machine", "h100x8", "--model", "llama-3.1-8b", "--json").document
    assert all(isinstance(v, int) for v in document["identity"]["ps"].values())
    assert all(isinstance(v, int) for v in document["occupancy"]["step"])
    assert np.all(np.diff(document["occupancy"]["step"]) >= 0)
