"""`secateur check-structure`: does the declaration of a model's structure tell the truth?"""

from __future__ import annotations

import math
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from ..base.console import progress, say
from ..base.errors import ModelError, SecateurError, first_line
from ..base.rules import Count, Seed, at_least, checked
from ..io.locate import Component
from ..io.pruned import class_name
from ..models.network import example_inputs, inference
from ..runs.subject import open_weights, structure_of
from ..structure import check_structure as checks_of
from ..structure import count_checks
from .options import Model


@checked
def check_structure(
    model: Model,
    *,
    size: Count | None = None,
    random_cuts: Annotated[int, at_least(0)] = 3,
    seed: Seed = 0,
    component: Component | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Compare masks with removal for every width and every block of a model alone, and for random cuts.

    Random weights take the place of the model's own. Fails if any comparison does.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        size: height and width of the sample, by default the model's own; small ones are faster.
        random_cuts: cuts of several widths and blocks at once.
        seed: of the weights and the units that leave.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        device: auto, cpu, cuda, mps ...
    """
    loaded = open_weights(model, device, component)
    structure = structure_of(model, loaded)
    inputs = example_inputs(loaded, 2, None if size is None else (size, size))
    try:
        with inference(loaded):
            loaded(**inputs)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{model} does not run at size {size or 'of its own'}: {first_line(error)}") from error
    table = Table("cut alone", "error", "", "note", box=None, pad_edge=False)
    found = []
    with progress("masks against removal", count_checks(structure, random_cuts)) as advance:
        for check in checks_of(loaded, structure, inputs, random_cuts=random_cuts, seed=seed):
            found.append(check)
            size_of_error = "-" if math.isinf(check.error) else f"{check.error:.1e}"
            table.add_row(check.name, size_of_error, "ok" if check.ok else "WRONG", check.hint)
            advance(1, check.name)
    Console(width=max(160, Console().width)).print(table)
    wrong = [check for check in found if not check.ok]
    if wrong:
        raise SecateurError(
            f"the structure of {class_name(loaded)} is declared wrongly: {len(wrong)} of {len(found)} comparisons "
            f"fail, the first of {wrong[0].name}: {wrong[0].hint}"
        )
    worst = max((check.error for check in found), default=0.0)
    say(
        f"{class_name(loaded)}: masks equal removal in all {len(found)} comparisons "
        f"({len(structure.dims)} widths, {len(structure.blocks)} blocks); largest error {worst:.1e}"
    )
    return [vars(check) | {"ok": check.ok} for check in found]
