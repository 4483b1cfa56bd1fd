"""The progressive schedule: masks, selections, and the final cut."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import silu

from models import dit, inputs_for, output, unet
from progressive_runs import (
    BOTH,
    DEPTH,
    INNER,
    QUICK,
    SCORING,
    WIDTH,
    calibration,
    decisions,
    pruner_for,
    toss,
)
from secateur.base.errors import SecateurError
from secateur.criteria import GradientFlowOptions, ScoringConfig
from secateur.criteria.blocks.drops import outputs_without_each_block
from secateur.criteria.gradient_flow import gradient_flow_statistics
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recipes import recipe_named
from secateur.recovery import LoraConfig
from secateur.runs.checks import check_schedule
from secateur.schedules import CutConfig, Progressive, ProgressiveConfig, no_scores
from secateur.schedules.progressive import caps, select, selected_count
from secateur.schedules.rescore import Scored
from secateur.structure import Cut, check_cut, masked, remove
from secateur.structure.cost import cost_model

WIDE = {
    "block_out_channels": (128,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 32,
}


def wide_pruner(**changes):
    """T5: 128 channels in 32 norm groups of 4, each of which loses one; new scores at every stage."""
    model = unet(**WIDE)
    structure = describe(model)
    assert structure.dims[INNER].cells == (4,) * 32
    scorer, calls = toss(structure)
    goal = Cut({INNER: tuple(unit for unit in range(128) if unit % 4)})
    pruner = Progressive(
        ProgressiveConfig(**changes), goal, scorer, cost_model(model, structure, inputs_for(model)), {}, {}
    )
    return pruner, model, calls


def test_the_schedule_of_the_specification():
    """T5."""
    pruner, model, _ = wide_pruner()
    found = decisions(pruner, model)
    counts = [0, *(decision.record["selected"] for decision in found)]
    assert counts == [0, 8, 15, 21, 25, 28, 29, 31, 31, 31, 32, 32, 32, 32, 32, 32]
    assert [decision.record["stage"] for decision in found] == list(range(1, 16))
    masks = torch.tensor([decision.masks[INNER] for decision in found[:-1]])
    assert masks[0].eq(1).all()
    falls = masks[:-1] - masks[1:]
    assert falls.min() == 0
    assert falls.max() == pytest.approx(0.2)
    assert masks[-1].unique().tolist() == pytest.approx([0, 0.2, 1])  # the last mask reaches 0 when units are removed
    kept = torch.zeros(128)
    kept[list(found[-1].cut.kept[INNER])] = 1
    assert kept.reshape(32, 4).sum(1).eq(3).all()
    assert (masks[-1] - kept).max() == pytest.approx(0.2)
    assert all(decision.cut is None for decision in found[:-1])


@pytest.mark.parametrize("decay_stages", [1, 3])
def test_masks_fall_only_for_what_was_selected_and_sets_only_grow(decay_stages):
    pruner, model, _ = wide_pruner(stages=6, decay_stages=decay_stages)
    found = decisions(pruner, model)
    for earlier, later in pairwise(found[:-1]):
        before, after = (set(decision.pruning["selected"][INNER]) for decision in (earlier, later))
        assert before <= after
        lowered = [
            unit for unit, (a, b) in enumerate(zip(earlier.masks[INNER], later.masks[INNER], strict=True)) if b < a
        ]
        assert set(lowered) <= before
        if decay_stages == 1:  # iterative hard pruning
            assert {unit for unit, value in enumerate(later.masks[INNER]) if value == 0} == before


def test_selections_that_are_not_sticky_still_end_at_the_target():
    pruner, model, _ = wide_pruner(sticky=False)
    found = decisions(pruner, model)
    masks = torch.tensor([decision.masks[INNER] for decision in found[:-1]])
    assert (masks[1:] - masks[:-1]).max() == pytest.approx(0.2)  # some are released
    assert (masks[1:] - masks[:-1]).min() == pytest.approx(-0.2)
    sets = [set(decision.pruning["selected"][INNER]) for decision in found[:10]]
    assert [len(units) for units in sets] == [8, 15, 21, 25, 28, 29, 31, 31, 31, 32]
    assert not sets[0] <= sets[-1]
    assert set(range(128)) - set(found[-1].cut.kept[INNER]) == sets[-1]


@pytest.mark.parametrize(
    ("stages", "coarse", "scored"),
    [(10, False, range(1, 11)), (10, True, (1, 5, 10)), (3, True, (1, 3)), (1, True, (1,))],
)
def test_scores_are_taken_when_they_should_be(stages, coarse, scored):
    pruner, model, calls = wide_pruner(stages=stages, decay_stages=2, coarse=coarse)
    assert [stage for stage in range(1, stages + 3) if pruner.config.scores_at(stage)] == list(scored)
    found = decisions(pruner, model)
    assert len(calls) == len(scored)
    assert len(found[-1].cut.kept[INNER]) == 96
    for asked, scored_at in ((32, 8), (4, 4), (0, 8)):  # 0 stands for all
        found = pruner.config.scoring(ScoringConfig(num_timesteps=asked)).num_timesteps
        assert found == (scored_at if coarse else asked)


def test_between_coarse_scores_the_last_ones_decide():
    pruner, model, _ = wide_pruner(stages=10, coarse=True)
    first = toss(describe(model))[0](model).scores[INNER]
    found = decisions(pruner, model)
    dim = describe(model).dims[INNER]
    for decision, count in zip(found[:4], (8, 15, 21, 25), strict=True):
        assert decision.pruning["selected"][INNER] == sorted(select(dim, first, set(), count, [1] * 32))


def test_the_lowest_are_selected_first_within_the_caps_of_their_cells():
    dim = describe(unet(**WIDE)).dims[INNER]
    scores = torch.arange(128.0)
    assert select(dim, scores, set(), 3, [1] * 32) == {0, 4, 8}
    assert select(dim, scores, set(), 3, [2] * 32) == {0, 1, 4}
    assert select(dim, scores, {127, 2}, 4, [1] * 32) == {127, 2, 4, 8}
    assert [selected_count(5, stage, 2) for stage in range(4)] == [0, 4, 5, 5]


def test_caps_are_what_a_cut_takes_from_each_cell():
    structure = describe(unet(block_out_channels=(8, 24), norm_num_groups=4))
    assert any(len(set(dim.cells)) > 1 for dim in structure.dims.values())
    for dim in structure.dims.values():
        for level in range(1, dim.levels + 1):
            found = caps(dim, dim.kept_at(level))
            assert sum(found) == dim.size - dim.kept_at(level)
            assert found == [cell - cell * level // dim.levels for cell in dim.cells]


@pytest.mark.parametrize("build", [unet, dit])
def test_equal_scores_are_removed_in_the_order_of_one_shot(build):
    model = build()
    pruner = pruner_for(model, None, "macs=50%", cut=BOTH, scores=no_scores(describe(model)))
    assert pruner.target.removed_blocks
    assert decisions(pruner, model)[-1].cut == pruner.target


@pytest.mark.parametrize(("sticky", "second"), [(True, [1, 2, 3]), (False, [0, 2, 3])])
def test_blocks_are_selected_by_their_present_scores(sticky, second):
    model = dit(num_layers=6)
    names = list(describe(model).blocks)
    config = ProgressiveConfig(stages=3, decay_stages=1, sticky=sticky)
    pruner = pruner_for(model, None, "blocks=2", cut=DEPTH, config=config, scores=no_scores(describe(model)))
    assert pruner.target.removed_blocks == tuple(names[:4])
    scores = [[3, 1, 0, 2, 9, 9], [1, 3, 2, 0, 9, 9], [0, 1, 2, 3, 9, 9]]
    rankings = iter(
        [{name: torch.tensor([float(value)]) for name, value in zip(names, row, strict=True)} for row in scores]
    )
    pruner = replace(pruner, scorer=lambda model: Scored(next(rankings)))
    found = [decision.pruning["selected"] for decision in decisions(pruner, model)[:3]]
    selected = [[place for place, name in enumerate(names[:4]) if stage[name]] for stage in found]
    assert selected == [[1, 2], second, [0, 1, 2, 3]]


@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("cut", [WIDTH, BOTH], ids=["width", "both"])
@pytest.mark.parametrize("build", [unet, dit])
def test_any_scores_end_in_a_valid_cut_of_the_wanted_widths(build, cut, sticky):
    model = build()
    structure = describe(model)
    config = ProgressiveConfig(stages=4, decay_stages=3, stage_steps=2, sticky=sticky)
    pruner = pruner_for(model, None, "params=70%", cut=cut, config=config, scores=no_scores(structure))
    for seed in range(5):
        pruner = replace(pruner, scorer=toss(structure, seed)[0])
        found = decisions(pruner, model)
        assert len(found) == 7
        check_cut(structure, found[-1].cut)
        assert found[-1].cut.removed_blocks == pruner.target.removed_blocks
        widths, wanted = ({k: len(v) for k, v in each.kept.items()} for each in (found[-1].cut, pruner.target))
        assert widths == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "process", "criterion", "target", "cut"),
    [
        (unet, DiffusionProcess(), "gradient-flow", "macs=60%", WIDTH),
        (unet, DiffusionProcess(), "taylor", "params=70%", BOTH),
        (unet, DiffusionProcess(), "magnitude", "macs=60%", CutConfig("global", "both", 2)),
        (unet, DiffusionProcess(), "ced", "blocks=5", DEPTH),
        (dit, FlowProcess(), "gradient-flow", "macs=60%", BOTH),
        (dit, FlowProcess(), "diff-pruning", "params=70%", WIDTH),
        (dit, FlowProcess(), "uniform", "blocks=50%", DEPTH),
        (dit, FlowProcess(), "ced", "macs=75%", DEPTH),
        (dit, FlowProcess(), "cosine", "blocks=2", DEPTH),
    ],
)
def test_pruning_ends_at_the_widths_and_macs_of_one_shot(build, process, criterion, target, cut):
    model = build()
    pruner = pruner_for(model, process, target, criterion, cut)
    last = decisions(pruner, model)[-1]
    once, softly = (remove(copy.deepcopy(model), describe(model), each) for each in (pruner.target, last.cut))
    assert {name: p.shape for name, p in once.named_parameters()} == {
        name: p.shape for name, p in softly.named_parameters()
    }
    counted = cost_model(softly, describe(softly), inputs_for(softly))({})
    assert last.record["macs"] == round(counted.macs)
    if criterion in ("magnitude", "uniform"):  # which do not see the masks
        assert last.cut == pruner.target


def test_every_stage_says_what_it_selected_and_by_which_scores():
    model, process = dit(), FlowProcess()
    pruner = pruner_for(model, process, "params=60%", "taylor", BOTH, replace(QUICK, stages=3))
    before: dict[str, set[int]] = {}
    for decision in decisions(pruner, model):
        after = {name: set(units) for name, units in decision.pruning.get("selected", before).items()}
        added = decision.record["added"]
        assert {name: set(new["units"]) for name, new in added.items()} == {
            name: units - before.get(name, set()) for name, units in after.items() if units - before.get(name, set())
        }
        assert all(len(new["units"]) == len(new["scores"]) for new in added.values())
        assert ("removed" in decision.record) == (decision.cut is not None)
        before = after
    assert sum(map(len, before.values())) > 0
    first = decisions(pruner, model)[0].record
    scores = pruner.scorer(model).scores
    for name, new in first["added"].items():
        assert new["scores"] == [scores[name][unit].item() for unit in new["units"]]
    assert first["loss"] > 0  # Taylor scores come with calibration losses


def test_gradient_flow_reports_its_energy():
    model, process = unet(), DiffusionProcess()
    pruner = pruner_for(model, process, criterion="gradient-flow", config=replace(QUICK, stages=3, decay_stages=1))
    records = [decision.record for decision in decisions(pruner, model)]
    for record in records[:3]:
        assert record["gradient_norm"] > 0
        assert record["loss"] > 0
    assert records[1]["energy"] == pytest.approx(records[0]["energy"], rel=1e-4)  # its masks are all 1 still
    assert abs(records[2]["energy"] - records[1]["energy"]) > 0.01
    assert "energy" not in records[3]
    statistics = gradient_flow_statistics(model, process, calibration(model), SCORING, GradientFlowOptions())
    assert records[0]["energy"] == statistics.energy


@pytest.mark.parametrize("name", ["stages", "decay_stages", "stage_steps"])
def test_senseless_numbers_of_stages_are_refused(name):
    with pytest.raises(SecateurError, match=f"progressive {name} is 0; give at least 1"):
        ProgressiveConfig(**{name: 0})


def test_the_budget_must_reach_beyond_the_stages():
    recipe = recipe_named("gradient-flow")
    assert (recipe.schedule, recipe.criterion, recipe.progressive.pruning_steps) == (
        "progressive",
        "gradient-flow",
        280,
    )
    check_schedule(replace(recipe, recovery=replace(recipe.recovery, steps=281)), "width")
    with pytest.raises(SecateurError, match="pruning takes 280 steps, recovery has 280; give more --steps") as caught:
        check_schedule(replace(recipe, recovery=replace(recipe.recovery, steps=280)), "width")
    assert "\n" not in str(caught.value)
    with pytest.raises(SecateurError, match="units cannot be removed from weights that LoRA wraps"):
        check_schedule(replace(recipe, recovery=replace(recipe.recovery, lora=LoraConfig(rank=4))), "width")
    away = replace(recipe.recovery, objective="distillation", offload=("teacher",), steps=281)
    check_schedule(replace(recipe, recovery=away), "width")
    check_schedule(replace(recipe, recovery=away, compensates=True, records=True), "width")
    with pytest.raises(SecateurError, match="a refit at the cuts of a schedule needs the whole teacher"):
        check_schedule(replace(recipe, recovery=away, compensates=True), "width")


def test_dropped_blocks_are_measured_right_under_soft_masks():
    model = dit()
    structure = describe(model)
    names = list(structure.blocks)
    masks = {names[0]: torch.tensor([0.4]), names[2]: torch.tensor([0.6])}
    with masked(model, structure, masks):
        found = list(outputs_without_each_block(model, structure, lambda: output(model)))
        for name, value in zip(names, found, strict=True):
            with masked(model, structure, {name: torch.zeros(1)}):
                torch.testing.assert_close(value, output(model))


def test_the_head_does_not_jump_when_the_first_block_has_faded():
    model = dit()
    structure, (first, second, *_) = describe(model), describe(model).blocks

    def under(*values):
        masks = {name: torch.tensor([value]) for name, value in zip((first, second), values, strict=False)}
        with masked(model, structure, masks):
            return output(model)

    torch.testing.assert_close(under(1e-6), under(0.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(under(0.0, 1e-6), under(0.0, 0.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(under(1e-6, 1e-6), under(0.0, 0.0), rtol=1e-4, atol=1e-4)
    read = []
    for reader in (model.transformer_blocks[0].norm1.linear, model.proj_out_1):
        reader.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    under(0.5)
    with torch.no_grad():
        own, following = (block.norm1.emb(**conditions(model)) for block in model.transformer_blocks[:2])
    torch.testing.assert_close(read[0], silu(own))
    torch.testing.assert_close(read[1], silu((own + following) / 2))


def conditions(model):
    inputs = inputs_for(model)
    return {"timestep": inputs["timestep"], "class_labels": inputs["class_labels"], "hidden_dtype": torch.float32}
