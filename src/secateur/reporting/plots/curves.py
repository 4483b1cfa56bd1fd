"""Drawing of curves over optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ..style import WARM, plain

LOG_FROM = 3.0  # times the smallest value
FEW = 40  # points up to which each has a marker


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of `name`, from the records that have it."""
    found = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: Sequence[float], span: float = 0.05) -> NDArray[np.float64]:
    """Centred moving average over a `span` of all values; the window shrinks at both ends."""
    half = max(1, round(len(values) * span / 2))
    padded = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    reach = np.minimum(half, np.minimum(centre, len(values) - 1 - centre))
    return (padded[centre + reach + 1] - padded[centre - reach]) / (2 * reach + 1)


def draw_smoothed(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, label: str) -> None:
    """The values faint, their moving average strong."""
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    marker = "." if len(steps) == 1 else ""
    axes.plot(steps, smooth(values), color=colour, label=plain(label), linewidth=1.8, marker=marker)


def draw_points(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, label: str = "") -> None:
    """A line with a marker at each value, unless there are many."""
    marker = "." if len(steps) <= FEW else ""
    axes.plot(steps, values, color=colour, label=plain(label), linewidth=1.2, marker=marker, markersize=4)


def scale_values(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis if `values` differ much and none is negative (a 0 is a gap), a linear one otherwise."""
    positive = [value for value in values if value > 0]
    if not positive or min(values) < 0 or max(positive) < LOG_FROM * min(positive):
        return
    decades = np.log10(max(positive) / min(positive))
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if decades < 1 else (1, 3) if decades < 2 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def leave_room(axes: Axes, share: float = 0.22) -> None:
    """Raise the upper limit by a `share` of the panel, for a legend."""
    transform = axes.transScale
    (_, low), (_, high) = transform.transform([(1, limit) for limit in axes.get_ylim()])
    axes.set_ylim(top=transform.inverted().transform((1, high + share * (high - low)))[1])


def mark_removal(axes: Axes, step: float) -> None:
    """A dashed line at the `step` where masked units were removed, as high as the panel is now."""
    limits = axes.get_ylim()
    axes.vlines(step, *limits, colors=WARM, linewidth=1, linestyles=(0, (4, 2)))
    axes.set_ylim(limits)


def title_legend(axes: Axes, handles: Sequence[Any], labels: Sequence[str], handlelength: float) -> None:
    """A legend to the right of the title, which must be short."""
    axes.legend(
        handles, labels, ncols=len(labels), loc="lower right", bbox_to_anchor=(1.02, 0.99), borderaxespad=0.2,
        handlelength=handlelength, handleheight=0.9, handletextpad=0.4, columnspacing=0.9,
    )  # fmt: skip
