"""What can be removed from a model: widths (`Dim`) and skippable layers (`Block`).

Masks, removal, scoring, costs, saving and loading all read the same `Structure`. It holds names and numbers only,
no tensors, so it is the same for a model on the meta device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

Role = Literal["out", "in", "norm", "gate"]
Channels: TypeAlias = "Sequence[str | int]"  # names of dims, and widths that stay


@dataclass(frozen=True)
class Slice:
    """Consecutive entries of one parameter's axis that belong to a dim, from `offset` on.

    `role` says what a mask does there:
    - "out": produced here; a mask leaves it alone, since every reader masks;
    - "in": read here; the mask multiplies the module's input;
    - "norm": the weight of a GroupNorm or RMSNorm; the mask weighs its statistics;
    - "gate": produced here, and the mask multiplies the module's output (a query, which no later input sees).

    `width` is the number of channels per unit here, if it is not the dim's own: several query heads per key head, one
    gate per head.
    """

    parameter: str
    axis: int
    offset: int = 0
    role: Role = "out"
    width: int | None = None

    @property
    def module(self) -> str:
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Dim:
    """One removable width: `size` units of `width` channels each.

    Attributes:
        cells: sizes, in units, of the consecutive cells that must lose units evenly: the common refinement of the
            borders of every norm group that touches the dim. One cell when no norm does.
        link: dims of one link keep the same fraction, because a norm after a skip concatenation spans them.
        levels: number of equal steps from nothing to everything; at level k a cell of c units keeps c k / levels.
        rescaled: parameters multiplied by sqrt(kept / size) on removal: attention divides by the root of the head size.
    """

    name: str
    size: int
    width: int
    slices: tuple[Slice, ...]
    cells: tuple[int, ...]
    link: str
    levels: int
    rescaled: tuple[str, ...] = ()

    def cell_ranges(self) -> Iterable[range]:
        """The unit indices of each cell, in order."""
        start = 0
        for cell in self.cells:
            yield range(start, start + cell)
            start += cell

    def width_of(self, piece: Slice) -> int:
        """Channels per unit in `piece`."""
        return self.width if piece.width is None else piece.width

    def kept_at(self, level: int) -> int:
        """Units kept at `level`."""
        return self.size * level // self.levels


@dataclass(frozen=True)
class Block:
    """A residual branch or layer that can be skipped: module `name` maps tensors to tensors of the same shapes.

    Attributes:
        name: of the module.
        listed: an element of a list that the model runs through, from which it is deleted; other blocks are replaced by
            `Skip`.
        returns: arguments of `forward` whose new values the module returns, in the order of the returned tuple; empty
            if it returns one bare tensor, the new value of its first argument.
    """

    name: str
    listed: bool
    returns: tuple[str, ...] = ()

    @property
    def image(self) -> int:
        """Index of the image's tensor among those it returns."""
        return self.returns.index("hidden_states") if self.returns else 0


@dataclass(frozen=True)
class Table:
    """A buffer that is not saved, with rows for each block by its position, such as inputs of its modulations.

    Attributes:
        buffer: its name.
        size: its rows.
        rows: rows of each block, which are removed with it; the others stay.
        readers: modules that are called on all of its rows, so that fewer rows cost less.
    """

    buffer: str
    size: int
    rows: Mapping[str, tuple[int, ...]]
    readers: tuple[str, ...]

    def kept(self, removed_blocks: Iterable[str]) -> list[int]:
        """The rows that remain without these blocks."""
        left = {row for name in removed_blocks for row in self.rows.get(name, ())}
        return [row for row in range(self.size) if row not in left]


@dataclass(frozen=True)
class Structure:
    """All dims and blocks of one model.

    Attributes:
        dims: by name, in the order of the forward pass.
        blocks: by name, in the order of the forward pass.
        attention: attention modules, each with the dim that its score and value products scale with.
        attributes: numbers stored in modules that shrink with a dim, such as a count of heads: "module.attribute" to
            dim.
        head_conditioning: if the model's head also reads a submodule of the first block (DiT), that submodule of every
            listed block, by block: when the first block is removed, the head reads the next one's.
        tables: buffers with rows for each block (Chroma).
        outside: blocks of the model that are not among `blocks`, since they cannot be removed or `select` left them
            out: they all stay.
    """

    dims: Mapping[str, Dim]
    blocks: Mapping[str, Block]
    attention: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    head_conditioning: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    outside: tuple[Block, ...] = ()

    @cached_property
    def links(self) -> dict[str, tuple[Dim, ...]]:
        """Dims by link; the dims of one link are cut together."""
        links: dict[str, list[Dim]] = {}
        for dim in self.dims.values():
            links.setdefault(dim.link, []).append(dim)
        return {name: tuple(dims) for name, dims in links.items()}

    def removable(self, order: Iterable[str]) -> list[str]:
        """`order`, the order of removal, without the last listed block if no other would stay."""
        leaving = list(order)
        listed = [name for name in leaving if self.blocks[name].listed]
        everything = {name for name, block in self.blocks.items() if block.listed} == set(listed)
        if not listed or not everything or any(block.listed for block in self.outside):
            return leaving
        return [name for name in leaving if name != listed[-1]]

    def owner(self, name: str) -> str | None:
        """The block that is, or holds, the module or parameter `name`, if any."""
        while name and name not in self.blocks:
            name = name.rpartition(".")[0]
        return name or None


@dataclass(frozen=True)
class Cut:
    """A cut: the unit indices kept per dim (all, if a dim is not named), and the removed blocks."""

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed_blocks: tuple[str, ...] = ()

    def masks(self, structure: Structure) -> dict[str, list[float]]:
        """The cut as 0/1 masks: one value per unit of each dim, one per block."""
        masks = {}
        for name, dim in structure.dims.items():
            kept = set(self.kept.get(name, range(dim.size)))
            masks[name] = [float(unit in kept) for unit in range(dim.size)]
        for name in structure.blocks:
            masks[name] = [float(name not in self.removed_blocks)]
        return masks


def check_cut(structure: Structure, cut: Cut) -> None:
    """Raise `ValueError` unless removal can apply `cut` without changing the function of what stays.

    Each cell of a dim must keep the same fraction, and so must the dims of one link; see `Dim`.
    """
    unknown = [*(set(cut.kept) - set(structure.dims)), *(set(cut.removed_blocks) - set(structure.blocks))]
    if unknown:
        raise ValueError(f"the model has no dim or block named {unknown[0]}")
    if len(structure.removable(cut.removed_blocks)) < len(cut.removed_blocks):
        raise ValueError("at least one block must stay")
    for link, dims in structure.links.items():
        levels = set()
        for dim in dims:
            kept = cut.kept.get(dim.name, tuple(range(dim.size)))
            if list(kept) != sorted(set(kept)) or not kept or kept[0] < 0 or kept[-1] >= dim.size:
                raise ValueError(f"{dim.name}: kept units must be increasing indices below {dim.size}, not none")
            chosen = set(kept)
            counts = [sum(unit in chosen for unit in cell) for cell in dim.cell_ranges()]
            levels |= {count * dim.levels / cell for count, cell in zip(counts, dim.cells, strict=True)}
        if len(levels) != 1:
            names = ", ".join(dim.name for dim in dims[:3])
            raise ValueError(f"units must leave {names} evenly from every norm group (link {link})")


class StructureBuilder:
    """Collects the slices of each dim while an architecture file walks through its model.

    A tensor's channels are described by the list of dims that follow each other on its channel axis: one name, or
    several after a concatenation, in which a number means that many channels that are not cut.
    """

    def __init__(self) -> None:
        self._units: dict[str, tuple[int, int]] = {}
        self._slices: dict[str, list[Slice]] = {}
        self._norms: list[tuple[list[str], int]] = []
        self._rescaled: dict[str, tuple[str, ...]] = {}
        self.blocks: dict[str, Block] = {}
        self.attention: dict[str, str] = {}
        self.attributes: dict[str, str] = {}
        self.tables: list[Table] = []

    def dim(self, name: str, size: int, width: int = 1, rescaled: tuple[str, ...] = ()) -> list[str]:
        """Declare a dim and return it as a channel list."""
        self._units[name] = (size, width)
        self._slices[name] = []
        self._rescaled[name] = rescaled
        return [name]

    def channels(self, dims: list[str]) -> int:
        """Total channels of a channel list."""
        return sum(math.prod(self._units[name]) for name in dims)

    def add(self, parameter: str, axis: int, dims: Channels, role: Role, repeats: int = 1) -> None:
        """The axis of `parameter` carries `dims`, `repeats` times over (fused halves)."""
        offset = 0
        for name in [*dims] * repeats:
            if isinstance(name, int):
                offset += name
                continue
            self._slices[name].append(Slice(parameter, axis, offset, role))
            offset += math.prod(self._units[name])

    def writes(self, module: str, dims: Channels, *, bias: bool = True, gate: bool = False, repeats: int = 1) -> None:
        """A Conv or Linear produces `dims`."""
        role: Role = "gate" if gate else "out"
        self.add(f"{module}.weight", 0, dims, role, repeats)
        if bias:
            # The weight's gate already masks the module's output.
            self.add(f"{module}.bias", 0, dims, "out", repeats)

    def reads(self, module: str, dims: Channels) -> None:
        """A Conv or Linear takes `dims` as its input."""
        self.add(f"{module}.weight", 1, dims, "in")

    def normalizes(self, module: str, dims: list[str], num_groups: int) -> None:
        """A GroupNorm with affine parameters runs over `dims`, whose units are single channels."""
        if any(self._units[name][1] != 1 for name in dims):
            raise ValueError(f"{module}: a group norm over units of several channels is not supported")
        self.add(f"{module}.weight", 0, dims, "norm")
        self.add(f"{module}.bias", 0, dims, "out")
        self._norms.append((dims, num_groups))

    def normalizes_all(self, module: str, dims: list[str]) -> None:
        """An RMSNorm with a weight and no bias runs over all of `dims` at once."""
        self.add(f"{module}.weight", 0, dims, "norm")

    def follows(self, attribute: str, dims: list[str]) -> None:
        """The number at "module.attribute", of heads or channels, shrinks with the one dim of `dims`."""
        (self.attributes[attribute],) = dims

    def build(self, head_conditioning: str | None = None) -> Structure:
        """Refine the norm groups into cells, link dims that share a norm, and return the structure.

        `head_conditioning` is the submodule of the first listed block that the model's head also reads.

        Raises:
            ValueError: a block lies inside another, so that the weights of one are part of the other's.
        """
        for inner, outer in itertools.permutations(self.blocks, 2):
            if inner.startswith(f"{outer}."):
                raise ValueError(f"block {inner} lies inside block {outer}: declare one of them")
        borders = {name: {0, size} for name, (size, _) in self._units.items()}
        link = {name: name for name in self._units}
        for dims, num_groups in self._norms:
            group = self.channels(dims) // num_groups
            offset = 0
            for name in dims:
                size = self._units[name][0]
                borders[name] |= {border - offset for border in range(0, offset + size, group) if border > offset}
                offset += size
            joined = {link[name] for name in dims}
            first = min(joined, key=list(link).index)
            link = {name: first if of in joined else of for name, of in link.items()}
        cells = {name: _differences(found) for name, found in borders.items()}
        levels: dict[str, int] = {}
        for name, of in link.items():
            levels[of] = math.gcd(levels.get(of, 0), *cells[name])
        dims_built = {
            name: Dim(
                name,
                size,
                width,
                tuple(self._slices[name]),
                cells[name],
                link[name],
                levels[link[name]],
                self._rescaled[name],
            )
            for name, (size, width) in self._units.items()
        }
        listed = [block.name for block in self.blocks.values() if block.listed and head_conditioning is not None]
        read_by_head = {name: f"{name}.{head_conditioning}" for name in listed}
        return Structure(dims_built, self.blocks, self.attention, self.attributes, read_by_head, tuple(self.tables))


def _differences(borders: set[int]) -> tuple[int, ...]:
    ordered = sorted(borders)
    return tuple(right - left for left, right in itertools.pairwise(ordered))
