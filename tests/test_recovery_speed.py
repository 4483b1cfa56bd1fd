"""What makes a recovery faster or smaller does not change what it learns: activations, layouts, compilers, devices."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from models import dit, unet
from progressive_runs import BOTH, QUICK, pruner_for
from secateur.base.errors import TrainingError
from secateur.models.recomputing import recomputing
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, draws, recover
from secateur.recovery.layout import lay_out, wants_channels_last
from secateur.recovery.step import Stepper
from training_runs import CONFIG, Failing, assert_logs_agree, assert_same, images, options_of, smaller


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


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=2), tmp_path / "plain")
    model = dit()
    model.enable_gradient_checkpointing()
    assert_same(plain, recover(model, FlowProcess(), images(), replace(CONFIG, steps=2), tmp_path / "saving"))
