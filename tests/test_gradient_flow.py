"""Gradient flow of whole networks against explicit Hessians and physical removal, in float64."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradient_flow_runs import BOTH, METHODS, THREE, UNIFORM, assert_same, batch_of, over_both, signed_scores
from models import dit, unet
from secateur.base.errors import SecateurError, TrainingError
from secateur.criteria import GradientFlowOptions, ScoringConfig, score
from secateur.criteria.gradient_flow import (
    energy,
    gradient_flow_statistics,
    gradient_norm_changes,
    streamed_changes,
    timestep_weight,
)
from secateur.data import Batch
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.structure import Cut, check_cut, masked, masks_of, remove


def flat_loss(model, process, batch, noise, timestep):
    """The loss at a timestep as a function of all parameters in one vector."""
    named = dict(model.named_parameters())
    t = timestep.repeat(len(batch.sample))
    x_t, target = process.add_noise(batch.sample, noise, t), process.target(batch.sample, noise, t)

    def loss(flat):
        parts = flat.split([parameter.numel() for parameter in named.values()])
        values = {name: part.reshape(named[name].shape) for name, part in zip(named, parts, strict=True)}
        output = functional_call(model, values, (x_t, t), {"return_dict": False, **batch.conditions})[0]
        return (output[:, : x_t.shape[1]] - target).square().mean()

    return loss


@pytest.mark.slow
@over_both
def test_every_score_equals_the_one_of_the_explicit_hessian(model, process):
    structure, batch = describe(model), batch_of(model)
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(5)).double()
    named = dict(model.named_parameters())
    theta = torch.cat([parameter.detach().flatten() for parameter in named.values()])
    change = torch.zeros_like(theta)
    for timestep in process.timesteps(torch.tensor([0.25, 0.75])):
        loss = flat_loss(model, process, batch, noise, timestep)
        with sdpa_kernel(SDPBackend.MATH):
            gradient, hessian = grad(loss)(theta), jacrev(grad(loss), chunk_size=256)(theta)
        change -= theta * (hessian @ gradient) / gradient.square().sum()
    sizes = [parameter.numel() for parameter in named.values()]
    change_of = {name: part.reshape(named[name].shape) for name, part in zip(named, change.split(sizes), strict=True)}
    expected = {
        dim.name: torch.stack(
            [
                sum(
                    change_of[piece.parameter].narrow(piece.axis, piece.offset + unit * dim.width, dim.width).sum()
                    for piece in dim.slices
                )
                for unit in range(dim.size)
            ]
        )
        for dim in structure.dims.values()
    }
    for block in structure.blocks:
        owned = model.get_submodule(block).named_parameters(prefix=block)
        expected[block] = sum(change_of[name].sum() for name, _ in owned).reshape(1)
    config = ScoringConfig(num_timesteps=2, seed=5, options={"mode": "increase"})
    found = score(model, process, batch, structure, "gradient-flow", config).scores
    assert_same(found, {name: -values for name, values in expected.items()}, rtol=1e-7, atol=1e-8)


@over_both
def test_finite_differences_agree_with_double_backward(model, process):
    exact = signed_scores(model, process)
    by_differences = replace(UNIFORM, hessian_product="finite-difference")
    difference = signed_scores(model, process, replace(THREE, options=by_differences))
    largest = max(values.abs().max().item() for values in exact.values())
    assert_same(difference, exact, rtol=1e-6, atol=1e-7 * largest)


@pytest.mark.parametrize("method", METHODS)
@over_both
def test_splitting_the_batch_changes_nothing(model, process, method):
    options = GradientFlowOptions(hessian_product=method)
    whole, *split = (
        signed_scores(model, process, ScoringConfig(num_timesteps=2, batch_size=size, options=options))
        for size in (8, 3, 1)
    )
    largest = max(values.abs().max().item() for values in whole.values())
    for scores in split:
        assert_same(scores, whole, rtol=1e-6, atol=1e-7 * largest)


@over_both
def test_modes_order_the_same_changes(model, process):
    changes = signed_scores(model, process)
    for mode, expected in (("increase", lambda values: -values), ("preserve", torch.abs)):
        config = replace(THREE, options=replace(UNIFORM, mode=mode))
        ranking = score(model, process, batch_of(model), describe(model), "gradient-flow", config)
        assert_same(ranking.scores, {name: expected(values) for name, values in changes.items()})
    assert min(values.min() for values in changes.values()) < 0 < max(values.max() for values in changes.values())


@over_both
def test_weights_energy_and_losses_per_timestep(model, process):
    batch = batch_of(model)
    uniform = gradient_flow_statistics(model, process, batch, THREE, UNIFORM)
    assert uniform.weights == (1, 1, 1)
    assert uniform.energy == pytest.approx(-sum(norm**2 for norm in uniform.gradient_norms) / 2)
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(0)).double()
    theta = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    for index, timestep in enumerate(process.timesteps((torch.arange(3) + 0.5) / 3)):
        assert uniform.timesteps[index] == pytest.approx(timestep.item())
        loss = flat_loss(model, process, batch, noise, timestep)
        assert uniform.losses[index] == pytest.approx(loss(theta).item())
        assert uniform.gradient_norms[index] == pytest.approx(grad(loss)(theta).norm().item())

    inverse = gradient_flow_statistics(model, process, batch, THREE, GradientFlowOptions())
    assert inverse.gradient_norms == uniform.gradient_norms
    assert inverse.weights == pytest.approx([norm**-2 for norm in uniform.gradient_norms])
    assert inverse.energy == pytest.approx(-sum(math.log(norm) for norm in uniform.gradient_norms))


@over_both
@pytest.mark.parametrize("weights", ["uniform", "inverse-gradient"])
def test_scores_of_blocks_are_the_derivatives_of_the_energy(model, process, weights):
    batch, structure = batch_of(model), describe(model)
    options = GradientFlowOptions(timestep_weights=weights)
    block = next(iter(structure.blocks))
    product = gradient_flow_statistics(model, process, batch, THREE, options).product
    expected = gradient_norm_changes(model, structure, product)[block].item()
    energies = []
    for mask in (1 + 1e-5, 1 - 1e-5):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in scaled.get_submodule(block).parameters():
                parameter.mul_(mask)
        energies.append(gradient_flow_statistics(scaled, process, batch, THREE, options).energy)
    assert (energies[0] - energies[1]) / 2e-5 == pytest.approx(expected, rel=1e-5)


def test_a_ranking_holds_the_losses_of_32_timesteps_or_of_all():
    model = BOTH[0][0]
    config = ScoringConfig(options={"hessian_product": "finite-difference"})
    arguments = batch_of(model, 1), describe(model), "gradient-flow", config
    curve = score(model, DiffusionProcess(), *arguments).curve
    assert len(curve.timesteps) == len(curve.losses) == curve.used == 32
    assert curve.timesteps[:2] == (15, 46)
    assert score(model, DiffusionProcess({"num_train_timesteps": 5}), *arguments).curve.timesteps == (0, 1, 2, 3, 4)


class Loud(nn.Module):
    """A model whose output is twice as loud."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, sample, timestep, return_dict=False):
        return (2 * self.model(sample, timestep)[0],)


class Louder(DiffusionProcess):
    def target(self, sample, noise, timesteps):
        return 2 * super().target(sample, noise, timesteps)


@pytest.mark.parametrize(("weights", "factor"), [("uniform", 16), ("inverse-gradient", 1)])
def test_scaling_the_loss_scales_every_score_by_its_square(weights, factor):
    """T7: outputs and target times 2 scale the loss by 4."""
    model, process = BOTH[0]
    options = GradientFlowOptions(timestep_weights=weights)
    plain = gradient_flow_statistics(model, process, batch_of(model), THREE, options).product
    loud = gradient_flow_statistics(Loud(model), Louder(), batch_of(model), THREE, options).product
    assert_same({name: loud[f"model.{name}"] for name in plain}, {name: factor * plain[name] for name in plain}, 1e-7)


def test_permuting_channels_permutes_their_scores():
    """T7."""
    model, process = copy.deepcopy(BOTH[1][0]), BOTH[1][1]
    before = signed_scores(model, process)
    name = "transformer_blocks.1.ff"
    order = torch.randperm(len(before[name]), generator=torch.Generator().manual_seed(1))
    feed_forward = model.transformer_blocks[1].ff.net
    with torch.no_grad():
        feed_forward[0].proj.weight.copy_(feed_forward[0].proj.weight[order].clone())
        feed_forward[0].proj.bias.copy_(feed_forward[0].proj.bias[order].clone())
        feed_forward[2].weight.copy_(feed_forward[2].weight[:, order].clone())
    assert_same(signed_scores(model, process), before | {name: before[name][order]})


@pytest.mark.parametrize(
    ("model", "process"),
    [(unet(sample_size=4).double(), DiffusionProcess()), (dit(sample_size=4).double(), FlowProcess())],
    ids=["unet", "dit"],
)
def test_scores_under_masks_equal_scores_after_removal(model, process):
    """With several heads left, since removal rescales the queries of a single one."""
    structure = describe(model)
    halves = {
        dim.name: tuple(unit for cell in dim.cell_ranges() for unit in list(cell)[: len(cell) // 2])
        for dim in structure.dims.values()
        if all(cell % 2 == 0 for dims in structure.links[dim.link] for cell in dims.cells)
    }
    cut = Cut(halves, (list(structure.blocks)[-1],))
    check_cut(structure, cut)
    with masked(model, structure, masks_of(cut, structure)):
        soft = signed_scores(model, process)
    hard = signed_scores(remove(copy.deepcopy(model), structure, cut), process)
    assert len(hard) > 2
    for name, values in hard.items():
        kept = list(cut.kept.get(name, range(len(values))))
        torch.testing.assert_close(soft[name][kept], values, rtol=1e-7, atol=1e-9)
    assert any(len(values) < len(soft[name]) for name, values in hard.items())


@over_both
@pytest.mark.parametrize("batch_size", [4, 2])
def test_scores_of_streamed_gradients_are_those_of_whole_products(model, process, batch_size):
    """With all images in a pass, and with two passes; without TF32, also in the blocks that are computed again."""
    model, structure, seen = copy.deepcopy(model), describe(model), set()
    expected = signed_scores(model, process)
    model.register_forward_hook(lambda *_: seen.add(torch.backends.cuda.matmul.fp32_precision))
    options = replace(UNIFORM, hessian_product="streamed")
    config = replace(THREE, batch_size=batch_size)
    flow, changes = streamed_changes(model, process, batch_of(model), structure, config, options)
    assert_same(changes, expected, rtol=1e-5, atol=1e-8)
    statistics = gradient_flow_statistics(model, process, batch_of(model), THREE, UNIFORM)
    assert flow.losses == pytest.approx(statistics.losses)
    assert flow.gradient_norms == pytest.approx(statistics.gradient_norms)
    assert flow.energy == pytest.approx(statistics.energy)
    assert "ieee" in seen


@pytest.mark.parametrize("method", [*METHODS, "streamed"])
def test_the_model_is_restored(method):
    model, process = copy.deepcopy(BOTH[0][0]), BOTH[0][1]
    model.train()
    model.conv_in.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    config = ScoringConfig(num_timesteps=2, options={"hessian_product": method})
    trained = score(model, process, batch_of(model), describe(model), "gradient-flow", config).scores
    assert model.training
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        assert_same(score(frozen, process, batch_of(model), describe(model), "gradient-flow", config).scores, trained)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@over_both
def test_gradient_checkpointing_changes_nothing(model, process, dtype, method):
    model, options = copy.deepcopy(model).to(dtype), replace(UNIFORM, hessian_product=method)
    batch = batch_of(model)
    batch = Batch(batch.sample.float(), batch.conditions)
    expected = gradient_flow_statistics(model, process, batch, THREE, options)
    model.enable_gradient_checkpointing()
    assert_same(gradient_flow_statistics(model, process, batch, THREE, options).product, expected.product)
    assert model.is_gradient_checkpointing


def test_shared_parameters_count_under_each_name():
    model, process = copy.deepcopy(BOTH[1][0]), BOTH[1][1]
    model.transformer_blocks[1].ff = model.transformer_blocks[0].ff
    product = gradient_flow_statistics(model, process, batch_of(model), THREE, UNIFORM).product
    weight = "ff.net.2.weight"
    assert torch.equal(product[f"transformer_blocks.0.{weight}"], product[f"transformer_blocks.1.{weight}"])
    assert product[f"transformer_blocks.1.{weight}"].abs().max() > 0


def test_a_loss_that_is_not_finite_is_an_error():
    model = copy.deepcopy(BOTH[0][0])
    with torch.no_grad():
        model.conv_in.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="finite"):
        score(model, DiffusionProcess(), batch_of(model), describe(model), "gradient-flow", THREE)


@pytest.mark.parametrize("option", ["mode", "timestep_weights", "hessian_product"])
def test_an_unknown_option_is_refused_with_those_there_are(option):
    with pytest.raises(SecateurError, match=f"{option} is 'other'; give .* or "):
        GradientFlowOptions(**{option: "other"})


def test_a_timestep_without_gradient_weighs_something_finite():
    assert timestep_weight(0.5, "inverse-gradient") == pytest.approx(4)
    assert timestep_weight(0.0, "inverse-gradient") < float("inf")
    assert timestep_weight(0.5, "uniform") == 1
    assert energy([2.0, 1.0], "uniform") == -2.5
    assert energy([0.0], "inverse-gradient") < float("inf")
