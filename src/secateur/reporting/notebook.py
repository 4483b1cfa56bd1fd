"""Figures of results in notebooks: once this module is imported, results draw themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

from matplotlib.figure import Figure
from torch import Tensor

from ..results import Compensation, CutResult, Decisions, Evaluation, Ranking, Recovery
from ..results.display import draws
from .grids import comparison_grid
from .pages import shown_count
from .plots import (
    plot_compensation,
    plot_cut,
    plot_decisions,
    plot_denoising,
    plot_ranking,
    plot_speed,
    plot_stages,
    plot_training,
)
from .plots.evaluation import losses_of
from .style import inline_svg


@draws(Ranking)
def _ranking(found: Ranking) -> list[str]:
    return [_svg(plot_ranking(found), "Scores of every dim and block")] if found.dims or found.blocks else []


@draws(CutResult)
def _cut(found: CutResult) -> list[str]:
    return [_svg(plot_cut(found), "Channels of every dim before and after the cut")] if found.dims else []


@draws(Compensation)
def _compensation(found: Compensation) -> list[str]:
    measured = any(one.before and one.after for one in found.readers.values())
    return [_svg(plot_compensation(found), "Error of every refitted layer before and after")] if measured else []


@draws(Decisions)
def _decisions(found: Decisions) -> list[str]:
    figures = [_svg(plot_stages(found, ()), "Masks and MACs by stage")] if found.soft else []
    return figures + ([_svg(plot_decisions(found.blocks), "Candidates and choices")] if found.blocks else [])


@draws(Recovery)
def _recovery(found: Recovery) -> list[str]:
    return [_svg(plot_training(found.records), "Recovery loss by step")] if found.records else []


@draws(Evaluation)
def _evaluation(found: Evaluation) -> list[str]:
    figures = [_svg(plot_speed(found), "Cost of each model")] if found.compares else []
    if any(len(losses.losses) > 1 for losses in losses_of(found).values()):
        figures.append(_svg(plot_denoising(found), "Loss of each model by timestep"))
    return figures


def pictured(images: Mapping[str, Tensor]) -> str:
    """The first images of each model, a row each, as HTML for a notebook; empty without images."""
    if not images:
        return ""
    buffer = io.BytesIO()
    comparison_grid({name: batch[: shown_count(batch)] for name, batch in images.items()}).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img style="max-width: 100%" alt="Samples of each model from the same noise" src="{source}">'


def _svg(figure: Figure, label: str) -> str:
    """The figure on a white background, whatever the notebook's theme."""
    svg = inline_svg(figure, escape(label, quote=True), label)
    return f'<div style="background: #ffffff; color: #27313b">{svg}</div>'
