"""The specification of the closed loop behind the core's interface: the same spec in, the same answer out.

`engine` stands in for `kvsim.run._engine`: it turns the core's columns into lists, lets `kvsim.reference.Engine` run,
and lays its books out as the core's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from kvsim import reference
from kvsim.reference.engine import (
    DECODING,
    FROM_TIER,
    PREEMPTED,
    PREFILLING,
    QUEUED,
    RECOMPUTING,
    STALL,
    TRANSFER,
)  # fmt: skip

LISTS = ("after", "data", "state_write", "state_output")
BIN_PS, BINS_MOST = 10**12, 4096
PARTS = 9
_COUNTS = ("inserted", "evicted", "demoted_out", "promoted_in", "refused", "freed")
_FLOWS = {
    "read": "read_bytes", "write": "write_bytes", "back_read": "writeback_read_bytes",
    "back_write": "writeback_write_bytes",
}  # fmt: skip


def specified(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec of columns as the specification takes it: plain lists."""
    requests: dict[str, Any] = {}
    for name, column in spec["requests"].items():
        if name in LISTS:
            offsets, values = (part.tolist() for part in column)
            requests[name] = [values[a:b] for a, b in pairwise(offsets)]
        else:
            requests[name] = column.tolist()
    blocks = {name: column.tolist() for name, column in spec["blocks"].items()}
    kinds = [{**kind, "expert_bytes": kind["expert_bytes"].tolist()} for kind in spec["kinds"]]
    return {**spec, "requests": requests, "blocks": blocks, "kinds": kinds}


class Sampled(reference.Engine):
    """An engine that remembers what was there between its moments."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.samples: list[tuple[int, list[int]]] = []

    def sync(self, now: int) -> None:
        """Note what held until now."""
        if not self.samples or self.samples[-1][0] < now:
            self.samples.append((now, self.held()))
        super().sync(now)

    def held(self) -> list[int]:
        """Requests running, waiting and loading, and the bytes in use by tier."""
        running = sum(len(w.prefill) + len(w.batch) for w in self.workers)
        waiting = sum(len(w.waiting) for w in self.workers)
        return [running, waiting, sum(len(w.loading) for w in self.workers), *self.used()]

    def used(self) -> list[int]:
        """Bytes in use by tier: blocks, data and private KV."""
        out = [0] * self.T
        for w in self.workers:
            for t, m in enumerate(w.ladder):
                store = w.store
                out[m] += store.tiers[t]["capacity_bytes"] - store.capacity(t) + store.used(t)
        return out


def engine(lowered: Any, *, record: bool = False, check: bool = False, progress: Any = None) -> dict[str, Any]:
    """Run the specification; takes and gives what `kvsim.run._engine` does. Logs stay empty."""
    spec = specified(lowered.spec)
    names = [[choice.name.removeprefix("leaf-") for choice in own] for own in lowered.policies]
    made = iter(names)
    found = Sampled(spec, lambda kind: [reference.POLICIES[name]() for name in next(made)])
    found.run()
    return answer(found)


def answer(e: Sampled) -> dict[str, Any]:
    """Return the books of a specification that has run, as the core hands them out."""
    n = e.n
    states = np.array(e.states, np.int64).reshape(n, FROM_TIER + e.T)
    column = {name: np.array(values, np.int64) for name, values in e.column.items()}
    out: dict[str, Any] = {
        "status": column["status"], "ready_ps": e.ready, "admitted_ps": e.admitted, "first_token_ps": e.first_token,
        "done_ps": e.done, "queued_ps": states[:, QUEUED], "loading_ps": states[:, FROM_TIER:],
        "transfer_ps": states[:, TRANSFER], "prefill_ps": states[:, PREFILLING],
        "recompute_ps": states[:, RECOMPUTING], "decode_ps": states[:, DECODING],
        "preempted_ps": states[:, PREEMPTED], "think_ps": column["think"], "tool_ps": column["tool"],
        "tool_wait_ps": column["tool_wait"], "unit": column["unit"], "decode_unit": column["decode_unit"],
        "hit_tokens": column["hit"], "loaded_tokens": np.array(e.loaded, np.int64).reshape(n, e.T),
        "computed_tokens": column["computed"], "recomputed_tokens": column["recomputed"],
        "preemptions": column["preemptions"], "output_tokens": e.emitted, "makespan_ps": e.makespan,
        "parts_ps": e.parts, "unit_pool": e.unit_pool, "stall_ps": e.stall, "steps": e.steps, "unit_tokens": e.passed,
        "peak_blocks": 0, "events": 0, "transfer_bytes": e.transferred,
        "transfer_busy_ps": e.transfer.busy[1] if e.transfer is not None else 0,
        **{k: v for k, v in e.counters.items() if k != "preemptions"},
        **_memory(e), **_bins(e),
    }  # fmt: skip
    out["unit_replica"] = [e.unit_pool[:u].count(pool) for u, pool in enumerate(e.unit_pool)]
    for kind, names in (
        ("step", ("start_ps", "end_ps", "unit", "count", "decode", "prefill")),
        ("phase", ("request", "state", "start_ps", "end_ps")),
        ("move", ("start_ps", "end_ps", "channel", "way", "bytes", "request", "replica")),
    ):
        out |= {f"log/{kind}_{name}": [] for name in names}
    return {k: v if isinstance(v, int) else np.array(v, np.int64) for k, v in out.items()}


def _memory(e: reference.Engine) -> dict[str, Any]:
    """Sum what the workers' memories did over the replicas, by the machine's tiers and links."""
    links = int(e.spec.get("links", max((len(w.links) for w in e.workers), default=0)))
    shapes = {
        "lookups": (4, 3), "hits": (e.T, 4, 2, 3), "tier_busy_ps": (e.T, 2), "link_busy_ps": (links, 2),
        **dict.fromkeys((*_COUNTS, *_FLOWS.values()), (e.T, 4)),
        **dict.fromkeys(("evicted_bytes", "used_bytes", "capacity_bytes", "resident_blocks", "private_bytes"), (e.T,)),
        **dict.fromkeys(("link_up_bytes", "link_down_bytes"), (links,)),
    }  # fmt: skip
    out: dict[str, Any] = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    out["unreachable_bytes"] = sum(w.store.unreachable for w in e.workers)
    for w in e.workers:
        store = w.store
        out["lookups"] += store.lookups
        out["read_bytes"][w.kind["ffn_tier"], 1] += w.ffn_read
        for t, m in enumerate(w.ladder):
            out["hits"][m] += store.hits[t]
            for name in _COUNTS:
                out[name][m] += store.counts[name][t]
            for flow, name in _FLOWS.items():
                out[name][m] += store.totals[flow][t]
            out["evicted_bytes"][m] += store.evicted_bytes[t]
            out["capacity_bytes"][m] += store.tiers[t]["capacity_bytes"]
            out["used_bytes"][m] += store.tiers[t]["capacity_bytes"] - store.capacity(t) + store.used(t)
            out["resident_blocks"][m] += len(store.copies[t])
            out["private_bytes"][m] += store.claimed[t]
            out["tier_busy_ps"][m] += w.devices[t].busy
        for i, m in enumerate(w.kind.get("link_index", range(len(w.links)))):
            out["link_up_bytes"][m] += store.link_totals[0][i]
            out["link_down_bytes"][m] += store.link_totals[1][i]
            out["link_busy_ps"][m] += w.links[i].busy
    return out


def _bins(e: Sampled) -> dict[str, Any]:
    """Cut the ledger into bins of a second, or of as many seconds as make the run fit."""
    width = BIN_PS
    while -(-e.makespan // width) > BINS_MOST:
        width *= 2
    count, pools = -(-e.makespan // width), max(e.unit_pool) + 1
    parts = np.zeros((count, pools, PARTS), np.int64)
    stall = np.zeros((count, pools, e.T), np.int64)
    for pool, part, tier, start, ps in e.ledger:
        end = start + ps
        while start < end:
            b = start // width
            piece = min(end, (b + 1) * width) - start
            parts[b, pool, part] += piece
            if part == STALL:
                stall[b, pool, tier] += piece
            start += piece
    tokens = np.zeros((count, 2), np.int64)
    for at, prompt, output in e.emissions if count else []:
        tokens[min(at // width, count - 1)] += (prompt, output)
    ends = [min((b + 1) * width, e.makespan) for b in range(count)]
    held = np.zeros((count, 3 + e.T), np.int64)
    at = 0
    for b, end in enumerate(ends[:-1]):
        while e.samples[at][0] < end:
            at += 1
        held[b] = e.samples[at][1]
    if count:
        held[-1] = e.held()
    return {
        "bin_ps": width, "bins/parts_ps": parts, "bins/stall_ps": stall, "bins/used_bytes": held[:, 3:],
        "bins/running": held[:, 0], "bins/waiting": held[:, 1], "bins/loading": held[:, 2],
        "bins/prompt_tokens": tokens[:, 0], "bins/output_tokens": tokens[:, 1],
    }  # fmt: skip


__all__ = ["Sampled", "answer", "engine", "specified"]
