"""What of a model can be removed, and how to mask or remove it."""

from .dims import Block, Cut, Dim, Slice, Structure, StructureBuilder, check_cut
from .masks import Masks, masked, masks_of
from .registry import architecture_named, describe, register_structure, supported_architectures
from .removal import Skip, remove, without_blocks

__all__ = [
    "Block",
    "Cut",
    "Dim",
    "Masks",
    "Skip",
    "Slice",
    "Structure",
    "StructureBuilder",
    "architecture_named",
    "check_cut",
    "describe",
    "masked",
    "masks_of",
    "register_structure",
    "remove",
    "supported_architectures",
    "without_blocks",
]
