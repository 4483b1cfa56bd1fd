"""When and how much to cut."""

from .solver import Allocation, Granularity, Scores, Solution, Step, removal_steps, solve
from .target import Target, parse_target

__all__ = [
    "Allocation",
    "Granularity",
    "Scores",
    "Solution",
    "Step",
    "Target",
    "parse_target",
    "removal_steps",
    "solve",
]
