"""When and how much to cut."""

from .one_shot import CutConfig, granularity_for, no_scores, one_shot
from .progressive import Progressive, ProgressiveConfig
from .scorer import stage_scorer
from .solver import Allocation, Granularity, Scores, Solution, Step, removal_steps, solve
from .target import Target, parse_target

__all__ = [
    "Allocation",
    "CutConfig",
    "Granularity",
    "Progressive",
    "ProgressiveConfig",
    "Scores",
    "Solution",
    "Step",
    "Target",
    "granularity_for",
    "no_scores",
    "one_shot",
    "parse_target",
    "removal_steps",
    "solve",
    "stage_scorer",
]
