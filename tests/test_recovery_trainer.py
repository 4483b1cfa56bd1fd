"""Recovery as a whole: it learns, in mixed precision too, and leaves teacher, model and generator as they were."""

from dataclasses import replace

import pytest
import torch

from models import dit, unet
from secateur.base.errors import TrainingError
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import FeaturesConfig, RecoveryConfig, recover
from training_runs import CONFIG, Failing, assert_same, images, log, smaller


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "process"),
    [
        (unet, DiffusionProcess()),
        (unet, DiffusionProcess({"prediction_type": "v_prediction"})),
        (unet, DiffusionProcess({"prediction_type": "sample"})),
        (dit, FlowProcess()),
        (dit, FlowProcess(convention="sit")),
    ],
)
def test_learning_lowers_the_loss(build, process, tmp_path):
    config = RecoveryConfig(steps=60, batch_size=8, learning_rate=3e-3, log_every=1)
    ema = recover(build(), process, images(), config, tmp_path)
    losses = [record["loss"] for record in log(tmp_path)]
    assert len(losses) == 60
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])
    assert not ema.training


def test_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    model = unet()
    torch.manual_seed(3)
    recover(model, DiffusionProcess(), images(), replace(CONFIG, steps=1), tmp_path)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("objective", ["distillation", "rms-distillation", "2ndmatch", "first-order"])
def test_mixed_precision_and_gradient_checkpointing(objective, tmp_path):
    student, teacher = dit(), dit()
    config = replace(CONFIG, objective=objective, mixed_precision="bf16", steps=2, gradient_checkpointing=True)
    recover(student, FlowProcess(), images(), config, tmp_path, teacher)
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert {"denoising", "distillation", "lr", "grad_norm", "seconds"} <= log(tmp_path)[0].keys()
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])
    assert torch.equal(teacher(x, t, labels).sample, dit()(x, t, labels).sample)  # no autocast is left on it
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("build", [dit, unet])
def test_blocks_that_take_the_teachers_states_run_in_mixed_precision(build, tmp_path):
    """They are called outside the network's forward, which alone is wrapped in it."""
    features = FeaturesConfig(teacher_inputs=True)
    config = replace(CONFIG, objective="features", features=features, mixed_precision="bf16", steps=1)
    recover(build(), FlowProcess(), images(), config, tmp_path, build())
    assert log(tmp_path)[0]["features"] >= 0


def test_jacobian_terms_in_half_precision_are_close(tmp_path):
    for precision in ("no", "bf16"):
        config = replace(CONFIG, objective="2ndmatch", mixed_precision=precision, steps=1, dropout=None)
        recover(dit(), FlowProcess(), images(), config, tmp_path / precision, smaller())
    exact, rough = (log(tmp_path / precision)[0]["jacobian"] for precision in ("no", "bf16"))
    assert rough == pytest.approx(exact, rel=0.2)  # a difference of nearly equal numbers


@pytest.mark.parametrize("objective", ["denoising", "distillation", "2ndmatch"])
def test_the_teacher_does_not_change(objective, tmp_path):
    teacher = dit().train()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(teacher.training))
    recover(dit(), FlowProcess(), images(), replace(CONFIG, objective=objective, steps=2), tmp_path, teacher)
    assert calls == ([] if objective == "denoising" else [False, False])
    assert all(module.training for module in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert_same(teacher, dit())


def test_a_teacher_that_the_objective_does_not_need_is_not_touched(tmp_path):
    teacher = dit()
    teacher.train = teacher.to = None  # neither can be called
    recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=1), tmp_path, teacher)


def test_what_is_returned_can_be_trained_further(tmp_path):
    model = unet()
    model.conv_in.requires_grad_(False)
    ema = recover(model, DiffusionProcess(), images(), replace(CONFIG, steps=1), tmp_path)
    for one, other in zip(ema.parameters(), model.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
    assert ema.conv_out.weight.requires_grad


def test_what_was_frozen_for_a_run_is_free_after_it(tmp_path):
    model = unet()
    model.conv_in.requires_grad_(False)
    config = replace(CONFIG, steps=1, freeze=("*norm*",))
    ema = recover(model, DiffusionProcess(), images(), config, tmp_path)
    for network in (model, ema):
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        assert frozen == {"conv_in.weight", "conv_in.bias"}


def test_mixed_precision_is_taken_off_a_run_that_failed(tmp_path):
    model = dit()
    with pytest.raises(OSError, match=r"^$"):
        recover(model, FlowProcess(), Failing(2, OSError), replace(CONFIG, mixed_precision="bf16"), tmp_path)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])
    plain = dit()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x, t, labels).sample, plain(x, t, labels).sample)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    model = unet()
    recover(model, DiffusionProcess(), images(), CONFIG, tmp_path)
    longer = tmp_path / "longer"
    broken = images()
    broken.images[:] = float("nan")
    with pytest.raises(TrainingError, match=r"diverged at step 1 .*not yet written"):
        recover(model, DiffusionProcess(), broken, CONFIG, longer)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
