"""Pruning during training: the interface of the schedules, and the object that carries out their decisions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim import Optimizer

from ..base.distributed import from_main
from ..base.errors import TrainingError
from ..base.settings import as_json, differing, say_differing
from ..base.shards import require_whole
from ..io.manifest import note_step
from ..models.network import device_of, in_eval_mode, in_full_precision
from ..models.predict import network_of
from ..models.registry import describe
from ..structure import Cut
from ..structure.masks import masked
from .averages import Average, averaged, module_of, restart_average
from .student import make_trainable, trainable
from .surgery import cut_in_training


@dataclass(frozen=True)
class Decision:
    """The decision of a pruner before a step.

    Attributes:
        pruning: the pruner's new state, as JSON.
        masks: soft masks from now on, in [0, 1]: dim name to one value per unit, block name to one value.
        record: a line for `stages.jsonl`, as JSON.
        cut: units and blocks to remove, if any; masks then belong to the model after it.
        details: entries for the model's manifest, with the cut.
    """

    pruning: dict[str, Any]
    masks: Mapping[str, list[float]]
    record: dict[str, Any]
    cut: Cut | None = None
    details: dict[str, Any] = field(default_factory=dict)


# Applied to a model after a cut, in place, given all cuts since the dense model: compensation. What it returns is noted
# in the manifest.
Refit: TypeAlias = Callable[[nn.Module, Sequence[Cut]], Mapping[str, Any]]


class Pruner(Protocol):
    """Decides how a model is pruned while it trains. It holds settings only; `AttachedPruner` keeps the state.

    With several processes, one decides and all follow.
    """

    @property
    def base_id(self) -> str:
        """Id of the dense model, for the manifest."""
        ...

    @property
    def refit(self) -> Refit | None:
        """Applied to the model after every cut."""
        ...

    def settings(self) -> dict[str, Any]:
        """Settings that a resumed run must share, as JSON."""
        ...

    def due(self, step: int) -> bool:
        """Whether there is something to decide before optimizer step `step` (0, 1, ...)."""
        ...

    def decide(self, model: nn.Module, average: nn.Module, pruning: Mapping[str, Any], step: int) -> Decision:
        """The decision before step `step`, from the model and its moving average, both under the present masks."""
        ...


class AttachedPruner:
    """Applies a pruner to a model in training, to its optimizer's state and to its moving average.

    Call `step()` once for every optimizer step, before or after it. The whole state is in `state_dict()`, which is
    JSON.

    Attributes:
        pruner: decides.
        model: the network, without wrappers for several processes or mixed precision.
        runs: what runs with masks: the network, or the one over its shards.
        optimizer: its state is cut with the parameters; any whose state tensors have the parameters' shapes.
        average: the moving average of the model, if there is one.
        steps: calls of `step` so far.
        cuts: all cuts, with their steps, as JSON.
        records: the decisions since this object was made, a JSON object each.
    """

    def __init__(
        self, pruner: Pruner, model: nn.Module, optimizer: Optimizer | None = None, average: Average | None = None
    ) -> None:
        self.pruner, self.optimizer, self.average = pruner, optimizer, average
        self.model = network_of(model)
        require_whole(self.model, "pruning")
        self.runs = self.model
        self.steps = 0
        self.cuts: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self._memory: dict[str, Any] = {}
        self._hooks = ExitStack()

    @property
    def due(self) -> bool:
        """Whether the next `step` makes a decision."""
        return self.pruner.due(self.steps)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The present soft masks, by dim or block."""
        device = device_of(self.runs)
        return {name: torch.tensor(values, device=device) for name, values in self._memory.get("masks", {}).items()}

    @property
    def last_cut(self) -> int:
        """The step of the last cut, 0 if there was none."""
        return self.cuts[-1]["step"] if self.cuts else 0

    def step(self) -> bool:
        """Make and apply the decision that is due, if any; return whether tensors of the model changed.

        If they did, wrap the model again where it was wrapped (DDP, torch.compile); the optimizer already holds
        the new parameters. Of several processes the first decides; all must call this at the same step.
        """
        cuts = len(self.cuts)
        if self.due:
            self._follow(from_main(self._decide))
        self.steps += 1
        return len(self.cuts) > cuts

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON."""
        settings = self.pruner.settings()
        return as_json({"settings": settings, "steps": self.steps, "cuts": self.cuts, "memory": self._memory})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, with model, optimizer and average as they were before any pruning.

        The cuts are repeated, so that saved weights and optimizer states fit: load those afterwards.

        Raises:
            TrainingError: `state` belongs to a pruner with other settings, or this one has begun already.
        """
        if changes := differing(state["settings"], as_json(self.pruner.settings())):
            raise TrainingError(f"the pruning was begun with other settings ({say_differing(changes)}); use them")
        if self.steps:
            raise TrainingError("this pruning has begun already; load its state into one of the dense model")
        for saved in state["cuts"]:
            self._cut(cut_of(saved), saved["details"], saved["step"])
            if "refit" in saved:
                self._note_refit(saved["refit"], self.model)
        self.steps, self._memory = state["steps"], dict(state["memory"])
        self.put_masks_on()

    def put_masks_on(self) -> None:
        """Apply the present masks to the model."""
        self.take_masks_off()
        if masks := self.masks:
            self._hooks.enter_context(masked(self.runs, describe(self.model), masks))
            if "torch._dynamo" in sys.modules:  # what was compiled does not look for new hooks
                torch.compiler.reset()

    def run_masks_on(self, network: nn.Module) -> None:
        """Apply the masks to `network`, which has the modules of the model, from now on."""
        self.take_masks_off()
        self.runs = network
        self.put_masks_on()

    def take_masks_off(self) -> None:
        """Remove the masks from the model."""
        self._hooks.close()

    def _decide(self) -> Decision:
        with in_full_precision(self.model), self._under_masks() as average:
            return self.pruner.decide(self.model, average, self._memory, self.steps)

    @contextmanager
    def _under_masks(self) -> Iterator[nn.Module]:
        """The average with the masks, in eval mode; the model itself if there is no average."""
        if self.average is None:
            with in_eval_mode(self.model):
                yield self.model
            return
        self.take_masks_off()  # a copy of the model would have them too
        average = averaged(self.model, self.average)
        self.put_masks_on()
        with in_eval_mode(average), trained_like(average, self.model), masked(average, describe(average), self.masks):
            yield average

    def _follow(self, decision: Decision) -> None:
        step = self.steps
        self._memory = {**decision.pruning, "masks": {name: list(values) for name, values in decision.masks.items()}}
        self.take_masks_off()
        record = {"step": step, **decision.record}
        if decision.cut is not None:
            self._cut(decision.cut, decision.details, step)
            if self.pruner.refit is not None:
                record["refit"] = self._refit(self.pruner.refit)
        self.put_masks_on()
        self.records.append(record)

    def _refit(self, refit: Refit) -> dict[str, float]:
        """Refit the model, and restart its average from it; returns the output's error before and after."""
        noted = refit(self.model, [cut_of(saved) for saved in self.cuts])
        if self.average is not None:
            restart_average(self.average, self.model)
        self._note_refit(noted)
        return {name: noted[name] for name in ("before", "after")}

    def _note_refit(self, noted: Mapping[str, Any], *models: nn.Module) -> None:
        """Note the refit in the state, and in the manifests of `models` and of the average."""
        self.cuts[-1]["refit"] = dict(noted)
        average = () if self.average is None or isinstance(self.average, EMAModel) else (module_of(self.average),)
        for model in (*models, *average):
            if hasattr(model, "register_to_config"):
                note_step(model, "compensation", noted)

    def _cut(self, cut: Cut, details: Mapping[str, Any], step: int) -> None:
        cut_in_training(self.model, cut, self.optimizer, self.average, details, self.pruner.base_id)
        self.cuts.append(
            {
                "kept": {name: list(units) for name, units in cut.kept.items()},
                "removed_blocks": list(cut.removed_blocks),
                "step": step,
                "details": dict(details),
            }
        )


def cut_of(saved: Mapping[str, Any]) -> Cut:
    """A cut from its JSON."""
    return Cut({name: tuple(units) for name, units in saved["kept"].items()}, tuple(saved["removed_blocks"]))


@contextmanager
def trained_like(average: nn.Module, model: nn.Module) -> Iterator[None]:
    """Inside the block the weights of `average` need gradients where those of `model` do: decisions are made by
    gradients, which many averages do without."""
    needed = trainable(average)
    make_trainable(average, trainable(model))
    try:
        yield
    finally:
        make_trainable(average, needed)
