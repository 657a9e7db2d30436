"""`kvsim run` through the command line: what it prints and writes, its JSON, what it refuses, and Ctrl-C."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvsim
from kvsim.cli import main
from kvsim.retention import RULES

MACHINE = ("--machine", "h100x8", "--model", "llama-3.1-8b")
AGENTS = ("run", "coding-agent", "--sessions", "2", "--seed", "5", *MACHINE)


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


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_the_report_has_both_views_and_fits_a_terminal(run: Callable[..., Ran], trace: Path) -> None:
    ran = run("run", trace, *MACHINE)
    assert (ran.code, ran.err) == (0, "")
    for words in ("the machine's time", "stalls: what compute waited for", "the requests' time", "latency", "cost"):
        assert words in ran.out
    assert max(map(len, ran.out.split("\n"))) <= 100


def test_json_is_the_results_own_and_balances(run: Callable[..., Ran], trace: Path) -> None:
    ran = run("run", trace, *MACHINE, "--json", "--check")
    assert (ran.code, ran.err) == (0, "")
    document = ran.document
    assert document == json.loads(json.dumps(kvsim.run(trace, model="llama-3.1-8b", machine="h100x8").to_dict()))
    assert document["requests_by_status"] == {"done": 60, "rejected": 0, "unreached": 0}
    assert sum(row["ps"] for row in document["identity"]) == document["wall_ps"]
    stalled = next(row["ps"] for row in document["identity"] if row["part"] == "stalls")
    assert sum(row["ps"] for row in document["stalls"]) == stalled
    assert "requests" not in document
    assert "tasks" not in document


def test_rows_of_requests_only_when_asked_for(run: Callable[..., Ran], trace: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    ran = run("run", trace, *MACHINE, "--json", "--requests")
    document = json.loads(ran.out, parse_constant=refuse)
    assert document["requests"]["input_tokens"] == [1024] * 20 + [2048] * 20 + [3072] * 20
    assert len(document["tasks"]["session"]) == len(set(document["requests"]["session"]))


def test_cuts_and_machine_changes_reach_the_run(run: Callable[..., Ran], trace: Path) -> None:
    words = ("run", trace, *MACHINE, "--json")
    cut = run(*words, "--first", 40, "--last", 20, "--rate-scale", 10).document
    assert cut["trace"]["requests"] == 20
    assert cut["makespan_s"] < run(*words).document["makespan_s"] / 4
    changed = run(*words, "--tiers", "hbm,ssd", "--set", "tier.hbm.bandwidth=1TB/s", "--policy", "ssd=fifo").document
    assert changed["tiers"] == ["hbm", "ssd"]
    assert changed["options"]["policies"]["ssd"] == "fifo"
    slower = sum(row["ps"] for row in changed["stalls"])
    assert slower > sum(row["ps"] for row in run(*words).document["stalls"])


def test_serving_options_and_their_short_forms(run: Callable[..., Ran]) -> None:
    long = run(
        *AGENTS, "--json", "--serve", "max_seqs=4", "--serve", "retention=tool=timeout:60,think=demote:10",
        "--serve", "concurrency=1", "--serve", "replicas=2", "--serve", "router=session-affine",
    ).document  # fmt: skip
    serving = long["options"]["serving"]
    assert (serving["max_seqs"], serving["concurrency"], serving["replicas"]) == (4, 1, 2)
    assert serving["router"] == "session-affine"
    assert serving["retention"]["tool"]["pin_s"] == 60
    assert serving["retention"]["think"]["demote_s"] == 10
    short = run(
        *AGENTS, "--json", "--serve", "max-seqs=4", "--retention", "tool=timeout:60,think=demote:10",
        "--concurrency", 1, "--replicas", 2, "--router", "session-affine",
    ).document  # fmt: skip
    assert short == long


def test_a_workload_is_the_generated_one(run: Callable[..., Ran]) -> None:
    trace = kvsim.generate("coding-agent", sessions=2, seed=5)
    found = kvsim.run(trace, model="llama-3.1-8b", machine="h100x8", seed=5)
    assert run(*AGENTS, "--json").document == json.loads(json.dumps(found.to_dict()))


def test_several_traces_share_the_machine_with_goals_of_their_own(run: Callable[..., Ran], trace: Path) -> None:
    words = ("run", trace, "coding-agent", "--sessions", 2, *MACHINE, "--json")
    goals = ("--goal", "talks:ttft=1s,tpot=50ms", "--goal", "coding-agent:makespan=2h")
    document = run(*words, *goals).document
    assert [p["name"] for p in document["populations"]] == ["talks", "coding-agent"]
    assert document["populations"][0]["ttft_s"] == 1.0
    assert document["populations"][1]["makespan_s"] == 7200.0
    assert {row["population"] for row in document["goodput"]} >= {"talks", "coding-agent"}


@pytest.mark.parametrize("name", ["talks:", "all:", ""])
def test_goals_of_a_single_trace(run: Callable[..., Ran], trace: Path, name: str) -> None:
    document = run("run", trace, *MACHINE, "--goal", f"{name}ttft=1s,tpot=50ms", "--json").document
    (row,) = document["goodput"]
    assert row["within"] == row["requests"] == 60
    (population,) = document["populations"]
    assert (population["name"], population["ttft_s"], population["tpot_s"]) == ("all", 1.0, 0.05)


def test_two_of_one_workload_are_two_groups_of_people(run: Callable[..., Ran]) -> None:
    document = run("run", "chat", "chat", "--sessions", 3, *MACHINE, "--json").document
    names = [p["name"] for p in document["populations"]]
    assert len(set(names)) == 2
    assert document["trace"]["requests"] == sum(
        kvsim.generate("chat", sessions=3, seed=seed).n for seed in (0, 1)
    )  # fmt: skip


def test_help_names_every_option_of_the_engine_and_every_rule(run: Callable[..., Ran]) -> None:
    assert {"run", "diff"} <= {line.split()[0] for line in run("--help").out.splitlines() if line.strip()}
    said = run("run", "--help").out
    for option in dataclasses.fields(kvsim.Serving):
        assert option.name in said, option.name
    for rule in RULES:
        assert rule in said, rule


# ---- what it writes -------------------------------------------------------------------------------------------------


def test_files(run: Callable[..., Ran], trace: Path, tmp_path: Path) -> None:
    saved, page, timeline = tmp_path / "r.npz", tmp_path / "r.html", tmp_path / "r.json.gz"
    ran = run("run", trace, *MACHINE, "--save", saved, "--report", page, "--perfetto", timeline, "--json")
    assert (ran.code, ran.err) == (0, "")
    result = kvsim.load(saved)
    assert json.loads(json.dumps(result.to_dict())) == ran.document
    assert len(result.arrays["log/step_start_ps"])
    text = page.read_text()
    assert text.lower().startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert "talks" in text
    for reaching_out in ("http://", "https://", "src=", "@import"):
        assert reaching_out not in text.replace('xmlns="http://www.w3.org/2000/svg"', "").partition("assumptions")[0]
    events = json.loads(gzip.decompress(timeline.read_bytes()))["traceEvents"]
    assert {event["ph"] for event in events} >= {"M", "B", "E", "C"} or {event["ph"] for event in events} >= {"M", "X"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json.gz", "r.npz", "talks.jsonl"]


def test_a_recording_that_was_full_is_said_in_one_line(
    run: Callable[..., Ran], trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvsim.RunResult, "log_cut", True)
    ran = run("run", trace, *MACHINE, "--perfetto", tmp_path / "r.json")
    assert ran.code == 0
    assert ran.err.startswith("kvsim: notice: ")
    assert ran.err.count("\n") == 1
    assert "the timeline lacks" in ran.err
    assert json.loads((tmp_path / "r.json").read_text())["otherData"]["cut"] is True
    assert run("run", trace, *MACHINE).err == ""


def test_only_a_timeline_asks_for_recording(run: Callable[..., Ran], trace: Path, tmp_path: Path) -> None:
    run("run", trace, *MACHINE, "-o", tmp_path / "r.json")
    assert len(kvsim.load(tmp_path / "r.json").arrays["log/step_start_ps"]) == 0


def test_show_of_a_saved_run(run: Callable[..., Ran], trace: Path, tmp_path: Path) -> None:
    for name in ("r.npz", "r.json"):
        told = run("run", trace, *MACHINE, "-o", tmp_path / name).out
        assert run("show", tmp_path / name).out == told
        document = run("show", tmp_path / name, "--json").document
        assert document["machine"]["name"] == "h100x8"


def test_list_has_retention_rules_and_routers(run: Callable[..., Ran]) -> None:
    names = run("list", "--json").document
    assert {"keep", "timeout", "demote", "oracle"} <= set(names["retention"])
    assert {"round-robin", "prefix-aware"} <= set(names["routers"])
    assert run("list", "router").code == 2


# ---- what it refuses ------------------------------------------------------------------------------------------------


class _Here:
    """The folder of one case, and what the command said there."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.capsys = capsys

    def refuses(self, code: int, words: list[str], *command: object) -> None:
        before = sorted(p.name for p in self.home.iterdir())
        found = main([str(w) for w in command])
        said = self.capsys.readouterr()
        assert said.err.startswith("kvsim: "), said.err
        assert said.err.count("\n") == 1, said.err
        assert "fault of kvsim" not in said.err
        for word in words:
            assert word.lower() in said.err.lower(), (word, said.err)
        assert found == code, said.err
        assert said.out == ""
        assert sorted(p.name for p in self.home.iterdir()) == before


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> _Here:
    return _Here(tmp_path, capsys)


OPTIONS = [
    (("--serve", "max_seqs"), ["--serve", "max_seqs", "KEY=VALUE"]),
    (("--serve", "max_seq=4"), ["max_seq", "did you mean", "max_seqs"]),
    (("--serve", "max_seqs=0"), ["max_seqs", "0"]),
    (("--serve", "max_seqs=many"), ["max_seqs", "many"]),
    (("--serve", "max_seqs=1", "--serve", "seqs=2"), ["max_seqs", "twice"]),
    (("--serve", "order=fcsf"), ["fcsf", "fcfs"]),
    (("--serve", "kv_overflow=swap"), ["kv_overflow", "swap"]),
    (("--serve", "load=sometimes"), ["sometimes", "split"]),
    (("--serve", "accepted_tokens=3"), ["accepted_tokens", "draft_tokens"]),
    (("--serve", "kv_blocks=999999999"), ["kv_blocks", "hbm"]),
    (("--serve", "partition=all:1,agents:1"), ["agents", "all"]),
    (("--serve", "partition=all"), ["partition", "POPULATION:SHARE"]),
    (("--goal", "talk:ttft=1s"), ["talk", "all"]),
    (("--goal", "talks:ttft=1s", "--goal", "ttft=2s"), ["all", "twice"]),
    (("--goal", "ttf=1s"), ["ttf", "did you mean", "ttft"]),
    (("--goal", "all:ttft"), ["ttft", "GOAL=VALUE"]),
    (("--goal", "ttft=-1s"), ["ttft", "-1s"]),
    (("--goal", "ttft=1GB"), ["ttft", "1GB"]),
    (("--goal", "ttft=1s", "--goal", "tpot=1s"), ["all", "twice"]),
    (("--goal", ""), ["population"]),
    (("--retention", "demot:10"), ["demot", "did you mean", "demote"]),
    (("--retention", "demote"), ["demote:SECONDS"]),
    (("--retention", "timeout:long"), ["timeout", "long"]),
    (("--retention", "demote:10:tape"), ["tape", "dram"]),
    (("--retention", "lunch=keep"), ["lunch", "think"]),
    (("--retention", "keep", "--serve", "retention=drop"), ["retention", "twice"]),
    (("--concurrency", "0"), ["concurrency", "0"]),
    (("--concurrency", "some"), ["concurrency", "some"]),
    (("--replicas", "3"), ["replicas", "3", "devices"]),
    (("--replicas", "all"), ["replicas", "all", "auto"]),
    (("--router", "round-robi"), ["round-robi", "round-robin"]),
    (("--policy", "lruu"), ["lruu", "lru"]),
    (("--policy", "tape=lru"), ["tape"]),
    (("--set", "tier.hmb.capacity=1GB"), ["hmb", "hbm"]),
    (("--set", "tier.hbm.capacity"), ["KEY=VALUE"]),
    (("--tiers", "hbm,tape"), ["tape"]),
    (("--format", "moonkake"), ["moonkake", "mooncake"]),
    (("--first", "0"), ["first"]),
    (("--last", "x"), ["last", "x"]),
    (("--rate-scale", "nan"), ["rate-scale", "nan"]),
    (("--block-tokens", "0"), ["block-tokens"]),
    (("--sessions", "5"), ["sessions", "workload"]),
    (("--seed", "-1"), ["seed"]),
    (("--param", "nonsense"), ["KEY=VALUE"]),
    (("--requests",), ["--requests", "--json"]),
    (("--save", "r.txt"), [".txt", ".npz"]),
    (("--report", "r.txt"), ["--report", "r.txt", ".html"]),
    (("--perfetto", "r.npz"), ["--perfetto", "r.npz", ".json.gz"]),
    (("--save", "r.json", "--perfetto", "./r.json"), ["--perfetto", "--output"]),
    (("--speed", "high"), ["speed"]),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_options(
    here: _Here, trace: Path, options: tuple[str, ...], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here.home)
    here.refuses(2, words, "run", trace, *MACHINE, *options)


COMMANDS = [
    ((), ["trace"]),
    (("chatt", *MACHINE), ["chatt", "chat"]),
    (("nosuch.jsonl", *MACHINE), ["nosuch.jsonl", "no such file"]),
    (("chat", "nosuch.jsonl", *MACHINE), ["nosuch.jsonl"]),
    (("chat", "--model", "llama-3.1-8b"), ["machine"]),
    (("chat", "--machine", "h100x8"), ["model"]),
    (("chat", "--machine", "h100x9", "--model", "llama-3.1-8b"), ["h100x9", "h100x8"]),
    (("chat", "--machine", "h100x8", "--model", "lama-3.1-8b"), ["lama-3.1-8b", "llama-3.1-8b"]),
    (("chat", *MACHINE, "--format", "mooncake"), ["chat", "workload"]),
    (("chat", *MACHINE, "--param", "sesions=5"), ["sesions", "sessions"]),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_commands(here: _Here, command: tuple[str, ...], words: list[str]) -> None:
    here.refuses(2, words, "run", *command)


def test_steps_are_replayed_not_run(here: _Here) -> None:
    path = here.home / "steps.npz"
    trace = kvsim.generate("chat", sessions=2)
    kvsim.write_trace(trace.accesses(kvsim.Model.load("llama-3.1-8b")).whole(), path)
    here.refuses(2, ["steps.npz", "found steps", "expected requests", "kvsim replay"], "run", path, *MACHINE)


def test_weights_larger_than_the_machine(here: _Here, trace: Path) -> None:
    words = ("--tiers", 1, "--set", "tier.hbm.capacity=1GB")
    here.refuses(1, ["weights", "exceed every tier", "hbm"], "run", trace, *MACHINE, *words)


@pytest.mark.parametrize("option", ["--save", "--report", "--perfetto"])
def test_places_are_refused_before_the_run(
    here: _Here, trace: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the run started")

    monkeypatch.setattr(import_module("kvsim.run"), "run", never)
    monkeypatch.chdir(here.home)
    name = {"--save": "r.json", "--report": "r.html", "--perfetto": "r.json.gz"}[option]
    (here.home / name).mkdir()
    here.refuses(1, [name, "directory"], "run", trace, *MACHINE, option, name)
    here.refuses(1, ["no/such", "does not exist"], "run", trace, *MACHINE, option, f"no/such/{name}")


# ---- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["run_page", "perfetto"])
def test_interrupted_while_writing(here: _Here, trace: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = import_module(f"kvsim.reports.{module}")

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(written, "page" if module == "run_page" else "_stream", stop)
    option, name = ("--report", "r.html") if module == "run_page" else ("--perfetto", "r.json.gz")
    here.refuses(130, ["interrupted"], "run", trace, *MACHINE, option, here.home / name)


# says when the engine's loop has begun, then runs the command
LOOP = """
import sys
import kvsim_core
from kvsim.cli import main
from kvsim.retention import RULES

class Engine(kvsim_core.Engine):
    def run(self, budget):
        print("in the loop", file=sys.stderr, flush=True)
        return super().run(budget)

kvsim_core.Engine = Engine
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_interrupted_in_the_middle(tmp_path: Path) -> None:
    words = ["run", "coding-agent", "--sessions", "3000", *MACHINE, "--save", str(tmp_path / "r.npz")]
    words += ["--report", str(tmp_path / "r.html"), "--perfetto", str(tmp_path / "r.json.gz")]
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    ) as running:
        try:
            assert running.stderr is not None
            assert running.stderr.readline() == "in the loop\n"
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, err
    assert err.replace("in the loop\n", "") == "kvsim: interrupted\n"
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_progress_is_for_terminals(trace: Path) -> None:
    import pty

    words = [sys.executable, "-m", "kvsim", "run", str(trace), *MACHINE, "--json"]
    quiet = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert quiet.stderr == ""
    control, terminal = pty.openpty()
    try:
        shown = subprocess.run(words, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=60, check=True)
        os.close(terminal)
        assert b"running" in os.read(control, 65536)
    finally:
        os.close(control)
    assert shown.stdout == quiet.stdout
