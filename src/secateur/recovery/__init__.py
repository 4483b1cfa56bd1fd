"""Recovery: fine-tuning that regains what pruning cost."""

from .config import RecoveryConfig
from .ema import Ema
from .objectives import OBJECTIVES, Objective
from .trainer import recover

__all__ = ["OBJECTIVES", "Ema", "Objective", "RecoveryConfig", "recover"]
