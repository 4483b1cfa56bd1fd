"""A model's size, what can be removed from it, and whether its structure is declared correctly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn
from typing_extensions import Unpack

from ..base.console import progress as progress_bar
from ..base.console import shown
from ..base.errors import ModelError, SecateurError, first_line
from ..base.layer_names import counted, grouped
from ..base.rules import Count, Seed, at_least, checked
from ..base.units import format_count, number_of
from ..io.manifest import manifest_of
from ..io.pruned import class_name
from ..models.network import example_inputs, inference
from ..models.pricing import priced
from ..models.registry import describe, left_out
from ..schedules import CutConfig, no_scores, removal_steps
from ..schedules.solver import uncut, walk
from ..structure import Check, Structure, count_checks
from ..structure import check_structure as checks_of
from ..structure.cost import Cost
from .arguments import WeightsArguments
from .subject import described, open_weights, require_weights


@dataclass(frozen=True)
class Inspection:
    """The result of `secateur.inspect`; it prints as a summary.

    Attributes:
        architecture: the model's class.
        dense: its present size.
        smallest: the smallest reachable size, by width and by depth.
        structure: its removable dims and blocks.
        left_out: what cannot be removed, and why.
        history: the steps in its manifest.
    """

    architecture: str
    dense: Cost
    smallest: Mapping[str, Cost]
    structure: Structure
    left_out: Mapping[str, str]
    history: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        dense, structure = self.dense, self.structure
        lines = [
            f"class       {self.architecture}",
            f"parameters  {format_count(dense.parameters)}",
            f"MACs        {format_count(dense.macs)} for one sample, {format_count(dense.attention_macs)} of them "
            "attention products",
            f"removable   {number_of(len(structure.dims), 'width')}, {number_of(len(structure.blocks), 'block')}",
        ]
        lines += [f"width       {name}" for name in counted(structure.dims)]
        lines += [f"block       {name}" for name in counted(structure.blocks)]
        for granularity, least in self.smallest.items():
            sizes = f"{format_count(least.macs)} MACs, {format_count(least.parameters)} parameters"
            lines.append(f"smallest    {sizes} by {granularity}, {100 * least.macs / dense.macs:.1f}% of the MACs")
        lines += [f"not cut     {', '.join(names)}: {reason}" for names, reason in grouped(self.left_out)]
        lines += [
            f"history     {step['kind']} {step.get('target', step.get('objective', ''))}" for step in self.history
        ]
        return "\n".join(lines)

    __repr__ = __str__


@checked
def inspect(model: Any, **arguments: Unpack[WeightsArguments]) -> Inspection:
    """A model's size, its removable dims and blocks, the smallest reachable size, and its manifest.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned.
        arguments: those of `WeightsArguments`.

    Raises:
        SecateurError: it cannot be loaded, or its structure is not declared.
    """
    network = open_weights(model, **arguments)
    structure = described(_name(model, network), network)
    cost = priced(network, structure)
    smallest = {}
    for granularity in ("width", "depth"):
        steps = removal_steps(structure, no_scores(structure), granularity=granularity, round_to=CutConfig().round_to)
        widths = walk(uncut(structure), steps)
        smallest[granularity] = cost(widths.kept(structure), widths.removed_blocks)
    manifest = manifest_of(network)
    history = () if manifest is None else tuple(manifest.steps)
    return Inspection(class_name(network), cost({}), smallest, structure, left_out(network), history)


@checked
def check_structure(
    model: Any,
    *,
    size: Count | None = None,
    random_cuts: Annotated[int, at_least(0)] = 3,
    seed: Seed = 0,
    progress: bool = False,
    **arguments: Unpack[WeightsArguments],
) -> tuple[Check, ...]:
    """Compare masks with removal, for each width and each block of a model, and for random cuts.

    Works on a copy with random weights.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned.
        size: height and width of the sample, by default the model's own; small ones are faster.
        random_cuts: number of cuts of several widths and blocks at once.
        seed: seed of the weights and of the units to remove.
        progress: show progress bars and print notes.
        arguments: those of `WeightsArguments`.

    Returns:
        All comparisons; a correct one has `ok`.

    Raises:
        SecateurError: bad input, or a model that does not run.
    """
    network = open_weights(model, **arguments)
    require_weights(network)
    name = _name(model, network)
    structure = described(name, network)
    inputs = example_inputs(network, 2, None if size is None else (size, size))
    try:
        with inference(network):
            network(**inputs)
    except Exception as error:  # a forward pass may raise anything
        raise ModelError(f"{name} does not run at size {size or 'its own'}: {first_line(error)}") from error
    found = []
    with shown(progress), progress_bar("masks against removal", count_checks(structure, random_cuts)) as advance:
        for check in checks_of(network, structure, inputs, random_cuts=random_cuts, seed=seed, describe=describe):
            found.append(check)
            advance(1, check.name)
    return tuple(found)


def require_right(checks: tuple[Check, ...], architecture: str) -> None:
    """Raise `SecateurError` if a comparison failed, naming the first."""
    wrong = [check for check in checks if not check.ok]
    if wrong:
        raise SecateurError(
            f"the structure of {architecture} is declared wrongly: {len(wrong)} of {len(checks)} comparisons fail, the "
            f"first of {wrong[0].name}: {wrong[0].hint}"
        )


def _name(model: Any, network: nn.Module) -> str:
    return str(model) if isinstance(model, str) else class_name(network)
