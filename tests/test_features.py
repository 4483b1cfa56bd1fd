"""Hidden-state distillation: which block is which after cuts, which channels, and what is compared."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import secateur
from models import dit, output, unet
from progressive_runs import BOTH, pruner_for
from secateur.base.errors import TrainingError
from secateur.io.manifest import apply_cut
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import FeaturesConfig, RecoveryConfig, recover
from secateur.recovery.draws import draw_step
from secateur.recovery.hidden import called_with, sliced, surviving_blocks
from secateur.recovery.objectives.build import build_objective
from secateur.recovery.objectives.features import feature_mismatch
from secateur.structure import Cut
from secateur.teacher import LiveTeacher
from secateur.teacher.hidden import hidden_states
from training_runs import Failing, assert_same, images, log

CONFIG = RecoveryConfig(steps=3, batch_size=4, objective="features", log_every=1, label_dropout=0.0)


def draw_of(labels):
    (found,) = draw_step(images(), FlowProcess(), CONFIG, 0, accepts=dict if labels else lambda conditions: {})
    return found


def terms_of(student, teacher, features=None, labels=False, **changes):
    config = replace(CONFIG, features=features or FeaturesConfig(), **changes)
    objective = build_objective(config, teacher)
    return objective.terms(student, teacher, FlowProcess(), draw_of(labels), objective.jacobian)


def test_blocks_are_followed_through_cuts():
    teacher = dit(num_layers=6)
    student = copy.deepcopy(teacher)
    apply_cut(student, Cut({}, ("transformer_blocks.1", "transformer_blocks.4")))
    apply_cut(student, Cut({"transformer_blocks.0.ff": tuple(range(50))}, ("transformer_blocks.1",)))
    pairs = [(pair.student, pair.teacher, pair.taken, pair.returned) for pair in surviving_blocks(student, teacher)]
    names = [f"transformer_blocks.{number}" for number in range(3)]
    assert pairs == [
        (name, f"transformer_blocks.{old}", None, None) for name, old in zip(names, (0, 3, 5), strict=True)
    ]
    again = copy.deepcopy(student)  # a teacher that was pruned itself
    apply_cut(again, Cut({}, ("transformer_blocks.0",)))
    assert [pair.teacher for pair in surviving_blocks(again, student)] == names[1:]


@pytest.mark.parametrize("cuts", [1, 2])
def test_channels_of_the_residual_stream_are_those_that_stayed(cuts):
    """According to the weights that write and read them, and to the shapes of all hidden states."""
    teacher = unet(norm_num_groups=2)
    student = copy.deepcopy(teacher)
    for _ in range(cuts):
        structure = describe(student)
        dims = structure.links[structure.dims["conv_in"].link]
        apply_cut(student, Cut({dim.name: tuple(range(0, dim.size, 2)) for dim in dims}))
    first = next(pair for pair in surviving_blocks(student, teacher) if pair.student == "down_blocks.0.resnets.0")
    weights = teacher.conv_in.weight[first.taken]
    assert torch.equal(student.conv_in.weight, weights)
    assert torch.equal(
        student.down_blocks[0].resnets[0].conv2.bias, teacher.down_blocks[0].resnets[0].conv2.bias[first.returned]
    )
    for pair in surviving_blocks(student, teacher):
        with hidden_states(student, [pair.student]) as ours, hidden_states(teacher, [pair.teacher]) as theirs:
            output(student), output(teacher)
        one, other = ours[pair.student][0], theirs[pair.teacher][0]
        assert one.returned.shape == sliced(other.returned, pair.returned, True).shape, pair
        assert one.taken.shape == sliced(other.taken, pair.taken, True).shape, pair


def test_mismatch_is_a_pure_number_without_massive_activations():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 16, 8, generator=generator)
    student = teacher + 0.1 * torch.randn(4, 16, 8, generator=generator)
    spread = (teacher - teacher.mean((1, 2), keepdim=True)).square().sum((1, 2))
    expected = ((student - teacher).square().sum((1, 2)) / spread).mean()
    torch.testing.assert_close(feature_mismatch(student, teacher), expected)
    torch.testing.assert_close(feature_mismatch(10 * student, 10 * teacher), expected)
    massive, wrong = teacher.clone(), student.clone()
    massive[0, 0, 0], wrong[0, 0, 0] = 1e4, -1e4
    assert feature_mismatch(wrong, massive) > 1
    left_out = feature_mismatch(wrong, massive, massive=6.0)
    kept = torch.ones_like(massive, dtype=torch.bool)
    kept[0, 0, 0] = False
    ratios = [
        (student - teacher)[place][kept[place]].square().sum()
        / (massive[place][kept[place]] - massive[place].mean()).square().sum()
        for place in range(4)
    ]
    torch.testing.assert_close(left_out, torch.stack(ratios).mean())
    halves = [feature_mismatch(student[part], teacher[part], massive=2.0) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(feature_mismatch(student, teacher, massive=2.0), torch.stack(halves).mean())
    assert feature_mismatch(teacher, torch.zeros_like(teacher)).isfinite()


def reaching_blocks(model):
    """The parameters that influence the output of some block."""
    blocks = list(describe(model).blocks)
    with hidden_states(model, blocks) as calls:
        model(**example_inputs(model, 2))
    sum(calls[name][0].returned.sum() for name in blocks).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("build", [unet, dit])
def test_equal_models_have_no_mismatch_and_gradients_reach_the_student_alone(build, inputs):
    teacher, student = build(), build()
    features = FeaturesConfig(teacher_inputs=inputs)
    terms = terms_of(student, teacher, features, labels=build is dit)
    assert terms["features"] == terms["distillation"] == 0
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.05)
    terms = terms_of(student, teacher, features, labels=build is dit)
    terms["features"].backward()
    assert terms["features"] > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    structure = describe(student)
    names = {name for name, _ in student.named_parameters()}
    inside = {name for name in names if structure.owner(name) is not None}
    told = {name for name in names if name.startswith("time_embedding.")}  # what the student tells its blocks
    # With the teacher's inputs nothing before a block answers for what it is given.
    expected = inside | told if inputs else reaching_blocks(build())
    assert {name for name, parameter in student.named_parameters() if parameter.grad is not None} == expected


def test_a_block_that_takes_the_teachers_state_answers_for_itself_alone():
    """After a wrong first block, the second is right for the teacher's state and wrong for its own input."""
    teacher, student = dit(), dit()
    with torch.no_grad():
        student.transformer_blocks[0].ff.net[2].weight.mul_(2)
    only_second = ("transformer_blocks.1",)
    assert terms_of(student, teacher, FeaturesConfig(only_second, teacher_inputs=True), labels=True)["features"] < 1e-10
    assert terms_of(student, teacher, FeaturesConfig(only_second), labels=True)["features"] > 1e-6


def test_a_call_is_repeated_with_another_state():
    model = dit()
    with hidden_states(model, ["transformer_blocks.2"]) as calls:
        output(model)
    (call,) = calls["transformer_blocks.2"]
    torch.testing.assert_close(called_with(model, "transformer_blocks.2", call, call.taken), call.returned)
    assert not torch.equal(called_with(model, "transformer_blocks.2", call, 2 * call.taken), call.returned)


@pytest.mark.slow
def test_it_trains_while_blocks_and_widths_are_removed_and_resumes_to_the_bit(tmp_path):
    config = replace(CONFIG, steps=6, checkpoint_every=2, learning_rate=1e-3)
    pruner = pruner_for(unet(), DiffusionProcess(), "macs=60%", "random", BOTH)
    expected = recover(unet(), DiffusionProcess(), images(), config, tmp_path / "whole", unet(), pruner)
    with pytest.raises(OSError, match=r"^$"):
        recover(unet(), DiffusionProcess(), Failing(5, OSError), config, tmp_path / "cut", unet(), pruner)
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), config, tmp_path / "cut", unet(), pruner))
    records = log(tmp_path / "whole")
    assert all({"denoising", "distillation", "features"} <= set(record) for record in records)
    assert records[0]["features"] < 1e-9 < records[1]["features"]


def test_what_cannot_be_compared_is_named():
    teacher = dit()
    with pytest.raises(TrainingError, match=r"match no block; there are transformer_blocks\.0"):
        terms_of(dit(), teacher, FeaturesConfig(("nothing.*",)), labels=True)
    with pytest.raises(TrainingError, match="has other blocks than the teacher"):
        surviving_blocks(dit(num_layers=2), teacher)


def test_what_cannot_be_compared_is_known_before_the_run():
    asked = {"process": "flow", "objective": "features"}
    nothing = RecoveryConfig(features=FeaturesConfig(("nothing.*",)))
    with pytest.raises(TrainingError, match=r"match no block; there are transformer_blocks\.0"):
        secateur.plan(dit(), target="macs=60%", recovery=nothing, **asked)
    with pytest.raises(TrainingError, match="has other blocks than the teacher"):
        secateur.plan_finetune(dit(num_layers=2), teacher=dit(), data=images(), **asked)


def test_a_users_loss_takes_the_place_of_the_noisy_target(tmp_path):
    samples, times, labels = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.arange(4)
    data = DataLoader(TensorDataset(samples, times, labels), batch_size=2)

    def forward(model, batch):
        return model(batch[0], timestep=batch[1], class_labels=batch[2]).sample

    functions = {"data": data, "forward": forward, "loss": lambda model, batch: 0 * forward(model, batch).mean() + 7}
    recovery = replace(CONFIG, steps=1, batch_size=2, grad_norms_every=0)
    secateur.finetune(dit(), teacher=dit(), recovery=recovery, out=tmp_path, **functions)
    (record,) = log(tmp_path / "recovery")
    assert (record["denoising"], record["distillation"], record["features"]) == pytest.approx((7, 0, 0), abs=1e-9)


# ----------------------------------------------------------------------------------- objectives without noise


@pytest.mark.parametrize("objective", ["distillation", "rms-distillation", "features", "2ndmatch", "first-order"])
def test_a_denoising_weight_of_zero_does_not_compute_the_noisy_target(objective, monkeypatch):
    student, teacher = dit(), dit()
    with torch.no_grad():
        student.proj_out_2.weight.mul_(1.1)
    whole = terms_of(student, teacher, labels=True, objective=objective)
    if objective in ("distillation", "rms-distillation", "features"):
        monkeypatch.setattr(FlowProcess, "target", None)
    changes = {"objective": objective, "weights": {"denoising": 0.0}}
    without = terms_of(student, teacher, labels=True, **changes)
    assert set(without) == set(whole) - {"denoising"}
    for name, value in without.items():
        assert value.item() == whole[name].item(), name
    assert set(build_objective(replace(CONFIG, **changes), teacher).weights) == set(without)


@pytest.mark.slow
def test_another_teacher_gives_the_same_answers_without_the_network(tmp_path):
    """Any `Teacher` with the dense model's answers can replace it."""

    class Answering:
        network = dense = None

        def __init__(self, asked):
            self.asked = LiveTeacher(asked)

        def output(self, x_t, draw, share=None):
            return self.asked.output(x_t, draw, share)

        def growth(self, x_t, draw, share, directions, projection):
            return self.asked.growth(x_t, draw, share, directions, projection)

    for objective in ("distillation", "2ndmatch"):
        config = replace(CONFIG, objective=objective)
        live = recover(dit(), FlowProcess(), images(), config, tmp_path / f"{objective} live", dit(dropout=0.0))
        told = recover(dit(), FlowProcess(), images(), config, tmp_path / f"{objective} told", Answering(dit()))
        assert_same(live, told)
    with pytest.raises(TrainingError, match="its teacher is the dense network, or a book"):
        recover(dit(), FlowProcess(), images(), CONFIG, tmp_path / "features", Answering(dit()))
