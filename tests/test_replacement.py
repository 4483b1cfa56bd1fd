"""Criterion replacement: affine stand-ins against closed forms, the search against brute force, every kind of block."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import secateur
from models import dit, flux, output, randomize, sample_for, sd3, unet
from secateur.base.errors import SecateurError, TrainingError
from secateur.criteria import ReplacementOptions, ScoringConfig, ranking_memory, score
from secateur.criteria.blocks.measure import draw_tuples
from secateur.criteria.replacement import REPLACEMENT, StandIns, removal_distances
from secateur.data import Batch
from secateur.models.network import example_batch, inference
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.structure import Block, Structure, masked
from secateur.structure.memory import LiveBytes

CONFIG = ScoringConfig(num_timesteps=4, num_images=6, batch_size=10)
EXACT = ReplacementOptions(ridge=0.0)
PROCESS = FlowProcess()


class Mixed(nn.Module):
    """A block that applies a function of its tokens' channels, (B, C, H, W) -> the same."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Chain(nn.Module):
    def __init__(self, *functions):
        super().__init__()
        self.blocks = nn.ModuleList(map(Mixed, functions))
        self.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.float64)))

    def forward(self, sample, timestep, return_dict=False):
        for block in self.blocks:
            sample = block(sample)
        return (sample,)


def affine(seed, channels=3):
    """An affine map of each pixel's channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    return lambda x: x + torch.einsum("bchw,dc->bdhw", x, weight) + bias[:, None, None]


def bent(x):
    return x + 0.1 * x.square()


def chain_of(*functions):
    names = [f"blocks.{number}" for number in range(len(functions))]
    return Chain(*functions), Structure({}, {name: Block(name, listed=True) for name in names})


def images(count=6, channels=3):
    return Batch(torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def stand_ins(model, structure, batch, options=EXACT, config=CONFIG):
    return StandIns(model, structure, list(draw_tuples(PROCESS, batch, config)), config, options)


def test_affine_blocks_leave_first_and_cost_nothing():
    model, structure = chain_of(affine(0), bent, affine(1))
    scores = score(
        model, PROCESS, images(), structure, "replacement", dataclasses.replace(CONFIG, options=EXACT)
    ).scores
    assert scores["blocks.0"].item() == pytest.approx(0, abs=1e-6)
    assert scores["blocks.2"].item() == pytest.approx(0, abs=1e-6)
    assert scores["blocks.1"].item() > 1e-3


def test_two_stand_ins_meet_the_least_squares_fits_of_their_own_inputs():
    model, structure = chain_of(bent, affine(0), torch.sin)
    batch = images()
    found = stand_ins(model, structure, batch).distance(["blocks.0", "blocks.2"])
    x, expected, timesteps = [], [], []
    for tuples in draw_tuples(PROCESS, batch, CONFIG):
        x.append(tuples.noisy)
        timesteps.append(tuples.timesteps.double())
        expected.append(model(tuples.noisy, tuples.timesteps)[0])
    dense, x, t = torch.cat(expected), torch.cat(x), torch.cat(timesteps)
    t = ((t - t.min()) / (t.max() - t.min()) - 0.5)[:, None].expand(-1, 16).reshape(-1, 1)

    def fitted(given, goal):
        rows, wanted = (values.permute(0, 2, 3, 1).reshape(-1, 3) for values in (given, goal - given))
        terms = torch.cat([rows, t * rows, t, torch.ones_like(t)], 1)
        weight = 1 / (goal - given).flatten(1).norm(dim=1)[:, None].expand(-1, 16).reshape(-1, 1)
        best = rows + terms @ torch.linalg.lstsq(weight * terms, weight * wanted).solution
        return best.reshape(len(given), 4, 4, 3).permute(0, 3, 1, 2)

    first = affine(0)(fitted(x, bent(x)))
    last = fitted(first, dense)
    errors = (last - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
    assert found == pytest.approx(math.exp(errors.log().mean()), rel=1e-4)  # LEAST


def test_a_strong_ridge_leaves_the_stream_as_it_is_but_for_its_mean():
    model, structure = chain_of(lambda x: 3 * x + 1, bent)
    batch = images()
    found = stand_ins(model, structure, batch, ReplacementOptions(ridge=1e12)).distance(["blocks.1"])
    errors = []
    for tuples in draw_tuples(PROCESS, batch, CONFIG):
        errors.append((3 * tuples.noisy + 1, bent(3 * tuples.noisy + 1)))
    x, y = (torch.cat(parts) for parts in zip(*errors, strict=True))
    weight = (y - x).flatten(1).square().mean(1).reciprocal()[:, None, None, None]
    moved = x + ((y - x) * weight).mean((0, 2, 3), keepdim=True) / weight.mean()
    relative = (moved - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    assert found == pytest.approx(math.exp(relative.log().mean()), rel=1e-6)


@pytest.mark.parametrize("candidates", [1, 3, 7])
def test_the_search_is_the_greedy_one_among_its_candidates(candidates):
    worth = dict(zip("abcdefg", (3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0), strict=True))
    pairs = {frozenset("bd"): 10.0, frozenset("fa"): -1.0}
    asked = []

    def distance(removed):
        asked.append(tuple(removed))
        return sum(worth[name] for name in removed) + sum(
            more for pair, more in pairs.items() if pair <= frozenset(removed)
        )

    found = removal_distances(list(worth), distance, candidates)
    assert len(asked) == 7 + sum(min(candidates, left) for left in range(1, 7))
    assert next(iter(found)) == "b"
    assert list(found.values()) == sorted(found.values())
    if candidates == 7:  # a search of all
        gone = []
        while len(gone) < 7:
            gone.append(min((name for name in worth if name not in gone), key=lambda name: distance([*gone, name])))
        assert list(found) == gone


@pytest.mark.parametrize("make", [unet, dit, sd3, flux])
def test_every_kind_of_block_is_replaced_and_the_model_restored(make):
    model = make()
    structure, before = describe(model), output(model)
    sample, conditions = sample_for(model, 6)
    scores = score(model, PROCESS, Batch(sample, conditions), structure, "replacement", CONFIG).scores
    assert list(scores) == list(structure.blocks)
    values = torch.cat(list(scores.values()))
    assert values.isfinite().all()
    assert (values > 0).all()
    assert len(set(values.tolist())) == len(values)
    assert torch.equal(output(model), before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_without_the_first_block_the_head_reads_the_next_one_as_after_removal():
    model = randomize(dit(), seed=3)
    structure = describe(model)
    first = next(iter(structure.blocks))
    sample, conditions = sample_for(model, 6)
    batch = Batch(sample, conditions)
    found = stand_ins(model, structure, batch, ReplacementOptions(ridge=1e12, rows=10**6))
    goals = [torch.cat([part[0] for part in found.goals[first]])]
    errors = []
    with inference(model), masked(model, structure, {first: torch.zeros(1)}):
        shift = []
        handle = model.get_submodule(first).register_forward_pre_hook(lambda module, args: shift.append(args[0]))
        for tuples in draw_tuples(PROCESS, batch, CONFIG):
            predict(model, tuples.noisy, tuples.timesteps, tuples.conditions)
        handle.remove()
        change = goals[0] - torch.cat(shift)
        weight = change.square().mean((1, 2), keepdim=True).reciprocal()
        mean = (change * weight).mean((0, 1)) / weight.mean()
        moved = model.get_submodule(first).register_forward_hook(lambda module, args, result: args[0] + mean)
        for tuples, dense in zip(draw_tuples(PROCESS, batch, CONFIG), found.dense, strict=True):
            here = predict(model, tuples.noisy, tuples.timesteps, tuples.conditions).double()
            errors.append((here - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1))
        moved.remove()
    with inference(model):
        assert found.distance([first]) == pytest.approx(math.exp(torch.cat(errors).log().mean()), rel=1e-3)


@pytest.mark.parametrize("mask", [0.0, 0.3])
def test_under_masks_a_stand_in_is_masked_as_its_block_is(mask):
    model, structure = chain_of(bent, affine(0), torch.sin)
    with masked(model, structure, {"blocks.1": torch.tensor([mask])}):
        found = stand_ins(model, structure, images())
        assert found.distance(["blocks.1"]) == pytest.approx(0, abs=1e-6)  # an affine block, and its affine stand-in


def test_a_stream_of_zeros_tells_nothing():
    def emptied(x):
        return torch.where(torch.arange(len(x))[:, None, None, None] % 5 > 0, bent(x), 0.0)

    model, structure = chain_of(emptied, lambda x: 3 * x, lambda x: x + 1)
    found = stand_ins(model, structure, images())
    assert found.distance([]) == 0
    assert 0 <= found.distance(["blocks.1"]) < 1e-6


def test_the_price_is_that_of_the_passes():
    model = dit()
    structure, calls = describe(model), []
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    sample, conditions = sample_for(model, 6)
    config = REPLACEMENT.configured(
        dataclasses.replace(CONFIG, batch_size=24, options=ReplacementOptions(candidates=2))
    )
    score(model, PROCESS, Batch(sample, conditions), structure, "replacement", config)
    handle.remove()
    price = REPLACEMENT.price(model, PROCESS, structure, config, REPLACEMENT.options_of(config))
    assert 3 * price.passes == pytest.approx(24 * len(calls))


def test_what_is_not_finite_is_named():
    model, structure = chain_of(bent, lambda x: x * float("nan"))
    with pytest.raises(TrainingError, match=r"not finite"):
        score(model, PROCESS, images(), structure, "replacement", CONFIG)


@pytest.mark.parametrize("options", [{"candidates": 0}, {"ridge": -1.0}, {"rows": 0}])
def test_options_are_validated(options):
    with pytest.raises(SecateurError, match=next(iter(options))):
        ReplacementOptions(**options)


def test_the_distance_of_chosen_blocks_is_that_of_the_criterion():
    model = dit()
    sample, conditions = sample_for(model, 6)
    data = [
        {"images": image, "class_labels": label}
        for image, label in zip(sample, conditions["class_labels"], strict=True)
    ]
    given = {"data": data, "process": "flow", "device": "cpu", "scoring": CONFIG}
    ranking = secateur.rank(model, criterion="replacement", **given)
    order = sorted(ranking.blocks, key=lambda name: ranking.blocks[name])
    for count in (1, 3):
        found = secateur.replacement_distance(model, order[:count], **given)
        assert found == pytest.approx(ranking.blocks[order[count - 1]], rel=1e-6)
    with pytest.raises(SecateurError, match="there is no block"):
        secateur.replacement_distance(model, ["transformer_blocks.9"], **given)


def test_blocks_at_one_distance_are_ranked_in_the_order_of_the_search(monkeypatch):
    def one_distance(names, distance, candidates):
        return dict.fromkeys(names, 0.5)  # the first name leaves first

    monkeypatch.setattr("secateur.criteria.replacement.removal_distances", one_distance)
    model = dit(num_layers=3)
    sample, conditions = sample_for(model, 6)
    ranking = score(model, PROCESS, Batch(sample, conditions), describe(model), "replacement", CONFIG)
    scores = [ranking.scores[f"transformer_blocks.{i}"].item() for i in range(3)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


@pytest.mark.parametrize("make", [dit, sd3])
@pytest.mark.parametrize(("batch_size", "images"), [(4, 8), (8, 24)])
def test_its_memory_is_counted_before(make, batch_size, images):
    model = make()
    config = ScoringConfig(num_images=images, batch_size=batch_size, num_timesteps=4)
    predicted = ranking_memory(model, PROCESS, "replacement", config)
    with LiveBytes() as found:
        score(model, PROCESS, Batch(*example_batch(model, images)), describe(model), "replacement", config)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert predicted.peak == pytest.approx(found.peak + weights, rel=0.25)
