"""How many accesses a second does each policy serve, beside libCacheSim in the same run?

One tier of equal blocks, Zipf(1.0) over 1 M ids, capacity 1 % and 10 % of them. Both read the same file of 24-byte
records. libCacheSim reads it as it replays, so kvsim is timed twice: replaying what it has read, and with the reading.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from _measure import PEER_PYTHON, Figure, figure, main, peer_has, seconds

IDS = 1_000_000
ACCESSES = 2_000_000
SHARES = (0.01, 0.1)
HASH_POWERS = (24, 18)  # its default, and one fitted to the number of ids

PEER = {
    "lru": "LRU", "fifo": "FIFO", "clock": "Clock", "sieve": "Sieve", "s3-fifo": "S3FIFO", "lfu": "LFU", "arc": "ARC",
    "slru": "SLRU", "random": "Random", "belady": "Belady",
}  # fmt: skip

# Runs in the peers' Python, knows libCacheSim by its public calls only, and prints a list of seconds.
WORKER = """
import json, sys, time
import libcachesim
path, name, capacity, power, repeats = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
kind = libcachesim.TraceType.ORACLE_GENERAL_TRACE
taken = []
for _ in range(repeats + 1):
    reader = libcachesim.TraceReader(path, kind, libcachesim.ReaderInitParam(ignore_obj_size=True))
    cache = getattr(libcachesim, name)(capacity, hashpower=power)
    start = time.perf_counter()
    missed, _ = cache.process_trace(reader)
    taken.append(time.perf_counter() - start)
print(json.dumps({"seconds": taken[1:], "miss_ratio": missed}))
"""

RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])


def zipf_file(path: Path, seed: int = 0) -> None:
    """Write accesses drawn by Zipf(1.0), in libCacheSim's oracleGeneral format."""
    random = np.random.default_rng(seed)
    ladder = np.cumsum(1.0 / np.arange(1, IDS + 1))
    ids = np.searchsorted(ladder, random.random(ACCESSES) * ladder[-1])
    ids = random.permutation(IDS)[ids]
    rows = np.zeros(ACCESSES, RECORD)
    rows["time"], rows["id"], rows["size"] = np.arange(ACCESSES) // 1000, ids + 1, 1
    order = np.argsort(ids, kind="stable")
    following = np.full(ACCESSES, -1, np.int64)
    same = ids[order[1:]] == ids[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    rows["next"] = following
    rows.tofile(path)


def measure(repeats: int) -> list[Figure]:
    """Return accesses a second of every policy that kvsim has."""
    import kvsim
    from kvsim.policies import names

    beside = peer_has("libcachesim")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zipf.oracleGeneral"
        zipf_file(path)
        trace = kvsim.read_trace(path)
        reading = seconds(lambda: kvsim.read_trace(path), repeats)
        for share in SHARES:
            capacity = int(IDS * share)
            for policy in names():
                what = f"{policy}, capacity {share:.0%}"

                def run(policy: str = policy, capacity: int = capacity) -> kvsim.CurveResult:
                    return kvsim.curve(trace, policies=[policy], capacities=[capacity])

                missed = f"misses {1 - int(run().hit_count[0, 0]) / ACCESSES:.4f}"
                taken = seconds(run, repeats)
                rates = [ACCESSES / s / 1e6 for s in taken]
                both = [ACCESSES / (s + r) / 1e6 for s, r in zip(taken, reading, strict=True)]
                # The first is what the peer is divided into: it reads the file too.
                figures.append(figure("policies", what, "kvsim, reading the file", "M accesses/s", both))
                figures.append(figure("policies", what, "kvsim, in memory", "M accesses/s", rates, missed))
                if beside and policy in PEER:
                    figures += _peer(path, policy, what, capacity, repeats)
    return figures


def _peer(path: Path, policy: str, what: str, capacity: int, repeats: int) -> list[Figure]:
    figures = []
    for power in HASH_POWERS:
        words = [PEER_PYTHON, "-c", WORKER, path, PEER[policy], capacity, power, repeats]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"libcachesim {PEER[policy]}: {done.stderr.strip().splitlines()[-1:]}")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rates = [ACCESSES / s / 1e6 for s in found["seconds"]]
        who = f"libcachesim, hash power {power}"
        figures.append(figure("policies", what, who, "M accesses/s", rates, f"misses {found['miss_ratio']:.4f}"))
    return figures


if __name__ == "__main__":
    main(measure)
