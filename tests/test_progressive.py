"""Progressive pruning: how masks fall, that nothing jumps when units leave, and that a stopped run ends the same."""

import copy
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import silu

import secateur
from models import dit, inputs_for, output, unet
from secateur.cli import main
from secateur.commands import stages as command_stages
from secateur.commands.plan import check_schedule
from secateur.criteria import ScoringConfig, score
from secateur.criteria.drops import outputs_without_each_block
from secateur.criteria.gradient_flow import gradient_flow_statistics
from secateur.errors import SecateurError, TrainingError
from secateur.inputs import example_inputs
from secateur.process import DiffusionProcess, FlowProcess
from secateur.recipes import recipe_named
from secateur.recovery import Ema, RecoveryConfig, recover
from secateur.recovery.checkpoints import TrainingState, newest_checkpoint
from secateur.recovery.conditioning import accepts
from secateur.recovery.surgery import cut_training_state
from secateur.schedules import (
    CutConfig,
    Progressive,
    ProgressiveConfig,
    no_scores,
    one_shot,
    parse_target,
    stage_scorer,
)
from secateur.schedules.progressive import Scored, caps, select, selected_count
from secateur.structure import Cut, check_cut, describe, masked, masks_of, remove
from secateur.structure.cost import cost_model
from test_recovery_trainer import Failing, assert_same, images, log, smaller

QUICK = ProgressiveConfig(stages=2, decay_stages=2, stage_steps=1)  # units leave before step 3
SCORING = ScoringConfig(num_timesteps=2, num_images=4)
CONFIG = RecoveryConfig(steps=6, batch_size=4, learning_rate=3e-3, checkpoint_every=2, log_every=1)
WIDTH, DEPTH, BOTH = (CutConfig(granularity=name, round_to=2) for name in ("width", "depth", "both"))


def calibration(model):
    batch = images().batch([0, 1, 2, 3])
    return replace(batch, conditions=accepts(model)(batch.conditions))


def pruner_for(model, process, target="macs=60%", criterion="random", cut=WIDTH, config=QUICK, scores=None):
    """What `compress` would prune `model` with; `scores` take the place of the criterion's."""
    structure, batch, scoring = describe(model), calibration(model), config.scoring(SCORING)
    ranking = scores or score(model, process, batch, structure, criterion, SCORING).scores
    inputs = example_inputs(model, 1)
    goal = one_shot(model, structure, parse_target(target), ranking, cut, inputs)[0].cut
    scorer = stage_scorer(process, batch, criterion, scoring)
    return Progressive(
        config,
        goal,
        scorer if scores is None else lambda model: Scored(ranking),
        cost_model(model, structure, inputs),
        {"criterion": criterion, "scoring": asdict(scoring)},
        {"criterion": criterion},
        "dense",
    )


def decisions(pruner, model):
    """The decisions of every stage for a model that does not change, with what is remembered gone through JSON."""
    structure, pruning, found = describe(model), {}, []
    for step in range(pruner.config.pruning_steps + 1):
        if pruner.due(step):
            masks = {name: torch.tensor(values) for name, values in pruning.get("masks", {}).items()}
            with masked(model, structure, masks):
                found.append(pruner.decide(model, model, pruning, step))
            pruning = json.loads(json.dumps({**found[-1].pruning, "masks": found[-1].masks}))
    return found


def toss(structure, seed=0):
    """A scorer that draws new scores at every call, and its calls."""
    generator, calls = torch.Generator().manual_seed(seed), []

    def scorer(model):
        calls.append(model)
        shapes = {name: values.shape for name, values in no_scores(structure).items()}
        return Scored({name: torch.rand(shape, generator=generator).double() for name, shape in shapes.items()})

    return scorer, calls


def stage_log(folder):
    lines = (folder / "stages.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


# ------------------------------------------------------------------------------------------------ schedule

WIDE = {
    "block_out_channels": (128,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 32,
}
INNER = "down_blocks.0.resnets.0.inner"


def wide_pruner(**changes):
    """T5: 128 channels in 32 norm groups of 4, of which one of each group leaves; new scores at every stage."""
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
    assert masks[-1].unique().tolist() == pytest.approx([0, 0.2, 1])  # the last one goes as units leave
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


def test_free_sets_select_anew_and_still_end_at_the_target():
    pruner, model, _ = wide_pruner(sticky=False)
    found = decisions(pruner, model)
    masks = torch.tensor([decision.masks[INNER] for decision in found[:-1]])
    assert (masks[1:] - masks[:-1]).max() == pytest.approx(0.2)  # some come back
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
    assert pruner.config.scoring(ScoringConfig(num_timesteps=32)).num_timesteps == (8 if coarse else 32)


def test_between_coarse_scores_the_last_ones_decide():
    pruner, model, _ = wide_pruner(stages=10, coarse=True)
    first = toss(describe(model))[0](model).scores[INNER]
    found = decisions(pruner, model)
    dim = describe(model).dims[INNER]
    for decision, count in zip(found[:4], (8, 15, 21, 25), strict=True):
        assert decision.pruning["selected"][INNER] == sorted(select(dim, first, set(), count, [1] * 32))


def test_the_lowest_leave_first_within_the_caps_of_their_cells():
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
def test_equal_scores_leave_in_the_order_of_one_shot(build):
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
    statistics = gradient_flow_statistics(model, process, calibration(model), SCORING)
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


# ---------------------------------------------------------------------------------------------- continuity


def first_block_last(structure):
    """Scores by which the first block leaves before all others."""
    scores = no_scores(structure)
    return scores | {name: torch.tensor([float(place)]).double() for place, name in enumerate(structure.blocks)}


CASES = {
    "unet width": (unet, {}, "macs=60%", WIDTH),
    "unet depth": (unet, {}, "macs=80%", DEPTH),
    "unet both": (unet, {}, "macs=50%", BOTH),
    "unet one head": (unet, {"attention_head_dim": None}, "macs=50%", WIDTH),
    "unet one head by its size": (unet, {"attention_head_dim": 16}, "macs=40%", BOTH),
    "dit width": (dit, {}, "macs=60%", WIDTH),
    "dit depth": (dit, {}, "blocks=2", DEPTH),
    "dit both": (dit, {}, "macs=45%", BOTH),
    "dit one head": (dit, {"num_attention_heads": 1, "attention_bias": True}, "macs=50%", BOTH),
}


@pytest.mark.parametrize(("build", "changes", "target", "cut"), CASES.values(), ids=CASES.keys())
def test_nothing_jumps_when_units_leave(build, changes, target, cut, monkeypatch, tmp_path):
    """The model and its average, before the step at which units leave: removed equals under 0/1 masks."""
    live, process = build(**changes), DiffusionProcess()
    pruner = pruner_for(live, process, target, cut=cut, scores=first_block_last(describe(live)))
    decide, add_noise, seen = Progressive.decide, DiffusionProcess.add_noise, {}

    def under(weights: nn.Module, cut: Cut) -> torch.Tensor:
        model = build(**changes)
        model.load_state_dict(weights.state_dict())
        structure = describe(model)
        with masked(model, structure, masks_of(cut, structure)):
            return output(model)

    def watched_decide(self, model, average, pruning, step):
        decision = decide(self, model, average, pruning, step)
        if decision.cut is not None:
            seen.update(average=average, step=step, macs=decision.record["macs"])
            seen["before"] = [under(each, decision.cut) for each in (live, average)]
        return decision

    def watched_noise(self, *arguments):  # the first thing that a step does
        if "before" in seen and "after" not in seen:
            seen["after"] = [output(live), output(seen["average"])]
            seen["counted"] = cost_model(live, describe(live), example_inputs(live, 1))({}).macs
        return add_noise(self, *arguments)

    monkeypatch.setattr(Progressive, "decide", watched_decide)
    monkeypatch.setattr(DiffusionProcess, "add_noise", watched_noise)
    recover(live, process, images(), CONFIG, tmp_path, pruner=pruner)
    assert bool(pruner.target.kept) == (cut.granularity != "depth")
    assert bool(pruner.target.removed_blocks) == (cut.granularity != "width")
    assert seen["step"] == 3
    assert seen["macs"] == round(seen["counted"])
    assert (seen["before"][0] - seen["before"][1]).abs().max() > 1e-3  # the average lags behind
    for before, after in zip(seen["before"], seen["after"], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_training_runs_under_the_masks_that_were_decided(tmp_path):
    """The loss of each step is that of the model under the masks of its stage; scores see those of the stage before."""
    model, process = unet(), DiffusionProcess()
    pruner = pruner_for(model, process, config=replace(QUICK, stages=3, decay_stages=1))
    still = replace(CONFIG, learning_rate=1e-30)  # weights that never move
    scored = []

    def watched(scored_model):
        assert scored_model is model  # rather than the average
        scored.append(output(model))
        return pruner.scorer(model)

    recover(model, process, images(), still, tmp_path / "soft", pruner=replace(pruner, scorer=watched))
    masks = [decision.masks for decision in decisions(pruner, unet())][:3]
    structure = describe(unet())
    outputs, losses = [output(unet())], []
    for step, soft in enumerate([*masks, masks_of(pruner.target, structure)]):
        dense = unet()
        with masked(dense, structure, {name: torch.as_tensor(values) for name, values in soft.items()}):
            recover(dense, process, images(), replace(still, steps=step + 1), tmp_path / str(step))
            outputs.append(output(dense))
        losses.append(log(tmp_path / str(step))[step]["loss"])
    assert [record["loss"] for record in log(tmp_path / "soft")][:4] == pytest.approx(losses, rel=1e-5)
    assert len({round(loss, 6) for loss in losses}) == 4
    torch.testing.assert_close(torch.stack(scored), torch.stack(outputs[:3]), rtol=1e-5, atol=1e-5)
    assert (scored[2] - scored[1]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------- surgery


def loss_of(model):
    return model(**inputs_for(model, 4), return_dict=False)[0].square().mean()


def step(state, skip=()):
    loss_of(state.model).backward()
    for name, parameter in state.model.named_parameters():
        if name in skip:
            parameter.grad = None
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.model, state.step)
    state.step += 1


def trained(model, skip=()):
    state = TrainingState(model, Ema(model, 0.5), torch.optim.AdamW(model.parameters(), 1e-3))
    for _ in range(2):
        step(state, skip)
    return state


def moments_of(state):
    return {
        name: {key: value.clone() for key, value in state.optimizer.state[parameter].items()}
        for name, parameter in state.model.named_parameters()
        if parameter in state.optimizer.state
    }


def test_moments_of_what_stays_are_kept():
    state = trained(unet(attention_head_dim=None), skip=("conv_out.bias",))
    attention, resnet = "mid_block.attentions.0", "down_blocks.0.resnets.0"
    heads, inner = (1, 2, 7, 11), (0, 3, 4, 7)
    before = moments_of(state)
    cut_training_state(state, Cut({f"{attention}.channels": heads, f"{resnet}.inner": inner}), {}, "dense")
    after, shapes = moments_of(state), {name: p.shape for name, p in state.model.named_parameters()}
    assert set(after) == set(before) == set(shapes) - {"conv_out.bias"}
    assert shapes == {name: p.shape for name, p in state.ema.model.named_parameters()}
    factor = (4 / 16) ** 0.5
    expected = {
        f"{attention}.to_q.weight": (0, heads, factor),
        f"{attention}.to_q.bias": (0, heads, factor),
        f"{attention}.to_k.weight": (0, heads, 1),
        f"{attention}.to_v.bias": (0, heads, 1),
        f"{attention}.to_out.0.weight": (1, heads, 1),
        f"{resnet}.conv1.weight": (0, inner, 1),
        f"{resnet}.norm2.bias": (0, inner, 1),
        f"{resnet}.time_emb_proj.weight": (0, inner, 1),
        f"{resnet}.conv2.weight": (1, inner, 1),
        f"{resnet}.conv2.bias": (0, range(8), 1),
        "conv_in.weight": (0, range(8), 1),
    }
    for name, (axis, kept, divisor) in expected.items():
        sliced = {
            key: value.index_select(axis, torch.tensor(kept)) for key, value in before[name].items() if value.ndim
        }
        torch.testing.assert_close(after[name]["exp_avg"], sliced["exp_avg"] / divisor, rtol=1e-6, atol=0)
        torch.testing.assert_close(after[name]["exp_avg_sq"], sliced["exp_avg_sq"] / divisor**2, rtol=1e-6, atol=0)
        assert after[name]["step"] == before[name]["step"] == 2
        assert after[name]["exp_avg"].shape == shapes[name]
    (group,) = state.optimizer.param_groups
    assert all(one is other for one, other in zip(group["params"], state.model.parameters(), strict=True))


def test_moments_move_with_their_blocks():
    state = trained(dit())
    before = moments_of(state)
    cut_training_state(state, Cut({}, ("transformer_blocks.0", "transformer_blocks.2")), {}, "dense")
    after = moments_of(state)
    places = {"transformer_blocks.0.": "transformer_blocks.1.", "transformer_blocks.1.": "transformer_blocks.3."}
    assert set(after) == {name for name, _ in state.model.named_parameters()}
    for name, moments in after.items():
        new = next((new for new in places if name.startswith(new)), "")
        assert torch.equal(moments["exp_avg"], before[places.get(new, "") + name.removeprefix(new)]["exp_avg"]), name


def test_rescaled_queries_have_the_gradient_that_their_moments_are_scaled_for():
    model = unet(attention_head_dim=None)
    structure, kept = describe(model), (1, 2, 7, 11)
    name, cut = "mid_block.attentions.0.to_q.weight", Cut({"mid_block.attentions.0.channels": kept})
    with masked(model, structure, masks_of(cut, structure)):
        (soft,) = torch.autograd.grad(loss_of(model), model.get_parameter(name))
    (hard,) = torch.autograd.grad(loss_of(remove(model, structure, cut)), model.get_parameter(name))
    torch.testing.assert_close(hard, soft[list(kept)] / (4 / 16) ** 0.5)


SURGERY = {
    "unet": (unet, Cut({"mid_block.attentions.0.heads": (1, 2), INNER: (0, 3, 4, 7)}, ("mid_block.resnets.0",))),
    "dit": (dit, Cut({"transformer_blocks.1.attn1.heads": (0, 3), "transformer_blocks.3.ff": tuple(range(99))},
                     ("transformer_blocks.0", "transformer_blocks.2"))),
}  # fmt: skip


@pytest.mark.parametrize(("build", "cut"), SURGERY.values(), ids=SURGERY.keys())
def test_the_next_step_is_the_one_that_masks_would_take(build, cut):
    """Trained on after a cut equals trained on under its 0/1 masks and cut then, since gradients and moments agree."""
    torch.set_default_dtype(torch.float64)
    try:
        soft = trained(build().double())
        hard = trained(build().double())
        structure = describe(soft.model)
        with masked(soft.model, structure, masks_of(cut, structure)):
            step(soft)
        cut_training_state(hard, cut, {}, "dense")
        step(hard)
    finally:
        torch.set_default_dtype(torch.float32)
    for model, other in ((soft.model, hard.model), (soft.ema.model, hard.ema.model)):
        expected = remove(model, describe(model), cut).state_dict()
        found = other.state_dict()
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)


# -------------------------------------------------------------------------------------------------- resume


APART = ProgressiveConfig(stages=2, decay_stages=2, stage_steps=2)  # units leave before step 6
LONGER = replace(CONFIG, steps=9)


def apart(**changes):
    return pruner_for(dit(), FlowProcess(), "macs=45%", "taylor", BOTH, replace(APART, **changes))


def run(folder, data=None, config=LONGER, pruner=None, teacher=None, build=dit, process=None):
    """A progressive run, which takes widths and blocks; returns the model and its average."""
    model = build()
    average = recover(model, process or FlowProcess(), data or images(), config, folder, teacher, pruner or apart())
    return model, average


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


def assert_equals_whole(found, folder, whole):
    for one, other in zip(found, whole[:2], strict=True):
        assert_same(one, other)
        assert set(one.state_dict()) == set(other.state_dict())
    assert [record["loss"] for record in log(folder)] == [record["loss"] for record in log(whole[2])]
    assert stage_log(folder) == stage_log(whole[2])


@pytest.mark.parametrize(
    ("failures", "every"), [([1], 1), ([4], 1), ([6], 2), ([7], 1), ([8, 2], 1), ([8], 5), ([9], 4)]
)
def test_a_run_that_failed_resumes_to_the_bit(failures, every, whole, tmp_path):
    """Before which of its steps it fails, counted from 1: before, between, at and after the stages."""
    config = replace(LONGER, checkpoint_every=every)
    for at in failures:
        with pytest.raises(OSError, match=r"^$"):
            run(tmp_path, Failing(at, OSError), config)
    path = tmp_path / "log.jsonl"
    assert path.exists() == (failures != [1])
    assert not path.exists() or len(log(tmp_path)) == sum(failures) - len(failures)
    assert_equals_whole(run(tmp_path, config=config), tmp_path, whole)
    assert [(record["stage"], record["step"]) for record in stage_log(tmp_path)] == [(1, 0), (2, 2), (3, 4), (4, 6)]


def test_a_run_that_failed_while_scoring_resumes_to_the_bit(whole, tmp_path):
    pruner, calls = apart(), []

    def failing(model):
        calls.append(model)
        if len(calls) == 2:
            raise OSError
        return pruner.scorer(model)

    with pytest.raises(OSError, match=r"^$"):
        run(tmp_path, pruner=replace(pruner, scorer=failing), config=replace(LONGER, checkpoint_every=1))
    assert_equals_whole(run(tmp_path), tmp_path, whole)


def test_a_finished_run_is_read_back(whole):
    assert_equals_whole(run(whole[2], Failing(2, OSError)), whole[2], whole)


def test_coarse_scores_survive_a_resume(tmp_path):
    coarse = ProgressiveConfig(stages=4, decay_stages=1, stage_steps=1, coarse=True)
    pruner = pruner_for(unet(), DiffusionProcess(), criterion="gradient-flow", config=coarse)
    pruner = replace(pruner, scorer=stage_scorer(DiffusionProcess(), calibration(unet()), "gradient-flow", SCORING))
    arguments = replace(CONFIG, checkpoint_every=1), pruner, None, unet, DiffusionProcess()
    expected = *run(tmp_path / "whole", None, *arguments), tmp_path / "whole"
    for at in (2, 2):  # before the second stage, which has no scores of its own, and before the third
        with pytest.raises(OSError, match=r"^$"):
            run(tmp_path / "cut", Failing(at, OSError), *arguments)
    assert_equals_whole(run(tmp_path / "cut", None, *arguments), tmp_path / "cut", expected)
    assert ["energy" in record for record in stage_log(tmp_path / "cut")] == [True, True, False, True, False]


def test_other_progressive_settings_are_refused_in_one_line(whole):
    with pytest.raises(TrainingError, match=r"other settings \(stage_steps 2 there, 1 here\)") as caught:
        run(whole[2], pruner=apart(stage_steps=1))
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"\(pruner .* there, None here\)"):
        recover(dit(), FlowProcess(), images(), LONGER, whole[2])


def test_runs_without_a_pruner_have_no_stages(tmp_path):
    recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=1), tmp_path)
    assert not (tmp_path / "stages.jsonl").exists()


# ---------------------------------------------------------------------------------------- ways of training


@pytest.mark.parametrize(("build", "process"), [(unet, DiffusionProcess()), (dit, FlowProcess())])
def test_half_precision_accumulation_and_second_match_under_masks(build, process, tmp_path):
    config = replace(CONFIG, objective="2ndmatch", mixed_precision="bf16", accumulation=2)
    pruner = pruner_for(build(), process, "macs=50%", "taylor", BOTH)
    scored = []

    def watched(model):
        scored.append(output(model))
        return pruner.scorer(model)

    model, average = run(tmp_path, None, config, replace(pruner, scorer=watched), build(), build, process)
    assert torch.equal(scored[0], output(build()))  # in full precision
    assert all(math.isfinite(record["loss"]) and record["jacobian"] >= 0 for record in log(tmp_path))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert cost_model(average, describe(average), inputs_for(average))({}).macs == stage_log(tmp_path)[-1]["macs"]
    plain = remove(build(), describe(build()), pruner.target)
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    plain.load_state_dict(model.state_dict())
    assert torch.equal(output(model.eval()), output(plain))  # neither masks nor autocast are left on it


def test_two_micro_batches_equal_one(tmp_path):
    config = replace(LONGER, steps=8, objective="2ndmatch")
    run(tmp_path / "1", config=config, teacher=smaller())
    run(tmp_path / "2", config=replace(config, accumulation=2), teacher=smaller())
    for one, two in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_gradient_checkpointing_changes_nothing(whole, tmp_path):
    model = dit()
    model.enable_gradient_checkpointing()
    assert_same(whole[1], recover(model, FlowProcess(), images(), LONGER, tmp_path, pruner=apart()))


def test_a_run_that_failed_leaves_no_masks_behind(tmp_path):
    model = dit()
    with pytest.raises(OSError, match=r"^$"):
        recover(model, FlowProcess(), Failing(6, OSError), LONGER, tmp_path, pruner=apart())
    plain = dit()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(output(model.eval()), output(plain))


# -------------------------------------------------------------------------------------------- command line

STAGES = [
    *("--recipe", "gradient-flow", "--progressive.stages", "2", "--progressive.decay-stages", "2"),
    *("--progressive.stage-steps", "1"),
]
FEW = [
    *("--scoring.num-timesteps", "2", "--scoring.num-images", "4"),
    *("--recovery.batch-size", "4", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"),
    *("--evaluation.num-images", "12", "--evaluation.num-inference-steps", "2", "--evaluation.latency-rounds", "2"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model, scheduler in (("unet", unet(), DDPMScheduler), ("sit", dit(), FlowMatchEulerDiscreteScheduler)):
        secateur.save_pretrained(model, folder / name, {**scheduler().config, "_class_name": scheduler.__name__})
    return folder


def compress(model, out, *more, steps=4):
    options = ["--target", "macs=60%", "--data", "digits", "--out", str(out), "--steps", str(steps)]
    main(["compress", str(model), *options, *STAGES, *FEW, *more])


@pytest.fixture(scope="module")
def compressed(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("compressed") / "run"
    compress(models / "unet", out)
    return out


def test_compress_ends_at_the_target_with_a_model_that_loads(compressed):
    planned = json.loads((compressed / "cut.json").read_text())
    goal = json.loads((compressed / "goal.json").read_text())
    model = secateur.from_pretrained(compressed / "model")
    assert planned["after"]["macs"] <= 0.6 * planned["before"]["macs"]
    assert sum(parameter.numel() for parameter in model.parameters()) == planned["after"]["parameters"]
    average = load_file(newest_checkpoint(compressed / "recovery") / "ema.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())
    records = stage_log(compressed / "recovery")
    assert [record["stage"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["macs"] == planned["after"]["macs"]
    assert all({"energy", "gradient_norm", "loss"} <= record.keys() for record in records[:2])
    cut, recovery = json.loads((compressed / "model" / "pruning.json").read_text())["steps"]
    assert (cut["kind"], recovery["kind"]) == ("cut", "recovery")
    assert {name: len(dim["kept"]) for name, dim in cut["dims"].items()} == {k: len(v) for k, v in goal["kept"].items()}
    assert (cut["schedule"], cut["criterion"], cut["target"]) == ("progressive", "gradient-flow", "macs=60%")
    assert cut["progressive"]["stages"] == 2
    evaluation = json.loads((compressed / "evaluation" / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["dense", "recovered"]
    assert evaluation["models"]["recovered"]["macs"] == planned["after"]["macs"]
    assert (compressed / "report.html").is_file()
    assert not (compressed / "pruned").exists()


@pytest.fixture
def quiet(monkeypatch):
    """No plots, evaluation and report."""
    module = importlib.import_module("secateur.commands.compress")
    for name in ("evaluate_stage", "write_report"):
        monkeypatch.setattr(module, name, lambda *_: None)
    for name in ("write_ranking", "write_cut"):
        monkeypatch.setattr(command_stages, name, lambda *_: None)


def test_what_was_pruned_softly_can_be_pruned_again(compressed, quiet, tmp_path):
    compress(compressed / "model", tmp_path / "again", "--target", "macs=80%", "--criterion", "magnitude")
    before, after = (secateur.from_pretrained(folder / "model") for folder in (compressed, tmp_path / "again"))
    steps = json.loads((tmp_path / "again" / "model" / "pruning.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["cut", "recovery", "cut", "recovery"]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (before, after)]
    assert sizes[1] < sizes[0]
    secateur.save_pretrained(after, tmp_path / "copy")
    assert torch.equal(output(secateur.from_pretrained(tmp_path / "copy")), output(after))


def test_a_compression_that_is_done_does_nothing_twice(compressed, models, quiet, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    for name in ("score", "one_shot", "recover", "save_pretrained"):
        monkeypatch.setattr(command_stages, name, never)
    compress(models / "unet", compressed)


@pytest.mark.parametrize("stage", ["write_cut", "save_pretrained"])
def test_a_compression_that_died_goes_on_to_the_same_result(stage, compressed, models, quiet, monkeypatch, tmp_path):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command_stages, stage, dies)
        with pytest.raises(SystemExit):
            compress(models / "unet", tmp_path / "run")
    compress(models / "unet", tmp_path / "run")
    runs = compressed, tmp_path / "run"
    weights = [load_file(run / "model" / "diffusion_pytorch_model.safetensors") for run in runs]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert stage_log(compressed / "recovery") == stage_log(tmp_path / "run" / "recovery")


def test_blocks_leave_softly_too(models, quiet, tmp_path):
    compress(models / "sit", tmp_path / "run", "--target", "blocks=2", "--criterion", "uniform", "--progressive.coarse")
    model = secateur.from_pretrained(tmp_path / "run" / "model")
    assert len(model.transformer_blocks) == model.config.num_layers == 2
    assert [record["selected"] for record in stage_log(tmp_path / "run" / "recovery")] == [1, 2, 2, 2]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_too_few_steps_are_one_line_before_any_work(more, models, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compress(models / "unet", tmp_path / "run", *more, steps=3)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("secateur: progressive pruning takes 3 steps, recovery has 3")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_predicts_the_scores_between_stages(models, tmp_path, capsys):
    compress(models / "unet", tmp_path / "run", "--dry-run")
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["target", "MACs", "parameters", "cut", "rank", "rank", "recover", "sample"]
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------- other processes

SCRIPT = """
import sys
import torch
from test_progressive import BOTH, CONFIG, Failing, FlowProcess, ProgressiveConfig
from test_progressive import dit, images, pruner_for, replace, run
torch.set_num_threads(1)
folder, steps, stage_steps, fail_at = sys.argv[1], *map(int, sys.argv[2:])
stages = ProgressiveConfig(stages=3, decay_stages=2, stage_steps=stage_steps)
pruner = pruner_for(dit(), FlowProcess(), "macs=45%", "taylor", BOTH, stages)
run(folder, Failing(fail_at, OSError) if fail_at else images(), replace(CONFIG, steps=steps), pruner)
"""
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def command(script, folder, steps, stage_steps, fail_at=0, launcher=()):
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    arguments = [str(value) for value in (script, folder, steps, stage_steps, fail_at)]
    return subprocess.Popen([sys.executable, *launcher, *arguments], env=environment | {"OMP_NUM_THREADS": "1"})


def assert_same_checkpoints(one, other):
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (newest_checkpoint(one) / name).read_bytes() == (newest_checkpoint(other) / name).read_bytes()
    assert stage_log(one) == stage_log(other)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(tmp_path):
    assert command(tmp_path / "run.py", tmp_path / "whole", 200, 25).wait() == 0
    for lines in (5, 60, 110, 150):  # units leave before step 100
        killed = command(tmp_path / "run.py", tmp_path / "cut", 200, 25)
        text = tmp_path / "cut" / "log.jsonl"
        while killed.poll() is None and not (text.exists() and text.read_text().count("\n") > lines):
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert len(log(tmp_path / "cut")) < 200
    assert command(tmp_path / "run.py", tmp_path / "cut", 200, 25).wait() == 0
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "cut")
    assert [record["step"] for record in log(tmp_path / "cut")] == list(range(1, 201))


@pytest.mark.slow
def test_two_processes_equal_one_and_resume_to_the_bit(tmp_path):
    assert command(tmp_path / "run.py", tmp_path / "one", 8, 1).wait() == 0
    assert command(tmp_path / "run.py", tmp_path / "two", 8, 1, launcher=TWO).wait() == 0
    for single, joined in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert single["loss"] == pytest.approx(joined["loss"], rel=1e-3)
        assert single["grad_norm"] == pytest.approx(joined["grad_norm"], rel=1e-3)
    assert stage_log(tmp_path / "one") == stage_log(tmp_path / "two")
    assert command(tmp_path / "run.py", tmp_path / "cut", 8, 1, fail_at=8, launcher=TWO).wait() != 0
    assert 4 < int(newest_checkpoint(tmp_path / "cut").name[-8:]) < 8  # units left before step 5
    assert command(tmp_path / "run.py", tmp_path / "cut", 8, 1, launcher=TWO).wait() == 0
    assert_same_checkpoints(tmp_path / "two", tmp_path / "cut")
