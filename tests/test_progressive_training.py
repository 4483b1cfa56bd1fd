"""Training with a progressive pruner: masks as decided, no jump at a removal, and moments that are cut along."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from models import dit, inputs_for, output, unet
from progressive_runs import (
    BOTH,
    CONFIG,
    DEPTH,
    INNER,
    LONGER,
    QUICK,
    WIDTH,
    apart,
    decisions,
    pruner_for,
    run,
)
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import Ema, recover
from secateur.recovery.checkpoints import TrainingState
from secateur.recovery.surgery import cut_in_training
from secateur.schedules import Progressive, no_scores
from secateur.structure import Cut, masked, masks_of, remove
from secateur.structure.cost import cost_model
from training_runs import Failing, images, log, stage_log

# ---------------------------------------------------------------------------------------------- continuity


def first_block_last(structure):
    """Scores that remove the first block before all others."""
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


@pytest.mark.slow
@pytest.mark.parametrize(("build", "changes", "target", "cut"), CASES.values(), ids=CASES.keys())
def test_the_output_does_not_change_when_masked_units_are_removed(build, changes, target, cut, monkeypatch, tmp_path):
    """The model and its average before the step of the removal: removed equals masked by 0/1."""
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


@pytest.mark.slow
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


def cut_state(state, cut):
    cut_in_training(state.model, cut, state.optimizer, state.ema, {}, "dense")


def moments_of(state):
    return {
        name: {key: value.clone() for key, value in state.optimizer.state[parameter].items()}
        for name, parameter in state.model.named_parameters()
        if parameter in state.optimizer.state
    }


def test_moments_of_remaining_units_are_kept():
    state = trained(unet(attention_head_dim=None), skip=("conv_out.bias",))
    attention, resnet = "mid_block.attentions.0", "down_blocks.0.resnets.0"
    heads, inner = (1, 2, 7, 11), (0, 3, 4, 7)
    before = moments_of(state)
    cut_state(state, Cut({f"{attention}.channels": heads, f"{resnet}.inner": inner}))
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
    cut_state(state, Cut({}, ("transformer_blocks.0", "transformer_blocks.2")))
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
    """Training after a cut equals training under its 0/1 masks and cutting then, since gradients and moments agree."""
    torch.set_default_dtype(torch.float64)
    try:
        soft = trained(build().double())
        hard = trained(build().double())
        structure = describe(soft.model)
        with masked(soft.model, structure, masks_of(cut, structure)):
            step(soft)
        cut_state(hard, cut)
        step(hard)
    finally:
        torch.set_default_dtype(torch.float32)
    for model, other in ((soft.model, hard.model), (soft.ema.model, hard.ema.model)):
        expected = remove(model, describe(model), cut).state_dict()
        found = other.state_dict()
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------------------------------- ways of training


@pytest.mark.slow
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


def test_a_run_that_failed_leaves_no_masks_behind(tmp_path):
    model = dit()
    with pytest.raises(OSError, match=r"^$"):
        recover(model, FlowProcess(), Failing(6, OSError), LONGER, tmp_path, pruner=apart())
    plain = dit()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(output(model.eval()), output(plain))
