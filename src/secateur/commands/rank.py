"""`secateur rank`: which units and blocks matter least."""

from pathlib import Path

from ..base.console import say
from ..base.distributed import one_process
from ..base.files import read_json
from ..base.rules import checked
from ..criteria import ScoringConfig, criterion_named
from ..io.locate import Component
from ..process.named import ProcessName
from ..runs.folder import run_folder
from ..runs.stages import rank_stage
from ..runs.subject import encode_data, inputs_of, open_calibration, open_model
from ..runs.timing import Work, print_times
from ..schedules import check_criterion
from .options import CriterionName, Model


@checked
def rank(
    model: Model,
    *,
    out: Path,
    data: str | None = None,
    criterion: CriterionName = "diff-pruning",
    scoring: ScoringConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Rank every unit and block of a model; writes a JSON, a table and a plot.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        out: folder to write to.
        data: calibration images: an image folder, parquet, datasets:NAME, an .npz with images, or digits; magnitude,
            random and uniform need none.
        criterion: which criterion ranks the units (`secateur.criteria.CRITERIA`); some rank blocks only.
        scoring: its options.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the predicted time and stop.
    """
    one_process("rank")
    scoring = criterion_named(criterion).configured(scoring or ScoringConfig())
    loaded, structure = open_model(model, process, device, component)
    dataset = open_calibration(data, loaded, criterion)
    check_criterion(criterion, structure)
    if dry_run:
        print_times(loaded, Work(ranking=(criterion, scoring)))
        return Path(out)
    options = {"criterion": criterion, "scoring": scoring, "component": component, "process": process}
    settings = {"command": "rank", "model": model, "data": data, **options}
    with run_folder(out, settings, inputs_of(dataset, model=loaded)) as run:
        dataset = None if dataset is None else encode_data(dataset, loaded)
        rank_stage(run, loaded, structure, dataset, criterion, scoring)
        for name in ("ranking", "blocks", "correlations"):
            table = run / "tables" / f"{name}.md"
            if table.is_file():
                say(table.read_text())
        say(f"scores   {run / 'ranking.json'}\nplot     {run / 'plots' / 'ranking.png'}")
        say(f"seconds  {read_json(run / 'ranking.json')['seconds']}")
        return run
