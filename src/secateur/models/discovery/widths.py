"""The removable widths of a block, from its sets of connected channels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

from ...structure import Dim, Slice
from ...structure.attributes import FOLLOWED
from ...structure.dims import Role
from .influence import Influence, Port, Side


@dataclass(frozen=True)
class Widths:
    """The widths of one block, and the reasons for what is not cut."""

    dims: tuple[Dim, ...]
    left_out: Mapping[str, str]


class _Irregular(Exception):
    """Raised for channels that no `Slice` can describe."""


def widths_of(influence: Influence, model: nn.Module) -> Widths:
    """Group similar units into dims; layers that are not cut are named by their inputs."""
    alike: dict[tuple[tuple[Port, int], ...], list[int]] = defaultdict(list)
    for index, unit in enumerate(influence.units):
        alike[tuple(sorted(Counter(port for port, _ in unit).items()))].append(index)
    dims, left_out = [], {}
    for signature, indices in alike.items():
        readers = [port.module for port, _ in signature if port.side == "in"]
        if not any(port.side == "out" for port, _ in signature):
            continue
        name = _name(signature)
        if len(indices) == 1:
            left_out[readers[0]] = "all of its channels hang together: one head, or a norm or a mix over all of them"
            continue
        try:
            dim = _dim(name, signature, indices, influence, model)
        except _Irregular as reason:
            left_out[readers[0]] = str(reason)
            continue
        dims.append(dim)
    names = Counter(dim.name for dim in dims)
    if duplicate := next((name for name, count in names.items() if count > 1), None):
        dims = [_renamed(dim, f"{dim.name}.{i}") if dim.name == duplicate else dim for i, dim in enumerate(dims)]
    return Widths(tuple(dims), left_out)


def _dim(
    name: str,
    signature: Sequence[tuple[Port, int]],
    indices: list[int],
    influence: Influence,
    model: nn.Module,
) -> Dim:
    members = {index: influence.units[index] for index in indices}
    first_port = signature[0][0]
    order = sorted(indices, key=lambda index: min(channel for port, channel in members[index] if port == first_port))
    slices: list[Slice] = []
    for port, _ in signature:
        channels = [sorted(channel for other, channel in members[index] if other == port) for index in order]
        axis = 0 if port.side == "out" else 1
        for offset, width in _runs(channels, f"{port.module} holds its units in no regular order"):
            role: Role = "in" if port.side == "in" else "out"
            slices.append(Slice(f"{port.module}.weight", axis, offset, role, width))
            if port.side == "out" and model.get_submodule(port.module).bias is not None:
                slices.append(Slice(f"{port.module}.bias", 0, offset, "out", width))
    for side in influence.sides:
        slices += _of_side(side, order, influence)
    main = next(piece.width for piece in slices if piece.role == "in")
    return Dim(name, len(order), main or 1, tuple(slices), (len(order),), name, len(order))


def _of_side(side: Side, order: list[int], influence: Influence) -> Iterator[Slice]:
    """The slices of a parameter with separate entries for every unit; none if all units share all of it."""
    for axis, reached in enumerate(side.reached):
        entries = [reached.get(index, frozenset()) for index in order]
        if len(set(entries)) == 1:
            continue
        if not side.is_parameter:
            raise _Irregular("channels of the residual stream hang together with it")
        role: Role = "norm" if side.name in influence.normalized else "out"
        for offset, width in _runs([sorted(each) for each in entries], f"{side.name} is shared by some units only"):
            yield Slice(side.name, axis, offset, role, width)


def _runs(channels: list[list[int]], otherwise: str) -> Iterator[tuple[int, int]]:
    """(offset, width) of the runs in which unit u holds the channels from offset + u width on, the same for all u."""
    runs = [_consecutive(each) for each in channels]
    if len({len(each) for each in runs}) != 1 or not runs[0]:
        raise _Irregular(otherwise)
    taken = [channel for each in channels for channel in each]
    if len(set(taken)) != len(taken):
        raise _Irregular(otherwise)
    for along in zip(*runs, strict=True):
        offset, width = along[0]
        if any(found != (offset + unit * width, width) for unit, found in enumerate(along)):
            raise _Irregular(otherwise)
        yield offset, width


def _consecutive(channels: list[int]) -> list[tuple[int, int]]:
    """(start, length) of the runs of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for channel in channels:
        if runs and channel == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((channel, 1))
    return runs


def _name(signature: Sequence[tuple[Port, int]]) -> str:
    """The module that holds all layers of a dim; plus "heads" for units of several channels."""
    modules = [port.module for port, _ in signature]
    parts = _common([module.split(".") for module in modules])
    return ".".join([*parts, "heads" if any(count > 1 for port, count in signature if port.side == "in") else "inner"])


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """The first parts that all paths have in common."""
    return [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]


def _renamed(dim: Dim, name: str) -> Dim:
    return Dim(name, dim.size, dim.width, dim.slices, dim.cells, name, dim.levels)


def following(model: nn.Module, dim: Dim) -> Iterator[list[str]]:
    """Attributes beside the weights of `dim` that may count its units or channels, as "module.attribute".

    First counts of units within the module that holds all of its layers, then other counts, then those around it.
    """
    paths = [piece.module.split(".") for piece in dim.slices]
    near = len(_common(paths))
    widths = {dim.width_of(piece) for piece in dim.slices}
    counts = {dim.size * wide // narrow for wide in widths for narrow in widths if wide % narrow == 0}
    totals = {dim.size * width for width in widths}
    seen: list[list[str]] = [[]]
    for depth in (near, 1):  # within the module that holds all layers, then around it too
        holders = {".".join(path[:end]) for path in paths for end in range(depth, len(path))}
        found = {path: value for holder in sorted(holders) for path, value in _numbers(model, holder)}
        for wanted in (counts - totals or counts, totals, counts | totals):
            paths_found = [path for path, value in found.items() if value in wanted]
            if paths_found not in seen:
                seen.append(paths_found)
                yield paths_found


def _numbers(model: nn.Module, holder: str) -> Iterator[tuple[str, int]]:
    """The integer attributes of a module that are not updated with its weights otherwise."""
    module = model.get_submodule(holder)
    if type(module).__module__.startswith("torch.") or isinstance(module, FOLLOWED):
        return
    for key, value in vars(module).items():
        if type(value) is int and value > 1:
            yield f"{holder}.{key}", value
