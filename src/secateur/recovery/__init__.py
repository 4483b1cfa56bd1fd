"""Recovery: fine-tuning that regains what pruning cost."""

from .config import RecoveryConfig, WarmupConfig
from .ema import Ema
from .objectives import OBJECTIVES, Objective
from .optimizers import Muon
from .pruner import AttachedPruner, Decision, Pruner
from .sensitivity import JacobianConfig
from .trainer import recover

__all__ = [
    "OBJECTIVES",
    "AttachedPruner",
    "Decision",
    "Ema",
    "JacobianConfig",
    "Muon",
    "Objective",
    "Pruner",
    "RecoveryConfig",
    "WarmupConfig",
    "recover",
]
