"""Loss and cost of the models that were evaluated."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ...results import Evaluation, Losses
from ..style import MARGIN, SMALL, model_colour, panels, plain, styled
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
        style = "--" if name == evaluation.reference else "-"
        losses = np.array(curve.losses, dtype=np.float64)  # None becomes NaN, a gap
        colour = model_colour(name, position)
        axes.plot(curve.timesteps, losses, style, color=colour, label=plain(name), marker=".", markersize=4)
    scale_values(axes, [loss for curve in curves.values() for loss in curve.losses if loss is not None])
    axes.grid(axis="y")
    axes.legend(loc="best")
    axes.set_xlabel("timestep, from the clean end")
    axes.set_ylabel("mean squared error")
    axes.set_title(f"{evaluation.loss.capitalize()} by timestep")
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
    width = 0.8 / len(models)
    for position, name in enumerate(models):
        heights = [ratio[position] for ratio in ratios.values()]
        places = np.arange(len(ratios)) + (position - (len(models) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.9, color=model_colour(name, position), label=plain(name))
        axes.bar_label(bars, [f"{height:.0f}" if height else "" for height in heights], fontsize=SMALL, padding=1)
    axes.set_xticks(range(len(ratios)), list(ratios))
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(top=1.38 * max(height for heights in ratios.values() for height in heights))
    axes.legend(ncols=len(models), loc="upper right")
    axes.grid(axis="y")
    axes.set_ylabel(f"% of {plain(evaluation.reference)}")
    axes.set_title("Cost of each model")
    return figure


def _ratio(value: float | None, of: float | None) -> float:
    """Percentage; 0 draws nothing where a value was not measured."""
    return 100 * value / of if value and of else 0.0
