"""Charts as inline SVG: axes, bars, areas and lines, with ticks that people read easily and labels that fit.

Text takes the page's colour (`currentColor`). A mark takes its colour by class (`k-NAME`, from
:func:`kvsim.reports._colours.css`) or, with `inline`, as an attribute, for pages that no style sheet reaches. Legends
are HTML beside the picture (:func:`legend`), so that they wrap instead of overlapping.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from kvsim.reports import _colours

__all__ = [
    "Axis",
    "Bar",
    "Line",
    "area_chart",
    "bar_chart",
    "curve_chart",
    "label_width",
    "legend",
    "linear_axis",
    "log_axis",
    "nice_step",
    "number",
    "scaled_axis",
    "steps_chart",
    "time_axis",
]

Floats = np.ndarray[Any, Any]
FONT = 12
_CHAR = 6.7
"""Width of a character of the labels in user units, on the large side: what is reckoned to fit does fit."""
_INK = 'fill="currentColor"'
_TENTHS = ' transform="scale(.1)" vector-effect="non-scaling-stroke"'


@dataclass(frozen=True)
class Axis:
    """A scale with its ticks.

    Parameters
    ----------
    low, high : values at the two ends, in `unit` times `scale`.
    ticks : value and label of each.
    title : what is measured, with its unit.
    log : whether the scale is logarithmic.
    scale : SI value of one `unit` (60 for minutes).
    unit : of the labels.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str
    log: bool = False
    scale: float = 1.0
    unit: str = ""

    def place(self, value: Floats | float) -> Floats:
        """Return where values lie between the two ends, 0 to 1; what lies outside goes to the nearer end."""
        values = np.asarray(value, float)
        if self.log:
            values, low, high = np.log(np.maximum(values, self.low)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)


@dataclass(frozen=True)
class Bar:
    """One horizontal bar of a bar chart: a label, parts of (name, value, colour key), and words at its end."""

    label: str
    parts: tuple[tuple[str, float, str], ...]
    end: str = ""
    shown: Callable[[float], str] = field(default=lambda v: number(v))


@dataclass(frozen=True)
class Line:
    """One line or area of a chart: its name, its values at the chart's points, its colour key, its dashes."""

    name: str
    values: Floats
    key: str
    dash: str = ""


# ---- numbers ------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """Show a number without exponent and without trailing zeros, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "n/a"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(places, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def nice_step(span: float, most: int) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that cuts `span` in at most `most` parts."""
    if span <= 0 or not math.isfinite(span):
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / max(most, 1)))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0) if span / (m * power) <= most * (1 + 1e-9))


def linear_axis(
    high: float, title: str, *, most: int = 5, scale: float = 1.0, unit: str = "", exact: bool = False
) -> Axis:
    """Return an axis from 0 to `high`, or to the tick above it unless it must end there (`exact`)."""
    high = high / scale if high > 0 else 1.0
    step = nice_step(high, most)
    count = math.floor(high / step + 1e-9) if exact else math.ceil(high / step - 1e-9)
    ticks = tuple((i * step * scale, number(i * step, 6)) for i in range(count + 1))
    return Axis(0.0, (high if exact else count * step) * scale, ticks, title, scale=scale, unit=unit)


_SCALES = {
    "s": ((86400.0 * 3, 86400.0, "d"), (3600.0 * 3, 3600.0, "h"), (180.0, 60.0, "min"), (1.0, 1.0, "s"),
          (1e-3, 1e-3, "ms"), (1e-6, 1e-6, "µs"), (0.0, 1e-9, "ns")),
    "B": ((1e18, 1e18, "EB"), (1e15, 1e15, "PB"), (1e12, 1e12, "TB"), (1e9, 1e9, "GB"), (1e6, 1e6, "MB"),
          (1e3, 1e3, "kB"), (0.0, 1.0, "B")),
    "": ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.0, 1.0, "")),
}  # fmt: skip


def _scale_of(value: float, unit: str) -> tuple[float, str]:
    return next((scale, name) for least, scale, name in _SCALES[unit] if value >= least)


def scaled_axis(high: float, what: str, unit: str, *, most: int = 5, per: str = "") -> Axis:
    """Return an axis from 0 in the unit that people would choose: GB for bytes, k for plain counts.

    Parameters
    ----------
    high : the largest value, in SI.
    what : what is measured; the unit is put behind it.
    unit : "s", "B" or "" (a count).
    per : what a count is divided by ("s" for tokens a second).
    """
    scale, name = _scale_of(high, unit)
    name = f"{name}/{per}" if per and name else name
    return linear_axis(high, f"{what} ({name})" if name else what, most=most, scale=scale, unit=name)


def time_axis(seconds: float, what: str = "time", *, most: int = 10) -> Axis:
    """Return an axis from 0 that ends exactly at `seconds`."""
    scale, name = _scale_of(seconds, "s")
    return linear_axis(seconds, f"{what} ({name})", most=most, scale=scale, unit=name, exact=True)


def log_axis(low: float, high: float, what: str, *, most: int = 9) -> Axis:
    """Return a logarithmic axis of seconds, from the tick below `low` to the tick above `high`."""
    high = max(high, 1e-12)
    low = min(max(low, high * 1e-9), high)
    marks = (1, 2, 5) if math.log10(high / low) * 3 + 2 <= most else (1,)
    # 4e-10 decades are less than the 1e-9 by which a value may pass its tick
    first, last = math.floor(math.log10(low) + 4e-10), math.ceil(math.log10(high) - 4e-10)
    values = [m * 10.0**e for e in range(first, last + 1) for m in marks]
    below = [v for v in values if v <= low * (1 + 1e-9)][-1:]
    above = [v for v in values if v >= high * (1 - 1e-9)][:1]
    inner = [v for v in values if low < v < high]
    values = sorted({*below, *inner, *above})
    if len(values) < 2:
        values = [values[0], values[0] * 10]
    skip = math.ceil(len(values) / (most + 1))
    ticks = tuple((v, _time_label(v)) for v in values[::skip])
    return Axis(values[0], values[-1], ticks, what, log=True, unit="s")


def _time_label(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if seconds >= scale * (1 - 1e-9):
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds / 1e-12)} ps"


# ---- the canvas ---------------------------------------------------------------------------------------------------


def _n(value: float) -> str:
    """Write a coordinate short."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _wide(text: str) -> float:
    return len(text) * _CHAR


def label_width(axis: Axis) -> int:
    """Return the width that the labels of a y axis take, in user units."""
    return math.ceil(max((_wide(text) for _, text in axis.ticks), default=0.0)) + 14


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{at}{more}>{escape(words)}</text>'


class _Frame:
    """A plot's rectangle inside its picture, with both axes drawn around it."""

    def __init__(self, x: Axis, y: Axis, *, width: int, height: int, inline: bool, label: str, left: int = 0) -> None:
        self.x, self.y, self.width, self.height, self.inline, self.label = x, y, width, height, inline, label
        self.left, self.right = max(label_width(y), left), width - 22
        self.top, self.bottom = 26, height - (44 if x.title else 26)
        self.marks: list[str] = []

    def px(self, value: Floats | float) -> Floats:
        return self.left + self.x.place(value) * (self.right - self.left)

    def py(self, value: Floats | float) -> Floats:
        return self.bottom - self.y.place(value) * (self.bottom - self.top)

    def paint(self, key: str, *, line: bool = False) -> str:
        if self.inline:
            colour = _colours.mid(key)
            return f'fill="none" stroke="{colour}" stroke-width="2"' if line else f'fill="{colour}"'
        return f'class="{"l" if line else "f"} k-{key}"'

    def axes(self) -> str:
        out = []
        grid = f"M{_n(self.left)} {_n(self.bottom)}H{_n(self.right)}"
        for value, text in self.y.ticks:
            y = float(self.py(value))
            grid += f"M{_n(self.left - 4)} {_n(y)}H{_n(self.right)}"
            out.append(_text(self.left - 8, y + 4, text, "end"))
        free = -1e9
        for value, text in self.x.ticks:
            x = float(self.px(value))
            grid += f"M{_n(x)} {_n(self.bottom)}v5"
            if self.x.log:
                grid += f"M{_n(x)} {_n(self.top)}V{_n(self.bottom)}"
            half = _wide(text) / 2
            # a label that would touch the one before it, or leave the picture, is left out: its tick stays
            if x - half > free and x + half < self.width + 4:
                out.append(_text(x, self.bottom + 18, text, "middle"))
                free = x + half + 6
        out.append(_text(2, 12, self.y.title, more=' class="t"'))
        if self.x.title:
            out.append(_text(self.right, self.bottom + 36, self.x.title, "end", ' class="t"'))
        return f'<path d="{grid}" fill="none" stroke="currentColor" stroke-opacity=".2"/>' + "".join(out)

    def svg(self, hover: Any = None) -> str:
        size = f'viewBox="0 0 {self.width} {self.height}"'
        style = ' style="max-width:100%;height:auto;display:block"' if self.inline else ""
        given = f' width="{self.width}" height="{self.height}"' if self.inline else ""
        extra, data = "", ""
        if hover is not None:
            extra = ' tabindex="0"'
            plot = {"l": self.left, "r": self.right, "t": self.top, "b": self.bottom, **hover}
            data = f'<script type="application/json">{_json(plot)}</script>'
        return (
            f'<svg role="img" aria-label="{escape(self.label)}" {size}{given}{style}{extra} font-size="{FONT}" {_INK}>'
            f"{self.axes()}{''.join(self.marks)}</svg>{data}"
        )


def _json(value: Any) -> str:
    # a name may hold "</script>": no "<" goes into the page as it is
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _rounded(values: Floats, scale: float) -> list[float | None]:
    """Return values in an axis's unit with three digits, for read-outs."""
    out: list[float | None] = []
    for v in (np.asarray(values, float) / scale).tolist():
        text = f"{v:.3g}"
        kept = float(text) if math.isfinite(v) else None
        out.append(int(kept) if kept is not None and kept == int(kept) else kept)
    return out


def legend(entries: Sequence[tuple[str, str]], *, lines: Sequence[str] | None = None, inline: bool = False) -> str:
    """Return a legend as HTML that wraps.

    Parameters
    ----------
    entries : name and colour key of each.
    lines : the dash pattern of each, where they are lines and not areas.
    inline : colours as attributes, for pages without a style sheet.
    """
    out = []
    for i, (name, key) in enumerate(entries):
        colour = f'style="color:{_colours.mid(key)}"' if inline else f'class="c k-{key}"'
        if lines is None:
            mark = '<rect x=".5" y=".5" width="13" height="11" rx="2" fill="currentColor"/>'
        else:
            dash = f' stroke-dasharray="{lines[i]}"' if lines[i] else ""
            mark = f'<path d="M0 6H26" stroke="currentColor" stroke-width="2.5"{dash}/>'
        wide = 14 if lines is None else 26
        out.append(
            f'<span style="white-space:nowrap;margin-right:16px;display:inline-block"><svg aria-hidden="true" {colour} '
            f'width="{wide}" height="12" viewBox="0 0 {wide} 12">{mark}</svg> {escape(name)}</span>'
        )
    return f'<div class="legend">{"".join(out)}</div>'


# ---- charts -------------------------------------------------------------------------------------------------------


def area_chart(
    edges: Floats, lines: Sequence[Line], *, x: Axis, y: Axis, label: str, width: int = 920, height: int = 300,
    marks: Sequence[tuple[float, str]] = (), left: int = 0, inline: bool = False,
) -> str:  # fmt: skip
    """Stack areas over intervals, the first at the bottom.

    Parameters
    ----------
    edges : [points + 1] ends of the intervals, in the axis's terms.
    lines : values [points] of each area over the intervals; an area of zeros is left out.
    x, y, label : the axes, and what the picture shows, for those who do not see it.
    marks : level lines across the plot: value, words.
    left : width kept free for the labels of the y axis, at the least: pictures below each other line up.
    """
    frame = _Frame(x, y, width=width, height=height, inline=inline, label=label, left=left)
    xs = frame.px(edges)
    below = np.zeros(len(edges) - 1)
    for line in lines:
        above = below + np.nan_to_num(np.asarray(line.values, float))
        path = _band(xs, frame.py(below), frame.py(above), np.asarray(line.values, float) > 0)
        if path:
            frame.marks.append(
                f'<path {frame.paint(line.key)}{_TENTHS} d="{path}"><title>{escape(line.name)}</title></path>'
            )
        below = above
    for value, words in marks:
        at = float(frame.py(value))
        frame.marks.append(
            f'<path d="M{_n(frame.left)} {_n(at)}H{_n(frame.right)}" stroke="currentColor" stroke-dasharray="5 4" '
            f'stroke-width="1.5"><title>{escape(words)}</title></path>'
        )
    return frame.svg(None if inline else _hover(edges[:-1], lines, x, y))


def _tenths(values: Floats) -> list[int]:
    return [round(v * 10) for v in np.asarray(values, float).tolist()]


class _Pen:
    """Writes a path of level and upright strokes in tenths of a unit, relative and without what changes nothing.

    Steps between rounded places add up to them exactly, so nothing drifts.
    """

    def __init__(self) -> None:
        self.out: list[str] = []
        self.x = self.y = self.run = 0

    def move(self, x: int, y: int) -> None:
        self._level()
        self.out.append(f"M{x} {y}")
        self.x, self.y = x, y

    def to(self, x: int, y: int) -> None:
        """Go upright to `y`, then level to `x`."""
        if y != self.y:
            self._level()
            self.out.append(f"v{y - self.y}")
            self.y = y
        self.run += x - self.x
        self.x = x

    def _level(self) -> None:
        if self.run:
            self.out.append(f"h{self.run}")
        self.run = 0

    def close(self) -> None:
        self._level()
        self.out.append("z")

    def text(self) -> str:
        self._level()
        return "".join(self.out)


def _band(xs: Floats, low: Floats, high: Floats, there: np.ndarray[Any, Any]) -> str:
    """Return the outline of an area in steps, one closed piece for each run of intervals where it is."""
    pen = _Pen()
    x, bottom, top = _tenths(xs), _tenths(low), _tenths(high)
    turns = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    for first, last in zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True):
        pen.move(x[first], bottom[first])
        for i in range(first, last):
            pen.to(x[i + 1], top[i])
        for i in range(last - 1, first - 1, -1):
            pen.to(x[i], bottom[i])
        pen.close()
    return pen.text()


def steps_chart(
    edges: Floats, lines: Sequence[Line], *, x: Axis, y: Axis, label: str, width: int = 920, height: int = 220,
    inline: bool = False,
) -> str:  # fmt: skip
    """Draw lines that are level over each interval."""
    frame = _Frame(x, y, width=width, height=height, inline=inline, label=label)
    xs = frame.px(edges)
    for line in lines:
        ys = frame.py(np.nan_to_num(np.asarray(line.values, float)))
        pen, x10, y10 = _Pen(), _tenths(xs), _tenths(ys)
        pen.move(x10[0], y10[0])
        for i, level in enumerate(y10):
            pen.to(x10[i + 1], level)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        title = f"<title>{escape(line.name)}</title>"
        frame.marks.append(f'<path {frame.paint(line.key, line=True)}{dash}{_TENTHS} d="{pen.text()}">{title}</path>')
    return frame.svg(None if inline else _hover(edges[:-1], lines, x, y))


def _hover(points: Floats, lines: Sequence[Line], x: Axis, y: Axis) -> dict[str, Any]:
    """Return what a read-out needs: places of the points (0 to 1000), their labels, names, keys and values."""
    return {
        "p": [round(v * 1000) for v in x.place(points).tolist()],
        "x": _rounded(points, x.scale),
        "u": x.unit,
        "y": y.unit,
        "s": [[line.name, line.key, _rounded(line.values, y.scale)] for line in lines if np.any(line.values)],
    }


def curve_chart(
    curves: Sequence[tuple[str, Floats, Floats, str, str]], *, x: Axis, y: Axis, label: str,
    marks: Sequence[tuple[float, str, str]] = (), width: int = 340, height: int = 230, inline: bool = False,
) -> str:  # fmt: skip
    """Draw curves given by points.

    Parameters
    ----------
    curves : name, x values, y values, colour key and dashes of each.
    marks : upright lines: x value, words, colour key.
    """
    frame = _Frame(x, y, width=width, height=height, inline=inline, label=label)
    for value, words, key in marks:
        at = float(frame.px(value))
        frame.marks.append(
            f'<path {frame.paint(key, line=True)} stroke-dasharray="2 3" '
            f'd="M{_n(at)} {_n(frame.top)}V{_n(frame.bottom)}"><title>{escape(words)}</title></path>'
        )
    for name, xs, ys, key, dash in curves:
        path: list[str] = []
        last = ("", "")
        for px, py in zip(frame.px(xs).tolist(), frame.py(ys).tolist(), strict=True):
            point = (_n(px), _n(py))
            if point != last:
                path.append(f"{'L' if path else 'M'}{point[0]} {point[1]}")
            last = point
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        title = f"<title>{escape(name)}</title>"
        frame.marks.append(f'<path {frame.paint(key, line=True)}{dashes} d="{"".join(path)}">{title}</path>')
    return frame.svg()


def bar_chart(
    bars: Sequence[Bar], *, x: Axis, label: str, width: int = 920, thick: int = 22, gap: int = 10, inline: bool = False
) -> str:
    """Draw horizontal bars, each cut in parts, with its label to the left and its words to the right.

    Parts of no value are left out; a part that would be thinner than half a unit is drawn as half a unit.
    """
    names = [_cut(bar.label, 34) for bar in bars]
    left = math.ceil(max((_wide(name) for name in names), default=0.0)) + 14
    room = math.ceil(max((_wide(bar.end) for bar in bars), default=0.0))
    right = width - (room + 14 if room else 22)
    bottom = 8 + len(bars) * (thick + gap)
    out = []
    grid = ""
    free = -1e9
    for value, text in x.ticks:
        at = left + float(x.place(value)) * (right - left)
        grid += f"M{_n(at)} 2V{_n(bottom + 4)}"
        half = _wide(text) / 2
        if at - half > free and at + half < width + 4:
            out.append(_text(at, bottom + 17, text, "middle"))
            free = at + half + 6
    out.insert(0, f'<path d="{grid}" fill="none" stroke="currentColor" stroke-opacity=".2"/>')
    out.append(_text(right, bottom + 35, x.title, "end", ' class="t"'))
    for i, bar in enumerate(bars):
        y = 6 + i * (thick + gap)
        title = f"<title>{escape(bar.label)}</title>" if names[i] != bar.label else ""
        words = f'<text x="{_n(left - 8)}" y="{_n(y + thick / 2 + 4)}" text-anchor="end">'
        out.append(f"{words}{escape(names[i])}{title}</text>")
        at = 0.0
        for name, value, key in bar.parts:
            if value <= 0:
                continue
            first, at = at, at + value
            x0 = left + float(x.place(first)) * (right - left)
            x1 = left + float(x.place(at)) * (right - left)
            colour = f'fill="{_colours.mid(key)}"' if inline else f'class="a k-{key}"'
            out.append(
                f'<rect {colour} x="{_n(x0)}" y="{_n(y)}" width="{_n(max(x1 - x0, 0.5))}" height="{thick}">'
                f"<title>{escape(f'{bar.label}: {name} {bar.shown(value)}')}</title></rect>"
            )
        if bar.end:
            out.append(_text(right + 8, y + thick / 2 + 4, bar.end))
    height = bottom + 42
    style = f' width="{width}" height="{height}" style="max-width:100%;height:auto;display:block"' if inline else ""
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}"{style} font-size="{FONT}" {_INK}>'
        f"{''.join(out)}</svg>"
    )
