"""The pages in a real browser, at the widths of phones, tablets and desktops, light and dark."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from secateur.reporting import write_comparison, write_report
from synthetic_runs import DECISIONS, make_run, photograph_run, write_lines

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 820, 1440)
SMALLEST_TEXT = 11  # pixels, of charts too
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--enable-logging=stderr", "--v=0", "--window-size=1600,1000",
)  # fmt: skip
# A window is never as narrow as a phone, so the page is looked at in frames.
PROBE = """<!doctype html><body><pre id="found"></pre><script>
const found = [];
for (const width of %(widths)s) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "report.html%(anchor)s";
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement, all = (what) => [...page.querySelectorAll(what)];
    const style = (element) => frame.contentWindow.getComputedStyle(element);
    for (const one of all("details")) one.open = true;
    const pixels = all("svg text").map(text => {
      const svg = text.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      return parseFloat(style(text).fontSize) * scale;
    });
    const plain = all("p, li, td, th, dt, dd, a, span, summary, pre").map(one => parseFloat(style(one).fontSize));
    const tile = page.querySelector(".tile"), target = page.querySelector(".tile:target");
    found.push({
      width: width, scroll: root.scrollWidth, height: root.scrollHeight,
      ground: style(page.body).backgroundColor, ink: style(page.body).color,
      broken: [...page.images].filter(image => image.complete && !image.naturalWidth).length,
      images: page.images.length,
      figures: all("svg").filter(svg => svg.getBoundingClientRect().width > 200).length,
      svgs: all("svg").length, smallest: Math.min(...pixels, ...plain),
      hidden: all("svg text").filter(text => {
        const box = text.getBoundingClientRect(), svg = text.ownerSVGElement.getBoundingClientRect();
        return box.width && (box.left < svg.left - 1 || box.right > svg.right + 1);
      }).map(text => text.textContent),
      dead: all("a[href^='#']").map(a => a.getAttribute("href").slice(1)).filter(id => !page.getElementById(id)),
      rendering: tile && style(tile.querySelector("img")).imageRendering,
      across: [...page.querySelector(".tiles").children].filter(one => style(one).display !== "none").length,
      columns: style(page.querySelector(".tiles")).gridTemplateColumns.split(" ").length,
      tile: tile && tile.getBoundingClientRect().width,
      enlarged: target && target.querySelector("img").getBoundingClientRect().width,
      fixed: target && style(target).position,
    });
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script></body>"""

PAPER, LANDSCAPE = 702, 1031  # pixels across: A4 without its margins of 12 mm
MANY_COLUMNS = 13  # of a table that has a sheet of its own, in landscape
# What holds on paper alone is made to hold everywhere, in a frame as wide as the paper.
ON_PAPER = """<!doctype html><body><pre id="found"></pre><script>
const frame = document.createElement("iframe");
frame.width = %(width)s; frame.height = 800; frame.src = "report.html#sample-1-2";
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement, all = (what) => [...page.querySelectorAll(what)];
  const style = (element) => frame.contentWindow.getComputedStyle(element);
  for (const sheet of page.styleSheets)
    for (const rule of sheet.cssRules)
      if (rule.media && rule.media.mediaText === "print") rule.media.mediaText = "all";
  const target = page.querySelector(".tile:target");
  const wide = all(".scroll").filter(one => one.querySelector("th:nth-child(%(many)s)"));
  const widest = Math.max(0, ...wide.map(one => one.scrollWidth));
  const pages = wide.map(one => style(one.closest("details")).page);
  for (const one of wide) one.style.display = "none";
  document.getElementById("found").textContent = JSON.stringify({
    scroll: root.scrollWidth, ground: style(page.body).backgroundColor, widest: widest, pages: pages,
    contents: style(page.querySelector(".contents")).display,
    cut: all(".scroll").filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText.slice(0, 60)),
    tables: all("details table").length,
    folded: all("details table").filter(one => {
      return !wide.includes(one.parentElement) && !one.getBoundingClientRect().height;
    }).length,
    position: target ? style(target).position : "static",
    smallest: Math.min(...all("p, li, td, th, dt, dd, summary").map(one => parseFloat(style(one).fontSize))),
  });
};
document.body.append(frame);
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    write_lines(runs[0] / "recovery" / "stages.jsonl", DECISIONS)
    return {
        "run": write_report(runs[0]),
        "photographs": write_report(photograph_run(folder / "photographs")),
        "comparison": write_comparison(folder / "both", runs),
    }


def browse(page: Path, profile: Path, scheme: str, *what: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = subprocess.run(
        [BROWSER, *FLAGS, *dark, f"--user-data-dir={profile}", *what, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


def found_by(page: Path, profile: Path, scheme: str, probe: str) -> Any:
    """The result of the script of `probe` for the page."""
    place = page.with_name("probe.html")
    place.write_text(probe)
    done = browse(place, profile, scheme, "--dump-dom")
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text is not None, done.stderr
    return json.loads(unescape(text[1]))


def looked_at(page: Path, profile: Path, scheme: str = "light", anchor: str = "") -> list[dict[str, Any]]:
    """Measurements of the page in a browser, in a frame of each width."""
    frames: list[dict[str, Any]] = found_by(
        page, profile, scheme, PROBE % {"widths": json.dumps(WIDTHS), "anchor": anchor}
    )
    assert sorted(frame["width"] for frame in frames) == list(WIDTHS)
    return frames


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "photographs", "comparison"])
def test_pages_render(pages: dict[str, Path], tmp_path: Path, name: str, scheme: str) -> None:
    frames = looked_at(pages[name], tmp_path, scheme)
    for frame in frames:
        assert frame["scroll"] <= frame["width"], "something is wider than the window"
        assert frame["broken"] == 0
        assert frame["images"] > 20
        assert frame["figures"] == frame["svgs"] > 3
        assert frame["smallest"] >= SMALLEST_TEXT
        assert frame["hidden"] == [], "text is cut off at a figure's edge"
        assert frame["dead"] == [], "a link leads nowhere"
        ground, ink = (sum(map(int, re.findall(r"\d+", frame[part])[:3])) for part in ("ground", "ink"))
        assert (ground < ink) == (scheme == "dark")
        if name == "run":  # small images: ten to a row, on a phone five
            assert frame["across"] == frame["columns"] == (5 if frame["width"] == 390 else 10)
    tall = {frame["width"]: frame["height"] for frame in frames}
    assert tall[390] > tall[1440]


@pytest.mark.slow
def test_photographs_are_smooth_a_few_across_and_enlarge(pages: dict[str, Path], tmp_path: Path) -> None:
    frames = {frame["width"]: frame for frame in looked_at(pages["photographs"], tmp_path, anchor="#sample-1-2")}
    for width, frame in frames.items():
        assert frame["rendering"] == "auto"  # not pixelated
        assert frame["across"] == 4
        assert frame["fixed"] == "fixed"
        assert frame["enlarged"] == min(512, width - 32)  # its own size, or what fits
    assert frames[1440]["tile"] > 150


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most_sheets"), [("run", 11), ("photographs", 10), ("comparison", 6)])
def test_pages_are_whole_on_paper(pages: dict[str, Path], tmp_path: Path, name: str, most_sheets: int) -> None:
    found = found_by(pages[name], tmp_path, "dark", ON_PAPER % {"width": PAPER, "many": MANY_COLUMNS})
    assert found["scroll"] <= PAPER
    assert found["widest"] <= LANDSCAPE
    assert set(found["pages"]) == ({"wide"} if name == "comparison" else set())
    assert found["cut"] == [], "a table is wider than the paper"
    assert found["folded"] == 0 < found["tables"], "what is folded up on a screen is missing"
    assert found["ground"] == "rgb(255, 255, 255)"
    assert found["contents"] == "none"
    assert found["position"] == "static", "an enlarged image hides the page"
    assert found["smallest"] >= 8  # pixels: 6 points
    printed = tmp_path / "page.pdf"
    browse(pages[name], tmp_path, "light", "--no-pdf-header-footer", f"--print-to-pdf={printed}")
    assert 1 < len(re.findall(rb"/Type /Page\b", printed.read_bytes())) <= most_sheets
