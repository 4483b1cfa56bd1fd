"""A compression: rank, cut, compensate, recover and evaluate, one stage after the other, in a folder or in memory."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..base.distributed import is_main_process, main_first, wait_for_everyone
from ..base.rows import remove_rows
from ..compensation import CompensationConfig
from ..criteria import ScoringConfig
from ..data import ImageDataset
from ..data.conditions import null_conditions
from ..models.labels import relabel
from ..recipes import Recipe
from ..recovery import Pruner, WarmupConfig
from ..recovery.objectives.build import build_objective
from ..reporting import read_samples
from ..results import (
    Compensation,
    CutResult,
    Decisions,
    Evaluation,
    QualitySearch,
    Ranking,
    Recorded,
    Recovery,
    read_decisions,
    read_recovery,
    read_result,
)
from ..schedules import Compensating, Goal, ProgressiveConfig, Scores, Target, build_pruner
from ..teacher import Book
from .checks import check_new_labels
from .quality import search_quality
from .recording import book_place, record_for_run, recorded_in
from .stages import (
    Planned,
    calibration,
    compensate_stage,
    cut_stage,
    evaluate_stage,
    kept,
    latency_of,
    rank_stage,
    recover_stage,
    reopened,
    scores_of,
    settle_stage,
    solve_cut,
    train_like,
)
from .subject import Subject
from .teaching import agreed, off_the_device, why_recipe_records


@dataclass(frozen=True)
class Compressed:
    """The results of all stages of a compression.

    Attributes:
        model: the recovered network, in eval mode.
        ranking, cut, compensation, recovery, decisions, quality, recorded, evaluation: results of the stages; None for
            a stage that did not run.
        images: samples of each model from the same noise, drawn by the evaluation, (64, C, H, W) in [-1, 1].
    """

    model: nn.Module
    ranking: Ranking
    cut: CutResult
    recovery: Recovery
    evaluation: Evaluation | None
    compensation: Compensation | None = None
    decisions: Decisions | None = None
    quality: QualitySearch | None = None
    recorded: Recorded | None = None
    images: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Planning:
    """The results of the stages before recovery: the ranking, the cut, and the pruned model or the pruner that will
    make it."""

    ranking: Ranking
    cut: CutResult
    pruner: Pruner | None = None
    pruned: nn.Module | None = None
    quality: QualitySearch | None = None


def run_settings(
    subject: Subject, goal: Target, data: str | None, settings: Recipe, warmup: WarmupConfig | None = None
) -> dict[str, Any]:
    """The settings in `config.json` of a compression, which a command that resumes it must share."""
    places = {"model": subject.name, "target": str(goal), "data": data, "recipe": settings.name}
    parts = {name: value for name, value in asdict(settings).items() if name != "name"}
    return {"command": "compress", **places, **subject.settings, "warmup": warmup, **parts}


def with_labels_of(dataset: ImageDataset, subject: Subject, new_labels: bool, seed: int = 0) -> Subject:
    """The subject, with new label embeddings of the data's classes if `new_labels`; its own model does not change.

    Raises:
        SecateurError: the data has no classes, or the model takes none.
    """
    if not new_labels:
        return subject
    check_new_labels(dataset)
    return subject.with_model(relabel(copy.deepcopy(subject.model), len(dataset.class_names), seed))


def compress_stages(
    folder: Path | None,
    subject: Subject,
    dataset: ImageDataset,
    goal: Target,
    settings: Recipe,
    planned: CutResult | None = None,
    cache: Path | None = None,
) -> Compressed:
    """Rank, cut, recover and evaluate; results that `folder` already holds are not computed again.

    `planned` is the cut by `check_compression`. With several processes, one ranks and cuts, all recover, and all draw
    samples.

    Runs with the same `cache` share the samples of equal models: see `evaluate_models`.
    """
    wait_for_everyone(subject.on_cpu)  # the main process may have removed results for a longer run
    if folder is not None and is_finished(folder):
        return read_compressed(folder, subject)
    reason = agreed(why_recipe_records(settings, subject, planned, folder), subject.on_cpu)
    settings = replace(settings, records=settings.records or reason is not None)
    scoring, one_shot = settings.scoring, settings.schedule == "one-shot"
    place = book_place(folder, cache, subject, dataset, settings.book, settings.recovery)

    def plan() -> Planning:
        ranking = rank_stage(folder, subject, dataset, settings.criterion, scoring)
        scores, size, quality = scores_of(ranking), goal, None
        if goal.is_quality:
            refit = settings.compensation if settings.compensates else None
            size, quality = search_quality(
                folder, subject, dataset, goal, scores, settings.cut, refit, settings.evaluation
            )
        if not one_shot:
            planned = kept(
                folder, "goal.json", Planned, lambda: solve_cut(folder, subject, goal, scores, settings.cut)
            )  # a latency is measured once
            return Planning(ranking, planned.result, _pruner(subject, dataset, goal, scores, settings, planned))
        details = {"criterion": ranking.criterion, "scoring": asdict(scoring)}
        pruned, cut = cut_stage(folder, subject, size, scores, settings.cut, details)
        return Planning(ranking, cut, pruned=pruned, quality=quality)

    planning, models, refit = main_first(plan, subject.on_cpu), {}, None
    start = subject.model
    if planning.pruned is not None:
        start = models["pruned"] = planning.pruned
    if planning.pruned is not None and settings.compensates:
        start, refit = compensate_stage(folder, planning.pruned, subject, dataset, settings.compensation)
        models["compensated"] = start
    if planning.pruned is not None:
        train_like(start, subject.model)
    teaches = build_objective(settings.recovery, subject.model).needs_teacher
    teacher: nn.Module | Book = subject.model
    recorded = recorded_in(folder)
    if settings.records and not (folder is not None and (folder / "model").is_dir()):  # otherwise it is not needed
        teacher, recorded = record_for_run(folder, place, subject, dataset, settings.book, settings.recovery)
    asked = teaches and teacher is subject.model
    with off_the_device(subject.model, when=not asked and one_shot):
        model, recovery, decisions = recover_stage(
            folder,
            start,
            subject,
            dataset,
            settings.recovery,
            teacher,
            planning.pruner,
            inplace=folder is not None and one_shot,  # the model before recovery is read again for the evaluation
        )
    if cache is None and place is not None and is_main_process():
        remove_rows(place)  # no other run reads it
    cut = planning.cut
    if settings.schedule == "adaptive":
        cut = settle_stage(folder, subject, goal, settings.cut, cut, decisions)
    between = {name: found if folder is None else reopened(folder / name, subject) for name, found in models.items()}
    compared = {"dense": subject.model, **between, "recovered": model}
    evaluation, images = evaluate_stage(folder, compared, subject, dataset, settings.evaluation, cache)
    ranking, quality = planning.ranking, planning.quality
    return Compressed(model, ranking, cut, recovery, evaluation, refit, decisions, quality, recorded, dict(images))


def is_finished(folder: Path) -> bool:
    """Whether the compression in `folder` is complete."""
    return (folder / "model").is_dir() and (folder / "evaluation" / "evaluation.json").is_file()


def read_compressed(folder: Path, subject: Subject) -> Compressed:
    """Read the results of the finished compression in `folder`.

    Raises:
        SecateurError: one of its files is damaged.
    """
    compensation, quality = folder / "compensation.json", folder / "quality.json"
    log, stages = folder / "recovery" / "log.jsonl", folder / "recovery" / "stages.jsonl"
    return Compressed(
        reopened(folder / "model", subject),
        read_result(Ranking, folder / "ranking.json"),
        read_result(CutResult, folder / "cut.json"),
        read_recovery(log) if log.is_file() else Recovery(),
        read_result(Evaluation, folder / "evaluation" / "evaluation.json"),
        read_result(Compensation, compensation) if compensation.is_file() else None,
        read_decisions(stages) if stages.is_file() else Decisions(),
        read_result(QualitySearch, quality) if quality.is_file() else None,
        recorded_in(folder),
        read_samples(folder / "evaluation" / "samples.safetensors"),
    )


def _pruner(
    subject: Subject,
    dataset: ImageDataset,
    target: Target,
    scores: Scores,
    settings: Recipe,
    planned: Planned,
) -> Pruner:
    """The pruner of the recovery; `planned` is the one-shot cut by `scores`."""
    schedule = settings.progressive if settings.schedule == "progressive" else settings.adaptive
    scoring = schedule.scoring(settings.scoring) if isinstance(schedule, ProgressiveConfig) else settings.scoring
    return build_pruner(
        schedule,
        subject.model,
        subject.structure,
        subject.process,
        calibration(subject, dataset, scoring),
        Goal(target, planned.cut, scores, planned.recorded),
        criterion=settings.criterion,
        scoring=settings.scoring,
        cut=settings.cut,
        steps=settings.recovery.steps,
        latency_of=latency_of,
        base_id=subject.name,
        compensation=_compensating(subject, dataset, settings.compensation) if settings.compensates else None,
    )


def _compensating(subject: Subject, dataset: ImageDataset, config: CompensationConfig) -> Compensating:
    """The refit of a model that is cut during recovery."""
    batch = calibration(subject, dataset, ScoringConfig(num_images=config.num_tuples, seed=config.seed))
    return Compensating(subject.model, batch, config, null_conditions(subject.model, dataset))
