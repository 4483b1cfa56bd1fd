"""`secateur evaluate`: sizes, speed, samples and distances of one model, or of a pruned one against its dense base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..base.console import say
from ..base.distributed import is_main_process, wait_for_everyone
from ..base.rules import checked
from ..evaluation import EvaluationConfig, plan_evaluation
from ..io.locate import Component
from ..io.manifest import beside, stage_of
from ..models.network import device_of
from ..process.named import ProcessName
from ..reporting import write_report
from ..runs.checks import check_comparable
from ..runs.folder import run_folder
from ..runs.stages import evaluate_stage
from ..runs.subject import encode_data, inputs_of, open_data, open_model
from ..runs.timing import Work, print_times
from .options import MetricName, Model


@checked
def evaluate(
    model: Model,
    *,
    data: str,
    out: Path,
    reference: str | None = None,
    metrics: tuple[MetricName, ...] | None = None,
    evaluation: EvaluationConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Evaluate a model; with a reference, also how far its images are from the reference's on the same noise.

    A stopped run goes on when the same command is given again. `torchrun --nproc_per_node 2 -m secateur evaluate`
    shares the sampling out over processes, which changes no sample.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        data: real images: an image folder, parquet, datasets:NAME, an .npz with images, or digits.
        out: folder to write to.
        reference: the dense model to compare with.
        metrics: what to measure, in the place of the evaluation options' own; docs/metrics.md says what each is.
        evaluation: how to measure.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the predicted time and stop.
    """
    settings = evaluation or EvaluationConfig()
    settings = replace(settings, metrics=metrics or settings.metrics)
    loaded, _ = open_model(model, process, device, component)
    models, dense = {stage_of(loaded.model): loaded.model}, None
    if reference is not None:
        dense, _ = open_model(reference, process, device, component)
        check_comparable(model, loaded, reference, dense)
        models = beside(dense.model, loaded.model)
    dataset = open_data(data, loaded)
    for note in plan_evaluation(models, loaded.process, dataset, settings).notes:
        say(note)
    if dry_run:
        print_times(loaded, Work(evaluation=settings))
        return Path(out)
    places = {"model": model, "reference": reference, "data": data, "component": component, "process": process}
    inputs = inputs_of(dataset, model=loaded, reference=dense)
    with run_folder(out, {"command": "evaluate", **places, "evaluation": settings}, inputs) as run:
        wait_for_everyone(on_cpu=device_of(loaded.model).type == "cpu")  # nobody writes where the folder is refused
        dataset = encode_data(dataset, loaded)
        evaluate_stage(run, models, loaded, dataset, settings)
        if not is_main_process():
            return run
        page = write_report(run)
        say((run / "tables" / "evaluation.md").read_text())
        say(f"report  {page}")
        return run
