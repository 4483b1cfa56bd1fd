"""What prunes a model while it trains: the interface of the schedules, and what carries their decisions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..base.distributed import from_main
from ..base.errors import TrainingError
from ..base.settings import as_json, differing, say_differing
from ..io.manifest import note_step
from ..models.network import device_of
from ..models.predict import network_of
from ..models.registry import describe
from ..structure import Cut
from ..structure.masks import masked
from .averages import Average, averaged, begin_anew, module_of
from .surgery import cut_in_training


@dataclass(frozen=True)
class Decision:
    """What a pruner decides before a step.

    Attributes:
        pruning: what it will remember, as JSON.
        masks: soft masks from now on, in [0, 1]: dim name to one value per unit, block name to one value.
        record: a line for `stages.jsonl`, as JSON.
        cut: what leaves the model for good, if anything; masks then belong to the model after it.
        details: for the model's manifest, with the cut.
    """

    pruning: dict[str, Any]
    masks: Mapping[str, list[float]]
    record: dict[str, Any]
    cut: Cut | None = None
    details: dict[str, Any] = field(default_factory=dict)


# What is done to a model after a cut, in place, given all cuts since the dense model: compensation, which notes in the
# manifest what it returns.
Refit: TypeAlias = Callable[[nn.Module, Sequence[Cut]], Mapping[str, Any]]


class Pruner(Protocol):
    """Decides how a model is pruned while it trains. It holds settings only: `AttachedPruner` keeps what changes.

    One process decides, and all follow.
    """

    @property
    def base_id(self) -> str:
        """Of the dense model, for the manifest."""
        ...

    @property
    def refit(self) -> Refit | None:
        """What is done to the model after every cut."""
        ...

    def settings(self) -> dict[str, Any]:
        """What a run that is resumed must share, as JSON."""
        ...

    def due(self, step: int) -> bool:
        """Whether there is something to decide before optimizer step `step` (0, 1, ...)."""
        ...

    def decide(self, model: nn.Module, average: nn.Module, pruning: Mapping[str, Any], step: int) -> Decision:
        """The decision before step `step`, from the model and its moving average, both under the present masks."""
        ...


class AttachedPruner:
    """A pruner at work on a model that trains, on its optimizer's state and on its moving average.

    `step()` is called once for every optimizer step, before or after it. Everything that changes is in `state_dict()`,
    which is JSON.

    Attributes:
        pruner: decides.
        model: the network, without what wraps it for several processes or mixed precision.
        runs: what runs under the masks: the network, or the one over its shards.
        optimizer: its state is cut as the parameters are; any that keeps tensors of a parameter's shape.
        average: the moving average of the model, if there is one.
        steps: calls of `step` so far.
        cuts: what was removed at which step, as JSON.
        records: what was decided since this object was made, a line of JSON for each decision.
    """

    def __init__(
        self, pruner: Pruner, model: nn.Module, optimizer: Optimizer | None = None, average: Average | None = None
    ) -> None:
        self.pruner, self.optimizer, self.average = pruner, optimizer, average
        self.model = network_of(model)
        if any(isinstance(parameter, DTensor) for parameter in self.model.parameters()):
            raise TrainingError("the model is sharded, and units cannot leave shards; prune it before it is sharded")
        self.runs = self.model
        self.steps = 0
        self.cuts: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self._memory: dict[str, Any] = {}
        self._hooks = ExitStack()

    @property
    def due(self) -> bool:
        """Whether the next `step` decides something."""
        return self.pruner.due(self.steps)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The soft masks that the model runs under, by dim or block."""
        device = device_of(self.runs)
        return {name: torch.tensor(values, device=device) for name, values in self._memory.get("masks", {}).items()}

    @property
    def last_cut(self) -> int:
        """The step at which units last left, 0 if none did."""
        return self.cuts[-1]["step"] if self.cuts else 0

    def step(self) -> bool:
        """Decide what is due and do it; whether tensors of the model changed.

        Then its parameters are others: whatever was wrapped around the model (DDP, FSDP, torch.compile) must be wrapped
        around it anew. The optimizer holds the new parameters already. Of several processes the first decides; all must
        call this at the same step.
        """
        cuts = len(self.cuts)
        if self.due:
            self._follow(from_main(self._decide))
        self.steps += 1
        return len(self.cuts) > cuts

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs, as JSON."""
        return {"settings": self.pruner.settings(), "steps": self.steps, "cuts": self.cuts, "memory": self._memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, with the model, optimizer and average as they were before any pruning.

        Cuts are made again, so that saved weights and optimizer states fit: load those afterwards.

        Raises:
            TrainingError: `state` is that of a pruner with other settings, or this one has begun already.
        """
        if changes := differing(state["settings"], as_json(self.pruner.settings())):
            raise TrainingError(f"the pruning was begun with other settings ({say_differing(changes)}); use them")
        if self.steps:
            raise TrainingError("this pruning has begun already; load its state into one of the dense model")
        for saved in state["cuts"]:
            self._cut(_cut_of(saved), saved["details"], saved["step"])
            if "refit" in saved:
                self._note_refit(saved["refit"], self.model)
        self.steps, self._memory = state["steps"], dict(state["memory"])
        self.put_masks_on()

    def put_masks_on(self) -> None:
        """Let the model run under the masks that were decided last."""
        self.take_masks_off()
        if masks := self.masks:
            self._hooks.enter_context(masked(self.runs, describe(self.model), masks))

    def run_masks_on(self, network: nn.Module) -> None:
        """Let `network`, which has the modules of the model, run under the masks."""
        self.take_masks_off()
        self.runs = network
        self.put_masks_on()

    def take_masks_off(self) -> None:
        """Let the model run without masks."""
        self._hooks.close()

    def _decide(self) -> Decision:
        with in_full_precision(self.model), self._under_masks() as average:
            return self.pruner.decide(self.model, average, self._memory, self.steps)

    @contextmanager
    def _under_masks(self) -> Iterator[nn.Module]:
        """The average under the masks, in eval mode; the model itself where there is none."""
        if self.average is None:
            modes = {module: module.training for module in self.model.modules()}
            self.model.eval()
            try:
                yield self.model
            finally:
                for module, mode in modes.items():
                    module.training = mode
            return
        self.take_masks_off()  # a copy of the model would have them too
        average = averaged(self.model, self.average)
        self.put_masks_on()
        with masked(average, describe(average), self.masks):
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
        """Refit the model, and let its average begin from it; how far the output was from the dense one, and is."""
        with in_full_precision(self.model):
            noted = refit(self.model, [_cut_of(saved) for saved in self.cuts])
        if self.average is not None:
            begin_anew(self.average, self.model)
        self._note_refit(noted)
        return {name: noted[name] for name in ("before", "after")}

    def _note_refit(self, noted: Mapping[str, Any], *models: nn.Module) -> None:
        """Remember it, and let the manifests of `models` and of the average say so."""
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


def _cut_of(saved: Mapping[str, Any]) -> Cut:
    return Cut({name: tuple(units) for name, units in saved["kept"].items()}, tuple(saved["removed_blocks"]))


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """No autocast around the passes of `model` inside the block, neither torch's nor what accelerate put on it."""
    wrapped = vars(model).pop("forward") if "_original_forward" in vars(model) else None
    try:
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
