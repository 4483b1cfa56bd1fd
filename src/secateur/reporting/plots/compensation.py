"""The error of every refitted layer, before and after."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...results import Compensation
from ..style import FAINT, MODEL_COLOURS, labelled, name_margin, panels, row_labels, styled
from .curves import title_legend
from .ranking import rows_height

BEFORE, AFTER = MODEL_COLOURS["pruned"], MODEL_COLOURS["compensated"]


@styled
def plot_compensation(found: Compensation) -> Figure:
    """The relative error of every layer that reads a cut dim, before and after the refit, on a logarithmic axis."""
    readers = {name: one for name, one in found.readers.items() if one.before and one.after}
    figure, (axes,) = panels([rows_height(len(readers))], [name_margin(list(readers))])
    before = [one.before or 0.0 for one in readers.values()]
    after = [one.after or 0.0 for one in readers.values()]
    rows = range(len(readers))
    axes.hlines(rows, before, after, colors=FAINT, linewidth=1.2, zorder=1)
    axes.plot(before, rows, "o", color=BEFORE, markersize=4)
    axes.plot(after, rows, "o", color=AFTER, markersize=4)
    row_labels(axes, list(readers))
    axes.set_ylim(len(readers) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.grid(axis="x")
    signs = [Line2D([], [], color=colour, marker="o", linewidth=0, markersize=4) for colour in (BEFORE, AFTER)]
    title_legend(axes, signs, ["as cut", "refitted"], 0.9)
    labelled(axes, "Error of each layer", "squared error / squared output", "layer")
    return figure
