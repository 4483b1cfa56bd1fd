"""Pruning inside a training loop: from a target, a schedule and calibration data to an object that the loop calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.errors import SecateurError, TargetError, require, require_one_of
from ..base.units import number_of
from ..compensation import CompensationConfig, compensate
from ..compensation.compensate import check_null_condition
from ..criteria import ScoringConfig
from ..data import Batch
from ..data.conditions import accepts, null_conditions
from ..models.conditions import Conditions
from ..models.network import device_of
from ..models.predict import network_of
from ..models.pricing import priced
from ..models.registry import describe
from ..process.base import Process
from ..recovery.averages import Average
from ..recovery.pruner import AttachedPruner, Decision, Pruner, Refit
from ..structure import Cut, Structure, select
from .adaptive import Adaptive, AdaptiveConfig
from .block_cuts import LatencyOf, block_cuts
from .one_shot import CutConfig, check_criterion, granularity_for, one_shot
from .progressive import Progressive, ProgressiveConfig
from .proxies import judge
from .rescore import stage_scorer
from .solver import Scores
from .target import Target, parse_target

ScheduleName = Literal["one-shot", "progressive", "adaptive"]
Schedule: TypeAlias = "ScheduleName | ProgressiveConfig | AdaptiveConfig"
BETWEEN_STAGES = ScoringConfig(num_timesteps=32, num_images=64)  # cheap: every stage scores again


@dataclass(frozen=True)
class Goal:
    """What a schedule aims at: the one-shot cut for its target, and the scores that chose it.

    Attributes:
        target: as the user gave it.
        cut: the widths and blocks that meet it.
        scores: those of the dense model.
        recorded: for the manifest: the target, the amounts asked and reached, and the dense model's amount.
    """

    target: Target
    cut: Cut
    scores: Scores
    recorded: Mapping[str, Any]


@dataclass(frozen=True)
class OneShot:
    """A pruner (see `recovery.pruner`) that makes one cut at the first step."""

    cut: Cut
    described: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    base_id: str = ""
    refit: Refit | None = None

    def settings(self) -> dict[str, Any]:
        return {"schedule": "one-shot", **self.described}

    def due(self, step: int) -> bool:
        return step == 0

    def decide(self, model: nn.Module, average: nn.Module, pruning: Mapping[str, Any], step: int) -> Decision:
        return Decision({}, {}, {"stage": 1, "removed": True}, self.cut, self.details)


@dataclass(frozen=True)
class Compensating:
    """Refits a model that is cut during training to the dense one.

    Attributes:
        dense: the dense model, which does not change.
        batch: calibration images with the conditions that the model takes.
        config: options.
        null: the values that stand for no condition.
    """

    dense: nn.Module
    batch: Batch
    config: CompensationConfig
    null: Conditions

    def refit(self, process: Process, model: nn.Module, cuts: Sequence[Cut]) -> dict[str, Any]:
        """Refit `model`, in place, after `cuts` of the dense model; return the entry for its manifest."""
        place = device_of(self.dense)  # while weights are trained in shards, that is the CPU
        self.dense.to(device_of(model))
        found = compensate(model, self.dense, process, self.batch, self.config, cuts, self.null)
        self.dense.to(place)
        return {**found.options, "before": found.before, "after": found.after, "layers": len(found.readers)}


def build_pruner(
    schedule: ProgressiveConfig | AdaptiveConfig | None,
    model: nn.Module,
    structure: Structure,
    process: Process,
    batch: Batch,
    goal: Goal,
    *,
    criterion: str,
    scoring: ScoringConfig,
    cut: CutConfig,
    steps: int,
    latency_of: LatencyOf,
    base_id: str = "",
    compensation: Compensating | None = None,
) -> Pruner:
    """The pruner that takes the dense `model` to `goal`; without a `schedule`, in one cut.

    A progressive schedule ends at the goal's widths and blocks, an adaptive one at its amount. `batch` holds
    calibration images, on the model's device, with the conditions that it takes; `steps` is the number of optimizer
    steps. With `compensation`, what stays is refitted to the dense model after every cut.
    """
    if isinstance(schedule, ProgressiveConfig):
        scoring = schedule.scoring(scoring)
    described = {"cut": asdict(cut), "criterion": criterion, "scoring": asdict(scoring), "target": str(goal.target)}
    refit = None
    if compensation is not None:
        described["compensation"] = asdict(compensation.config)
        refit = partial(compensation.refit, process)
    details = {**goal.recorded, "schedule": schedule_name(schedule), **described}
    scorer = stage_scorer(process, batch, criterion, scoring)
    cost = priced(model, structure)
    if schedule is None:
        return OneShot(goal.cut, described, details, base_id, refit)
    if isinstance(schedule, ProgressiveConfig):
        details |= {"progressive": asdict(schedule)}
        return Progressive(schedule, goal.cut, scorer, cost, described, details, base_id, refit)
    del details["reached"]  # holds for the one-shot cut; stages may choose other blocks
    details |= {"adaptive": asdict(schedule)}
    return Adaptive(
        schedule,
        schedule.boundaries(steps),
        block_cuts(Target(goal.target.metric, goal.recorded["asked"], is_fraction=False), cut, latency_of),
        goal.scores,
        scorer,
        judge(process, batch, scoring.seed),
        cost({}).macs,
        described,
        details,
        base_id,
        refit,
    )


def schedule_name(schedule: ProgressiveConfig | AdaptiveConfig | None) -> ScheduleName:
    """Its name in recipes and on the command line."""
    if schedule is None:
        return "one-shot"
    return "progressive" if isinstance(schedule, ProgressiveConfig) else "adaptive"


class Pruning(AttachedPruner):
    """Prunes a model while any loop trains it; call `step()` once for every optimizer step.

    `secateur.Pruning` also accepts pipelines, loaders and names. `state_dict()` is JSON; `load_state_dict` repeats the
    cuts on the dense model, before its weights are loaded.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target: Target | str,
        data: Batch | Tensor,
        process: Process,
        schedule: Schedule = "progressive",
        optimizer: Optimizer | None = None,
        ema: Average | None = None,
        steps: int,
        criterion: str = "taylor",
        scoring: ScoringConfig = BETWEEN_STAGES,
        cut: CutConfig | None = None,
        latency_of: LatencyOf | None = None,
        base_id: str = "",
        compensation: CompensationConfig | None = None,
        null: Conditions | None = None,
    ) -> None:
        """Rank the units of `model` and find the cut for `target`; the model changes from the first `step()` on.

        Args:
            model: a network with a declared structure, dense or pruned; it may be wrapped for several processes.
            target: such as "macs=56%", "params=20M" or "blocks=6".
            data: calibration images in [-1, 1] or latents, (B, C, H, W), with their conditions if the model takes any.
            process: how the model was trained.
            schedule: one-shot, progressive or adaptive, or a config of the latter two.
            optimizer: its state is cut with the model.
            ema: the moving average: ours, torch's AveragedModel, diffusers' EMAModel, or a module of the same class.
            steps: number of optimizer steps that the loop will take.
            criterion: ranks units and blocks.
            scoring: options of the criterion.
            cut: which cuts are allowed; by default of widths, for the adaptive schedule of blocks.
            latency_of: measures the latency of cuts, for a target in milliseconds.
            base_id: name of the dense model in the manifest.
            compensation: options of the refit to the dense model after every cut, which needs a copy of the dense
                model; None: no refit.
            null: the null condition, for `compensation.condition_dropout`; by default the model's null class.

        Raises:
            TargetError: the target cannot be read or reached.
            SecateurError: the schedule does not fit into `steps`, or does not go with `cut`; a pattern of `cut` matches
                nothing; or the refit is to drop conditions, and there is no null condition.
            TrainingError: the model is sharded; a score is not finite.
        """
        network = network_of(model)
        goal_target = parse_target(target) if isinstance(target, str) else target
        if isinstance(schedule, str):
            require_one_of("schedule", schedule, ScheduleName)
        chosen = fitted(schedule, steps)
        allowed = cut or CutConfig(granularity="depth" if isinstance(chosen, AdaptiveConfig) else "width")
        structure, granularity = _selected(network, allowed, chosen), granularity_for(goal_target, allowed)
        check_criterion(criterion, structure, granularity)
        check_fits(chosen, steps, granularity == "depth")
        null = null_conditions(network) if null is None else null
        if compensation is not None:
            check_null_condition(compensation, bool(null))
        if goal_target.metric == "latency" and latency_of is None:
            raise TargetError(f"{goal_target} needs latency_of, which measures cuts; or ask for macs, params or blocks")
        batch = (data if isinstance(data, Batch) else Batch(data)).to(device_of(network))
        batch = replace(batch, conditions=accepts(network)(batch.conditions))
        scores = stage_scorer(process, batch, criterion, scoring)(network).scores
        latency = latency_of or _no_latency
        solution, described = one_shot(
            network,
            structure,
            goal_target,
            scores,
            allowed,
            measure_latency=latency(network, structure) if goal_target.metric == "latency" else None,
        )
        recorded = {key: getattr(described, key) for key in ("target", "metric", "asked", "reached", "dense")}
        refitting = None
        if compensation is not None:
            refitting = Compensating(copy.deepcopy(network).eval(), batch, compensation, null)
        pruner = build_pruner(
            chosen,
            network,
            structure,
            process,
            batch,
            Goal(goal_target, solution.cut, scores, recorded),
            criterion=criterion,
            scoring=scoring,
            cut=allowed,
            steps=steps,
            latency_of=latency,
            base_id=base_id,
            compensation=refitting,
        )
        super().__init__(pruner, network, optimizer, ema)


def fitted(schedule: Schedule, steps: int) -> ProgressiveConfig | AdaptiveConfig | None:
    """The config of a schedule, None for one-shot; a progressive schedule given by name ends after half of `steps`."""
    if schedule == "one-shot":
        return None
    if schedule == "adaptive":
        return AdaptiveConfig()
    if schedule == "progressive":
        default = ProgressiveConfig()
        longest = max(1, steps // 2 // (default.last_stage - 1))
        return replace(default, stage_steps=min(default.stage_steps, longest))
    assert not isinstance(schedule, str)
    return schedule


def check_fits(schedule: ProgressiveConfig | AdaptiveConfig | None, steps: int, drops_blocks_only: bool) -> None:
    """Check that pruning ends before training does.

    Raises:
        SecateurError: the stages take all steps or more; or they remove blocks, and `cut` narrows widths.
    """
    if isinstance(schedule, ProgressiveConfig):
        needed = schedule.pruning_steps
        require(
            needed < steps,
            f"progressive pruning takes {number_of(needed, 'step')}, recovery has {steps}; give more --steps, or "
            "fewer --progressive.stage-steps",
        )
    if isinstance(schedule, AdaptiveConfig):
        boundaries = schedule.boundaries(steps)
        require(
            len(set(boundaries)) == len(boundaries),
            f"{len(boundaries)} adaptive stages do not fit into the first {100 * schedule.until:g}% of "
            f"{number_of(steps, 'step')}; give more --steps, or fewer --adaptive.stages",
        )
        require(
            drops_blocks_only,
            "the adaptive schedule drops blocks; add --cut.granularity depth, or give a number of blocks as the "
            "target, such as blocks=6",
        )


def _selected(network: nn.Module, cut: CutConfig, schedule: ProgressiveConfig | AdaptiveConfig | None) -> Structure:
    """The structure of `network`, reduced to what `cut` includes."""
    try:
        selection = select(describe(network), cut.include, cut.exclude)
    except ValueError as error:
        raise SecateurError(f"{type(network).__name__}: {error}") from error
    check_all_blocks(schedule, selection.left_out)
    return selection.structure


def check_all_blocks(schedule: ProgressiveConfig | AdaptiveConfig | None, excluded: Collection[str]) -> None:
    """Check that nothing is excluded from a schedule that decides over all blocks.

    Raises:
        SecateurError: something is.
    """
    require(
        not (isinstance(schedule, AdaptiveConfig) and excluded),
        "the adaptive schedule decides over all blocks: leave cut.include and cut.exclude out",
    )


def _no_latency(model: nn.Module, structure: Structure) -> Callable[[Cut], float]:
    def measure(cut: Cut) -> float:
        raise AssertionError("no latency was asked for")

    return measure
