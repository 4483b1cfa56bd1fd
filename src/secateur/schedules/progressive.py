"""Progressive soft pruning, after Wan et al. (ICASSP 2025, arXiv 2501.09464): masks that shrink while the model trains.

From the paper: iterative structural pruning whose soft masks follow the gradient flow of an energy, within the set of
masks of the wanted sparsity, so that no step loses much at once; the coarse-grained variant is from the journal
version. The rest is reconstructed: the ratio schedule, the bounded Euler step, sticky selections, and all lengths.

The gradient-flow criterion's energy E(m) has dE/dm_g = S_g, the criterion's score, where all masks are 1 (elsewhere
they differ: see `gradient_flow_statistics`). Its flow dm/dtau = -S_g, projected onto the masks with a given number of
selected units, moves the units with the largest S down and leaves the others at 1. Each stage takes one bounded Euler
step, so that a selected unit reaches 0 after `decay_stages`. With another criterion the same process follows that
criterion's order. Units are scored at the trained weights, under their masks: a moving average would lag behind the
masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..base.rules import Count, check_fields
from ..criteria import ScoringConfig
from ..models.registry import describe
from ..recovery.pruner import Decision, Refit, cut_of
from ..structure import Cut, Dim, Structure
from ..structure.cost import CostModel
from .rescore import Scored
from .solver import Scores

COARSE_TIMESTEPS = 8


@dataclass(frozen=True)
class ProgressiveConfig:
    """How masks shrink.

    Attributes:
        stages: stages over which units are selected, more of them early on: r_k = r (1 - (1 - k / stages)^3).
        decay_stages: stages in which a selected unit goes from 1 to 0; 1 is iterative hard pruning.
        stage_steps: optimizer steps between stages.
        sticky: a selected unit stays selected; otherwise every stage selects afresh, and masks may rise again.
        coarse: score at the first, middle and last stage only, on at most 8 timesteps.
    """

    stages: Count = 10
    decay_stages: Count = 5
    stage_steps: Count = 10
    sticky: bool = True
    coarse: bool = False

    def __post_init__(self) -> None:
        check_fields("progressive", self)

    @property
    def last_stage(self) -> int:
        """The stage at which all masks are 0 or 1 and masked units are removed."""
        return self.stages + self.decay_stages

    @property
    def pruning_steps(self) -> int:
        """Optimizer steps before masked units are removed; stage k = 1, 2, ... comes before step (k - 1) *
        stage_steps."""
        return (self.last_stage - 1) * self.stage_steps

    def scoring(self, scoring: ScoringConfig) -> ScoringConfig:
        """The criterion's options between stages."""
        if not self.coarse:
            return scoring
        return replace(scoring, num_timesteps=min(scoring.num_timesteps or COARSE_TIMESTEPS, COARSE_TIMESTEPS))

    def scores_at(self, stage: int) -> bool:
        """Whether units are scored again at `stage`."""
        if self.coarse:
            return stage in (1, max(1, self.stages // 2), self.stages)
        return stage <= self.stages


def selected_count(total: int, stage: int, stages: int) -> int:
    """How many of the `total` units to remove are selected at `stage` k of K: total (1 - (1 - k/K)^3), rounded down."""
    left = stages - min(stage, stages)
    return total * (stages**3 - left**3) // stages**3


def caps(dim: Dim, kept: int) -> list[int]:
    """How many units each cell of `dim` loses when `kept` stay in all: the same fraction of every cell."""
    level = kept * dim.levels // dim.size
    return [cell - cell * level // dim.levels for cell in dim.cells]


def select(dim: Dim, scores: Tensor, selected: set[int], count: int, cell_caps: list[int]) -> set[int]:
    """`selected` and the lowest scoring other units of `dim`, `count` in all, none above the cap of its cell."""
    chosen = set(selected)
    cell_of = [cell for cell, units in enumerate(dim.cell_ranges()) for _ in units]
    taken = [0] * len(dim.cells)
    for unit in chosen:
        taken[cell_of[unit]] += 1
    for unit in scores.sort(descending=True, stable=True).indices.flip(0).tolist():  # ties: the later first
        cell = cell_of[unit]
        if len(chosen) >= count:
            break
        if unit not in chosen and taken[cell] < cell_caps[cell]:
            chosen.add(unit)
            taken[cell] += 1
    return chosen


def euler_step(mask: list[float], selected: set[int], decay_stages: int) -> list[float]:
    """One bounded step of the projected flow: selected units down by 1 / decay_stages, the others up, within [0, 1].

    Counted in whole steps, so that masks end at exactly 0 and 1.
    """
    moved = []
    for unit, value in enumerate(mask):
        level = round(value * decay_stages) + (-1 if unit in selected else 1)
        moved.append(min(max(level, 0), decay_stages) / decay_stages)
    return moved


@dataclass(frozen=True)
class Progressive:
    """A pruner (see `recovery.pruner`) that shrinks masks stage by stage and then removes the units at 0.

    Attributes:
        config: its settings.
        target: the cut that one-shot pruning would make; the masks end at its widths and its blocks. It is kept in the
            state, since a resumed run may measure another one.
        scorer: scores the masked model.
        cost: prices cuts of the dense model.
        described: settings of criterion and target, which a resumed run must share.
        details: for the manifest.
        refit: what is done to the model after a cut.
    """

    config: ProgressiveConfig
    target: Cut
    scorer: Callable[[nn.Module], Scored]
    cost: CostModel
    described: dict[str, Any]
    details: dict[str, Any]
    base_id: str = ""
    refit: Refit | None = None

    def settings(self) -> dict[str, Any]:
        return {"schedule": "progressive", **asdict(self.config), **self.described}

    def due(self, step: int) -> bool:
        return step % self.config.stage_steps == 0 and step <= self.config.pruning_steps

    def decide(self, model: nn.Module, average: nn.Module, pruning: Mapping[str, Any], step: int) -> Decision:
        """Move the masks, then select further units; at the last stage, cut."""
        config, structure = self.config, describe(model)
        target = cut_of(pruning["target"]) if "target" in pruning else self.target
        stage = step // config.stage_steps + 1
        facts: dict[str, float] = {}
        scores = _tensors(pruning.get("scores", {}))
        if config.scores_at(stage):
            scored = self.scorer(model)
            scores, facts = dict(scored.scores), scored.facts
        masks = pruning.get("masks") or _open_masks(target, structure)
        selected = {name: set(units) for name, units in pruning.get("selected", {}).items()}
        masks = {name: euler_step(mask, selected.get(name, set()), config.decay_stages) for name, mask in masks.items()}
        if stage <= config.stages:
            selected = self._select(target, structure, scores, selected, stage)
        removed = frozenset(name for name in target.removed_blocks if selected[name])
        kept = {name: structure.dims[name].size - len(selected[name]) for name in target.kept}
        record = {
            "stage": stage,
            "selected": sum(len(units) for units in selected.values()),
            "macs": round(self.cost(kept, removed).macs),
            "masks": _histogram(masks, config.decay_stages),
            "added": _added(pruning.get("selected", {}), selected, scores),
            **facts,
        }
        remembered = {
            "target": asdict(target),
            "selected": {name: sorted(units) for name, units in selected.items()},
            "scores": {name: values.tolist() for name, values in scores.items()} if config.coarse else {},
        }
        if stage < config.last_stage:
            return Decision(remembered, masks, record)
        record["removed"] = True
        units = {name: tuple(i for i, value in enumerate(masks[name]) if value == 1) for name in target.kept}
        return Decision({}, {}, record, Cut(units, target.removed_blocks), self.details)

    def _select(
        self, target: Cut, structure: Structure, scores: Scores, selected: dict[str, set[int]], stage: int
    ) -> dict[str, set[int]]:
        before = selected if self.config.sticky else {}
        chosen = {}
        for name, units in target.kept.items():
            dim = structure.dims[name]
            count = selected_count(dim.size - len(units), stage, self.config.stages)
            chosen[name] = select(dim, scores[name], before.get(name, set()), count, caps(dim, len(units)))
        # The blocks of the target, in the order of their present scores.
        blocks = sorted(target.removed_blocks, key=lambda name: (not before.get(name), scores[name].item()))
        leaving = blocks[: selected_count(len(blocks), stage, self.config.stages)]
        return chosen | {name: ({0} if name in leaving else set()) for name in blocks}


def _tensors(scores: Mapping[str, list[float]]) -> dict[str, Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}


def _open_masks(target: Cut, structure: Structure) -> dict[str, list[float]]:
    """Masks of 1 for every unit of the dims that will lose some, and for every block that will be removed."""
    dims = {name: [1.0] * structure.dims[name].size for name in target.kept}
    return dims | {name: [1.0] for name in target.removed_blocks}


def _added(
    before: Mapping[str, list[int]], selected: Mapping[str, set[int]], scores: Scores
) -> dict[str, dict[str, list[Any]]]:
    """The units that are newly in `selected`, with their scores, by dim or block."""
    new = {name: sorted(units.difference(before.get(name, []))) for name, units in selected.items()}
    return {name: {"units": units, "scores": scores[name][units].tolist()} for name, units in new.items() if units}


def _histogram(masks: Mapping[str, list[float]], decay_stages: int) -> list[int]:
    """How many units have the mask value 0, 1 / decay_stages, ..., 1."""
    levels = [round(value * decay_stages) for values in masks.values() for value in values]
    return [levels.count(level) for level in range(decay_stages + 1)]
