"""Loss and cost of the models that were evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ...results.evaluation import ModelResult
from ..style import MARGIN, model_colour, panels, plain, styled
from .curves import scale_values


@styled
def plot_denoising(models: Sequence[ModelResult]) -> Figure:
    """Denoising loss of every model by timestep."""
    figure, (axes,) = panels([2.3], [MARGIN])
    for position, model in enumerate(models):
        style = "--" if model.name == "dense" else "-"
        colour = model_colour(model.name, position)
        losses = np.array(model.losses, dtype=np.float64)  # None becomes NaN, a gap
        axes.plot(model.timesteps, losses, style, color=colour, label=plain(model.name), marker=".", markersize=4)
    scale_values(axes, [loss for model in models for loss in model.losses if loss is not None])
    axes.grid(axis="y")
    axes.legend(loc="best")
    axes.set_xlabel("timestep")
    axes.set_title("Denoising loss by timestep")
    return figure


@styled
def plot_speed(models: Sequence[ModelResult]) -> Figure:
    """MACs, parameters and latency of every model relative to the first one."""
    dense = models[0]
    ratios = {
        "MACs": [_ratio(model.macs, dense.macs) for model in models],
        "parameters": [_ratio(model.parameters, dense.parameters) for model in models],
    }
    for batch in dense.latency:
        times = [model.latency[batch].median_ms if batch in model.latency else None for model in models]
        ratios[f"latency,\nbatch {batch}"] = [_ratio(time, times[0]) for time in times]
    figure, (axes,) = panels([2.3], [MARGIN])
    width = 0.8 / len(models)
    for position, model in enumerate(models):
        heights = [ratio[position] for ratio in ratios.values()]
        places = np.arange(len(ratios)) + (position - (len(models) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.9, color=model_colour(model.name, position), label=plain(model.name))
        axes.bar_label(bars, [f"{height:.0f}" if height else "" for height in heights], fontsize=6.5, padding=1)
    axes.set_xticks(range(len(ratios)), list(ratios))
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(top=1.38 * max(height for heights in ratios.values() for height in heights))
    axes.legend(ncols=len(models), loc="upper right")
    axes.grid(axis="y")
    axes.set_title(f"Cost (% of {plain(dense.name)})")
    return figure


def _ratio(value: float | None, of: float | None) -> float:
    """Percentage; 0 draws nothing where a value was not measured."""
    return 100 * value / of if value and of else 0.0
