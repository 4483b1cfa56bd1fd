"""`secateur compress`: load, rank, cut, recover, evaluate, report; resumable."""

from __future__ import annotations

import time
from pathlib import Path

from ..base.console import say
from ..base.distributed import is_main_process, wait_for_everyone
from ..base.rules import Count, Seed, checked
from ..criteria import ScoringConfig
from ..evaluation import EvaluationConfig
from ..io.locate import Component
from ..models.labels import relabel
from ..process.named import ProcessName
from ..recovery import RecoveryConfig, WarmupConfig
from ..reporting import read_run, summarize, write_report
from ..runs.checks import check_new_labels
from ..runs.compression import check, compress_stages, resolve, run_settings
from ..runs.folder import run_folder
from ..runs.plan import print_plan
from ..runs.stages import on_cpu, pipeline_stage, warmup_stage
from ..runs.subject import encode_data, inputs_of, open_data, open_model
from ..runs.timing import print_times, work_of
from ..schedules import AdaptiveConfig, CutConfig, ProgressiveConfig, ScheduleName, parse_target
from .options import CriterionName, Model


@checked
def compress(
    model: Model,
    *,
    target: str,
    data: str,
    out: Path,
    recipe: str = "diff-pruning",
    criterion: CriterionName | None = None,
    schedule: ScheduleName | None = None,
    objective: str | None = None,
    steps: Count | None = None,
    seed: Seed | None = None,
    scoring: ScoringConfig | None = None,
    progressive: ProgressiveConfig | None = None,
    adaptive: AdaptiveConfig | None = None,
    cut: CutConfig | None = None,
    recovery: RecoveryConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Prune a model to a target, recover what that cost, evaluate, and write a report.

    Run the same command again to take up a run that was stopped. The result is the folder OUT/model, or
    OUT/pipeline when a pipeline was given. Start it with torchrun or accelerate launch for several processes.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        target: what stays: macs=56%, macs=3.4G, params=20M, blocks=6 (six are left)
            or latency=20ms (one call at batch 1 on this device).
        data: image folder (sub-folders are classes), parquet, datasets:NAME, .npz with images and labels, or digits.
        out: run folder.
        recipe: a named recipe (diff-pruning, 2ndmatch, progressive, gradient-flow, entpruner, depth, taylor,
            magnitude, random, decoder, quickstart); what follows replaces its parts.
        criterion: which criterion ranks the units (`secateur.criteria.CRITERIA`); some rank blocks only.
        schedule: one-shot cuts before recovery; progressive shrinks soft masks during it; adaptive decides during it
            how many blocks leave.
        objective: what recovery minimizes: denoising, distillation, first-order or 2ndmatch.
        steps: recovery steps.
        seed: one seed for scoring, recovery and evaluation, instead of their own.
        scoring: options of the criterion.
        progressive: how soft masks shrink.
        adaptive: when and how many blocks leave.
        cut: which cuts are allowed.
        recovery: how to fine-tune.
        evaluation: what to measure.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained before the ranking.
        warmup: how the new labels are trained.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the plan, the predicted size and time, and stop.

    Returns:
        The run folder.

    Raises:
        SecateurError: bad input, an unreachable target, a run that cannot go on; always one clear line.
    """
    settings = resolve(
        recipe,
        steps=steps,
        objective=objective,
        seed=seed,
        criterion=criterion,
        scoring=scoring,
        schedule=schedule,
        progressive=progressive,
        adaptive=adaptive,
        cut=cut,
        recovery=recovery,
        evaluation=evaluation,
    )
    goal = parse_target(target)
    loaded, structure = open_model(model, process, device, component)
    dataset = open_data(data, loaded, new_labels)
    inputs = inputs_of(dataset, model=loaded)
    if new_labels:
        check_new_labels(dataset)
        relabel(loaded.model, len(dataset.class_names), settings.recovery.seed)
    warmup = (warmup or WarmupConfig()) if new_labels else None
    plan = check(loaded, structure, dataset, goal, settings)
    if dry_run:
        print_plan(plan, structure, goal, settings.cut)
        print_times(loaded, work_of(settings, plan, warmup))
        return Path(out)
    begun = time.perf_counter()
    wait_for_everyone(on_cpu(loaded))  # nobody writes where the settings are refused
    with run_folder(out, run_settings(model, goal, data, recipe, process, settings, component, warmup), inputs) as run:
        dataset = encode_data(dataset, loaded)
        if warmup is not None:
            loaded = warmup_stage(run, loaded, dataset, warmup, settings.recovery, model)
        compress_stages(run, loaded, structure, dataset, goal, settings, model)
        pipeline_stage(run, loaded)
        if not is_main_process():
            return run
        page = write_report(run)
        for sentence in summarize(read_run(run)).sentences:
            say(sentence)
        result = f"pipeline {run / 'pipeline'}" if loaded.pipeline is not None else f"model    {run / 'model'}"
        say(f"\n{result}\nreport   {page}\nseconds  {time.perf_counter() - begun:.0f}")
        return run
