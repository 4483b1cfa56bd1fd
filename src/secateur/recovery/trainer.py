"""The recovery loop, on accelerate: one CPU or many GPUs by the launcher, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
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
from ..models.jacobian import exact
from ..models.network import device_of
from ..process.base import Process
from ..teacher import Book, Draw, Teacher
from .accelerator import log_images, make_accelerator, own_accelerate
from .agreement import check_folder, check_step
from .checkpoints import TrainingState, newest_checkpoint, restore_checkpoint, save_checkpoint
from .config import RecoveryConfig, learning_rate_at
from .draws import draw_step
from .ema import Ema
from .log import append_record, cut_log, means, seen
from .lora import save_lora
from .memory import affordable
from .objectives import JACOBIAN, Objective, Terms, build_objective
from .optimizers import build_optimizer, set_learning_rate
from .parallel import Parallel, Replicated, Sharded
from .prefetch import prefetched
from .pruner import AttachedPruner, Pruner
from .reading import errors_due, errors_of, note_overfitting, read_step
from .recomputing import recomputing
from .shards import whole
from .student import make_ready, merge, silence_dropout
from .taken import Taken

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
    if config.lora.rank and pruner is not None:
        raise TrainingError(
            "units cannot leave weights that LoRA wraps; prune in one shot before, or train the weights"
        )
    taught_by = teacher if objective.needs_teacher else None
    check_conditions(model, dataset)
    try:
        with own_accelerate():
            accelerator = make_accelerator(config, folder, device_of(model))
            config = affordable(model, taught_by, process, config, accelerator.device)
            watch_peak_memory(accelerator.device)
            devices = [accelerator.device] if accelerator.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                return _Run(
                    accelerator, model, process, dataset, config, folder, objective, taught_by, pruner, validate
                ).finish()
    except RuntimeError as error:
        if is_lost_peer(error):
            raise TrainingError(
                f"another process is gone or does not answer ({first_line(error)}); what it says comes first. "
                "Run again to go on from the newest checkpoint"
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
        self.lags = computes_behind(accelerator.device)
        self.settings = asdict(config) | {
            "mixed_precision": accelerator.mixed_precision,
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
        self.exact = exact(next(model.parameters())).dtype
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

    def finish(self) -> nn.Module:
        """Run the steps that are left, all of them without a checkpoint, and return the moving average."""
        try:
            check_folder(self.accelerator, self.folder)
            restore_checkpoint(self.folder, self.state, self.settings)
            check_step(self.accelerator, self.folder, self.state.step)
            with recomputing(self.state.model, self.config.gradient_checkpointing):
                self.parallel.spread()  # after the restoration, which may have cut the model
                self._train()
                self.parallel.gather()
            for tracker in self.accelerator.trackers:  # end_training would end the process group too
                tracker.finish()
            self._merge_average()
        finally:
            if self.state.pruning is not None:
                self.state.pruning.take_masks_off()
            self.parallel.end()
            if self.config.lora.rank:
                merge(self.state.model, self.trained)
            if isinstance(self.teacher, nn.Module):
                self.teacher.train(self.teacher_mode)
        for module in (self.state.model, self.state.ema.model):
            nn.Module.to(module, self.accelerator.device)
        return nn.Module.to(self.state.ema.model, self.dtype)

    def _merge_average(self) -> None:
        average = self.state.ema
        average.apart()
        if not self.config.lora.rank:
            return
        if self.config.lora.keep and self.accelerator.is_main_process:
            save_lora(average.model, self.folder / "lora.safetensors")
        merge(average.model, self.trained)

    def _train(self) -> None:
        main = self.accelerator.is_main_process
        if main:
            cut_log(self.folder / "log.jsonl", self.state.step)
            cut_log(self.folder / "stages.jsonl", self.state.step - 1)  # what was decided at this step comes again
        if self.objective.differentiates_twice and self.state.step < self.config.steps:
            note("recovery: attention runs unfused in Jacobian passes: fused kernels have no second derivative")
        steps = range(self.state.step, self.config.steps)
        bar = progress("recovery", self.config.steps, self.state.step) if main else nullcontext(_silent)
        with bar as advance, prefetched(self._draw, steps) as batches, deferred_interrupt() as interrupted:
            unread: list[Taken] = []
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
        """Let the pruner do what is due before this step; whether anything was."""
        begun, due = time.perf_counter(), pruning.due
        if due:
            self.parallel.gather()
        changed = pruning.step()
        if changed:  # before the cut the student was little else than its teacher
            self.state.jacobian_scale, self.state.balanced = 1.0, 0
        if due:
            self.parallel.spread(changed)
        if due and self.accelerator.is_main_process:
            seconds = round(time.perf_counter() - begun, 3)
            append_record(self.folder / "stages.jsonl", {**pruning.records[-1], "seconds": seconds})
        return due

    def _step(self, draws: list[Draw], interrupted: bool) -> Taken:
        """One optimizer step."""
        state, accelerator = self.state, self.accelerator
        set_learning_rate(state.optimizer, partial(learning_rate_at, self.config, state.step))
        objective = self.objective.at(state.step).scaled(state.jacobian_scale)
        with objective.layers(self.parallel.student, self.parallel.teacher):
            norms, objective = self._measure(draws, objective)
            sums = self._accumulate(draws, objective)
        stopped = torch.tensor(float(interrupted), device=accelerator.device)
        *terms, stopped = accelerator.reduce(torch.stack([*sums.values(), stopped]), "mean").unbind()
        limit = math.inf if self.config.clip is None else self.config.clip
        grad_norm = whole(accelerator.clip_grad_norm_(self.parallel.student.parameters(), limit))
        values = torch.stack([*terms, exact(grad_norm), stopped])
        arrived = None
        if accelerator.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        record = {"lr": learning_rate_at(self.config, state.step), **norms}
        if self.objective.balances:
            record[WEIGHT] = self.objective.weights[JACOBIAN] * state.jacobian_scale
        weights = {name: objective.weights[name] for name in sums}
        taken = Taken(state.step + 1, weights, values, arrived, record)
        if not self.lags:
            self._check(taken)
        torch.manual_seed(torch_seed(self.config.seed, Purpose.ROUNDING, step=state.step))  # alike in all replicas
        self.parallel.optimizer.step()
        self.parallel.optimizer.zero_grad()
        self.parallel.average.update(self.parallel.student, state.since_cut)
        state.step += 1
        if isinstance(self.teacher, Book):
            record |= self._book_errors(self.teacher)
        return taken

    def _book_errors(self, book: Book) -> dict[str, float]:
        """The error on tuples that were learned from and on others, when that is due."""
        if not errors_due(book, self.state.step, self.config.steps):
            return {}
        sums = self.accelerator.reduce(errors_of(self.parallel.student, book, self.config.batch_size), "sum")
        self.parallel.passes_done()
        read, held_out = (sums[:, 0] / sums[:, 1]).tolist()
        if self.state.step == self.config.steps and self.accelerator.is_main_process:
            note_overfitting(read, held_out)
        return {READ: read, HELD_OUT: held_out}

    def _check(self, taken: Taken) -> None:
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
            with nullcontext() if last else self.parallel.accumulating():
                terms = self._terms(objective, draw, number)
                self.accelerator.backward(objective.loss(terms) / len(draws))
            self.parallel.passes_done()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + exact(value.detach()) / len(draws)
        return sums

    def _terms(self, objective: Objective, draw: Draw, number: int) -> Terms:
        """The terms over micro-batch `number`."""
        # Dropout layers draw from the global generator, each share its own masks.
        rank, step = self.accelerator.process_index, self.state.step
        torch.manual_seed(torch_seed(self.config.seed, Purpose.DROPOUT, step=step, index=rank, part=number))
        moved = draw.to(self.accelerator.device, self.exact)
        student, teacher = self.parallel.student, self.parallel.teacher
        return objective.terms(student, teacher, self.process, moved, objective.jacobian)

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
        scale = self.state.scaler.get_scale() if self.state.scaler else 1.0  # in float16 small gradients vanish

        def values() -> Iterator[torch.Tensor]:
            for number, draw in enumerate(draws):
                terms = self._terms(objective, draw, number)
                yield objective.loss({name: terms[name] for name in names}) * (scale / len(draws))

        return self.parallel.gradient_norm(values()) / scale

    def _norms_due(self) -> bool:
        """Whether gradient norms are to be measured: at every n-th step, or at the next that has the Jacobian term."""
        done, every = self.state.step + 1, self.config.grad_norms_every
        apart = self.objective.jacobian.every_n if self.objective.differentiates_twice else 1
        return every > 0 and done % apart == 0 and done // every > (done - apart) // every

    def _read(self, taken: Taken, decided: bool, advance: Advance) -> bool:
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
        main = self.accelerator.is_main_process
        with self.parallel.whole(keep=main):
            if main:
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
