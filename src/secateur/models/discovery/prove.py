"""Proving discovered structure: masks must equal removal, for each width and each block."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...structure import Check, Dim, Structure, check_structure
from ...structure.cost import own_products
from .blocks import blocks_of, listed_modules
from .influence import influences
from .reach import reached
from .widths import following, widths_of

REPEATS, RANDOM_CUTS = 2, 3
CONDITIONS_ALONE = "the sample does not pass through it: a token refiner or a modulation, which stay whole"
DIFFERS = "first differs after"  # in the hint of a check


@dataclass(frozen=True)
class Proven:
    """A structure that was proven on one model, and why everything else is not cut, by name."""

    structure: Structure
    left_out: Mapping[str, str]


def prove(model: nn.Module, inputs: Mapping[str, Any]) -> Proven:
    """Find what can be removed from `model` and prove it on `inputs`, keyword arguments of its `forward`.

    `model` does not change: copies with random weights are used.
    """
    model = copy.deepcopy(model).eval().requires_grad_()
    structure, left_out = _found(model, inputs)
    attributes: dict[str, str] = {}
    for check in check_structure(model, structure, inputs, random_cuts=0):
        if check.name in structure.dims and not check.ok:
            check, follow = _with_numbers(model, structure, check, inputs)
            attributes |= dict.fromkeys(follow, check.name)
        if not _proven(check):
            left_out[check.name] = _reason(check)
    structure = _without(replace(structure, attributes=attributes), left_out)
    for seed in range(1, 1 + REPEATS):  # at other levels, and combined with others
        checks = list(check_structure(model, structure, inputs, random_cuts=RANDOM_CUTS, seed=seed))
        wrong = {check.name: _reason(check) for check in checks if not check.ok}
        together = wrong.pop("random cut", None)
        if together is not None and not wrong:
            wrong = dict.fromkeys((*structure.dims, *structure.blocks), f"does not combine with others: {together}")
        left_out |= wrong
        structure = _without(structure, wrong)
    return Proven(structure, left_out)


def _found(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Structure, dict[str, str]]:
    """What may be removable among the layers that the sample passes through, and why the others are not."""

    def run() -> None:
        model(**inputs)

    elements = listed_modules(model)
    with torch.no_grad():
        blocks, left_out = blocks_of(model, elements, run)
    passed = reached(model, inputs)
    beside = elements.keys() - passed
    left_out = dict.fromkeys(sorted(beside), CONDITIONS_ALONE) | left_out
    elements = {name: element for name, element in elements.items() if name not in beside}
    blocks = {name: block for name, block in blocks.items() if name in elements}
    dims: dict[str, Dim] = {}
    for _, influence in influences(model, elements, run):
        widths = widths_of(influence, model)
        dims |= {dim.name: dim for dim in widths.dims}
        left_out |= widths.left_out
    aside = [name for name, dim in dims.items() if passed.isdisjoint(_readers(dim))]
    left_out |= dict.fromkeys(aside, CONDITIONS_ALONE)
    dims = {name: dim for name, dim in dims.items() if name not in aside}
    return Structure(dims, blocks, _attention(model, dims, inputs)), left_out


def _readers(dim: Dim) -> set[str]:
    return {piece.module for piece in dim.slices if piece.role == "in"}


def _attention(model: nn.Module, dims: Mapping[str, Dim], inputs: Mapping[str, Any]) -> dict[str, str]:
    """The modules that multiply activations, each with the heads of its layers."""
    attention = {}
    for module in own_products(model, inputs):
        within = [
            name
            for name, dim in dims.items()
            if name.endswith(".heads") and any(piece.module.startswith(f"{module}.") for piece in dim.slices)
        ]
        if len(within) == 1:
            attention[module] = within[0]
    return attention


def _with_numbers(
    model: nn.Module, structure: Structure, check: Check, inputs: Mapping[str, Any]
) -> tuple[Check, list[str]]:
    """Check a width again with as few as possible of the attributes beside its weights following it."""
    dim = structure.dims[check.name]
    for follow in following(model, dim):
        alone = Structure({dim.name: dim}, {}, attributes=dict.fromkeys(follow, dim.name))
        (found,) = check_structure(model, alone, inputs, random_cuts=0)
        if found.ok:
            return found, follow
    return check, []


def _proven(check: Check) -> bool:
    return check.ok and check.hint != "its mask changes nothing"


def _reason(check: Check) -> str:
    hint = check.hint.partition(";")[0]
    if check.ok:
        return "no output depends on it"
    if hint.startswith(DIFFERS):
        return f"without it, outputs are not those of its mask, first after {hint.removeprefix(DIFFERS).strip()}"
    return f"without it, the model {hint}" if hint else f"its mask and its removal differ by {check.error:.1e}"


def _without(structure: Structure, names: Mapping[str, str]) -> Structure:
    dims = {name: dim for name, dim in structure.dims.items() if name not in names}
    return Structure(
        dims,
        {name: block for name, block in structure.blocks.items() if name not in names},
        {module: dim for module, dim in structure.attention.items() if dim in dims},
        {path: dim for path, dim in structure.attributes.items() if dim in dims},
    )
