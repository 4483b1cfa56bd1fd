"""Block criteria against closed forms, and the checks of the EntPruner specification."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import nn

import secateur
from models import dit, output, sample_for, unet
from secateur.base.errors import SecateurError, TrainingError
from secateur.cli import main
from secateur.criteria import CRITERIA, CedOptions, ScoringConfig, score
from secateur.criteria.blocks.drops import _masked, is_chain, outputs_without_each_block, passes_of
from secateur.criteria.blocks.effects import spearman
from secateur.criteria.blocks.entropy import deviations, log_sd_changes
from secateur.criteria.blocks.measure import block_scores, draw_tuples, measure_blocks, removal_order
from secateur.criteria.uniform import stride_order
from secateur.data import Batch
from secateur.models.network import inference
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.reporting import write_report
from secateur.structure import Block, Cut, Structure, masked, remove, select

FEW = ScoringConfig(num_timesteps=4, batch_size=16)
CED = dataclasses.replace(FEW, options=CedOptions(output="prediction"))
BLOCK_CRITERIA = sorted(name for name, criterion in CRITERIA.items() if criterion.ranks == "blocks")
BOTH = [(unet(), DiffusionProcess()), (dit(), FlowProcess())]


class Apply(nn.Module):
    """A block that applies a function of its input and the timesteps."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, timestep):
        return self.function(x, timestep.reshape(-1, 1, 1, 1))


class Chain(nn.Module):
    """Runs its input through a list of blocks, with the call of a diffusers model."""

    def __init__(self, *functions):
        super().__init__()
        self.blocks = nn.ModuleList(map(Apply, functions))

    def forward(self, sample, timestep, return_dict=False):
        for block in self.blocks:
            sample = block(sample, timestep)
        return (sample,)


@dataclasses.dataclass(frozen=True)
class Noise:
    """A process whose noisy sample is the noise, at timesteps in [0, 1)."""

    num_train_timesteps: int = 1000

    def timesteps(self, u):
        return u

    def add_noise(self, sample, noise, timesteps):
        return noise

    def target(self, sample, noise, timesteps):
        return noise

    def denoised(self, noisy, output, timesteps):
        return output


class Knowing(DiffusionProcess):
    """Passes the clean sample to the network, whatever the noise."""

    def add_noise(self, sample, noise, timesteps):
        return sample


def identity(x, t):
    return x


def negate(x, t):
    return -x


def mirror(x, t):
    return x.flip(-1)


def scale(by):
    return lambda x, t: by * x


def chain_of(*functions):
    model = Chain(*functions)
    names = [f"blocks.{i}" for i in range(len(functions))]
    return model, Structure({}, {name: Block(name, listed=True) for name in names})


def batch_of(model, count=6):
    sample = torch.randn(count, model.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(sample, sample_for(model, count)[1])


class Parametrized(nn.Module):
    """Converts the prediction of a chain to a(t) x + b(t) prediction, as from noise to velocity."""

    def __init__(self, chain):
        super().__init__()
        self.blocks, self.chain = chain.blocks, chain

    def forward(self, sample, timestep, return_dict=False):
        level = timestep.reshape(-1, 1, 1, 1)
        (prediction,) = self.chain(sample, timestep)
        return (torch.cos(level) * sample + (2 + torch.sin(level)) * prediction,)


def effects_of(model, structure, process=None, batch=None, config=None, criterion="ced"):
    config = config or (CED if criterion == "ced" else FEW)
    batch = batch or Batch(torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    ranking = score(model, process or Noise(), batch, structure, criterion, config)
    return ranking, list(ranking.report.blocks.values())


def test_ced_of_known_blocks():
    """0 for an identity; |log a| for scaling by a; 0 for swaps that keep the variance, with the error they cause."""
    ranking, found = effects_of(*chain_of(identity, scale(2), scale(0.5), negate, mirror))
    for pooling in ("ced_stratified", "ced_pooled"):
        deviations = [getattr(effect, pooling) for effect in found]
        assert deviations == pytest.approx([0, math.log(2), math.log(2), 0, 0], abs=1e-7)
    assert [effect.direction for effect in found[:3]] == ["neither", "collapse", "noise"]
    assert found[0].output_error == 0
    assert found[1].output_error == pytest.approx(1 / 4)
    assert found[2].output_error == pytest.approx(1)
    assert found[3].output_error == pytest.approx(4)
    assert 1 < found[4].output_error < 3
    assert found[0].loss_change == 0
    assert found[0].cosine == pytest.approx(0, abs=1e-6)
    assert found[1].cosine == pytest.approx(0, abs=1e-6)
    assert found[3].cosine == pytest.approx(2)
    assert found[3].rank > found[0].rank == 1
    assert all(effect.rank_low <= effect.rank <= effect.rank_high for effect in found)
    assert ranking.scores["blocks.0"].item() == 0


def test_ced_of_known_blocks_by_their_clean_samples():
    """log 2 at every noise level for blocks that halve the clean sample; 0 for an identity."""
    sample = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    process = Knowing({"prediction_type": "sample"})
    model, structure = chain_of(identity, scale(0.5))
    config = dataclasses.replace(FEW, batch_size=1000)
    _, (same, halving) = effects_of(model, structure, process, Batch(sample), config)
    assert same.signed == (0, 0, 0, 0)
    assert halving.signed == pytest.approx([math.log(2)] * 4)  # without it the sample is twice as large, and in reach


def test_the_clean_sample_ends_where_the_images_do():
    """Near pure noise an error of epsilon is divided by almost no signal."""
    network, structure = chain_of(identity, scale(0.9))
    batch = Batch(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))
    sums = measure_blocks(network, DiffusionProcess(), batch, structure, FEW, "sample")
    assert 0 < sums.square.max() <= sums.entries  # of values between -1 and 1


def test_deviation_of_known_blocks():
    """With output 4 x: 0 for an identity; 4 x - 2 x and 4 x - -4 x have the ratio 1 to 4; swaps score above 0."""
    chain = chain_of(scale(2), identity, negate, scale(-2), mirror)
    ranking, found = effects_of(*chain, criterion="deviation")
    double, same, negated, _, mirrored = (ranking.scores[f"blocks.{i}"].item() for i in range(5))
    assert same == pytest.approx(0, abs=1e-6)
    assert negated == pytest.approx(4 * double)
    noisy = torch.cat([tuples.noisy for tuples in draw_tuples(Noise(), Batch(torch.zeros(6, 2, 4, 4)), FEW)])
    size = noisy.double().square().mean((1, 2, 3)).sqrt().log().mean().exp().item()
    assert double == pytest.approx(2 * size, rel=1e-6)
    assert mirrored > double
    assert found[4].ced_stratified == pytest.approx(0, abs=1e-7)
    assert [effect.deviation for effect in found] == [ranking.scores[f"blocks.{i}"].item() for i in range(5)]
    assert [effect.rank for effect in found][1] == 1


def test_deviation_does_not_depend_on_what_the_network_predicts():
    """Noise, velocity or sample: every block's score is multiplied by the same factor, so the order stays."""
    chain, structure = chain_of(scale(1.5), mirror, lambda x, t: x * (1 + t), scale(0.9), lambda x, t: x.sin())
    plain, _ = effects_of(chain, structure, criterion="deviation")
    other, _ = effects_of(Parametrized(chain), structure, criterion="deviation")
    ratios = [other.scores[name].item() / plain.scores[name].item() for name in structure.blocks]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-5)
    assert ratios[0] != pytest.approx(1, rel=0.1)


def test_deviation_is_not_dominated_by_a_few_tuples():
    """Neither one outlier tuple nor a block that does nothing at half of the timesteps determines the score."""
    batch = Batch(torch.zeros(6, 1, 4, 4))
    kick = torch.ones(24, 1, 1, 1)
    kick[3] = 1e4
    model, structure = chain_of(lambda x, t: x * (1 + 0.1 * kick), scale(2))
    config = dataclasses.replace(FEW, batch_size=24)
    scores = score(model, Noise(), batch, structure, "deviation", config).scores
    assert scores["blocks.0"].item() < scores["blocks.1"].item()
    model, structure = chain_of(lambda x, t: torch.where(t < 0.5, x, 3 * x), scale(1 + 1e-5), identity, identity)
    ranking = score(model, Noise(), batch, structure, "deviation", config)
    resting, weak, *nothing = (ranking.scores[name].item() for name in structure.blocks)
    assert resting > 10 * weak > 10 * max(nothing)
    assert [effect.rank for effect in ranking.report.blocks.values()] == [4, 3, 2, 1]  # ties: the later block first


def test_ced_looks_at_the_output_that_is_chosen():
    model, process = dit(), FlowProcess()
    found = [score(model, process, batch_of(model), describe(model), "ced", config).scores for config in (FEW, CED)]
    assert found[0] != found[1]


def test_deviation_and_loss_change_are_of_the_prediction_whatever_ced_looks_at():
    model = dit()
    arguments = model, FlowProcess(), batch_of(model), describe(model), FEW
    found, same = (measure_blocks(*arguments, ced_output) for ced_output in ("sample", "prediction"))
    assert not np.array_equal(found.total, same.total)
    assert np.array_equal(deviations(found), deviations(same))
    assert np.array_equal(found.loss_change(), same.loss_change())


def test_a_resample_has_its_images_in_every_sum():
    model = dit()
    sums = measure_blocks(model, FlowProcess(), batch_of(model), describe(model), FEW)
    resample = sums.of_images(np.array([5, 0, 0]))
    for name in ("total", "square", "size", "loss", "change", "cosine"):
        assert np.array_equal(getattr(resample, name), getattr(sums, name)[..., [5, 0, 0]])
    assert (resample.names, resample.entries) == (sums.names, sums.entries)


def test_one_image_gives_no_rank_interval():
    _, found = effects_of(*chain_of(identity, scale(2), scale(3)), batch=Batch(torch.randn(1, 2, 4, 4)))
    assert [(effect.rank_low, effect.rank_high) for effect in found] == [(1, 3)] * 3


def test_the_signed_score_is_the_pooled_shift_of_the_prediction_with_its_sign():
    """0 for an identity; log 2 for halving; -log 2 for doubling, which is removed first."""
    model, structure = chain_of(identity, scale(0.5), scale(2), negate)
    ranking, found = effects_of(model, structure, criterion="ent-prog")
    scores = [ranking.scores[name].item() for name in structure.blocks]
    assert scores == pytest.approx([0, math.log(2), -math.log(2), 0], abs=1e-7)
    assert [abs(score) for score in scores] == pytest.approx([effect.ced_pooled for effect in found], abs=1e-12)
    assert [effect.rank for effect in found] == [2, 4, 1, 3]


def test_opposite_shifts_cancel_when_pooled():
    """Scaling by e^s in the clean half and by e^-s in the other: s for each bin, 1/2 log cosh 2s pooled."""
    s = 0.7
    model, structure = chain_of(identity, lambda x, t: x * torch.where(t < 0.5, math.exp(s), math.exp(-s)))
    config = ScoringConfig(num_timesteps=8, num_images=400, options=CED.options)
    batch = Batch(torch.zeros(400, 1, 4, 4))
    ranking, (_, effect) = effects_of(model, structure, batch=batch, config=config)
    assert effect.signed == pytest.approx([-s] * 4 + [s] * 4)
    assert ranking.scores["blocks.1"].item() == effect.ced_stratified == pytest.approx(s)
    assert effect.ced_pooled == pytest.approx(0.5 * math.log(math.cosh(2 * s)), rel=0.02)
    assert effect.direction == "neither"
    config = dataclasses.replace(config, options=CedOptions("pooled", "prediction"))
    pooled, _ = effects_of(model, structure, batch=batch, config=config)
    assert pooled.scores["blocks.1"].item() == effect.ced_pooled


def test_identities_score_nothing_in_every_measure():
    model, structure = chain_of(scale(3), identity)
    batch = Batch(torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    for criterion in ("ced", "deviation", "cosine", "loss-change"):
        scores = score(model, Noise(), batch, structure, criterion, FEW).scores
        assert scores["blocks.1"].item() == pytest.approx(0, abs=1e-6)


def test_ties_are_decided_by_the_smaller_error_then_by_the_later_block():
    ranking, found = effects_of(*chain_of(negate, identity, negate, identity, scale(2)))
    assert [effect.rank for effect in found] == [4, 2, 3, 1, 5]
    by_score = sorted(ranking.scores, key=lambda name: ranking.scores[name].item())
    assert by_score == [f"blocks.{i}" for i in (3, 1, 2, 0, 4)]
    assert removal_order(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).tolist() == [[2, 1, 0], [2, 0, 1]]
    assert block_scores("ab", np.array([1.0, 1.0]))["b"].item() == 1.0


@pytest.mark.parametrize("ced_output", ["prediction", "sample"])
@pytest.mark.parametrize(("model", "process"), BOTH)
def test_log_sd_changes_are_those_of_the_outputs(model, process, ced_output):
    structure, batch = describe(model), batch_of(model)
    sums = measure_blocks(model, process, batch, structure, FEW, ced_output)
    signed, pooled = log_sd_changes(sums.total, sums.square, sums.entries)
    tuples = next(draw_tuples(process, batch, dataclasses.replace(FEW, batch_size=1000)))
    with inference(model):
        full = predict(model, tuples.noisy, tuples.timesteps, tuples.conditions).double()
        name = sums.names[2]
        with masked(model, structure, {name: torch.zeros(1)}):
            without = predict(model, tuples.noisy, tuples.timesteps, tuples.conditions).double()
    error = ((without - full).square().sum() / full.square().sum()).item()
    assert sums.change[2].sum() / sums.size.sum() == pytest.approx(error, abs=1e-6)
    losses = [(out - tuples.target).square().mean().item() for out in (full, without)]
    assert sums.loss_change()[2].mean() == pytest.approx(losses[1] - losses[0], abs=1e-6)
    if ced_output == "sample":
        noisy = tuples.noisy.double()
        clean = (process.denoised(noisy, output, tuples.timesteps) for output in (full, without))
        full, without = (sample.clamp(-batch.sample.abs().max(), batch.sample.abs().max()) for sample in clean)
    assert pooled[2] == pytest.approx(math.log(without.std(correction=0) / full.std(correction=0)), abs=1e-6)
    pairs = zip(without.split(6), full.split(6), strict=True)
    bins = [math.log(ours.std(correction=0) / theirs.std(correction=0)) for ours, theirs in pairs]
    assert signed[2] == pytest.approx(bins, abs=1e-6)


@pytest.mark.parametrize("model", [unet(), dit(), dit(num_layers=1)], ids=["unet", "dit", "dit of one block"])
def test_dropped_equals_masked_and_removed_and_the_model_is_restored(model):
    structure, before = describe(model), output(model)
    with torch.no_grad():
        dropped = list(outputs_without_each_block(model, structure, lambda: output(model)))
        by_mask = list(_masked(model, structure, list(structure.blocks), lambda: output(model)))
    assert len(dropped) == len(structure.blocks)
    for name, found, expected in zip(structure.blocks, dropped, by_mask, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        if len(structure.blocks) > 1:
            removed = remove(copy.deepcopy(model), structure, Cut(removed_blocks=(name,)))
            torch.testing.assert_close(found, output(removed), rtol=1e-5, atol=1e-6)
    assert torch.equal(output(model), before)


class Between(Chain):
    """Adds to its stream between two blocks."""

    def forward(self, sample, timestep, return_dict=False):
        for index, block in enumerate(self.blocks):
            sample = block(sample, timestep) + (index == 1)
        return (sample,)


class Named(Chain):
    """Calls its blocks by the names of their arguments."""

    def forward(self, sample, timestep, return_dict=False):
        for block in self.blocks:
            sample = block(x=sample, timestep=timestep)
        return (sample,)


def test_blocks_that_are_no_chain_are_dropped_one_by_one():
    model = dit(num_layers=6)
    some = select(describe(model), exclude=("transformer_blocks.2",)).structure
    functions = [lambda x, t, i=i: (1 + i) * x.roll(1, -1) for i in range(5)]
    between, named = Between(*functions), Named(*functions)
    own = Structure({}, {f"blocks.{i}": Block(f"blocks.{i}", listed=True) for i in range(5)})
    x = torch.randn(2, 3, 4, 4)
    for network, structure, call in (
        (model, some, lambda: output(model)),
        (between, own, lambda: between(x, torch.ones(2))[0]),
        (named, own, lambda: named(x, torch.ones(2))[0]),
    ):
        with torch.no_grad():
            dropped = list(outputs_without_each_block(network, structure, call))
            by_mask = list(_masked(network, structure, list(structure.blocks), call))
        torch.testing.assert_close(dropped, by_mask)


def test_interrupted_drops_restore_the_model():
    model = dit()
    structure, before = describe(model), output(model)
    wrapped = model.transformer_blocks[0].forward
    model.transformer_blocks[0].forward = wrapped  # as accelerate's hooks do
    with torch.no_grad():
        walk = outputs_without_each_block(model, structure, lambda: output(model))
        for _ in range(3):
            next(walk)
        walk.close()
    assert torch.equal(output(model), before)
    assert model.transformer_blocks[0].__dict__["forward"] is wrapped
    assert not any("forward" in vars(block) or block._forward_hooks for block in model.transformer_blocks[1:])


@pytest.mark.parametrize(("included", "count"), [("*", 9), ("*.[012]", 8), ("*.[12]", 6), ("*.[23]", 6), ("*.1", 3)])
def test_the_price_counts_the_runs_of_blocks(included, count):
    model = dit()
    present = list(describe(model).blocks)
    structure = select(describe(model), [included]).structure
    runs = []
    for block in model.transformer_blocks:
        block.attn1.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        list(outputs_without_each_block(model, structure, lambda: output(model)))
    assert is_chain(structure)
    assert len(runs) == count
    assert passes_of(structure, present) == 1 + count / len(present)


def test_blocks_that_are_not_next_to_each_other_cost_a_pass_each():
    structure = describe(dit())
    some = select(structure, exclude=["*.1"]).structure
    assert passes_of(some, list(structure.blocks)) == 1 + len(some.blocks)


def test_blocks_that_are_no_chain_cost_a_pass_each():
    structure = describe(unet())
    assert not is_chain(structure)
    assert passes_of(structure, list(structure.blocks)) == 1 + len(structure.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", BLOCK_CRITERIA)
@pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])
def test_scores_do_not_depend_on_how_batches_are_split(model, process, criterion):
    structure, batch = describe(model), batch_of(model)
    found = []
    for batch_size in (24, 7, 1):
        config = dataclasses.replace(FEW, batch_size=batch_size)
        scores = score(model, process, batch, structure, criterion, config).scores
        assert list(scores) == list(structure.blocks)
        found.append(torch.cat(list(scores.values())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(other.argsort(), found[0].argsort())


def test_draws_are_paired_stratified_and_split_alike():
    batch = Batch(torch.randn(5, 1, 8, 8), {"class_labels": torch.arange(5)})
    process = FlowProcess()
    whole = next(draw_tuples(process, batch, ScoringConfig(8, batch_size=100)))
    split = list(draw_tuples(process, batch, ScoringConfig(8, batch_size=3)))
    assert torch.equal(whole.noisy, torch.cat([part.noisy for part in split]))
    assert torch.equal(whole.conditions["class_labels"], torch.arange(5).repeat(8))
    bins = (whole.timesteps / 125).long().reshape(8, 5)
    assert torch.equal(bins, torch.arange(8)[:, None].expand(8, 5))
    assert len(whole.timesteps.unique()) == 40
    later = next(draw_tuples(process, batch, ScoringConfig(8, batch_size=100, seed=1)))
    assert not torch.equal(whole.timesteps, later.timesteps)


def test_magnitude_and_others_are_correlated_as_their_criteria_rank():
    model, process = dit(), FlowProcess()
    structure, batch = describe(model), batch_of(model)
    ranking = score(model, process, batch, structure, "ced", CED)
    mine = torch.cat([ranking.scores[name] for name in structure.blocks]).numpy()
    for criterion in ("deviation", "magnitude", "uniform", "cosine", "loss-change"):
        scores = score(model, process, batch, structure, criterion, FEW).scores
        other = torch.cat([scores[name] for name in structure.blocks]).numpy()
        correlation = ranking.report.correlations[criterion.replace("-", " ")]
        assert correlation == pytest.approx(stats.spearmanr(mine, other).statistic)
    assert "ced" not in ranking.report.correlations


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.randoms())
def test_spearman_is_scipys(values, shuffler):
    other = shuffler.sample(values, len(values))
    found = spearman(np.array(values, dtype=float), np.array(other, dtype=float))
    if len(set(values)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(values, other).statistic)


@pytest.mark.parametrize("count", range(1, 41))
def test_uniform_stride_is_nested_and_even(count):
    order = stride_order(count)
    assert sorted(order) == list(range(count))
    for n in range(1, count + 1):
        removed = set(order[:n])
        if n <= count // 2:
            assert not any(index + 1 in removed for index in removed)
        gone = np.isin(np.arange(count), list(removed)).cumsum()
        assert np.abs(gone - n * np.arange(1, count + 1) / count).max() < 1.75  # off by a block or two
    if count % 2 == 0:
        assert set(order[: count // 2]) == set(range(1, count, 2))
    if count % 4 == 0:
        assert set(order[: count // 4]) == set(range(1, count, 4))


def test_rank_intervals_tell_clear_from_unclear():
    shift = [1.0, 3.0, 3.0]
    generator = torch.Generator().manual_seed(0)
    kicks = [torch.randn(6 * 4, 1, 1, 1, generator=generator) for _ in shift]
    calls = [lambda x, t, k=kick, a=a: x * (a + 0.5 * k) for kick, a in zip(kicks, shift, strict=True)]
    config = dataclasses.replace(CED, batch_size=24)
    _, found = effects_of(*chain_of(*calls), config=config)
    assert found[0].rank_low == found[0].rank_high == 1
    assert (found[1].rank_low, found[1].rank_high) == (found[2].rank_low, found[2].rank_high) == (2, 3)


def test_outputs_that_are_not_finite_are_named():
    model, structure = chain_of(identity, lambda x, t: x * float("nan"))
    batch = Batch(torch.zeros(2, 1, 2, 2))
    with pytest.raises(TrainingError, match="the model's output"):
        score(model, Noise(), batch, structure, "ced", CED)
    model, structure = chain_of(scale(1e-30), scale(1e-30), lambda x, t: torch.where(x.abs() > 1e-40, torch.inf, x))
    with pytest.raises(TrainingError, match=r"without blocks\.0"):
        score(model, Noise(), batch, structure, "ced", CED)


def test_a_model_without_blocks_is_refused():
    structure = Structure({}, {})
    for criterion in BLOCK_CRITERIA:
        with pytest.raises(SecateurError, match="no block"):
            score(unet(), DiffusionProcess(), batch_of(unet()), structure, criterion, FEW)


def test_pooling_is_validated():
    with pytest.raises(SecateurError, match="pooling"):
        CedOptions(pooling="mean")


# ---------------------------------------------------------------------------------------------------- commands

REPORTED = ("ced", "deviation", "ent-prog")
QUICK = ["--scoring.num-timesteps", "4", "--scoring.num-images", "8"]


@pytest.fixture(scope="module")
def sit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sit"
    flow = dict(FlowMatchEulerDiscreteScheduler().config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    return str(secateur.save_pretrained(dit(), folder, flow) or folder)


@pytest.mark.parametrize("criterion", BLOCK_CRITERIA)
def test_rank_writes_json_tables_plot_and_page(sit, tmp_path, capsys, criterion):
    run = tmp_path / "run"
    main(["rank", sit, "--data", "digits", "--out", str(run), "--criterion", criterion, *QUICK])
    printed = capsys.readouterr().out
    ranking = json.loads((run / "ranking.json").read_text())
    assert ranking["dims"] == {}
    assert list(ranking["blocks"]) == [f"transformer_blocks.{i}" for i in range(4)]
    assert f"seconds  {ranking['seconds']}" in printed
    assert "transformer_blocks.3" in printed
    assert not (run / "tables" / "ranking.md").exists()
    assert (run / "tables" / "correlations.csv").exists() == (criterion in REPORTED)
    with Image.open(run / "plots" / "ranking.png") as image:
        assert min(image.size) > 100
    page = write_report(run).read_text()
    assert f"Ranked 4 blocks by {criterion}" in page
    assert ("resampling the images" in page) == (criterion in REPORTED)
    if criterion in REPORTED:
        report = ranking["block_report"]
        assert report["timesteps"] == [125, 375, 625, 875]
        assert all(len(effect["signed"]) == 4 for effect in report["blocks"].values())


def test_prune_by_ced_removes_the_lowest_and_loads_in_diffusers(sit, tmp_path):
    run = tmp_path / "run"
    arguments = ["--data", "digits", "--out", str(run), "--criterion", "ced", *QUICK]
    main(["prune", sit, "--target", "blocks=2", *arguments])
    cut, ranking = (json.loads((run / f"{name}.json").read_text()) for name in ("cut", "ranking"))
    lowest = sorted(ranking["blocks"], key=ranking["blocks"].get)[:2]
    assert sorted(cut["removed_blocks"]) == sorted(lowest)
    dense = dit()
    plain = type(dense).from_pretrained(run / "pruned").eval()
    assert len(plain.transformer_blocks) == 2
    with masked(dense, describe(dense), {name: torch.zeros(1) for name in lowest}):
        torch.testing.assert_close(output(plain), output(dense), rtol=1e-6, atol=1e-6)
    write_report(run)


@pytest.mark.parametrize("more", [[], ["--cut.granularity", "both"], ["--cut.granularity", "width", "--dry-run"]])
@pytest.mark.parametrize("command", ["prune", "compress"])
def test_cuts_of_widths_are_refused_in_one_line(sit, tmp_path, capsys, command, more):
    arguments = ["--target", "60%", "--data", "digits", "--out", str(tmp_path / "run"), "--criterion", "ced"]
    with pytest.raises(SystemExit):
        main([command, sit, *arguments, *more])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "ced ranks blocks only" in lines[0]
    assert "--cut.granularity depth" in lines[0]
    assert not (tmp_path / "run").exists()


def test_depth_reaches_other_targets_and_dry_runs_predict_the_time(sit, tmp_path, capsys):
    arguments = ["--data", "digits", "--out", str(tmp_path / "run"), "--criterion", "uniform"]
    cut = ["prune", sit, "--target", "macs=60%", *arguments, "--cut.granularity", "depth"]
    main([*cut, "--dry-run"])
    assert "rank " in capsys.readouterr().out
    main(cut)
    assert json.loads((tmp_path / "run" / "cut.json").read_text())["removed_blocks"] == [
        "transformer_blocks.1",
        "transformer_blocks.3",
    ]
    main(["rank", sit, "--data", "digits", "--out", str(tmp_path / "rank"), "--criterion", "ced", "--dry-run"])
    assert any(line.startswith("rank ") for line in capsys.readouterr().out.splitlines())
