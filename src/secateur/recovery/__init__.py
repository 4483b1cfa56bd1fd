"""Recovery: fine-tuning that regains what pruning cost."""

from .config import RecoveryConfig, WarmupConfig
from .ema import Ema
from .objectives import OBJECTIVES, Objective
from .pruner import Decision, Pruner
from .sensitivity import JacobianConfig
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
