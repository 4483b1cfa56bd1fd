"""Scoring between the stages of a schedule, with what the gradient-flow criterion has to say about the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from ..criteria import CriterionName, ScoringConfig, score
from ..criteria.gradient_flow import energy as energy_of
from ..criteria.gradient_flow import gradient_flow_scores, gradient_flow_statistics
from ..data import Batch
from ..process import Process
from ..structure import describe
from .progressive import Scored


def stage_scorer(
    process: Process, batch: Batch, criterion: CriterionName, config: ScoringConfig
) -> Callable[[nn.Module, Any], Scored]:
    """A function from a model, and the timestep weights of the first stage, to its scores.

    Gradient flow keeps those weights, so that its energy stays one function of the masks, and reports the energy, the
    root mean square of the gradient norms over timesteps, and the mean loss.
    """

    def any_criterion(model: nn.Module, memory: Any) -> Scored:
        return Scored(score(model, process, batch, describe(model), criterion, config).scores)

    def gradient_flow(model: nn.Module, memory: Any) -> Scored:
        statistics = gradient_flow_statistics(model, process, batch, config, memory)
        norms = statistics.gradient_norms
        facts = {
            "energy": energy_of(norms, statistics.weights),
            "gradient_norm": math.sqrt(sum(norm**2 for norm in norms) / len(norms)),
            "loss": sum(statistics.losses) / len(statistics.losses),
        }
        scores = gradient_flow_scores(model, describe(model), statistics, config)
        return Scored(scores, facts, list(statistics.weights))

    return gradient_flow if criterion == "gradient-flow" else any_criterion
