"""What of a model can be removed, and how to mask or remove it."""

from .attributes import depth_entries
from .check import Check, check_structure, count_checks
from .dims import Block, Cut, Dim, Slice, Structure, StructureBuilder, check_cut
from .masks import Masks, masked, masks_of
from .registry import architecture_named, describe, register_structure, supported_architectures, unsupported
from .removal import kept_entries, name_after, remove, rescaling, without_blocks
from .streams import Skip, handed_on, pick, streams_of

__all__ = [
    "Block",
    "Check",
    "Cut",
    "Dim",
    "Masks",
    "Skip",
    "Slice",
    "Structure",
    "StructureBuilder",
    "architecture_named",
    "check_cut",
    "check_structure",
    "count_checks",
    "depth_entries",
    "describe",
    "handed_on",
    "kept_entries",
    "masked",
    "masks_of",
    "name_after",
    "pick",
    "register_structure",
    "remove",
    "rescaling",
    "streams_of",
    "supported_architectures",
    "unsupported",
    "without_blocks",
]
