"""`secateur prune`: cut a model to a target in one shot, without recovery."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..checkpoint import save_pipeline
from ..criteria import CriterionName, ScoringConfig
from ..recipes import Recipe
from ..schedules import CutConfig, parse_target
from .common import Model, ProcessName, open_data, open_model, say, start_run
from .plan import check_plan, print_plan
from .stages import cut_stage, rank_stage


def prune(
    model: Model,
    *,
    target: str,
    data: str,
    out: Path,
    criterion: CriterionName = "diff-pruning",
    scoring: ScoringConfig | None = None,
    cut: CutConfig | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Prune a model to a target; the result is the folder OUT/pruned (OUT/pipeline for a pipeline).

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        target: what to reach, for example macs=56%, params=20M, latency=20ms or blocks=6.
        data: calibration images: an image folder, an .npz with images, or digits.
        out: folder to write to.
        criterion: which criterion ranks the units.
        scoring: its options.
        cut: which cuts are allowed.
        process: how the model was trained, when no scheduler config lies beside it.
        device: auto, cpu, cuda, mps ...
        dry_run: print the plan and the predicted size and stop.
    """
    goal = parse_target(target)
    settings = Recipe(criterion=criterion, scoring=scoring or ScoringConfig(), cut=cut or CutConfig())
    loaded, structure = open_model(model, process, device)
    dataset = open_data(data, loaded)
    plan = check_plan(loaded, structure, goal, settings, dataset)
    if dry_run:
        print_plan(plan, loaded, structure, goal, settings)
        return Path(out)
    options = {"criterion": criterion, "scoring": settings.scoring, "cut": settings.cut, "process": process}
    run = start_run(out, {"command": "prune", "model": model, "target": str(goal), "data": data, **options})
    scores = rank_stage(run, loaded, structure, dataset, criterion, settings.scoring)
    details = {"criterion": criterion, "scoring": dataclasses.asdict(settings.scoring)}
    pruned = cut_stage(run, loaded, structure, goal, scores, settings.cut, details, model)
    say((run / "tables" / "cut.md").read_text())
    say(f"model   {run / 'pruned'}")
    if loaded.pipeline is not None:
        say(f"whole   {save_pipeline(loaded, pruned, run / 'pipeline')}")
    return run
