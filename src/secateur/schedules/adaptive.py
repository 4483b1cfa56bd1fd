"""Adaptive progressive block pruning, after EntPruner (Li et al. 2025, arXiv 2511.21122). A reconstruction.

From the paper and its reviews: while a model is fine-tuned, four stages decide, without training, how many more blocks
to remove, in the order of CED on the target data; each picks among sub-networks by two zero-cost proxies, the condition
number of the NTK and ZiCo, weighted equally.

Chosen here: any criterion may order the blocks; stages are evenly spaced over the first quarter of the steps; there are
three to five candidates, of which the lowest removes nothing now; a guard bounds the loss; MACs saved are rewarded; and
the last stage removes whatever the target still requires, since it must be reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from ..base.rules import Count, at_least, check_fields, from_to_below
from ..models.pricing import priced
from ..models.registry import describe
from ..recovery.pruner import Decision, Refit
from ..structure import Cut, Structure, without_blocks
from .proxies import Judgement
from .rescore import Scored
from .solver import Scores

Selector = Literal["proxy", "loss", "fixed"]
Rerank = Literal["removal", "stage", "once"]
MOST_CANDIDATES = 5


@dataclass(frozen=True)
class AdaptiveConfig:
    """When blocks are removed, and how many.

    Attributes:
        stages: number of decisions; 1 is one-shot pruning before the first step.
        until: share of the recovery steps by which the last decision is made.
        selector: proxy weighs NTK, ZiCo and MACs; loss removes as many blocks as the guard allows; fixed removes the
            same number at every stage.
        rerank: rank blocks again after every removal, at every stage, or rank them once, in the dense model.
        macs_weight: reward for saving all of the dense MACs, in standard deviations of the proxies; 0 is the paper's
            rule.
        guard: a candidate whose loss is above this multiple of the present model's is chosen only if there is no other.
    """

    stages: Count = 4
    until: Annotated[float, from_to_below(0, 1)] = 0.25
    selector: Selector = "proxy"
    rerank: Rerank = "once"
    macs_weight: Annotated[float, at_least(0)] = 0.5
    guard: Annotated[float, at_least(1)] = 1.25

    def __post_init__(self) -> None:
        check_fields("adaptive", self)

    @property
    def rankings(self) -> int:
        """How often blocks are ranked again, at least."""
        return {"once": 0, "stage": self.stages - 1, "removal": self.stages}[self.rerank]

    @property
    def judgements(self) -> int:
        """How many networks are judged, at most: the present one and the candidates of every stage but the last."""
        return 0 if self.selector == "fixed" else (self.stages - 1) * (1 + MOST_CANDIDATES)

    def boundaries(self, steps: int) -> tuple[int, ...]:
        """The optimizer steps before which decisions are made, from 0 to the share `until` of `steps`."""
        last = max(self.stages - 1, 1)
        return tuple(min(round(stage * self.until * steps / last), steps - 1) for stage in range(self.stages))


def candidate_counts(removed: int, total: int, stage: int, stages: int) -> list[int]:
    """The numbers of removed blocks to choose from after `stage` (0, 1, ...), ascending, at most five.

    `removed` blocks are gone already, `total` will be in the end. A stage removes at most twice its even share, and
    leaves no more than the later ones can remove; the last one removes the rest.
    """
    later = stages - 1 - stage
    if later == 0:
        return [total]
    most = math.ceil(2 * total / stages)
    high = max(removed, min(total, removed + most))
    low = min(max(removed, total - later * most), high)  # new scores may have raised the total since the last stage
    count = min(MOST_CANDIDATES, high - low + 1)
    return [low + round(i * (high - low) / max(count - 1, 1)) for i in range(count)]


@dataclass(frozen=True)
class Candidate:
    """A number of removed blocks, what was measured without them, and the share of the dense MACs that this saves."""

    count: int
    judgement: Judgement
    saved: float


def objective(candidates: Sequence[Candidate], macs_weight: float) -> list[float]:
    """J = z(-log kappa) / 2 + z(ZiCo) / 2 + macs_weight * share of MACs saved, z over the candidates."""
    conditions = standardized([-candidate.judgement.log_condition for candidate in candidates])
    zicos = standardized([candidate.judgement.zico for candidate in candidates])
    return [
        condition / 2 + zico / 2 + macs_weight * candidate.saved
        for condition, zico, candidate in zip(conditions, zicos, candidates, strict=True)
    ]


def standardized(values: Sequence[float]) -> list[float]:
    """(values - mean) / standard deviation; zeros if they are constant or not all finite."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    if not (math.isfinite(deviation) and deviation > 1e-12 * abs(mean)):
        return [0.0] * len(values)
    return [(value - mean) / deviation for value in values]


def choose(candidates: Sequence[Candidate], loss: float, config: AdaptiveConfig) -> int:
    """The index of the candidate that the selector, proxy or loss, chooses; `loss` is the present model's."""
    allowed = [i for i, candidate in enumerate(candidates) if candidate.judgement.loss <= config.guard * loss]
    if not allowed:
        return 0
    if config.selector == "loss":
        return allowed[-1]
    scores = objective(candidates, config.macs_weight)
    return max(allowed, key=lambda i: (scores[i], -i))


@dataclass(frozen=True)
class Adaptive:
    """A pruner (see `recovery.pruner`) that decides at each boundary how many blocks leave, and which.

    Attributes:
        config: its settings.
        boundaries: the steps before which it decides.
        goal: gives the cut of blocks that takes a model to the target, by the scores of its blocks.
        scores: those of the dense model's blocks. They are kept in the state, since a resumed run may find others.
        scorer: scores the blocks of a smaller model, if `config.rerank` asks for it.
        judge: measures a model.
        dense_macs: MACs of the model before any cut.
        described: settings of criterion and target, which a resumed run must share.
        details: for the manifest.
        refit: applied to the model after a cut.
    """

    config: AdaptiveConfig
    boundaries: tuple[int, ...]
    goal: Callable[[nn.Module, Structure, Scores], Cut]
    scores: Scores
    scorer: Callable[[nn.Module], Scored]
    judge: Callable[[nn.Module], Judgement]
    dense_macs: float
    described: dict[str, Any]
    details: dict[str, Any]
    base_id: str = ""
    refit: Refit | None = None

    def settings(self) -> dict[str, Any]:
        return {"schedule": "adaptive", **asdict(self.config), "boundaries": list(self.boundaries), **self.described}

    def due(self, step: int) -> bool:
        return step in self.boundaries

    def decide(self, model: nn.Module, average: nn.Module, pruning: Mapping[str, Any], step: int) -> Decision:
        """Judge the moving average without its lowest-ranked blocks, and choose how many of them to remove."""
        stage, structure = self.boundaries.index(step), describe(average)
        # Blocks are renamed when others are removed; log and state use the dense model's names.
        dense_name = dict(zip(structure.blocks, pruning.get("blocks", structure.blocks), strict=True))
        gone = int(pruning.get("gone", 0))
        first = _scores_from(pruning["scores"]) if "scores" in pruning else self.scores
        scores = self._scores(average, structure, gone, dense_name, stage, first)
        leaving = sorted(self.goal(average, structure, scores).removed_blocks, key=lambda name: scores[name].item())
        counts = self._counts(gone, gone + len(leaving), stage)
        cost = priced(average, structure)
        saved = [1 - cost({}, leaving[: count - gone]).macs / self.dense_macs for count in counts]
        described: list[dict[str, Any]] = [
            {"count": count, "saved": share} for count, share in zip(counts, saved, strict=True)
        ]
        chosen = 0
        if len(counts) > 1:
            present = self.judge(average)
            judged = [
                present if count == gone else self.judge(without_blocks(average, structure, leaving[: count - gone]))
                for count in counts
            ]
            candidates = [Candidate(*fields) for fields in zip(counts, judged, saved, strict=True)]
            chosen = choose(candidates, present.loss, self.config)
            measured = describe_candidates(candidates, present.loss, self.config.macs_weight)
            described = [facts | more for facts, more in zip(described, measured, strict=True)]
        ranked = sorted(structure.blocks, key=lambda name: scores[name].item())
        removed = leaving[: counts[chosen] - gone]
        left = tuple(name for name in structure.blocks if name in removed)
        kept = [dense_name[name] for name in structure.blocks if name not in left]
        record = {
            "stage": stage + 1,
            "ranking": {dense_name[name]: scores[name].item() for name in ranked},
            "candidates": described,
            "chosen": counts[chosen],
            "removed": [dense_name[name] for name in removed],
            "blocks": len(kept),
            "macs": round((1 - saved[chosen]) * self.dense_macs),
        }
        remembered = {"blocks": kept, "gone": counts[chosen], "scores": {name: first[name].tolist() for name in kept}}
        details = {**self.details, "stage": stage + 1, "step": step}
        return Decision(remembered, {}, record, Cut({}, left) if left else None, details)

    def _counts(self, gone: int, total: int, stage: int) -> list[int]:
        if self.config.selector == "fixed":
            return [max(gone, round(total * (stage + 1) / self.config.stages))]
        return candidate_counts(gone, total, stage, self.config.stages)

    def _scores(
        self,
        average: nn.Module,
        structure: Structure,
        gone: int,
        dense_name: Mapping[str, str],
        stage: int,
        first: Scores,
    ) -> Scores:
        """Scores of the blocks: those of the dense model, `first`, new ones, or places in the order of one-by-one
        removal."""
        if stage == 0 or self.config.rerank == "once":
            scores = {name: first[dense_name[name]] for name in structure.blocks}
        else:
            scores = {name: values for name, values in self.scorer(average).scores.items() if name in structure.blocks}
        if self.config.rerank != "removal":
            return scores
        total = len(self.goal(average, structure, scores).removed_blocks)
        order = self._one_by_one(average, structure, scores, self._counts(gone, gone + total, stage)[-1] - gone)
        rest = sorted(set(structure.blocks) - set(order), key=lambda name: scores[name].item())
        return {name: torch.tensor([place]).double() for place, name in enumerate([*order, *rest])}

    def _one_by_one(self, average: nn.Module, structure: Structure, scores: Scores, count: int) -> list[str]:
        """The first `count` blocks to remove when the others are ranked again after each removal."""
        order: list[str] = []
        names = list(structure.blocks)
        while len(order) < count:
            ranked = sorted(names, key=lambda name: scores[name].item())
            first = structure.removable([*order, *ranked])[len(order)]
            order.append(first)
            names.remove(first)
            if len(order) < count:
                smaller = without_blocks(average, structure, order)
                fresh = self.scorer(smaller).scores
                scores = {name: fresh[renamed] for name, renamed in zip(names, describe(smaller).blocks, strict=True)}
        return order


def _scores_from(saved: Mapping[str, list[float]]) -> Scores:
    return {name: torch.tensor(values).double() for name, values in saved.items()}


def describe_candidates(candidates: Sequence[Candidate], loss: float, macs_weight: float) -> list[dict[str, Any]]:
    """Numbers of the candidates for the log; null where one is not finite."""
    scores = objective(candidates, macs_weight)
    return [
        {
            "ntk": _number(candidate.judgement.log_condition),
            "zico": _number(candidate.judgement.zico),
            "guard": _number(candidate.judgement.loss / loss),
            "score": score,
        }
        for candidate, score in zip(candidates, scores, strict=True)
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
