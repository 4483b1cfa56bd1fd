"""From a value for every parameter entry, w or w times its gradient, to a score for every unit and block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..base.devices import in_float64
from ..base.shards import whole
from ..structure import Structure
from .ranking import parameters_of

# Which entries of a coupled group count, and how. abs and square sum |x| or x^2 over all of a unit's entries; the
# others are the rules of Diff-Pruning's released code, named after the script or folder they come from:
# - ddpm-prune: |x| of the weights of convolutions and linear layers; no norms, no biases. Averaged over layers and then
#   divided by the group's mean, so that all groups average 1.
# - ddpm-exp, behind the paper's tables: x^2 of the weights of convolutions and linear layers, |x| of those of norms; no
#   biases. Summed.
Reduction = Literal["abs", "square", "ddpm-prune", "ddpm-exp"]

Sums = dict[tuple[str, int | None], Tensor]
"""Of a parameter's entries over all axes but one, (size,), or with axis None over all, (); float64 on the CPU."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def reduced(values: Tensor, model: nn.Module, name: str, reduction: Reduction) -> Tensor | None:
    """The importance of every entry of the parameter `name`, which holds `values`; None if they do not count."""
    if reduction == "abs":
        return values.abs()
    if reduction == "square":
        return values.square()
    module, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return None
    if isinstance(model.get_submodule(module), LAYERS):
        return values.abs() if reduction == "ddpm-prune" else values.square()
    is_norm = values.ndim == 1
    return values.abs() if is_norm and reduction == "ddpm-exp" else None


def summed_axes(structure: Structure, names: Iterable[str]) -> dict[str, list[int | None]]:
    """Which sums the scores need of each of the parameters `names`: along axes of dims, and over everything in a
    block."""
    axes: dict[str, set[int]] = defaultdict(set)
    for dim in structure.dims.values():
        for piece in dim.slices:
            axes[piece.parameter].add(piece.axis)
    in_block: dict[bool, list[int | None]] = {True: [None], False: []}
    return {name: [*sorted(axes[name]), *in_block[structure.owner(name) is not None]] for name in names}


def entry_sums(name: str, importance: Tensor, axes: Iterable[int | None]) -> Sums:
    """Sums of one parameter's `importance`, gathered first where it is sharded over processes."""
    wide = in_float64(whole(importance))
    return {
        (name, axis): (wide.sum() if axis is None else wide.movedim(axis, 0).reshape(wide.shape[axis], -1).sum(1)).cpu()
        for axis in axes
    }


class StreamedSums:
    """Adds up the importance of parameters as it arrives, one after the other; tied ones count under each name."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        parameters = parameters_of(model)
        self.axes = summed_axes(structure, parameters)
        self.names: dict[nn.Parameter, list[str]] = defaultdict(list)
        for name, parameter in parameters.items():
            self.names[parameter].append(name)
        self._sums: Sums = {}

    def add(self, name: str, importance: Tensor) -> None:
        """Add the `importance` of every entry of the parameter `name`."""
        for key, value in entry_sums(name, importance, self.axes[name]).items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def in_order(self) -> Sums:
        """The sums in the order of the model's parameters, in which scores add them."""
        keys = ((name, axis) for name, axes in self.axes.items() for axis in axes)
        return {key: self._sums[key] for key in keys if key in self._sums}


def unit_scores(structure: Structure, importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum the importance of every parameter entry over the slices of each unit, and over each block.

    Args:
        structure: the structure of the model.
        importance: for each parameter by name, a tensor of its shape.
    """
    sums: Sums = {}
    for name, axes in summed_axes(structure, importance).items():
        sums |= entry_sums(name, importance[name], axes)
    return scores_of(structure, sums, "abs")


def scores_of(structure: Structure, sums: Sums, reduction: Reduction) -> dict[str, Tensor]:
    """Scores of every unit and block, from the sums of every parameter's importance (`reduced`)."""
    scores: dict[str, Tensor] = {}
    nothing = torch.zeros((), dtype=torch.float64)
    for dim in structure.dims.values():
        parts = [
            sums[piece.parameter, piece.axis][piece.offset : piece.offset + dim.size * dim.width_of(piece)]
            for piece in dim.slices
            if (piece.parameter, piece.axis) in sums
        ]
        units = [part.reshape(dim.size, -1).sum(1) for part in parts]
        total = torch.stack(units).sum(0) if units else nothing.repeat(dim.size)
        # The number of layers that "ddpm-prune" averages over is the same for every unit, and cancels here.
        scores[dim.name] = total / total.mean() if reduction == "ddpm-prune" and total.any() else total
    for block in structure.blocks:
        owned = [values for (name, axis), values in sums.items() if axis is None and name.startswith(block + ".")]
        scores[block] = torch.stack(owned or [nothing]).sum().reshape(1)
    return scores
