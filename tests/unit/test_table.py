"""Tables: what is missing is None in every form, and NumPy's columns give what lists of theirs would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kvsim._table import Table, plain

COLUMNS: dict[str, Any] = {
    "i8": np.array([3, -(2**62), 7]),
    "i1": np.array([1, 2, 3], np.int8),
    "u8": np.array([1, 2**63 - 1, 3], np.uint64),
    "f8": np.array([0.1, -2.5, 1e300]),
    "f4": np.array([0.1, 0.2, 0.3], np.float32),
    "gaps": np.array([1.5, math.nan, math.inf]),
    "nothing": np.full(3, math.nan),
    "yes": np.array([True, False, True]),
    "strided": np.arange(9).reshape(3, 3)[:, 1],
    "words": np.array(["a", "b", None], object),
    "listed": [1, None, 2.5],
    "mixed": ["x", "y", "z"],
    "numbers": [np.int64(4), np.float64("nan"), np.float32(0.5)],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_becomes_what_its_elements_do(name: str) -> None:
    (found,) = Table("t", {name: COLUMNS[name]}).to_dict().values()
    wanted = [plain(v) for v in COLUMNS[name]]
    assert found == wanted
    assert [type(v) for v in found] == [type(v) for v in wanted]


def test_sums_and_rows_leave_out_what_is_missing() -> None:
    table = Table("t", COLUMNS)
    assert table.sum("gaps") == 1.5
    assert table.sum("nothing") == 0
    assert table.rows()[1]["gaps"] is None
    assert table.where(i8=7).rows()[0]["i1"] == 3


@pytest.mark.parametrize("name", COLUMNS)
def test_pandas_and_arrow_have_the_types_that_lists_give(name: str) -> None:
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    table, listed = Table("t", {name: COLUMNS[name]}), [plain(v) for v in COLUMNS[name]]
    column = table.to_arrow()[name]
    assert column.type == pa.array(listed).type
    assert column.to_pylist() == listed
    series = table.to_pandas()[name]
    assert len(series) == 3
    for found, wanted in zip(series.tolist(), listed, strict=True):
        assert pd.isna(found) if wanted is None else found == wanted
    if None not in listed:
        assert series.dtype == pd.Series(listed).dtype


def test_a_frame_does_not_write_into_the_result() -> None:
    pytest.importorskip("pandas")
    column = np.arange(3)
    column.flags.writeable = False
    frame = Table("t", {"x": column}).to_pandas()
    frame.loc[0, "x"] = 9
    assert column[0] == 0
