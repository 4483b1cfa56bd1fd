"""`secateur inspect`: what a model is, what can be removed from it, and what was removed already."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..base.console import say
from ..base.rules import checked
from ..base.units import format_count
from ..io.locate import Component
from ..io.manifest import manifest_of
from ..io.pruned import class_name
from ..models.network import example_inputs
from ..models.registry import left_out
from ..runs.subject import open_weights, structure_of
from ..schedules import CutConfig, no_scores, removal_steps
from ..schedules.solver import uncut, walk
from ..structure.cost import cost_model
from .options import Model


@checked
def inspect(
    model: Model, *, component: Component | None = None, dims: bool = False, device: str = "cpu"
) -> dict[str, Any]:
    """Print a model's size, what can be removed from it and what was left whole, the smallest size, and its manifest.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        dims: list every dim.
        device: auto, cpu, cuda, mps ...
    """
    loaded = open_weights(model, device, component)
    structure = structure_of(model, loaded)
    cost = cost_model(loaded, structure, example_inputs(loaded, 1))
    dense = cost({})
    smallest = {}
    for granularity in ("width", "depth"):
        steps = removal_steps(structure, no_scores(structure), granularity=granularity, round_to=CutConfig().round_to)
        widths = walk(uncut(structure), steps)
        smallest[granularity] = cost(widths.kept(structure), widths.removed_blocks)
    say(f"class       {class_name(loaded)}")
    say(f"parameters  {format_count(dense.parameters)}")
    products = f"{format_count(dense.attention_macs)} of them attention products"
    say(f"MACs        {format_count(dense.macs)} for one sample, {products}")
    say(f"removable   {len(structure.dims)} widths, {len(structure.blocks)} blocks")
    whole = left_out(loaded)
    for name, reason in whole.items():
        say(f"whole       {name}: {reason}")
    for granularity, least in smallest.items():
        sizes = f"{format_count(least.macs)} MACs, {format_count(least.parameters)} parameters"
        say(f"smallest    {sizes} by {granularity}, {100 * least.macs / dense.macs:.1f}% of the MACs")
    manifest = manifest_of(loaded)
    for step in manifest.steps if manifest is not None else ():
        say(f"history     {step['kind']} {step.get('target', step.get('objective', ''))}")
    if dims:
        table = Table("dim", "units", "channels each", "levels", "moves with", box=None, pad_edge=False)
        for dim in structure.dims.values():
            linked = len(structure.links[dim.link]) - 1
            table.add_row(
                dim.name, str(dim.size), str(dim.width), str(dim.levels), f"{linked} others" if linked else ""
            )
        Console(width=max(100, Console().width)).print(table)
    return {
        "class": class_name(loaded),
        "parameters": dense.parameters,
        "macs": dense.macs,
        "attention_macs": dense.attention_macs,
        "dims": {dim.name: dim.size for dim in structure.dims.values()},
        "blocks": list(structure.blocks),
        "left_out": dict(whole),
        "history": [dict(step) for step in manifest.steps] if manifest is not None else [],
    }
