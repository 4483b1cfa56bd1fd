"""`secateur check-structure`: check the declared structure of a model against its outputs."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

import secateur

from ..base.console import say
from ..base.units import number_of
from ..io.pruned import class_name
from ..runs.inspection import require_right
from ..runs.subject import described
from .options import Weights


def check_structure(on: Weights, *, size: int | None = None, random_cuts: int = 3, seed: int = 0) -> None:
    """Compare masks with removal, for each width and each block of a model, and for random cuts.

    Random weights replace the model's own. Fails if any comparison fails.

    Args:
        on: the model.
        size: height and width of the sample, by default the model's own; small ones are faster.
        random_cuts: number of cuts of several widths and blocks at once.
        seed: seed of the weights and of the units to remove.
    """
    network = on.weights()
    architecture, structure = class_name(network), described(on.model, network)
    checks = secateur.check_structure(network, size=size, random_cuts=random_cuts, seed=seed)
    table = Table("cut alone", "error", "", "note", box=None, pad_edge=False)
    for check in checks:
        error = "-" if math.isinf(check.error) else f"{check.error:.1e}"
        table.add_row(check.name, error, "ok" if check.ok else "WRONG", check.hint)
    Console(width=max(160, Console().width)).print(table)
    require_right(checks, architecture)
    worst = max((check.error for check in checks), default=0.0)
    parts = f"{number_of(len(structure.dims), 'width')}, {number_of(len(structure.blocks), 'block')}"
    say(f"{architecture}: masks equal removal in all {len(checks)} comparisons ({parts}); largest error {worst:.1e}")
