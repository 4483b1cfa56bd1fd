"""`secateur sweep`: several recipes, criteria, objectives, targets and seeds over one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import secateur

from ..base.console import say
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..runs.trials import TrialConfig
from .options import CriterionName, Model, warmup_given


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

    Each trial is a run of compress in OUT/trials, with its own report; OUT/report.html compares them. Run the same
    command again to resume, or with more recipes, targets or seeds to extend the sweep. A trial that fails does not
    stop the others.

    Args:
        on: the model.
        data: image folder (sub-folders are classes), parquet, WebDataset shards, datasets:NAME, .npz with images and
            labels, digits, fashion, or generated (samples of the dense model).
        out: folder of the sweep.
        targets: the sizes to reach: macs=50% macs=30% ..., params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1 on this device).
        recipes: named recipes, or all.
        criteria: criteria that replace the recipes' own; those that rank blocks only remove blocks.
        objectives: objectives that replace the recipes' own: denoising, distillation, rms-distillation, features,
            first-order or 2ndmatch.
        seeds: seeds of scoring and recovery; the reported spread is over them.
        steps: recovery steps of every trial, which replace the recipes' own.
        shared: further settings of all trials, which replace the recipes' own.
        evaluation: what to measure; its seed is that of the samples of all trials.
        new_labels: replace the model's classes by the data's: new label embeddings, trained once before all trials.
        warmup: how the new labels are trained.
        dry_run: print the trials, their predicted times and the memory, and stop.
    """
    subject, trials = on.subject(), {"targets": targets, "recipes": recipes, "criteria": criteria, "seeds": seeds}
    settings: dict[str, Any] = {**trials, "data": data, "objectives": objectives, "steps": steps, "shared": shared}
    settings |= {
        "evaluation": evaluation,
        "new_labels": new_labels,
        "warmup": warmup_given(new_labels, warmup),
    }
    if dry_run:
        say(str(secateur.plan_sweep(subject, **settings)))
        return
    secateur.sweep(subject, **settings, out=out)
    say((out / "tables" / "comparison.md").read_text(encoding="utf-8"))
    say(f"report  {out / 'report.html'}")
