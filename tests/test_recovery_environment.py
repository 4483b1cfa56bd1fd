"""What a recovery takes of its environment: launchers, trackers, precision, memory, devices and threads."""

import os
import sys
import threading
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import LoggerType
from torch import nn

from models import dit, unet
from secateur.base.errors import SecateurError, TrainingError
from secateur.data import ArrayDataset
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, accelerator, recover
from secateur.recovery.accelerator import check_accelerator, own_accelerate
from training_runs import CONFIG, assert_same, images, log, smaller


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_stays_on_the_device_of_the_model(tmp_path):
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    for device in (torch.device("cpu"), last, torch.device("cpu")):
        config = replace(CONFIG, steps=2, objective="distillation")
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        ema = recover(dit().to(device), FlowProcess(), images(), config, folder, dit().to(device))
        assert {parameter.device for parameter in ema.parameters()} == {device}


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
