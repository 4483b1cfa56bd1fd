"""What holds for every criterion: options, price, scores of any model, refusals; and what magnitude and auto are."""

import copy
import dataclasses
from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import dit, dits, sample_for, unet, unets
from scoring_runs import BOTH, FEW, batch_of
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
    calibration_timesteps,
)
from secateur.data import Batch
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess


def test_calibration_timesteps_are_as_many_as_asked_or_all_or_the_criterions_own():
    asked = {count: ScoringConfig(num_timesteps=count).timesteps_of(DiffusionProcess()) for count in (0, 4, 5000)}
    assert asked == {0: 1000, 4: 4, 5000: 1000}
    for name, count in (("gradient-flow", 32), ("deviation", 8), ("reconstruction", 8)):
        assert criterion_named(name).configured(ScoringConfig()).num_timesteps == count
        assert criterion_named(name).configured(ScoringConfig(num_timesteps=0)).num_timesteps == 0
    assert torch.equal(calibration_timesteps(DiffusionProcess(), 1000), torch.arange(1000))
    assert torch.equal(calibration_timesteps(DiffusionProcess(), 4), torch.tensor([125, 375, 625, 875]))
    assert torch.equal(calibration_timesteps(FlowProcess(), 2), torch.tensor([250.0, 750.0]))


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
