"""Gradient flow against quadratics, explicit Hessians and physical removal, in float64."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import dit, unet
from secateur.base.errors import SecateurError, TrainingError
from secateur.criteria import GradientFlowOptions, ScoringConfig, ranking_memory, score
from secateur.criteria.gradient_flow import (
    energy,
    gradient_flow_statistics,
    gradient_norm_changes,
    streamed_changes,
    timestep_weight,
)
from secateur.criteria.hessian_products import local_geometry, loss_and_gradient
from secateur.data import Batch
from secateur.models.network import input_shape
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.structure import Cut, check_cut, masked, masks_of, remove
from secateur.structure.cost import skeleton
from secateur.structure.memory import LiveBytes

METHODS = ["exact", "finite-difference"]
UNIFORM = GradientFlowOptions(timestep_weights="uniform")
THREE = ScoringConfig(num_timesteps=3, batch_size=4, options=UNIFORM)
BOTH = [
    (
        unet(sample_size=4, block_out_channels=(2, 4), norm_num_groups=2, attention_head_dim=2).double(),
        DiffusionProcess(),
    ),
    (
        dit(sample_size=4, num_layers=2, num_attention_heads=2, attention_head_dim=2, num_embeds_ada_norm=4).double(),
        FlowProcess(),
    ),
]
over_both = pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch_of(model, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size, channels = model.config.sample_size, model.config.in_channels
    sample = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return Batch(sample, {"class_labels": torch.arange(count)} if "num_embeds_ada_norm" in model.config else {})


def signed_scores(model, process, config=THREE):
    """S of every unit and block."""
    statistics = gradient_flow_statistics(model, process, batch_of(model), config, config.options)
    return gradient_norm_changes(model, describe(model), statistics.product)


def assert_same(found, expected, rtol=1e-9, atol=1e-12):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name], values, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


# ------------------------------------------------------------------------------------------------ quadratics


def quadratic(matrix, linear, parameters):
    theta = parameters["theta"]
    return theta @ matrix @ theta / 2 - linear @ theta


def squared_gradient(matrix, linear, theta):
    return (matrix @ theta - linear).square().sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("matrix", "linear", "theta", "gradient", "product", "group", "first_order", "exact"),
    [
        ([[2, 1], [1, 3]], [1, 1], [1, -2], [-1, -6], [-8, -19], [0], 16, 21),
        ([[2, 1], [1, 3]], [1, 1], [1, -2], [-1, -6], [-8, -19], [1], -76, -36),
        (
            [[2, 1, 0], [1, 3, 1], [0, 1, 4]],
            [1, 0, 2],
            [1, -2, 0.5],
            [-1, -4.5, -2],
            [-6.5, -16.5, -12.5],
            [0, 2],
            25.5,
            35.75,
        ),
    ],
    ids=["T1 first", "T1 second", "T2"],
)
def test_the_score_is_the_first_order_change_of_the_squared_gradient_norm(
    matrix, linear, theta, gradient, product, group, first_order, exact, method
):
    matrix, linear, theta = (torch.tensor(values, dtype=torch.float64) for values in (matrix, linear, theta))
    geometry = local_geometry([partial(quadratic, matrix, linear)], {"theta": theta}, method)
    assert geometry.loss.item() == pytest.approx(quadratic(matrix, linear, {"theta": theta}).item())
    torch.testing.assert_close(geometry.gradient["theta"], vector(*gradient))
    torch.testing.assert_close(geometry.product["theta"], vector(*product), rtol=1e-7, atol=1e-7)
    changes = -theta * geometry.product["theta"]
    assert 2 * changes[group].sum().item() == pytest.approx(first_order)
    removed = theta.clone()
    removed[group] = 0
    change = squared_gradient(matrix, linear, removed) - squared_gradient(matrix, linear, theta)
    assert change.item() == pytest.approx(exact)


def wavy(matrix, parameters):
    """A loss whose Hessian depends on the parameters."""
    return (matrix @ parameters["theta"]).sin().square().sum()


def test_the_score_is_the_gradient_of_the_energy_not_through_the_mask():
    """T3, and the reason for it: through the mask, dE/dm has another g^2."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    theta = torch.randn(3, generator=generator, dtype=torch.float64)
    geometry = local_geometry([partial(wavy, matrix)], {"theta": theta})
    gradient, product = geometry.gradient["theta"], geometry.product["theta"]
    of_weights = grad(lambda weights: wavy(matrix, {"theta": weights}))
    through_mask = grad(lambda weights, mask: wavy(matrix, {"theta": mask * weights}))
    ones = torch.ones(3, dtype=torch.float64)
    flow = grad(lambda mask: -of_weights(mask * theta).square().sum() / 2)(ones)
    torch.testing.assert_close(flow, -theta * product)
    other = grad(lambda mask: -through_mask(theta, mask).square().sum() / 2)(ones)
    torch.testing.assert_close(other, -theta * product - gradient.square())


@pytest.mark.parametrize("method", METHODS)
def test_timesteps_apart_see_what_their_sum_hides(method):
    """T4: the gradients cancel in the summed loss, as at a converged model."""

    def shifted(matrix, centre, parameters):
        offset = parameters["theta"] - centre
        return offset @ matrix @ offset / 2

    losses = [
        partial(shifted, torch.diag(vector(1, 4)), vector(1, 0)),
        partial(shifted, torch.diag(vector(4, 1)), vector(-0.25, 0)),
    ]
    # The weights are 0 in the specification; a third one gives the finite difference a step.
    parameters = {"theta": vector(0, 0), "unused": vector(1)}
    apart = sum(local_geometry([loss], parameters, method).product["theta"] for loss in losses)
    torch.testing.assert_close(apart, vector(3, 0), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(local_geometry(losses, parameters, method).product["theta"], vector(0, 0))


@pytest.mark.parametrize("method", METHODS)
def test_several_terms_are_one_loss(method):
    generator = torch.Generator().manual_seed(0)
    terms = [partial(wavy, torch.randn(4, 3, generator=generator, dtype=torch.float64)) for _ in range(3)]
    parameters = {"theta": torch.randn(3, generator=generator, dtype=torch.float64)}
    whole = local_geometry([lambda values: sum(term(values) for term in terms)], parameters, method)
    parts = local_geometry(terms, parameters, method)
    torch.testing.assert_close(parts.loss, whole.loss)
    assert_same(parts.gradient, whole.gradient)
    assert_same(parts.product, whole.product, rtol=1e-6)
    torch.testing.assert_close(loss_and_gradient(terms, parameters)[0], whole.loss)


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_has_no_product(method):
    geometry = local_geometry(
        [partial(quadratic, torch.eye(2).double(), vector(1, 2))], {"theta": vector(1, 2)}, method
    )
    assert geometry.product["theta"].tolist() == [0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_curvature_is_measured_without_tf32(method):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before, seen = (matmul.fp32_precision, conv.fp32_precision), set()

    def loss(parameters):
        seen.add((matmul.fp32_precision, conv.fp32_precision))
        return parameters["theta"].square().sum()

    matmul.fp32_precision = conv.fp32_precision = "tf32"
    try:
        local_geometry([loss], {"theta": vector(1, 2)}, method)
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
    assert seen == {("ieee", "ieee")}


# -------------------------------------------------------------------------------------------------- networks


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


def test_half_precision_weights_are_differentiated_in_single_precision():
    model = unet(sample_size=4).bfloat16()
    batch = Batch(batch_of(model).sample.float())
    half = gradient_flow_statistics(model, DiffusionProcess(), batch, THREE, UNIFORM)
    single = gradient_flow_statistics(copy.deepcopy(model).float(), DiffusionProcess(), batch, THREE, UNIFORM)
    assert_same(half.product, single.product)


def test_half_precision_weights_move_in_single_precision_and_return():
    model, process = unet(sample_size=4).bfloat16(), DiffusionProcess()
    batch, before = Batch(batch_of(model).sample.float()), copy.deepcopy(model.state_dict())
    wide, options = copy.deepcopy(model).float(), replace(UNIFORM, hessian_product="streamed")
    found, expected = (
        streamed_changes(each, process, batch, describe(each), THREE, options)[1] for each in (model, wide)
    )
    assert_same(found, expected)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [4, 8])
def test_the_memory_of_the_curvature_is_counted_before(method, batch_size):
    model, process = unet(), DiffusionProcess()
    options = GradientFlowOptions(hessian_product=method)
    config = replace(THREE, num_images=8, batch_size=batch_size, options=options)
    batch = Batch(torch.randn(8, *input_shape(model)))
    with LiveBytes([*model.parameters(), *model.buffers(), batch.sample]) as live:
        gradient_flow_statistics(copy.deepcopy(model), process, batch, config, options)
    counted = ranking_memory(model, process, "gradient-flow", config)
    assert counted.peak == pytest.approx(live.peak, rel=0.01)
    hollow = ranking_memory(skeleton(model), process, "gradient-flow", config)
    assert hollow == counted


@pytest.mark.parametrize("batch_size", [4, 8])
def test_the_memory_of_streamed_gradients_is_counted_before(batch_size):
    """Without two copies of the weights that are on the CPU, where everything is here."""
    model, process = unet(), DiffusionProcess()
    options = replace(UNIFORM, hessian_product="streamed")
    config = replace(THREE, num_images=8, batch_size=batch_size, options=options)
    batch = Batch(torch.randn(8, *input_shape(model)))
    with LiveBytes([*model.parameters(), *model.buffers(), batch.sample]) as live:
        score(copy.deepcopy(model), process, batch, describe(model), "gradient-flow", config)
    aside = 2 * sum(parameter.nbytes for parameter in model.parameters())
    counted = ranking_memory(model, process, "gradient-flow", config).peak
    assert counted == pytest.approx(live.peak - aside, rel=0.02)
    products = replace(config, options=replace(options, hessian_product="finite-difference"))
    assert counted < ranking_memory(model, process, "gradient-flow", products).peak / 2
