"""What a function would take: size, time and memory, predicted before it begins.

Each takes the arguments of its function, without those that say where to write and how to show progress.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.precisions import PrecisionName
from ..base.rules import Count, checked
from ..compensation import CompensationConfig
from ..criteria import ScoringConfig, criterion_named
from ..evaluation import EvaluationConfig
from ..recipes import Recipe, finetuning_config, for_target, resolve
from ..recovery import RecoveryConfig, WarmupConfig
from ..results import Ranking
from ..runs.arguments import CompressionArguments, ModelArguments, NetworkArguments, divided
from ..runs.checks import check_compression, check_evaluating, check_finetuning, check_pruning, check_ranking, warmup_of
from ..runs.compression import with_labels_of
from ..runs.data import drawn_by, no_data, unless_generated
from ..runs.opening import beside, opened, required
from ..runs.plan import Plan, plan_of
from ..runs.recording import check_recording, opened_book
from ..runs.teaching import as_recordable, why_recipe_records, why_record
from ..runs.timing import Work, work_of
from ..schedules import CutConfig, parse_target
from ..teacher import Book, BookConfig


@checked
def plan(
    model: Any,
    *,
    target: str,
    data: Any = None,
    recipe: str | Recipe = "default",
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    **arguments: Unpack[CompressionArguments],
) -> Plan:
    """Predict size, time and memory of `compress` with the same arguments: `print(plan(...))`.

    If data is given, it is checked too. For a model on the meta device, FLOPs are predicted instead of seconds.

    Raises:
        SecateurError: as `compress` would, wherever that is known before it begins.
    """
    parts, about_model = divided(arguments)
    goal, labels = parse_target(target), warmup_of(new_labels, warmup)
    settings = for_target(resolve(recipe, **parts), goal)
    with opened(model, data, new_labels, for_plan=True, **about_model) as (subject, given_data):
        if new_labels:
            subject = with_labels_of(required(given_data), subject, new_labels, settings.recovery.seed)
        subject = subject.selected(settings.cut)
        settings = as_recordable(settings, subject, given_data)
        cut = check_compression(subject, given_data, goal, settings)
        reason = why_recipe_records(settings, subject, cut, Path())
        settings = replace(settings, records=settings.records or reason is not None)
        return plan_of(subject, work_of(settings, cut, labels), goal, settings.cut, reason)


@checked
def plan_rank(
    model: Any,
    *,
    data: Any = None,
    criterion: str = "diff-pruning",
    scoring: ScoringConfig | None = None,
    **arguments: Unpack[NetworkArguments],
) -> Plan:
    """Predict time and memory of `rank` with the same arguments.

    Raises:
        SecateurError: as `rank` would.
    """
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    with opened(model, data, for_plan=True, **arguments) as (subject, dataset):
        check_ranking(subject, dataset, criterion)
        return plan_of(subject, Work(ranking=(criterion, scoring)))


@checked
def plan_prune(
    model: Any,
    *,
    target: str,
    data: Any = None,
    criterion: str = "diff-pruning",
    scoring: ScoringConfig | None = None,
    ranking: Ranking | None = None,
    cut: CutConfig | None = None,
    compensation: CompensationConfig | None = None,
    **arguments: Unpack[NetworkArguments],
) -> Plan:
    """Predict size, time and memory of `prune` with the same arguments.

    Raises:
        SecateurError: as `prune` would, wherever that is known before it begins.
    """
    goal, cut = parse_target(target), cut or CutConfig()
    criterion = criterion if ranking is None else ranking.criterion
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    with opened(model, data, for_plan=True, **arguments) as (subject, dataset):
        subject = subject.selected(cut)
        planned = check_pruning(subject, dataset, goal, criterion, cut, ranking, compensation)
        work = Work(planned, None if ranking is not None else (criterion, scoring), compensation)
        return plan_of(subject, work, goal, cut)


@checked
def plan_record(
    model: Any,
    *,
    data: Any = None,
    objective: str | None = None,
    steps: Count | None = None,
    book: BookConfig | None = None,
    recovery: RecoveryConfig | None = None,
    **arguments: Unpack[ModelArguments],
) -> Plan:
    """Predict time, memory and size of the book of `record` with the same arguments.

    If data is given, it is checked too.

    Raises:
        SecateurError: as `record` would, wherever that is known before it begins.
    """
    settings = finetuning_config(recovery, True, steps, objective)
    with opened(model, data, for_plan=True, **arguments) as (subject, dataset):
        if dataset is not None:
            check_recording(subject, dataset)
        return plan_of(subject, Work(book=(book or BookConfig(), settings)))


@checked
def plan_finetune(
    model: Any,
    *,
    data: Any,
    teacher: Any = None,
    book: Any = None,
    objective: str | None = None,
    steps: Count | None = None,
    recovery: RecoveryConfig | None = None,
    **arguments: Unpack[NetworkArguments],
) -> Plan:
    """Predict time and memory of `finetune` with the same arguments.

    Raises:
        SecateurError: as `finetune` would, wherever that is known before it begins.
    """
    settings = finetuning_config(recovery, teacher is not None or book is not None, steps, objective)
    with opened(model, unless_generated(data), for_plan=True, **arguments) as (subject, given_data):
        if isinstance(teacher, Book):
            teacher, book = None, teacher
        dense = None if teacher is None else beside(subject, teacher, **arguments)
        dataset = required(given_data or drawn_by(dense, data))
        answers = None if book is None else opened_book(book, subject, dataset, dense)
        check_finetuning(subject, dataset, settings, dense, answers)
        taught_by, reason = None if dense is None else dense.model, None
        if dense is not None and answers is None:
            reason = why_record(lambda: subject.model, dense, settings, BookConfig(), Path())
        written = None if reason is None else (BookConfig(), settings)
        work = Work(recovery=settings, teacher=taught_by, reads=answers is not None, book=written)
        return plan_of(subject, work, why_book=reason)


@checked
def plan_evaluate(
    model: Any,
    *,
    data: Any = None,
    reference: Any = None,
    metrics: tuple[str, ...] | None = None,
    evaluation: EvaluationConfig | None = None,
    precisions: tuple[PrecisionName, ...] = (),
    **arguments: Unpack[NetworkArguments],
) -> Plan:
    """Predict time and memory of `evaluate` with the same arguments.

    Raises:
        SecateurError: as `evaluate` would.
    """
    settings = evaluation or EvaluationConfig()
    settings = replace(settings, metrics=metrics or settings.metrics)
    with opened(model, unless_generated(data), for_plan=True, **arguments) as (subject, given_data):
        dense = None if reference is None else beside(subject, reference, **arguments)
        dataset = given_data or drawn_by(dense or subject, data)
        samples = no_data(subject) if dataset is None else dataset
        models = check_evaluating(subject, samples, settings, dense, precisions)
        copies = tuple(models[name] for name in precisions)
        reference = None if dense is None else dense.model
        return plan_of(subject, Work(evaluation=settings, reference=reference, copies=copies))
