"""Figures and tables of a run as files: `plots/*.png`, and each table as Markdown and CSV in `tables/`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..base.files import atomic_file, write_text
from .classes import class_scores, worst_first
from .grids import comparison_grid
from .layers import Pair, layer_pairs
from .pages import MOST_SAMPLES
from .plots import (
    plot_classes,
    plot_cut,
    plot_decisions,
    plot_denoising,
    plot_layers,
    plot_ranking,
    plot_speed,
    plot_stages,
    plot_training,
)
from .run import Run, read_run
from .stages import decisions, removal_step, soft_stages
from .style import save_figure
from .tables import (
    Table,
    block_table,
    class_table,
    comparison_rows,
    correlation_table,
    cut_table,
    decision_table,
    evaluation_table,
    layer_table,
    ranking_table,
    stage_table,
)

RANKING = ("ranking", "blocks", "correlations")


def figures_of(run: Run) -> dict[str, Figure]:
    """Every figure that the run has numbers for, by name."""
    found: dict[str, Figure] = {}
    models, stages = run.evaluation.models, soft_stages(run.stages)
    if run.ranking:
        found["ranking"] = plot_ranking(run.ranking, run.cut)
    if run.cut.get("dims"):
        found["cut"] = plot_cut(run.cut)
    if stages:
        found["stages"] = plot_stages(stages, run.records)
    if decided := decisions(run.stages):
        found["decisions"] = plot_decisions(decided)
    if run.records:
        found["training"] = plot_training(run.records, removal_step(stages))
    if any(len(model.losses) > 1 for model in models):
        found["denoising"] = plot_denoising(models)
    if len(models) > 1:
        found["speed"] = plot_speed(models)
    if scores := class_scores(run.evaluation):
        found["classes"] = plot_classes(worst_first(scores))
    if pairs := layers_of(run):
        found["layers"] = plot_layers(pairs)
    return found


def layers_of(run: Run) -> list[Pair]:
    """The layers of the dense model beside those of the final one; none where there are not two models."""
    models = run.evaluation.models
    if len(models) < 2 or not all(model.layers for model in (models[0], models[-1])):
        return []
    return layer_pairs(models[0].layers, models[-1].layers, models[-1].removed_blocks)


def tables_of(run: Run) -> dict[str, Table]:
    """Every table that the run has numbers for, by name."""
    found: dict[str, Table] = {}
    if run.ranking.get("dims"):
        found["ranking"] = ranking_table(run.ranking, run.cut)
    if run.ranking.get("blocks"):
        found["blocks"] = block_table(run.ranking, run.cut)
    if run.ranking.get("block_report"):
        found["correlations"] = correlation_table(run.ranking)
    if run.cut.get("dims"):
        found["cut"] = cut_table(run.cut)
    if stages := soft_stages(run.stages):
        found["stages"] = stage_table(stages)
    if decided := decisions(run.stages):
        found["decisions"] = decision_table(decided)
    if run.evaluation.models:
        found["evaluation"] = evaluation_table(run.evaluation)
    if run.evaluation.comparisons:
        found["comparisons"] = comparison_rows(run.evaluation)
    if scores := class_scores(run.evaluation):
        found["classes"] = class_table(scores)
    if pairs := layers_of(run):
        found["layers"] = layer_table(pairs)
    return found


def write_ranking(folder: str | Path) -> Path:
    """Write the plot and the tables of `ranking.json`; returns the folder."""
    return _write(read_run(folder), RANKING)


def write_cut(folder: str | Path) -> Path:
    """Write the plot and the table of `cut.json`, and those of the ranking with the border of the cut."""
    return _write(read_run(folder), (*RANKING, "cut"))


def _write(run: Run, names: tuple[str, ...]) -> Path:
    write_figures(run.folder, {name: figure for name, figure in figures_of(run).items() if name in names})
    write_tables(run.folder, {name: table for name, table in tables_of(run).items() if name in names})
    return run.folder


def write_figures(folder: Path, figures: dict[str, Figure]) -> None:
    """Write each figure to `plots/NAME.png`."""
    for name, figure in figures.items():
        save_figure(figure, folder / "plots" / f"{name}.png")


def write_tables(folder: Path, tables: dict[str, Table]) -> None:
    """Write each table to `tables/NAME.md` and `tables/NAME.csv`."""
    for name, table in tables.items():
        write_text(folder / "tables" / f"{name}.md", table.to_markdown())
        write_text(folder / "tables" / f"{name}.csv", table.to_csv())


def write_samples(run: Run) -> None:
    """Write `plots/samples.png`, the first images of every model and of the data."""
    rows = dict(run.images) if run.real is None else {**run.images, "real": run.real}
    if rows:
        with atomic_file(run.folder / "plots" / "samples.png") as temporary:
            comparison_grid({name: images[:MOST_SAMPLES] for name, images in rows.items()}).save(temporary, "PNG")
