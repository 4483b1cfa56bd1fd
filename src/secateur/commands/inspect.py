"""`secateur inspect`: show a model's size, what can be removed from it, and what was removed already."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import secateur

from ..base.console import say
from ..base.units import number_of
from .options import Weights


def inspect(on: Weights, *, dims: bool = False) -> None:
    """Print a model's size, what can and what cannot be removed, the smallest reachable size, and its manifest.

    Names are printed once for all layers that differ in their number only; these are patterns for --cut.include and
    --cut.exclude.

    Args:
        on: the model.
        dims: list every dim.
    """
    found = secateur.inspect(on.weights())
    say(str(found))
    if not dims:
        return
    structure = found.structure
    table = Table("dim", "units", "channels each", "levels", "moves with", box=None, pad_edge=False)
    for dim in structure.dims.values():
        linked = len(structure.links[dim.link]) - 1
        others = number_of(linked, "other") if linked else ""
        table.add_row(dim.name, str(dim.size), str(dim.width), str(dim.levels), others)
    Console(width=max(100, Console().width)).print(table)
