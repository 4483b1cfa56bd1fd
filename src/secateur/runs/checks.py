"""Checks that find what would stop a run before long work starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..base.console import note
from ..base.errors import DataError, SecateurError, require
from ..base.precisions import PrecisionName
from ..compensation import CompensationConfig
from ..compensation.compensate import check_null_condition
from ..compensation.targets import chosen_target
from ..criteria import criterion_named
from ..data import ImageDataset, LatentDataset
from ..data.conditions import GIVE_LABELS, check_conditions, has_null_condition
from ..evaluation import EvaluationConfig, plan_evaluation
from ..io.manifest import beside, stage_of
from ..io.pruned import saved_module
from ..models.network import class_count, device_of, input_shape
from ..models.precision import in_precisions
from ..models.registry import check_callable
from ..process.own import OwnObjective
from ..recipes import Recipe
from ..recovery import RecoveryConfig, WarmupConfig
from ..recovery.accelerator import check_accelerator
from ..recovery.hidden import chosen, surviving_blocks
from ..recovery.objectives.build import build_objective, needs_teacher
from ..recovery.student import CHANGES, REFITS, WRAPPED, check_recomputing, check_student
from ..results import CutResult, Ranking
from ..schedules import (
    AdaptiveConfig,
    CutConfig,
    Granularity,
    ProgressiveConfig,
    Target,
    check_all_blocks,
    check_criterion,
    check_fits,
    granularity_for,
)
from ..teacher import Book
from .memory import pruned_to
from .plan import plan_cut
from .quality import check_quality
from .subject import Subject, check_ranked
from .validation import check_validation


def check_ranking(subject: Subject, dataset: ImageDataset | None, criterion: str) -> None:
    """Check that a ranking can run.

    Raises:
        SecateurError: the criterion needs data, the data has other classes, or there is nothing to rank.
    """
    _check_calibration(subject, dataset, criterion)
    check_criterion(criterion, subject.structure)


def check_pruning(
    subject: Subject,
    dataset: ImageDataset | None,
    goal: Target,
    criterion: str,
    cut: CutConfig,
    ranking: Ranking | None = None,
    compensation: CompensationConfig | None = None,
) -> CutResult | None:
    """Check that a one-shot cut can be made, by the given `ranking` or by a new one, and refitted by `compensation`, if
    given; returns the planned cut.

    Raises:
        SecateurError: as `check_ranking`; the criterion does not rank what will be cut; the target is out of reach; the
            ranking belongs to another model; the refit needs data, or another model.
    """
    check_quality(subject, goal)
    require(dataset is not None or not goal.is_quality, f"{goal} is measured on data; give data")
    require(dataset is not None or compensation is None, "the refit is made on data; give data, or leave it out")
    if ranking is None:
        _check_calibration(subject, dataset, criterion)
    else:
        of_another = f"the ranking is of a model with other widths and blocks than {subject.name}; rank this one"
        check_ranked(subject, ranking, criterion, of_another)
        if dataset is not None:
            check_conditions(subject.model, dataset)
    check_criterion(criterion, subject.structure, granularity_for(goal, cut))
    planned = plan_cut(subject, goal, cut)
    if compensation is not None:
        _check_refit(subject, dataset, planned, compensation)
    return planned


def check_finetuning(
    subject: Subject, dataset: ImageDataset, recovery: RecoveryConfig, teacher: Subject | None, book: Book | None = None
) -> None:
    """Check that a recovery can run (`check_recovery`), and that the teacher fits this model."""
    if teacher is not None:
        check_comparable(subject, teacher)
    taught_by = book or (None if teacher is None else teacher.model)
    check_validation(subject, recovery)
    check_recovery(subject, dataset, recovery, taught_by)


def check_evaluating(
    subject: Subject,
    dataset: ImageDataset,
    evaluation: EvaluationConfig,
    reference: Subject | None,
    precisions: Sequence[PrecisionName] = (),
) -> dict[str, nn.Module]:
    """Check that an evaluation can run; returns the models to compare, the reference first, copies in others last.

    Raises:
        SecateurError: as `plan_evaluation`; or the reference does not fit this model.
    """
    models = {stage_of(subject.model): subject.model}
    if reference is not None:
        check_comparable(subject, reference)
        models = beside(reference.model, subject.model)
    models |= in_precisions(subject.model, precisions)
    say_notes(plan_evaluation(models, subject.process, dataset, evaluation).notes)
    return models


def check_compression(
    subject: Subject, dataset: ImageDataset | None, goal: Target, settings: Recipe
) -> CutResult | None:
    """Check that a compression can run; returns the planned cut. Without data, checks that need it are left out.

    Raises:
        SecateurError: the recipe does not fit the model, the data or the steps, or the target is out of reach.
    """
    check_validation(subject, settings.recovery)
    check_recovery(subject, dataset, settings.recovery, subject.model)
    check_quality(subject, goal, settings.schedule == "one-shot")
    granularity = granularity_for(goal, settings.cut)
    check_schedule(settings, granularity)
    check_all_blocks(settings.adaptive if settings.schedule == "adaptive" else None, subject.excluded)
    if dataset is not None:
        models = {"dense": subject.model, "recovered": subject.model}
        say_notes(plan_evaluation(models, subject.process, dataset, settings.evaluation).notes)
    check_criterion(settings.criterion, subject.structure, granularity)
    planned = plan_cut(subject, goal, settings.cut)
    if settings.compensates:
        _check_refit(subject, dataset, planned, settings.compensation)
    return planned


def _check_refit(
    subject: Subject, dataset: ImageDataset | None, planned: CutResult | None, config: CompensationConfig
) -> None:
    """Check that the `planned` cut can be refitted: its manifest says what was cut, the target suits what stays, and
    the data and the model have the conditions that tuples need."""
    model = subject.model
    if dataset is not None:
        check_callable(model)
        check_null_condition(config, has_null_condition(model, dataset))
    if config.target == "stream":
        chosen_target(pruned_to(subject, planned), config)
    if not hasattr(saved_module(model), "register_to_config"):
        raise SecateurError(
            f"{type(model).__name__} is no diffusers model and keeps no record of its cuts, which the refit needs; "
            "give compensates=False, or no compensation"
        )


def say_notes(notes: Sequence[str]) -> None:
    """Print which of the default metrics cannot be measured."""
    for each in notes:
        note(each)


def _check_calibration(subject: Subject, dataset: ImageDataset | None, criterion: str) -> None:
    if dataset is not None:
        check_conditions(subject.model, dataset)
    elif criterion_named(criterion).needs_data:
        raise DataError(f"criterion {criterion} needs images; give data")


def check_recovery(
    subject: Subject, dataset: ImageDataset | None, recovery: RecoveryConfig, teacher: nn.Module | Book | None
) -> None:
    """Check that the recovery can run, before long work starts. Without data, checks that need it are left out.

    Raises:
        SecateurError: an unknown objective, a missing teacher, flips of latents, labels that do not fit, no blocks to
            compare, or something that the device, the processes, the installed trackers or the model cannot do.
    """
    model, objective = subject.model, build_objective(recovery, teacher)
    if dataset is not None:
        check_callable(model)
    if objective.differentiates_twice and isinstance(subject.process, OwnObjective):
        raise SecateurError(f"objective {recovery.objective} perturbs noisy samples, which forward= and loss= lack")
    if objective.compares_blocks:
        dense = teacher.lineage if isinstance(teacher, Book) else teacher or model
        chosen(surviving_blocks(model, dense), recovery.features.blocks)
    check_accelerator(recovery, device_of(model))
    check_student(model, recovery)
    if recovery.gradient_checkpointing:
        check_recomputing(model)
    mirrored = recovery.horizontal_flip and isinstance(dataset, LatentDataset)
    require(not mirrored, "mirrored latents are not the latents of mirrored images; turn recovery.horizontal_flip off")
    if dataset is not None:
        check_conditions(model, dataset)


def check_written(subject: Subject, out: str | Path | None) -> None:
    """Check that the model can be written to a folder, if one is given.

    Raises:
        SecateurError: diffusers does not know how to save it.
    """
    can_be_saved = hasattr(saved_module(subject.model), "save_pretrained")
    require(
        out is None or can_be_saved,
        f"{subject.name} is no diffusers model, so it cannot be written to a folder: leave out= out, and save the "
        "model that is returned",
    )


def check_comparable(subject: Subject, dense: Subject) -> None:
    """Check that two models solve the same task, so that one can be a reference or a teacher of the other.

    Raises:
        SecateurError: their processes, input shapes or classes differ.
    """
    one, other = subject.model, dense.model
    different = {
        "have different scheduler configs or encoders": subject.process != dense.process,
        "take inputs of different shapes": input_shape(one) != input_shape(other),
        "know different numbers of classes": class_count(one) != class_count(other),
    }
    for what, found in different.items():
        if found:
            raise SecateurError(f"{subject.name} and {dense.name} {what}: they cannot be compared")


def warmup_of(new_labels: bool, warmup: WarmupConfig | None) -> WarmupConfig | None:
    """How new labels are trained; None if there are none.

    Raises:
        SecateurError: options of the warm-up are given, and no new labels are asked for.
    """
    require(new_labels or warmup is None, "the warm-up trains new labels; give new_labels too, or leave warmup out")
    return (warmup or WarmupConfig()) if new_labels else None


def check_new_labels(dataset: ImageDataset) -> None:
    """Check that the data has labels to learn, before long work starts.

    Raises:
        DataError: the data has none.
    """
    if not dataset.class_names:
        raise DataError(f"{dataset.name} has no labels to learn; {GIVE_LABELS}")


def check_schedule(recipe: Recipe, granularity: Granularity) -> None:
    """Check, before long work starts, that pruning ends before recovery does.

    Raises:
        SecateurError: recovery is to be compiled, or trains LoRA factors, or offloads a teacher that refits need; or
            the stages take all steps or more, or remove blocks where the cut narrows widths.
    """
    schedules: dict[str, ProgressiveConfig | AdaptiveConfig]
    schedules = {"progressive": recipe.progressive, "adaptive": recipe.adaptive}
    require(recipe.schedule == "one-shot" or not recipe.recovery.compile, CHANGES)
    require(recipe.schedule == "one-shot" or not recipe.recovery.lora.rank, WRAPPED)
    asks_live = needs_teacher(recipe.recovery.objective) and not recipe.records
    visits = asks_live and "teacher" in recipe.recovery.offload
    require(recipe.schedule == "one-shot" or not (recipe.compensates and visits), REFITS)
    check_fits(schedules.get(recipe.schedule), recipe.recovery.steps, granularity == "depth")
