"""Memory that recovery takes on a device, counted on tensors without data, and settings that make it fit.

Weights, average and moments follow from shapes. Passes are counted by running one: forward and backward of a
micro-batch of the objective, including second derivatives and the teacher's pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from ..base.console import note
from ..base.devices import device_memory
from ..base.distributed import process_count
from ..base.errors import TrainingError
from ..base.units import format_count
from ..models.network import device_of, example_batch
from ..process.base import Process
from ..process.own import OwnObjective
from ..structure.cost import skeleton
from ..structure.memory import LiveBytes
from ..teacher import Draw, Teacher
from .accelerator import precision_on
from .config import RecoveryConfig
from .objectives import Objective
from .objectives.build import build_objective
from .optimizers import is_matrix
from .quantized import BLOCK, SMALLEST
from .shards import block_names, replace_parameters
from .student import make_ready, silence_dropout, trained_dtype

SHARE = 0.95  # share of a device's memory that may be used; the allocator needs the rest
TRIES = ("offload", "gradient_checkpointing", "accumulation")


@dataclass(frozen=True)
class RecoveryMemory:
    """Peak bytes of a recovery on one device.

    Attributes:
        weights: the student's weights, or its shard of them and what is gathered for a pass.
        average: the moving average.
        moments: the optimizer's state.
        teacher: the dense model.
        passes: gradients, and what the forward and backward pass of a micro-batch keep.
    """

    weights: int
    average: int
    moments: int
    teacher: int
    passes: int

    @property
    def total(self) -> int:
        return self.weights + self.average + self.moments + self.teacher + self.passes

    def __str__(self) -> str:
        parts = {name: value for name, value in vars(self).items() if value}
        return f"{format_count(self.total)}B: " + ", ".join(f"{name} {format_count(v)}B" for name, v in parts.items())

    __repr__ = __str__


def recovery_memory(
    model: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    config: RecoveryConfig,
    device: torch.device | None = None,
    processes: int | None = None,
) -> RecoveryMemory:
    """Count the memory of `recover` on each device; models may be on the meta device.

    Args:
        model: the student, or the dense model as an upper bound.
        teacher: the dense model, if the objective needs it.
        process: how the model was trained; passes of a user's own functions cannot be counted.
        config: settings of the recovery.
        device: the device to count for, by default the model's: mixed precision depends on it.
        processes: number of processes, by default the launcher's.
    """
    device, processes = device or device_of(model), process_count() if processes is None else processes
    objective = build_objective(config, teacher)
    dense = teacher if objective.needs_teacher and isinstance(teacher, nn.Module) else None
    micro = max(1, config.batch_size // (config.accumulation * processes))
    shards = config.parallel != "ddp" and processes > 1
    sample, conditions = example_batch(model, micro) if device_of(model).type != "meta" else _examples(model, micro)
    ready, dtype = skeleton(model), trained_dtype(model, config)
    replace_parameters(ready, lambda name, parameter: torch.empty_like(parameter, dtype=dtype))
    make_ready(ready, config, torch.device("meta"))
    silence_dropout(ready, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        student = skeleton(ready, "cpu")
        taught_by = None if dense is None else skeleton(dense, "cpu").eval()
        if config.gradient_checkpointing:
            student.enable_gradient_checkpointing()  # type: ignore[operator]
        draw = _draw(process, sample, conditions, config)
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        frees = [parameter.register_post_accumulate_grad_hook(_free) for parameter in trained] if shards else []
        autocast = torch.autocast("cpu", torch.bfloat16) if precision_on(config, device) == "bf16" else nullcontext()
        networks = [each for each in (student, taught_by) if each is not None]
        held = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        with LiveBytes(held) as live, autocast:
            for _ in range(min(config.accumulation, 2)):
                _pass(objective, student, taught_by, process, draw)
        for handle in frees:
            handle.remove()
        return _together(student, taught_by, objective, config, live.peak, processes if shards else 1)


def _together(
    student: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    config: RecoveryConfig,
    passes: int,
    shards: int,
) -> RecoveryMemory:
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    weights, gradients = _bytes(student.parameters()), _bytes(trained.values())
    average = sum(4 * parameter.numel() for parameter in trained.values())
    dense = 0 if teacher is None else _bytes(teacher.parameters())
    visiting = 0 if teacher is None else _largest_block(teacher)
    if "teacher" in config.offload:
        dense = visiting
    elif shards > 1:
        dense = dense // shards + (dense if objective.differentiates_twice else visiting)
    if shards > 1:
        passes += gradients // shards
        gathered = weights if objective.differentiates_twice else 2 * _largest_block(student)
        weights = weights // shards + gathered
    return RecoveryMemory(
        weights=weights,
        average=0 if "ema" in config.offload else average // shards,
        moments=sum(_remembered(config, name, parameter) for name, parameter in trained.items()) // shards,
        teacher=dense,
        passes=passes,
    )


def affordable(
    model: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    config: RecoveryConfig,
    device: torch.device,
) -> RecoveryConfig:
    """`config` with changes that make it fit on `device` without changing the result: offload, checkpointing,
    accumulation.

    Raises:
        TrainingError: it does not fit even so; the message says what would help.
    """
    if config.memory == "given" or isinstance(process, OwnObjective):
        return config
    available = int(SHARE * device_memory(device))
    for chosen in _cheaper(model, teacher, config, device):
        taken = recovery_memory(model, teacher, process, chosen, device)
        if taken.total <= available:
            changes = {name: getattr(chosen, name) for name in TRIES if getattr(chosen, name) != getattr(config, name)}
            said = ", ".join(f"{name} {value}" for name, value in changes.items()) or "nothing"
            note(f"recovery: takes {taken}, of {format_count(available)}B; memory auto changed {said}")
            return chosen
    raise TrainingError(
        f"recovery takes {taken}, and {device} has {format_count(available)}B for it; give recovery.weight_precision "
        "bf16, recovery.optimizer adamw8bit or adafactor, a recovery.lora.rank, or recovery.parallel fsdp on several "
        "devices"
    )


def _cheaper(
    model: nn.Module, teacher: nn.Module | Teacher | None, config: RecoveryConfig, device: torch.device
) -> Iterator[RecoveryConfig]:
    """Configs in order of falling memory and rising time."""
    yield config
    if device.type != "cpu":
        for offload in (("ema",), ("ema", "teacher")):
            config = replace(config, offload=tuple({*config.offload, *offload}))
            yield config
    if getattr(model, "_supports_gradient_checkpointing", False):
        config = replace(config, gradient_checkpointing=True)
        yield config
    share = config.batch_size // process_count()
    for accumulation in range(config.accumulation + 1, share + 1):
        if share % accumulation == 0 and (share // accumulation) % config.jacobian.every_n_samples == 0:
            yield replace(config, accumulation=accumulation)


def _pass(objective: Objective, student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw) -> None:
    with objective.context(student, teacher):
        objective.loss(objective.terms(student, teacher, process, draw, objective.jacobian)).backward()


def _free(parameter: Tensor) -> None:
    parameter.grad = None


def _draw(process: Process, sample: Tensor, conditions: Mapping[str, Tensor], config: RecoveryConfig) -> Draw:
    """A micro-batch without data, inside a fake tensor mode."""

    def hollow(value: Tensor) -> Tensor:
        dtype = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
        return torch.empty_like(value, device="cpu", dtype=dtype)

    images = hollow(sample)
    times = hollow(process.timesteps(torch.zeros(len(sample))))
    hollow_conditions = tree_map_only(Tensor, hollow, dict(conditions))
    return Draw(images, torch.empty_like(images), times, hollow_conditions, partial(_like, images))


def _like(images: Tensor, k: int) -> Tensor:
    return torch.empty_like(images)


def _examples(model: nn.Module, count: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    """As `example_batch`, for a model on the meta device."""
    with torch.device("meta"):
        return example_batch(model, count)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in parameters)


def _largest_block(model: nn.Module) -> int:
    """Bytes of the largest block; of the whole model if there are no blocks."""
    names = block_names(model)
    return max((_bytes(model.get_submodule(name).parameters()) for name in names), default=_bytes(model.parameters()))


def _remembered(config: RecoveryConfig, name: str, parameter: Tensor) -> int:
    """Bytes of the optimizer's state for a parameter."""
    entries, itemsize = parameter.numel(), max(4, parameter.element_size())
    if config.optimizer == "adamw8bit" and entries >= SMALLEST and entries % BLOCK == 0:
        return 2 * (entries + 4 * entries // BLOCK)
    if config.optimizer == "adafactor" and parameter.ndim > 1:
        return itemsize * (entries // parameter.shape[-1] + entries // parameter.shape[-2])
    if config.optimizer == "adafactor" or (config.optimizer == "muon" and is_matrix(name, parameter)):
        return itemsize * entries
    return 2 * itemsize * entries
