"""Progressive soft pruning, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...base.units import format_count
from ...results import Decisions, SoftStage
from ...results.recovery import Record
from ..style import ACCENT, FAINT, MARGIN, MODEL_COLOURS, WARM, labelled, panels, styled
from .curves import draw_points, draw_smoothed, mark_removal, scale_values, series, title_legend

HEIGHTS = {"masks": 2.4, "macs": 1.3, "loss": 1.4, "energy": 1.0, "gradient_norm": 1.0}
AFTER = 1.25  # times the steps of pruning are shown
MOST_LEVELS = 4  # mask values in the legend

Colour = tuple[float, float, float, float]


@styled
def plot_stages(decisions: Decisions, records: Sequence[Record], parts: Sequence[str] = tuple(HEIGHTS)) -> Figure:
    """Masks of the units, remaining MACs, losses, energy and gradient norm, from the first stage until shortly after
    the last.

    Those of `parts` without data are left out.
    """
    stages = decisions.soft
    shown = parts_with_data(stages, records, parts)
    removed_at = decisions.removal_step
    end = _end(stages, records)
    figure, axes = panels([HEIGHTS[name] for name in shown], [MARGIN] * len(shown))
    for panel, name in zip(axes, shown, strict=True):
        if name == "masks":
            _masks(panel, stages, end)
        elif name == "macs":
            _macs(panel, stages, end)
        elif name == "loss":
            _losses(panel, stages, _until(end, records))
        elif name == "energy":
            _energy(panel, stages)
        else:
            _gradient_norm(panel, stages, _until(end, records))
        panel.set_xlim(0, end)
        panel.set_xticks([stage.step for stage in stages], minor=True)
        if removed_at is not None:
            mark_removal(panel, removed_at)
    dashed = "" if removed_at is None else " (dashed: masked units removed)"
    axes[-1].set_xlabel(f"step{dashed}")
    return figure


def parts_with_data(stages: Sequence[SoftStage], records: Sequence[Record], parts: Sequence[str]) -> list[str]:
    """Those of the `parts` of `plot_stages` that have data."""
    trained = _until(_end(stages, records), records)
    of_training = ("loss", "gradient_norm") if trained else ()
    return [
        name for name in parts if any(getattr(stage, name, None) is not None for stage in stages) or name in of_training
    ]


def stage_series(stages: Sequence[SoftStage], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of `name`, from the stages that have it."""
    found = [(stage.step, getattr(stage, name)) for stage in stages if getattr(stage, name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _end(stages: Sequence[SoftStage], records: Sequence[Record]) -> float:
    """The last step to show."""
    trained, last = records[-1]["step"] if records else 0, stages[-1].step
    return max(min(trained, AFTER * last), 1.04 * last, 1)


def _until(end: float, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["step"] <= end]


def _masks(axes: Axes, stages: Sequence[SoftStage], end: float) -> None:
    """Stacked shares of units, masks of 1 at the bottom; a stage's masks hold until the next."""
    counts = np.array([stage.masks for stage in stages], dtype=np.float64)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # no unit may have a mask
    shares = np.vstack([shares, shares[-1]])[:, ::-1]
    steps = [*(stage.step for stage in stages), end]
    decay = counts.shape[1] - 1
    values = [level / decay for level in range(decay, -1, -1)]
    areas = axes.stackplot(steps, shares.T, colors=[_mask_colour(value) for value in values], step="post", linewidth=0)
    named = np.unique(np.linspace(0, decay, min(decay + 1, MOST_LEVELS)).round().astype(int))
    title_legend(axes, [areas[place] for place in named], [f"{values[place]:.2g}" for place in named], 0.9)
    axes.set_ylim(0, 100)
    labelled(axes, "Units by mask", "", "units (%)")


def _mask_colour(value: float) -> Colour:
    """Units at mask 1 are green, those being masked are ever paler orange, those at 0 grey."""
    if value == 1:
        return to_rgba(ACCENT)
    return to_rgba(FAINT, 0.38) if value == 0 else to_rgba(WARM, 0.2 + 0.75 * value)


def _macs(axes: Axes, stages: Sequence[SoftStage], end: float) -> None:
    steps, macs = stage_series(stages, "macs")
    axes.plot([*steps, end], [*macs, macs[-1]], color=ACCENT, drawstyle="steps-post")
    axes.set_ylim(0, 1.1 * max(macs))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.grid(axis="y")
    labelled(axes, "MACs without the selected units", "", "MACs of one call")


def _losses(axes: Axes, stages: Sequence[SoftStage], records: Sequence[Record]) -> None:
    """Calibration loss beside the comparable term of the training loss, that on the data; the whole training loss if
    neither was measured."""
    training, calibration = series(records, "denoising"), stage_series(stages, "loss")
    on_data = bool(training[0] or calibration[0])
    training = training if on_data else series(records, "loss")
    if training[0]:
        draw_smoothed(axes, *training, MODEL_COLOURS["dense"], "training")
    if calibration[0]:
        draw_points(axes, *calibration, ACCENT, "calibration")
    scale_values(axes, [*training[1], *calibration[1]])
    title_legend(axes, *axes.get_legend_handles_labels(), handlelength=1.5)
    axes.grid(axis="y")
    labelled(axes, *(("Loss on the data", "", "mean squared error") if on_data else ("Training loss", "", "loss")))


def _energy(axes: Axes, stages: Sequence[SoftStage]) -> None:
    steps, values = stage_series(stages, "energy")
    draw_points(axes, steps, values, ACCENT)
    axes.grid(axis="y")
    labelled(axes, "Energy", "", "energy")


def _gradient_norm(axes: Axes, stages: Sequence[SoftStage], records: Sequence[Record]) -> None:
    """Gradient norm of the calibration loss, if the criterion measures it; otherwise of the training steps."""
    calibration = stage_series(stages, "gradient_norm")
    if calibration[0]:
        draw_points(axes, *calibration, ACCENT)
    else:
        draw_smoothed(axes, *series(records, "grad_norm"), MODEL_COLOURS["dense"], "training")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    labelled(axes, f"Gradient norm ({'calibration' if calibration[0] else 'training'})", "", "norm")
