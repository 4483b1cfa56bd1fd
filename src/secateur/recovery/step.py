"""One optimizer step: passes over its micro-batches, balance of the loss terms, clipping, and the update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from accelerate import Accelerator

from ..base.errors import TrainingError
from ..base.seeds import Purpose, torch_seed
from ..base.shards import whole
from ..models.jacobian import exact
from ..process.base import Process
from ..teacher import Draw
from .accelerator import products_on
from .checkpoints import TrainingState, newest_checkpoint
from .config import RecoveryConfig
from .dropout import dropout_by_image
from .objectives import Objective, Terms
from .objectives.objective import JACOBIAN_TERM
from .optimizers import learning_rate_at, set_learning_rate
from .parallel import Parallel

BALANCED_STEPS = 10  # steps with a Jacobian term over which its automatic weight is found
NORM = "grad_norm_"  # in the log: followed by a term's name, the norm of its gradient
WEIGHT = "jacobian_weight"  # in the log: the automatic one


@dataclass(frozen=True)
class StepResult:
    """What a step came to; its numbers may still be on their way from the device.

    Attributes:
        step: number of steps done, this one included.
        weights: weight of each loss term.
        values: one row: each term, the norm of the gradient, and the share of processes that were interrupted.
        copied: set when the device has copied `values` to the CPU; None where no copy is needed.
        record: further entries for the log.
    """

    step: int
    weights: Mapping[str, float]
    values: torch.Tensor
    copied: torch.cuda.Event | None
    record: dict[str, float]

    @cached_property
    def _numbers(self) -> list[float]:
        if self.copied is not None:
            self.copied.synchronize()
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
        """Whether any process was."""
        return self._numbers[-1] > 0


class Stepper:
    """Takes the steps of one recovery run.

    Attributes:
        lags: whether the numbers of a step are read, and checked, while the next one already runs.
        products: the context of a step, of how factors of products are rounded.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        parallel: Parallel,
        state: TrainingState,
        process: Process,
        objective: Objective,
        config: RecoveryConfig,
        folder: Path,
    ) -> None:
        self.accelerator, self.parallel, self.state = accelerator, parallel, state
        self.process, self.objective, self.config, self.folder = process, objective, config, folder
        first = next(state.model.parameters())
        self.exact, self.products = exact(first).dtype, products_on(config, accelerator.device, first.dtype)
        self.lags = runs_asynchronously(accelerator.device)
        self.places = range(0)  # in the batch, of the images of the micro-batch that passes

    def step(self, draws: list[Draw], interrupted: bool) -> StepResult:
        """Take one optimizer step on micro-batches; `interrupted` tells the other processes that this one was.

        Raises:
            TrainingError: as `check`, before the update, unless steps are read late.
        """
        state, accelerator = self.state, self.accelerator
        set_learning_rate(state.optimizer, partial(learning_rate_at, self.config, state.step))
        objective = self.objective.at(state.step).scaled(state.jacobian_scale)
        with objective.context(), self._dropout():
            norms, objective = self._measure_norms(draws, objective)
            sums = self._accumulate(draws, objective)
        stopped = torch.full((), float(interrupted), device=accelerator.device)  # a copy from the CPU would wait
        *terms, stopped = accelerator.reduce(torch.stack([*sums.values(), stopped]), "mean").unbind()
        limit = math.inf if self.config.clip is None else self.config.clip
        grad_norm = whole(accelerator.clip_grad_norm_(self.parallel.trained_parameters, limit))
        values = torch.stack([*terms, exact(grad_norm), stopped])
        copied = None
        if accelerator.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        record = {"lr": learning_rate_at(self.config, state.step), **norms}
        if self.objective.balances:
            record[WEIGHT] = self.objective.weights[JACOBIAN_TERM] * state.jacobian_scale
        weights = {name: objective.weights[name] for name in sums}
        result = StepResult(state.step + 1, weights, values, copied, record)
        if not self.lags:
            self.check(result)
        torch.manual_seed(torch_seed(self.config.seed, Purpose.ROUNDING, step=state.step))  # alike in all replicas
        self.parallel.optimizer.step()
        self.parallel.optimizer.zero_grad()
        self.parallel.average.update(self.parallel.student, state.since_cut)
        state.step += 1
        return result

    def check(self, result: StepResult) -> None:
        """Check that a step's numbers are finite.

        Raises:
            TrainingError: the loss or the gradient is not.
        """
        # In fp16 the scaler skips steps whose gradients overflow.
        if math.isfinite(result.loss) and (self.state.scaler is not None or math.isfinite(result.grad_norm)):
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in result.terms.items())
        kept = newest_checkpoint(self.folder)
        raise TrainingError(
            f"training diverged at step {result.step} ({values}, gradient norm {result.grad_norm:.4g}); "
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
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        size = self.config.batch_size // (self.config.accumulation * processes)
        start = (number * processes + rank) * size
        self.places = range(start, start + size)
        apart = {"index": rank, "part": number} if self.config.compile else {}
        torch.manual_seed(torch_seed(self.config.seed, Purpose.DROPOUT, step=self.state.step, **apart))
        moved = draw.to(self.accelerator.device, self.exact)
        student, teacher = self.parallel.student, self.parallel.teacher
        return objective.terms(student, teacher, self.process, moved, objective.jacobian)

    def _dropout(self) -> AbstractContextManager[None]:
        """Masks by image, but in compiled networks, which draw their own."""
        return nullcontext() if self.config.compile else dropout_by_image(self.parallel.student, lambda: self.places)

    def _measure_norms(self, draws: list[Draw], objective: Objective) -> tuple[dict[str, float], Objective]:
        """When they are due, gradient norms of the terms over the whole batch; and the balanced objective.

        This takes passes of its own: the weight must be known before the first micro-batch is trained on.
        """
        balancing = objective.balances and self.state.balanced < BALANCED_STEPS
        if not (balancing or self._norms_due()):
            return {}, objective
        norms = {name: self._gradient_norm(draws, objective, [name]) for name in objective.weights}
        others = self._gradient_norm(draws, objective, [n for n in norms if n != JACOBIAN_TERM]) if balancing else 0.0
        if not all(map(math.isfinite, (*norms.values(), others))):
            return {}, objective  # an overflow; if it is not one of float16, `check` will raise
        if balancing and min(norms[JACOBIAN_TERM], others) > 0:  # else there is nothing to balance yet
            factor = min(1.0, others / norms[JACOBIAN_TERM])
            self.state.jacobian_scale *= factor
            self.state.balanced += 1
            norms[JACOBIAN_TERM] *= factor
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


def runs_asynchronously(device: torch.device) -> bool:
    """Whether Python runs ahead of `device`, so that reading a number at once would make it wait."""
    return device.type == "cuda"
