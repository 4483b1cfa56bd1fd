"""`secateur best`: find the recipe that suits a model by short trials, and spend the rest of the budget on it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ..base.console import say
from ..base.distributed import one_process
from ..base.errors import require
from ..base.files import read_json, write_json
from ..base.rules import Count, Seed, above, checked
from ..evaluation import EvaluationConfig
from ..io.locate import Component
from ..process.named import ProcessName
from ..recovery import WarmupConfig
from ..reporting import TRIALS, read_run, summarize, write_comparison
from ..runs.folder import run_folder
from ..runs.search import ScoreName, Search, _print_plan
from ..runs.trials import CACHE, TrialConfig, open_bench, recipe_names, warm_up
from ..schedules import parse_target
from .options import Model


@checked
def best(
    model: Model,
    *,
    target: str,
    data: str,
    out: Path,
    budget_steps: Count | None = None,
    budget_minutes: Annotated[float, above(0)] | None = None,
    recipes: tuple[str, ...] = ("all",),
    score: ScoreName = "loss",
    seed: Seed = 0,
    shared: TrialConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Find the recipe that suits a model at one target, within a budget, and compress by it.

    Half of the budget goes into successive halving: all recipes in short trials, the better half of them in longer
    ones, until one is left. What remains is spent on a whole compression by that one, OUT/winner, whose model is
    OUT/winner/model, or OUT/winner/pipeline when a pipeline was given. Every trial starts anew, so it is what a run of
    that many steps gives. Progressive recipes whose stages would not fit into half of a trial are given shorter ones.
    Run the same command again to take up a search that was stopped.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        target: what stays: macs=50%, macs=3.4G, params=20M, blocks=6 (six are left)
            or latency=20ms (one call at batch 1 on this device).
        data: image folder (sub-folders are classes), parquet, datasets:NAME, .npz with images and labels, or digits.
        out: folder of the search.
        budget_steps: recovery steps in all, of the trials and of the winner.
        budget_minutes: time in all; trials get the steps that are predicted to fit, the winner what is then left.
        recipes: named recipes to choose from, or all.
        score: what judges the trials: loss, the mean denoising loss on the data, or frechet, the Fréchet distance of
            samples. Of recipes within two standard errors of the difference, the one that took least time goes first.
        seed: of scoring and recovery.
        shared: what all trials share, instead of the recipes' own.
        evaluation: what to measure of the winner; trials by the Fréchet distance draw as many samples.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained once before the search.
        warmup: how the new labels are trained.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the rounds and the predicted time, and stop.

    Returns:
        The folder of the search.

    Raises:
        SecateurError: bad input, a budget too small for a search, or no recipe that can run.
    """
    one_process("best")
    require(
        (budget_steps is None) != (budget_minutes is None),
        "give the budget in recovery steps, --budget-steps, or in minutes, --budget-minutes",
    )
    shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
    names, goal = recipe_names(recipes), parse_target(target)
    bench = open_bench(model, data, process, device, component, (warmup or WarmupConfig()) if new_labels else None)
    search = Search(bench, goal, seed, shared, evaluation, score)
    if dry_run:
        _print_plan(search.plan(names, budget_steps, budget_minutes))
        return Path(out)
    path = Path(out) / TRIALS
    begun = None if path.is_file() else search.begin(names, budget_steps, budget_minutes)
    places = {"command": "best", "model": model, "target": str(goal), "data": data, "seed": seed}
    places |= {"component": component, "process": process}
    budget = {"recipes": names, "score": score, "budget_steps": budget_steps, "budget_minutes": budget_minutes}
    settings = {**places, **budget, "warmup": bench.warmup, "shared": shared, "evaluation": evaluation}
    with run_folder(out, settings, bench.inputs) as run:
        if begun is not None and not path.is_file():
            write_json(path, begun)  # before the first trial: a search that is taken up keeps its steps
        found = read_json(path)
        search = replace(search, bench=warm_up(bench, run, shared))
        search.find(run, found)
        search.finish(run, found)
        shutil.rmtree(run / CACHE, ignore_errors=True)
        page = write_comparison(run)
        for sentence in [*found["search"]["sentences"], "", *summarize(read_run(run / "winner")).sentences]:
            say(sentence)
        result = "model" if bench.loaded.pipeline is None else "pipeline"
        say(f"\n{result:8} {run / 'winner' / result}\nreport   {page}")
        return run
