"""Adaptive block pruning: how many blocks are removed, and which."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_runs import (
    DEPTH,
    adaptive,
    by_order,
    by_weights,
    decisions,
    depth_scorer,
    macs_of,
    no_latency,
    random_scorer,
    sit,
)
from models import flux, inputs_for, output, pixart, sana, sd3, sdxl, unet
from secateur.base.errors import SecateurError
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.schedules import AdaptiveConfig, Target, block_cuts, one_shot, parse_target
from secateur.schedules.adaptive import Candidate, candidate_counts, choose, objective, standardized
from secateur.schedules.proxies import Judgement, judge
from secateur.schedules.rescore import Scored
from secateur.structure import Cut, masked, without_blocks
from training_runs import images


def test_candidates_of_the_specification():
    """K = 4, P = 6: at most ceil(12 / 4) = 3 per stage, and no more left than later stages can remove."""
    assert candidate_counts(0, 6, 0, 4) == [0, 1, 2, 3]
    assert candidate_counts(0, 6, 1, 4) == [0, 1, 2, 3]
    assert candidate_counts(0, 6, 2, 4) == [3]
    assert candidate_counts(2, 6, 2, 4) == [3, 4, 5]
    assert candidate_counts(4, 6, 2, 4) == [4, 5, 6]
    assert candidate_counts(5, 6, 3, 4) == [6]
    assert candidate_counts(0, 6, 0, 1) == [6]
    assert candidate_counts(0, 14, 0, 4) == [0, 2, 4, 5, 7]
    assert candidate_counts(1, 8, 4, 6) == [4]  # the total was 7 at stage 3: the last stage must remove more


@given(st.integers(0, 40), st.integers(1, 8), st.data())
def test_any_choices_end_at_the_total(total, stages, data):
    gone, most = 0, math.ceil(2 * total / stages)
    for stage in range(stages):
        counts = candidate_counts(gone, total, stage, stages)
        assert counts == sorted(set(counts))
        assert 1 <= len(counts) <= 5
        assert gone <= counts[0]
        assert counts[-1] <= min(total, gone + most)
        gone = data.draw(st.sampled_from(counts))
    assert gone == total


def candidates(*numbers):
    """(count, loss, log condition number, ZiCo, share saved)."""
    return [Candidate(count, Judgement(loss, kappa, zico), saved) for count, loss, kappa, zico, saved in numbers]


def test_the_objective_by_hand():
    found = candidates((0, 1, 3.0, 5.0, 0.0), (2, 1, 1.0, 5.0, 0.2), (4, 1, 2.0, 8.0, 0.4))
    z = math.sqrt(3 / 2)
    expected = [-z / 2 - 0.5 * math.sqrt(0.5), z / 2 - 0.5 * math.sqrt(0.5) + 0.1, 0.5 * math.sqrt(2) + 0.2]
    assert objective(found, 0.5) == pytest.approx(expected)
    assert objective(found, 0.0)[0] == pytest.approx(expected[0])


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [1.0, math.nan, 2.0], [1.0, math.inf], [0.0], [1e9, 1e9 + 1e-7]])
def test_columns_without_meaning_count_nothing(values):
    assert standardized(values) == [0.0] * len(values)


def test_the_guard_and_the_selectors():
    found = candidates((0, 1.0, 3.0, 5.0, 0.0), (1, 1.2, 2.0, 6.0, 0.1), (2, 1.26, 1.0, 9.0, 0.2))
    config = AdaptiveConfig()
    assert choose(found, 1.0, config) == 1  # the best one is above the guard
    assert choose(found, 1.0, replace(config, guard=1.3)) == 2
    assert choose(found, 0.5, config) == 0  # none is allowed: the lowest
    worse = candidates((0, 1.0, 1.0, 9.0, 0.0), (1, 1.2, 2.0, 6.0, 0.1), (2, 1.26, 3.0, 1.0, 0.2))
    assert choose(worse, 1.0, config) == 0
    assert choose(worse, 1.0, replace(config, selector="loss")) == 1
    assert choose(candidates((0, 1, 1, 1, 0.0), (1, 1, 1, 1, 0.0)), 1.0, config) == 0  # equal: fewer


def test_boundaries_spread_over_the_first_steps():
    assert AdaptiveConfig().boundaries(200) == (0, 17, 33, 50)
    assert AdaptiveConfig(until=0.5).boundaries(200) == (0, 33, 67, 100)
    assert AdaptiveConfig(stages=1).boundaries(200) == (0,)
    assert AdaptiveConfig(stages=2).boundaries(200) == (0, 50)


@given(st.integers(1, 8), st.floats(0, 1, exclude_max=True), st.integers(1, 300))
def test_the_last_decision_falls_before_the_last_step(stages, until, steps):
    assert max(AdaptiveConfig(stages=stages, until=until).boundaries(steps)) < steps


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["proxy", "loss", "fixed"])
@pytest.mark.parametrize("rerank", ["removal", "stage", "once"])
@pytest.mark.parametrize("target", ["blocks=3", "macs=45%", "params=3.1K"])
def test_every_rule_ends_at_the_target(selector, rerank, target):
    model = sit().eval()
    if target.startswith("params"):
        target = f"params={sum(p.numel() for p in model.parameters()) // 2}"
    judged = []

    def counted(network):
        judged.append(network)
        return by_weights(network)

    pruner = adaptive(model, target, random_scorer(), counted, selector=selector, rerank=rerank)
    found, smaller = decisions(pruner, model)
    assert len(judged) <= pruner.config.judgements
    assert (selector == "fixed") == (not judged) == (not pruner.config.judgements)
    goal = parse_target(target)
    steps = one_shot(model, describe(model), goal, random_scorer()(model).scores, DEPTH, inputs_for(model))[0]
    assert len(smaller.transformer_blocks) == 8 - len(steps.cut.removed_blocks)
    removed = [name for decision in found for name in decision.record["removed"]]
    assert len(set(removed)) == len(removed) == len(steps.cut.removed_blocks)
    kept = [name for name in describe(model).blocks if name not in removed]
    assert found[-1].pruning["blocks"] == kept  # by their names in the dense model, in order
    for name, block in zip(kept, smaller.transformer_blocks, strict=True):
        assert block.ff.net[2].weight is model.get_submodule(name).ff.net[2].weight
    assert found[-1].record["macs"] == pytest.approx(macs_of(smaller), abs=1)
    assert all(decision.record["chosen"] in [c["count"] for c in decision.record["candidates"]] for decision in found)


@pytest.mark.slow
@pytest.mark.parametrize("build", [unet, lambda: sdxl(transformer_layers_per_block=(1, 2)), sd3, pixart, flux, sana])
def test_blocks_of_every_kind_are_removed_until_one_is_left(build):
    model = build().eval()
    structure = describe(model)
    pruner = adaptive(model, "blocks=1", random_scorer(), lambda model: Judgement(1.0, 1.0, 1.0), rerank="removal")
    found, smaller = decisions(pruner, model)
    removed = [name for decision in found for name in decision.record["removed"]]
    assert sorted([*removed, *found[-1].pruning["blocks"]]) == sorted(structure.blocks)
    staying = 0 if structure.outside else 1  # the last block of SD3 stays in any case
    assert len(describe(smaller).blocks) == len(found[-1].pruning["blocks"]) == staying
    assert macs_of(smaller) == macs_of(without_blocks(model, structure, removed)) == found[-1].record["macs"]
    torch.testing.assert_close(output(smaller), output(without_blocks(model, structure, removed)))


def test_one_stage_is_one_shot():
    model = sit().eval()
    (decision,), _ = decisions(adaptive(model, stages=1), model)
    solution = one_shot(
        model, describe(model), parse_target("blocks=3"), depth_scorer(model).scores, DEPTH, inputs_for(model)
    )[0]
    assert decision.cut == solution.cut


def test_fixed_counts_are_even():
    found, _ = decisions(adaptive(sit(), "blocks=2", by_order(*range(8)), selector="fixed"), sit().eval())
    assert [decision.record["chosen"] for decision in found] == [2, 3, 4, 6]


@pytest.mark.slow
def test_what_is_ranked_when():
    model = sit().eval()
    calls = []

    def scorer(model):
        calls.append(len(model.transformer_blocks))
        return by_order(*range(len(model.transformer_blocks)))(model)

    for rerank, expected in (("once", []), ("stage", [6, 5, 4]), ("removal", [7, 6, 5, 4, 3])):
        pruner = adaptive(model, "blocks=2", scorer, selector="fixed", rerank=rerank)
        calls.clear()
        found, _ = decisions(pruner, model)
        assert [decision.record["chosen"] for decision in found] == [2, 3, 4, 6]
        assert sorted(set(calls), reverse=True) == expected


def test_one_by_one_removal_follows_the_scores_of_the_remaining_blocks():
    """The first ranking would remove 0, 1, 2; without block 0, the model ranks its last block lowest."""
    model = sit(5).eval()

    def scorer(model):
        names = list(describe(model).blocks)
        order = range(5) if len(names) == 5 else reversed(range(len(names)))
        return Scored({names[i]: torch.tensor([float(place)]).double() for place, i in enumerate(order)})

    (decision,), _ = decisions(adaptive(model, "blocks=2", scorer, stages=1, rerank="removal"), model)
    assert decision.record["removed"] == [f"transformer_blocks.{i}" for i in (0, 4, 3)]


def test_one_by_one_removal_keeps_the_last_block_of_the_lists():
    model = sdxl(transformer_layers_per_block=(1, 2)).eval()

    def listed_first(model):
        blocks = describe(model).blocks.values()
        return Scored({block.name: torch.tensor([float(not block.listed)]).double() for block in blocks})

    listed = sum(block.listed for block in describe(model).blocks.values())
    pruner = adaptive(model, "blocks=1", listed_first, lambda model: Judgement(1.0, 1.0, 1.0), rerank="removal")
    found, smaller = decisions(
        replace(pruner, boundaries=(0,), config=AdaptiveConfig(stages=1, rerank="removal")), model
    )
    assert len(found[0].record["removed"]) == len(describe(model).blocks) - 1 > listed
    (left,) = describe(smaller).blocks.values()
    assert left.listed


def test_the_log_has_what_was_measured():
    model = sit().eval()
    pruner = adaptive(model, stages=2, judged=judge(FlowProcess(), images().batch(range(8)), 0))
    found, _ = decisions(pruner, model)
    first = found[0].record
    assert set(first) == {"stage", "ranking", "candidates", "chosen", "removed", "blocks", "macs"}
    assert set(first["candidates"][0]) == {"count", "saved", "ntk", "zico", "guard", "score"}
    assert first["candidates"][0]["guard"] == 1.0
    assert [candidate["saved"] for candidate in first["candidates"]] == sorted(c["saved"] for c in first["candidates"])
    assert set(found[-1].record["candidates"][0]) == {"count", "saved"}  # no choice, nothing to measure
    json.dumps([decision.record for decision in found])


def test_latency_targets_measure_every_set_of_blocks_once():
    model, calls = sit().eval(), []

    def latency_of(model, structure):
        decision = len(calls)

        def measure(cut):
            calls.append((decision, cut.removed_blocks))
            return 10.0 * (len(structure.blocks) - len(cut.removed_blocks))

        return measure

    pruner = replace(adaptive(model), goal=block_cuts(Target("latency", 35.0, False), DEPTH, latency_of))
    _, smaller = decisions(pruner, model)
    assert len(smaller.transformer_blocks) == 3
    assert len(calls) == len(set(calls))


def test_a_model_that_is_small_enough_loses_nothing():
    model = sit().eval()
    cut = block_cuts(Target("blocks", 8.0, False), DEPTH, no_latency)(
        model, describe(model), depth_scorer(model).scores
    )
    assert cut == Cut()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stages": 0}, "stages is 0"),
        ({"until": 1.0}, "until is 1.0"),
        ({"guard": 0.9}, "guard is 0.9"),
        ({"macs_weight": -1.0}, "macs_weight is -1.0"),
        ({"selector": "best"}, "'best'; give proxy or loss or fixed"),
        ({"rerank": "never"}, "'never'; give removal or stage or once"),
    ],
)
def test_senseless_settings_are_refused(wrong, message):
    with pytest.raises(SecateurError, match=message):
        AdaptiveConfig(**wrong)


@pytest.mark.parametrize("build", [sit, unet])
def test_a_model_without_blocks_shares_its_tensors_and_equals_the_masked_one(build):
    model = build().eval()
    structure = describe(model)
    names = list(structure.blocks)[::2]
    smaller = without_blocks(model, structure, names)
    with masked(model, structure, {name: torch.zeros(1) for name in names}):
        expected = output(model)
    torch.testing.assert_close(output(smaller), expected, rtol=0, atol=1e-6)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in smaller.parameters())
    assert list(describe(model).blocks) == list(structure.blocks)
