"""Transfers a structure proven on a small copy to a model that is wider, deeper, or already cut.

The layout is that of the copy, segment by segment; lengths are read from the model's tensors. A width that they do not
determine is not cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ...structure import Dim, Slice, Structure
from ...structure.attributes import FOLLOWED
from .blocks import listed_modules
from .prove import Proven

MOST_RUNS = 8  # heads stored channel by channel have one run per channel of a head


@dataclass(frozen=True)
class Counts:
    """Where a model stores the number of units of a dim, and of channels per unit; relative to the element's name.

    Attributes:
        units: attributes of modules that equal the number of units, "module.attribute".
        channels: attributes of modules, and lengths of vectors, that equal the channels of a unit.
    """

    units: tuple[str, ...]
    channels: tuple[tuple[str, int], ...]  # with the copy's number of channels there


@dataclass(frozen=True)
class Template:
    """A proven structure, with everything needed to fit it to another model of the class.

    Attributes:
        proven: the structure of the copy.
        shapes: shapes of the copy's parameters.
        lists: elements of each list of the copy that has been searched for blocks, by the list's name.
        counts: by dim.
    """

    proven: Proven
    shapes: Mapping[str, tuple[int, ...]]
    lists: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, Counts]


class _Undetermined(Exception):
    """Raised for a width that the model's shapes do not determine."""


def counts_of(model: nn.Module, dim: Dim, structure: Structure) -> Counts:
    """Where `model` says the numbers of units and of channels of `dim`."""
    followed = {path for path, name in structure.attributes.items() if name == dim.name}
    widths = {dim.width_of(piece) for piece in dim.slices} - {1}
    holders = _holders(dim)
    units, channels = [path for path in followed if _number(model, path) == dim.size], []
    for holder in holders:
        module = model.get_submodule(holder)
        for key, value in vars(module).items():
            path = f"{holder}.{key}"
            if isinstance(module, FOLLOWED) and key == "heads" and value == dim.size:
                units.append(path)
            elif type(value) is int and value in widths and path not in followed:
                channels.append((path, value))
        for name, parameter in module.named_parameters():
            path = f"{holder}.{name}"
            own = any(piece.parameter == path for piece in dim.slices)
            if parameter.ndim == 1 and len(parameter) in widths and not own:
                channels.append((path, len(parameter)))
    return Counts(tuple(units), tuple(channels))


def _holders(dim: Dim) -> list[str]:
    """Modules that hold layers of `dim`, within one element of a list."""
    found = set()
    for piece in dim.slices:
        parts = piece.module.split(".")
        first = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
        found |= {".".join(parts[:end]) for end in range(first + 1, len(parts))}
    return sorted(found)


def fit(template: Template, model: nn.Module) -> Proven:
    """The structure of `model`, and what is not cut.

    An element of a list is modelled on the copy's element at the same place (first, last or between), if its parameters
    have the same names; else on any other element with the same names.
    """
    proven = template.proven
    alive = lists_of(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    dims: dict[str, Dim] = {}
    left_out: dict[str, str] = {}
    attention: dict[str, str] = {}
    attributes: dict[str, str] = {}
    blocks = {}
    for list_name, elements in alive.items():
        for place, name in enumerate(elements):
            like = _like(template, list_name, place, len(elements), name, shapes)
            if like is None:
                left_out[name] = "unlike every layer of the small copy on which structures are proven"
                continue
            if like in proven.structure.blocks:
                blocks[name] = replace(proven.structure.blocks[like], name=name)
            for key, reason in proven.left_out.items():
                if _within(key, like):
                    left_out[_renamed(key, like, name)] = reason.replace(like, name)
            own = {key: dim for key, dim in proven.structure.dims.items() if _of(dim, like)}
            for key, dim in own.items():
                new = _renamed(key, like, name)
                try:
                    dims[new] = _fitted(template, model, dim, own, like, name, shapes)
                except _Undetermined as reason:
                    left_out[new] = str(reason)
            for renamed, items in ((attention, proven.structure.attention), (attributes, proven.structure.attributes)):
                for path, key in items.items():
                    if key in own and _renamed(key, like, name) in dims:
                        renamed[_renamed(path, like, name)] = _renamed(key, like, name)
    return Proven(Structure(dims, blocks, attention, attributes), left_out)


def lists_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The elements of each outermost list of `model`, by the list's name."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in listed_modules(model):
        found[name.rpartition(".")[0]].append(name)
    return {name: tuple(elements) for name, elements in found.items()}


def _like(
    template: Template, list_name: str, place: int, count: int, name: str, shapes: Mapping[str, Sequence[int]]
) -> str | None:
    """The element of the copy on which the element `name`, the `place`-th of `count`, is modelled."""
    copies = template.lists.get(list_name, ())
    if not copies:
        return None
    if len(copies) == count:
        order = [copies[place]]
    else:
        first = 0 if place == 0 else len(copies) - 1 if place == count - 1 else min(1, len(copies) - 1)
        order = [copies[first], *copies]
    layout = {key.removeprefix(f"{name}."): len(shape) for key, shape in shapes.items() if key.startswith(f"{name}.")}
    for like in order:
        of_copy = {
            key.removeprefix(f"{like}."): len(shape)
            for key, shape in template.shapes.items()
            if key.startswith(f"{like}.")
        }
        if of_copy == layout:
            return like
    return None


def _of(dim: Dim, element: str) -> bool:
    return all(piece.module.startswith(f"{element}.") for piece in dim.slices)


def _within(name: str, element: str) -> bool:
    return name == element or name.startswith(f"{element}.")


def _renamed(name: str, like: str, element: str) -> str:
    return element + name.removeprefix(like)


Segment = tuple[str, int]  # a dim and the width of a unit in the copy


def _fitted(
    template: Template,
    model: nn.Module,
    dim: Dim,
    own: Mapping[str, Dim],
    like: str,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> Dim:
    """`dim` of the copy's element `like` in the element `name` of `model`."""
    axes = {(piece.parameter, piece.axis) for piece in dim.slices}
    if all(_length(template.shapes, *axis) == _length(shapes, _renamed(axis[0], like, name), axis[1]) for axis in axes):
        unit_counts = {_number(model, _renamed(path, like, name)) for path in template.counts[dim.name].units}
        if unit_counts <= {dim.size}:
            pieces = [replace(piece, parameter=_renamed(piece.parameter, like, name)) for piece in dim.slices]
            return _built(dim, _renamed(dim.name, like, name), dim.size, dim.width, pieces)
    lengths = _lengths(template.shapes, own, like, name, shapes)
    total = {segment: length for segment, length in lengths.items() if segment[0] == dim.name}
    size = _units(template.counts[dim.name], model, like, name, total)
    pieces = []
    for piece in dim.slices:
        length = _known(total, (dim.name, dim.width_of(piece)))
        if length % size:
            raise _Undetermined(f"{length} channels are no multiple of {size} units")
        offset = _offset(piece, own, lengths, template.shapes, shapes, like, name)
        pieces.append(Slice(_renamed(piece.parameter, like, name), piece.axis, offset, piece.role, length // size))
    main = next(piece.width for piece in pieces if piece.role == "in")
    return _built(dim, _renamed(dim.name, like, name), size, main or 1, pieces)


def _built(dim: Dim, name: str, size: int, width: int, pieces: Sequence[Slice]) -> Dim:
    return Dim(name, size, width, tuple(pieces), (size,), name, size)


def _length(shapes: Mapping[str, Sequence[int]], parameter: str, axis: int) -> int:
    return shapes[parameter][axis]


def _on_axis(own: Mapping[str, Dim], parameter: str, axis: int) -> list[tuple[int, Segment, int]]:
    """(offset, segment, length) of the segments on an axis of the copy, in order."""
    found = [
        (piece.offset, (dim.name, dim.width_of(piece)), dim.size * dim.width_of(piece))
        for dim in own.values()
        for piece in dim.slices
        if (piece.parameter, piece.axis) == (parameter, axis)
    ]
    return sorted(found)


def _lengths(
    copy_shapes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, Dim],
    like: str,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[Segment, int]:
    """The length of each segment in the model, solved from the lengths of axes, which are sums of segments."""
    axes = sorted({(piece.parameter, piece.axis) for dim in own.values() for piece in dim.slices})
    segments = sorted({segment for axis in axes for _, segment, _ in _on_axis(own, *axis)})
    rows, sums = [], []
    for parameter, axis in axes:
        along = _on_axis(own, parameter, axis)
        if sum(length for _, _, length in along) == _length(copy_shapes, parameter, axis):
            rows.append([sum(segment == found for _, found, _ in along) for segment in segments])
            sums.append(_length(shapes, _renamed(parameter, like, name), axis))
    if not rows:
        return {}
    matrix, totals = np.array(rows, float), np.array(sums, float)
    inverse = np.linalg.pinv(matrix)
    solution = inverse @ totals
    if not np.allclose(matrix @ solution, totals):
        return {}
    determined = np.isclose(np.diag(inverse @ matrix), 1)
    return {
        segment: round(value)
        for segment, value, sure in zip(segments, solution, determined, strict=True)
        if sure and abs(value - round(value)) < 1e-6 and value > 0
    }


def _known(lengths: Mapping[Segment, int], segment: Segment) -> int:
    if segment not in lengths:
        raise _Undetermined("the lengths of its tensors do not say how wide it is")
    return lengths[segment]


def _units(counts: Counts, model: nn.Module, like: str, name: str, lengths: Mapping[Segment, int]) -> int:
    """The number of units, from attributes of the model's modules, or from the channels of a unit."""
    if all(width == 1 for _, width in lengths):
        found = set(lengths.values())
    elif counts.units:
        found = {_number(model, _renamed(path, like, name)) for path in counts.units}
    else:
        found = {
            length // _number(model, _renamed(path, like, name))
            for path, width in counts.channels
            for (_, in_copy), length in lengths.items()
            if in_copy == width
        }
    if len(found) != 1 or (size := next(iter(found))) < 1:
        raise _Undetermined("the model does not say how many heads it has")
    return size


def _number(model: nn.Module, path: str) -> int:
    holder, _, attribute = path.rpartition(".")
    value: Any = getattr(model.get_submodule(holder), attribute)
    return value if isinstance(value, int) else len(value)


def _offset(
    piece: Slice,
    own: Mapping[str, Dim],
    lengths: Mapping[Segment, int],
    copy_shapes: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    like: str,
    name: str,
) -> int:
    """The offset of `piece` in the model; at most one part of its axis may have unknown length."""
    along = _on_axis(own, piece.parameter, piece.axis)
    if len(along) > MOST_RUNS:
        raise _Undetermined("its heads are stored channel by channel")
    whole = _length(shapes, _renamed(piece.parameter, like, name), piece.axis)
    holes, end = [], 0
    for offset, _, length in along:
        if offset > end:
            holes.append(offset)
        end = offset + length
    if end < _length(copy_shapes, piece.parameter, piece.axis):
        holes.append(end)
    rest = whole - sum(_known(lengths, segment) for _, segment, _ in along)
    if len(holes) > 1 or rest < 0:
        raise _Undetermined("it shares an axis with several parts of unknown length")
    position, end = 0, 0
    for offset, segment, length in along:
        position += rest if offset > end else 0
        if offset == piece.offset:
            return position
        position += lengths[segment]
        end = offset + length
    raise AssertionError("a slice is on its own axis")
