"""The style of all figures: a paper's column wide, text legible on a phone, colours for white and black backgrounds."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from ..base.files import atomic_file

WIDTH, TOP, GAP, BOTTOM, RIGHT = 3.5, 0.36, 0.86, 0.52, 0.2  # inches
INK = "#27313b"  # becomes the page's text colour in SVG
DARK = "#28323c"  # text on a coloured background; stays dark
MODEL_COLOURS = {"dense": "#74818f", "pruned": "#c4691c", "compensated": "#5b6fb5", "recovered": "#14877a"}
ACCENT, WARM, FAINT = MODEL_COLOURS["recovered"], MODEL_COLOURS["pruned"], "#9aa6b2"
SPARE_COLOURS = ("#a34e78", "#8a7a1f", "#3c7ea8", "#7a5cc0")
SCORE_COLOURS = LinearSegmentedColormap.from_list("scores", ["#dbe4ea", "#6fb3a9", "#14877a", "#0a4a48"])
DIRECTION_COLOURS = {"noise": WARM, "collapse": ACCENT, "neither": FAINT}
SHIFT_COLOURS = LinearSegmentedColormap.from_list("shifts", [ACCENT, "#e6eaed", WARM])  # collapse, none, noise
LONGEST_NAME, LONGEST_LAST = 24, 8  # characters
SMALL = 8.5  # points: the smallest text, 11 pixels high when the figure is 325 pixels wide
ROW = 0.175  # inches of a row with a label
MOST_ROWS = 110  # that fit into the tallest figure
MARGIN = 0.74  # inches left of a panel with numbers

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": SMALL,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "secateur",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}

P = ParamSpec("P")


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a plotting function under `STYLE`; matplotlib's settings stay as they were."""

    @wraps(plot)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return wrapped


def panels(heights: Sequence[float], lefts: Sequence[float], key: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure of axes one below the other, heights and left margins in inches, with `key` inches free at the
    bottom."""
    total = TOP + sum(heights) + GAP * (len(heights) - 1) + BOTTOM + key
    figure = Figure(figsize=(WIDTH, total), facecolor="white")
    axes, top = [], total - TOP
    for height, left in zip(heights, lefts, strict=True):
        box = (left / WIDTH, (top - height) / total, (WIDTH - left - RIGHT) / WIDTH, height / total)
        axes.append(figure.add_axes(box, facecolor="none"))
        top -= height + GAP
    return figure, axes


def labelled(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title, at the figure's left edge, and the labels of both axes."""
    box = axes.get_position()
    axes.set_title(title, loc="left", x=(0.08 / WIDTH - box.x0) / box.width)
    axes.set_xlabel(x, loc="right" if box.x0 * WIDTH > MARGIN else None)
    axes.set_ylabel(y)


def colour_key(axes: Axes, colours: Colormap, low: str, high: str) -> None:
    """A key to the two ends of a map's colours, right of the title."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box, height = axes.get_position(), figure.get_figheight()
    place = (box.x1 - 0.95 / WIDTH, box.y1 + 0.11 / height, 0.45 / WIDTH, 0.1 / height)
    key = figure.add_axes(place)
    key.imshow(np.linspace(0, 1, 64)[None], colours, aspect="auto")
    key.set_axis_off()
    for x, text, side in ((-0.06, low, "right"), (1.06, high, "left")):
        key.text(x, 0.4, text, transform=key.transAxes, ha=side, va="center", fontsize=SMALL)


def name_margin(names: Sequence[str]) -> float:
    """Left margin in inches that fits `names` as row labels."""
    return 0.32 + 0.071 * max(len(shorten(name)) for name in names)


def row_labels(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows from top to bottom; of very many rows, only some."""
    stride = -(-len(names) // MOST_ROWS)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(0, len(names), stride), [plain(shorten(name)) for name in names[::stride]], fontsize=SMALL)
    axes.tick_params(axis="y", length=0)


def shorten(name: str) -> str:
    """`name` with its words cut, from the longest on, until it is short: numbers stay, and so does a short last word.

    Without words to cut, its middle is left out.
    """
    *words, last = name.split(".")
    for longest in range(len(name), 1, -1):
        found = ".".join([*(_cut(word, longest) for word in words), _cut(last, max(longest, LONGEST_LAST))])
        if len(found) <= LONGEST_NAME:
            return found
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _cut(word: str, longest: int) -> str:
    """`word` of at most `longest` characters, the number at its end among them."""
    number = re.search(r"\d*$", word)
    assert number is not None
    return word if len(word) <= longest else f"{word[: max(1, longest - 1 - len(number[0]))]}…{number[0]}"


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def model_colour(name: str, position: int) -> str:
    """The colour of a model in every figure."""
    return MODEL_COLOURS.get(name, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` to `path` atomically, as PNG or as PDF by its suffix, and return the path."""
    path = Path(path)
    with atomic_file(path) as temporary, matplotlib.rc_context(STYLE):
        if path.suffix == ".pdf":
            FigureCanvasPdf(figure).print_figure(temporary, format="pdf", metadata={"CreationDate": None})
        else:
            FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=200)
    return path


def inline_svg(figure: Figure, label: str, salt: str) -> str:
    """`figure` as an SVG element for HTML, its ink in the page's text colour; `label` must be escaped already.

    `salt` keeps the ids of several figures on one page apart.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", facecolor="none", metadata=metadata)
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    opening, rest = markup.split(">", 1)
    viewbox = re.search(r'viewBox="[^"]*"', opening)
    assert viewbox is not None
    used = set(re.findall(r"#([\w.-]+)", rest))
    rest = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", rest)
    return f'<svg role="img" aria-label="{label}" {viewbox[0]}>{rest.replace(INK, "currentColor")}'
