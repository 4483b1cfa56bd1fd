"""Schedules: when and how much to cut."""

from .adaptive import Adaptive, AdaptiveConfig
from .block_cuts import LatencyOf, block_cuts, settled
from .one_shot import CutConfig, check_criterion, granularity_for, no_scores, one_shot
from .progressive import Progressive, ProgressiveConfig
from .proxies import judge
from .pruning import Compensating, Goal, OneShot, Pruning, ScheduleName, build_pruner, check_all_blocks, check_fits
from .rescore import stage_scorer
from .solver import Allocation, Granularity, Scores, Solution, Step, removal_steps, solve
from .target import Target, parse_target

__all__ = [
    "Adaptive",
    "AdaptiveConfig",
    "Allocation",
    "Compensating",
    "CutConfig",
    "Goal",
    "Granularity",
    "LatencyOf",
    "OneShot",
    "Progressive",
    "ProgressiveConfig",
    "Pruning",
    "ScheduleName",
    "Scores",
    "Solution",
    "Step",
    "Target",
    "block_cuts",
    "build_pruner",
    "check_all_blocks",
    "check_criterion",
    "check_fits",
    "granularity_for",
    "judge",
    "no_scores",
    "one_shot",
    "parse_target",
    "removal_steps",
    "settled",
    "solve",
    "stage_scorer",
]
