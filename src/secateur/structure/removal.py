"""Physical removal of units and blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attributes import follow_weights
from .dims import Cut, Structure, check_cut
from .streams import Skip, streams_of

_REMOVALS = "_removals"  # attribute of a model


@dataclass(frozen=True)
class Removal:
    """A cut that was made: the units kept of each dim, its size before, and the removed blocks."""

    kept: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    removed_blocks: tuple[str, ...]


def removals_of(model: nn.Module) -> tuple[Removal, ...]:
    """The removals made on `model`, in order, for its manifest."""
    return vars(model).get(_REMOVALS, ())


def forget_removals(model: nn.Module) -> None:
    """Forget the removals so far: they are recorded elsewhere."""
    vars(model).pop(_REMOVALS, None)


def kept_entries(structure: Structure, cut: Cut, shapes: dict[str, torch.Size]) -> dict[str, dict[int, Tensor]]:
    """For each parameter of `shapes` that the cut touches, the kept indices along each touched axis.

    Several dims may share one axis (a concatenation), and one dim may occur several times (fused halves). A tied
    parameter may have names that are not in `shapes`.
    """
    keep: dict[str, dict[int, Tensor]] = {}
    for name, kept_units in cut.kept.items():
        dim = structure.dims[name]
        unit_kept = torch.zeros(dim.size, dtype=torch.bool)
        unit_kept[list(kept_units)] = True
        for piece in dim.slices:
            if piece.parameter not in shapes:
                continue
            entry_kept = unit_kept.repeat_interleave(dim.width_of(piece))
            axes = keep.setdefault(piece.parameter, {})
            size = shapes[piece.parameter][piece.axis]
            axis = axes.setdefault(piece.axis, torch.ones(size, dtype=torch.bool))
            axis[piece.offset : piece.offset + len(entry_kept)] = entry_kept
    return {
        parameter: {axis: kept.nonzero().flatten() for axis, kept in axes.items()} for parameter, axes in keep.items()
    }


def rescaling(structure: Structure, cut: Cut) -> dict[str, float]:
    """The factors of the parameters that removal multiplies: queries of a single head, whose size changes."""
    return {
        parameter: math.sqrt(len(kept_units) / structure.dims[name].size)
        for name, kept_units in cut.kept.items()
        for parameter in structure.dims[name].rescaled
    }


def remove(model: nn.Module, structure: Structure, cut: Cut) -> nn.Module:
    """Remove from `model`, in place, what `cut` does not keep, and return the model.

    `requires_grad`, dtype, device, mode and ties between parameters are kept; works on the meta device too.

    Raises:
        ValueError: the cut would change the function of what stays (see `check_cut`); the model lacks a parameter; or a
            tied parameter would be cut under some of its names only.
    """
    check_cut(structure, cut)
    with torch.no_grad():
        for names, axes in _tied_entries(model, structure, cut):
            old = model.get_parameter(names[0])  # one at a time, so that there are never two models in memory
            new = old.detach()
            for axis, kept in axes.items():
                new = new.index_select(axis, kept.to(new.device))
            cut_parameter = nn.Parameter(new, old.requires_grad)
            for name in names:
                _set_parameter(model, name, cut_parameter)
        factors = {model.get_parameter(name): factor for name, factor in rescaling(structure, cut).items()}
        for parameter, factor in factors.items():
            parameter.mul_(factor)
    for path, name in structure.attributes.items():
        if name in cut.kept:
            holder, _, attribute = path.rpartition(".")
            module = model.get_submodule(holder)
            setattr(module, attribute, getattr(module, attribute) * len(cut.kept[name]) // structure.dims[name].size)
    _remove_blocks(model, structure, cut.removed_blocks)
    _remove_rows(model, structure, cut.removed_blocks)
    follow_weights(model)
    sizes = {name: structure.dims[name].size for name in cut.kept}
    vars(model)[_REMOVALS] = (*removals_of(model), Removal(dict(cut.kept), sizes, cut.removed_blocks))
    return model


def without_blocks(model: nn.Module, structure: Structure, names: Sequence[str]) -> nn.Module:
    """A copy of `model` without the named blocks, which shares the tensors of `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return remove(copy.deepcopy(model, shared), structure, Cut({}, tuple(names)))


def name_after(structure: Structure, cut: Cut, parameter: str) -> str | None:
    """The name of `parameter` after the blocks are removed from their lists; None if it is removed with one."""
    if structure.owner(parameter) in cut.removed_blocks:
        return None
    for parent, left in _left_lists(structure, cut.removed_blocks).items():
        if parameter.startswith(f"{parent}."):  # also of an element that cannot be removed, such as SD3's last
            index, dot, rest = parameter[len(parent) + 1 :].partition(".")
            return f"{parent}.{int(index) - sum(other < int(index) for other in left)}{dot}{rest}"
    return parameter


def _tied_entries(model: nn.Module, structure: Structure, cut: Cut) -> list[tuple[tuple[str, ...], dict[int, Tensor]]]:
    """`kept_entries` with all names of each parameter: tied weights have several."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    entries = kept_entries(structure, cut, {name: parameter.shape for name, parameter in parameters.items()})
    named = {piece.parameter for name in cut.kept for piece in structure.dims[name].slices}
    if lacking := sorted(named - set(parameters)):
        raise ValueError(f"the model has no parameter {lacking[0]}")
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    tied = [names[id(parameters[name])] for name in entries]
    for first, *others in tied:
        for other in others:
            if not _same_entries(entries.get(first, {}), entries.get(other, {})):
                raise ValueError(f"{first} and {other} are one tensor, and would be cut differently")
    return [(tuple(each), entries[name]) for name, each in zip(entries, tied, strict=True) if name == each[0]]


def _same_entries(left: Mapping[int, Tensor], right: Mapping[int, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(kept, right[axis]) for axis, kept in left.items())


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module_name, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module_name), attribute, parameter)


def _remove_blocks(model: nn.Module, structure: Structure, removed: tuple[str, ...]) -> None:
    for name in removed:
        parent, _, index = name.rpartition(".")
        block = structure.blocks[name]
        if not block.listed:
            skip = Skip(streams_of(block, model.get_submodule(name)), as_tuple=bool(block.returns))
            model.get_submodule(parent).register_module(index, skip)
    for parent, indices in _left_lists(structure, removed).items():
        blocks = model.get_submodule(parent)
        assert isinstance(blocks, nn.ModuleList | nn.Sequential)
        for place in sorted(indices, reverse=True):
            del blocks[place]  # in place: the list may be of a class of its own, with its own forward


def _remove_rows(model: nn.Module, structure: Structure, removed: tuple[str, ...]) -> None:
    for table in structure.tables:
        old = model.get_buffer(table.buffer)
        holder, _, name = table.buffer.rpartition(".")
        kept = torch.tensor(table.kept(removed), device=old.device)
        setattr(model.get_submodule(holder), name, old.index_select(0, kept))


def _left_lists(structure: Structure, removed: Sequence[str]) -> dict[str, list[int]]:
    """The lists that lose elements, with the indices that they lose."""
    lists: dict[str, list[int]] = {}
    for name in removed:
        if structure.blocks[name].listed:
            parent, _, index = name.rpartition(".")
            lists.setdefault(parent, []).append(int(index))
    return lists
