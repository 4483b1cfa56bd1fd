"""The recovery loop, on accelerate: on one CPU or many GPUs as the launcher says, and resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ..base.console import Advance, note, progress
from ..base.devices import peak_memory, watch_peak_memory
from ..base.errors import TrainingError, first_line, is_lost_peer, is_out_of_memory
from ..base.interrupts import deferred_interrupt
from ..base.seeds import Purpose, torch_seed
from ..data import ImageDataset
from ..data.conditions import accepts, check_conditions, null_conditions
from ..models.jacobian import frozen
from ..models.network import device_of
from ..models.precision import cast_saved, stays_whole
from ..models.recomputing import recomputing
from ..process.base import Process
from ..teacher import Book, Draw, Teacher
from .accelerator import log_images, make_accelerator, own_accelerate
from .agreement import check_folder, check_step
from .checkpoints import TrainingState, restore_checkpoint, restore_shards, save_checkpoint
from .config import RecoveryConfig
from .draws import draw_step
from .ema import Ema
from .log import append_record, cut_log, means, seen
from .lora import save_lora
from .memory import affordable
from .objectives import Objective
from .objectives.build import build_objective
from .optimizers import build_optimizer
from .parallel import Parallel, Replicated, Sharded
from .prefetch import prefetched
from .pruner import AttachedPruner, Pruner
from .reading import errors_due, errors_of, note_overfitting, read_step
from .step import NORM, Stepper, StepResult
from .student import CHANGES, REFITS, WRAPPED, check_recomputing, make_as_before, make_ready, silence_dropout

READ, HELD_OUT = "error_read", "error_held_out"  # in the log: on tuples of the book
PEAK = "peak_gib"  # in the log: the most memory so far, of the device or of the process
Validate = Callable[[nn.Module, int], torch.Tensor]


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

    A `pruner` masks and cuts the model, its average and the optimizer's moments along the way. `validate` is called
    every `config.validation_every` steps with the average and the step, and returns images for the trackers.

    `folder` gets `log.jsonl`, `stages.jsonl` with the pruner's decisions, and the newest checkpoint. A run found there
    is resumed if its config is the same (but for `settings.FREE_IN_RECOVERY`), by any number of processes; it ends with
    the same weights as one that was never interrupted, to rounding if that number differs.

    `model` is trained in float32 on its device, which becomes the current one (a launcher of several processes gives
    each its own), and its own label dropout stays off afterwards. The average has the dtype that `model` came with. In
    shards (`parallel` fsdp or hsdp) `model` ends with the averaged weights too, and both are on the CPU, mapped from
    files in `folder`.
    `teacher` does not change, but is moved to that device if the objective needs it. Instead of a network it may be
    its book, whose tuples are then trained on, or anything else that answers as a teacher (`teacher.Teacher`).
    The number of micro-batches and of processes changes the loss by rounding alone; and by the masks of dropout in
    compiled networks, and where `every_n_samples` passes a batch in two parts.

    Raises:
        DataError: the labels do not fit the model.
        TrainingError: the loss is not finite, memory does not suffice, the checkpoint in `folder` is damaged or belongs
            to another run; or as `make_accelerator`.
        KeyboardInterrupt: on Ctrl-C, after the current step and a checkpoint. SIGTERM is delayed in the same way, and
            then has its usual effect.
    """
    folder = Path(folder)
    objective = build_objective(config, teacher)
    if config.lora.rank and pruner is not None:
        raise TrainingError(WRAPPED)
    if config.compile and pruner is not None:
        raise TrainingError(CHANGES)
    if config.gradient_checkpointing:
        check_recomputing(model)
    taught_by = teacher if objective.needs_teacher else None
    check_conditions(model, dataset)
    try:
        with own_accelerate():
            accelerator = make_accelerator(config, folder, device_of(model))
            config = affordable(model, taught_by, process, config, accelerator.device)
            away = isinstance(taught_by, nn.Module) and "teacher" in config.offload
            if away and pruner is not None and pruner.refit is not None:
                raise TrainingError(REFITS)
            watch_peak_memory(accelerator.device)
            devices = [accelerator.device] if accelerator.device.type == "cuda" else []
            # Autocast would keep copies of a teacher's weights that need gradients.
            still = frozen(taught_by) if isinstance(taught_by, nn.Module) else nullcontext()
            with torch.random.fork_rng(devices), still:
                return _Run(
                    accelerator, model, process, dataset, config, folder, objective, taught_by, pruner, validate
                ).finish()
    except RuntimeError as error:
        if is_lost_peer(error):
            raise TrainingError(
                f"another process is gone or does not answer ({first_line(error)}); see its own error message. "
                "Run again to resume from the newest checkpoint"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at batch size {config.batch_size}, accumulation {config.accumulation}; "
            "raise the accumulation and run again, or lower the batch size in another folder"
        ) from error


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
        chosen = config.mixed_precision
        self.settings = asdict(config) | {
            "mixed_precision": accelerator.mixed_precision if chosen == "auto" else chosen,
            "data": f"{dataset.name}, {len(dataset)} images {tuple(dataset.shape)}",
            "pruner": pruner and pruner.settings(),
            "book": teacher.fingerprint if isinstance(teacher, Book) else None,
        }
        self.dtype = _shared_dtype(model)
        self.null, self.accepts = null_conditions(model, dataset), accepts(model)
        torch.manual_seed(torch_seed(config.seed, Purpose.FACTORS))
        self.trained = make_ready(
            model, config, accelerator.device if config.parallel == "ddp" else torch.device("cpu")
        )
        away = torch.device("cpu") if "ema" in config.offload else None
        ema = Ema(model, config.ema_decay, away)
        silence_dropout(model, config)
        optimizer = build_optimizer(config, model)
        pruning = None if pruner is None else AttachedPruner(pruner, model, optimizer, ema)
        self.state = TrainingState(model, ema, optimizer, accelerator.scaler, pruning=pruning)
        self.teacher, self.teacher_mode = teacher, isinstance(teacher, nn.Module) and teacher.training
        if isinstance(teacher, nn.Module):
            teacher.eval()
        twice = objective.differentiates_twice
        self.parallel: Parallel
        if config.parallel == "ddp":
            self.parallel = Replicated(accelerator, self.state, teacher, config)
        else:
            self.parallel = Sharded(accelerator, self.state, teacher, config, twice)
        self.stepper = Stepper(accelerator, self.parallel, self.state, process, objective, config, folder)

    def finish(self) -> nn.Module:
        """Run the steps that remain after the newest checkpoint, if any, and return the moving average."""
        try:
            check_folder(self.accelerator, self.folder)
            shards = restore_checkpoint(self.folder, self.state, self.settings, self.parallel.in_shards)
            check_step(self.accelerator, self.folder, self.state.step)
            with recomputing(self.state.model, self.config.gradient_checkpointing):
                self.parallel.spread()  # after the restoration, which may have cut the model
                if shards is not None:
                    restore_shards(shards, self.parallel.trained())
                self._train()
                self.state.optimizer.state.clear()  # not needed any more, and twice as large as the model
                self.parallel.conclude(self.folder, None if self.config.lora.rank else self.dtype)
            for tracker in self.accelerator.trackers:  # end_training would end the process group too
                tracker.finish()
            self._return_average()
        finally:
            if self.state.pruning is not None:
                self.state.pruning.take_masks_off()
            self.parallel.end()
            make_as_before(self.state.model, self.config, self.trained)
            if isinstance(self.teacher, nn.Module):
                self.teacher.train(self.teacher_mode)
        cast_saved(self.state.ema.model, self.dtype)
        return self.state.ema.model

    def _return_average(self) -> None:
        average, lora = self.state.ema.model, self.config.lora
        if lora.rank and lora.keep and self.accelerator.is_main_process:
            save_lora(average, self.folder / "lora.safetensors")
        make_as_before(average, self.config, self.trained)

    def _train(self) -> None:
        main = self.accelerator.is_main_process
        if main:
            cut_log(self.folder / "log.jsonl", self.state.step)
            cut_log(self.folder / "stages.jsonl", self.state.step - 1)  # the decision at this step is made again
        if self.objective.differentiates_twice and self.state.step < self.config.steps:
            note("recovery: attention runs unfused in Jacobian passes: fused kernels have no second derivative")
        steps = range(self.state.step, self.config.steps)
        bar = progress("recovery", self.config.steps, self.state.step) if main else nullcontext(_silent)
        with bar as advance, prefetched(self._draw, steps) as batches, deferred_interrupt() as interrupted:
            unread: list[StepResult] = []
            self.clock = time.perf_counter()
            for draws in batches:
                decided = self.state.pruning is not None and self._prune(self.state.pruning)
                with self.stepper.products():
                    result = self.stepper.step(draws, interrupted())
                if isinstance(self.teacher, Book):
                    result.record.update(self._book_errors(self.teacher))
                unread.append(result)
                self._count_seconds()
                # A step is read while the next one runs, unless a checkpoint follows it.
                left = 1 if self.stepper.lags and not self._checkpoint_due(decided) else 0
                stop = any([self._read(unread.pop(0), decided, advance) for _ in range(len(unread) - left)])
                self._count_seconds()  # reading may have waited for the device
                self._draw_images()
                if stop:
                    for result in unread:
                        self._read(result, decided, advance)
                    self._checkpoint()
                    raise KeyboardInterrupt  # in every process; in the one that was stopped, its signal comes now
            if self._anyone(interrupted()):  # it came in the last step
                raise KeyboardInterrupt

    def _draw_images(self) -> None:
        """Give the trackers images from the average, when they are due; the time this takes does not count."""
        every, step = self.config.validation_every, self.state.step
        if self.validate is None or not every or (step % every and step != self.config.steps):
            return
        main = self.accelerator.is_main_process
        with self.parallel.whole(keep=main):
            if main:
                log_images(self.accelerator, self.validate(self.state.ema.model, step), step)
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
        """Let the pruner do what is due before this step; whether anything was due."""
        begun, due = time.perf_counter(), pruning.due
        if due:
            self.parallel.gather()
        changed = pruning.step()
        if changed:  # the balance was found on a student that was still close to its teacher
            self.state.jacobian_scale, self.state.balanced = 1.0, 0
        if due:
            self.parallel.spread(changed)
        if due and self.accelerator.is_main_process:
            seconds = round(time.perf_counter() - begun, 3)
            append_record(self.folder / "stages.jsonl", {**pruning.records[-1], "seconds": seconds})
        return due

    def _book_errors(self, book: Book) -> dict[str, float]:
        """The error on tuples that were trained on and on held-out ones, when it is due."""
        if not errors_due(book, self.state.step, self.config.steps):
            return {}
        sums = self.accelerator.reduce(errors_of(self.parallel.student, book, self.config.batch_size), "sum")
        self.parallel.passes_done()
        read, held_out = (sums[:, 0] / sums[:, 1]).tolist()
        if self.state.step == self.config.steps and self.accelerator.is_main_process:
            note_overfitting(read, held_out)
        return {READ: read, HELD_OUT: held_out}

    def _read(self, result: StepResult, decided: bool, advance: Advance) -> bool:
        """Check a step that was taken; log it and write a checkpoint when due; whether any process was interrupted.

        A line of the log holds the means over all steps since the last line.
        """
        self.stepper.check(result)
        state, values = self.state, {"loss": result.loss, **result.terms, "grad_norm": result.grad_norm}
        state.window = seen(state.window, values)
        last = result.step == self.config.steps
        measured = any(name.startswith((NORM, READ)) for name in result.record)
        if result.step % self.config.log_every == 0 or last or measured:
            line = {"loss": result.loss, **result.record, **means(state.window)}
            state.window = {}
            self.accelerator.log(line, step=result.step)
            if self.accelerator.is_main_process:
                costs = {"seconds": round(state.seconds, 3), PEAK: round(peak_memory(self.accelerator.device), 3)}
                append_record(self.folder / "log.jsonl", {"step": result.step, **line, **costs})
        if result.step == state.step and self._checkpoint_due(decided):
            self._checkpoint()
        advance(1, f"loss {result.loss:.4f}")
        return result.interrupted

    def _checkpoint_due(self, decided: bool) -> bool:
        step = self.state.step
        return decided or step % self.config.checkpoint_every == 0 or step == self.config.steps

    def _checkpoint(self) -> None:
        if self.parallel.in_shards or self.accelerator.is_main_process:
            save_checkpoint(self.folder, self.parallel.trained(), self.settings, self.parallel.in_shards)


def _shared_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of all parameters but those that stay in float32 anyway; float32 where they differ."""
    dtypes = {parameter.dtype for name, parameter in model.named_parameters() if not stays_whole(model, name)}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _silent(steps: int = 1, note: str = "") -> None:
    pass
