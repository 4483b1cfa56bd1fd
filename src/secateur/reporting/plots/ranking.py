"""Scores of a ranking, and the widths that a cut leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ...results import BlockEffect, BlockReport, CutResult, DimCut, LossCurve, Ranking
from ..style import (
    ACCENT,
    DARK,
    DIRECTION_COLOURS,
    FAINT,
    INK,
    MARGIN,
    ROW,
    SCORE_COLOURS,
    SHIFT_COLOURS,
    SMALL,
    WARM,
    colour_key,
    labelled,
    name_margin,
    panels,
    row_labels,
    styled,
)
from .curves import title_legend

STRIP = 128  # pixels of a strip of scores
TALLEST = 20.0  # inches of rows
MOST_NUMBERS = 5  # columns up to which cells are wide enough for a number


def rows_height(rows: int) -> float:
    """Inches for `rows` rows with a label each."""
    return min(max(ROW * rows, 0.5), TALLEST)


@styled
def plot_ranking(ranking: Ranking, cut: CutResult | None = None) -> Figure:
    """Sorted scores of every dim, with the boundary of `cut` if known; blocks and their report; the calibration
    loss."""
    dims = {name: scores for name, scores in ranking.dims.items() if scores}
    blocks, report, curve = ranking.blocks, ranking.block_report, ranking.curve
    removed = () if cut is None else cut.removed_blocks
    rows, margin = rows_height(len(blocks)), name_margin(list(blocks)) if blocks else MARGIN
    parts: list[tuple[float, float, Callable[[Axes], None]]] = []  # height, left margin, drawing
    if dims:
        kept = {} if cut is None else cut.dims
        parts.append((rows_height(len(dims)), name_margin(list(dims)), lambda axes: _strips(axes, dims, kept)))
    if blocks and report is None:
        parts.append((rows, margin, lambda axes: _block_bars(axes, blocks, removed)))
    if blocks and report is not None:
        parts.append((rows, margin, lambda axes: _effect_bars(axes, blocks, report.blocks, removed)))
        parts.append((rows, margin, lambda axes: _shift_map(axes, report)))
        parts.append((rows, margin, lambda axes: _error_map(axes, report)))
    if curve is not None:
        parts.append((1.9, MARGIN, lambda axes: _loss_curve(axes, curve)))
    figure, panes = panels([height for height, _, _ in parts], [left for _, left, _ in parts])
    for axes, (_, _, draw) in zip(panes, parts, strict=True):
        draw(axes)
    return figure


def score_strip(scores: Sequence[float]) -> NDArray[np.float64]:
    """Scores from high to low, divided by their largest magnitude and resampled to `STRIP` values."""
    values = np.sort(np.nan_to_num(np.asarray(scores, dtype=np.float64)))[::-1]
    values = values / (np.abs(values).max() or 1.0)
    return values[np.arange(STRIP) * len(values) // STRIP]


def _strips(axes: Axes, dims: Mapping[str, Sequence[float]], cut: Mapping[str, DimCut]) -> None:
    image = np.stack([score_strip(scores) for scores in dims.values()])
    extent = (0, 100, len(dims) - 0.5, -0.5)
    lowest = min(0.0, image.min())
    axes.imshow(image, SCORE_COLOURS, vmin=lowest, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    row_labels(axes, list(dims))
    axes.set_ylim(len(dims) - 0.5, -0.5)
    axes.hlines(np.arange(len(dims) - 1) + 0.5, 0, 100, colors="white", linewidth=0.6)
    kept = {row: 100 * cut[name].kept / cut[name].units for row, name in enumerate(dims) if name in cut}
    borders = {row: share for row, share in kept.items() if share < 100}
    rows = np.array(list(borders))
    axes.vlines(list(borders.values()), rows - 0.46, rows + 0.46, colors=WARM, linewidth=2)
    axes.spines[:].set_visible(False)
    axes.set_xlim(0, 100)
    labelled(axes, "Score / dim's largest", "% of units, best first" + (" (bar: kept)" if borders else ""), "dim")
    colour_key(axes, SCORE_COLOURS, f"{lowest:.2g}", "1")


def _block_bars(axes: Axes, blocks: Mapping[str, float], removed: Sequence[str]) -> None:
    colours = [FAINT if name in removed else ACCENT for name in blocks]
    axes.barh(range(len(blocks)), list(blocks.values()), height=0.68, color=colours)
    row_labels(axes, list(blocks))
    axes.grid(axis="x")
    if removed:
        title_legend(axes, [Patch(color=FAINT)], ["removed"], 0.9)
    labelled(axes, "Score of each block", "score; the lowest is removed first", "block")


def _effect_bars(
    axes: Axes, blocks: Mapping[str, float], effects: Mapping[str, BlockEffect], removed: Sequence[str]
) -> None:
    largest = max(blocks.values()) or 1.0
    for row, (name, score) in enumerate(blocks.items()):
        effect = effects[name]
        colour = DIRECTION_COLOURS[effect.direction]
        axes.barh(row, score, height=0.68, color=colour, alpha=0.4 if name in removed else 1)
        rank = f"{effect.rank} ({effect.rank_low}–{effect.rank_high})"
        axes.text(score + 0.015 * largest, row, rank, va="center", fontsize=SMALL, color=INK)
    found = dict.fromkeys(effects[name].direction for name in blocks)
    title_legend(axes, [Patch(color=DIRECTION_COLOURS[name]) for name in found], list(found), 0.9)
    row_labels(axes, list(blocks))
    axes.set_xlim(0, 1.5 * largest)
    axes.grid(axis="x")
    pale = "; pale: removed" if removed else ""
    labelled(axes, "Score, drift", f"score; rank (90% range){pale}", "block")


def _shift_map(axes: Axes, report: BlockReport) -> None:
    """Change of log standard deviation by block and timestep bin."""
    shifts = np.array([effect.signed for effect in report.blocks.values()])
    axes.imshow(_rooted(shifts), SHIFT_COLOURS, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    _by_timestep(axes, report, shifts, "+.2f", "Change of log SD")
    largest = np.abs(shifts).max()
    colour_key(axes, SHIFT_COLOURS, f"−{largest:.2g}", f"+{largest:.2g}")


def _error_map(axes: Axes, report: BlockReport) -> None:
    """Squared change of the prediction divided by its square, by block and timestep bin."""
    errors = np.array([effect.output_errors for effect in report.blocks.values()])
    axes.imshow(_rooted(errors), SCORE_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _by_timestep(axes, report, errors, ".2g", "Relative output error")
    colour_key(axes, SCORE_COLOURS, "0", f"{errors.max():.2g}")


def _rooted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signed root divided by its largest magnitude, so that one large value does not make all others pale."""
    return np.sign(values) * np.sqrt(np.abs(values) / (np.abs(values).max() or 1.0))


def _by_timestep(axes: Axes, report: BlockReport, values: NDArray[np.float64], number: str, title: str) -> None:
    """Labels of a map whose rows are blocks and whose columns are timestep bins, with the values where they fit."""
    bins = values.shape[1]
    if bins <= MOST_NUMBERS:
        strong = np.abs(_rooted(values)) > 0.62
        for row, column in np.ndindex(values.shape):
            text = format(values[row, column], number)
            colour = "white" if strong[row, column] else DARK
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=colour)
    row_labels(axes, list(report.blocks))
    axes.set_ylim(len(values) - 0.5, -0.5)
    shown = range(0, bins, -(-bins // MOST_NUMBERS))
    axes.set_xticks(shown, [f"{report.timesteps[column]:.3g}" for column in shown])
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    labelled(axes, title, "timestep, from the clean end", "block")


def _loss_curve(axes: Axes, curve: LossCurve) -> None:
    timesteps, losses, used = curve.timesteps, curve.losses, curve.used
    axes.plot(timesteps[:used], losses[:used], color=ACCENT, marker="." if used < 3 else "", label="scored")
    if used < len(losses):
        later = slice(max(used - 1, 0), None)
        axes.plot(timesteps[later], losses[later], color=FAINT, linestyle=":", marker=".", label="left out")
        axes.axvline(timesteps[used], color=WARM, linewidth=1.2, linestyle="--", label="stop")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    title_legend(axes, *axes.get_legend_handles_labels(), handlelength=1.3)
    labelled(axes, "Calibration", "timestep, from the clean end", "mean squared error")


@styled
def plot_cut(cut: CutResult) -> Figure:
    """Channels of every dim before and after, in network order; then the removed blocks."""
    dims, removed = cut.dims, cut.removed_blocks
    names = [*dims, *removed]
    figure, (axes,) = panels([rows_height(len(names))], [name_margin(names)])
    before = [dim.units * dim.width for dim in dims.values()] + [0] * len(removed)
    after = [dim.kept * dim.width for dim in dims.values()] + [0] * len(removed)
    kept_bars(axes, names, before, after)
    for row in range(len(dims), len(names)):
        axes.text(0.02 * max(before), row, "removed", va="center", fontsize=SMALL, color=WARM)
    labelled(axes, "Channels", "channels", "dim or removed block" if removed else "dim")
    return figure


def kept_bars(axes: Axes, names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> None:
    """A row for each name: the size before (pale), the size after, and that in percent."""
    pale = axes.barh(range(len(names)), before, height=0.78, color=FAINT, alpha=0.38)
    strong = axes.barh(range(len(names)), after, height=0.78, color=ACCENT)
    widest = max(before)
    for row, (dense, kept) in enumerate(zip(before, after, strict=True)):
        if dense:
            share, alpha = f"{100 * kept / dense:.0f}%", 1 if kept < dense else 0.5
            axes.text(widest * 1.02, row, share, va="center", fontsize=SMALL, color=INK, alpha=alpha)
    row_labels(axes, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, widest * 1.3)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines["left"].set_visible(False)
    title_legend(axes, [pale, strong], ["before", "after"], 0.9)
