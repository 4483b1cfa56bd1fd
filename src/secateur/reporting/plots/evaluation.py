"""Loss and cost of the models that were evaluated."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ...results import Evaluation, Losses
from ..style import MARGIN, SMALL, labelled, model_colour, panels, plain, styled
from .curves import scale_values


def losses_of(evaluation: Evaluation) -> dict[str, Losses]:
    """The loss by timestep of every model that has one."""
    found = {name: model.denoising_loss for name, model in evaluation.models.items()}
    return {name: losses for name, losses in found.items() if losses is not None}


@styled
def plot_denoising(evaluation: Evaluation) -> Figure:
    """Loss of every model on the data by timestep."""
    figure, (axes,) = panels([2.3], [MARGIN])
    curves = losses_of(evaluation)
    for position, (name, curve) in enumerate(curves.items()):
        style = "--" if name == evaluation.reference and len(curves) > 1 else "-"
        losses = np.array(curve.losses, dtype=np.float64)  # None becomes NaN, a gap
        colour = model_colour(name, position)
        axes.plot(curve.timesteps, losses, style, color=colour, label=plain(name), marker=".", markersize=4)
    scale_values(axes, [loss for curve in curves.values() for loss in curve.losses if loss is not None])
    axes.grid(axis="y")
    axes.legend(loc="best")
    labelled(axes, f"{evaluation.loss.capitalize()} by timestep", "timestep, from the clean end", "mean squared error")
    return figure


@styled
def plot_speed(evaluation: Evaluation) -> Figure:
    """MACs, parameters and latency of every model relative to the reference."""
    dense, models = evaluation.dense, evaluation.models
    ratios = {
        "MACs": [_ratio(model.macs, dense.macs) for model in models.values()],
        "parameters": [_ratio(model.parameters, dense.parameters) for model in models.values()],
    }
    for batch, slow in dense.latency.items():
        times = [model.latency[batch].median_ms if batch in model.latency else None for model in models.values()]
        ratios[f"latency,\nbatch {batch}"] = [_ratio(time, slow.median_ms) for time in times]
    figure, (axes,) = panels([2.3], [MARGIN])
    others = [name for name in models if name != evaluation.reference]
    width = 0.8 / max(len(others), 1)
    axes.axhline(100, color=model_colour(evaluation.reference, 0), linestyle="--", label=plain(evaluation.reference))
    for position, name in enumerate(others):
        heights = [ratio[list(models).index(name)] for ratio in ratios.values()]
        places = np.arange(len(ratios)) + (position - (len(others) - 1) / 2) * width
        colour = model_colour(name, position)
        bars = axes.bar(places, heights, width * 0.9, color=colour, label=plain(name))
        axes.bar_label(bars, [f"{height:.0f}" if height else "" for height in heights], fontsize=SMALL, padding=1)
    axes.set_xticks(range(len(ratios)), list(ratios))
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(top=1.5 * max(height for heights in ratios.values() for height in heights))
    axes.legend(ncols=2, loc="upper right", handlelength=1)
    axes.grid(axis="y")
    labelled(axes, "Cost of each model", "", f"% of {plain(evaluation.reference)}")
    return figure


def _ratio(value: float | None, of: float | None) -> float:
    """Percentage; 0 draws nothing where a value was not measured."""
    return 100 * value / of if value and of else 0.0
