"""Gradients of the calibration loss: any batches and precision, wrapped models, and the memory that was counted."""

import copy
import dataclasses
import weakref

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from models import dit, unet
from scoring_runs import BOTH, FEW, batch_of
from secateur.criteria import (
    CRITERIA,
    ScoringConfig,
    TaylorOptions,
    score,
)
from secateur.criteria.gradients import (
    calibration_passes,
    calibration_timesteps,
    differentiable,
    stream_gradients,
)
from secateur.models.network import inference
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.structure.memory import LiveBytes


@pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])
def test_batched_timesteps_equal_one_at_a_time(model, process):
    model = copy.deepcopy(model).double()
    batch = batch_of(model, dtype=torch.float64)
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    timesteps = calibration_timesteps(process, 8)

    def summed_gradients(batch_size):
        taken = {}
        with inference(model), differentiable(model):
            passes = calibration_passes(model, process, batch, noise, timesteps, batch_size)
            stream_gradients(model, passes, taken.__setitem__)
        return taken

    torch.set_default_dtype(torch.float64)
    try:
        one, together, split = (summed_gradients(size) for size in (len(batch.sample), 16, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert one.keys() == set(model.parameters())
    for parameter, gradient in one.items():
        torch.testing.assert_close(together[parameter], gradient, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(split[parameter], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 1e-5), (torch.bfloat16, 0.1)])
def test_weights_in_half_precision_have_the_scores_of_single_precision(dtype, apart):
    """Squares of w g are far below what float16 can hold."""
    half = unet().to(dtype)
    weights = {name: values.clone() for name, values in half.state_dict().items()}
    batch, structure = batch_of(half), describe(half)
    config = ScoringConfig(num_timesteps=8, batch_size=16, options={"reduction": "square"})
    found = score(half, DiffusionProcess(), batch, structure, "taylor", config).scores
    single = score(copy.deepcopy(half).float(), DiffusionProcess(), batch, structure, "taylor", config).scores
    for name, values in single.items():
        assert (found[name] > 0).all(), name
        assert (found[name] - values).norm() <= apart * values.norm(), name
    assert {values.dtype for values in half.state_dict().values()} == {dtype}
    for name, values in half.state_dict().items():
        assert torch.equal(values, weights[name]), name


def test_gradients_are_freed_one_by_one_where_one_pass_has_them_all():
    model, process = unet(), DiffusionProcess()
    batch = batch_of(model)
    before: list[weakref.ref] = []

    def take(parameter, gradient):
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(other() is None for other in before)
        before.append(weakref.ref(gradient))

    with inference(model), differentiable(model):
        passes = calibration_passes(model, process, batch, batch.sample, calibration_timesteps(process, 2), 8)
        assert len(passes) == 1
        stream_gradients(model, passes, take)
    assert len(before) == len(list(model.parameters()))


@pytest.mark.parametrize("options", [{}, {"timestep_reduction": "abs-then-sum"}])
def test_wrapped_models_have_the_scores_of_the_bare_one(options):
    """Sharded weights have their gradients from the backward pass only."""
    model, process, config = unet(), DiffusionProcess(), dataclasses.replace(FEW, options=options)
    batch, structure = batch_of(model), describe(model)
    expected = score(model, process, batch, structure, "taylor", config).scores
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded = copy.deepcopy(model)
        for block in (*sharded.down_blocks, *sharded.up_blocks):
            fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        for wrapped in (sharded, DistributedDataParallel(copy.deepcopy(model))):
            found = score(wrapped, process, batch, structure, "taylor", config).scores
            for name, values in expected.items():
                torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-9)
            assert all(parameter.grad is None for parameter in wrapped.parameters())
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3, 6, 24])
@pytest.mark.parametrize("timestep_reduction", ["sum-then-abs", "abs-then-sum"])
@pytest.mark.parametrize(("make", "process"), [(unet, DiffusionProcess()), (dit, FlowProcess())], ids=["unet", "dit"])
def test_the_memory_of_gradients_is_counted_before(make, process, timestep_reduction, batch_size):
    options = TaylorOptions(timestep_reduction)
    config = ScoringConfig(num_timesteps=4, num_images=6, batch_size=batch_size, options=options)
    model = make()
    counted = CRITERIA["taylor"].memory(model, process, config, options)
    sums = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert counted.sums == (
        0 if (timestep_reduction == "abs-then-sum" and batch_size >= 6) or batch_size == 24 else sums
    )
    with LiveBytes() as memory:
        model = copy.deepcopy(model)
        score(model, process, batch_of(model, 6), describe(model), "taylor", config)
    assert counted.peak == pytest.approx(memory.peak, rel=0.1)


@pytest.mark.slow
def test_taylor_scores_of_flux_fit_on_a_device_of_80_gigabytes():
    """At 1024 pixels, in bfloat16; the gradients' float32 sum over timesteps is twice the weights more."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)
    config = ScoringConfig(num_images=1, batch_size=1, num_timesteps=50)
    peaks = {
        reduction: CRITERIA["taylor"].memory(model, FlowProcess(), config, TaylorOptions(reduction)).peak
        for reduction in ("abs-then-sum", "sum-then-abs")
    }
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert 2 * weights < peaks["abs-then-sum"] < 80e9
    assert peaks["sum-then-abs"] > 6 * weights


def test_gradients_of_what_the_last_pass_does_not_reach_are_taken_too():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    ones, taken = torch.ones(1, 2), {}
    with differentiable(model):
        passes = [lambda: (model["a"](ones) + model["b"](ones)).sum(), lambda: model["a"](ones).sum()]
        stream_gradients(model, passes, taken.__setitem__)
    assert taken.keys() == set(model.parameters())
    assert torch.equal(taken[model["a"].weight], 2 * taken[model["b"].weight])
