"""`secateur best`: find the recipe that suits a model by short trials, and spend the rest of the budget on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import secateur

from ..base.console import say
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..reporting import TRIALS, read_run, summarize
from ..results import Trials, read_result
from ..runs.search import ScoreName
from ..runs.trials import TrialConfig
from .options import Model, warmup_given


def best(
    on: Model,
    *,
    target: str,
    data: str,
    out: Path,
    budget_steps: int | None = None,
    budget_minutes: float | None = None,
    recipes: tuple[str, ...] = ("all",),
    score: ScoreName = "loss",
    seed: int = 0,
    shared: TrialConfig,
    evaluation: EvaluationConfig,
    new_labels: bool = False,
    warmup: WarmupConfig,
    dry_run: bool = False,
) -> None:
    """Find the recipe that suits a model at one target, within a budget, and compress by it.

    Half of the budget goes into successive halving: all recipes in short trials, the better half of them in longer
    ones, until one remains. The rest of the budget is spent on a whole compression by that one, in OUT/winner; its
    model is OUT/winner/model, or OUT/winner/pipeline when a pipeline was given. Every trial starts from the dense
    model, so it equals a run of that many steps. Progressive recipes whose stages would not fit into half of a trial
    get shorter stages. Run the same command again to resume a search that was stopped.

    Args:
        on: the model.
        target: the size to reach: macs=50%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1 on this device).
        data: image folder (sub-folders are classes), parquet, WebDataset shards, datasets:NAME, .npz with images and
            labels, digits, fashion, or generated (samples of the dense model).
        out: folder of the search.
        budget_steps: recovery steps of all trials and the winner together.
        budget_minutes: time of everything together; trials get the steps that are predicted to fit, the winner the
            rest.
        recipes: named recipes to choose from, or all.
        score: how trials are compared: loss, the mean denoising loss on the data, or frechet, the Fréchet distance of
            samples. Among recipes within two standard errors of the difference, the fastest is preferred.
        seed: seed of scoring and recovery.
        shared: settings of all trials, which replace the recipes' own.
        evaluation: how to measure the winner; trials compared by the Fréchet distance draw as many samples.
        new_labels: replace the model's classes by the data's: new label embeddings, trained once before the search.
        warmup: how the new labels are trained.
        dry_run: print the rounds, the predicted time and memory, and stop.
    """
    subject, budget = on.subject(), {"budget_steps": budget_steps, "budget_minutes": budget_minutes}
    settings: dict[str, Any] = {**budget, "target": target, "data": data, "recipes": recipes, "score": score}
    settings |= {"seed": seed, "shared": shared, "evaluation": evaluation}
    settings |= {"new_labels": new_labels, "warmup": warmup_given(new_labels, warmup)}
    if dry_run:
        say(str(secateur.plan_best(subject, **settings)))
        return
    secateur.best(subject, **settings, out=out)
    for sentence in [
        *read_result(Trials, out / TRIALS).sentences(),
        "",
        *summarize(read_run(out / "winner")).sentences,
    ]:
        say(sentence)
    result = "pipeline" if subject.in_pipeline else "model"
    say(f"\n{result:8} {out / 'winner' / result}\nreport   {out / 'report.html'}")
