"""What prunes a model while it trains: the interface between the trainer and the schedules that need one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from ..structure import Cut


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


class Pruner(Protocol):
    """Prunes a model while it trains. It holds settings only: what changes is in `pruning`, which checkpoints keep.

    One process decides, and all follow.
    """

    @property
    def base_id(self) -> str:
        """Of the dense model, for the manifest."""
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
