"""`secateur prune`: cut a model to a target in one shot, without recovery."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..base.console import say
from ..base.distributed import one_process
from ..base.rules import checked
from ..criteria import ScoringConfig, criterion_named
from ..io.locate import Component
from ..io.pipeline import save_pipeline
from ..process.named import ProcessName
from ..runs.folder import run_folder
from ..runs.plan import plan_cut, print_plan
from ..runs.stages import cut_stage, rank_stage
from ..runs.subject import encode_data, inputs_of, open_calibration, open_model
from ..runs.timing import Work, print_times
from ..schedules import CutConfig, check_criterion, granularity_for, parse_target
from .options import CriterionName, Model


@checked
def prune(
    model: Model,
    *,
    target: str,
    out: Path,
    data: str | None = None,
    criterion: CriterionName = "diff-pruning",
    scoring: ScoringConfig | None = None,
    cut: CutConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Prune a model to a target; the result is the folder OUT/pruned (OUT/pipeline for a pipeline).

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        target: what stays: macs=56%, macs=3.4G, params=20M, blocks=6 (six are left)
            or latency=20ms (one call at batch 1 on this device).
        out: folder to write to.
        data: calibration images: an image folder, parquet, datasets:NAME, an .npz with images, or digits; magnitude,
            random and uniform need none.
        criterion: which criterion ranks the units (`secateur.criteria.CRITERIA`); some rank blocks only.
        scoring: its options.
        cut: which cuts are allowed.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the plan and the predicted size and stop.
    """
    goal = parse_target(target)
    one_process("prune")
    scoring, cut = criterion_named(criterion).configured(scoring or ScoringConfig()), cut or CutConfig()
    loaded, structure = open_model(model, process, device, component)
    dataset = open_calibration(data, loaded, criterion)
    check_criterion(criterion, structure, granularity_for(goal, cut))
    plan = plan_cut(loaded.model, structure, goal, cut)
    if dry_run:
        print_plan(plan, structure, goal, cut)
        print_times(loaded, Work(plan, ranking=(criterion, scoring)))
        return Path(out)
    options = {"criterion": criterion, "scoring": scoring, "cut": cut, "component": component, "process": process}
    settings = {"command": "prune", "model": model, "target": str(goal), "data": data, **options}
    with run_folder(out, settings, inputs_of(dataset, model=loaded)) as run:
        dataset = None if dataset is None else encode_data(dataset, loaded)
        scores = rank_stage(run, loaded, structure, dataset, criterion, scoring)
        details = {"criterion": criterion, "scoring": dataclasses.asdict(scoring)}
        pruned = cut_stage(run, loaded, structure, goal, scores, cut, details, model)
        say((run / "tables" / "cut.md").read_text())
        say(f"model   {run / 'pruned'}")
        if loaded.pipeline is not None:
            say(f"whole   {save_pipeline(loaded, pruned, run / 'pipeline')}")
        return run
