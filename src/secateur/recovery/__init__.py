"""Recovery: fine-tuning that regains what pruning cost."""

from ..teacher import LiveTeacher, Teacher
from .config import RecoveryConfig, WarmupConfig
from .ema import Ema
from .lora import LoraConfig
from .objectives import OBJECTIVES, Objective
from .objectives.features import FeaturesConfig
from .objectives.objective import JacobianConfig
from .optimizers import Muon
from .pruner import AttachedPruner, Decision, Pruner
from .trainer import recover

__all__ = [
    "OBJECTIVES",
    "AttachedPruner",
    "Decision",
    "Ema",
    "FeaturesConfig",
    "JacobianConfig",
    "LiveTeacher",
    "LoraConfig",
    "Muon",
    "Objective",
    "Pruner",
    "RecoveryConfig",
    "Teacher",
    "WarmupConfig",
    "recover",
]
