"""The zero-cost proxies by their definitions; judging does not change the model."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import secateur
from models import dit, flux, sample_for, unet
from secateur.data import Batch
from secateur.models.conditions import rows
from secateur.models.predict import predict
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.schedules.proxies import (
    ProxyBatch,
    judge,
    log_condition_number,
    ntk_gram,
    proxy_batches,
    weighted_layers,
    zico,
)
from training_runs import assert_same, images


def batch_for(model, count=4, seed=0):
    sample, conditions = sample_for(model, count, seed)
    return ProxyBatch(sample, torch.zeros_like(sample), torch.full((count,), 500), conditions)


def doubled(model, batch):
    return model.double().eval(), replace(batch, noisy=batch.noisy.double(), target=batch.target.double())


def explicit_gradients(model, batch, signs):
    """Gradients (N, entries) of <output_i, r>, one backward pass for each sample."""
    found = []
    for i in range(len(batch.noisy)):
        one = slice(i, i + 1)
        out = predict(model, batch.noisy[one], batch.timesteps[one], rows(batch.conditions, one))
        parameters = [p for layer in weighted_layers(model).values() for p in layer.parameters()]
        gradients = torch.autograd.grad((out * signs).sum(), parameters, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    return torch.stack(found)


@pytest.mark.parametrize("build", [unet, lambda: dit(out_channels=2), lambda: flux(num_layers=1, num_single_layers=1)])
def test_the_gram_matrix_is_that_of_explicit_gradients(build):
    model, batch = doubled(build(), batch_for(build()))
    generator = torch.Generator().manual_seed(7)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(3):
        signs = torch.randint(0, 2, batch.noisy.shape[1:], generator=generator).double() * 2 - 1
        gradients = explicit_gradients(model, batch, signs)
        expected += gradients @ gradients.T / 3
    found = ntk_gram(model, batch, draws=3, seed=7)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_gram_matrix_counts_a_layer_that_runs_twice_once():
    """The head of a DiT calls the first block's embedding again; the gradient is the sum over both calls."""
    model, batch = doubled(dit(), batch_for(dit()))
    layer = model.transformer_blocks[0].norm1.emb.timestep_embedder.linear_1
    for name, other in weighted_layers(model).items():
        other.requires_grad_(name.startswith("transformer_blocks.0.norm1.emb"))
    assert layer.weight.requires_grad
    signs = torch.randint(0, 2, batch.noisy.shape[1:], generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    gradients = explicit_gradients(model, batch, signs)
    torch.testing.assert_close(ntk_gram(model, batch, draws=1, seed=0), gradients @ gradients.T)


def test_the_condition_number_in_closed_form():
    orthogonal = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()).Q
    gram = orthogonal @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 5.0, 40.0]).double()) @ orthogonal.T
    assert log_condition_number(gram) == pytest.approx(math.log(40))
    singular = log_condition_number(torch.ones(3, 3))
    assert singular == pytest.approx(-math.log(np.finfo(np.float64).eps))
    assert math.isnan(log_condition_number(torch.zeros(3, 3)))
    assert math.isnan(log_condition_number(torch.full((3, 3), torch.nan).nan_to_num(0)))


def test_zico_is_its_definition():
    model, process = dit(), FlowProcess()
    batches = proxy_batches(process, images().batch(range(10)), seed=3)
    model.double()
    batches = [replace(b, noisy=b.noisy.double(), target=b.target.double()) for b in batches]
    gradients = {name: [] for name in weighted_layers(model)}
    expected_losses = []
    for batch in batches:
        error = predict(model, batch.noisy, batch.timesteps, batch.conditions) - batch.target
        loss = error.square().mean()
        expected_losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        for name, layer in weighted_layers(model).items():
            gradients[name].append(layer.weight.grad.numpy().copy())
    scores = []
    for values in map(np.stack, gradients.values()):
        deviation = values.std(0)
        varies = deviation > 0
        scores.append(np.log((np.abs(values).mean(0)[varies] / deviation[varies]).sum()))
    losses, score = zico(model, batches)
    assert losses == pytest.approx(expected_losses)
    assert score == pytest.approx(np.mean(scores), rel=1e-6)


def test_zico_of_frozen_layers_does_not_count():
    model = dit().requires_grad_(False)
    model.proj_out_2.requires_grad_(True)
    batches = proxy_batches(FlowProcess(), images().batch(range(4)), seed=0)
    assert math.isfinite(zico(model, batches)[1])
    model.requires_grad_(False)
    model.pos_embed.proj.bias.requires_grad_(True)  # something to differentiate, in no weight
    assert list(weighted_layers(model)) == []


def test_proxy_batches_cover_all_timesteps_and_depend_on_the_seed_alone():
    process, batch = FlowProcess(), images().batch(range(10))
    first, again, other = (proxy_batches(process, batch, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.noisy, two.noisy) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0].noisy, other[0].noisy)
    for part in first:
        assert torch.equal((part.timesteps / 1000 * 16).floor(), torch.arange(16.0))


def test_judging_does_not_change_the_model():
    model = dit().eval()
    before = copy.deepcopy(model)
    judged = judge(DiffusionProcess(), images().batch(range(8)), 0)
    assert judged(model) == judged(model)
    assert_same(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_without_labels_are_judged_too():
    model = unet().eval()
    batch = Batch(images().batch(range(4)).sample)
    found = judge(DiffusionProcess(), batch, 0)(model)
    assert math.isfinite(found.log_condition)
    assert math.isfinite(found.zico)
    assert found.loss > 0


def test_the_public_proxies_are_those_of_the_calibration_images():
    model, data, process = dit().train(), images(), DiffusionProcess()
    found = secateur.zero_cost_proxies(model, data=data, process=process, seed=3)
    batch = data.batch(torch.randperm(len(data), generator=torch.Generator().manual_seed(3)).tolist())
    assert found == judge(process, batch, 3)(copy.deepcopy(model).eval())
    assert model.training
    model.requires_grad_(False)  # as in a pipeline that only draws
    assert secateur.zero_cost_proxies(model, data=data, process=process, seed=3) == found
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(secateur.SecateurError, match="give data="):
        secateur.zero_cost_proxies(model, data=None, process=process)
