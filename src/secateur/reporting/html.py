"""One self-contained page about a run: no scripts, no files beside it, nothing from the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..base.files import write_json, write_text
from ..results import Ranking
from .card import write_card
from .classes import SCORES, class_scores, worst_first
from .files import figures_of, layers_of, tables_of, write_figures, write_samples, write_tables
from .pages import Strip, as_svgs, captions_of, class_names, difference_strip, render, strip_of, strips_by_class
from .plots import plot_classes, plot_layers, plot_ranking, plot_stages
from .plots.layers import QUANTITIES
from .plots.stages import parts_with_data
from .product import Product, product_of
from .run import Run, read_run
from .summary import summarize
from .titles import title_of

ALTERNATIVES = {
    "ranking": "Sorted scores of every dim",
    "blocks": "Score of every block",
    "curve": "Calibration loss by timestep, and where scoring stopped",
    "cut": "Channels of every dim before and after the cut",
    "masks": "Shares of units at each mask value, and the MACs that remain, by step",
    "flow": "Calibration and training loss, energy and gradient norm by step of progressive pruning",
    "decisions": "Candidates and choices of every stage, and the blocks that were removed",
    "compensation": "Error of every refitted layer before and after",
    "training": "Recovery loss and its terms, gradient norms and learning rate by step",
    "denoising": "Denoising loss of every model by timestep",
    "coverage": "Coverage of every class by model",
    "diversity": "Diversity of every class by model",
    "macs": "MACs of every part of the model before and after",
    "parameters": "Parameters of every part of the model before and after",
    "speed": "MACs, parameters and latency relative to the dense model",
}
IN_PARTS = ("ranking", "stages", "classes", "layers")
STAGE_PARTS = {"masks": ("masks", "macs"), "flow": ("loss", "energy", "gradient_norm")}
SECTIONS = {
    "samples": "Samples",
    "quality": "Quality and cost",
    "classes": "Classes",
    "compensation": "Compensation",
    "recovery": "Recovery",
    "costs": "Layers",
    "diagnostics": "Diagnostics",
    "limits": "Limits",
    "use": "Use this model",
    "run": "The run",
}
MOST_VALIDATED = 8  # steps whose validation images are shown, a row each
SETTINGS = ("command", "command_line", "model", "data", "device", "versions")


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write `report.html`, `report.json`, `plots/` and `tables/` from the results in the folder `run`, into `out` or
    the run itself, and a card into the folder of its model.

    Raises:
        SecateurError: the folder holds no run, or a damaged one.
    """
    found, place = read_run(run), Path(out or run)
    figures = figures_of(found)
    write_figures(place, figures)
    write_tables(place, tables_of(found))
    write_samples(place, found)
    summary = summarize(found)
    write_json(place / "report.json", summary.numbers)
    figures = _apart(found, figures)
    product = product_of(found)
    if product is not None:
        write_card(found, product)
    names = class_names(found.evaluation)
    captions, kind = captions_of(found)
    strips = [
        strip_of(name, images, captions, key=f"sample-{place}")
        for place, (name, images) in enumerate(found.images.items())
    ]
    page = render(
        "report.html",
        kind=found.config.command or "report",
        title=title_of(found),
        summary=summary,
        sections=[(key, name) for key, name in SECTIONS.items() if _has(found, key, figures, product)],
        figures=as_svgs(figures, ALTERNATIVES),
        tables=tables_of(found),
        strips=strips,
        difference=_difference(found),
        caption_kind=kind,
        real=None if found.real is None else strip_of("real images", found.real, key="real"),
        validation=_validation(found),
        classes=strips_by_class(found.images, found.class_labels, names),
        evaluation=found.evaluation,
        ranking=found.ranking,
        cut=found.cut,
        product=product,
        facts=_facts(found.config),
        versions=found.config.versions,
        command=found.config.begun_by,
        settings=_settings(found),
    )
    return write_text(place / "report.html", page)


def _difference(run: Run) -> Strip | None:
    """Where the final model's images differ from the first model's."""
    if len(run.images) < 2:
        return None
    (first, dense), *_, (last, final) = run.images.items()
    return difference_strip(f"{last} − {first}", final, dense) if dense.shape[1:] == final.shape[1:] else None


def _validation(run: Run) -> list[Strip]:
    """Images drawn during training: the first, the last, and evenly spaced ones between them."""
    steps = list(run.validation)
    places = sorted({round(place * (len(steps) - 1) / (MOST_VALIDATED - 1)) for place in range(MOST_VALIDATED)})
    shown = [steps[place] for place in places] if steps else []
    captions = run.config.validation_captions
    return [
        strip_of(f"step {step:,}", run.validation[step], captions, len(run.validation[step]), key=f"validation-{step}")
        for step in shown
    ]


def _has(run: Run, key: str, figures: Mapping[str, Figure], product: Product | None) -> bool:
    """Whether the page has a section."""
    there = {
        "samples": bool(run.images),
        "quality": run.evaluation is not None,
        "classes": "coverage" in figures,
        "compensation": run.compensation is not None and bool(run.compensation.readers),
        "recovery": "training" in figures or bool(run.validation),
        "costs": "macs" in figures,
        "diagnostics": bool(run.cut or run.ranking or run.decisions.soft or run.decisions.blocks),
        "use": product is not None,
    }
    return there.get(key, True)


def _apart(run: Run, figures: dict[str, Figure]) -> dict[str, Figure]:
    """The figures, those of several panels split into one each, so that the page can lay them out side by side."""
    panels: dict[str, Figure] = {}
    if (ranking := run.ranking) is not None:
        bare = Ranking(ranking.criterion)
        if ranking.dims:
            panels["ranking"] = plot_ranking(replace(bare, dims=ranking.dims), run.cut)
        if ranking.blocks:
            blocks = replace(bare, blocks=ranking.blocks, block_report=ranking.block_report)
            panels["blocks"] = plot_ranking(blocks, run.cut)
        if ranking.curve is not None:
            panels["curve"] = plot_ranking(replace(bare, curve=ranking.curve))
    for name, group in STAGE_PARTS.items():
        if run.decisions.soft and parts_with_data(run.decisions.soft, run.recovery.records, group):
            panels[name] = plot_stages(run.decisions, run.recovery.records, group)
    if "classes" in figures:
        scores = worst_first(class_scores(run.evaluation))
        panels |= {score: plot_classes(scores, (score,)) for score in SCORES}
    if "layers" in figures:
        panels |= {quantity: plot_layers(layers_of(run.evaluation), (quantity,)) for quantity in QUANTITIES}
    return {name: figure for name, figure in figures.items() if name not in IN_PARTS} | panels


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    shown = ("model", "data", "recipe", "target", "seed", "device")
    return {key: str(config[key]) for key in shown if config.get(key) is not None}


def _settings(run: Run) -> str:
    """Every setting as JSON, except what the page shows elsewhere."""
    chosen = {key: value for key, value in run.config.items() if key not in SETTINGS}
    if run.ranking:
        chosen["ranking"] = {"criterion": run.ranking.criterion, "options": run.ranking.options}
    if run.cut:
        chosen["cut"] = {key: getattr(run.cut, key) for key in ("allocation", "granularity", "round_to")}
    return json.dumps(chosen, indent=2, ensure_ascii=False)
