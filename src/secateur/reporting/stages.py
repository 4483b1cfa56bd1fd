"""What the lines of `stages.jsonl` say about a run; every schedule writes its own kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Stage = Mapping[str, Any]


def soft_stages(stages: Sequence[Stage]) -> list[Stage]:
    """The stages of progressive soft pruning: those that tell how many units have which mask."""
    return [stage for stage in stages if "masks" in stage]


def removal_step(stages: Sequence[Stage]) -> int | None:
    """The step at which the last of the soft `stages` removed the masked units; None if that is yet to come."""
    return stages[-1]["step"] if stages and stages[-1].get("removed") else None


def decisions(stages: Sequence[Stage]) -> list[Stage]:
    """The stages of adaptive pruning: those that tell which numbers of blocks they chose among."""
    return [stage for stage in stages if isinstance(stage.get("candidates"), list)]
