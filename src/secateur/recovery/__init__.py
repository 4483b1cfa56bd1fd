"""Recovery: fine-tuning that regains what pruning cost."""

from .config import RecoveryConfig
from .ema import Ema
from .jacobian import JacobianConfig
from .objectives import OBJECTIVES, Objective
from .trainer import recover

__all__ = ["OBJECTIVES", "Ema", "JacobianConfig", "Objective", "RecoveryConfig", "recover"]
