"""Figures and tables of a run as files: `plots/*.png`, and each table as Markdown and CSV in `tables/`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..base.files import atomic_file, write_text
from ..results import Evaluation, Table
from .classes import class_scores, worst_first
from .grids import comparison_grid
from .layers import Pair, layer_pairs
from .pages import MOST_SAMPLES
from .plots import (
    plot_classes,
    plot_compensation,
    plot_cut,
    plot_decisions,
    plot_denoising,
    plot_layers,
    plot_ranking,
    plot_speed,
    plot_stages,
    plot_training,
)
from .plots.evaluation import losses_of
from .run import Run, read_run
from .style import save_figure
from .tables import class_table, layer_table, ranking_tables

RANKING = ("ranking", "blocks", "correlations")


def figures_of(run: Run) -> dict[str, Figure]:
    """Every figure for which the run has numbers, by name."""
    found: dict[str, Figure] = {}
    records, evaluation = run.recovery.records, run.evaluation
    if run.ranking is not None:
        found["ranking"] = plot_ranking(run.ranking, run.cut)
    if run.cut is not None and run.cut.dims:
        found["cut"] = plot_cut(run.cut)
    if run.compensation is not None and any(one.before and one.after for one in run.compensation.readers.values()):
        found["compensation"] = plot_compensation(run.compensation)
    if run.decisions.soft:
        found["stages"] = plot_stages(run.decisions, records)
    if run.decisions.blocks:
        found["decisions"] = plot_decisions(run.decisions.blocks)
    if records:
        found["training"] = plot_training(records, run.decisions.removal_step)
    if evaluation is not None:
        if any(len(losses.losses) > 1 for losses in losses_of(evaluation).values()):
            found["denoising"] = plot_denoising(evaluation)
        if evaluation.compares:
            found["speed"] = plot_speed(evaluation)
    if scores := class_scores(evaluation):
        found["classes"] = plot_classes(worst_first(scores))
    if pairs := layers_of(evaluation):
        found["layers"] = plot_layers(pairs)
    return found


def layers_of(evaluation: Evaluation | None) -> list[Pair]:
    """The layers of the dense model beside those of the final one; empty unless there are two models."""
    if evaluation is None or not evaluation.compares or not (evaluation.dense.layers and evaluation.final.layers):
        return []
    return layer_pairs(evaluation.dense.layers, evaluation.final.layers, evaluation.final.removed_blocks)


def tables_of(run: Run) -> dict[str, Table]:
    """Every table for which the run has numbers, by name."""
    found: dict[str, Table] = {}
    if run.ranking is not None:
        found |= ranking_tables(run.ranking, run.cut)
    for part in (run.quality, run.cut, run.compensation, run.decisions, run.evaluation):
        found |= part.tables() if part is not None else {}
    if scores := class_scores(run.evaluation):
        found["classes"] = class_table(scores)
    if pairs := layers_of(run.evaluation):
        found["layers"] = layer_table(pairs)
    return found


def write_ranking(folder: str | Path) -> Path:
    """Write the plot and the tables of `ranking.json`; returns the folder."""
    return _write(read_run(folder), RANKING)


def write_cut(folder: str | Path) -> Path:
    """Write the plot and the table of `cut.json`, and those of the ranking with the border of the cut."""
    return _write(read_run(folder), (*RANKING, "sizes", "cut"))


def _write(run: Run, names: tuple[str, ...]) -> Path:
    write_figures(run.folder, {name: figure for name, figure in figures_of(run).items() if name in names})
    write_tables(run.folder, {name: table for name, table in tables_of(run).items() if name in names})
    return run.folder


def write_figures(folder: Path, figures: dict[str, Figure]) -> None:
    """Write each figure to `plots/NAME.png`, and as NAME.pdf for papers."""
    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            save_figure(figure, folder / "plots" / f"{name}.{suffix}")


def write_tables(folder: Path, tables: dict[str, Table]) -> None:
    """Write each table to `tables/NAME.md` and `tables/NAME.csv`."""
    for name, table in tables.items():
        write_text(folder / "tables" / f"{name}.md", table.to_markdown())
        write_text(folder / "tables" / f"{name}.csv", table.to_csv())


def write_samples(folder: Path, run: Run) -> None:
    """Write `plots/samples.png` into the folder: the first images of every model and of the data."""
    rows = dict(run.images) if run.real is None else {**run.images, "real": run.real}
    if rows:
        with atomic_file(folder / "plots" / "samples.png") as temporary:
            comparison_grid({name: images[:MOST_SAMPLES] for name, images in rows.items()}).save(temporary, "PNG")
