"""Trace files: what each format reads and writes, compression, detection, and options."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvsim import (
    AccessTrace,
    ConfigError,
    RequestTrace,
    TraceError,
    TraceWarning,
    UnknownNameError,
    read_trace,
    write_trace,
)
from kvsim.traces import convert, detect, formats

MOONCAKE = [
    {"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 6, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 600, "output_length": 0, "hash_ids": [0, 9007199254740993]},
]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
)
CSV = "time,id,size\n0,a,10\n0,7,20\n1.5,a,10\n2,7,5\n"
RECORDS = np.array(
    [(5, 1 << 63, 100, 2), (5, 2, 50, -1), (8, 1 << 63, 100, -1)],
    np.dtype([("t", "<u4"), ("i", "<u8"), ("s", "<u4"), ("n", "<i8")]),
).tobytes()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


FILES: dict[str, tuple[str, bytes]] = {
    "mooncake": ("m.jsonl", lines(MOONCAKE)),
    "azure": ("z.csv", AZURE.encode()),
    "access-csv": ("a.csv", CSV.encode()),
    "oracle-general": ("x.oracleGeneral.bin", RECORDS),
}


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_formats_are_found_by_themselves() -> None:
    found = formats()
    assert {"mooncake", "claude-code", "azure", "oracle-general", "access-csv", "kvsim-npz", "parquet"} <= set(found)
    assert all(found.values())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_detected_and_read_compressed_or_not(tmp_path: Path, name: str, ending: str) -> None:
    file, content = FILES[name]
    plain = read_trace(put(tmp_path, file, content))
    packed = {"": content, ".gz": gzip.compress(content), ".zst": zstandard.compress(content)}[ending]
    path = put(tmp_path, file + ending, packed)
    assert detect(path) == name
    assert read_trace(path) == read_trace(path, format=name)
    again = read_trace(path)
    assert (again.name, again.n) == (plain.name, plain.n)
    if isinstance(again, AccessTrace):
        assert again == plain


def test_kvsims_own_files_compressed(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "m.jsonl", lines(MOONCAKE)))
    for file in ("t.npz", "t.parquet"):
        trace.save(tmp_path / file)
        content = (tmp_path / file).read_bytes()
        assert read_trace(put(tmp_path, file + ".gz", gzip.compress(content))) == trace
        assert read_trace(put(tmp_path, file + ".zst", zstandard.compress(content))) == trace


def test_many_members_and_frames(tmp_path: Path) -> None:
    halves = [lines(MOONCAKE[:1]), lines(MOONCAKE[1:])]
    plain = read_trace(put(tmp_path, "m.jsonl", b"".join(halves)))
    assert read_trace(put(tmp_path, "m.jsonl.gz", b"".join(map(gzip.compress, halves)))).n == plain.n
    assert read_trace(put(tmp_path, "m.jsonl.zst", b"".join(map(zstandard.compress, halves)))).n == plain.n


def test_mooncake(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "m.jsonl", lines(MOONCAKE)))
    assert isinstance(trace, RequestTrace)
    assert trace.block_tokens == 512
    assert (trace.arrival_ps / 1e12).tolist() == [0, 3, 3]
    assert trace.block_length.tolist() == [512, 512, 6, 88]
    assert trace.block_id.tolist() == [0, 1, 2, 9007199254740993]
    assert trace.prefix_blocks.tolist() == [0, 2, 1]
    assert trace.open_loop
    assert read_trace(tmp_path / "m.jsonl", block_tokens=16).block_tokens == 16
    assert read_trace(tmp_path / "m.jsonl", first=2, last=1, rate_scale=2).n == 1
    other = read_trace(put(tmp_path, "n.jsonl", lines(MOONCAKE[1:2])), trace_block_tokens=600)
    assert isinstance(other, RequestTrace)
    assert other.block_length.tolist() == [600, 424]


def test_mooncake_sessions_wait_for_their_turn_before(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 10, "output_length": 5, "hash_ids": [1], "session_id": "a"},
        {"timestamp": 1500, "input_length": 10, "output_length": 5, "hash_ids": [2], "session_id": 7},
        {"delay": 2500.5, "input_length": 20, "output_length": 5, "hash_ids": [1], "session_id": "a"},
        {"timestamp": 2000, "delay": 100, "input_length": 30, "output_length": 5, "hash_ids": [1], "session_id": "a"},
    ]
    path = put(tmp_path, "m.jsonl", lines(rows))
    trace = read_trace(path)
    assert isinstance(trace, RequestTrace)
    assert [trace.after_of(k).tolist() for k in range(4)] == [[], [], [0], [2]]
    assert (trace.delay_ps / 1e12).tolist() == [0, 0, 2.5005, 0.1]
    assert (trace.arrival_ps / 1e12).tolist() == [1, 1.5, 3.5005, 3.6005]
    assert [trace.session_names[s] for s in trace.session] == ["a", "7", "a", "a"]
    write_trace(trace, tmp_path / "again.jsonl")
    again = read_trace(tmp_path / "again.jsonl")
    for column in ("arrival_ps", "delay_ps", "after", "session", "block_id", "input_tokens", "pause"):
        assert getattr(again, column).tolist() == getattr(trace, column).tolist()


def test_text_ids_and_ids_beyond_64_bits(tmp_path: Path) -> None:
    rows = [dict(MOONCAKE[0], hash_ids=["x", 1, 1 << 70]), dict(MOONCAKE[1], hash_ids=["x", 1])]
    trace = read_trace(put(tmp_path, "m.jsonl", lines(rows)))
    assert isinstance(trace, RequestTrace)
    assert trace.block_label == ("x", "1", str(1 << 70))
    assert trace.prefix_blocks.tolist() == [0, 2]
    write_trace(trace, tmp_path / "again.jsonl")
    again = read_trace(tmp_path / "again.jsonl")
    assert isinstance(again, RequestTrace)
    assert again.block_label == trace.block_label


def test_blank_lines_keep_the_line_numbers_right(tmp_path: Path) -> None:
    content = lines(MOONCAKE[:1]) + b"\n \n" + lines(MOONCAKE[1:]) + b"\n\n"
    assert read_trace(put(tmp_path, "m.jsonl", content)).n == 3
    broken = content.replace(b'"output_length": 6', b'"output_length": "6"')
    with pytest.raises(TraceError, match=r"m\.jsonl: line 4: output_length: found str, expected int"):
        read_trace(put(tmp_path, "m.jsonl", broken))


@given(st.integers(1, 200))
def test_pieces_may_be_cut_anywhere(size: int) -> None:
    import tempfile

    from kvsim.traces import _io

    content = lines(MOONCAKE) * 2
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), "m.jsonl", content)
        before, _io._PIECE = _io._PIECE, size
        try:
            blocks = list(_io.line_blocks(path, size=size * 2))
        finally:
            _io._PIECE = before
    assert b"".join(text for _, text in blocks) == content
    line = 1
    for number, text in blocks:
        assert number == line
        assert text.endswith(b"\n")
        line += text.count(b"\n")


def test_unsorted_times_are_sorted_with_a_notice(tmp_path: Path) -> None:
    path = put(tmp_path, "m.jsonl", lines(MOONCAKE[::-1]))
    with pytest.warns(TraceWarning, match="sorted"):
        trace = read_trace(path)
    assert isinstance(trace, RequestTrace)
    assert trace.input_tokens.tolist() == [1030, 600, 1024]
    path = put(tmp_path, "a.csv", b"time,id,size\n5,a,1\n3,b,1\n5,c,1\n")
    with pytest.warns(TraceWarning, match="record 1"):
        found = read_trace(path)
    assert isinstance(found, AccessTrace)
    assert (found.arrival_ps / 1e12).tolist() == [0, 2]
    assert found.blocks.labels == ("b", "a", "c")


def test_mooncake_writes_what_it_reads(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "m.jsonl", lines(MOONCAKE)))
    write_trace(trace, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()] == MOONCAKE
    assert convert(tmp_path / "m.jsonl", tmp_path / "m.npz") == read_trace(tmp_path / "m.npz")


def test_what_mooncake_cannot_say(tmp_path: Path) -> None:
    two = RequestTrace.from_lists(
        name="t", block_tokens=512, arrival_s=[0, 0, 0], input_tokens=[1, 1, 1], output_tokens=[1, 1, 1],
        after=[[], [], [0, 1]],
    )  # fmt: skip
    with pytest.raises(TraceError, match="request 2: after: found 2 requests"):
        write_trace(two, tmp_path / "t.jsonl")
    reader = RequestTrace.from_lists(
        name="t", block_tokens=512, arrival_s=[0, 0], input_tokens=[1, 1], output_tokens=[1, 1], data=[[], [0, 1]],
        data_bytes=[10, 20],
    )  # fmt: skip
    with pytest.raises(TraceError, match="request 1: data: found 2 pieces, expected none"):
        write_trace(reader, tmp_path / "t.jsonl")
    with pytest.raises(TraceError, match="expected a RequestTrace"):
        write_trace(read_trace(put(tmp_path, "a.csv", CSV.encode())), tmp_path / "t.jsonl")
    assert not (tmp_path / "t.jsonl").exists()


def test_azure(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "z.csv", AZURE.encode()))
    assert isinstance(trace, RequestTrace)
    assert trace.arrival_ps.tolist() == [0, 52_000_000_000]
    assert trace.input_tokens.tolist() == [4808, 3180]
    assert trace.private_tokens.tolist() == [4808, 3180]
    assert trace.unique_blocks == 0
    assert read_trace(tmp_path / "z.csv", block_tokens=7).block_tokens == 7
    text = AZURE.replace(".9799600,", ".979960+00:00,").replace("\n", "\r\n")
    assert read_trace(put(tmp_path, "y.csv", text.encode())).arrival_ps.tolist() == [0, 52_000_000_000]


def test_access_csv(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "a.csv", CSV.encode()))
    assert isinstance(trace, AccessTrace)
    assert (trace.arrival_ps / 1e12).tolist() == [0, 1.5, 2]
    assert trace.block.tolist() == [0, 1, 0, 1]
    assert trace.blocks.bytes.tolist() == [10, 20]
    assert trace.blocks.labels == ("a", "7")
    assert (trace.blocks.kind == 3).all()
    assert trace.bytes is not None
    assert trace.bytes.tolist() == [-1, -1, -1, 5]
    other = put(tmp_path, "b.txt", b"k1;1000;x\nk2;2000;x\nk1;2000;x\n")
    found = read_trace(
        other, format="access-csv", header=False, time_column=1, id_column=0, size_column=None, time_unit="us",
        delimiter=";",
    )  # fmt: skip
    assert isinstance(found, AccessTrace)
    assert found.arrival_ps.tolist() == [0, 10**9]
    assert found.block.tolist() == [0, 1, 0]
    assert found.blocks.bytes.tolist() == [1, 1]


def test_ids_of_different_spelling_are_different(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "a.csv", b"time,id,size\n0,7,1\n0,007,1\n0,7,1\n0,99999999999999999999,1\n"))
    assert isinstance(trace, AccessTrace)
    assert trace.block.tolist() == [0, 1, 0, 2]
    assert trace.blocks.labels == ("7", "007", "99999999999999999999")


def test_oracle_general(tmp_path: Path) -> None:
    trace = read_trace(put(tmp_path, "x.oracleGeneral.bin", RECORDS))
    assert isinstance(trace, AccessTrace)
    assert (trace.arrival_ps / 1e12).tolist() == [0, 3]
    assert trace.offsets.tolist() == [0, 2, 3]
    assert trace.block.tolist() == [0, 1, 0]
    assert trace.blocks.bytes.tolist() == [100, 50]
    assert trace.bytes is None
    assert detect(put(tmp_path, "unnamed", RECORDS)) == "oracle-general"


def test_wrong_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    path = put(tmp_path, "m.jsonl", lines(MOONCAKE))
    with pytest.raises(UnknownNameError, match="did you mean 'mooncake'"):
        read_trace(path, format="moncake")
    with pytest.raises(UnknownNameError, match="did you mean 'trace_block_tokens'"):
        read_trace(path, trace_block_token=5)
    with pytest.raises(UnknownNameError, match="did you mean 'time'"):
        read_trace(put(tmp_path, "a.csv", CSV.encode()), time_column="tim")
    with pytest.raises(ConfigError, match="can only be read"):
        write_trace(read_trace(path), tmp_path / "o.csv", format="azure")
    with pytest.raises(ConfigError, match="ending"):
        write_trace(read_trace(path), tmp_path / "o.unknown")


def row(**changes: Any) -> bytes:
    return lines([MOONCAKE[0], {k: v for k, v in {**MOONCAKE[1], **changes}.items() if v is not ...}])


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("m.jsonl", b"", "found an empty file"),
    "blank": ("m.jsonl", b" \n\n", "found an empty file"),
    "garbage": ("m.jsonl", b"hello there", "expected one of the formats"),
    "truncated line": ("m.jsonl", lines(MOONCAKE)[:-40], "line 3: input data was truncated"),
    "not JSON": ("m.jsonl", lines(MOONCAKE) + b"{x}\n", r"line 4: .*malformed.*, expected JSON"),
    "array": ("m.jsonl", lines(MOONCAKE) + b"[]\n", "line 4: found array, expected object"),
    "no length": ("m.jsonl", row(input_length=...), "line 2: found no key 'input_length'"),
    "length is text": ("m.jsonl", row(input_length="5"), "line 2: input_length: found str, expected int"),
    "length is null": ("m.jsonl", row(output_length=None), "line 2: output_length: found null, expected int"),
    "length is a fraction": ("m.jsonl", row(input_length=1.5), "line 2: input_length: found float, expected int"),
    "length negative": ("m.jsonl", row(input_length=-1), "line 2: input_length: found -1, expected 0 to"),
    "length enormous": ("m.jsonl", row(output_length=1 << 41), "line 2: output_length: found 2199023255552, expected"),
    "length beyond 64 bits": ("m.jsonl", row(output_length=1 << 80), "line 2: output_length: found"),
    "time NaN": ("m.jsonl", row(timestamp=float("nan")), "line 2: .*expected JSON"),
    "time infinite": ("m.jsonl", row(timestamp=1e300), r"line 2: timestamp: found 1e\+300, expected 0 to"),
    "time negative": ("m.jsonl", row(timestamp=-5), "line 2: timestamp: found -5"),
    "no time": ("m.jsonl", row(timestamp=...), "line 2: found no key 'timestamp'"),
    "delay without session": ("m.jsonl", row(delay=5), "line 2: delay: found no key 'session_id'"),
    "delay negative": ("m.jsonl", row(delay=-5, session_id=1), "line 2: delay: found -5"),
    "ids not a list": ("m.jsonl", row(hash_ids=5), "line 2: hash_ids: found int, expected array"),
    "id is null": ("m.jsonl", row(hash_ids=[None]), r"line 2: hash_ids\[\.\.\.\]: found null, expected int | str"),
    "too many ids": ("m.jsonl", row(hash_ids=[1, 2, 3]), "line 2: hash_ids: found 3 ids, expected at most 2"),
    "not UTF-8": ("m.jsonl", row(session_id="\xff").replace(b"\\u00ff", b"\xff"), "line 2: "),
    "truncated gzip": ("m.jsonl.gz", gzip.compress(lines(MOONCAKE) * 500)[:-30], "expected complete gzip data"),
    "damaged gzip": ("m.jsonl.gz", gzip.compress(lines(MOONCAKE))[:30] + b"\x00" * 60, "expected complete gzip data"),
    "truncated zstd": ("m.jsonl.zst", zstandard.compress(lines(MOONCAKE))[:-9], "expected complete zstd data"),
    "damaged zstd": (
        "m.jsonl.zst",
        zstandard.compress(lines(MOONCAKE))[:9] + b"\xff" * 60,
        "expected complete zstd data",
    ),
    "azure header alone": ("z.csv", AZURE.split("\n")[0].encode(), "found a header and no requests"),
    "azure time": (
        "z.csv",
        AZURE.replace("2023-11-16 18:17:04", "yesterday").encode(),
        "line 3: TIMESTAMP: found 'yest",
    ),
    "azure NaT": (
        "z.csv",
        AZURE.replace("2023-11-16 18:17:04.0319600", "NaT").encode(),
        "line 3: TIMESTAMP: found 'NaT'",
    ),
    "azure tokens": ("z.csv", AZURE.replace("3180", "many").encode(), "line 3: ContextTokens: found 'many'"),
    "azure negative": ("z.csv", AZURE.replace(",8\n", ",-8\n").encode(), "line 3: GeneratedTokens: found -8"),
    "azure columns": ("z.csv", AZURE.replace(",8\n", "\n").encode(), "line 3: found 2 columns, expected 3"),
    "csv columns": ("a.csv", b"time,id,size\n0,a\n", "line 2: found 2 columns, expected 3"),
    "csv time": ("a.csv", b"time,id,size\nnan,a,1\n", "line 2: time: found 'nan', expected a finite"),
    "csv endless time": ("a.csv", b"time,id,size\n1e400,a,1\n", "line 2: time: found"),
    "csv size": ("a.csv", b"time,id,size\n0,a,-1\n", "line 2: size: found '-1'"),
    "csv size text": ("a.csv", b"time,id,size\n0,a,x\n", "line 2: size: found 'x'"),
    "csv no size": ("a.csv", b"time,id\n0,a\n", "line 1: unknown column 'size'"),
    "csv header alone": ("a.csv", b"time,id,size\n", "found a header and no accesses"),
    "csv not UTF-8": ("a.csv", b"time,id,size\n0,\xff,1\n", "line 2: .*UTF-8"),
    "binary cut": ("x.oracleGeneral", RECORDS[:-5], "record 2: found 19 bytes at the end"),
    "binary span": ("x.oracleGeneral", RECORDS[:24] + b"\xff" * 4 + RECORDS[28:], "record 1: time: found 4294967295"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_clear_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = put(tmp_path, name, content)
    with pytest.raises((TraceError, UnknownNameError), match=message) as raised:
        read_trace(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_places_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        read_trace(tmp_path / "nothing")
    with pytest.raises(TraceError, match="a directory with no trace files"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match=r"found no \.json file"):
        read_trace(tmp_path, format="claude-code")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path, format="mooncake")
    path = put(tmp_path, "m.jsonl", lines(MOONCAKE))
    for option in ("first", "last"):
        with pytest.raises(TraceError, match=f"{option}: found -1"):
            read_trace(path, **{option: -1})  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="divisor"):
        read_trace(path, block_tokens=100)


@pytest.mark.filterwarnings("ignore::kvsim.TraceWarning")
@given(st.binary(max_size=300), st.sampled_from(["m.jsonl", "a.csv", "x.bin", "s.json", "t.npz", "t.parquet", "a.gz"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = put(tmp_path_factory.mktemp("any"), name, content)
    messages = []
    for form in (None, "mooncake", "claude-code", "azure", "access-csv", "oracle-general", "kvsim-npz", "parquet"):
        try:
            read_trace(path, format=form)
        except (TraceError, UnknownNameError) as error:
            messages.append(str(error))
    assert all(str(path) in message for message in messages)
