"""Columns with names: the shape of everything that a result shows."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim.errors import KvsimError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Table", "bars_html", "missing", "plain", "share_text", "text_table"]

_LEFT = (str, bytes)
_PLAIN = frozenset((str, int, bool, type(None)))
_WIDE = {"b": "?", "i": "i8", "f": "f8"}


def plain(value: Any) -> Any:
    """Return `value` made of JSON's own types: ints stay ints, NaN becomes None."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _column(values: Sequence[Any] | np.ndarray[Any, Any]) -> list[Any]:
    """Return a column as a list of JSON's own types; NumPy's numbers are not looked at one by one."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf":
        listed: list[Any] = values.tolist()
        for i in np.flatnonzero(~np.isfinite(values)).tolist():
            listed[i] = None
        return listed
    return [v if type(v) in _PLAIN else plain(v) for v in values]


def _array(values: Sequence[Any] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return a column of which nothing is missing as bool, i8 or f8, the types its list would become; else None."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in _WIDE:
        return None
    return values.astype(_WIDE[values.dtype.kind]) if np.isfinite(values).all() else None


def missing(package: str, extra: str, error: ImportError) -> KvsimError:
    """Return the error for an optional package that is not installed, or that does not fit what is."""
    if isinstance(error, ModuleNotFoundError):
        found = f"{package} is not installed: found no module {package!r}"
    else:
        found = f"{package} cannot be used: found {' '.join(str(error).split())[:120]!r} on importing it"
    return KvsimError(f"{found}, expected pip install 'kvsim[{extra}]'")


def share_text(share: float | None, *, digits: int = 1) -> str:
    """Show a share of one as a percentage; "n/a" for None, "<0.1 %" for what is there but does not show."""
    if share is None:
        return "n/a"
    smallest = 10.0**-digits
    if 0 < share * 100 < smallest / 2:
        return f"<{smallest:g} %"
    return f"{share * 100:.{digits}f} %"


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), indent: str = "  "
) -> str:
    """Lay out a table in plain text, columns two blanks apart, the columns in `left` flush left."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


@dataclass(frozen=True, eq=False)
class Table:
    """A small table: named columns of equal length, in order.

    Parameters
    ----------
    name : what the rows are.
    columns : column name to list or NumPy array; None stands for a value that does not exist.
    """

    name: str
    columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]

    def __getitem__(self, column: str) -> Sequence[Any] | np.ndarray[Any, Any]:
        try:
            return self.columns[column]
        except KeyError:
            raise UnknownNameError(column, self.columns, f"column of {self.name}") from None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.name == other.name and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries of plain Python values."""
        columns = self.to_dict()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def where(self, keep: Callable[[dict[str, Any]], bool] | None = None, **equal: Any) -> Table:
        """Return the rows for which `keep(row)` is true and every named column equals its value."""
        for column in equal:
            self[column]
        chosen = [r for r in self.rows() if (keep is None or keep(r)) and all(r[c] == v for c, v in equal.items())]
        return Table(self.name, {c: [r[c] for r in chosen] for c in self.columns})

    def sum(self, column: str) -> Any:
        """Return the sum of a column, leaving out what is missing."""
        return sum(v for v in _column(self[column]) if v is not None)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return column name to list, of JSON's own types."""
        return {name: _column(values) for name, values in self.columns.items()}

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas DataFrame (pip install 'kvsim[pandas]'); missing values are <NA>."""
        try:
            import pandas as pd
        except ImportError as error:
            raise missing("pandas", "pandas", error) from None
        frame = {}
        for name, column in self.columns.items():
            array = _array(column)
            if array is not None:
                frame[name] = pd.Series(array)
                continue
            values = _column(column)
            series = pd.Series(values, dtype=object if None in values else None)
            if None in values and any(v is not None for v in values):
                series = series.convert_dtypes()
            frame[name] = series
        return pd.DataFrame(frame)

    def to_arrow(self) -> pa.Table:
        """Return a PyArrow table (pip install 'kvsim[parquet]'); missing values are null."""
        try:
            import pyarrow as pa
        except ImportError as error:
            raise missing("pyarrow", "parquet", error) from None
        arrays = {name: _array(values) for name, values in self.columns.items()}
        return pa.table({k: _column(self.columns[k]) if array is None else array for k, array in arrays.items()})

    def __repr__(self) -> str:
        most = 40
        columns = self.to_dict()
        cells = [[_cell(v) for v in row] for row in list(zip(*columns.values(), strict=True))[:most]]
        left = [i for i, v in enumerate(columns.values()) if any(isinstance(x, _LEFT) for x in v)]
        text = text_table(list(columns), cells, left=left, indent="")
        more = len(self) - most
        return text + (f"\n... {more} more rows" if more > 0 else "")

    def _repr_html_(self) -> str:
        return table_html(list(self.columns), [[_cell(v) for v in r.values()] for r in self.rows()[:200]])


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Lay out a table as HTML that inherits the page's colours."""
    rule = "border-bottom:1px solid color-mix(in srgb, currentColor 25%, transparent);padding:2px 10px"

    def line(tag: str, row: Sequence[str]) -> str:
        cells = "".join(
            f'<{tag} style="text-align:{"left" if i in left else "right"};{rule}">{html.escape(c)}</{tag}>'
            for i, c in enumerate(row)
        )
        return f"<tr>{cells}</tr>"

    body = "".join(line("td", r) for r in rows)
    return (
        '<table style="border-collapse:collapse;color:inherit;background:transparent;'
        f'font-variant-numeric:tabular-nums"><thead>{line("th", header)}</thead><tbody>{body}</tbody></table>'
    )


def bars_html(parts: Sequence[tuple[str, float, str]], *, width: int = 640) -> str:
    """Return one horizontal bar cut in parts, as inline SVG, with a legend in the page's text colour.

    Parameters
    ----------
    parts : (label, share of one, colour); parts of no share are left out.
    """
    x, bar, legend = 0.0, [], []
    for label, share, colour in parts:
        if share <= 0:
            continue
        shown = html.escape(f"{label} {share_text(share)}")
        bar.append(
            f'<rect x="{x:.2f}" y="0" width="{share * width:.2f}" height="22" fill="{colour}">'
            f"<title>{shown}</title></rect>"
        )
        legend.append(
            f'<span style="white-space:nowrap;margin-right:14px"><svg width="10" height="10" aria-hidden="true">'
            f'<rect width="10" height="10" rx="2" fill="{colour}"/></svg> {shown}</span>'
        )
        x += share * width
    return (
        f'<svg role="img" viewBox="0 0 {width} 22" width="{width}" height="22" style="max-width:100%;display:block;'
        f'margin:6px 0 4px" preserveAspectRatio="none">{"".join(bar)}</svg>'
        f'<div style="margin-bottom:8px;max-width:{width}px">{"".join(legend)}</div>'
    )
