"""What can be removed from a model, and how to mask or remove it."""

from .check import Check, check_random_cuts, check_structure, count_checks
from .dims import Block, Cut, Dim, Slice, Structure, StructureBuilder, Table, check_cut
from .masks import Masks, head_redirected, masked, masks_of
from .removal import (
    Removal,
    forget_removals,
    kept_entries,
    name_after,
    removals_of,
    remove,
    rescaling,
    without_blocks,
)
from .residual import has_streams, owning_block, stream_blocks
from .select import Selection, select
from .streams import Skip, first_argument, pick, returned_tensors, streams_of

__all__ = [
    "Block",
    "Check",
    "Cut",
    "Dim",
    "Masks",
    "Removal",
    "Selection",
    "Skip",
    "Slice",
    "Structure",
    "StructureBuilder",
    "Table",
    "check_cut",
    "check_random_cuts",
    "check_structure",
    "count_checks",
    "first_argument",
    "forget_removals",
    "has_streams",
    "head_redirected",
    "kept_entries",
    "masked",
    "masks_of",
    "name_after",
    "owning_block",
    "pick",
    "removals_of",
    "remove",
    "rescaling",
    "returned_tensors",
    "select",
    "stream_blocks",
    "streams_of",
    "without_blocks",
]
