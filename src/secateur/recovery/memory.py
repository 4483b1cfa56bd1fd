"""Memory that recovery takes on a device, counted on tensors without data, and settings that make it fit.

Weights, average and moments follow from shapes. Passes are counted by running one: forward and backward of a
micro-batch of the objective, including second derivatives and the teacher's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from ..base.console import note, quiet
from ..base.devices import device_memory, has_own_memory
from ..base.distributed import process_count
from ..base.errors import TrainingError
from ..base.units import format_count
from ..criteria.memory import peak_of_batch, without_values
from ..models.conditions import Conditions
from ..models.network import device_of, example_batch, example_inputs, input_shape
from ..models.precision import dtype_of
from ..models.recomputing import can_recompute
from ..models.registry import describe
from ..process.base import Process
from ..process.own import OwnObjective, taken_apart
from ..structure import Structure
from ..structure.cost import skeleton
from ..structure.known_values import without_memory
from ..structure.memory import LiveBytes
from ..structure.repeats import Repeats, left_out, once
from ..teacher import Draw, Teacher
from .accelerator import precision_on
from .config import RecoveryConfig
from .objectives import Objective
from .objectives.build import build_objective
from .optimizers import matrix_names
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
    by_book: bool = False,
) -> RecoveryMemory:
    """Count the memory of `recover` on each device; models may be on the meta device.

    Args:
        model: the student, or the dense model as an upper bound.
        teacher: the dense model, if the objective needs it; a book takes no memory on the device.
        process: how the model was trained; a user's own loss is counted as the mean square of the network's outputs.
        config: settings of the recovery.
        device: the device to count for, by default the model's: mixed precision depends on it.
        processes: number of processes, by default the launcher's.
        by_book: the teacher is only the origin of a book, and not on the device.
    """
    device, processes = device or device_of(model), process_count() if processes is None else processes
    objective = build_objective(config, teacher)
    dense = teacher if isinstance(teacher, nn.Module) else model  # a book's answers are like those of a network
    micro = max(1, config.batch_size // (config.accumulation * processes))
    ready, dtype = skeleton(model), trained_dtype(model, config)
    replace_parameters(ready, lambda name, parameter: torch.empty_like(parameter, dtype=dtype))
    make_ready(ready, config, torch.device("meta"))
    silence_dropout(ready, config)
    # Of blocks that are computed again there is one at a time, so that none stands for the others.
    each_block = objective.differentiates_twice or objective.compares_blocks or config.gradient_checkpointing
    structures = [Structure({}, {}) if each_block else describe(network) for network in (model, dense)]
    halves = precision_on(config, device) != "no"

    def passes(samples: int) -> int:
        """Peak bytes of passes of that many samples, beside the weights of both networks."""
        noised, sample, conditions = _batch(model, process, samples)
        with FakeTensorMode(allow_non_fake_inputs=True), without_memory():
            student = skeleton(ready, "cpu")
            taught_by = skeleton(dense, "cpu").eval().requires_grad_(False) if objective.needs_teacher else None
            if config.gradient_checkpointing:
                student.enable_gradient_checkpointing()  # type: ignore[operator]
            draw = _draw(noised, sample, conditions)
            for parameter in student.parameters():
                if parameter.requires_grad and processes > 1:  # they sum gradients in buffers of their own
                    parameter.register_post_accumulate_grad_hook(_free)
            networks = [each for each in (student, taught_by) if each is not None]
            if halves:
                for network in networks:
                    vars(network)["forward"] = torch.autocast("cpu", torch.bfloat16)(network.forward)
            return _peak(
                dict(zip(networks, structures, strict=False)),
                partial(_passes, config, objective, student, taught_by, noised, draw),
            )

    peak = peak_of_batch(model, passes, micro)
    shards = processes if config.parallel != "ddp" else 1
    summed = _bytes(each for each in ready.parameters() if each.requires_grad) // shards if processes > 1 else 0
    held = teacher if objective.needs_teacher and isinstance(teacher, nn.Module) and not by_book else None
    return _together(ready, held, objective, config, peak + summed, shards, halves)


def _together(
    student: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    config: RecoveryConfig,
    passes: int,
    shards: int,
    halves: bool,
) -> RecoveryMemory:
    """`halves`: shards are gathered in half precision."""
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    weights = _bytes(_tensors(student))
    average = _bytes(student.buffers()) + sum(_averaged(parameter) for parameter in student.parameters())
    dense = 0 if teacher is None else _bytes(_tensors(teacher))
    twice = objective.differentiates_twice
    if teacher is not None and "teacher" in config.offload:
        dense = _visiting(teacher)
    elif teacher is not None and shards > 1:
        dense = dense // shards + _gathered(teacher, twice, halves)
    if shards > 1:
        weights = weights // shards + _gathered(student, twice, halves)
    by_muon = matrix_names(student)
    return RecoveryMemory(
        weights=weights,
        average=0 if "ema" in config.offload else average // shards,
        moments=sum(_remembered(config, each, name in by_muon) for name, each in trained.items()) // shards,
        teacher=dense,
        passes=passes,
    )


def affordable(
    model: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    config: RecoveryConfig,
    device: torch.device,
    by_book: bool = False,
) -> RecoveryConfig:
    """`config` with changes that make it fit on `device` without changing the result: offload, checkpointing,
    accumulation.

    Raises:
        TrainingError: it does not fit even so; the message says what would help.
    """
    if config.memory == "given":
        return config
    available = _available(device)
    for chosen in _cheaper(model, teacher, config, device):
        taken = recovery_memory(model, teacher, process, chosen, device, by_book=by_book)
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


def reason_for_book(
    model: nn.Module, teacher: nn.Module, process: Process, config: RecoveryConfig, device: torch.device
) -> str | None:
    """Why the teacher's answers should be recorded before the recovery: beside the network itself it would not fit on
    `device`.

    None if it fits, or if the recovery would not fit without the network either, unless memory is auto.

    Raises:
        TrainingError: memory is auto, and nothing that it changes makes the recovery fit.
    """
    asks = build_objective(config, teacher).needs_teacher and not isinstance(process, OwnObjective)
    small = _bytes(_tensors(teacher)) <= (1 - SHARE) * device_memory(device)  # less than the count leaves free
    if not asks or small or "teacher" in config.offload:
        return None
    taken, available = recovery_memory(model, teacher, process, config, device), _available(device)
    if taken.total <= available:
        return None
    if config.memory == "given" and taken.total - taken.teacher > available:
        return None
    with quiet(True):
        affordable(model, teacher, process, config, device, by_book=True)
    return f"with the teacher, recovery takes {taken}, and {device} has {format_count(available)}B for it"


def _available(device: torch.device) -> int:
    return int(SHARE * device_memory(device))


def _cheaper(
    model: nn.Module, teacher: nn.Module | Teacher | None, config: RecoveryConfig, device: torch.device
) -> Iterator[RecoveryConfig]:
    """Configs in order of falling memory and rising time."""
    yield config
    if has_own_memory(device):
        for offload in (("ema",), ("ema", "teacher")):
            config = replace(config, offload=tuple({*config.offload, *offload}))
            yield config
    if can_recompute(model):
        config = replace(config, gradient_checkpointing=True)
        yield config
    share = config.batch_size // process_count()
    for accumulation in range(config.accumulation + 1, share + 1):
        if share % accumulation == 0 and (share // accumulation) % config.jacobian.every_n_samples == 0:
            yield replace(config, accumulation=accumulation)


def _peak(structures: Mapping[nn.Module, Structure], passes: Callable[[], object], *found: Repeats) -> int:
    """Peak bytes of `passes`, beside the weights of the networks; of equal blocks, few are run."""
    networks = list(structures)
    if len(found) < len(networks):
        network = networks[len(found)]
        return once(network, structures[network], lambda each: _peak(structures, passes, *found, each))
    with LiveBytes([tensor for network in networks for tensor in _tensors(network)]) as live, ExitStack() as stack:
        for network, each in zip(networks, found, strict=True):
            stack.enter_context(left_out(network, structures[network], each, live))
        passes()
    return live.peak


def _passes(
    config: RecoveryConfig,
    objective: Objective,
    student: nn.Module,
    teacher: nn.Module | None,
    process: Process,
    draw: Draw,
) -> None:
    student.zero_grad(set_to_none=True)
    for _ in range(min(config.accumulation, 2)):
        with objective.context():
            objective.loss(objective.terms(student, teacher, process, draw, objective.jacobian)).backward()


def _free(parameter: Tensor) -> None:
    parameter.grad = None


def _batch(model: nn.Module, process: Process, samples: int) -> tuple[Process, Tensor, Conditions]:
    """A micro-batch, and the process that noises it."""
    if isinstance(process, OwnObjective):
        return _mean_square(model, samples)
    taken, conditions = example_batch(model, samples)
    return process, taken.new_empty(samples, *input_shape(model)), conditions  # of a decoder: images, not latents


def _draw(process: Process, sample: Tensor, conditions: Mapping[str, Tensor]) -> Draw:
    """A micro-batch without data, inside a fake tensor mode."""
    images = without_values({"sample": sample}, torch.promote_types(sample.dtype, torch.float32))["sample"]
    times = torch.empty_like(process.timesteps(torch.zeros(len(sample))))
    empty = without_values(conditions, images.dtype)
    return Draw(images, torch.empty_like(images), times, empty, partial(_like, images))


def _like(images: Tensor, k: int) -> Tensor:
    return torch.empty_like(images)


def _mean_square(model: nn.Module, count: int) -> tuple[Process, Tensor, Conditions]:
    """A process whose loss is the mean square of the outputs for example inputs, and a batch for it."""
    inputs = example_inputs(model, count)

    def output(network: nn.Module, batch: Tensor) -> Tensor:
        found = tree_leaves(network(**without_values(inputs, dtype_of(network))))
        return torch.cat([each.flatten() for each in found if isinstance(each, Tensor)])

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return output(network, batch).float().square().mean()

    conditions, layout = taken_apart(torch.zeros(count))
    return cast(Process, OwnObjective(output, loss, layout)), torch.zeros(count, 1), conditions


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in parameters)


def _averaged(parameter: Tensor) -> int:
    """Bytes of the average of a weight, in at least float32; one that is not trained is shared if it has that."""
    is_shared = not parameter.requires_grad and parameter.itemsize >= 4
    return 0 if is_shared else parameter.numel() * max(4, parameter.itemsize)


def _visiting(model: nn.Module) -> int:
    """Bytes of weights on the device while blocks visit it: those outside of blocks, a block, and the next one."""
    names = block_names(model)
    blocks = [_bytes(model.get_submodule(name).parameters()) for name in names]
    inside = {id(each) for name in names for each in model.get_submodule(name).parameters()}
    outside = _bytes(each for each in model.parameters() if id(each) not in inside)
    return outside + 2 * max(blocks, default=0)


def _gathered(model: nn.Module, everything: bool, halves: bool) -> int:
    """Bytes of whole weights while a pass runs over shards: `everything`; or what is outside of blocks, a block with
    what is around it, and the next one on its way."""

    def size(parameters: Iterable[Tensor]) -> int:
        return sum(each.numel() * (min(2, each.itemsize) if halves else each.itemsize) for each in parameters)

    if everything:
        return size(model.parameters())
    own: dict[str, int] = {}  # without those of inner blocks, which come first
    left = {id(each): each for each in model.parameters()}
    for name in block_names(model):
        inside = [left.pop(id(each)) for each in model.get_submodule(name).parameters() if id(each) in left]
        own[name] = size(inside)
    around = [sum(held for other, held in own.items() if f"{name}.".startswith(f"{other}.")) for name in own]
    return size(left.values()) + max(around, default=0) + max(own.values(), default=0)


def _remembered(config: RecoveryConfig, parameter: Tensor, by_muon: bool) -> int:
    """Bytes of the optimizer's state for a parameter."""
    entries, itemsize = parameter.numel(), max(4, parameter.element_size())
    if config.optimizer == "adamw8bit" and entries >= SMALLEST and entries % BLOCK == 0:
        return 2 * (entries + 4 * entries // BLOCK)
    if config.optimizer == "adafactor" and parameter.ndim > 1:
        return itemsize * (entries // parameter.shape[-1] + entries // parameter.shape[-2])
    if config.optimizer == "adafactor" or (config.optimizer == "muon" and by_muon):
        return itemsize * entries
    return 2 * itemsize * entries
