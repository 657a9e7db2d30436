"""Random small machines, models and traces for the closed loop, as both the core and the specification take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from reference.worlds import TYPES, channels, rates

from kvsim import reference

KV, WEIGHTS, STATE, DATA = range(4)
ALL, PREFILL, DECODE = range(3)
ONE = 1 << 20


@dataclass(frozen=True)
class RunWorld:
    """One case: what `kvsim.reference.Engine` takes, and the policy of each worker's tiers."""

    spec: dict[str, Any]
    policies: list[list[str]]
    seed: int = 7


paces = st.sampled_from([0, 0, 1, 3, 10])
weights = st.sampled_from([0, 0, 5, 9])
real_paces = st.sampled_from([0.0, 0.0, 0.25, 1.5])


@st.composite
def tiers_of(draw: st.DrawFn, t: int, living: int, n_links: int, need: int) -> dict[str, Any]:
    room = [need // 2, need, need, need + 3, need * 5 // 4, need * 3 // 2, need * 2, need * 4]
    room = room if t == 0 else [0, 7, 20, *room, 10_000]
    return {
        **draw(channels()),
        "capacity_bytes": living + draw(st.sampled_from(room)),
        "fragment_bytes": draw(st.sampled_from([0, 4, 7])),
        "path": draw(st.integers(0, 2**n_links - 1)) if t else 0,
        "leaf_only": draw(st.integers(0, 3)) == 0,
        "touch_all": draw(st.integers(0, 3)) == 0,
        "latency_ps": draw(st.sampled_from([0.0, 10.0, 33.3])),
        "overhead_ps": draw(st.sampled_from([0.0, 1.5])),
        "norm": draw(st.sampled_from([1.0, 1.0, 1.6])),
    }


@st.composite
def movements_of(draw: st.DrawFn) -> dict[str, Any]:
    exclusive = draw(st.booleans())
    return {
        "promote_after": draw(st.sampled_from([1, 1, 1, 0, 2, 3])),
        "exclusive": exclusive,
        "eviction": draw(st.sampled_from([0, 0, 2] if exclusive else [0, 0, 1, 2])),
        "kinds": draw(st.sampled_from([15, 15, 13, 1])),
    }


@st.composite
def worker_kinds(
    draw: st.DrawFn, ladder: list[int], living: int, need: int, parted: bool, ffn_tier: int, block_tokens: int, kv: int,
    stateful: bool,
) -> dict[str, Any]:  # fmt: skip
    """Draw one kind of worker; `living` bytes live in the last tier of its ladder, `need` the largest request takes."""
    T, n_links = len(ladder), draw(st.integers(0, 2))
    near = draw(tiers_of(0, 0, 0, need))
    split = draw(st.integers(0, 4))
    return {
        "ladder": ladder,
        "tiers": [draw(tiers_of(t, living if t == T - 1 else 0, n_links, need)) for t in range(T)],
        "links": [draw(channels()) for _ in range(n_links)],
        "movements": [draw(movements_of()) for _ in range(T - 1)],
        "stages": 1 if parted else draw(st.sampled_from([1, 1, 2, 3])),
        "microbatches": draw(st.integers(1, 3)) if parted else 1,
        "ps_per_flop": (draw(rates), draw(rates)),
        "overhead_ps": (draw(paces), draw(paces) if parted else 0),
        "collective_ps": (draw(real_paces), draw(real_paces)),
        "collective_ps_per_token": (draw(real_paces), draw(real_paces)),
        "hop_ps": draw(real_paces),
        "hop_ps_per_token": draw(real_paces),
        "near_weights": (draw(st.sampled_from([0, 10, 37])), draw(st.sampled_from([0, 25]))),
        "far_weights": [(0, 0), *((draw(weights), draw(weights)) for _ in ladder[1:])],
        "expert_bytes": draw(st.sampled_from([[0], [0, 4, 7, 9], [0, 10]])),
        "expert_near": (4, 4) if T == 1 else (split, 4),
        "expert_tier": draw(st.integers(1, T - 1)) if T > 1 else 0,
        "token_row_bytes": draw(st.sampled_from([0, 2])),
        "block_tokens": block_tokens,
        "kv_token_bytes": kv,
        "kv_write_bytes": kv,
        "kv_layer_bytes": draw(st.sampled_from([0, 1])),
        "window_token_bytes": draw(st.sampled_from([0, 0, 1])),
        "state_bytes": draw(st.sampled_from([3, 8])) if stateful else 0,
        "ffn_near": near,
        "ffn_tier": ffn_tier,
    }  # fmt: skip


@st.composite
def retentions(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "pin_ps": draw(st.sampled_from([-1, -1, 0, 30, 100_000])),
        "demote_ps": draw(st.sampled_from([-1, -1, 0, 20])),
        "tier": draw(st.integers(0, 3)),
        "drop": draw(st.integers(0, 5)) == 0,
        "prefetch": draw(st.integers(0, 2)),
        "lead_ps": draw(st.sampled_from([0, 15, 300])),
    }


@st.composite
def option_sets(draw: st.DrawFn) -> dict[str, Any]:
    draft = draw(st.sampled_from([0, 0, 0, 1, 3]))
    return {
        "max_seqs": draw(st.sampled_from([1, 2, 3, 64])),
        "max_tokens": draw(st.sampled_from([1, 4, 7, 16, 1000])),
        "chunked": draw(st.booleans()),
        "mixed": draw(st.booleans()),
        "order": draw(st.integers(0, 2)),
        "overflow": draw(st.integers(0, 2)),
        "swap": draw(st.booleans()),
        "load": draw(st.integers(0, 3)),
        "deadline_ps": draw(st.sampled_from([0, 0, 20])),
        "draft": draft,
        "accepted": ONE + draw(st.integers(0, draft * ONE)) if draft else ONE,
        "draft_ps": draw(st.sampled_from([0, 2])) if draft else 0,
        "router": draw(st.integers(0, 3)),
        "cpu_slots": draw(st.sampled_from([0, 1, 2])),
        "concurrency": draw(st.sampled_from([0, 0, 1, 2])),
        "oracle": draw(st.booleans()),
    }


class Trie:
    """KV blocks that prompts share, then blocks of other kinds."""

    def __init__(self, engine_tokens: int, kv: int) -> None:
        self.engine_tokens, self.kv = engine_tokens, kv
        self.rows: list[dict[str, Any]] = []

    def add(self, kind: int, parent: int, tokens: int, size: int, home: int = -1) -> int:
        """Add a block and return its number."""
        position = self.rows[parent]["position"] + 1 if parent >= 0 else 0
        self.rows.append(
            {
                "bytes": size, "tokens": tokens, "kind": kind, "operation": 0, "parent": parent, "position": position,
                "home": home, "recompute_flops": (0.0, 0.0),
            }
        )  # fmt: skip
        return len(self.rows) - 1

    def grow(self, parent: int, tokens: int) -> int:
        """Add a KV block."""
        whole = -(-tokens // self.engine_tokens) * self.engine_tokens
        return self.add(KV, parent, tokens, whole * self.kv)

    def tokens(self, b: int) -> int:
        """Tokens of a block and its ancestors."""
        total = 0
        while b >= 0:
            total, b = total + self.rows[b]["tokens"], self.rows[b]["parent"]
        return total

    def table(self) -> dict[str, list[Any]]:
        """Return the columns."""
        return {name: [row[name] for row in self.rows] for name in TYPES}


@st.composite
def run_worlds(draw: st.DrawFn, *, max_requests: int = 12) -> RunWorld:
    """Draw a case."""
    stateful = draw(st.integers(0, 3)) == 0
    kv, engine_tokens = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    trace_tokens = draw(st.sampled_from([1, 2, 4, 4, 8, 16]))
    n = draw(st.integers(0, max_requests))
    populations = draw(st.integers(1, 2))

    # the trace: KV blocks first, so the others are numbered behind them when all prompts are known
    trie = Trie(engine_tokens, kv)
    q: dict[str, list[Any]] = {name: [] for name in (
        "arrival_ps", "input_tokens", "output_tokens", "delay_ps", "last_block", "output_block", "session", "priority",
        "population", "pause", "after",
    )}  # fmt: skip
    latest: dict[int, int] = {}
    now = 0
    for row in range(n):
        session = draw(st.integers(0, 3))
        before = latest.get(session)
        latest[session] = row
        end = -1
        if before is not None and draw(st.integers(0, 3)):
            end = q["output_block"][before] if q["output_block"][before] >= 0 else q["last_block"][before]
        elif trie.rows and draw(st.booleans()):
            end = draw(st.integers(0, len(trie.rows) - 1))
        for _ in range(draw(st.integers(0, 3))):
            end = trie.grow(end, trace_tokens)
        tail = draw(st.sampled_from([0, 0, 1, 3, 9, 40] if end < 0 else [0, 0, 0, 1, 5]))
        if draw(st.integers(0, 30)) == 30:
            tail = 20_000
        after = set()
        if before is not None and draw(st.integers(0, 4)):
            after.add(before)
        if row and draw(st.integers(0, 6)) == 0:
            after.add(draw(st.integers(0, row - 1)))
        output = draw(st.sampled_from([0, 1, 2, 5, 9, 20, 33]))
        written = -1
        if output and draw(st.booleans()):
            written = end
            for _ in range(draw(st.integers(1, 2))):
                written = trie.grow(written, min(trace_tokens, output))
        now += draw(st.sampled_from([0, 0, 10, 90]))
        q["arrival_ps"].append(now if not after or draw(st.integers(0, 5)) == 0 else 0)
        q["input_tokens"].append(trie.tokens(end) + tail)
        q["output_tokens"].append(output)
        q["delay_ps"].append(draw(st.sampled_from([0, 7, 60, 500])))
        q["last_block"].append(end)
        q["output_block"].append(written)
        q["session"].append(session)
        q["priority"].append(draw(st.integers(0, 2)))
        q["population"].append(draw(st.integers(0, populations - 1)))
        q["pause"].append(draw(st.integers(0, 2)) if after else 0)
        q["after"].append(sorted(after))
    q["resumer"] = [
        next((s for s in range(row + 1, n) if q["session"][s] == q["session"][row]), -1) for row in range(n)
    ]

    T = draw(st.integers(1, 4))
    many = draw(st.integers(0, 4 if stateful else 1))
    states = [trie.add(STATE, -1, 0, draw(st.sampled_from([3, 8]))) for _ in range(many)]
    data = [trie.add(DATA, -1, 0, draw(st.sampled_from([1, 5, 12])), T - 1) for _ in range(draw(st.integers(0, 2)))]
    layers = draw(st.sampled_from([0, 0, 0, 1, 2])) if T > 1 else 0
    count, each = draw(st.sampled_from([(1, 1), (3, 1), (4, 2)])) if layers else (1, 1)
    experts = [trie.add(WEIGHTS, -1, 0, draw(st.sampled_from([4, 9])), T - 1) for _ in range(layers * count)]
    living = sum(trie.rows[b]["bytes"] for b in [*data, *experts])
    trie.add(KV, -1, 0, 0, 0)

    def some(of: Sequence[int], most: int) -> list[int]:
        return draw(st.lists(st.sampled_from(of), max_size=most, unique=True)) if of else []

    q["state_lookup"] = [(some(states, 1) or [-1])[0] for _ in range(n)]
    q["state_write"] = [some(states, 2) for _ in range(n)]
    q["state_output"] = [some(states, 1) for _ in range(n)]
    q["data"] = [some(data, 2) for _ in range(n)]

    # the machine: a near tier for each pool, then the tiers that all share
    shape = draw(st.sampled_from(["all", "all", "parted", "prefill+all", "prefill+parted"]))
    fronts = draw(st.integers(1, 3))
    backs = draw(st.integers(1, 4 - fronts)) if shape.startswith("prefill") else 0
    pools = {"all": 1, "parted": 2, "prefill+all": 2, "prefill+parted": 3}[shape]
    ladder = list(range(pools, pools + T - 1))
    final = [a + max(b, 1) for a, b in zip(q["input_tokens"], q["output_tokens"], strict=True)]
    need = kv * max([40, *(tokens for tokens in final if tokens < 10_000)]) + draw(st.sampled_from([0, engine_tokens]))
    common = {"block_tokens": engine_tokens, "kv": kv, "stateful": stateful, "living": living, "need": need}
    kinds = [draw(worker_kinds([0, *ladder], parted=shape == "parted", ffn_tier=int(shape == "parted"), **common))]
    if backs:
        parted = shape == "prefill+parted"
        kinds.append(draw(worker_kinds([1, *ladder], parted=parted, ffn_tier=2 if parted else 1, **common)))
    for k in kinds if experts and "parted" not in shape else []:
        if k["stages"] == 1:
            k["experts"] = {"first": experts[0], "layers": layers, "count": count, "each": each, "seed": 5}
    unit_pool: list[int] = []
    workers = []
    for i in range(fronts + backs):
        back = i >= fronts
        role = ALL if not backs else DECODE if back else PREFILL
        mine = [1 if back else 0] + ([2] if back and shape == "prefill+parted" else [1] if shape == "parted" else [])
        units = list(range(len(unit_pool), len(unit_pool) + len(mine)))
        unit_pool += mine
        workers.append({"kind": int(back), "role": role, "units": (units[0], units[-1])})
    everyone = list(range(fronts))
    groups = [everyone if draw(st.booleans()) else some(everyone, fronts) or everyone for _ in range(populations)]
    spec = {
        "tiers": pools + T - 1,
        "unit_pool": unit_pool,
        "workers": workers,
        "groups": groups,
        "backs": list(range(fronts, fronts + backs)),
        "transfer": {**draw(channels()), "latency_ps": draw(st.sampled_from([0.0, 12.5]))} if backs else None,
        "kinds": kinds,
        "model": {
            "flops": (draw(rates), draw(rates)),
            "head_flops": draw(rates),
            "pair_decode": draw(real_paces),
            "pair_prefill": draw(real_paces),
            "global_layers": draw(st.integers(0, 2)),
            "sparse_layers": draw(st.integers(0, 1)),
            "local_layers": draw(st.integers(0, 1)),
            "sparse": draw(st.sampled_from([0, 6])),
            "window": draw(st.sampled_from([0, 5])),
            "stateful": stateful,
        },
        "blocks": trie.table(),
        "requests": q,
        "retention": [draw(retentions()) for _ in range(3)],
        "options": draw(option_sets()),
    }
    names = sorted(reference.POLICIES)
    return RunWorld(spec, [[draw(st.sampled_from(names)) for _ in range(T)] for _ in workers])


def policies(world: RunWorld) -> list[list[Any]]:
    """Return the specification's policies of each worker and tier."""
    return [
        [reference.POLICIES[name](seed=world.seed + 16 * i + t) for t, name in enumerate(names)]
        for i, names in enumerate(world.policies)
    ]


def specified(world: RunWorld, engine: type[reference.Engine] = reference.Engine) -> reference.Engine:
    """Return the specification's engine of a world; it asks for policies worker by worker."""
    made = iter(policies(world))
    return engine(world.spec, lambda kind: next(made))


WIDE = ("arrival_ps", "input_tokens", "output_tokens", "delay_ps")
LISTS = ("after", "data", "state_write", "state_output")


def columns(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec as the core takes it: columns as arrays, lists of lists as offsets and values."""
    requests: dict[str, Any] = {}
    for name, column in spec["requests"].items():
        if name in LISTS:
            offsets = np.cumsum([0, *(len(values) for values in column)], dtype=np.int64)
            requests[name] = (offsets, np.array([value for values in column for value in values], dtype=np.int32))
        else:
            requests[name] = np.array(column, dtype=np.int64 if name in WIDE else np.int32)
    blocks = {
        name: np.array(spec["blocks"][name], dtype=kind).reshape(-1, *((2,) if name == "recompute_flops" else ()))
        for name, kind in TYPES.items()
    }
    kinds = [{**kind, "expert_bytes": np.array(kind["expert_bytes"], dtype=np.int64)} for kind in spec["kinds"]]
    return {**spec, "requests": requests, "blocks": blocks, "kinds": kinds}
