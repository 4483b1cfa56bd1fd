"""Tables that join several results of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import CutResult, Layer, Ranking, Table
from ..results.ranking import block_table, ranking_table
from .classes import ClassScore
from .layers import Pair

CLASS_SCORES = ("precision", "recall", "density", "coverage", "diversity")


def ranking_tables(ranking: Ranking, cut: CutResult | None) -> dict[str, Table]:
    """The tables of a ranking, with what the cut removes."""
    tables = ranking.tables()
    if cut is None:
        return tables
    if "ranking" in tables:
        tables["ranking"] = ranking_table(ranking, {name: dim.units - dim.kept for name, dim in cut.dims.items()})
    if "blocks" in tables:
        tables["blocks"] = block_table(ranking, cut.removed_blocks)
    return tables


def class_table(scores: Sequence[ClassScore]) -> Table:
    """Every score of every class, one line for each model."""
    rows = tuple(
        (found.name, model, row.samples, row.real, *[getattr(row, score) for score in CLASS_SCORES])
        for found in scores
        for model, row in found.models.items()
    )
    return Table(("class", "model", "samples", "real images", *CLASS_SCORES), rows)


def layer_table(pairs: Sequence[Pair]) -> Table:
    """Every layer: shape of its weight, parameters and MACs before and after."""
    rows = tuple(
        (before.name, before.kind, _shape(before), _shape(after), before.parameters, after.parameters, before.macs,
         after.macs)
        for before, after in pairs
    )  # fmt: skip
    columns = ("layer", "kind", "weight before", "after", "parameters before", "after", "MACs before", "after")
    return Table(columns, rows)


def _shape(layer: Layer) -> str:
    return "×".join(map(str, layer.weight)) or "–"
