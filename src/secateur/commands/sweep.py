"""`secateur sweep`: several recipes, criteria, objectives, targets and seeds over one model."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..runs.sweep import plan_sweep, print_sweep
from ..runs.trials import TrialConfig, open_bench
from .options import CriterionName, Model


def sweep(
    on: Model,
    *,
    data: str,
    out: Path,
    targets: tuple[str, ...],
    recipes: tuple[str, ...] = ("all",),
    criteria: tuple[CriterionName, ...] = (),
    objectives: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    steps: int | None = None,
    shared: TrialConfig,
    evaluation: EvaluationConfig,
    new_labels: bool = False,
    warmup: WarmupConfig,
    dry_run: bool = False,
) -> None:
    """Compress one model in every combination of recipes, criteria, objectives, targets and seeds, and compare.

    Each trial is a run of compress in OUT/trials, with a report of its own; OUT/report.html compares them. Run the same
    command again to take up a sweep that was stopped, with more recipes, targets or seeds to extend it. A trial that
    fails does not stop the others.

    Args:
        on: the model.
        data: image folder (sub-folders are classes), parquet, datasets:NAME, .npz with images and labels, digits,
            or generated, for what the dense model draws itself.
        out: folder of the sweep.
        targets: what stays: macs=50% macs=30% ..., params=20M, blocks=6 (six stay)
            or latency=20ms (one call at batch 1 on this device).
        recipes: named recipes, or all.
        criteria: instead of the recipes' own; those that rank blocks only remove blocks.
        objectives: instead of the recipes' own: denoising, distillation, first-order or 2ndmatch.
        seeds: of scoring and recovery; the spread of the results is over them.
        steps: recovery steps of every trial, instead of the recipes' own.
        shared: what else all trials share, instead of the recipes' own.
        evaluation: what to measure; the samples of all trials come from its seed.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained once before all trials.
        warmup: how the new labels are trained.
        dry_run: print the trials, their predicted times and the memory, and stop.
    """
    subject, labels = on.subject(), warmup if new_labels else None
    if dry_run:
        bench = open_bench(subject, data, labels)
        print_sweep(plan_sweep(bench, targets, recipes, criteria, objectives, seeds, steps, shared, evaluation))
        return
    run = secateur.sweep(
        subject,
        data=data,
        out=out,
        targets=targets,
        recipes=recipes,
        criteria=criteria,
        objectives=objectives,
        seeds=seeds,
        steps=steps,
        shared=shared,
        evaluation=evaluation,
        new_labels=new_labels,
        warmup=labels,
    )
    say((run / "tables" / "comparison.md").read_text(encoding="utf-8"))
    say(f"report  {run / 'report.html'}")
