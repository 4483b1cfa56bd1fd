"""Criteria against closed forms, and the checks of the Diff-Pruning specification."""

import copy
import dataclasses
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from models import dit, dits, sample_for, unet, unets
from secateur.base.errors import SecateurError, TrainingError
from secateur.criteria import (
    CRITERIA,
    DiffPruningOptions,
    GradientFlowOptions,
    MagnitudeOptions,
    ScoringConfig,
    TaylorOptions,
    criterion_named,
    ranking_memory,
    score,
)
from secateur.criteria.gradients import (
    calibration_passes,
    calibration_timesteps,
    differentiable,
    stream_gradients,
    timestep_losses,
    used_timesteps,
)
from secateur.data import Batch, calibration_batch
from secateur.data.conditions import accepts
from secateur.models.network import inference
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject
from secateur.structure import StructureBuilder
from secateur.structure.memory import LiveBytes

FEW = ScoringConfig(num_timesteps=8, batch_size=16)
BOTH = [(unet(), DiffusionProcess()), (dit(), FlowProcess())]


def batch_of(model, count=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    size, channels = model.config.sample_size, model.config.in_channels
    sample = torch.randn(count, channels, size, size, generator=generator).to(dtype)
    labels = {"class_labels": torch.arange(count)} if "num_embeds_ada_norm" in model.config else {}
    return Batch(sample, labels)


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


def test_calibration_timesteps_are_as_many_as_asked_or_all_or_the_criterions_own():
    asked = {count: ScoringConfig(num_timesteps=count).timesteps_of(DiffusionProcess()) for count in (0, 4, 5000)}
    assert asked == {0: 1000, 4: 4, 5000: 1000}
    for name, count in (("gradient-flow", 32), ("deviation", 8), ("reconstruction", 8)):
        assert criterion_named(name).configured(ScoringConfig()).num_timesteps == count
        assert criterion_named(name).configured(ScoringConfig(num_timesteps=0)).num_timesteps == 0
    assert torch.equal(calibration_timesteps(DiffusionProcess(), 1000), torch.arange(1000))
    assert torch.equal(calibration_timesteps(DiffusionProcess(), 4), torch.tensor([125, 375, 625, 875]))
    assert torch.equal(calibration_timesteps(FlowProcess(), 2), torch.tensor([250.0, 750.0]))


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


def test_every_criterion_has_a_price():
    model, process = unet(), DiffusionProcess()
    structure = describe(model)
    costs = {
        name: criterion.price(model, process, structure, FEW, criterion.options()).passes / FEW.num_images
        for name, criterion in CRITERIA.items()
    }
    blocks = len(structure.blocks)
    assert [costs[name] for name in ("random", "magnitude", "uniform")] == [0, 0, 0]
    assert costs["taylor"] == costs["diff-pruning"] == pytest.approx(8 * 4 / 3)
    assert costs["gradient-flow"] == 8 * 3
    assert costs["cosine"] == pytest.approx(8 / 3)
    assert costs["ced"] == costs["deviation"] == costs["loss-change"] == pytest.approx(8 / 3 * (1 + blocks))


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_only_a_criterion_that_looks_at_images_demands_them(criterion):
    model, process = dit(num_layers=1), FlowProcess()
    if CRITERIA[criterion].needs_data:
        with pytest.raises(SecateurError, match=f"criterion {criterion} needs images"):
            score(model, process, None, describe(model), criterion)
    else:
        without = score(model, process, None, describe(model), criterion).scores
        given = score(model, process, batch_of(model), describe(model), criterion).scores
        assert all(torch.equal(values, given[name]) for name, values in without.items())


def test_an_unknown_name_is_refused_with_the_nearest():
    model = dit(num_layers=1)
    with pytest.raises(SecateurError, match="no criterion called 'tylor'; did you mean taylor"):
        score(model, FlowProcess(), batch_of(model), describe(model), "tylor")
    with pytest.raises(SecateurError, match="no option of taylor called 'threshold'; there are timestep_reduction"):
        score(model, FlowProcess(), batch_of(model), describe(model), "taylor", ScoringConfig(options={"threshold": 0}))


def test_options_are_those_of_the_criterion():
    taylor = criterion_named("taylor")
    assert taylor.options_of(ScoringConfig()) == TaylorOptions()
    chosen = ScoringConfig(num_timesteps=5, num_images=3, options={"reduction": "square"})
    assert taylor.configured(chosen) == dataclasses.replace(chosen, options=TaylorOptions(reduction="square"))
    for other in (MagnitudeOptions(), DiffPruningOptions(), GradientFlowOptions()):
        with pytest.raises(SecateurError, match=f"taylor takes TaylorOptions, not {type(other).__name__}"):
            taylor.options_of(ScoringConfig(options=other))


def test_scores_that_are_not_finite_are_refused():
    model = unet()
    with torch.no_grad():
        model.conv_in.weight[0] = torch.nan
    with pytest.raises(TrainingError, match=r"scores of \d+ of \d+ widths and blocks are not finite, of .* first"):
        score(model, DiffusionProcess(), batch_of(model), describe(model), "magnitude", FEW)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("models", [unets(in_channels=1, out_channels=1), dits()], ids=["unet", "dit"])
def test_any_architecture_can_be_scored_frozen_or_not(models, data):
    model = data.draw(models).requires_grad_(data.draw(st.booleans()))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    process = FlowProcess() if isinstance(model, DiTTransformer2DModel) else DiffusionProcess()
    batch = Batch(batch_of(model).sample, sample_for(model, 4)[1])
    scores = score(model, process, batch, describe(model), "diff-pruning", FEW).scores
    assert all(values.isfinite().all() for values in scores.values())
    assert max(values.max() for values in scores.values()) > 0
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])
def test_every_criterion_scores_every_unit_and_block_the_same_each_time(model, process, criterion):
    structure, batch = describe(model), batch_of(model)
    first = score(model, process, batch, structure, criterion, FEW).scores
    second = score(model, process, batch, structure, criterion, FEW).scores
    assert {name: len(values) for name, values in first.items()} == {
        **({} if CRITERIA[criterion].ranks == "blocks" else {name: dim.size for name, dim in structure.dims.items()}),
        **dict.fromkeys(structure.blocks, 1),
    }
    for name, values in first.items():
        assert torch.equal(values, second[name])
        assert values.isfinite().all()
        assert len(values) == 1 or values.std() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scaling_the_loss_leaves_the_ranking():
    """Outputs and target both times 4 scale the loss, so every score, by 16, and no order changes."""

    class Louder(DiffusionProcess):
        def target(self, sample, noise, timesteps):
            return 4 * super().target(sample, noise, timesteps)

    model, loud = unet(), unet()
    with torch.no_grad():
        loud.conv_out.weight *= 4
        loud.conv_out.bias *= 4
    structure, batch = describe(model), batch_of(model)
    scores = score(model, DiffusionProcess(), batch, structure, "taylor", FEW).scores
    scaled = score(loud, Louder(), batch, structure, "taylor", FEW).scores
    for name in structure.dims:
        torch.testing.assert_close(scaled[name], 16 * scores[name], rtol=1e-4, atol=1e-7)


def test_permuting_channels_permutes_their_scores():
    model, process = dit(), FlowProcess()
    structure, batch = describe(model), batch_of(model)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    before = score(model, process, batch, structure, "taylor", FEW).scores["transformer_blocks.1.ff"]
    feed_forward = model.transformer_blocks[1].ff.net
    with torch.no_grad():
        feed_forward[0].proj.weight.copy_(feed_forward[0].proj.weight[order].clone())
        feed_forward[0].proj.bias.copy_(feed_forward[0].proj.bias[order].clone())
        feed_forward[2].weight.copy_(feed_forward[2].weight[:, order].clone())
    after = score(model, process, batch, structure, "taylor", FEW).scores["transformer_blocks.1.ff"]
    torch.testing.assert_close(after, before[order], rtol=1e-4, atol=1e-9)


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


def test_magnitude_of_a_unit_is_the_sum_over_its_slices():
    model = dit()
    block = model.transformer_blocks[2]
    scores = score(model, FlowProcess(), batch_of(model), describe(model), "magnitude").scores
    expected = (
        block.ff.net[0].proj.weight.abs().sum(1) + block.ff.net[0].proj.bias.abs() + block.ff.net[2].weight.abs().sum(0)
    )
    torch.testing.assert_close(scores["transformer_blocks.2.ff"], expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "process", "suited"), [(*BOTH[0], "magnitude"), (*BOTH[1], "diff-pruning")])
def test_auto_is_the_criterion_that_suits_the_model(model, process, suited):
    """With its scores, its price and its memory; Diff-Pruning's settings are those of auto."""
    structure = describe(model)
    found = score(model, process, batch_of(model), structure, "auto", FEW)
    expected = score(model, process, batch_of(model), structure, suited, FEW)
    assert (found.criterion, expected.criterion) == (suited, None)
    assert found.curve == expected.curve
    assert all(torch.equal(found.scores[name], values) for name, values in expected.scores.items())
    named = [criterion_named(name) for name in ("auto", suited)]
    costs = [each.price(model, process, structure, FEW, each.options()).passes for each in named]
    assert costs[0] == costs[1]
    found, expected = (ranking_memory(model, process, name, FEW) for name in ("auto", suited))
    hint = f"--criterion {suited} {expected.hint}" if expected and expected.hint else ""
    assert found == (expected and replace(expected, hint=hint))


def test_auto_has_no_options_of_its_own():
    with pytest.raises(SecateurError, match="no option of auto called 'threshold'"):
        criterion_named("auto").configured(ScoringConfig(options={"threshold": 0.1}))


def test_a_loss_that_is_not_finite_is_an_error():
    model = unet()
    with torch.no_grad():
        model.conv_in.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="finite"):
        score(model, DiffusionProcess(), batch_of(model), describe(model), "diff-pruning", FEW)


@pytest.mark.parametrize("criterion", ["taylor", "diff-pruning", "magnitude"])
def test_a_model_keeps_its_gradients_hooks_and_flags(criterion):
    """A training loop has gradients, and some weights may be frozen."""
    model = copy.deepcopy(unet()).train()
    model.conv_in.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = [(parameter.grad, parameter.requires_grad, parameter.data_ptr()) for parameter in model.parameters()]
    score(model, DiffusionProcess(), batch_of(model), describe(model), criterion, FEW)
    after = [(parameter.grad, parameter.requires_grad, parameter.data_ptr()) for parameter in model.parameters()]
    for (gradient, *flags), (same, *others) in zip(before, after, strict=True):
        assert gradient is same
        assert flags == others
        assert gradient is None or (gradient == 1).all()
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert model.training


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


def test_gradients_of_what_the_last_pass_does_not_reach_are_taken_too():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    ones, taken = torch.ones(1, 2), {}
    with differentiable(model):
        passes = [lambda: (model["a"](ones) + model["b"](ones)).sum(), lambda: model["a"](ones).sum()]
        stream_gradients(model, passes, taken.__setitem__)
    assert taken.keys() == set(model.parameters())
    assert torch.equal(taken[model["a"].weight], 2 * taken[model["b"].weight])
