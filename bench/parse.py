"""How fast is the conversation trace read?

kvsim checks every field, interns ids and finds shared prefixes; the JSON libraries beside it only decode the lines. So
their figures are a bound on what any reader built on them could reach, not a rival's.
"""

from __future__ import annotations

import json
import subprocess

import msgspec
from _measure import CONVERSATION, PEER_PYTHON, Figure, figure, main, peer_has, seconds

ORJSON = """
import json, sys, time
import orjson
lines = open(sys.argv[1], "rb").read().splitlines()
taken = []
for _ in range(int(sys.argv[2]) + 1):
    start = time.perf_counter()
    [orjson.loads(line) for line in lines]
    taken.append(time.perf_counter() - start)
print(json.dumps(taken[1:]))
"""


def measure(repeats: int) -> list[Figure]:
    """Return megabytes a second."""
    import kvsim

    text = CONVERSATION.read_bytes()
    lines = text.splitlines()
    decoder = msgspec.json.Decoder()
    taken = {
        "kvsim.read_trace": seconds(lambda: kvsim.read_trace(CONVERSATION), repeats),
        "json, decoding only": seconds(lambda: [json.loads(line) for line in lines], repeats),
        "msgspec, decoding only, untyped": seconds(lambda: decoder.decode_lines(text), repeats),
    }
    if peer_has("orjson"):
        words = [PEER_PYTHON, "-c", ORJSON, str(CONVERSATION), str(repeats)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        taken["orjson, decoding only"] = json.loads(done.stdout)
    return [
        figure("parse", "conversation trace", who, "MB/s", [len(text) / s / 1e6 for s in runs])
        for who, runs in taken.items()
    ]


if __name__ == "__main__":
    main(measure)
