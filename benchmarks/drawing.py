"""How the benchmarks draw: one style, dots for seeds, bars for their means."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, FAINT, WARM = "#27313b", "#9aa6b2", "#c4691c"
SPARE_COLOURS = ("#a34e78", "#8a7a1f", "#3c7ea8", "#7a5cc0")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
P = ParamSpec("P")


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a plotting function under `STYLE`, and leave matplotlib's settings as they were."""

    @wraps(plot)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return wrapped


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def dots(axes: Axes, values: Sequence[float], place: float, colour: str) -> None:
    """A dot for every seed and a bar at their mean, at the height `place`."""
    axes.plot(values, [place] * len(values), "o", ms=3.5, color=colour, alpha=0.55, mew=0)
    axes.plot(statistics.mean(values), place, "|", ms=10, mew=2, color=colour)


def dense_line(axes: Axes, value: float) -> None:
    """A line at the dense model's value."""
    axes.axvline(value, color=FAINT, lw=1, ls="--")


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A line for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def colour_key(figure: Figure, colours: Mapping[str, str]) -> None:
    """A legend of the dots' colours at the bottom of the figure; a bar is the mean of the seeds."""
    dot = [Line2D([], [], marker="o", ms=4, linewidth=0, color=colour, label=name) for name, colour in colours.items()]
    mean = Line2D([], [], marker="|", ms=10, mew=2, linewidth=0, color=FAINT, label="mean of the seeds")
    dense = Line2D([], [], color=FAINT, lw=1, ls="--", label="dense")
    figure.legend(handles=[*dot, mean, dense], loc="outside lower center", ncols=len(colours) + 2)
