"""Adaptive pruning: the candidates of every stage, and the blocks that were removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ...results import BlockStage
from ..style import ACCENT, DARK, FAINT, MARGIN, SMALL, WARM, labelled, name_margin, panels, row_labels, styled
from .curves import title_legend
from .ranking import rows_height

GONE, LEAVES, STAYS = 0, 1, 2
STAYS_COLOUR = "#6fb3a9"


@styled
def plot_decisions(stages: Sequence[BlockStage]) -> Figure:
    """Above, the numbers of blocks that each stage could remove, and which it chose; below, the blocks by stage."""
    blocks = sorted(stages[0].ranking, key=_natural)
    margin = name_margin(blocks)
    figure, (choices, fates) = panels([1.9, rows_height(len(blocks))], [MARGIN, margin])
    _choices(choices, stages)
    _fates(fates, stages, blocks)
    return figure


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `blocks.2` before `blocks.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _choices(axes: Axes, stages: Sequence[BlockStage]) -> None:
    places = range(1, len(stages) + 1)
    chosen = [stage.chosen for stage in stages]
    axes.plot(places, chosen, color=ACCENT, linewidth=1.4, zorder=1)
    for place, stage in zip(places, stages, strict=True):
        for candidate in stage.candidates:
            taken = candidate.count == stage.chosen
            axes.plot(
                place, candidate.count, "o", color=ACCENT if taken else FAINT, markersize=7 if taken else 5,
                fillstyle="full" if taken else "none", zorder=2,
            )  # fmt: skip
            if candidate.score is not None:
                axes.annotate(
                    f"{candidate.score:+.2f}", (place, candidate.count), (5, 4), textcoords="offset points",
                    fontsize=SMALL,
                )  # fmt: skip
    axes.set_xlim(0.7, len(stages) + 0.6)
    axes.set_xticks(places, [f"{stage.stage}\nstep {stage.step}" for stage in stages])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(y=0.12)
    axes.grid(axis="y")
    labelled(axes, "Candidates, scores", "stage", "blocks gone")
    signs = [
        Line2D([], [], color=ACCENT, marker="o", linewidth=0),
        Line2D([], [], color=FAINT, marker="o", linewidth=0, fillstyle="none"),
    ]
    title_legend(axes, signs, ["chosen", "weighed"], 0.9)


def _fates(axes: Axes, stages: Sequence[BlockStage], blocks: Sequence[str]) -> None:
    """A column for each stage; numbers are places in its ranking, 1 for the first to be removed."""
    fates = np.full((len(blocks), len(stages)), GONE)
    for column, stage in enumerate(stages):
        for row, name in enumerate(blocks):
            if name in stage.ranking:
                fates[row, column] = LEAVES if name in stage.removed else STAYS
                place = list(stage.ranking).index(name) + 1
                axes.text(column, row, str(place), ha="center", va="center", fontsize=SMALL, color=DARK)
    axes.imshow(fates, ListedColormap(["#9aa6b233", WARM, STAYS_COLOUR]), vmin=GONE, vmax=STAYS, aspect="auto",
                interpolation="nearest")  # fmt: skip
    row_labels(axes, blocks)
    axes.set_ylim(len(blocks) - 0.5, -0.5)
    axes.set_xticks(range(len(stages)), [str(stage.stage) for stage in stages])
    axes.tick_params(axis="x", length=0)
    axes.vlines(np.arange(len(stages) - 1) + 0.5, -0.5, len(blocks) - 0.5, colors="white", linewidth=1.2)
    axes.hlines(np.arange(len(blocks) - 1) + 0.5, -0.5, len(stages) - 0.5, colors="white", linewidth=0.6)
    axes.spines[:].set_visible(False)
    labelled(axes, "Place in the ranking", "stage", "block")
    title_legend(axes, [Patch(color=STAYS_COLOUR), Patch(color=WARM)], ["stays", "leaves"], 0.9)
