"""What all figures share: one narrow format that stays readable on a phone, colours that work on white and on black."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..base.files import atomic_file

WIDTH, TOP, GAP, BOTTOM, RIGHT = 4.5, 0.34, 0.82, 0.52, 0.14  # inches
INK = "#27313b"  # becomes the page's text colour in SVG
DARK = "#28323c"  # text on a coloured ground, which stays dark
MODEL_COLOURS = {"dense": "#74818f", "pruned": "#c4691c", "recovered": "#14877a"}
ACCENT, WARM, FAINT = MODEL_COLOURS["recovered"], MODEL_COLOURS["pruned"], "#9aa6b2"
SPARE_COLOURS = ("#5b6fb5", "#a34e78", "#8a7a1f", "#3c7ea8")
SCORE_COLOURS = LinearSegmentedColormap.from_list("scores", ["#dbe4ea", "#6fb3a9", "#14877a", "#0a4a48"])
DIRECTION_COLOURS = {"noise": WARM, "collapse": ACCENT, "neither": FAINT}
SHIFT_COLOURS = LinearSegmentedColormap.from_list("shifts", [ACCENT, "#e6eaed", WARM])  # collapse, none, noise
LONGEST_NAME = 33
SMALL = 6.5  # points of numbers in a figure
MARGIN = 0.62  # inches left of a panel with numbers

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
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
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}

P = ParamSpec("P")


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a plotting function under `STYLE`, and leave matplotlib's settings as they were."""

    @wraps(plot)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return wrapped


def panels(heights: Sequence[float], lefts: Sequence[float], key: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure of axes one below the other, heights and left margins in inches; `key` more are free at the foot."""
    total = TOP + sum(heights) + GAP * (len(heights) - 1) + BOTTOM + key
    figure = Figure(figsize=(WIDTH, total), facecolor="white")
    axes, top = [], total - TOP
    for height, left in zip(heights, lefts, strict=True):
        box = (left / WIDTH, (top - height) / total, (WIDTH - left - RIGHT) / WIDTH, height / total)
        axes.append(figure.add_axes(box, facecolor="none"))
        top -= height + GAP
    return figure, axes


def name_margin(names: Sequence[str]) -> float:
    """Left margin in inches that fits `names` as row labels."""
    return 0.16 + 0.053 * max(len(shorten(name)) for name in names)


def row_labels(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... from top to bottom; of very many rows, every few."""
    stride = -(-len(names) // 160)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(0, len(names), stride), [plain(shorten(name)) for name in names[::stride]], fontsize=6.5)
    axes.tick_params(axis="y", length=0)


def shorten(name: str) -> str:
    """`name`, with its middle left out when it is long."""
    half = (LONGEST_NAME - 1) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def model_colour(name: str, position: int) -> str:
    """The colour of a model in every figure."""
    return MODEL_COLOURS.get(name, SPARE_COLOURS[position % len(SPARE_COLOURS)])


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as PNG to `path` atomically and return the path."""
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=160)
    return Path(path)


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
