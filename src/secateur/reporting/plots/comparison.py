"""Many runs in one figure: quality against cost, widths, recovery, and loss by timestep."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...base.units import format_count
from ...results.means import Mean
from ..style import (
    DARK,
    FAINT,
    MARGIN,
    MODEL_COLOURS,
    SCORE_COLOURS,
    SMALL,
    WIDTH,
    colour_key,
    labelled,
    name_margin,
    panels,
    plain,
    row_labels,
    styled,
)
from .curves import scale_values, smooth
from .ranking import rows_height

COLOURS = (
    "#14877a", "#c4691c", "#5b6fb5", "#a34e78", "#8a7a1f", "#3c7ea8", "#7a5cc0", "#4f8f3a", "#b8504a", "#2f9fb5",
)  # fmt: skip
RECIPES = (  # in the order of their colours
    "default", "diff-pruning", "2ndmatch", "progressive", "gradient-flow", "entpruner", "depth", "taylor", "magnitude",
    "random",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
LONGEST_LINE = 36  # characters of a line of the key
KEY_ROW = 0.18  # inches of a line of the key
WIDEST_NUMBERED = 6  # columns of a map that are wide enough for a number each


@dataclass(frozen=True)
class Look:
    """How a run is drawn in every figure of a comparison."""

    colour: str
    marker: str
    style: str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Point:
    """A method at one target: its cost and its quality; `single` holds those of its runs, if there are several."""

    method: str
    target: str
    cost: float
    quality: Mean
    look: Look
    single: tuple[tuple[float, float], ...] = ()


def looks(methods: Sequence[str], targets: Sequence[str]) -> list[Look]:
    """A colour for each method, the same on every page for a recipe, and a marker and a line style for each target."""
    kinds, colours = list(dict.fromkeys(targets)), _colours(list(dict.fromkeys(methods)))
    return [
        Look(
            colours[method],
            MARKERS[kinds.index(target) % len(MARKERS)],
            STYLES[kinds.index(target) % len(STYLES)],
        )
        for method, target in zip(methods, targets, strict=True)
    ]


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """Methods whose name begins with that of a known recipe take its colour, if it is free; the others take free
    ones."""
    names = {method: method.split(" · ")[0] for method in methods}
    wanted = {method: RECIPES.index(name) if name in RECIPES else None for method, name in names.items()}
    taken: dict[str, str] = {}
    for method in sorted(methods, key=lambda method: wanted[method] is None):
        free = [colour for colour in COLOURS if colour not in taken.values()] or list(COLOURS)
        place = wanted[method]
        own = COLOURS[place] if place is not None else free[0]
        taken[method] = own if own in free else free[0]
    return taken


def front(points: Sequence[tuple[float, float]], lower_is_better: bool) -> list[int]:
    """Indices of the points that no other one beats in both cost and quality, by rising cost (Pareto front)."""
    sign = 1 if lower_is_better else -1
    best, kept = np.inf, []
    for index in sorted(range(len(points)), key=lambda place: (points[place][0], sign * points[place][1])):
        if sign * points[index][1] < best:
            best = sign * points[index][1]
            kept.append(index)
    return kept


@styled
def plot_front(
    points: Sequence[Point],
    dense: tuple[float, float] | None,
    quality: str,
    cost: str,
    lower_is_better: bool,
    counts: bool,
) -> Figure:
    """Quality against cost, one method a colour; a line joins those that no other run beats in both.

    Bars are one standard deviation: over seeds, or of the measurement itself. `counts` writes costs as 1.2M.
    """
    handles = _point_key(points)
    figure, (axes,) = panels([2.5], [MARGIN], _key_height(handles))
    places = [(point.cost, point.quality.value) for point in points]
    joined = [places[index] for index in front(places, lower_is_better)]
    axes.plot(*zip(*joined, strict=True), color=FAINT, linewidth=5, alpha=0.35, solid_capstyle="round", zorder=1)
    for point in points:
        for x, y in point.single:
            axes.plot(x, y, ".", color=point.look.colour, alpha=0.4, markersize=4, zorder=2)
        axes.errorbar(
            point.cost, point.quality.value, yerr=point.quality.spread, color=point.look.colour,
            marker=point.look.marker, markersize=5.5, linewidth=0, elinewidth=1, capsize=2, zorder=3,
        )  # fmt: skip
    if dense is not None:
        axes.plot(*dense, "*", color=MODEL_COLOURS["dense"], markersize=10, zorder=3)
        axes.annotate("dense", dense, (-5, 6), textcoords="offset points", ha="right", fontsize=SMALL)
        axes.margins(x=0.1, y=0.14)
    scale_values(axes, [value for _, value in ([*places, dense] if dense else places)])
    if counts:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="both")
    labelled(axes, quality, cost, "lower is better" if lower_is_better else "higher is better")
    _key(figure, handles)
    return figure


@styled
def plot_lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    appearance: Mapping[str, Look],
    title: str,
    label: str,
    unit: str,
    smoothed: bool,
    dense: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """One line for each of the named `curves`, pairs of x and y values in `unit`; `dense` is drawn dashed and grey."""
    figure, (axes,) = panels([2.4], [MARGIN], _key_height([*curves, *["dense"] * (dense is not None)]))
    handles = {}
    if dense is not None:
        handles["dense"] = axes.plot(*dense, "--", color=MODEL_COLOURS["dense"], linewidth=1.4)[0]
    for name, (steps, values) in curves.items():
        look = appearance[name]
        drawn = smooth(values) if smoothed else values
        marker = "." if len(steps) == 1 else ""
        handles[name] = axes.plot(steps, drawn, linestyle=look.style, color=look.colour, linewidth=1.4, marker=marker)[
            0
        ]
    scale_values(axes, [y for _, values in curves.values() for y in values if np.isfinite(y)])
    axes.grid(axis="y")
    labelled(axes, title, label, unit)
    _key(figure, handles)
    return figure


@styled
def plot_widths(shares: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Share (%) of every dim that each run keeps: a row for each dim, a column for each run, numbered as in the key."""
    names = list(dict.fromkeys(name for run in shares.values() for name in run))
    values = np.array([[_number(run.get(name)) for run in shares.values()] for name in names])
    numbered = [f"{number}  {name}" for number, name in enumerate(shares, start=1)]
    left = name_margin(names)
    figure, (axes,) = panels([rows_height(len(names))], [left], _key_height(numbered, columns=1))
    axes.imshow(values, SCORE_COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    row_labels(axes, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(shares)), [str(number) for number in range(1, len(shares) + 1)], fontsize=SMALL)
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    axes.vlines(np.arange(len(shares) - 1) + 0.5, -0.5, len(names) - 0.5, colors="white", linewidth=1.2)
    if len(shares) <= WIDEST_NUMBERED and len(names) <= 130:
        for row, column in np.argwhere(np.isfinite(values)):
            share = values[row, column]
            colour = "white" if share > 62 else DARK
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
    labelled(axes, "Kept of each dim (%)", "run, as numbered below", "dim")
    colour_key(axes, SCORE_COLOURS, "0", "100")
    _key(figure, {name: Line2D([], [], linewidth=0) for name in numbered}, columns=1)
    return figure


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _point_key(points: Sequence[Point]) -> dict[str, Line2D]:
    """A colour for each method; a marker for each target, if there are several."""

    def sign(colour: str, marker: str) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linewidth=0, markersize=5)

    several = len({point.look.marker for point in points}) > 1
    methods = {point.method: sign(point.look.colour, "o") for point in points}
    return methods | ({point.target: sign(FAINT, point.look.marker) for point in points} if several else {})


def _key_height(names: Iterable[str], columns: int = 0) -> float:
    """Height of the key under a panel, in inches."""
    lines = [line for name in names for line in _wrapped(name)]
    return KEY_ROW * -(-len(lines) // (columns or _columns(lines))) + 0.1


def _wrapped(name: str) -> list[str]:
    """The lines of a name in a key: a long one would be cut off at the figure's edge."""
    return textwrap.wrap(name, LONGEST_LINE)


def _columns(names: Sequence[str]) -> int:
    longest = max((len(name) for name in names), default=0)
    return 1 if longest > 17 else 2


def _key(figure: Figure, handles: Mapping[str, Any], columns: int = 0) -> None:
    """The names of colours, markers and styles at the foot of the figure."""
    figure.legend(
        list(handles.values()), ["\n".join(_wrapped(plain(name))) for name in handles], loc="lower left",
        bbox_to_anchor=(0.01 if columns else MARGIN / WIDTH - 0.03, 0.05 / figure.get_figheight()),
        ncols=columns or _columns(list(handles)), borderpad=0, borderaxespad=0, labelspacing=0.35,
        handlelength=0 if columns else 1.8, columnspacing=1.2, fontsize=SMALL,
    )  # fmt: skip


@styled
def plot_scores(
    candidates: Mapping[str, Sequence[tuple[float, float, float | None]]], appearance: Mapping[str, Look]
) -> Figure:
    """Score of every candidate of a search by the steps of its trials, with a bar of one standard error."""
    figure, (axes,) = panels([2.4], [MARGIN], _key_height(candidates))
    handles = {}
    for name, trials in candidates.items():
        steps, scores, errors = zip(*trials, strict=True)
        bars = [0.0 if error is None else error for error in errors]
        handles[name] = axes.errorbar(
            steps, scores, yerr=bars, color=appearance[name].colour, marker="o", markersize=4, linewidth=1.3,
            elinewidth=1, capsize=2,
        ).lines[0]  # fmt: skip
    scale_values(axes, [score for trials in candidates.values() for _, score, _ in trials])
    axes.set_xticks(sorted({steps for trials in candidates.values() for steps, _, _ in trials}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y")
    labelled(axes, "Score of every candidate", "recovery steps of the trial", "score; lower is better")
    _key(figure, handles)
    return figure
