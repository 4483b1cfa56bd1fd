"""The pages in a real browser: no console errors, nothing wider than the window, light and dark, at three widths."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from secateur.reporting import write_comparison, write_report
from synthetic_runs import DECISIONS, make_run, write_lines

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (360, 768, 1180)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--enable-logging=stderr", "--v=0", "--window-size=1400,1000",
)  # fmt: skip
# A window is never as narrow as a phone, so the page is looked at in frames.
PROBE = """<!doctype html><body><pre id="found"></pre><script>
const found = [];
for (const width of %(widths)s) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    found.push({
      width: width, scroll: root.scrollWidth, height: root.scrollHeight,
      ground: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
      broken: [...page.images].filter(image => image.complete && !image.naturalWidth).length,
      images: page.images.length,
      figures: [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 200).length,
      svgs: page.querySelectorAll("svg").length,
    });
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    write_lines(runs[0] / "recovery" / "stages.jsonl", DECISIONS)
    return {"run": write_report(runs[0]), "comparison": write_comparison(folder / "both", runs)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_pages_render(pages: dict[str, Path], tmp_path: Path, name: str, scheme: str) -> None:
    probe = pages[name].with_name("probe.html")
    probe.write_text(PROBE % {"widths": json.dumps(WIDTHS)})
    assert BROWSER is not None
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = subprocess.run(
        [BROWSER, *FLAGS, *dark, f"--user-data-dir={tmp_path}", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text is not None, done.stderr
    frames = json.loads(unescape(text[1]))
    assert sorted(frame["width"] for frame in frames) == list(WIDTHS)
    for frame in frames:
        assert frame["scroll"] <= frame["width"], "something is wider than the window"
        assert frame["broken"] == 0
        assert frame["images"] > 20
        assert frame["figures"] == frame["svgs"] > 3
        ground, ink = (sum(map(int, re.findall(r"\d+", frame[part])[:3])) for part in ("ground", "ink"))
        assert (ground < ink) == (scheme == "dark")
    tall = {frame["width"]: frame["height"] for frame in frames}
    assert tall[360] > tall[1180]
