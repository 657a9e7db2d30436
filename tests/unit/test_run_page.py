"""The page of a run: it stands alone, says what the result says, draws shares to scale, and stays small."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_core import machine, run_result

from kvsim._table import share_text
from kvsim.errors import KvsimError
from kvsim.machine import Machine
from kvsim.model import Model
from kvsim.reports import _colours, _html, _run_figures, _svg, run_page
from kvsim.units import format_bytes

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what the tests look at, and fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.data: list[str] = []
        self.feed(text)
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.data.append(data)
        elif self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def with_model(result: Any) -> Any:
    return dataclasses.replace(result, model=Model.load("llama-3.1-70b").to_dict())


def area(path: str) -> float:
    """Area inside a path of M, h, v and z, in square tenths, by the shoelace formula."""
    total = 0.0
    points: list[tuple[int, int]] = []
    for letter, numbers in re.findall(r"([Mhvz])([-\d ]*)", path):
        values = [int(v) for v in numbers.split()]
        if letter == "M":
            points = [(values[0], values[1])]
        elif letter == "h":
            points.append((points[-1][0] + values[0], points[-1][1]))
        elif letter == "v":
            points.append((points[-1][0], points[-1][1] + values[0]))
        else:
            ring = [*points[1:], points[0]]
            total += abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, ring, strict=True))) / 2
    return total


# ---- what it says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "pools"), [(300, 1), (600, 2), (0, 1), (1, 1)])
def test_page_is_one_whole_document_that_fetches_nothing(n: int, pools: int) -> None:
    text = run_page.page(run_result(n, pools=pools))
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert not [a for _, attrs in page.tags for a in attrs if a in ("src", "srcset", "action", "poster", "background")]
    assert all((attrs["href"] or "").startswith(("#", "data:")) for _, attrs in page.tags if "href" in attrs)
    assert "url(" not in text
    assert "@import" not in text
    assert "fetch(" not in text
    anchors = {attrs.get("id") for _, attrs in page.tags}
    menu = {(a["href"] or "")[1:] for a in page.of("a")} - {"light", "dark", "auto"}
    assert menu <= anchors


def test_the_summary_says_what_the_result_says() -> None:
    result = run_result(400)
    text = Page(run_page.page(result)).text
    rows = {row["metric"]: row for row in result.latency.where(population="all")}
    for metric in ("ttft", "tpot", "e2e"):
        assert _run_figures.seconds(rows[metric]["p50_s"]) in text
        assert f"p99 {_run_figures.seconds(rows[metric]['p99_s'])}" in text
    assert f"{int(result.done.sum())} of 400 requests done" in text
    # only people have goals of latency: agents, who have none, must not hide their misses
    people = result.goodput.rows()[0]
    assert f"goodput {people['share'] * 100:.1f} % {people['within']} of {people['requests']} requests that" in text
    rent = result.cost.rows()[0]["usd_per_m_output_tokens"]
    assert _svg.number(rent) in text
    assert f"{result.hit_rate() * 100:.1f} %" in text
    assert "1 request rejected" in text
    assert "1 request never reached" in text
    assert result.config_hash in text
    assert result.kvsim_version in text


def test_without_goals_there_is_no_goodput() -> None:
    result = run_result(60, two=False)
    text = Page(run_page.page(result)).text
    assert "goodput" not in text
    assert f"requests/s {_svg.number(58 / result.makespan_s)} done; no goal of latency set" in text


def test_broken_pins_are_pauses() -> None:
    text = Page(run_page.page(run_result(12, changes={"pins_broken": 1}))).text
    assert "The blocks of 1 pause lost their pin to make room." in text


def test_bandwidth_used_is_what_moved_over_what_could() -> None:
    result = with_model(run_result(60))
    tier = Machine.from_dict({**result.machine, "sources": {}}).tiers[0]
    a = result.arrays
    moved = int(a["read_bytes"][0].sum() + a["writeback_read_bytes"][0].sum())
    picture = html.unescape(_run_figures.busy(result))
    share = moved / (tier.total_read_bytes_per_s * result.makespan_s)
    assert f"{share_text(share)} · {format_bytes(moved, digits=3)}" in picture
    idle = np.zeros_like(a["link_up_bytes"])
    assert "towards compute" in picture
    assert "towards compute" not in _run_figures.busy(run_result(60, changes={"link_up_bytes": idle}))


def test_a_link_between_pools_says_which_way() -> None:
    result = run_result(60, pools=2)
    links = ({"name": "wire", "between": ["prefill", "decode"]},)
    arrays = {
        **result.arrays,
        **{k: result.arrays[k][:1] for k in ("link_up_bytes", "link_down_bytes", "link_busy_ps")},
    }
    picture = _run_figures.busy(dataclasses.replace(result, link_info=links, arrays=arrays))
    assert "wire: to prefill" in picture
    assert "wire: to decode" in picture


def test_every_picture_is_described_and_has_its_numbers() -> None:
    page = Page(run_page.page(run_result(300, pools=2)))
    pictures = [attrs for attrs in page.of("svg") if attrs.get("role") == "img"]
    assert len(pictures) == 16
    assert all(attrs["aria-label"] for attrs in pictures)
    assert all(attrs.get("role") == "img" or attrs.get("aria-hidden") == "true" for attrs in page.of("svg"))
    titles = [t for t, _ in page.tags if t == "summary"]
    assert len(titles) >= 12
    # every interactive picture can be reached by keyboard
    assert sum("tabindex" in attrs for attrs in pictures) == sum("script" in t for t, a in page.tags if a.get("type"))


def test_assumptions_show_every_number_with_source_and_mark_doubts() -> None:
    result = with_model(run_result(30))
    text = run_page.page(result)
    words = Page(text).text
    shown = machine()
    for path, _, _ in shown.numbers():
        assert path in words
    for path, source in shown.doubtful():
        row = re.search(rf'<tr class="warn"><th scope="row"[^>]*>{re.escape(path)}</th>.*?</tr>', text)
        assert row, path
        assert f"{source.quality} ?" in row[0]
    assert "config.json of meta-llama" in words
    assert "batch" in words
    assert "256" in words


def test_sources_survive_a_machine_that_lost_parts() -> None:
    # the split machine's sources name the pool of the preset it came from
    text = Page(run_page.page(run_result(30, pools=2))).text
    assert "tier.ssd.norm" in text
    assert "measured" in text
    assert "none given" in text


def test_inputs_that_are_no_whole_machine_are_shown_as_they_are() -> None:
    result = run_result(30)
    bare = dataclasses.replace(result, machine={"name": "toy", "pool": {"gpu": {"odd": [1, 2]}}})
    text = Page(run_page.page(bare)).text
    assert "pool.gpu.odd" in text
    assert "1, 2" in text


def test_unknown_prices_are_not_zero() -> None:
    result = run_result(60)
    bare = dataclasses.replace(result, machine={**result.machine, "price_usd_per_h": None, "capex_usd": None})
    text = run_page.page(bare)
    assert re.search(r"USD per M output tokens</span><b>n/a</b><span>rented; n/a owned", text)
    assert "What of the machine&#x27;s price is memory" not in text


def test_names_from_a_trace_cannot_break_the_page() -> None:
    result = run_result(60)
    bad = "</script><script>alert(1)</script><b>&\"'"
    odd = dataclasses.replace(
        result,
        trace={**result.trace, "name": bad},
        tier_info=tuple({**t, "name": f"{bad}{i}"} for i, t in enumerate(result.tier_info)),
        populations=tuple({**p, "name": f"{bad}{i}"} for i, p in enumerate(result.populations)),
        options={bad: bad},
    )
    text = run_page.page(odd)
    assert "<script>alert" not in text
    page = Page(text)
    assert len([1 for a in page.of("script") if not a.get("type")]) == 1
    assert bad in page.text
    assert "alert(1)</script>" not in run_page.short(odd)


def test_one_population_one_pool_has_no_needless_parts() -> None:
    result = run_result(120, two=False, replicas=1)
    page = Page(run_page.page(result))
    assert "over time: pool" not in page.text
    assert len(result.population_names) == 1
    assert result.population_names[0] in page.text
    assert "share of the makespan" in page.text


def test_same_run_same_page_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    run_page.write(run_result(50), path)
    assert path.read_text() == run_page.page(run_result(50))
    with pytest.raises(KvsimError, match="does not exist"):
        run_page.write(run_result(50), tmp_path / "nowhere" / "run.html")


def test_page_of_a_long_run_stays_small() -> None:
    result = with_model(run_result(100_000, pools=2))
    text = run_page.page(result)
    assert len(text.encode()) < 400_000
    for data in Page(text).data[:-1]:
        chart = json.loads(data)
        assert len(chart["p"]) <= 600
        assert all(len(values) == len(chart["p"]) for _, _, values in chart["s"])
        assert chart["p"] == sorted(chart["p"])


def test_short_form_needs_no_script_and_no_style_sheet() -> None:
    for pools in (1, 2):
        text = run_page.short(run_result(200, pools=pools))
        page = Page(text)
        assert not page.of("script")
        assert not page.of("style")
        assert len([a for a in page.of("svg") if a.get("role") == "img"]) == 2
        assert not [a for _, a in page.tags if (a.get("class") or "").startswith(("k-", "a ", "l ", "f "))]
        assert len(text) < 120_000
    assert "n/a" not in Page(run_page.short(run_result(0))).text


# ---- that it is drawn to scale ------------------------------------------------------------------------------------


def test_areas_over_time_are_to_scale() -> None:
    result = run_result(400)
    text = _run_figures.wall_over_time(result, 0)
    shares = dict(zip(result.identity["part"], result.identity["share"], strict=True))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])  # type: ignore[index]
    plot = (data["r"] - data["l"]) * (data["b"] - data["t"]) * 100
    found = {}
    for path, name in re.findall(r'<path class="f [^"]*"[^>]* d="([^"]*)"><title>([^<]*)</title>', text):
        found[name] = area(path) / plot
    assert sum(found.values()) == pytest.approx(1, abs=0.01)
    assert found["compute"] == pytest.approx(shares["compute"], rel=0.02)
    assert found["overhead"] == pytest.approx(shares["overhead"], rel=0.02)
    stalls = sum(value for name, value in found.items() if name.startswith("stall: "))
    assert stalls == pytest.approx(shares["stalls"], rel=0.02)
    assert "bubble" not in found


def test_bars_are_to_scale() -> None:
    result = run_result(200, pools=2)
    text = _run_figures.wall(result)
    bars = re.findall(r'width="([\d.]+)" height="28"><title>(\w+) \(x 2\): ([^<]*?) ([\d.]+) %</title>', text)
    assert len(bars) == 2 * 11
    scale = [float(width) / float(percent) for width, _, _, percent in bars if float(percent) > 5]
    assert max(scale) / min(scale) < 1.02
    for pool in ("prefill", "decode"):
        assert sum(float(p) for _, of, _, p in bars if of == pool) == pytest.approx(100, abs=0.6)


def test_states_of_all_requests_sum_to_the_mean_time() -> None:
    result = run_result(300)
    text = _run_figures.states(result)
    mean = float(np.nanmean(result.e2e_s))
    assert f"{_run_figures.seconds(mean)} · {int(result.done.sum())} requests" in text
    counts = [int(v.replace(",", "")) for v in re.findall(r"· ([\d,]+) requests</text>", text)[-4:]]
    assert sum(counts) == int(result.done.sum())


def test_distributions_pass_through_the_percentiles() -> None:
    values = np.random.default_rng(3).lognormal(0, 1, 50_000)
    at = _run_figures._quantiles(len(values))
    assert len(at) <= 200
    assert (np.diff(at) > 0).all()
    assert at[0] == 0
    assert at[-1] == 1
    for q in (0.5, 0.9, 0.99):
        drawn = np.interp(q, at, np.quantile(values, at))
        assert drawn == pytest.approx(np.quantile(values, q), rel=0.02)


def test_intervals_cover_the_run_and_leave_no_sliver() -> None:
    for n in (5, 60, 400, 3000):
        result = run_result(n)
        for most in (7, 60, 300):
            edges, first, _ = _run_figures._intervals(result, most)
            assert len(edges) == len(first) + 1 <= most + 1
            assert edges[0] == 0
            assert edges[-1] == result.makespan_s
            wide = np.diff(edges)
            assert (wide > 0).all()
            if len(wide) > 1:
                assert wide.min() >= wide.max() / 3.01


# ---- axes and colours ---------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e18), st.integers(1, 12))
def test_ticks_are_few_round_and_cover_the_axis(high: float, most: int) -> None:
    axis = _svg.linear_axis(high, "x", most=most)
    assert axis.high >= high * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= most + 2
    assert axis.ticks[0][0] == 0
    exact = _svg.linear_axis(high, "x", most=most, exact=True)
    assert exact.high == high
    assert all(value <= high * (1 + 1e-9) for value, _ in exact.ticks)
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


@given(st.floats(1e-9, 1e6), st.floats(1, 1e9), st.integers(2, 10))
def test_log_axis_holds_its_values(low: float, ratio: float, most: int) -> None:
    high = low * ratio
    axis = _svg.log_axis(low, high, "x", most=most)
    assert axis.low <= max(low, high * 1e-9) * (1 + 1e-9)
    assert axis.high >= high * (1 - 1e-9)
    assert axis.low < axis.high
    assert len(axis.ticks) <= most + 1
    places = axis.place(np.array([v for v, _ in axis.ticks]))
    assert (np.diff(places) > 0).all()
    assert 0 <= float(axis.place(low)) <= float(axis.place(high)) <= 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.00123456, "0.00123"), (19.2, "19.2"), (7.0, "7"), (999.96, "1,000")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert _svg.number(value) == text


def test_time_axis_speaks_in_units_people_use() -> None:
    assert [_svg.time_axis(s).title for s in (0.002, 12, 600, 40_000, 1_000_000)] == [
        "time (ms)", "time (s)", "time (min)", "time (h)", "time (d)",
    ]  # fmt: skip


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
VISIONS = {
    "everyone": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
STACKS = (
    ("compute", "recompute", "overhead", "collectives", "t0", "t1", "t2", "t3", "bubble", "idle_no_request",
     "idle_tool", "idle_think"),
    ("queued", "t0", "t1", "t2", "t3", "bubble", "compute", "recompute", "decode", "preempted"),
    ("t0", "t1", "t2", "t3", "nowhere"),
)  # fmt: skip


def lab(colour: str, vision: Any) -> np.ndarray[Any, Any]:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(vision) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.where(xyz / [0.9505, 1, 1.089] > 0.008856, np.cbrt(xyz / [0.9505, 1, 1.089]), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("vision", VISIONS)
def test_what_is_stacked_together_stays_apart_for_everyone(column: int, vision: str) -> None:
    for stack in STACKS:
        seen = {key: lab(_colours.COLOURS[key][column], VISIONS[vision]) for key in stack}
        for i, one in enumerate(stack):
            for two in stack[:i]:
                assert np.linalg.norm(seen[one] - seen[two]) > 9.5, (one, two)


def test_text_stands_out_from_its_background() -> None:
    def luminance(colour: str) -> float:
        short = colour if len(colour) == 7 else "#" + "".join(c * 2 for c in colour[1:])
        rgb = np.array([int(short[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    themes = re.findall(r"\{(--bg:[^}]*)\}", _html._CSS)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--(\w+):(#\w+)", theme))
        for words in ("fg", "soft", "warn", "link"):
            for ground in ("bg", "card"):
                high, low = sorted((luminance(colours[words]), luminance(colours[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (words, ground)


@pytest.mark.parametrize("name", Machine.names())
def test_every_preset_has_its_page(name: str) -> None:
    result = run_result(60, on=Machine.load(name))
    text = Page(run_page.page(result)).text
    for tier in result.tiers:
        assert f"{tier} in use" in text
    for pool in result.pool_names:
        assert pool in text


def test_every_colour_of_a_page_is_defined() -> None:
    text = run_page.page(run_result(200, pools=2))
    used = set(re.findall(r"\bk-(\w+)", re.sub(r"<style>.*?</style>", "", text, flags=re.S)))
    assert used <= set(_colours.COLOURS)
    for key in used:
        assert text.count(f".k-{key}{{--k:") == 3


def test_tables_say_what_their_cells_are() -> None:
    page = Page(_html.table(["name", "value"], [["a & b", "1"], ["c", "2"]], warn=[1], label="things"))
    assert [a.get("scope") for a in page.of("th")] == ["col", "col", "row", "row"]
    assert "a & b" in page.text
    assert [a.get("class") for a in page.of("tr")] == [None, None, "warn"]
