"""`secateur finetune`: recover a pruned model, or train any model further."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..base.console import say
from ..base.rules import Count, checked
from ..io.locate import Component
from ..process.named import ProcessName
from ..recovery import RecoveryConfig
from ..runs.checks import check_comparable, check_recovery
from ..runs.folder import run_folder
from ..runs.stages import pipeline_stage, recover_stage
from ..runs.subject import encode_data, inputs_of, open_data, open_model
from ..runs.timing import Work, print_times
from .options import Model


@checked
def finetune(
    model: Model,
    *,
    data: str,
    out: Path,
    teacher: str | None = None,
    objective: str | None = None,
    steps: Count | None = None,
    recovery: RecoveryConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Fine-tune a model; the result, with EMA weights, is the folder OUT/model.

    Run the same command again to resume. Start it with torchrun or accelerate launch for several processes.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        data: training images: an image folder, parquet, datasets:NAME, an .npz with images, or digits.
        out: folder to write to.
        teacher: the dense model, for objectives that match it.
        objective: denoising, distillation, first-order or 2ndmatch; the default is the recovery options' own.
        steps: optimizer steps; the default is the recovery options' own.
        recovery: how to train.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the predicted time and stop.
    """
    settings = recovery or RecoveryConfig()
    settings = dataclasses.replace(
        settings,
        steps=steps if steps is not None else settings.steps,
        objective=objective or settings.objective,
    )
    loaded, _ = open_model(model, process, device, component)
    dense = taught_by = None
    if teacher is not None:
        taught_by, _ = open_model(teacher, process, device, component)
        check_comparable(model, loaded, teacher, taught_by)
        dense = taught_by.model
    dataset = open_data(data, loaded)
    check_recovery(loaded.model, dataset, settings, dense)
    if dry_run:
        print_times(loaded, Work(recovery=settings, teacher=dense))
        return Path(out)
    places = {"model": model, "teacher": teacher, "data": data, "component": component, "process": process}
    inputs = inputs_of(dataset, model=loaded, teacher=taught_by)
    with run_folder(out, {"command": "finetune", **places, "recovery": settings}, inputs) as run:
        dataset = encode_data(dataset, loaded)
        recover_stage(run, loaded.model, loaded, dataset, settings, dense)
        pipeline_stage(run, loaded)
        say(f"model   {run / 'model'}\nlog     {run / 'recovery' / 'log.jsonl'}")
        return run
