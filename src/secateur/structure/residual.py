"""Which blocks add to a residual stream, and whether its width is ever cut: not in transformers, but in U-Nets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .dims import Block, Structure


def has_streams(model: nn.Module, structure: Structure) -> bool:
    """Whether every reader of a dim is in a block and writes a width that is not cut."""
    blocks = stream_blocks(model, structure)
    pieces = [piece for dim in structure.dims.values() for piece in dim.slices]
    readers = {piece.module for piece in pieces if piece.role == "in"}
    writers = {piece.module for piece in pieces if piece.axis == 0 and piece.parameter.endswith(".weight")}
    return bool(blocks) and all(owning_block(blocks, name) and name not in writers for name in readers)


def stream_blocks(model: nn.Module, structure: Structure) -> dict[str, Block]:
    """The blocks of `structure`, and the other members of their lists, which cannot be removed (SD3's last)."""
    blocks = dict(structure.blocks)
    for name, block in structure.blocks.items():
        if block.listed:
            parent = name.rpartition(".")[0]
            for index, _ in model.get_submodule(parent).named_children():
                blocks.setdefault(f"{parent}.{index}", Block(f"{parent}.{index}", True, block.returns))
    return blocks


def owning_block(blocks: Mapping[str, Block], name: str) -> str | None:
    """The block that holds the module `name`."""
    while name and name not in blocks:
        name = name.rpartition(".")[0]
    return name or None
