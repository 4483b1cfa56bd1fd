"""Products of Hessian and gradient, of which gradient flow is made: closed forms, half precision, and memory."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.func import grad

from gradient_flow_runs import METHODS, THREE, UNIFORM, assert_same, batch_of
from models import unet
from secateur.criteria import GradientFlowOptions, ranking_memory, score
from secateur.criteria.gradient_flow import (
    gradient_flow_statistics,
    streamed_changes,
)
from secateur.criteria.hessian_products import local_geometry, loss_and_gradient
from secateur.data import Batch
from secateur.models.network import input_shape
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.structure.cost import skeleton
from secateur.structure.memory import LiveBytes


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


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
