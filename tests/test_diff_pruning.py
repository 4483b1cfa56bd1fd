"""The checks of the Diff-Pruning specification, against closed forms, and the rules of its released code."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from models import unet
from scoring_runs import BOTH, FEW, batch_of
from secateur.criteria import (
    DiffPruningOptions,
    ScoringConfig,
    score,
)
from secateur.criteria.gradients import (
    calibration_timesteps,
    timestep_losses,
    used_timesteps,
)
from secateur.data import Batch, calibration_batch
from secateur.data.conditions import accepts
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject
from secateur.structure import StructureBuilder


class OneLayer(nn.Module):
    """Predicts w * x per channel, as a diffusers model does."""

    def __init__(self, weights):
        super().__init__()
        self.scale = nn.Linear(2, 2, bias=False)
        self.scale.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x, timestep, return_dict=False):
        return (self.scale(x.movedim(1, -1)).movedim(-1, 1),)


@dataclass(frozen=True)
class Plain:
    """A process without noise whose target is zero, so that the loss is a quadratic form of the weights."""

    num_train_timesteps: int = 2

    def timesteps(self, u):
        return (u * 2).long()

    def add_noise(self, sample, noise, timesteps):
        return sample * (1 + timesteps.reshape(-1, 1, 1, 1))

    def target(self, sample, noise, timesteps):
        return torch.zeros_like(sample)


@pytest.mark.parametrize("reduction", ["abs", "square"])
@pytest.mark.parametrize("timestep_reduction", ["sum-then-abs", "abs-then-sum"])
def test_one_linear_layer_equals_the_closed_form(timestep_reduction, reduction):
    """L_t = mean over outputs of (W x)^2 at x = (1 + t) e, so dL/dW = W x x' (two outputs of one pixel)."""
    model = OneLayer([[2.0, 1.0], [0.0, -3.0]])
    builder = StructureBuilder()
    builder.writes("scale", builder.dim("out", 2), bias=False)
    structure = builder.build()
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    batch = Batch(x.reshape(1, 2, 1, 1))
    weight = model.scale.weight.detach()
    gradients = [weight @ torch.outer(x, x) * (1 + t) ** 2 for t in (0, 1)]
    terms = [weight * sum(gradients)] if timestep_reduction == "sum-then-abs" else [weight * g for g in gradients]
    expected = sum(term.abs() if reduction == "abs" else term.square() for term in terms).sum(1)
    options = DiffPruningOptions(timestep_reduction, reduction, threshold=0)
    config = ScoringConfig(num_timesteps=2, options=options)
    found = score(model, Plain(), batch, structure, "diff-pruning", config).scores["out"]
    torch.testing.assert_close(found, expected)


def test_the_prefix_ends_at_the_first_small_loss_for_good():
    assert used_timesteps([4, 5, 0.2, 9], 0.05) == 2
    assert used_timesteps([4, 5, 0.2, 9], 0.0) == 4
    assert used_timesteps([4, 3, 9], 1.0) == 1  # T = 1: the steps before the loss first drops below its maximum
    assert used_timesteps([1, 2, 3], 1.0) == 3


def test_threshold_zero_uses_every_timestep_and_one_only_the_rise():
    model, process = unet(), DiffusionProcess()
    batch = batch_of(model)
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(0))
    timesteps = calibration_timesteps(process, 8)
    assert len(timestep_losses(model, process, batch, noise, timesteps, 0.0, 16)) == 8
    whole = timestep_losses(model, process, batch, noise, timesteps, 0.0, 16)
    for threshold in (0.5, 0.9, 1.0):
        stopped = timestep_losses(model, process, batch, noise, timesteps, threshold, 4)
        used = used_timesteps(whole, threshold)
        assert stopped == pytest.approx(whole[: used + 1])
    ranking = score(model, process, batch, describe(model), "taylor", FEW)
    assert ranking.curve.used == 8


class Convolutions(nn.Module):
    """A convolution, a norm and a convolution, as the released code of Diff-Pruning finds them in a group."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for parameter in self.parameters():
                nn.init.normal_(parameter)
        self.double()

    def forward(self, sample, timestep, return_dict=False):
        return (self.last(self.norm(self.first(sample))),)


def convolutions():
    builder = StructureBuilder()
    inner = builder.dim("inner", 4)
    builder.writes("first", inner)
    builder.normalizes("norm", inner, 2)
    builder.reads("last", inner)
    return Convolutions(), builder.build()


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_rules_of_the_released_code_equal_values_computed_by_hand(criterion):
    """Of each unit: ddpm-prune averages |w g| over the two layers, and divides by the group's mean; ddpm-exp adds
    (w g)^2 of the layers and |w g| of the norm. Biases count in neither. Magnitude has w in the place of w g."""
    model, structure = convolutions()
    batch = Batch(torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    loss = sum(model((1 + t) * batch.sample, t)[0].square().mean() for t in (0, 1))  # of `Plain`
    gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, model.parameters()), strict=True))
    terms = {
        name: parameter.detach() * (gradients[name] if criterion == "taylor" else 1)
        for name, parameter in model.named_parameters()
    }
    layers = [[terms["first.weight"][unit], terms["last.weight"][:, unit]] for unit in range(4)]
    averages = [sum(layer.abs().sum() for layer in layers[unit]) / 2 for unit in range(4)]
    by_script = torch.stack(averages) / (sum(averages) / 4)
    by_tables = torch.stack(
        [sum(layer.square().sum() for layer in layers[unit]) + terms["norm.weight"][unit].abs() for unit in range(4)]
    )
    for reduction, expected in (("ddpm-prune", by_script), ("ddpm-exp", by_tables)):
        config = ScoringConfig(num_timesteps=2, options={"reduction": reduction})
        found = score(model, Plain(), batch, structure, criterion, config).scores["inner"]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["ddpm-prune", "ddpm-exp"])
@pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])
def test_rules_of_the_released_code_rank_whole_models(model, process, reduction):
    structure, config = describe(model), dataclasses.replace(FEW, options={"reduction": reduction})
    scores = score(model, process, batch_of(model), structure, "taylor", config).scores
    assert all(values.min() >= 0 and (len(values) == 1 or values.std() > 0) for values in scores.values())
    if reduction == "ddpm-prune":
        assert [scores[name].mean().item() for name in structure.dims] == pytest.approx([1] * len(structure.dims))


@pytest.mark.parametrize("name", ["digits-unet", "digits-sit"])
def test_both_orders_of_reduction_keep_nearly_the_same_units(name):
    """Half of every width; the smaller sum is what large models can afford."""
    subject = open_subject(name)
    batch = calibration_batch(open_data("digits", subject), 16, 0)
    batch = dataclasses.replace(batch, conditions=accepts(subject.model)(batch.conditions))
    kept = []
    for reduction in ("sum-then-abs", "abs-then-sum"):
        config = ScoringConfig(num_timesteps=16, options={"timestep_reduction": reduction})
        scores = score(subject.model, subject.process, batch, subject.structure, "taylor", config).scores
        halves = {dim: scores[dim].argsort()[len(scores[dim]) // 2 :].tolist() for dim in subject.structure.dims}
        kept.append({(dim, unit) for dim, units in halves.items() for unit in units})
    assert len(kept[0] & kept[1]) / len(kept[0] | kept[1]) > 0.8
