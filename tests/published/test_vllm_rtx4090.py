"""A measured vLLM run on an RTX 4090 is met from the card's preset: latencies, queue, batch and KV second by second.

300 requests, 10 a second, Llama-3.1-8B in bf16: the card holds some 35 of them, so the queue grows to 230 and drains.
What is given is the engine's own configuration (meta.json) and the preset; nothing is fitted to this run.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvsim

Floats = NDArray[np.float64]

RUN = "data/vllm_rtx4090_llama_3_1_8b"
BLOCK, BLOCKS = 16, 2588
ENGINE = {"max_seqs": 256, "max_tokens": 2048, "kv_block_tokens": BLOCK, "kv_blocks": BLOCKS}
TICK_S = 0.1  # the first tick of the time series is 0.9 s after the first arrival: where requests in the engine agree
QUEUED, PREFILL, RECOMPUTE, DECODE, PREEMPTED = 0, 2, 3, 4, 5
METRICS = ("ttft", "tpot", "e2e")


class Measured:
    """The run as it was logged: one entry a request, in the order of arrival, and one row a second."""

    def __init__(self, folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
        self.arrival, self.queued, self.began, self.first, self.last = (
            np.array([row[key] for row in rows], np.float64)
            for key in ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
        )
        self.inputs, self.outputs = (
            np.array([row[key] for row in rows], np.int64) for key in ("input_toks", "output_toks")
        )
        with (folder / "timeseries.csv").open() as lines:
            ticks = list(csv.DictReader(lines))
        self.tick, self.prompt_tokens, self.output_tokens, *curves = (
            np.array([float(row[key]) for row in ticks])
            for key in ("t", "prompt_throughput", "gen_throughput", "running", "waiting", "kv_cache_pct")
        )
        self.curves = np.stack(curves, axis=1)

    def scheduled(self) -> Floats:
        """Return when requests first joined the batch, from the first arrival on, in order."""
        return np.asarray(np.sort(self.began) - self.queued[0], np.float64)

    def trace(self) -> kvsim.RequestTrace:
        """Return what was offered.

        A request comes when the client sent it. The engine looks for new ones between its steps, so `queued_ts` lags
        `arrival_time` by up to a step (15 ms p50, 0.2 s at most): it is an outcome. Each prompt has blocks of its own:
        the engine caches prefixes, and what is left of a preempted prompt is found again.
        """
        count = -(-self.inputs // BLOCK)
        offsets = np.concatenate([[0], np.cumsum(count)])
        return kvsim.RequestTrace.from_lists(
            name="vllm-rtx4090",
            arrival_s=self.arrival - self.arrival[0],
            input_tokens=self.inputs,
            output_tokens=self.outputs,
            block_tokens=BLOCK,
            block_ids=(np.arange(offsets[-1]), offsets),
        )

    def latencies(self) -> dict[str, Floats]:
        """Return TTFT, TPOT and E2E as the run's authors count them, from `queued_ts`."""
        return {
            "ttft": self.first - self.queued,
            "tpot": (self.last - self.first) / (self.outputs - 1),
            "e2e": self.last - self.queued,
        }


@pytest.fixture(scope="module")
def measured(shared: Path) -> Measured:
    if not (shared / RUN / "requests.jsonl").exists():
        pytest.skip(f"the measured vLLM run is not at {shared / RUN}")
    return Measured(shared / RUN)


@pytest.fixture(scope="module")
def predicted(measured: Measured) -> kvsim.RunResult:
    card = kvsim.Machine.load("rtx4090")
    # the engine kept no KV below the card
    alone = card.with_(tiers=card.tiers[:1], links=(), movements=())
    return kvsim.run(measured.trace(), model="llama-3.1-8b", machine=alone, serving=ENGINE, record=True, check=True)


def seconds(result: kvsim.RunResult, key: str) -> Floats:
    return np.asarray(result.arrays[key], np.float64) / 1e12


def latencies(result: kvsim.RunResult) -> dict[str, Floats]:
    ready, first, done = (seconds(result, f"{key}_ps") for key in ("ready", "first_token", "done"))
    tokens = np.asarray(result.arrays["output_tokens"])
    return {"ttft": first - ready, "tpot": (done - first) / (tokens - 1), "e2e": done - ready}


def statistics(values: Floats) -> Floats:
    return np.array([values.mean(), *np.percentile(values, (50, 99))])


def curves(result: kvsim.RunResult, ticks: Floats) -> Floats:
    """Return requests running, requests waiting, and percent of KV blocks in use at each tick.

    Blocks that only wait to be found again do not count as used, as in the engine's own figure. Tokens of a request
    come evenly over its time of decoding, which is within a block or two of where they are.
    """
    row, state = (np.asarray(result.arrays[f"log/phase_{key}"]) for key in ("request", "state"))
    begin, end = (seconds(result, f"log/phase_{key}_ps") for key in ("start", "end"))
    inputs, outputs = (np.asarray(result.arrays[key]) for key in ("input_tokens", "output_tokens"))
    order = np.lexsort((begin, row))
    row, state, begin, end = row[order], state[order], begin[order], end[order]
    spent = np.where(state == DECODE, end - begin, 0.0)
    whole = np.bincount(row, spent, len(inputs))
    before = np.cumsum(spent) - spent - (np.cumsum(whole) - whole)[row]
    out = []
    for t in ticks:
        now = (begin <= t) & (t < end)
        runs = now & np.isin(state, (PREFILL, RECOMPUTE, DECODE))
        waits = now & np.isin(state, (QUEUED, PREEMPTED))
        decoded = before[runs] + np.where(state[runs] == DECODE, t - begin[runs], 0.0)
        live = row[runs]
        tokens = inputs[live] + decoded / np.maximum(whole[live], 1e-12) * (outputs[live] - 1)
        out.append((runs.sum(), waits.sum(), 100.0 * np.ceil(tokens / BLOCK).sum() / BLOCKS))
    return np.array(out, np.float64)


def decode_step_s(tokens: Floats, running: Floats, chosen: Any) -> float:
    """Return the mean step of some seconds in which nothing was prefilled: every running request gains a token."""
    between = 0.5 * (running + np.concatenate([running[:1], running[:-1]]))
    return float(between[chosen].sum() / tokens[chosen].sum())


def test_the_whole_run_is_served_and_every_identity_holds(predicted: kvsim.RunResult, measured: Measured) -> None:
    predicted.check()
    assert (np.asarray(predicted.arrays["output_tokens"]) == measured.outputs).all()
    assert predicted.makespan_s == pytest.approx(measured.last.max() - measured.queued.min(), rel=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_latencies_are_within_a_tenth(predicted: kvsim.RunResult, measured: Measured, metric: str) -> None:
    found, expected = statistics(latencies(predicted)[metric]), statistics(measured.latencies()[metric])
    assert found == pytest.approx(expected, rel=0.10), f"mean, p50, p99: {found / expected - 1.0}"


def test_batch_queue_and_memory_follow_the_run(predicted: kvsim.RunResult, measured: Measured) -> None:
    found = curves(predicted, measured.tick - TICK_S)
    off = np.sqrt(((found - measured.curves) ** 2).mean(axis=0))
    # of some 31 running, 230 waiting at most, and 96 %
    assert (off <= (6.0, 12.0, 12.0)).all(), f"RMS of running, waiting, KV %: {off}"
    together = [np.corrcoef(found[:, i], measured.curves[:, i])[0, 1] for i in range(3)]
    assert min(together) > 0.85, together
    # 2,588 blocks and no watermark: both fill the memory to the last block or two
    assert found[:, 2].max() > 99.0
    assert measured.curves[:, 2].max() > 99.0


def test_a_step_takes_as_long(predicted: kvsim.RunResult, measured: Measured) -> None:
    start, end = seconds(predicted, "log/step_start_ps"), seconds(predicted, "log/step_end_ps")
    count, prefill, decode = (np.asarray(predicted.arrays[f"log/step_{key}"]) for key in ("count", "prefill", "decode"))
    # the first wave fills chunk after chunk; first tokens are logged as their step ends
    ends = np.unique(measured.first.round(3))
    wave = np.diff(ends[(ends > ends[0] + 2.0) & (ends < ends[0] + 3.5)])
    step = (end - start)[(prefill + decode == ENGINE["max_tokens"]) & (end < 5.0)]
    assert np.median(step) == pytest.approx(np.median(wave), rel=0.12)
    # then ten seconds of decoding alone, with the memory full
    only = (measured.tick >= 6.0) & (measured.tick <= 16.0)
    assert not measured.prompt_tokens[only].any()
    plateau = decode_step_s(measured.output_tokens, measured.curves[:, 0], only)
    calm = (prefill == 0) & (start > 6.0) & (end < 16.0)
    assert (end - start)[calm].sum() / count[calm].sum() == pytest.approx(plateau, rel=0.10)


def test_requests_are_sent_back_to_the_queue_as_often(predicted: kvsim.RunResult, measured: Measured) -> None:
    """Of those waiting the ones that have run before are not logged, but all that have not are: the rest."""
    at = measured.tick - TICK_S
    ready, admitted = (np.sort(seconds(predicted, f"{key}_ps")) for key in ("ready", "admitted"))
    rises = []
    for waiting, came, began in (
        (curves(predicted, at)[:, 1], ready, admitted),
        (measured.curves[:, 1], np.sort(measured.queued) - measured.queued[0], measured.scheduled()),
    ):
        never = np.searchsorted(came, at, "right") - np.searchsorted(began, at, "right")
        rises.append(int(np.clip(np.diff(waiting - never), 0.0, None).sum()))
    assert rises[0] == pytest.approx(rises[1], rel=0.5), rises
