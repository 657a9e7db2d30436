"""Run every benchmark, print one table, and write it with the machine that it ran on to bench/results/."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import curve_peer
import engine
import parse
import policies
import replay
from _measure import machine, table

QUESTIONS = {"parse": parse, "curve": curve_peer, "replay": replay, "run": engine, "policies": policies}


def main() -> None:
    """Run what was asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="all by default")
    parser.add_argument("--repeats", type=int, default=5, help="runs behind each median")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("results"), help="a folder")
    words = parser.parse_args()
    where = machine()
    figures = []
    for name in words.questions or QUESTIONS:
        found = QUESTIONS[name].measure(words.repeats)
        print(f"{name}\n{table(found)}\n", flush=True)
        figures += found
    words.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*(f"{k}: {v}" for k, v in where.items()), "", table(figures), ""])
    (words.output / "latest.txt").write_text(text)
    (words.output / "latest.json").write_text(
        json.dumps({"machine": where, "figures": [asdict(f) for f in figures]}, indent=1) + "\n"
    )
    print(f"written: {words.output / 'latest.txt'}, {words.output / 'latest.json'}")


if __name__ == "__main__":
    main()
