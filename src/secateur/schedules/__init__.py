"""When and how much to cut."""

from .adaptive import Adaptive, AdaptiveConfig
from .block_cuts import LatencyOf, block_cuts, settled
from .one_shot import CutConfig, granularity_for, no_scores, one_shot
from .progressive import Progressive, ProgressiveConfig
from .proxies import judge
from .rescore import stage_scorer
from .solver import Allocation, Granularity, Scores, Solution, Step, removal_steps, solve
from .target import Target, parse_target

__all__ = [
    "Adaptive",
    "AdaptiveConfig",
    "Allocation",
    "CutConfig",
    "Granularity",
    "LatencyOf",
    "Progressive",
    "ProgressiveConfig",
    "Scores",
    "Solution",
    "Step",
    "Target",
    "block_cuts",
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
