"""Predicting how long a run will take, from a few measured steps of the model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from typing_extensions import assert_never

from ..base.distributed import process_count
from ..base.errors import SecateurError
from ..compensation import CompensationConfig, Price, measure_speed, price
from ..criteria import ScoringConfig, criterion_named
from ..criteria.criterion import FORWARD_SHARE
from ..criteria.gradients import differentiable
from ..evaluation import EvaluationConfig, forward_passes
from ..evaluation.costs import count_macs
from ..evaluation.metrics.latency import synchronize
from ..models.network import device_of, example_batch, example_inputs, input_shape
from ..models.pricing import priced
from ..models.registry import describe
from ..process.base import Process, denoising_error
from ..recipes import Recipe
from ..recovery import RecoveryConfig, WarmupConfig
from ..recovery.objectives.build import build_objective
from ..recovery.objectives.objective import recording_passes
from ..recovery.reading import contents_of, tuples_for
from ..results import CutResult
from ..schedules import AdaptiveConfig, ProgressiveConfig
from ..schedules.proxies import JUDGED_PASSES
from ..schedules.pruning import check_fits
from ..structure import Cut, Structure
from ..teacher import BookConfig
from .subject import Subject

TIMED_STEPS = 3
TIMED_IMAGES = 32  # at once; fewer if they are large, or if a pass is slow, which suggests that it takes much memory
TIMED_ENTRIES = 2**19
TIMED_SECONDS = 1.0
REFIT = "compensate"
STAGES = ("warm up", "rank", "rank again", REFIT, "decide", "record", "recover", "evaluate")


@dataclass(frozen=True)
class PrunedLate:
    """Work that pruning during recovery adds: rankings, their options, networks judged, steps near the dense size,
    cuts; and whether it would fit into half the steps."""

    rankings: int
    scoring: ScoringConfig
    judgements: int
    dense_steps: int
    cuts: int
    fits_into_half: bool = True


@dataclass(frozen=True)
class Work:
    """The work of a command, by stage; None for stages that it does not have.

    Attributes:
        plan: the cut (`plan_cut`).
        ranking: the criterion and its options.
        compensation: options of the refit.
        recovery: how the cut model is trained.
        evaluation: what is evaluated.
        pruned_late: work that a schedule adds by pruning during recovery.
        teacher: the model that recovery matches, if it is not the loaded one.
        warmup: how new labels are trained; its batches are as large as recovery's.
        book: how the teacher's answers are recorded, and for which recovery.
        reads: recovery reads a book that exists already.
        reference: the model that is evaluated beside the loaded one.
        copies: copies of the loaded model, in other precisions, that are evaluated too.
    """

    plan: CutResult | None = None
    ranking: tuple[str, ScoringConfig] | None = None
    compensation: CompensationConfig | None = None
    recovery: RecoveryConfig | None = None
    evaluation: EvaluationConfig | None = None
    pruned_late: PrunedLate | None = None
    teacher: nn.Module | None = None
    warmup: WarmupConfig | None = None
    book: tuple[BookConfig, RecoveryConfig] | None = None
    reads: bool = False
    reference: nn.Module | None = None
    copies: tuple[nn.Module, ...] = ()

    @property
    def cut_models(self) -> int:
        """How many cut models are evaluated beside the dense one: pruned, compensated, recovered."""
        if self.recovery is None:
            return 0
        return 1 if self.pruned_late is not None else 2 if self.compensation is None else 3


def work_of(recipe: Recipe, plan: CutResult | None, warmup: WarmupConfig | None = None) -> Work:
    """The work of a whole compression."""
    ranking = (recipe.criterion, recipe.scoring)
    compensation = recipe.compensation if recipe.compensates else None
    book = (recipe.book, recipe.recovery) if recipe.records else None
    late = pruned_late(recipe)
    return Work(plan, ranking, compensation, recipe.recovery, recipe.evaluation, late, warmup=warmup, book=book)


def pruned_late(recipe: Recipe) -> PrunedLate | None:
    """The work that the recipe's schedule adds; None for one-shot."""
    if recipe.schedule == "one-shot":
        return None
    if recipe.schedule == "progressive":
        config = recipe.progressive
        rankings = sum(config.scores_at(stage) for stage in range(1, config.last_stage))
        fits = _fits(config, recipe.recovery.steps // 2)
        return PrunedLate(rankings, config.scoring(recipe.scoring), 0, config.pruning_steps, 1, fits)
    if recipe.schedule == "adaptive":
        adaptive = recipe.adaptive
        last = adaptive.boundaries(recipe.recovery.steps)[-1]
        fits = _fits(adaptive, recipe.recovery.steps // 2)
        return PrunedLate(adaptive.rankings, recipe.scoring, adaptive.judgements, last, adaptive.stages, fits)
    assert_never(recipe.schedule)


def _fits(schedule: ProgressiveConfig | AdaptiveConfig, steps: int) -> bool:
    try:
        check_fits(schedule, steps, drops_blocks_only=True)
    except SecateurError:
        return False
    return True


def predict_passes(subject: Subject, work: Work) -> dict[str, float]:
    """The work of each stage except the refit, in forward-and-backward passes of one image through the dense model."""
    plan, recovery, evaluation, pruned_late = work.plan, work.recovery, work.evaluation, work.pruned_late
    ratio = 1.0 if plan is None else plan.after.macs / plan.before.macs
    stages: dict[str, float] = {}
    if work.warmup is not None and recovery is not None:
        stages["warm up"] = float(work.warmup.steps * recovery.batch_size)
    if work.ranking is not None:
        name, config = work.ranking
        stages["rank"] = _passes(subject, subject.structure, name, config)
        if pruned_late is not None and pruned_late.rankings:
            whole = describe(subject.model)  # a schedule ranks what is excluded too
            stages["rank again"] = pruned_late.rankings * _passes(subject, whole, name, pruned_late.scoring)
    if pruned_late is not None and pruned_late.judgements:
        stages["decide"] = float(pruned_late.judgements * JUDGED_PASSES)
    if work.book is not None:
        book, reader = work.book
        tuples = tuples_for(reader, book) + book.held_out
        stages["record"] = tuples * recording_passes(contents_of(reader)) * FORWARD_SHARE
    if recovery is not None:
        student, taught = build_objective(recovery, subject.model).passes()
        taught = 0.0 if work.reads or work.book is not None else taught
        larger = 1.0 if work.teacher is None else _macs(work.teacher) / _macs(subject.model)
        dense_steps = 0 if pruned_late is None else pruned_late.dense_steps
        passes = recovery.steps * (ratio * student + larger * taught) + dense_steps * (1 - ratio) * student
        stages["recover"] = passes * recovery.batch_size * FORWARD_SHARE
    if evaluation is not None:
        beside = 0.0 if work.reference is None else _macs(work.reference) / _macs(subject.model)
        models = 1 + work.cut_models * ratio + beside + len(work.copies)
        stages["evaluate"] = sum(forward_passes(evaluation, subject.process).values()) * FORWARD_SHARE * models
    return stages


def predict_seconds(subject: Subject, work: Work, second: float, refit: Price | None) -> dict[str, float]:
    """Seconds of each stage; `second` is that of one image's forward and backward pass (`seconds_per_pair`), `refit`
    the price of the compensation."""
    seconds = {stage: passes * second for stage, passes in predict_passes(subject, work).items()}
    if refit is not None:
        seconds[REFIT] = _cuts(work) * refit.seconds(measure_speed(subject.device))
    return _in_order(seconds)


def predict_flops(subject: Subject, work: Work, refit: Price | None) -> dict[str, float]:
    """FLOPs of each stage, 2 for a multiply-accumulate."""
    macs = _macs(subject.model) if work.plan is None else work.plan.before.macs
    one = 2 * macs / FORWARD_SHARE
    flops = {stage: passes * one for stage, passes in predict_passes(subject, work).items()}
    if refit is not None:
        flops[REFIT] = _cuts(work) * refit.flops
    return _in_order(flops)


def _cuts(work: Work) -> int:
    """How many refits there are."""
    return 1 if work.pruned_late is None else work.pruned_late.cuts


def _in_order(stages: dict[str, float]) -> dict[str, float]:
    return {stage: stages[stage] for stage in STAGES if stage in stages}


def savings(work: Work, seconds: Mapping[str, float], process: Process) -> dict[str, float]:
    """Options at half of their values, and the seconds that each would save; the largest saving first.

    Half of a value is offered only if it would be accepted. The time of a stage is proportional to each of its options,
    except for the part of the refit that is not per sample.
    """
    found: dict[str, float] = {}
    if work.recovery is not None:
        config = work.recovery
        fits = work.pruned_late is None or work.pruned_late.fits_into_half
        if fits and (steps := _half(config, "steps")) >= config.jacobian.every_n:
            found[f"--steps {steps}"] = seconds["recover"]
        parts = process_count() * config.accumulation
        if (size := _half(config, "batch_size")) and size % parts == 0:
            found[f"--recovery.batch-size {size}"] = seconds["recover"]
    if work.ranking is not None:
        scoring = criterion_named(work.ranking[0]).configured(work.ranking[1])
        if criterion_named(work.ranking[0]).needs_data and (count := _half(scoring, "num_images")):
            found[f"--scoring.num-images {count}"] = seconds["rank"]
    if work.evaluation is not None:
        passes = forward_passes(work.evaluation, process)
        if "samples" in passes:
            sampling = seconds["evaluate"] * passes["samples"] / sum(passes.values())
            for field, option in (("num_images", "num-images"), ("num_inference_steps", "num-inference-steps")):
                if half := _half(work.evaluation, field):
                    found[f"--evaluation.{option} {half}"] = sampling
    if work.compensation is not None and REFIT in seconds and (tuples := _half(work.compensation, "num_tuples")):
        found[f"--compensation.num-tuples {tuples}"] = seconds[REFIT]
    return {option: saved / 2 for option, saved in sorted(found.items(), key=lambda item: -item[1])}


def _half(config: Any, name: str) -> int:
    """Half of a field of `config`; 0 if the config would not accept it."""
    half = int(getattr(config, name)) // 2
    try:
        replace(config, **{name: half})
    except SecateurError:
        return 0
    return half


def price_of_compensation(subject: Subject, work: Work) -> Price | None:
    """The price of refitting the planned cut; it depends only on how many units of each dim are kept."""
    if work.compensation is None or work.plan is None:
        return None
    return price(subject.model, [planned_cut(subject, work.plan)], work.compensation)


def planned_cut(subject: Subject, plan: CutResult) -> Cut:
    """A cut to the planned sizes; which units it keeps is not known yet."""
    kept = {}
    for name, found in plan.dims.items():
        cells = subject.structure.dims[name].cell_ranges()
        kept[name] = tuple(unit for cell in cells for unit in cell[: len(cell) * found.kept // found.units])
    return Cut(kept, plan.removed_blocks)


def _passes(subject: Subject, structure: Structure, criterion: str, config: ScoringConfig) -> float:
    """Passes of a ranking of what is in `structure`."""
    chosen = criterion_named(criterion)
    config = chosen.configured(config)
    return chosen.price(subject.model, subject.process, structure, config, config.options).passes


def seconds_per_pair(subject: Subject) -> float:
    """Measure the seconds of one image's forward and backward pass through the dense model.

    Measured on a batch, unless a single image is as much as one pass should take.
    """
    alone = _seconds_of_pass(subject, 1)
    fitting = min(TIMED_ENTRIES // math.prod(input_shape(subject.model)), int(TIMED_SECONDS / alone), TIMED_IMAGES)
    return alone if fitting < 2 else _seconds_of_pass(subject, fitting) / fitting


def _seconds_of_pass(subject: Subject, batch_size: int) -> float:
    taken, conditions = example_batch(subject.model, batch_size)
    sample = torch.randn(batch_size, *input_shape(subject.model)).to(taken)  # of a decoder: images
    timesteps = subject.process.timesteps(torch.linspace(0.1, 0.9, batch_size)).to(sample.device)
    seconds, noise = [], torch.randn_like(sample)
    with differentiable(subject.model):
        for _ in range(TIMED_STEPS):
            synchronize()
            begun = time.perf_counter()
            loss = denoising_error(subject.model, subject.process, sample, noise, timesteps, conditions)
            loss.mean().backward()
            subject.model.zero_grad(set_to_none=True)
            synchronize()
            seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _macs(model: nn.Module) -> float:
    """Of one sample; counted in a pass, unless there are no weights."""
    if device_of(model).type == "meta":
        return priced(model, Structure({}, {}))({}).macs
    return count_macs(model, example_inputs(model, 1))


def format_duration(seconds: float) -> str:
    """Text in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
