"""Pruning in the user's own training loop, with any form of data and process."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..compensation import CompensationConfig
from ..criteria import ScoringConfig
from ..data.conditions import null_conditions
from ..process.named import ProcessLike
from ..process.own import Forward, Loss
from ..recovery.averages import Average
from ..schedules import CutConfig
from ..schedules import Pruning as PruningOfObjects
from ..schedules.pruning import BETWEEN_STAGES, Schedule
from .data import encode_data
from .opening import opened, required
from .stages import calibration, latency_of


class Pruning(PruningOfObjects):
    """Prunes a model while any loop trains it: masks, removal, optimizer state and moving average.

    The constructor scores the model and finds the cut for the target; then call `step()` once for every optimizer step:

        pruning = secateur.Pruning(
            model, target="macs=56%", data=loader, process=scheduler, optimizer=optimizer, ema=ema, steps=2000
        )
        for batch in loader:
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(...)
            if pruning.step():
                ... # tensors changed: wrap the model again, if it is wrapped (DDP, torch.compile)

    `state_dict()` is JSON; `load_state_dict` repeats the cuts on the dense model, before its weights are loaded.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target: str,
        data: Any,
        steps: int,
        process: ProcessLike = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        schedule: Schedule = "progressive",
        optimizer: Optimizer | None = None,
        ema: Average | None = None,
        criterion: str = "taylor",
        scoring: ScoringConfig = BETWEEN_STAGES,
        cut: CutConfig | None = None,
        compensation: CompensationConfig | None = None,
    ) -> None:
        """Rank the units of `model` and find the cut for `target`; the model changes from the first `step()` on.

        Args:
            model: a network with a declared structure, dense or pruned; it may be wrapped for several processes.
            target: the size to reach: macs=56%, params=20M, blocks=6 or latency=20ms.
            data: calibration samples, as for `secateur.prune`; the loop's own data will do.
            steps: number of optimizer steps that the loop will take.
            process: how the model was trained: a name, a diffusers scheduler, its config, or a `Process`.
            forward, loss: functions of (model, batch), in place of a process; `close()` detaches them from the model.
            schedule: one-shot, progressive or adaptive, or a config of the latter two.
            optimizer: its state is cut with the model.
            ema: the moving average: ours, torch's AveragedModel, diffusers' EMAModel, or a module of the same class.
            criterion: ranks units and blocks.
            scoring: options of the criterion.
            cut: which cuts are allowed; by default of widths, for the adaptive schedule of blocks.
            compensation: options of the refit to the dense model after every cut, which needs a copy of the dense
                model; None: no refit.

        Raises:
            SecateurError: bad input, an unreachable target, or a schedule that does not fit into `steps`.
        """
        given = opened(model, data, keeps_shards=True, process=process, forward=forward, loss=loss)
        with ExitStack() as opening:
            subject, dataset = opening.enter_context(given)
            encoded = encode_data(required(dataset), subject)
            super().__init__(
                subject.model,
                target=target,
                data=calibration(subject, encoded, scoring),
                process=subject.process,
                schedule=schedule,
                optimizer=optimizer,
                ema=ema,
                steps=steps,
                criterion=criterion,
                scoring=scoring,
                cut=cut,
                latency_of=latency_of,
                base_id=subject.name,
                compensation=compensation,
                null=null_conditions(subject.model, encoded),
            )
            self._opening = opening.pop_all()

    def close(self) -> None:
        """Detach `forward` and `loss` from the model."""
        self._opening.close()
