"""Each stage of a compression by itself: rank, prune, compensate, finetune, evaluate."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from ..base.console import shown
from ..base.distributed import is_main_process, one_process, require_folder, wait_for_everyone
from ..base.errors import require
from ..base.fingerprint import fingerprint
from ..base.origin import recorded
from ..base.precisions import PrecisionName
from ..base.rules import Count, checked
from ..base.shards import is_sharded, require_whole
from ..compensation import CompensationConfig
from ..criteria import ScoringConfig, criterion_named
from ..data.conditions import check_conditions
from ..evaluation import EvaluationConfig
from ..io.sharded import whole_model
from ..recipes import finetuning_config
from ..recovery import RecoveryConfig
from ..reporting import write_report
from ..results import Evaluation, Ranking, to_json
from ..runs.arguments import NetworkArguments
from ..runs.checks import check_evaluating, check_finetuning, check_pruning, check_ranking, check_written
from ..runs.data import drawn_by, encode_data, inputs_of, name_of, no_data, unless_generated
from ..runs.folder import folder_or_memory
from ..runs.opening import beside, opened, required
from ..runs.quality import search_quality
from ..runs.recording import opened_book
from ..runs.stages import (
    compensate_stage,
    cut_stage,
    evaluate_stage,
    given_ranking,
    pipeline_stage,
    rank_stage,
    recover_stage,
    scores_of,
)
from ..runs.subject import Subject
from ..runs.teaching import taught
from ..runs.tidy import tidy
from ..schedules import CutConfig, parse_target
from ..teacher import Book


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
    """Score every unit and block of a model; the lowest scores are removed first.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned; it does not change.
        data: calibration samples; not needed by criteria that use weights alone.
        criterion: its name; ced, ent-prog, deviation, replacement, uniform, cosine and loss-change rank blocks only.
        scoring: options of the criterion.
        out: folder for ranking.json, its tables and plots.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Raises:
        SecateurError: bad input.
    """
    if out is not None:
        one_process("rank with a folder")
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    with shown(progress), opened(model, data, keeps_shards=True, **arguments) as (subject, dataset):
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
        model: folder, hub id, module, pipeline, or what `load` returned; of a pipeline, its network
            is pruned and returned.
        target: the size to reach: macs=56%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1); or a quality to keep, for which the smallest model is searched: ssim=0.95 (to the dense
            model's samples) or loss=5% (the most that the loss may rise).
        data: calibration samples; not needed by criteria that use weights alone.
        criterion: which criterion ranks the units; ced, ent-prog, deviation, replacement, uniform, cosine and
            loss-change rank blocks only.
        scoring: options of the criterion.
        ranking: what `rank` returned for this model, instead of a criterion: one ranking serves several targets.
        cut: which cuts are allowed.
        compensation: options of a closed-form refit of what stays to the dense model; None: no refit.
        out: folder for the ranking, the cut and the model.
        inplace: cut the model itself instead of a copy; with `out`, what is returned is read from there.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Raises:
        SecateurError: bad input, or an unreachable target.
    """
    one_process("prune")
    goal, cut = parse_target(target), cut or CutConfig()
    criterion = criterion if ranking is None else ranking.criterion
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    with shown(progress), opened(model, data, keeps_shards=True, **arguments) as (subject, dataset):
        require_whole(subject.model, "pruning")
        check_written(subject, out)
        subject = subject.selected(cut)
        check_pruning(subject, dataset, goal, criterion, cut, ranking, compensation)
        scored = to_json(scoring) if ranking is None else dict(ranking.options)
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
            details, scores = {"criterion": ranking.criterion, "scoring": scored}, scores_of(ranking)
            if goal.is_quality:
                samples = encode_data(required(dataset), subject)
                goal, _ = search_quality(folder, subject, samples, goal, scores, cut, compensation, EvaluationConfig())
            dense = subject
            if inplace and compensation is not None:  # the refit compares with the model as it was
                dense = subject.with_model(copy.deepcopy(subject.model))
            pruned, _ = cut_stage(folder, subject, goal, scores, cut, details, inplace)
            if compensation is not None:
                samples = encode_data(required(dataset), subject)
                pruned, _ = compensate_stage(folder, pruned, dense, samples, compensation, inplace=folder is None)
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
        pruned: folder, hub id, module or pipeline; its manifest says what was cut.
        dense: the model before the cut, given in any of these ways.
        data: calibration samples.
        compensation: options of the refit.
        out: folder for the model, and for the error of every layer before and after.
        inplace: refit the model itself instead of a copy; with `out`, what is returned is read from there.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Raises:
        SecateurError: bad input, or a model that was not cut from `dense`.
    """
    config = compensation or CompensationConfig()
    given = opened(pruned, unless_generated(data), keeps_shards=True, **arguments)
    with shown(progress), given as (subject, given_data):
        require_whole(subject.model, "the refit")
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
                if is_main_process():
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
        model: folder, hub id, module, pipeline, or what `load` returned. One that is sharded (FSDP2) is gathered in
            every process first, does not change, and a whole one is returned.
        data: training samples.
        teacher: the dense model, for objectives that match it: anything that `model` may be, or its book.
        book: the teacher's answers that `record` returned or wrote, in place of the teacher; if both are given, the
            answers must be this teacher's.
        objective: denoising, distillation, first-order, 2ndmatch ...; overrides that of `recovery`.
        steps: optimizer steps; overrides that of `recovery`.
        recovery: how to train; by default as `compress` does, with objective denoising if there is no teacher.
        out: folder for the log, checkpoints and the model. A run that was stopped there is resumed; a finished one is
            continued to more steps, if its learning rate is constant.
        inplace: train the model itself instead of a copy; what is returned is another one, with averaged weights.
        keep: keep everything in the folder. By default weights that are in it twice become one file, and the last
            checkpoint is removed unless a longer run could continue from it.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Raises:
        SecateurError: bad input, or a loss that is not finite.
    """
    require_folder("finetune", out)
    settings = finetuning_config(recovery, teacher is not None or book is not None, steps, objective)
    given = opened(model, unless_generated(data), keeps_shards=True, **arguments)
    with shown(progress), given as (subject, given_data):
        if is_sharded(subject.model):
            require(not inplace, "a sharded model is recovered as a whole one; leave inplace out")
            subject = subject.with_model(whole_model(subject.model, "recovery").to(subject.device))
            inplace = True
        if isinstance(teacher, Book):
            teacher, book = None, teacher
        dense = None if teacher is None else beside(subject, teacher, **arguments)
        dataset = required(given_data or drawn_by(dense, data))
        answers = None if book is None else opened_book(book, subject, dataset, dense)
        check_finetuning(subject, dataset, settings, dense, answers)
        check_written(subject, out)
        places = {"model": subject.name, "teacher": dense and dense.name, "data": name_of(data, dataset)}
        about = {"command": "finetune", **places, **subject.settings, "recovery": settings}
        about |= {"book": str(book) if isinstance(book, str | Path) else answers and "in memory"}
        made_of = {} if answers is None else {"book": answers.fingerprint}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject, teacher=dense) | made_of) as folder:
            samples = encode_data(dataset, subject)
            answers = None if book is None else opened_book(book, subject, samples)
            ours = inplace or isinstance(model, str | Path | Subject)  # then a copy would only take memory
            with taught(subject, dense, answers, samples, settings, folder) as teacher:
                tuned, _, _ = recover_stage(folder, subject.model, subject, samples, settings, teacher, inplace=ours)
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
    data: Any = None,
    reference: Any = None,
    metrics: tuple[str, ...] | None = None,
    evaluation: EvaluationConfig | None = None,
    precisions: tuple[PrecisionName, ...] = (),
    cache: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> Evaluation:
    """Measure a model; with a reference, also how far its images are from the reference's on the same noise.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned; it does not change.
        data: real samples; what compares models with each other alone, such as SSIM, sizes and speed, needs none.
        reference: the dense model to compare with; whatever a model may be.
        metrics: instead of the evaluation options' own; docs/metrics.md says what each is.
        evaluation: what to measure, and of how much.
        precisions: measure copies of the model too, in bfloat16, float16, or with weights of linear layers in int8 or
            float8 (these need secateur[int8]).
        cache: folder where evaluations find the samples of the same models again, such as those of one reference.
        out: folder for the numbers, samples and a report; an evaluation that was stopped there goes on.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Returns:
        `result.macs.ratio`, `result["ssim"].value`, `.interval`; prints as a table, draws itself in a notebook.

    Raises:
        SecateurError: bad input, or a metric that cannot be had here; always one clear line.
    """
    require_folder("evaluate", out)
    settings = evaluation or EvaluationConfig()
    settings = replace(settings, metrics=metrics or settings.metrics)
    with shown(progress), opened(model, unless_generated(data), **arguments) as (subject, given_data):
        dense = None if reference is None else beside(subject, reference, **arguments)
        dataset = given_data or drawn_by(dense or subject, data)
        samples = no_data(subject) if dataset is None else dataset
        models = check_evaluating(subject, samples, settings, dense, precisions)
        places = {"model": subject.name, "reference": dense and dense.name, "data": name_of(data, dataset)}
        options = {"precisions": precisions, "evaluation": settings}
        about = {"command": "evaluate", **places, **subject.settings, **options}
        with folder_or_memory(out, about, lambda: inputs_of(dataset, model=subject, reference=dense)) as folder:
            wait_for_everyone(subject.on_cpu)  # nobody writes where the folder is refused
            samples, kept = encode_data(samples, subject), None if cache is None else Path(cache)
            result, _ = evaluate_stage(folder, models, subject, samples, settings, kept)
            if folder is not None and is_main_process():
                write_report(folder)
        return result
