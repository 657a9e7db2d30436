"""Bad input through the command line: the right exit code, one line that names what is wrong, nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import kvsim
from kvsim.cli import main

ROW = {"timestamp": 0, "input_length": 1024, "output_length": 4, "hash_ids": [1, 2]}
REPLAY = ("--machine", "h100x8", "--model", "llama-3.1-8b")


def _jsonl(**changes: object) -> bytes:
    good = json.dumps(ROW)
    bad = json.dumps({k: v for k, v in (ROW | changes).items() if v is not ...})
    return f"{good}\n{bad}\n{good}\n".encode()


# what is in the file, what its name is, and words that the message must hold (line 2 is the bad one)
TRACES = {
    "empty": (b"", "t.jsonl", ["t.jsonl"]),
    "blank": (b"\n \n\n", "t.jsonl", ["t.jsonl"]),
    "truncated line": (_jsonl()[:-40], "t.jsonl", ["t.jsonl", "3"]),
    "no object": (json.dumps(ROW).encode() + b"\n[1, 2]\n", "t.jsonl", ["t.jsonl", "2"]),
    "binary": (bytes(range(256)) * 9, "t.jsonl", ["t.jsonl"]),
    "text": (b"once upon a time\nthere was a cache\n", "t.txt", ["t.txt"]),
    "no length": (_jsonl(input_length=...), "t.jsonl", ["t.jsonl", "2", "input_length"]),
    "length is text": (_jsonl(input_length="long"), "t.jsonl", ["t.jsonl", "2", "input_length"]),
    "length is a list": (_jsonl(input_length=[1]), "t.jsonl", ["t.jsonl", "2", "input_length"]),
    "negative length": (_jsonl(input_length=-5), "t.jsonl", ["t.jsonl", "2", "-5"]),
    "negative output": (_jsonl(output_length=-5), "t.jsonl", ["t.jsonl", "2", "-5"]),
    "enormous length": (_jsonl(input_length=10**30), "t.jsonl", ["t.jsonl", "2"]),
    "enormous time": (_jsonl(timestamp=10**40), "t.jsonl", ["t.jsonl", "2"]),
    "negative time": (_jsonl(timestamp=-1), "t.jsonl", ["t.jsonl", "2", "-1"]),
    "NaN": (_jsonl(timestamp=float("nan")), "t.jsonl", ["t.jsonl", "2"]),
    "infinite": (_jsonl(timestamp=float("inf")), "t.jsonl", ["t.jsonl", "2"]),
    "ids are a number": (_jsonl(hash_ids=7), "t.jsonl", ["t.jsonl", "2", "hash_ids"]),
    "ids are objects": (_jsonl(hash_ids=[{}]), "t.jsonl", ["t.jsonl", "2", "hash_ids"]),
    "torn gzip": (gzip.compress(_jsonl() * 99)[:60], "t.jsonl.gz", ["t.jsonl.gz"]),
    "torn zstd": (b"\x28\xb5\x2f\xfd and so on", "t.jsonl.zst", ["t.jsonl.zst"]),
    "torn npz": (b"PK\x03\x04 and so on", "t.npz", ["t.npz"]),
    "torn session": (b'{"id": "x", "requests": [{', "t.json", ["t.json"]),
    "csv without columns": (b"TIMESTAMP,Nothing\n2023-11-16 18:15:46,1\n", "t.csv", ["t.csv"]),
    "csv with words": (
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.0,many,1\n",
        "t.csv",
        ["t.csv", "2"],
    ),
}


class _Here:
    """The folder of one case, and what the command said there."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.capsys = capsys

    def refuses(self, code: int, words: list[str], *command: object, output: str | None = "out.json") -> str:
        before = sorted(p.name for p in self.home.iterdir())
        asked = [str(w) for w in command]
        if output is not None:
            asked += ["-o", str(self.home / output)]
        found = main(asked)
        said = self.capsys.readouterr()
        assert said.err.startswith("kvsim: "), said.err
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        assert "fault of kvsim" not in said.err
        for word in words:
            assert word.lower() in said.err.lower(), (word, said.err)
        assert found == code, said.err
        assert said.out == ""
        assert sorted(p.name for p in self.home.iterdir()) == before
        return said.err


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> _Here:
    return _Here(tmp_path, capsys)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_bytes(_jsonl())
    return path


@pytest.mark.parametrize("case", TRACES)
def test_traces(here: _Here, case: str) -> None:
    content, name, words = TRACES[case]
    path = here.home / name
    path.write_bytes(content)
    here.refuses(1, words, "curve", path)
    here.refuses(1, words, "replay", path, *REPLAY)
    here.refuses(1, words, "convert", path, here.home / "out.npz", output=None)


def test_blocks_that_do_not_divide(here: _Here, good: Path) -> None:
    here.refuses(1, ["block_tokens", "100", "512"], "curve", good, "--block-tokens", 100)


def test_formats_that_cannot_be_written(here: _Here, good: Path) -> None:
    here.refuses(2, [".xyz"], "convert", good, here.home / "out.xyz", output=None)
    here.refuses(2, ["moonkake"], "convert", good, here.home / "out.npz", "--to", "moonkake", output=None)
    here.refuses(2, ["claude", "read"], "convert", good, here.home / "out.json", "--to", "claude-code", output=None)


def test_an_empty_folder(here: _Here) -> None:
    (here.home / "sessions").mkdir()
    here.refuses(1, ["sessions"], "curve", here.home / "sessions")


def _saved_with(path: Path, **columns: object) -> None:
    with np.load(path) as members:
        kept = {name: members[name] for name in members.files}
    for name, values in columns.items():
        key = next(k for k in kept if k.rpartition("/")[2].rpartition(".")[2] == name)
        kept[key] = np.asarray(values, dtype=kept[key].dtype)
    np.savez(path, **kept)


@pytest.mark.parametrize(
    ("offsets", "after", "words"),
    [
        ([0, 1, 2, 2], [1, 0], ["cyc"]),
        ([0, 1, 1, 1], [0], ["cyc"]),
        ([0, 0, 1, 1], [77], ["77"]),
        ([0, 0, 1, 1], [-1], ["-1"]),
        ([0, 3, 1, 1], [0], ["after_offsets"]),
    ],
)
def test_dependencies(here: _Here, good: Path, offsets: list[int], after: list[int], words: list[str]) -> None:
    path = here.home / "t.npz"
    kvsim.write_trace(kvsim.read_trace(good), path)
    _saved_with(path, after_offsets=offsets, after=after)
    here.refuses(1, words, "replay", path, *REPLAY)
    here.refuses(1, words, "curve", path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.jsonl", ["nosuch.jsonl", "no such file"]),
        ("chatt", ["chatt", "chat"]),
        ("some/where", ["some/where"]),
        ("", [""]),
    ],
)
def test_missing_traces(here: _Here, name: str, words: list[str]) -> None:
    here.refuses(2, words, "curve", name)
    here.refuses(2, words, "replay", name, *REPLAY)


MACHINES = {
    "no tier": ('name = "m"\n[pool.gpu]\ndevices = 1\npeak_flops_per_s = { bf16 = "1 PFLOP/s" }\n', ["tier"]),
    "zero bandwidth": ('base = "h100x8"\n[tier.hbm]\nread_bytes_per_s = 0\n', ["read_bytes_per_s", "0"]),
    "negative capacity": ('base = "h100x8"\n[tier.hbm]\ncapacity_bytes = "-1 GB"\n', ["capacity_bytes", "-1 GB"]),
    "NaN latency": ('base = "h100x8"\n[tier.hbm]\nlatency_s = nan\n', ["latency_s", "nan"]),
    "enormous capacity": ('base = "h100x8"\n[tier.hbm]\ncapacity_bytes = 1e300\n', ["capacity_bytes"]),
    "unknown key": ('base = "h100x8"\n[tier.hbm]\ncapcity_bytes = "1 GB"\n', ["capcity_bytes", "did you mean"]),
    "wrong unit": ('base = "h100x8"\n[tier.hbm]\ncapacity_bytes = "80 GHz"\n', ["capacity_bytes", "80 GHz"]),
    "wrong type": ('base = "h100x8"\n[tier.hbm]\ncapacity_bytes = [1]\n', ["capacity_bytes"]),
    "unknown policy": ('base = "h100x8"\n[tier.hbm]\npolicy = "lruu"\n', ["lruu"]),
    "unknown base": ('base = "h100x9"\n', ["h100x9", "h100x8"]),
    "itself as base": ('base = "m.toml"\n', ["base"]),
    "no TOML": ("[tier.hbm\n", ["m.toml"]),
    "contradiction": (
        'base = "h100x8"\n[movement."hbm/dram"]\ninclusion = "exclusive"\neviction = "write_through"\n',
        ["write_through"],
    ),
    "not neighbours": ('base = "h100x8"\n[movement."hbm/ssd"]\npromote = "never"\n', ["hbm/ssd"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MACHINES)
def test_machines(here: _Here, good: Path, case: str) -> None:
    text, words = MACHINES[case]
    path = here.home / "m.toml"
    path.write_text(text)
    here.refuses(2, words, "replay", good, "--machine", path, "--model", "llama-3.1-8b")


def test_weights_larger_than_every_tier(here: _Here, good: Path) -> None:
    words = ("--tiers", 1, "--set", "tier.hbm.capacity=1GB")
    here.refuses(1, ["weights", "exceed every tier", "hbm"], "replay", good, *REPLAY, *words)
    here.refuses(1, ["exceed every tier"], "fits", "llama-3.1-405b", "h100x8", *words, output=None)


MODELS = {
    "no JSON": ("{", ["config.json"]),
    "no shape": ("{}", ["config.json"]),
    "a list": ("[]", ["config.json"]),
    "negative": (
        '{"model_type": "llama", "hidden_size": -8, "num_hidden_layers": 2, "num_attention_heads": 2}',
        ["-8"],
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(here: _Here, good: Path, case: str) -> None:
    text, words = MODELS[case]
    path = here.home / "config.json"
    path.write_text(text)
    here.refuses(2, words, "replay", good, "--machine", "h100x8", "--model", path)


# options of `curve good.jsonl`, the words of the message
CURVES = [
    (("--policy", "lruu"), ["lruu", "lru"]),
    (("--policy", "lru,,fifo"), ["policy"]),
    (("--hit-rule", "none"), ["hit-rule", "none"]),
    (("--weight", "kilo"), ["weight", "kilo"]),
    (("--capacity-blocks", "ten"), ["capacity-blocks", "ten"]),
    (("--capacity-blocks", "-1"), ["capacity-blocks", "-1"]),
    (("--capacity-blocks", "1.5"), ["capacity-blocks", "1.5"]),
    (("--capacity-blocks", "1e99"), ["capacity-blocks", "1e99"]),
    (("--capacity-blocks", "nan"), ["capacity-blocks"]),
    (("--capacity-blocks", ""), ["capacity-blocks"]),
    (("--capacity-blocks", "1", "--capacity-tokens", "1"), ["capacity-blocks", "capacity-tokens"]),
    (("--capacity-bytes", "1GB"), ["model"]),
    (("--capacity-bytes", "1 GHz"), ["GHz"]),
    (("--measure-last", "0"), ["measure-last"]),
    (("--measure-last", "1.5"), ["measure-last"]),
    (("--measure-last", "nan"), ["measure-last", "nan"]),
    (("--half-block",), ["half_block", "prefix"]),
    (("--first", "0"), ["first"]),
    (("--first", "x"), ["first", "x"]),
    (("--param", "no_such_option=1"), ["no_such_option"]),
    (("--param", "nonsense"), ["nonsense", "KEY=VALUE"]),
    (("--rate-scale", "0"), ["rate-scale"]),
    (("--rate-scale", "nan"), ["rate-scale", "nan"]),
    (("--rate-scale", "inf"), ["rate-scale", "inf"]),
    (("--format", "moonkake"), ["moonkake", "mooncake"]),
    (("--sessions", "5"), ["sessions"]),
    (("--seed", "-1"), ["seed"]),
    (("--colour", "red"), ["colour"]),
    (("--model", "llama-9"), ["llama-9"]),
    (("more", "words"), ["more"]),
]


@pytest.mark.parametrize(("options", "words"), CURVES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_curve_options(here: _Here, good: Path, options: tuple[str, ...], words: list[str]) -> None:
    here.refuses(2, words, "curve", good, *options)


REPLAYS = [
    (("--machine", "h100x9", "--model", "llama-3.1-8b"), ["h100x9", "h100x8"]),
    (("--machine", "nosuch.toml", "--model", "llama-3.1-8b"), ["nosuch.toml"]),
    (("--model", "llama-3.1-8b"), ["machine"]),
    (("--machine", "h100x8"), ["model"]),
    (("--machine", "h100x8", "--model", "lama"), ["lama"]),
    ((*REPLAY, "--set", "tier.hbm.capcity=1GB"), ["capcity", "did you mean"]),
    ((*REPLAY, "--set", "tier.hmb.capacity=1GB"), ["hmb", "hbm"]),
    ((*REPLAY, "--set", "tier.hbm.capacity=lots"), ["lots"]),
    ((*REPLAY, "--set", "tier.hbm.capacity"), ["tier.hbm.capacity", "KEY=VALUE"]),
    ((*REPLAY, "--set", "tier.hbm.read=0"), ["0"]),
    ((*REPLAY, "--tiers", "0"), ["tiers", "0"]),
    ((*REPLAY, "--tiers", "9"), ["tiers", "9"]),
    ((*REPLAY, "--tiers", "hbm,tape"), ["tape"]),
    ((*REPLAY, "--tiers", ","), ["tiers"]),
    ((*REPLAY, "--lanes", "0"), ["lanes"]),
    ((*REPLAY, "--lanes", "1e9"), ["lanes"]),
    ((*REPLAY, "--usable", "all"), ["usable", "all"]),
    ((*REPLAY, "--policy", "lru,fifo"), ["policy"]),
    ((*REPLAY, "--policy", "tape=lru"), ["tape"]),
    ((*REPLAY, "--policy", "hbm=lruu"), ["lruu"]),
]


@pytest.mark.parametrize(("options", "words"), REPLAYS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_replay_options(here: _Here, good: Path, options: tuple[str, ...], words: list[str]) -> None:
    here.refuses(2, words, "replay", good, *options)


OTHERS = [
    (("generate", "chatt"), ["chatt", "chat"]),
    (("generate", "chat", "--sessions", "0"), ["sessions"]),
    (("generate", "chat", "--param", "sesions=5"), ["sesions", "sessions"]),
    (("generate", "chat", "--param", "sessions=many"), ["sessions", "many"]),
    (("generate", "chat", "--param", "continue_share=nan"), ["continue_share"]),
    (("generate", "chat", "--param", "sessions=-3"), ["sessions", "-3"]),
    (("generate", "chat", "--seed", "x"), ["seed"]),
    (("compare", "--workload", "chatt", "--scale", "0.01"), ["chatt", "chat"]),
    (("compare", "--machine", "h100x8,tpu"), ["tpu"]),
    (("compare", "--scale", "-1"), ["scale"]),
    (("compare", "--model", "none"), ["none"]),
    (("compare", "--weights-dtype", "fp7"), ["fp7"]),
    (("compare", "--policy", "best"), ["best"]),
]


@pytest.mark.parametrize(("command", "words"), OTHERS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_other_commands(here: _Here, command: tuple[str, ...], words: list[str]) -> None:
    here.refuses(2, words, *command)


WORDS = [
    (("fits", "llama-3.1-70b"), ["machine"]),
    (("fits", "llama-3.1-70b", "h100x8", "--context", "0"), ["context"]),
    (("fits", "h100x8", "llama-3.1-70b"), ["h100x8"]),
    (("list", "machine"), ["machine", "machines"]),
    (("show", "h100"), ["h100", "h100x8"]),
    (("show", "nosuch.toml"), ["nosuch.toml"]),
    (("replai",), ["replai", "replay"]),
    (("--versions",), ["versions"]),
]


@pytest.mark.parametrize(("command", "words"), WORDS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_words(here: _Here, command: tuple[str, ...], words: list[str]) -> None:
    here.refuses(2, words, *command, output=None)


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("no/such/folder/r.json", 1, ["does not exist"]),
        ("folder.json", 1, ["directory"]),
        ("r.txt", 2, [".txt", ".npz"]),
        ("", 2, [".npz"]),
    ],
)
def test_outputs_are_refused_before_the_run(
    here: _Here, good: Path, output: str, code: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here.home / "folder.json").mkdir()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the run started")

    monkeypatch.setattr(import_module("kvsim.curve"), "curve", never)
    monkeypatch.setattr(import_module("kvsim.replay"), "replay", never)
    monkeypatch.setattr(import_module("kvsim.compare"), "compare", never)
    monkeypatch.chdir(here.home)
    for command in (("curve", good), ("replay", good, *REPLAY), ("compare",)):
        here.refuses(code, words, *command, "-o", output, output=None)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that nobody can write to")
def test_a_place_that_nobody_can_write(here: _Here, good: Path) -> None:
    here.refuses(1, ["/proc/r.json", "cannot be written"], "curve", good, "-o", "/proc/r.json", output=None)
    here.refuses(1, ["/proc/t.npz"], "generate", "chat", "--sessions", 2, "-o", "/proc/t.npz", output=None)


def test_out_of_memory(here: _Here, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(import_module("kvsim.replay"), "replay", full)
    here.refuses(1, ["out of memory"], "replay", good, *REPLAY)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("command", [("compare", "--scale", "20"), ("generate", "chat", "--sessions", "2000000")])
def test_interrupted_in_the_middle(tmp_path: Path, command: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kvsim", *command, "-o", str(tmp_path / "out.npz")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    ) as running:
        try:
            time.sleep(4.0)
            assert running.poll() is None, running.communicate()
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 1, err
    assert err == "kvsim: interrupted\n"
    assert out == ""
    assert list(tmp_path.iterdir()) == []
