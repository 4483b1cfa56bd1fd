"""Quality by class, drawn so that a collapsed class is seen at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..classes import SCORES, ClassScore
from ..style import DARK, INK, SMALL, WARM, colour_key, labelled, name_margin, panels, plain, row_labels, styled
from .ranking import rows_height

STAYS, SEEN = "#9aa6b233", 0.16  # pale on white and on black: losses too small to mean anything
LOSS_COLOURS = LinearSegmentedColormap.from_list(
    "losses", [(0, STAYS), (SEEN, STAYS), (SEEN, "#efd6be"), (0.6, WARM), (1, "#a3330d")]
)
LARGEST = 0.75  # share lost that has the darkest colour; a gain has none: it need not be an improvement


@styled
def plot_classes(scores: Sequence[ClassScore], scored: Sequence[str] = SCORES) -> Figure:
    """Each score of every class by model: numbers, and colours that show how much of the reference's score is lost."""
    names = [score.name for score in scores]
    models = list(scores[0].models)
    margin = name_margin(names) + 0.1
    figure, axes = panels([1.2 * rows_height(len(scores))] * len(scored), [margin] * len(scored))
    for panel, score in zip(axes, scored, strict=True):
        _heat(panel, scores, score, models)
        row_labels(panel, names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xticks(range(len(models)), [plain(model) for model in models], rotation=20, ha="right")
        labelled(panel, score.capitalize(), "", "class")
        colour_key(panel, LOSS_COLOURS, "0", f"{100 * LARGEST:.0f}% lost")
    return figure


def _heat(axes: Axes, scores: Sequence[ClassScore], score: str, models: Sequence[str]) -> None:
    values = np.array([[_number(found.value(model, score)) for model in models] for found in scores])
    changes = np.array([[_number(found.change(model, score)) for model in models] for found in scores])
    axes.imshow(-changes, LOSS_COLOURS, vmin=0, vmax=LARGEST, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(np.isfinite(values)):
        lost = scores[row].collapsed(models[column], score)
        loss = -changes[row, column]
        colour = "white" if loss > 0.6 * LARGEST else DARK if loss > SEEN * LARGEST else INK
        weight = "bold" if lost else "normal"
        number = f"{values[row, column]:.2f}"
        axes.text(column, row, number, ha="center", va="center", fontsize=SMALL, color=colour, fontweight=weight)
        if lost:
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor=INK, linewidth=1.2))
    axes.vlines(np.arange(len(models) - 1) + 0.5, -0.5, len(scores) - 0.5, colors="white", linewidth=1.2)
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
