"""Recovery objectives: pure functions from student, teacher, process and one draw to named scalar terms.

Every term is a mean over pixels and batch, so weights mean the same at every resolution. The loss is the sum of
the terms by their weights. A new objective is one function here and one line in `OBJECTIVES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TrainingError
from ..process import Process, predict
from .draws import Draw

Terms = dict[str, Tensor]
TermsFunction = Callable[[nn.Module, nn.Module | None, Process, Draw], Terms]


@dataclass(frozen=True)
class Objective:
    """Terms to compute and the weight of each; the weights' names are the terms' names."""

    terms: TermsFunction
    weights: Mapping[str, float]
    needs_teacher: bool = False

    def loss(self, terms: Terms) -> Tensor:
        """Weighted sum of `terms`, a scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()


def denoising_terms(student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw) -> Terms:
    """Error against the process's target: L_simple (DDPM, eq. 14), v, sample or flow velocity alike."""
    x_t = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    target = process.target(draw.sample, draw.noise, draw.timesteps)
    prediction = predict(student, x_t, draw.timesteps, draw.class_labels)
    return {"denoising": F.mse_loss(prediction.to(target.dtype), target)}


def distillation_terms(student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw) -> Terms:
    """`denoising_terms` and the error against the dense teacher's output on the same noisy input."""
    assert teacher is not None
    x_t = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    target = process.target(draw.sample, draw.noise, draw.timesteps)
    prediction = predict(student, x_t, draw.timesteps, draw.class_labels).to(target.dtype)
    with torch.no_grad():
        taught = predict(teacher, x_t, draw.timesteps, draw.class_labels).to(target.dtype)
    return {"denoising": F.mse_loss(prediction, target), "distillation": F.mse_loss(prediction, taught)}


OBJECTIVES: dict[str, Objective] = {
    "denoising": Objective(denoising_terms, {"denoising": 1.0}),
    "distillation": Objective(distillation_terms, {"denoising": 1.0, "distillation": 1.0}, needs_teacher=True),
}


def build_objective(name: str, weights: Mapping[str, float], teacher: nn.Module | None) -> Objective:
    """The objective called `name`, with `weights` in the place of its default ones.

    Raises:
        TrainingError: there is no such objective or term, or it needs a teacher and there is none.
    """
    if name not in OBJECTIVES:
        raise TrainingError(f"objective {name!r} is unknown; use {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    if unknown := sorted(set(weights) - set(objective.weights)):
        known = ", ".join(objective.weights)
        raise TrainingError(f"objective {name} has no term {', '.join(unknown)}; its terms are {known}")
    if objective.needs_teacher and teacher is None:
        raise TrainingError(f"objective {name} needs a teacher; pass the dense model, or use denoising")
    return Objective(objective.terms, {**objective.weights, **weights}, objective.needs_teacher)
