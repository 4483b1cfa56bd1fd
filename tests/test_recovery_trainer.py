"""Recovery as a whole: it learns, and interruptions, processes and micro-batches do not change what it learns."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import LoggerType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from models import dit, unet
from progressive_runs import BOTH, QUICK, pruner_for
from secateur.base.errors import SecateurError, TrainingError
from secateur.base.interrupts import Terminated, sigterm_raises
from secateur.data import ArrayDataset
from secateur.models.recomputing import recomputing
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import FeaturesConfig, JacobianConfig, RecoveryConfig, accelerator, draws, recover
from secateur.recovery.accelerator import check_accelerator, own_accelerate
from secateur.recovery.agreement import check_step
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.recovery.layout import lay_out, wants_channels_last
from secateur.recovery.log import cut_log
from secateur.recovery.step import Stepper
from training_runs import TWO, Failing, assert_logs_agree, assert_same, images, log, options_of, smaller, start

CONFIG = RecoveryConfig(
    steps=6, batch_size=4, learning_rate=1e-3, checkpoint_every=2, log_every=1, dropout=0.1, label_dropout=0.5
)


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


@pytest.mark.parametrize("at", [1, 2, 4, 5])
def test_a_run_that_failed_resumes_to_the_bit(at, tmp_path):
    whole, process = dit(), FlowProcess()
    expected = recover(whole, process, images(), CONFIG, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), process, Failing(at, OSError), CONFIG, tmp_path / "cut")
    resumed = dit()
    actual = recover(resumed, process, images(), CONFIG, tmp_path / "cut")
    assert_same(expected, actual)
    assert_same(whole, resumed)
    assert [record["step"] for record in log(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in log(tmp_path / "cut")] == [r["loss"] for r in log(tmp_path / "whole")]


def test_half_precision_goes_in_and_comes_out_and_resumes_to_the_bit(tmp_path):
    expected = recover(dit().bfloat16(), FlowProcess(), images(), CONFIG, tmp_path / "whole")
    assert {tensor.dtype for tensor in expected.state_dict().values()} == {torch.bfloat16}
    with pytest.raises(OSError, match=r"^$"):
        recover(dit().bfloat16(), FlowProcess(), Failing(5, OSError), CONFIG, tmp_path / "cut")
    assert_same(expected, recover(dit().bfloat16(), FlowProcess(), images(), CONFIG, tmp_path / "cut"))
    saved = load_file(newest_checkpoint(tmp_path / "cut") / "ema.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}  # steps are too small for half precision


def test_a_run_resumes_with_more_accumulation_than_it_began_with(tmp_path):
    config = replace(CONFIG, dropout=None)
    whole = recover(dit(), FlowProcess(), images(), config, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(5, OSError), config, tmp_path / "cut")
    again = recover(dit(), FlowProcess(), images(), replace(config, accumulation=2), tmp_path / "cut")
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("torn", ['{"step": 5, "loss": 0.', '{"step": 5, "inner": {"a": 1}'])
def test_a_line_that_was_not_written_whole_is_dropped(torn, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 3}\n{"step": 4}\n' + torn)
    cut_log(path, 3)
    assert path.read_text() == '{"step": 3}\n'
    path.write_text(torn)
    cut_log(path, 3)
    assert path.read_text() == ""


def test_ctrl_c_finishes_the_step_and_keeps_it(tmp_path):
    whole = recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "whole")
    config = replace(CONFIG, checkpoint_every=100)  # settings of what is written may differ
    with pytest.raises(KeyboardInterrupt):
        recover(unet(), DiffusionProcess(), Failing(3, signal.SIGINT), config, tmp_path / "cut")
    assert newest_checkpoint(tmp_path / "cut") is not None
    assert len(log(tmp_path / "cut")) < 6
    assert_same(whole, recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "cut"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_is_not_swallowed(tmp_path, number):
    whole = recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "whole")
    steps = []

    def hook(*_):
        steps.append(1)
        if len(steps) == CONFIG.steps:
            os.kill(os.getpid(), number)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        with sigterm_raises(), pytest.raises((KeyboardInterrupt, Terminated)):
            recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "cut")
    finally:
        handle.remove()
    assert_same(whole, recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "cut"))


def test_processes_that_find_different_checkpoints_are_refused(tmp_path):
    accelerator = SimpleNamespace(device="cpu", gather=lambda own: torch.cat([own, own - own]))
    with pytest.raises(TrainingError, match=r"different checkpoints .*\(process 0 2, process 1 0\)"):
        check_step(accelerator, tmp_path, 2)
    check_step(accelerator, tmp_path, 0)


def test_a_finished_run_is_read_back(tmp_path):
    expected = recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path))
    assert (tmp_path / "log.jsonl").read_text() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]


def test_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    model = unet()
    torch.manual_seed(3)
    recover(model, DiffusionProcess(), images(), replace(CONFIG, steps=1), tmp_path)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(("objective", "accumulation"), [("denoising", 2), ("2ndmatch", 2), ("2ndmatch", 4)])
def test_micro_batches_equal_one_batch(objective, accumulation, tmp_path):
    config = replace(CONFIG, dropout=None, steps=3, objective=objective, **options_of(objective))
    recover(dit(), FlowProcess(), images(), config, tmp_path / "1", smaller())
    recover(dit(), FlowProcess(), images(), replace(config, accumulation=accumulation), tmp_path / "2", smaller())
    assert_logs_agree(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize("objective", ["denoising", "2ndmatch"])
def test_activations_that_are_computed_again_change_nothing(objective, tmp_path):
    config = replace(CONFIG, objective=objective, **options_of(objective))
    student = dit()
    calls = []
    student.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    kept = recover(dit(), FlowProcess(), images(), config, tmp_path / "kept", smaller())
    recomputing = replace(config, gradient_checkpointing=True)
    again = recover(student, FlowProcess(), images(), recomputing, tmp_path / "again", smaller())
    assert_same(kept, again)
    assert len(calls) >= 2 * config.steps  # forward and again backward
    assert not student.is_gradient_checkpointing
    assert not again.is_gradient_checkpointing


def test_activations_that_are_computed_again_already_are_so_in_the_way_of_the_user():
    model, calls = dit().train(), []

    def own(function, *arguments):
        calls.append(function)
        return function(*arguments)

    model.enable_gradient_checkpointing(own)
    for _ in range(2):
        calls.clear()
        with recomputing(model, asked=True):
            model(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
        assert len(calls) == len(model.transformer_blocks)
        assert model.is_gradient_checkpointing


@pytest.mark.slow
def test_channels_last_changes_the_layout_while_training_and_no_result(monkeypatch, tmp_path):
    """As on a GPU, with a cut on the way, a stop, and a teacher."""
    config = replace(CONFIG, objective="distillation", dropout=0.1)
    pruner = pruner_for(unet(), DiffusionProcess(), "macs=60%", "random", BOTH, QUICK)
    expected = recover(unet(), DiffusionProcess(), images(), config, tmp_path / "plain", unet(), pruner)
    monkeypatch.setattr("secateur.recovery.parallel.wants_channels_last", lambda model, device: True)
    student, teacher = unet(), unet()
    found = recover(student, DiffusionProcess(), images(), config, tmp_path / "last", teacher, pruner)
    assert_logs_agree(tmp_path / "plain", tmp_path / "last")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    for model in (found, student, teacher):
        assert all(parameter.is_contiguous() for parameter in model.parameters())
    with pytest.raises(OSError, match=r"^$"):
        recover(unet(), DiffusionProcess(), Failing(5, OSError), config, tmp_path / "cut", unet(), pruner)
    assert_same(found, recover(unet(), DiffusionProcess(), images(), config, tmp_path / "cut", unet(), pruner))


@pytest.mark.slow
def test_compiled_networks_learn_the_same(monkeypatch, tmp_path):
    """Without a code generator: what compilers are given is what counts here."""
    config = replace(CONFIG, objective="distillation", dropout=None, accumulation=2, grad_norms_every=2)
    expected = recover(dit(), FlowProcess(), images(), config, tmp_path / "eager", smaller())
    compiled, graphs = torch.compile, []

    def compile_(model):
        graphs.append(model)
        return compiled(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_)
    student, teacher = dit(), smaller()
    config = replace(config, compile=True)
    found = recover(student, FlowProcess(), images(), config, tmp_path / "compiled", teacher)
    assert graphs == [teacher, student]
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert_logs_agree(tmp_path / "eager", tmp_path / "compiled")
    assert type(found) is type(expected)
    with pytest.raises(
        TrainingError, match="compile is for objectives denoising, distillation, rms-distillation with parallel ddp"
    ):
        recover(dit(), FlowProcess(), images(), replace(config, objective="2ndmatch"), tmp_path / "no", smaller())
    pruner = pruner_for(dit(), FlowProcess(), "macs=70%", "random", BOTH, QUICK)
    with pytest.raises(TrainingError, match="networks that do not change on the way"):
        recover(dit(), FlowProcess(), images(), config, tmp_path / "no", smaller(), pruner)


def test_kernels_of_unets_on_gpus_are_laid_out_channels_last():
    gpu = torch.device("cuda")
    assert wants_channels_last(unet(), gpu)
    assert not wants_channels_last(unet(), torch.device("cpu"))
    assert not wants_channels_last(dit(), gpu)
    model = unet()
    optimizer = torch.optim.AdamW(model.parameters())
    model.conv_in.weight.square().sum().backward()
    optimizer.step()
    lay_out([model], torch.channels_last, optimizer)
    for value in (model.conv_in.weight, optimizer.state[model.conv_in.weight]["exp_avg"]):
        assert value.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unet().conv_out.weight, model.conv_out.weight)


class EightBits(torch.Tensor):
    """As torchao's state of an optimizer, it has a scale for entries in a row, and no other layout."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)

    def dequantize(self):
        return self.codes.float()


def test_moments_of_eight_bits_keep_their_layout():
    model = unet()
    optimizer, codes = torch.optim.SGD(model.parameters()), EightBits(torch.zeros_like(model.conv_in.weight))
    optimizer.state[model.conv_in.weight]["exp_avg"] = codes
    lay_out([model], torch.channels_last, optimizer)
    assert optimizer.state[model.conv_in.weight]["exp_avg"] is codes


@pytest.mark.parametrize("objective", ["distillation", "rms-distillation", "features", "2ndmatch"])
def test_a_step_waits_for_nothing_from_a_device(objective, monkeypatch, tmp_path):
    """Its numbers are read while the next one runs; constants are made on the device, since a copy to it would wait."""
    aten, seen = torch.ops.aten, []
    waits = (aten._local_scalar_dense.default, aten.lift_fresh.default, aten.nonzero.default)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            assert func not in waits
            return func(*args, **(kwargs or {}))

    whole, normal = Stepper.step, draws.normal

    def drawn(*args, **kwargs):
        with _disable_current_modes():  # on the CPU by intent, and copied without waiting
            return normal(*args, **kwargs)

    def watched(stepper, batches, interrupted):
        with Watch() if stepper.state.step else nullcontext():  # in the first step, optimizers begin their state
            return whole(stepper, batches, interrupted)

    monkeypatch.setattr("secateur.recovery.step.runs_asynchronously", lambda device: True)
    monkeypatch.setattr(draws, "normal", drawn)
    monkeypatch.setattr(Stepper, "step", watched)
    changes = {"objective": objective, "grad_norms_every": 0, "jacobian": JacobianConfig(every_n_samples=2)}
    recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=3, **changes), tmp_path, smaller())
    assert aten.addmm.default in seen


def test_a_model_without_gradient_checkpointing_is_refused(tmp_path):
    student = dit()
    student._supports_gradient_checkpointing = False
    with pytest.raises(TrainingError, match=r"^DiTTransformer2DModel has no gradient checkpointing; .*accumulation"):
        recover(student, FlowProcess(), images(), replace(CONFIG, gradient_checkpointing=True), tmp_path)


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


def test_tied_weights_resume_to_the_bit(tmp_path):
    def tied() -> nn.Module:
        first, second = (model := dit()).transformer_blocks[:2]
        second.ff.net[2].weight = first.ff.net[2].weight
        return model

    config = replace(CONFIG, steps=3, checkpoint_every=1)
    expected = recover(tied(), FlowProcess(), images(), config, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(tied(), FlowProcess(), Failing(3, OSError), config, tmp_path / "cut")
    actual = recover(tied(), FlowProcess(), images(), config, tmp_path / "cut")
    assert_same(expected, actual)
    first, second = actual.transformer_blocks[:2]
    assert first.ff.net[2].weight is second.ff.net[2].weight


def test_mixed_precision_is_taken_off_a_run_that_failed(tmp_path):
    model = dit()
    with pytest.raises(OSError, match=r"^$"):
        recover(model, FlowProcess(), Failing(2, OSError), replace(CONFIG, mixed_precision="bf16"), tmp_path)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])
    plain = dit()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x, t, labels).sample, plain(x, t, labels).sample)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_stays_on_the_device_of_the_model(tmp_path):
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    for device in (torch.device("cpu"), last, torch.device("cpu")):
        config = replace(CONFIG, steps=2, objective="distillation")
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        ema = recover(dit().to(device), FlowProcess(), images(), config, folder, dit().to(device))
        assert {parameter.device for parameter in ema.parameters()} == {device}


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=2), tmp_path / "plain")
    model = dit()
    model.enable_gradient_checkpointing()
    assert_same(plain, recover(model, FlowProcess(), images(), replace(CONFIG, steps=2), tmp_path / "saving"))


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    model = unet()
    recover(model, DiffusionProcess(), images(), CONFIG, tmp_path)
    longer = tmp_path / "longer"
    broken = images()
    broken.images[:] = float("nan")
    with pytest.raises(TrainingError, match=r"diverged at step 1 .*not yet written"):
        recover(model, DiffusionProcess(), broken, CONFIG, longer)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_another_config_data_or_model_is_refused(tmp_path):
    recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="seed 0 there, 1 here"):
        recover(unet(), DiffusionProcess(), images(), replace(CONFIG, seed=1), tmp_path)
    fewer = replace(images(), images=images().images[:5], labels=None)
    with pytest.raises(TrainingError, match="5 images"):
        recover(unet(), DiffusionProcess(), fewer, CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="does not fit this model"):
        recover(dit(), DiffusionProcess(), images(), CONFIG, tmp_path)


def edit_state(change):
    """A function that changes `state.json` in a checkpoint."""

    def edit(checkpoint: Path) -> None:
        path = checkpoint / "state.json"
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return edit


def rename_moments(old: str, new: str):
    """A function that renames what Adam remembers in a checkpoint."""

    def edit(checkpoint: Path) -> None:
        path = checkpoint / "optimizer.safetensors"
        save_file({key.replace(old, new): value for key, value in load_file(path).items()}, path)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda checkpoint: (checkpoint / "state.json").write_text("{"), "damaged"),
        (lambda checkpoint: (checkpoint / "state.json").write_text("[]"), "damaged"),
        (lambda checkpoint: (checkpoint / "state.json").unlink(), "damaged"),
        (lambda checkpoint: (checkpoint / "ema.safetensors").write_bytes(b"no"), "damaged"),
        (edit_state(lambda state: state.pop("settings")), "damaged"),
        (edit_state(lambda state: state.update(settings=None)), "damaged"),
        (edit_state(lambda state: state.pop("step")), "damaged"),
        (rename_moments("conv_in.", "conv_none."), "damaged"),
        (rename_moments("exp_avg_sq", "exp_avg_cube"), "damaged"),
        (rename_moments("conv_in.bias", "conv_out.bias.bias"), "damaged"),
    ],
)
def test_damaged_checkpoints_are_refused(damage, message, tmp_path):
    recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path)
    damage(newest_checkpoint(tmp_path))
    with pytest.raises(TrainingError, match=message) as raised:
        recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["foo", "aim"])
def test_missing_trackers_are_named(name, monkeypatch, tmp_path):
    monkeypatch.setattr("secateur.recovery.accelerator.get_available_trackers", lambda: [LoggerType.WANDB])
    with pytest.raises(TrainingError, match=f"tracker '{name}' is unknown or not installed; installed: wandb"):
        recover(unet(), DiffusionProcess(), images(), replace(CONFIG, report_to=("wandb", name)), tmp_path)


def test_a_tracker_that_cannot_be_imported_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("secateur.recovery.accelerator.get_available_trackers", lambda: [LoggerType.WANDB])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match=r"tracker 'wandb' cannot be imported: .*; install it again"):
        recover(unet(), DiffusionProcess(), images(), replace(CONFIG, report_to=("wandb",)), tmp_path)


def test_batches_that_do_not_divide_are_refused(monkeypatch, tmp_path):
    with pytest.raises(
        SecateurError, match="batch_size is 4, which is not divisible by accumulation 3; give a multiple"
    ):
        replace(CONFIG, accumulation=3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="3 processes x accumulation 2; use a multiple of 6"):
        check_accelerator(replace(CONFIG, accumulation=2), torch.device("cpu"))
    thinned = replace(CONFIG, jacobian=JacobianConfig(every_n_samples=3))
    check_accelerator(replace(thinned, batch_size=18, accumulation=2), torch.device("cpu"))
    with pytest.raises(TrainingError, match="every_n_samples 3 does not divide micro-batches of 2 images"):
        check_accelerator(replace(thinned, batch_size=12, accumulation=2), torch.device("cpu"))


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_launcher_that_shards_the_model_is_refused(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(TrainingError, match=f"does not run on accelerate's {kind.name}"):
        recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path)


def test_running_out_of_memory_says_what_to_do(tmp_path):
    class Large(nn.Module):
        config: ClassVar[dict[str, int]] = {}

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
            return (torch.empty(10**15) * self.weight,)

    with pytest.raises(TrainingError, match="raise the accumulation and run again, or lower the batch size"):
        recover(Large(), DiffusionProcess(), images(), CONFIG, tmp_path)


# ------------------------------------------------------------------------------------------- other processes

SCRIPT = """
import sys
import torch
from dataclasses import replace
from models import dit
from secateur.process.flow import FlowProcess
from secateur.recovery import recover
from test_recovery_trainer import CONFIG
from training_runs import images, options_of, smaller
torch.set_num_threads(1)
config = replace(CONFIG, steps=int(sys.argv[2]), dropout=None, objective=sys.argv[3], **options_of(sys.argv[3]))
recover(dit(), FlowProcess(), images(), config, sys.argv[1], smaller())
"""


def train(folder: Path, steps: int, objective: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    return start(folder.with_suffix(".py"), SCRIPT, folder, steps, objective, launcher=launcher)


@pytest.mark.parametrize(
    "kills", [pytest.param((120,), marks=pytest.mark.slow), pytest.param((5, 120, 250), marks=pytest.mark.torture)]
)
def test_a_killed_run_resumes_to_the_bit(kills, tmp_path):
    assert train(tmp_path / "whole", 400, "denoising").wait() == 0
    for lines in kills:
        run = train(tmp_path / "cut", 400, "denoising")
        text = tmp_path / "cut" / "log.jsonl"
        while run.poll() is None and not (text.exists() and text.read_text().count("\n") > lines):
            time.sleep(0.002)
        run.kill()
        run.wait()
    assert len(log(tmp_path / "cut")) < 400
    assert train(tmp_path / "cut", 400, "denoising").wait() == 0
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (newest_checkpoint(tmp_path / run) / name for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    assert [record["step"] for record in log(tmp_path / "cut")] == list(range(1, 401))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoising", pytest.param("2ndmatch", marks=pytest.mark.torture)])
def test_two_processes_equal_one(objective, tmp_path):
    assert train(tmp_path / "one", 5, objective).wait() == 0
    assert train(tmp_path / "two", 5, objective, launcher=TWO).wait() == 0
    assert_logs_agree(tmp_path / "one", tmp_path / "two")


# ------------------------------------------------------------------------------------------- the environment


def test_settings_of_other_programs_are_not_ours(monkeypatch, tmp_path):
    """accelerate would divide gradients by its accumulation, and compile the model for its dynamo backend."""
    expected = recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path / "without")
    others = {"GRADIENT_ACCUMULATION_STEPS": "4", "DYNAMO_BACKEND": "inductor", "MIXED_PRECISION": "bf16"}
    for name, value in others.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path / "with"))
    assert log(tmp_path / "with")[0]["grad_norm"] == log(tmp_path / "without")[0]["grad_norm"]
    assert all(os.environ[f"ACCELERATE_{name}"] == value for name, value in others.items())


def test_a_precision_that_the_device_chooses_is_said(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(accelerator, "precision_on", lambda config, device: "bf16")
    with own_accelerate():
        made = accelerator.make_accelerator(CONFIG, tmp_path, torch.device("cpu"))
        assert made.mixed_precision == "bf16"
    assert "passes run in bf16, which this device has; --recovery.mixed-precision no turns it off" in caplog.text


@pytest.fixture
def matmul():
    """torch's switch for matrix products, which is put back."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    yield switch
    switch.fp32_precision = before


LITERAL, BY_DEFAULT, IN_TF32 = ("ieee", "ieee"), ("none", "tf32"), ("tf32", "tf32")  # products and convolutions


@pytest.mark.parametrize(
    ("precision", "dtype", "switched", "expected"),
    [
        ("no", torch.float32, None, IN_TF32),
        ("float32", torch.float32, None, LITERAL),
        ("bf16", torch.float32, None, BY_DEFAULT),
        ("no", torch.float64, None, BY_DEFAULT),
        ("no", torch.float32, "ieee", ("ieee", "tf32")),  # by the user
    ],
)
def test_float32_is_trained_in_tf32_where_the_device_has_it(
    precision, dtype, switched, expected, matmul, monkeypatch, caplog, tmp_path
):
    """The CPU passes for such a device, whose switches are there on all machines."""
    monkeypatch.setattr(accelerator, "has_tf32", lambda device: True)
    conv = torch.backends.cudnn.conv
    steps, around = set(), set()

    def note_switches(*_):
        steps.add((matmul.fp32_precision, conv.fp32_precision))

    def validate(average, step):
        around.add((matmul.fp32_precision, conv.fp32_precision))
        return torch.zeros(1, 1, 8, 8)

    model, teacher = dit().to(dtype), smaller().to(dtype)
    teacher.register_forward_hook(note_switches)
    model.proj_out_1.weight.register_hook(note_switches)
    config = replace(CONFIG, steps=1, mixed_precision=precision, objective="distillation", validation_every=1)
    if switched:
        matmul.fp32_precision = switched
    recover(model, FlowProcess(), images(), config, tmp_path, teacher, validate=validate)
    assert steps == {expected}
    assert around == {(matmul.fp32_precision, conv.fp32_precision)} == {(switched or "none", "tf32")}
    said = "passes run in TF32, which this device has; --recovery.mixed-precision float32 turns it off"
    assert (said in caplog.text) == (expected == IN_TF32)


def test_a_device_without_tf32_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    config = replace(CONFIG, mixed_precision="no")
    for device in ("cpu", "cuda"):
        with accelerator.products_on(config, torch.device(device), torch.float32)():
            assert torch.backends.cuda.matmul.fp32_precision == "none"
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    with accelerator.products_on(config, torch.device("cuda"), torch.float32)():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_an_environment_that_shards_the_model_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.setenv(name, "true")
    with pytest.raises(TrainingError, match=f"{name} is set"):
        recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path)


def test_the_thread_that_draws_has_no_pool_of_its_own(tmp_path):
    class Watched(ArrayDataset):
        def batch(self, indices):
            if threading.current_thread() is not threading.main_thread():
                seen.add(torch.get_num_threads())
            return super().batch(indices)

    seen, before = set(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        recover(unet(), DiffusionProcess(), Watched(**vars(images())), replace(CONFIG, steps=2), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}
