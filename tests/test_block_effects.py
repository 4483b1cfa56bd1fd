"""Block criteria of blocks whose effect is known, against closed forms."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from block_chains import CED, FEW, Knowing, Noise, Parametrized, chain_of, effects_of, identity, mirror, negate, scale
from secateur.base.errors import TrainingError
from secateur.criteria import CedOptions, ScoringConfig, score
from secateur.criteria.blocks.measure import block_scores, draw_tuples, measure_blocks, removal_order
from secateur.data import Batch
from secateur.process.diffusion import DiffusionProcess


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
