"""Recovery: fine-tuning that regains what pruning cost."""

from .config import RecoveryConfig, WarmupConfig
from .ema import Ema
from .jacobian import JacobianConfig
from .objectives import OBJECTIVES, Objective
from .pruner import Decision, Pruner
from .trainer import recover

__all__ = [
    "OBJECTIVES",
    "Decision",
    "Ema",
    "JacobianConfig",
    "Objective",
    "Pruner",
    "RecoveryConfig",
    "WarmupConfig",
    "recover",
]
