"""How a run's weights are distributed over the processes of a launcher: replicas (DDP), or shards (FSDP2).

Both offer the same interface: a `student` to train, an average to update, and the whole model of the state, which is
cut, written and returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import get_total_norm
from torch.utils.hooks import RemovableHandle

from ..base.shards import reshard, whole
from ..models.precision import stays_whole
from ..teacher import Teacher
from .balance import norm, summed_gradient
from .checkpoints import TrainingState
from .config import RecoveryConfig
from .ema import Ema
from .layout import lay_out, wants_channels_last
from .offload import visiting
from .shard_files import join_shards, joined
from .shards import block_names, empty, exchange, fill, mesh_over, replace_parameters, shard_like, sharded

AVERAGE = "average"  # folder of the averaged weights of a sharded run, until they are saved as a model


class Parallel(Protocol):
    """Weights of a run, distributed over its processes.

    Attributes:
        student: the network to run passes through.
        teacher: the teacher to ask.
        trained_parameters: those of the student.
        optimizer: the optimizer to step.
        average: the moving average of the student's weights.
        in_shards: whether each process holds, and writes, a part of the weights.
    """

    in_shards: bool
    student: nn.Module
    trained_parameters: list[nn.Parameter]
    teacher: nn.Module | Teacher | None
    optimizer: Any
    average: Ema

    def spread(self, changed: bool = True) -> None:
        """Distribute the whole model of the state; `changed` says that its tensors are new."""
        ...

    def gather(self) -> None:
        """Gather model, average and optimizer of the state, in every process."""
        ...

    def conclude(self, folder: Path, dtype: torch.dtype | None) -> None:
        """Make the average of the state whole after the last step, in every process; its `dtype` may be that of the
        result already. Its weights may be in files in `folder`."""
        ...

    def trained(self) -> TrainingState:
        """The state over the weights that are trained, which are shards where there are any."""
        ...

    def whole(self, keep: bool) -> AbstractContextManager[None]:
        """Model and average of the state, for reading inside the block, in the processes that `keep` them."""
        ...

    def accumulating(self) -> AbstractContextManager[None]:
        """The context for passes of all micro-batches but the last."""
        ...

    def gradient_norm(self, values: Iterator[Tensor]) -> float:
        """Norm of the gradient of the sum of `values`, over all processes; no `.grad` changes."""
        ...

    def passes_done(self) -> None:
        """Free what the last backward pass left in memory."""
        ...

    def end(self) -> None:
        """Unwrap model and teacher."""
        ...


class Replicated:
    """A replica in every process; or one process."""

    in_shards = False

    def __init__(
        self,
        accelerator: Accelerator,
        state: TrainingState,
        teacher: nn.Module | Teacher | None,
        config: RecoveryConfig,
    ) -> None:
        self.accelerator, self.state, self.teacher = accelerator, state, teacher
        self.moves_average = "ema" in config.offload
        self.visits: list[RemovableHandle] = []
        self.student: nn.Module = state.model
        self.trained_parameters: list[nn.Parameter] = []
        self.optimizer: Any = state.optimizer
        self.average = state.ema
        self.compiles = config.compile
        self.channels_last = wants_channels_last(state.model, accelerator.device)
        if isinstance(teacher, nn.Module):
            if self.channels_last:
                lay_out([teacher], torch.channels_last)
            away = "teacher" in config.offload
            if away:
                blocks = [teacher.get_submodule(name) for name in block_names(teacher)]
                self.visits = visiting(teacher, blocks, accelerator.device)
            prepared = accelerator.prepare_model(teacher, device_placement=not away, evaluation_mode=True)
            self.teacher = cast(nn.Module, torch.compile(prepared)) if self.compiles and not away else prepared

    def spread(self, changed: bool = True) -> None:
        if self.moves_average:
            self.state.ema.model.cpu()
        if changed:
            self._wrap()
        self.average.follow(self.student)
        self.trained_parameters = list(self.student.parameters())

    def _wrap(self) -> None:
        state, accelerator = self.state, self.accelerator
        if self.channels_last:
            lay_out([state.model, state.ema.model], torch.channels_last, state.optimizer)
        accelerator.unwrap_model(self.student, keep_fp32_wrapper=False)
        accelerator.free_memory()  # the old wrapper would keep removed weights alive
        self.optimizer = accelerator.prepare_optimizer(state.optimizer, device_placement=False)
        student = accelerator.prepare_model(state.model)
        self.student = cast(nn.Module, torch.compile(student)) if self.compiles else student

    def gather(self) -> None:
        self.average.follow(None)
        self.trained_parameters = []
        self.state.ema.model.to(self.accelerator.device)

    def conclude(self, folder: Path, dtype: torch.dtype | None) -> None:
        self.gather()
        self.state.ema.apart()

    def trained(self) -> TrainingState:
        return self.state

    def whole(self, keep: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def accumulating(self) -> AbstractContextManager[None]:
        return self.accelerator.no_sync(self.student)

    def gradient_norm(self, values: Iterator[Tensor]) -> float:
        trained = [parameter for parameter in self.state.model.parameters() if parameter.requires_grad]
        with self.accelerator.no_sync(self.student):
            gradient = summed_gradient(values, trained)
        return norm(cast(list[Tensor], self.accelerator.reduce(gradient, "mean")))

    def passes_done(self) -> None:
        pass

    def end(self) -> None:
        for visit in self.visits:
            visit.remove()
        for wrapped in (self.student, self.teacher):
            if isinstance(wrapped, nn.Module):  # take the mixed precision off again
                network = self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).to(self.accelerator.device)
                if self.channels_last:
                    lay_out([network], torch.contiguous_format)
        if self.channels_last:
            lay_out([self.state.ema.model], torch.contiguous_format)


class Sharded:
    """A shard of every weight, of its average and of its optimizer state.

    Weights are gathered block by block during a pass, and all together while the model is cut.
    """

    in_shards = True

    def __init__(
        self,
        accelerator: Accelerator,
        state: TrainingState,
        teacher: nn.Module | Teacher | None,
        config: RecoveryConfig,
        differentiates_twice: bool,
    ) -> None:
        self.accelerator, self.state = accelerator, state
        self.mesh = mesh_over(accelerator.device, hybrid=config.parallel == "hsdp")
        self.offload = config.offload
        self.precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        self.twice = differentiates_twice
        self.student: nn.Module = state.model
        self.trained_parameters: list[nn.Parameter] = []
        self.optimizer: Any = accelerator.prepare_optimizer(state.optimizer, device_placement=False)
        self.average = state.ema
        self.dense = teacher.to("cpu") if isinstance(teacher, nn.Module) else None
        self.teacher = teacher
        if self.dense is not None:
            self.teacher = self._for_passes(self.dense, frozen=True, offload="teacher" in config.offload)

    def spread(self, changed: bool = True) -> None:
        state = self.state
        if state.pruning is not None:
            state.pruning.take_masks_off()
        self.student = self._for_passes(state.model)
        average = sharded(state.ema.model, self.mesh, offload="ema" in self.offload)
        self.average = Ema.of(average, state.ema.decay)
        successors: dict[Tensor, Tensor] = dict(zip(state.model.parameters(), self.student.parameters(), strict=True))
        fused = state.optimizer.defaults.get("fused")  # then the step counter is on the device of the weights

        def share(value: Tensor, successor: Tensor) -> Tensor:
            return value.to(successor.device) if fused and value.ndim == 0 else shard_like(value, successor)

        exchange(state.optimizer, successors, share)
        empty(state.model)
        empty(state.ema.model)
        self.average.follow(self.student)
        self.trained_parameters = list(self.student.parameters())
        self._run_masks(self.student)

    def gather(self) -> None:
        state = self.state
        fill(state.model, self.student)
        fill(state.ema.model, self.average.model)
        successors: dict[Tensor, Tensor] = dict(zip(self.student.parameters(), state.model.parameters(), strict=True))
        exchange(state.optimizer, successors, lambda value, successor: whole(value).cpu())
        refits = state.pruning is not None and state.pruning.pruner.refit is not None
        works = refits or self.accelerator.is_main_process  # one process decides; the others keep theirs on the CPU
        for module in (state.model, state.ema.model):
            module.to(self.accelerator.device if works else "cpu")
        self._run_masks(state.model)
        self.student, self.average, self.trained_parameters = state.model, state.ema, []
        self.accelerator.free_memory()

    def conclude(self, folder: Path, dtype: torch.dtype | None) -> None:
        """No process holds more than its shards, and what it reads of the files: the model gets the averaged weights
        too, since its own are not gathered."""
        state, average, place = self.state, self.average.model, folder / AVERAGE
        reshard(average)
        for group in state.optimizer.param_groups:
            group["params"] = []
        self.student, self.average, self.trained_parameters = state.model, state.ema, []
        self.accelerator.free_memory()
        own = {name: value.detach() for name, value in average.named_parameters()}
        if dtype is not None:
            own = {name: value if stays_whole(average, name) else value.to(dtype) for name, value in own.items()}
        join_shards(own, place)
        for network in (state.model, state.ema.model):
            found = joined(place)
            replace_parameters(network, lambda name, parameter: found[name])  # noqa: B023

    def trained(self) -> TrainingState:
        reshard(self.student)
        return replace(self.state, model=self.student, ema=self.average)

    @contextmanager
    def whole(self, keep: bool) -> Iterator[None]:
        fill(self.state.model, self.student, keep)
        fill(self.state.ema.model, self.average.model, keep)
        yield
        empty(self.state.model)
        empty(self.state.ema.model)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()  # gradients are accumulated in shards, which takes less memory

    def gradient_norm(self, values: Iterator[Tensor]) -> float:
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        for value in values:
            value.backward()
            self.passes_done()
        length = whole(get_total_norm([each.grad for each in parameters if each.grad is not None])).item()
        for parameter in parameters:
            parameter.grad = None
        return length

    def passes_done(self) -> None:
        if self.twice:
            for network in (self.student, self.teacher):
                if isinstance(network, FSDPModule):
                    reshard(cast(nn.Module, network))

    def end(self) -> None:
        if self.dense is not None:
            self.dense.to(self.accelerator.device)

    def _for_passes(self, model: nn.Module, frozen: bool = False, offload: bool = False) -> nn.Module:
        shards = sharded(model, self.mesh, self.precision, self.twice, frozen, offload)
        return self.accelerator.prepare_model(shards, device_placement=False, evaluation_mode=True)

    def _run_masks(self, network: nn.Module) -> None:
        if self.state.pruning is not None:
            self.state.pruning.run_masks_on(network)
