"""secateur prunes pretrained diffusion and flow models and recovers what pruning cost."""

from typing import Any

from .base.errors import SecateurError
from .commands import (
    TrialConfig,
    best,
    check_structure,
    compress,
    convert,
    encode,
    evaluate,
    export,
    finetune,
    inspect,
    prune,
    quickstart,
    rank,
    report,
    sample,
    slice_lora,
    sweep,
)
from .criteria import ScoringConfig
from .evaluation import EvaluationConfig
from .io.checkpoint import from_pretrained, save_pretrained
from .io.hub import push_to_hub
from .io.pipeline import load, load_pipeline, save_pipeline
from .models.family import Family
from .models.registry import register_family, register_structure
from .recovery import RecoveryConfig, WarmupConfig
from .schedules import CutConfig, Pruning

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Classes of pruned models, which diffusers asks for by the names that a pipeline's index gives."""
    from .io.pruned import for_diffusers

    return for_diffusers(name)


__all__ = [
    "CutConfig",
    "EvaluationConfig",
    "Family",
    "Pruning",
    "RecoveryConfig",
    "ScoringConfig",
    "SecateurError",
    "TrialConfig",
    "WarmupConfig",
    "best",
    "check_structure",
    "compress",
    "convert",
    "encode",
    "evaluate",
    "export",
    "finetune",
    "from_pretrained",
    "inspect",
    "load",
    "load_pipeline",
    "prune",
    "push_to_hub",
    "quickstart",
    "rank",
    "register_family",
    "register_structure",
    "report",
    "sample",
    "save_pipeline",
    "save_pretrained",
    "slice_lora",
    "sweep",
]
