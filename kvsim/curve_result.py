"""What a curve found: hits against capacity, one curve a policy."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log10
from typing import TYPE_CHECKING, Any

import numpy as np

from kvsim import _saved
from kvsim._table import Table, plain, share_text, table_html, text_table
from kvsim.errors import KvsimError
from kvsim.units import format_bytes, format_count

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["CurveResult"]

UNITS = ("blocks", "tokens", "bytes")
_COLOURS = ("#e0663f", "#4f8fd9", "#2e9e6b", "#8f7bd1", "#c9a227", "#d35fa0", "#4fb3bf", "#8a8f98")


@dataclass(frozen=True, eq=False, repr=False)
class CurveResult:
    """Hits of each policy at each capacity.

    Made by :func:`kvsim.curve`, or read back by :meth:`load`.

    Attributes
    ----------
    trace : the trace's name.
    unique_blocks : its unique blocks.
    policies : P policy names.
    capacities : C capacities, in `unit` ("blocks", "tokens" or "bytes").
    hit_rule, weight : what counts as a hit ("block", "prefix") and what it weighs ("block", "token", "byte").
    hit_count : [P, C] hits in that weight.
    total : all look-ups that were measured, in that weight.
    options : every other input that had a say.
    """

    trace: str
    unique_blocks: int
    policies: tuple[str, ...]
    capacities: tuple[int, ...]
    hit_count: np.ndarray[Any, Any]
    total: int | float
    hit_rule: str = "block"
    weight: str = "block"
    unit: str = "blocks"
    options: Mapping[str, Any] = field(default_factory=dict)
    kvsim_version: str = field(default_factory=_saved.kvsim_version)

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(str(p) for p in self.policies))
        object.__setattr__(self, "capacities", tuple(plain(c) for c in self.capacities))
        object.__setattr__(self, "total", plain(self.total))
        object.__setattr__(self, "unique_blocks", int(self.unique_blocks))
        object.__setattr__(self, "options", plain(self.options))
        hits = np.array(self.hit_count)
        if hits.dtype.kind not in "iuf":
            raise KvsimError(f"curve: found hit_count of type {hits.dtype}, expected numbers")
        shape = (len(self.policies), len(self.capacities))
        if hits.shape != shape:
            raise KvsimError(f"curve: found hit_count of shape {hits.shape}, expected policies x capacities {shape}")
        if self.unit not in UNITS:
            raise KvsimError(f"curve: found unit {self.unit!r}, expected one of {', '.join(UNITS)}")
        hits = hits.astype(np.float64 if hits.dtype.kind == "f" else np.int64)
        hits.flags.writeable = False
        object.__setattr__(self, "hit_count", hits)

    @property
    def hit_rate(self) -> np.ndarray[Any, Any] | None:
        """[P, C] hits over all look-ups; None where nothing was looked up."""
        return self.hit_count / self.total if self.total else None

    @property
    def config_hash(self) -> str:
        """16 hex digits that change when an input does."""
        return _saved.config_hash(
            {
                "trace": self.trace,
                "unique_blocks": self.unique_blocks,
                "policies": self.policies,
                "capacities": self.capacities,
                "unit": self.unit,
                "hit_rule": self.hit_rule,
                "weight": self.weight,
                "options": self.options,
            }
        )

    @property
    def table(self) -> Table:
        """Columns policy, hit_rule, weight, capacity_<unit>, hit_count, hit_rate, total: one row a point."""
        count = len(self.capacities)
        points = len(self.policies) * count
        rate = self.hit_rate
        return Table(
            "curve",
            {
                "policy": [p for p in self.policies for _ in range(count)],
                "hit_rule": [self.hit_rule] * points,
                "weight": [self.weight] * points,
                f"capacity_{self.unit}": list(self.capacities) * len(self.policies),
                "hit_count": self.hit_count.ravel().tolist(),
                "hit_rate": [None] * points if rate is None else rate.ravel().tolist(),
                "total": [self.total] * points,
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return {"trace", "unique_blocks", "curves": [one a policy]}, JSON-ready, counts as ints."""
        rate = self.hit_rate
        return {
            "trace": self.trace,
            "unique_blocks": self.unique_blocks,
            "curves": [
                {
                    "policy": policy,
                    "hit_rule": self.hit_rule,
                    "weight": self.weight,
                    f"capacity_{self.unit}": list(self.capacities),
                    "hit_count": self.hit_count[p].tolist(),
                    "hit_rate": [None] * len(self.capacities) if rate is None else rate[p].tolist(),
                    "total": self.total,
                }
                for p, policy in enumerate(self.policies)
            ],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return :attr:`table` as a pandas DataFrame (pip install 'kvsim[pandas]')."""
        return self.table.to_pandas()

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table` as a PyArrow table (pip install 'kvsim[parquet]')."""
        return self.table.to_arrow()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the curves to one .npz or .json file, whole or not at all; :meth:`load` reads back equal ones."""
        document = {
            "kvsim_version": self.kvsim_version,
            "config_hash": self.config_hash,
            "policies": self.policies,
            "capacities": self.capacities,
            "unit": self.unit,
            "hit_rule": self.hit_rule,
            "weight": self.weight,
            "total": self.total,
            "options": self.options,
            **self.to_dict(),
        }
        _saved.save(path, "curve", document, {"hit_count": self.hit_count})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CurveResult:
        """Read what :meth:`save` wrote; KvsimError for anything else, OSError where the file cannot be read."""
        _, document, arrays = _saved.load(path, "curve")
        return cls._from_saved(path, document, arrays)

    @classmethod
    def _from_saved(
        cls, path: str | os.PathLike[str], document: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> CurveResult:
        names = (
            "trace", "unique_blocks", "policies", "capacities", "total", "hit_rule", "weight", "unit", "options",
            "kvsim_version",
        )  # fmt: skip
        try:
            return cls(hit_count=arrays["hit_count"], **{n: document[n] for n in names})
        except (KeyError, TypeError, ValueError, KvsimError) as error:
            raise KvsimError(f"{path}: found a damaged curve ({error}), expected a file saved by kvsim") from None

    def _key(self) -> tuple[Any, ...]:
        return (self.config_hash, self.kvsim_version, self.total, self.hit_count.dtype.kind, self.hit_count.tobytes())

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, CurveResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _capacity(self, capacity: float) -> str:
        if self.unit == "bytes":
            return format_bytes(capacity)
        return f"{capacity:,}" if capacity < 10**9 else format_count(capacity)

    def _heading(self) -> str:
        total = format_bytes(self.total) if self.weight == "byte" else f"{self.total:,} {self.weight}s"
        return (
            f"{self.trace} · {self.unique_blocks:,} unique blocks · hits by the {self.hit_rule} rule, "
            f"weighed by {self.weight}, of {total}"
        )

    def _grid(self) -> tuple[list[str], list[list[str]]]:
        rate = self.hit_rate
        rows = [
            [self._capacity(c), *(share_text(None if rate is None else float(rate[p, i]), digits=2) for p in
                                  range(len(self.policies)))]
            for i, c in enumerate(self.capacities)
        ]  # fmt: skip
        return [f"capacity ({self.unit})", *self.policies], rows

    def __repr__(self) -> str:
        header, rows = self._grid()
        groups: list[str] = []
        start = 1
        while start < len(header) or not groups:
            # as many policies side by side as fit in 100 columns
            end, width = start, max(len(r[0]) for r in (header, *rows)) + 2
            while end < len(header) and (width := width + max(10, len(header[end])) + 2) <= 100:
                end += 1
            end = max(end, start + 1)
            part = [0, *range(start, min(end, len(header)))]
            groups.append(text_table([header[i] for i in part], [[r[i] for i in part] for r in rows], left=()))
            start = end
        return "\n".join([self._heading()[:100], *groups])

    def _repr_html_(self) -> str:
        header, rows = self._grid()
        return (
            f'<div class="kvsim-curve" style="color:inherit;font-size:13px"><div><b>{html.escape(self._heading())}</b>'
            f"</div>{self._svg()}{table_html(header, rows, left=())}</div>"
        )

    def _svg(self, width: int = 560, height: int = 240) -> str:
        rate = self.hit_rate
        if rate is None or len(self.capacities) < 2:
            return ""
        left, right, top, bottom = 46, 130, 10, 34
        # capacities span decades: a logarithmic axis, zero drawn at one
        xs = [log10(max(c, 1)) for c in self.capacities]
        low, high = min(xs), max(xs)
        peak = _ceiling(float(rate.max()))

        def x(value: float) -> float:
            return left + (value - low) / ((high - low) or 1) * (width - left - right)

        def y(value: float) -> float:
            return height - bottom - value / peak * (height - top - bottom)

        marks = []
        for step in range(5):
            share = peak * step / 4
            marks.append(
                f'<line x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="currentColor" '
                f'stroke-opacity=".18"/><text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end" '
                f'fill="currentColor">{share * 100:.3g}%</text>'
            )
        for at, capacity in ((low, min(self.capacities)), (high, max(self.capacities))):
            marks.append(
                f'<text x="{x(at):.1f}" y="{height - 16}" text-anchor="middle" fill="currentColor">'
                f"{html.escape(self._capacity(capacity))}</text>"
            )
        marks.append(
            f'<text x="{(left + width - right) / 2:.1f}" y="{height - 2}" text-anchor="middle" fill="currentColor">'
            f"capacity ({self.unit}, logarithmic)</text>"
        )
        order = np.argsort(xs, kind="stable")
        for p, policy in enumerate(self.policies):
            colour = _COLOURS[p % len(_COLOURS)]
            points = " ".join(f"{x(xs[i]):.1f},{y(float(rate[p, i])):.1f}" for i in order)
            row = top + 8 + 15 * p
            marks.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                f'<rect x="{width - right + 10}" y="{row - 8}" width="10" height="10" rx="2" fill="{colour}"/>'
                f'<text x="{width - right + 25}" y="{row + 1}" fill="currentColor">{html.escape(policy)}</text>'
            )
        tall = max(height, top + 24 + 15 * len(self.policies))
        return (
            f'<svg role="img" viewBox="0 0 {width} {tall}" width="{width}" height="{tall}" '
            f'style="max-width:100%;font-size:11px;display:block;margin:6px 0">{"".join(marks)}</svg>'
        )


def _ceiling(value: float, steps: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)) -> float:
    return next((s for s in steps if s >= value), 1.0)
