"""The page of a run in a real browser: it draws, in light and in dark, without errors, overlaps or requests."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_core import run_result

from kvsim.reports import run_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
    "--force-device-scale-factor=1", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
LIMIT_S = 120

BEFORE = """<script>
window.onerror = function (message) { document.documentElement.setAttribute("data-error", message); };
</script>"""
AFTER = """<script>
(function () {
  var out = {pictures: 0, empty: [], overlaps: [], outside: [], theme: getComputedStyle(document.body).backgroundColor};
  out.requests = performance.getEntriesByType("resource").map(function (e) { return e.name; });
  document.querySelectorAll("svg[role=img]").forEach(function (svg) {
    out.pictures++;
    var label = svg.getAttribute("aria-label"), marks = 0;
    svg.querySelectorAll("path[class],rect[class]").forEach(function (mark) {
      var box = mark.getBBox();
      if (box.width > 0 || box.height > 0) marks++;
    });
    if (!marks) out.empty.push(label);
    var size = svg.viewBox.baseVal, boxes = [];
    svg.querySelectorAll("text").forEach(function (text) {
      var box = text.getBBox();
      if (box.x < -1 || box.y < -1 || box.x + box.width > size.width + 1 || box.y + box.height > size.height + 1)
        out.outside.push(label + ": " + text.textContent);
      boxes.push([text.textContent, box]);
    });
    boxes.forEach(function (a, i) {
      boxes.slice(i + 1).forEach(function (b) {
        var wide = Math.min(a[1].x + a[1].width, b[1].x + b[1].width) - Math.max(a[1].x, b[1].x);
        var high = Math.min(a[1].y + a[1].height, b[1].y + b[1].height) - Math.max(a[1].y, b[1].y);
        if (wide > 0 && high > 1) out.overlaps.push(label + ": " + a[0] + " / " + b[0]);
      });
    });
  });
  var first = document.querySelector("svg[tabindex]");
  if (first) {
    var box = first.getBoundingClientRect();
    first.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 50}));
    var tip = document.querySelector(".tip");
    out.tip = tip ? tip.textContent : "";
    first.dispatchEvent(new PointerEvent("pointerleave"));
    out.left = document.querySelectorAll(".tip").length;
    first.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
    out.key = document.querySelectorAll(".tip").length;
    first.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  }
  out.wide = document.documentElement.scrollWidth - window.innerWidth;
  document.documentElement.setAttribute("data-found", JSON.stringify(out));
})();
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    said = f"no browser: none of {', '.join(NAMES)} is on PATH"
    if os.environ.get("KVSIM_BROWSER") == "1":
        pytest.fail(f"{said}, and KVSIM_BROWSER=1 asks for one")
    pytest.skip(said)


def run(browser: str, tmp_path: Path, page: Path, *flags: str, fragment: str = "") -> str:
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode()


def look(browser: str, tmp_path: Path, text: str, *flags: str, fragment: str = "") -> tuple[dict[str, Any], str]:
    """Open a page with the checks in it; return what they found, and the document's root element."""
    page = tmp_path / "page.html"
    page.write_text(text.replace("<head>", f"<head>{BEFORE}", 1).replace("</body>", f"{AFTER}</body>", 1))
    dom = run(browser, tmp_path, page, "--virtual-time-budget=2000", *flags, "--dump-dom", fragment=fragment)
    root = re.search(r"<html[^>]*>", dom)
    assert root, dom[:500]
    found = re.search(r'data-found="([^"]*)"', root[0])
    assert found, root[0]
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&")), root[0]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """Return the pixels of an 8-bit PNG, unpacked far enough to be counted: rows of filtered bytes without the filter.

    Only rows that no filter touched, or whose filter left differences, are compared; that is enough to tell a picture
    from an empty page.
    """
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, size = 8, b"", (0, 0)
    while at < len(data):
        length, sort = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if sort == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8
            size = (height, width * {2: 3, 6: 4}[colour])
        elif sort == b"IDAT":
            packed += body
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(size[0], size[1] + 1)
    return rows[:, 1:]


@pytest.mark.parametrize("pools", [1, 2])
@pytest.mark.parametrize(("theme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")])
def test_page_draws_without_errors_overlaps_or_requests(
    browser: str, tmp_path: Path, theme: str, background: str, pools: int
) -> None:
    text = run_page.page(run_result(600, pools=pools))
    found, root = look(browser, tmp_path, text, "--window-size=1280,4000", fragment=f"#{theme}")
    assert "data-error" not in root
    assert 'data-script="ok"' in root
    assert found["theme"] == background
    assert found["pictures"] == 14 + pools
    assert found["empty"] == []
    assert found["overlaps"] == []
    assert found["outside"] == []
    assert found["requests"] == []
    assert found["wide"] <= 0
    assert "compute: " in found["tip"]
    assert found["left"] == 0
    assert found["key"] == 1


def test_page_follows_the_reader_and_the_fragment_overrides_it(browser: str, tmp_path: Path) -> None:
    text = run_page.page(run_result(60))

    def background(scheme: int, fragment: str) -> str:
        flag = f"--blink-settings=preferredColorScheme={scheme}"
        found, _ = look(browser, tmp_path, text, "--window-size=1280,2000", flag, fragment=fragment)
        return str(found["theme"])

    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    # which of the two numbers means dark has changed between versions of Chromium
    assert {background(0, ""), background(1, "")} == {light, dark}
    assert {background(0, "#light"), background(1, "#light")} == {light}
    assert {background(0, "#memory"), background(1, "#memory")} == {light, dark}


@pytest.mark.parametrize("width", [500, 800])
def test_page_fits_narrow_windows(browser: str, tmp_path: Path, width: int) -> None:
    found, root = look(browser, tmp_path, run_page.page(run_result(200)), f"--window-size={width},3000")
    assert "data-error" not in root
    assert found["wide"] <= 0, "the page itself scrolls sideways"
    assert found["overlaps"] == []


@pytest.mark.parametrize("n", [0, 1, 7, 20_000])
def test_pages_of_small_and_long_runs_draw_too(browser: str, tmp_path: Path, n: int) -> None:
    found, root = look(browser, tmp_path, run_page.page(run_result(n)), "--window-size=1280,3000")
    assert "data-error" not in root
    assert 'data-script="ok"' in root
    assert found["overlaps"] == []
    assert found["outside"] == []
    assert found["empty"] == []


def test_page_without_its_script_still_draws(browser: str, tmp_path: Path) -> None:
    text = re.sub(r"<script>.*?</script>", "", run_page.page(run_result(200)), flags=re.S)
    found, _ = look(browser, tmp_path, text, "--window-size=1280,3000")
    assert found["pictures"] == 15
    assert found["empty"] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshot_is_not_blank(browser: str, tmp_path: Path, theme: str) -> None:
    page, shot = tmp_path / "run.html", tmp_path / "run.png"
    run_page.write(run_result(600, pools=2), page)
    run(browser, tmp_path, page, "--window-size=1280,4000", f"--screenshot={shot}", fragment=f"#{theme}")
    seen = pixels(shot)
    assert seen.shape[0] == 4000
    assert seen.shape[1] in (1280 * 3, 1280 * 4)
    drawn = (seen != seen[0, 0]).any(axis=1).mean()
    assert drawn > 0.5, "most rows of the picture are empty"


def test_short_form_draws_in_a_bare_page(browser: str, tmp_path: Path) -> None:
    text = f"<!doctype html><html><head></head><body>{run_page.short(run_result(300, pools=2))}</body></html>"
    text = text.replace("<path fill=", '<path class="m" fill=').replace("<rect fill=", '<rect class="m" fill=')
    found, root = look(browser, tmp_path, text, "--window-size=1000,900")
    assert "data-error" not in root
    assert found["pictures"] == 2
    assert found["empty"] == found["overlaps"] == found["outside"] == found["requests"] == []
