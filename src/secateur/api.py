"""The library's face: every command as a function over objects in memory, folders and hub ids alike.

Each takes a `model` (a folder, a hub id, a module, a pipeline, or what `load` returned), `data` (a path, tensors, a
sequence, data set or loader, a data set of ours, or the word generated: what the dense model draws itself), and what
`NetworkArguments` has, such as `process` (a name, a diffusers scheduler, its config, or a `Process`) and `device`. With
`out` they write what the command writes; without it
nothing touches the disk but the checkpoints of a recovery, in a temporary folder. They print nothing unless `progress`
is True.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from .base.console import shown
from .base.distributed import is_main_process, one_process, wait_for_everyone
from .base.fingerprint import fingerprint
from .base.origin import recorded
from .base.rules import Count, Seed, checked
from .compensation import CompensationConfig
from .criteria import ScoringConfig, criterion_named
from .data.conditions import check_conditions
from .evaluation import EvaluationConfig
from .recipes import Recipe
from .recovery import RecoveryConfig, WarmupConfig
from .reporting import write_report
from .results import Evaluation, Ranking, to_json
from .runs.arguments import CompressionArguments, NetworkArguments, divided
from .runs.checks import check_compression, check_evaluating, check_finetuning, check_pruning, check_ranking
from .runs.compression import compress_stages, finetuning, resolve, run_settings, with_labels_of
from .runs.data import drawn_by, encode_data, inputs_of, name_of, unless_generated
from .runs.folder import circumstances, folder_or_memory
from .runs.opening import beside, opened, required
from .runs.plan import Plan, plan_of
from .runs.quality import sought
from .runs.recording import opened_book
from .runs.run import Run
from .runs.stages import (
    compensate_stage,
    cut_stage,
    evaluate_stage,
    given_ranking,
    pipeline_stage,
    rank_stage,
    recover_stage,
    scores_of,
    warmup_stage,
)
from .runs.tidy import tidy
from .runs.timing import work_of
from .schedules import CutConfig, parse_target
from .teacher import Book


@recorded
@checked
def rank(
    model: Any,
    *,
    data: Any = None,
    criterion: str = "diff-pruning",
    scoring: ScoringConfig | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> Ranking:
    """Rank every unit and block of a model: the lowest score leaves first.

    Args:
        model: see above; it is left as it is.
        data: calibration samples; criteria that look at weights alone need none.
        criterion: which criterion; ced, deviation, uniform, cosine and loss-change rank blocks only.
        scoring: its options.
        out: folder for ranking.json, its tables and plots.
        progress: show how far it is.
        arguments: as `NetworkArguments` has them.

    Raises:
        SecateurError: bad input; always one clear line.
    """
    one_process("rank")
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    with shown(progress), opened(model, data, **arguments) as (subject, dataset):
        check_ranking(subject, dataset, criterion)
        settings = {"criterion": criterion, "scoring": scoring, **subject.settings}
        about = {"command": "rank", "model": subject.name, "data": name_of(data, dataset), **settings}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject)) as folder:
            return rank_stage(folder, subject, encode_data(dataset, subject), criterion, scoring)


@recorded
@checked
def prune(
    model: Any,
    *,
    target: str,
    data: Any = None,
    criterion: str = "diff-pruning",
    scoring: ScoringConfig | None = None,
    ranking: Ranking | None = None,
    cut: CutConfig | None = None,
    compensation: CompensationConfig | None = None,
    out: str | Path | None = None,
    inplace: bool = False,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> nn.Module:
    """Prune a model to a target in one shot, without recovery; returns the smaller network, in eval mode.

    Args:
        model: see above; of a pipeline the network is returned.
        target: what stays: macs=56%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at batch 1),
            or a quality, whose smallest model is sought: ssim=0.95 to dense samples, or loss=5%, by which it may rise.
        data: calibration samples; criteria that look at weights alone need none.
        criterion: which criterion ranks the units; ced, deviation, uniform, cosine and loss-change rank blocks only.
        scoring: its options.
        ranking: what `rank` returned for this model, instead of a criterion: one ranking serves several targets.
        cut: which cuts are allowed.
        compensation: how what stays is refitted to the dense model, in closed form; None leaves it as it was cut.
        out: folder for the ranking, the cut and the model.
        inplace: cut the model itself instead of a copy.
        progress: show how far it is.
        arguments: as `NetworkArguments` has them.

    Raises:
        SecateurError: bad input, or an unreachable target; always one clear line.
    """
    one_process("prune")
    goal, cut = parse_target(target), cut or CutConfig()
    criterion = criterion if ranking is None else ranking.criterion
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    with shown(progress), opened(model, data, **arguments) as (subject, dataset):
        subject = subject.selected(cut)
        check_pruning(subject, dataset, goal, criterion, cut, ranking)
        details = {"criterion": criterion, "scoring": to_json(scoring) if ranking is None else dict(ranking.options)}
        options = {"criterion": criterion, "scoring": scoring, "cut": cut, "compensation": compensation}
        options |= subject.settings
        places = {"model": subject.name, "target": str(goal), "data": name_of(data, dataset)}
        about = {"command": "prune", **places, **options}
        made_of = {} if ranking is None else {"ranking": fingerprint(to_json(ranking))}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject) | made_of) as folder:
            if ranking is None:
                ranking = rank_stage(folder, subject, encode_data(dataset, subject), criterion, scoring)
            else:
                ranking = given_ranking(folder, ranking)
            scores = scores_of(ranking)
            if goal.is_quality:
                samples = encode_data(required(dataset), subject)
                goal, _ = sought(folder, subject, samples, goal, scores, cut, compensation, EvaluationConfig())
            inplace = inplace and compensation is None
            pruned, _ = cut_stage(folder, subject, goal, scores, cut, details, inplace)
            if compensation is not None:
                samples = encode_data(required(dataset), subject)
                pruned, _ = compensate_stage(folder, pruned, subject, samples, compensation, inplace=folder is None)
            if folder is not None:
                pipeline_stage(folder, subject, pruned)
                write_report(folder)
        return pruned


@recorded
@checked
def compensate(
    pruned: Any,
    dense: Any,
    *,
    data: Any,
    compensation: CompensationConfig | None = None,
    out: str | Path | None = None,
    inplace: bool = False,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> nn.Module:
    """Refit a pruned model to the dense one that it was cut from, in closed form, without training; in eval mode.

    Args:
        pruned: see above; its manifest says what was cut.
        dense: the model before the cut; whatever a model may be.
        data: calibration samples.
        compensation: how it is refitted.
        out: folder for the errors of every layer before and after, and the model.
        inplace: refit the model itself instead of a copy.
        progress: show how far it is.
        arguments: as `NetworkArguments` has them.

    Raises:
        SecateurError: bad input, or a model that was not cut from `dense`; always one clear line.
    """
    config = compensation or CompensationConfig()
    with shown(progress), opened(pruned, unless_generated(data), **arguments) as (subject, given_data):
        reference = beside(subject, dense, **arguments)
        dataset = required(given_data or drawn_by(reference, data))
        check_conditions(subject.model, dataset)
        places = {"model": subject.name, "reference": reference.name, "data": name_of(data, dataset)}
        about = {"command": "compensate", **places, **subject.settings, "compensation": config}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject, reference=reference)) as folder:
            samples = encode_data(dataset, subject)
            model, _ = compensate_stage(folder, subject.model, reference, samples, config, inplace)
            if folder is not None:
                pipeline_stage(folder, subject, model)
                write_report(folder)
        return model


@recorded
@checked
def finetune(
    model: Any,
    *,
    data: Any,
    teacher: Any = None,
    book: Any = None,
    objective: str | None = None,
    steps: Count | None = None,
    recovery: RecoveryConfig | None = None,
    out: str | Path | None = None,
    inplace: bool = False,
    keep: bool = False,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> nn.Module:
    """Recover a pruned model, or train any model further; returns the network with its averaged weights, in eval mode.

    Args:
        model: see above.
        data: training samples.
        teacher: the dense model, for objectives that match it: whatever a model may be, or its book.
        book: the teacher's answers, which `record` returned or wrote, in its place; a teacher beside it must be the one
            that answered.
        objective: denoising, distillation, first-order, 2ndmatch ...; instead of the recovery options' own.
        steps: optimizer steps, likewise.
        recovery: how to train; the default is that of `compress`, by plain denoising without a teacher.
        out: folder for the log, checkpoints and the model; a run that was stopped there goes on, and
            so does a finished one to more steps, if its learning rate is constant.
        inplace: train the model itself instead of a copy.
        keep: leave everything in the folder; otherwise weights that are in it twice become one file, and the last
            checkpoint goes, but where a longer run may go on from it.
        progress: show how far it is.
        arguments: as `NetworkArguments` has them.

    Raises:
        SecateurError: bad input, or a loss that is not finite; always one clear line.
    """
    settings = finetuning(recovery, teacher is not None or book is not None, steps, objective)
    with shown(progress), opened(model, unless_generated(data), **arguments) as (subject, given_data):
        if isinstance(teacher, Book):
            teacher, book = None, teacher
        dense = None if teacher is None else beside(subject, teacher, **arguments)
        dataset = required(given_data or drawn_by(dense, data))
        answers = None if book is None else opened_book(book, subject, dataset, dense)
        check_finetuning(subject, dataset, settings, dense, answers)
        places = {"model": subject.name, "teacher": dense and dense.name, "data": name_of(data, dataset)}
        about = {"command": "finetune", **places, **subject.settings, "recovery": settings}
        about |= {"book": str(book) if isinstance(book, str | Path) else answers and "in memory"}
        made_of = {} if answers is None else {"book": answers.fingerprint}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject, teacher=dense) | made_of) as folder:
            samples = encode_data(dataset, subject)
            answers = None if book is None else opened_book(book, subject, samples)
            taught_by = answers or (None if dense is None else dense.model)
            tuned, _, _ = recover_stage(folder, subject.model, subject, samples, settings, taught_by, inplace=inplace)
            if folder is not None:
                pipeline_stage(folder, subject, tuned)
                if is_main_process():
                    write_report(folder)
                    if not keep:
                        tidy(folder, settings)
        return tuned


@recorded
@checked
def evaluate(
    model: Any,
    *,
    data: Any,
    reference: Any = None,
    metrics: tuple[str, ...] | None = None,
    evaluation: EvaluationConfig | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> Evaluation:
    """Measure a model; with a reference, also how far its images are from the reference's on the same noise.

    Args:
        model: see above.
        data: real samples.
        reference: the dense model to compare with; whatever a model may be.
        metrics: instead of the evaluation options' own; docs/metrics.md says what each is.
        evaluation: what to measure, and of how much.
        cache: folder where evaluations find the samples of the same models again, such as those of one reference.
        out: folder for the numbers, samples and a report; an evaluation that was stopped there goes on.
        progress: show how far it is.
        arguments: as `NetworkArguments` has them.

    Returns:
        `result.macs.ratio`, `result["ssim"].value`, `.interval`; prints as a table, draws itself in a notebook.

    Raises:
        SecateurError: bad input, or a metric that cannot be had here; always one clear line.
    """
    settings = evaluation or EvaluationConfig()
    settings = replace(settings, metrics=metrics or settings.metrics)
    with shown(progress), opened(model, unless_generated(data), **arguments) as (subject, given_data):
        dense = None if reference is None else beside(subject, reference, **arguments)
        dataset = required(given_data or drawn_by(dense or subject, data))
        models = check_evaluating(subject, dataset, settings, dense)
        places = {"model": subject.name, "reference": dense and dense.name, "data": name_of(data, dataset)}
        about = {"command": "evaluate", **places, **subject.settings, "evaluation": settings}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject, reference=dense)) as folder:
            wait_for_everyone(subject.on_cpu)  # nobody writes where the folder is refused
            samples, kept = encode_data(dataset, subject), None if cache is None else Path(cache)
            result, _ = evaluate_stage(folder, models, subject, samples, settings, kept)
            if folder is not None and is_main_process():
                write_report(folder)
        return result


@recorded
@checked
def compress(
    model: Any,
    *,
    target: str,
    data: Any,
    recipe: str | Recipe = "default",
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    keep: bool = False,
    progress: bool = False,
    **arguments: Unpack[CompressionArguments],
) -> Run:
    """Prune a model to a target, recover what that cost, and measure dense, pruned and recovered side by side.

    Args:
        model: see above; it is left as it is.
        target: what stays: macs=56%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at batch 1),
            or a quality, whose smallest model is sought: ssim=0.95 to dense samples, or loss=5%, by which it may rise.
        data: samples to calibrate, train and evaluate with.
        recipe: a recipe or its name.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained before the ranking.
        warmup: how the new labels are trained.
        cache: folder where several runs find the samples of the same models, and the teacher's book, again.
        out: run folder; a run that was stopped there goes on, and so does a finished one to more steps, if its
            schedule is one-shot and its learning rate constant.
        keep: leave everything in the folder; otherwise the models before the recovery go in the end, weights that are
            there twice become one file, and the last checkpoint goes, but where a longer run may go on from it.
        progress: show how far it is.
        arguments: as `NetworkArguments` has them, and as `RecipeArguments` has them instead of the recipe's parts.

    Returns:
        The run: `.model`, `.pipeline`, `.ranking`, `.cut`, `.evaluation`, `.report()`.

    Raises:
        SecateurError: bad input, an unreachable target, a run that cannot go on; always one clear line.
    """
    parts, about_model = divided(arguments)
    settings, goal = resolve(recipe, **parts), parse_target(target)
    with shown(progress), opened(model, data, new_labels, **about_model) as (subject, given_data):
        dataset = required(given_data)
        inputs = partial(inputs_of, dataset, model=subject)
        subject = with_labels_of(dataset, subject, new_labels, settings.recovery.seed)
        labels = (warmup or WarmupConfig()) if new_labels else None
        subject = subject.selected(settings.cut)
        check_compression(subject, dataset, goal, settings)
        about = run_settings(subject, goal, name_of(data, dataset), settings, labels)
        wait_for_everyone(subject.on_cpu)  # nobody writes where the settings are refused
        with folder_or_memory(out, about, inputs) as folder:
            dataset = encode_data(dataset, subject)
            if labels is not None:
                subject = warmup_stage(folder, subject, dataset, labels, settings.recovery)
            stages = compress_stages(folder, subject, dataset, goal, settings, None if cache is None else Path(cache))
            if folder is not None:
                pipeline_stage(folder, subject, stages.model)
                if is_main_process():
                    write_report(folder)
                    if not keep:
                        tidy(folder, settings.recovery, settings.schedule == "one-shot")
        return Run(subject, stages, about | circumstances(), folder)


@recorded
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
    """What `compress` with the same arguments would make of the model, in what time and memory: `print(plan(...))`.

    Without data it is not checked whether that fits. A model on the meta device is planned in FLOPs instead of seconds.

    Raises:
        SecateurError: whatever would stop it.
    """
    parts, about_model = divided(arguments)
    settings, goal = resolve(recipe, **parts), parse_target(target)
    with opened(model, data, new_labels, **about_model) as (subject, given_data):
        if new_labels:
            subject = with_labels_of(required(given_data), subject, new_labels, settings.recovery.seed)
        subject = subject.selected(settings.cut)
        cut = check_compression(subject, given_data, goal, settings)
        labels = (warmup or WarmupConfig()) if new_labels else None
        return plan_of(subject, work_of(settings, cut, labels), goal, settings.cut)


@recorded
@checked
def quickstart(
    *, out: str | Path | None = None, target: str = "macs=50%", seed: Seed = 0, progress: bool = False
) -> Run:
    """Prune the embedded U-Net to half its MACs, recover it, and measure it; offline, in under two minutes."""
    return compress(
        "fashion-unet", target=target, data="fashion", recipe="quickstart", seed=seed, out=out, progress=progress
    )
