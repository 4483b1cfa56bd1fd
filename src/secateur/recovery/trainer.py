"""The recovery loop, on accelerate: one CPU or many GPUs by the launcher, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from ..base.console import Advance, note, progress
from ..base.devices import peak_memory, watch_peak_memory
from ..base.errors import TrainingError, is_out_of_memory
from ..base.interrupts import deferred_interrupt
from ..base.seeds import Purpose, torch_seed
from ..data import ImageDataset
from ..data.conditions import accepts, check_conditions, disable_label_dropout, null_conditions
from ..models.network import device_of
from ..process.base import Process
from ..teacher import Book, Draw, Teacher
from .accelerator import log_images, make_accelerator, own_accelerate
from .balance import norm, summed_gradient
from .checkpoints import TrainingState, newest_checkpoint, restore_checkpoint, save_checkpoint
from .config import RecoveryConfig, learning_rate_at
from .draws import draw_step
from .ema import Ema
from .log import append_record, cut_log, means, seen
from .objectives import JACOBIAN, Objective, Terms, build_objective
from .optimizers import build_optimizer, set_learning_rate
from .prefetch import prefetched
from .pruner import AttachedPruner, Pruner
from .reading import errors_due, errors_of, note_overfitting, read_step
from .recomputing import recomputing

BALANCED_STEPS = 10  # steps with a Jacobian term over which its automatic weight is found
NORM = "grad_norm_"  # and the term: its gradient norm, in the log
WEIGHT = "jacobian_weight"  # the automatic one, in the log
READ, HELD_OUT = "error_read", "error_held_out"  # on tuples of the book, in the log
Validate = Callable[[nn.Module, int], torch.Tensor]
PEAK = "peak_gib"  # the most memory so far, of the device or of the process, in the log


def recover(
    model: nn.Module,
    process: Process,
    dataset: ImageDataset,
    config: RecoveryConfig,
    folder: str | Path,
    teacher: nn.Module | Teacher | None = None,
    pruner: Pruner | None = None,
    validate: Validate | None = None,
) -> nn.Module:
    """Train `model` in place by `config` and return its moving average, a model in eval mode.

    A `pruner` masks and cuts the model, its average and the optimizer's moments along the way. `validate` is given the
    average and the step, every `config.validation_every` of them, and returns images for the trackers.

    `folder` gets `log.jsonl`, `stages.jsonl` with the pruner's decisions, and the newest checkpoint; a run found there
    with the same config, but for what `settings.FREE` names, and number of processes goes on from it, with the same
    weights in the end as one that was never interrupted. `model` is trained in float32, on the device it is on, which
    becomes the current one (a launcher of several processes places them itself), and is left without label dropout of
    its own; the average has the dtype that `model` came with. `teacher` is left as it is, but for being moved to that
    device if the objective needs it; it may also be its book, whose tuples are then what is trained on, or anything
    else that answers as a teacher (`teacher.Teacher`).
    Accumulation and processes change the loss by rounding, and by the masks of dropout layers if there are any.

    Raises:
        DataError: the labels do not fit the model.
        TrainingError: the loss is not finite, memory does not suffice, the checkpoint in `folder` is damaged or belongs
            to another run; or as `make_accelerator`.
        KeyboardInterrupt: on Ctrl-C, after the step at hand and a checkpoint. After SIGTERM the same happens, and then
            what SIGTERM does without this function.
    """
    folder = Path(folder)
    objective = build_objective(config, teacher)
    taught_by = teacher if objective.needs_teacher else None
    check_conditions(model, dataset)
    try:
        with own_accelerate():
            accelerator = make_accelerator(config, folder, device_of(model))
            watch_peak_memory(accelerator.device)
            devices = [accelerator.device] if accelerator.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                return _Run(
                    accelerator, model, process, dataset, config, folder, objective, taught_by, pruner, validate
                ).finish()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at batch size {config.batch_size}, accumulation {config.accumulation}; "
            "raise the accumulation and run again, or lower the batch size in another folder"
        ) from error


@dataclass(frozen=True)
class _Taken:
    """A step that was taken, with numbers that may still be on their way from the device.

    Attributes:
        step: how many steps were done with it.
        weights: of the terms.
        values: the terms, the gradient's norm and the number of interrupted processes, in a row.
        arrived: when the device has copied `values`; None where they are there.
        record: what else the log says of it.
    """

    step: int
    weights: Mapping[str, float]
    values: torch.Tensor
    arrived: torch.cuda.Event | None
    record: dict[str, float]

    @cached_property
    def _numbers(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()

    @property
    def terms(self) -> dict[str, float]:
        return dict(zip(self.weights, self._numbers[:-2], strict=True))

    @property
    def loss(self) -> float:
        return sum(self.weights[name] * value for name, value in self.terms.items())

    @property
    def grad_norm(self) -> float:
        return self._numbers[-2]

    @property
    def interrupted(self) -> bool:
        """Whether some process was."""
        return self._numbers[-1] > 0


class _Run:
    """One recovery run: the objects that live through all of its steps."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        process: Process,
        dataset: ImageDataset,
        config: RecoveryConfig,
        folder: Path,
        objective: Objective,
        teacher: nn.Module | Teacher | None,
        pruner: Pruner | None,
        validate: Validate | None,
    ) -> None:
        self.validate = validate
        self.accelerator, self.process, self.dataset = accelerator, process, dataset
        self.config, self.folder, self.objective = config, folder, objective
        self.lags = computes_behind(accelerator.device)
        self.settings = asdict(config) | {
            "mixed_precision": accelerator.mixed_precision,
            "data": f"{dataset.name}, {len(dataset)} images {tuple(dataset.shape)}",
            "num_processes": accelerator.num_processes,  # dropout differs by it
            "pruner": pruner and pruner.settings(),
            "book": teacher.fingerprint if isinstance(teacher, Book) else None,
        }
        self.dtype = _shared_dtype(model)
        model.float().to(accelerator.device).train()
        ema = Ema(model, config.ema_decay)
        self._prepare_student(model)
        optimizer = build_optimizer(config, model)
        self.student, self.optimizer = model, optimizer
        self.teacher, self.network, self.teacher_mode = teacher, None, False
        if isinstance(teacher, nn.Module):
            self.teacher_mode = teacher.training
            self.teacher = self.network = accelerator.prepare_model(teacher.eval(), evaluation_mode=True)
        pruning = None if pruner is None else AttachedPruner(pruner, model, optimizer, ema)
        self.state = TrainingState(model, ema, optimizer, accelerator.scaler, pruning=pruning)

    def _prepare_student(self, model: nn.Module) -> None:
        self.null, self.accepts = null_conditions(model, self.dataset), accepts(model)
        disable_label_dropout(model)
        if self.config.dropout is not None:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = self.config.dropout

    def finish(self) -> nn.Module:
        """Run the steps that are left, all of them without a checkpoint, and return the moving average."""
        try:
            restore_checkpoint(self.folder, self.state, self.settings)
            self._agree()
            # After the restoration: a wrapper for several processes must know the parameters of a model that was cut.
            self.student, self.optimizer = self.accelerator.prepare(self.state.model, self.state.optimizer)
            with recomputing(self.state.model, self.config.gradient_checkpointing):
                self._train()
            for tracker in self.accelerator.trackers:  # end_training would end the process group too
                tracker.finish()
        finally:
            if self.state.pruning is not None:
                self.state.pruning.take_masks_off()
            for wrapped in (self.student, self.network):
                if wrapped is not None:  # take the mixed precision off again
                    self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
            if self.network is not None:
                self.network.train(self.teacher_mode)
        return nn.Module.to(self.state.ema.model, self.dtype)  # past diffusers' warning, for a CPU in half precision

    def _agree(self) -> None:
        """Check that all processes resume from the same step; they do not if they see different folders."""
        own = torch.tensor([self.state.step], device=self.accelerator.device)
        steps = self.accelerator.gather(own).tolist()
        if len(set(steps)) > 1:
            found = ", ".join(f"process {rank} {step}" for rank, step in enumerate(steps))
            raise TrainingError(
                f"the processes find different checkpoints in {self.folder} ({found}); let all see the same folder"
            )

    def _train(self) -> None:
        main = self.accelerator.is_main_process
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            cut_log(self.folder / "log.jsonl", self.state.step)
            cut_log(self.folder / "stages.jsonl", self.state.step - 1)  # what was decided at this step comes again
        if self.objective.differentiates_twice and self.state.step < self.config.steps:
            note("recovery: attention runs unfused in Jacobian passes: fused kernels have no second derivative")
        steps = range(self.state.step, self.config.steps)
        bar = progress("recovery", self.config.steps, self.state.step) if main else nullcontext(_silent)
        with bar as advance, prefetched(self._draw, steps) as batches, deferred_interrupt() as interrupted:
            unread: list[_Taken] = []
            self.clock = time.perf_counter()
            for draws in batches:
                decided = self.state.pruning is not None and self._prune(self.state.pruning)
                unread.append(self._step(draws, interrupted()))
                self._count_seconds()
                # A step is read while the next one runs, unless its state is to be kept.
                left = 1 if self.lags and not self._checkpoint_due(decided) else 0
                stop = any([self._read(unread.pop(0), decided, advance) for _ in range(len(unread) - left)])
                self._count_seconds()  # reading may have waited for the device
                self._draw_images()
                if stop:
                    for taken in unread:
                        self._read(taken, decided, advance)
                    self._checkpoint()
                    raise KeyboardInterrupt  # in every process; in the one that was stopped, its signal comes now
            if self._anyone(interrupted()):  # it came in the last step
                raise KeyboardInterrupt

    def _draw_images(self) -> None:
        """Let somebody see how the average does, when it is time; this does not count as training."""
        every, step = self.config.validation_every, self.state.step
        if self.validate is None or not every or (step % every and step != self.config.steps):
            return
        if self.accelerator.is_main_process:
            images = self.validate(self.state.ema.model, step)
            log_images(self.accelerator, images, step)
        self.clock = time.perf_counter()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self.clock
        self.clock = now

    def _anyone(self, interrupted: bool) -> bool:
        """Whether some process was interrupted."""
        return bool(self.accelerator.reduce(torch.tensor(float(interrupted), device=self.accelerator.device)) > 0)

    def _draw(self, step: int) -> list[Draw]:
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        if isinstance(self.teacher, Book):
            draws = read_step(self.teacher, self.config, step, rank, processes)
        else:
            draws = draw_step(self.dataset, self.process, self.config, step, self.null, self.accepts, rank, processes)
        return [draw.pinned() for draw in draws] if self.accelerator.device.type == "cuda" else draws

    def _prune(self, pruning: AttachedPruner) -> bool:
        """Let the pruner do what is due before this step; whether anything was."""
        begun, due = time.perf_counter(), pruning.due
        if pruning.step():
            state, accelerator = self.state, self.accelerator
            # Before the cut the student was little else than its teacher.
            state.jacobian_scale, state.balanced = 1.0, 0
            accelerator.unwrap_model(self.student, keep_fp32_wrapper=False)
            if accelerator.num_processes > 1:
                accelerator.free_memory()  # the old wrapper would keep what left
                self.optimizer = accelerator.prepare_optimizer(state.optimizer)
            self.student = accelerator.prepare_model(state.model)
        if due and self.accelerator.is_main_process:
            seconds = round(time.perf_counter() - begun, 3)
            append_record(self.folder / "stages.jsonl", {**pruning.records[-1], "seconds": seconds})
        return due

    def _step(self, draws: list[Draw], interrupted: bool) -> _Taken:
        """One optimizer step."""
        state, accelerator = self.state, self.accelerator
        set_learning_rate(state.optimizer, partial(learning_rate_at, self.config, state.step))
        objective = self.objective.at(state.step).scaled(state.jacobian_scale)
        with objective.layers(self.student, self.teacher):
            norms, objective = self._measure(draws, objective)
            sums = self._accumulate(draws, objective)
        stopped = torch.tensor(float(interrupted), device=accelerator.device)
        *terms, stopped = accelerator.reduce(torch.stack([*sums.values(), stopped]), "mean").unbind()
        limit = math.inf if self.config.clip is None else self.config.clip
        grad_norm = accelerator.clip_grad_norm_(state.model.parameters(), limit)
        values = torch.stack([*terms, grad_norm.float(), stopped])
        arrived = None
        if accelerator.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        record = {"lr": learning_rate_at(self.config, state.step), **norms}
        if self.objective.balances:
            record[WEIGHT] = self.objective.weights[JACOBIAN] * state.jacobian_scale
        weights = {name: objective.weights[name] for name in sums}
        taken = _Taken(state.step + 1, weights, values, arrived, record)
        if not self.lags:
            self._check(taken)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.ema.update(state.model, state.since_cut)
        state.step += 1
        if isinstance(self.teacher, Book):
            record |= self._book_errors(self.teacher)
        return taken

    def _book_errors(self, book: Book) -> dict[str, float]:
        """The error on tuples that were learned from and on others, when that is due."""
        if not errors_due(book, self.state.step, self.config.steps):
            return {}
        sums = self.accelerator.reduce(errors_of(self.student, book, self.config.batch_size), "sum")
        read, held_out = (sums[:, 0] / sums[:, 1]).tolist()
        if self.state.step == self.config.steps and self.accelerator.is_main_process:
            note_overfitting(read, held_out)
        return {READ: read, HELD_OUT: held_out}

    def _check(self, taken: _Taken) -> None:
        # In fp16 the scaler skips steps whose gradients overflow.
        if math.isfinite(taken.loss) and (self.state.scaler is not None or math.isfinite(taken.grad_norm)):
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in taken.terms.items())
        kept = newest_checkpoint(self.folder)
        raise TrainingError(
            f"training diverged at step {taken.step} ({values}, gradient norm {taken.grad_norm:.4g}); "
            f"the last checkpoint is {kept or 'not yet written'}; lower the learning rate"
        )

    def _accumulate(self, draws: list[Draw], objective: Objective) -> dict[str, torch.Tensor]:
        """Backward through every micro-batch; the mean of each term."""
        sums: dict[str, torch.Tensor] = {}
        for number, draw in enumerate(draws):
            last = number == len(draws) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.student):
                terms = self._terms(objective, draw, number)
                self.accelerator.backward(objective.loss(terms) / len(draws))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(draws)
        return sums

    def _terms(self, objective: Objective, draw: Draw, number: int) -> Terms:
        """The terms over micro-batch `number`."""
        # Dropout layers draw from the global generator, each share its own masks.
        rank, step = self.accelerator.process_index, self.state.step
        torch.manual_seed(torch_seed(self.config.seed, Purpose.DROPOUT, step=step, index=rank, part=number))
        moved = draw.to(self.accelerator.device)
        return objective.terms(self.student, self.teacher, self.process, moved, objective.jacobian)

    def _measure(self, draws: list[Draw], objective: Objective) -> tuple[dict[str, float], Objective]:
        """Gradient norms of the terms over the whole batch when they are due, and the balanced objective.

        By passes of its own: the weight must be known before the first micro-batch is trained on.
        """
        balancing = objective.balances and self.state.balanced < BALANCED_STEPS
        if not (balancing or self._norms_due()):
            return {}, objective
        norms = {name: self._gradient_norm(draws, objective, [name]) for name in objective.weights}
        others = self._gradient_norm(draws, objective, [n for n in norms if n != JACOBIAN]) if balancing else 0.0
        if not all(map(math.isfinite, (*norms.values(), others))):
            return {}, objective  # an overflow; where it is more than that of float16, the step says so
        if balancing and min(norms[JACOBIAN], others) > 0:  # else there is nothing to balance yet
            factor = min(1.0, others / norms[JACOBIAN])
            self.state.jacobian_scale *= factor
            self.state.balanced += 1
            norms[JACOBIAN] *= factor
            objective = objective.scaled(factor)
        return {NORM + name: length for name, length in norms.items()}, objective

    def _gradient_norm(self, draws: list[Draw], objective: Objective, names: list[str]) -> float:
        """Norm of the gradient of the weighted terms of these `names`, over all micro-batches of all processes."""
        trained = [parameter for parameter in self.state.model.parameters() if parameter.requires_grad]
        scale = self.state.scaler.get_scale() if self.state.scaler else 1.0  # in float16 small gradients vanish

        def values() -> Iterator[torch.Tensor]:
            for number, draw in enumerate(draws):
                terms = self._terms(objective, draw, number)
                yield objective.loss({name: terms[name] for name in names}) * (scale / len(draws))

        with self.accelerator.no_sync(self.student):
            gradient = summed_gradient(values(), trained)
        return norm(cast(list[torch.Tensor], self.accelerator.reduce(gradient, "mean"))) / scale

    def _norms_due(self) -> bool:
        """Whether gradient norms are to be measured: at every n-th step, or at the next that has the Jacobian term."""
        done, every = self.state.step + 1, self.config.grad_norms_every
        apart = self.objective.jacobian.every_n if self.objective.differentiates_twice else 1
        return every > 0 and done % apart == 0 and done // every > (done - apart) // every

    def _read(self, taken: _Taken, decided: bool, advance: Advance) -> bool:
        """Check, log and keep a step that was taken, when it is time; whether some process was interrupted in it.

        A line of the log holds the means over the steps since the last one, so that nothing goes unseen.
        """
        self._check(taken)
        state, values = self.state, {"loss": taken.loss, **taken.terms, "grad_norm": taken.grad_norm}
        state.window = seen(state.window, values)
        last = taken.step == self.config.steps
        measured = any(name.startswith((NORM, READ)) for name in taken.record)
        if taken.step % self.config.log_every == 0 or last or measured:
            line = {"loss": taken.loss, **taken.record, **means(state.window)}
            state.window = {}
            self.accelerator.log(line, step=taken.step)
            if self.accelerator.is_main_process:
                costs = {"seconds": round(state.seconds, 3), PEAK: round(peak_memory(self.accelerator.device), 3)}
                append_record(self.folder / "log.jsonl", {"step": taken.step, **line, **costs})
        if taken.step == state.step and self._checkpoint_due(decided):
            self._checkpoint()
        advance(1, f"loss {taken.loss:.4f}")
        return taken.interrupted

    def _checkpoint_due(self, decided: bool) -> bool:
        step = self.state.step
        return decided or step % self.config.checkpoint_every == 0 or step == self.config.steps

    def _checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, self.state, self.settings)


def computes_behind(device: torch.device) -> bool:
    """Whether Python runs ahead of `device`, so that reading a number at once would make it wait."""
    return device.type == "cuda"


def _shared_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of all parameters; float32 where they differ."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _silent(steps: int = 1, note: str = "") -> None:
    pass
