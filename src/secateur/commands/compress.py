"""`secateur compress`: load, rank, cut, recover, evaluate, report; resumable."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import tyro

import secateur

from ..base.console import say
from ..base.errors import require
from ..compensation import CompensationConfig
from ..criteria import ScoringConfig
from ..evaluation import EvaluationConfig
from ..recipes import recipe_named, resolve
from ..recovery import RecoveryConfig, WarmupConfig
from ..schedules import AdaptiveConfig, CutConfig, ProgressiveConfig, ScheduleName
from ..teacher import BookConfig
from .options import Compensates, CriterionName, Model, Records, warmup_given

UNLESS_DRY = tyro.conf.arg(help_behavior_hint="(needed unless --dry-run)")


def compress(
    on: Model,
    *,
    target: str,
    data: Annotated[str | None, UNLESS_DRY] = None,
    out: Annotated[Path | None, UNLESS_DRY] = None,
    recipe: str = "default",
    criterion: CriterionName,
    schedule: ScheduleName,
    seed: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: their own, 0)")] = None,
    scoring: ScoringConfig,
    progressive: ProgressiveConfig,
    adaptive: AdaptiveConfig,
    cut: CutConfig,
    compensates: Compensates = False,
    compensation: CompensationConfig,
    records: Records = False,
    book: BookConfig,
    recovery: RecoveryConfig,
    evaluation: EvaluationConfig,
    new_labels: bool = False,
    warmup: WarmupConfig,
    keep: bool = False,
    dry_run: bool = False,
) -> None:
    """Prune a model to a target, recover what that cost, evaluate, and write a report.

    Run the same command again to resume a run that was stopped. The result is the folder OUT/model, or OUT/pipeline
    when a pipeline was given. For several processes, start it with torchrun or accelerate launch.

    Args:
        on: the model.
        target: the size to reach: macs=56%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1 on this device); or a quality to keep, for which the smallest model is searched: ssim=0.95 (to
            the dense model's samples) or loss=5% (the most that the loss may rise).
        data: image folder (sub-folders are classes), parquet, WebDataset shards, datasets:NAME, .npz with images and
            labels, digits, fashion, or generated (samples of the dense model).
        out: run folder.
        recipe: a named recipe (default, diff-pruning, 2ndmatch, progressive, gradient-flow, entpruner, depth and
            others: `secateur recipes`); the options below replace parts of it.
        criterion: which criterion ranks the units (`secateur.criteria.CRITERIA`); some rank blocks only.
        schedule: one-shot cuts before recovery; progressive shrinks soft masks during recovery; adaptive decides during
            recovery how many blocks to remove.
        seed: one seed for scoring, recovery and evaluation, which replaces their own.
        scoring: options of the criterion.
        progressive: how soft masks shrink.
        adaptive: when blocks are removed, and how many.
        cut: which cuts are allowed.
        compensates: refit what stays to the dense model after every cut.
        compensation: options of the refit.
        records: record the dense model's answers before recovery, which then trains on them many times.
        book: how many answers, in which dtype.
        recovery: how to fine-tune.
        evaluation: what to measure.
        new_labels: replace the model's classes by the data's: new label embeddings, trained before the ranking.
        warmup: how the new labels are trained.
        keep: keep everything in the folder: duplicates, checkpoints, the models before recovery.
        dry_run: print the plan, the predicted size, time and memory, and stop.
    """
    given = dry_run or data is not None
    require(given, "give --data, images of what the model draws, or generated; only --dry-run does without")
    require(dry_run or out is not None, "give --out, the folder of the run; only --dry-run does without")
    own = recipe_named(recipe)
    refits = compensates or compensation == own.compensation
    require(refits, "options of the refit are given, and there is none; add --compensation")
    for name, options in (("progressive", progressive), ("adaptive", adaptive)):
        used = schedule == name or options == getattr(own, name)
        require(used, f"options of the {name} schedule are given, and it is {schedule}; add --schedule {name}")
    begun = time.perf_counter()
    parts: dict[str, Any] = {"scoring": scoring, "progressive": progressive, "adaptive": adaptive, "cut": cut}
    parts |= {"recovery": recovery, "evaluation": evaluation, "schedule": schedule, "criterion": criterion}
    parts |= {"compensates": compensates, "compensation": compensation, "records": records, "book": book}
    settings = resolve(recipe, seed=seed, **parts)
    advice = f"objective {recovery.objective} asks no teacher" if records else "add --book"
    require(settings.records or book == own.book, f"options of the book are given, and there is none; {advice}")
    subject = on.subject()
    asked: dict[str, Any] = {"target": target, "data": data, "recipe": settings, "new_labels": new_labels}
    asked |= {"warmup": warmup_given(new_labels, warmup)}
    if dry_run:
        say(str(secateur.plan(subject, **asked)))
        return
    assert out is not None
    run = secateur.compress(subject, **asked, out=out, keep=keep)
    say(str(run))
    result = f"pipeline {out / 'pipeline'}" if subject.in_pipeline else f"model    {out / 'model'}"
    say(f"\n{result}\nreport   {out / 'report.html'}\nseconds  {time.perf_counter() - begun:.0f}")
