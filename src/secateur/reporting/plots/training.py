"""The recovery run by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure

from ..style import ACCENT, MARGIN, MODEL_COLOURS, SPARE_COLOURS, labelled, panels, styled
from .curves import draw_points, draw_smoothed, leave_room, mark_removal, scale_values, series

QUANTITIES = {"lr": "Learning rate", "grad_norm": "Gradient norm", "jacobian_weight": "Weight of the Jacobian term"}
LABELS = {"lr": "per step", "grad_norm": "norm", "jacobian_weight": "weight"}
KNOWN = ("step", "loss", "seconds", "peak_gib", *QUANTITIES)
NORM = "grad_norm_"  # followed by a term's name: the norm of its gradient


@styled
def plot_training(records: Sequence[Mapping[str, float]], removed_at: float | None = None) -> Figure:
    """Loss and its terms (raw faint, smoothed strong), gradient norms of the terms, learning rate and weights by step.

    The loss is the weighted sum of the terms; the terms are drawn before weighting, their gradients after.
    `removed_at` is the step at which a schedule removed masked units.
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    terms = [key for key in keys if key not in KNOWN and not key.startswith(NORM)]
    if len(terms) == 1:
        terms = []  # a single term equals the loss
    colours = dict(zip(terms, cycle(SPARE_COLOURS), strict=False))
    measured = [name for name in terms if NORM + name in keys]
    quantities = [key for key in QUANTITIES if key in keys]
    heights = [2.2, *[1.2] * bool(measured), *[0.8] * len(quantities)]
    figure, (top, *others) = panels(heights, [MARGIN] * len(heights))
    for name in ("loss", *terms):
        draw_smoothed(top, *series(records, name), colours.get(name, ACCENT), name)
    scale_values(top, [value for name in ("loss", *terms) for value in series(records, name)[1]])
    top.grid(axis="y")
    labelled(top, "Recovery loss, terms unweighted" if terms else "Recovery loss (raw and smoothed)", "", "loss")
    remaining = iter(others)
    if measured:
        panel = next(remaining)
        for name in measured:
            draw_points(panel, *series(records, NORM + name), colours[name])
        scale_values(panel, [value for name in measured for value in series(records, NORM + name)[1]])
        panel.grid(axis="y")
        labelled(panel, "Gradient norm of each weighted term", "", "norm")
    for panel, name in zip(remaining, quantities, strict=True):
        panel.plot(*series(records, name), color=MODEL_COLOURS["dense"], linewidth=1.1)
        panel.set_ylim(bottom=0)
        panel.grid(axis="y")
        labelled(panel, QUANTITIES[name], "", LABELS[name])
    for panel in (top, *others):
        panel.set_xlim(top.get_xlim())
        if removed_at is not None:
            mark_removal(panel, removed_at)
    if terms:
        leave_room(top, 0.4)
        top.legend(ncols=2, loc="upper right", handlelength=1.3, columnspacing=1)
    [*_, lowest] = figure.axes
    lowest.set_xlabel("step" if removed_at is None else "step (dashed: masked units removed)")
    return figure
