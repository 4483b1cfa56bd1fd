"""Students, teachers and draws in float64 for the Jacobian terms, and what the terms are."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models import dit, unet
from secateur.data import ArrayDataset
from secateur.models.conditions import without_labels
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, RecoveryConfig
from secateur.recovery.draws import draw_step
from secateur.recovery.objectives.build import build_objective
from secateur.teacher import Draw

MODELS = {"unet": (unet, DiffusionProcess()), "dit": (dit, FlowProcess(convention="sit"))}


def twins(name: str) -> tuple[nn.Module, nn.Module, FlowProcess | DiffusionProcess]:
    """A student and its teacher, which differs, in float64, in the modes of training."""
    build, process = MODELS[name]
    student, teacher = build().double().train(), build().double()
    for module in student.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.9)
    return student, teacher, process


def draw(process, batch_size: int = 4, labels: bool = False) -> Draw:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 1, 8, 8, generator=generator)
    dataset = ArrayDataset("noise", (1, 8, 8), ("a", "b"), images, torch.arange(10) % 2)
    (found,) = draw_step(
        dataset, process, RecoveryConfig(batch_size=batch_size), 0, accepts=dict if labels else without_labels
    )
    normal = found.normal
    return replace(found, sample=found.sample.double(), noise=found.noise.double(), normal=lambda k: normal(k).double())


def objective_for(teacher: nn.Module, name: str = "2ndmatch", **options: object):
    return build_objective(RecoveryConfig(objective=name, jacobian=JacobianConfig(**options)), teacher)


def terms_of(objective, student, teacher, process, found: Draw) -> dict[str, Tensor]:
    with objective.context():
        terms = objective.terms(student, teacher, process, found, objective.jacobian)
        objective.loss(terms).backward()
    return terms
