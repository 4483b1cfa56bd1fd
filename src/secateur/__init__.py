"""secateur prunes pretrained diffusion and flow models and recovers what pruning cost.

What is in `__all__` is public. A public name or argument that goes is deprecated for one minor version before it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where each public name lives: imported when it is first asked for, since torch and diffusers take seconds.
_PLACES = {
    "api": ("compensate", "compress", "evaluate", "finetune", "plan", "prune", "quickstart", "rank"),
    "base.errors": ("SecateurError",),
    "compensation": ("CompensationConfig",),
    "criteria": (
        "CedOptions",
        "DiffPruningOptions",
        "GradientFlowOptions",
        "MagnitudeOptions",
        "ReconstructionOptions",
        "ScoringConfig",
        "TaylorOptions",
    ),
    "data": ("load_data",),
    "evaluation": ("ClipOptions", "EvaluationConfig", "FrechetOptions", "FtleOptions", "LatencyOptions"),
    "io.checkpoint": ("from_pretrained", "save_pretrained"),
    "io.hub": ("push_to_hub",),
    "io.pipeline": ("load", "load_pipeline", "save_pipeline"),
    "io.manifest": ("apply_cut",),
    "models.family": ("Family",),
    "models.network": ("example_inputs",),
    "models.registry": ("describe", "register_family", "register_structure"),
    "process.base": ("Process",),
    "process.diffusion": ("DiffusionProcess",),
    "process.flow": ("FlowProcess",),
    "recipes": ("Recipe", "RecipeArguments", "recipe_named"),
    "runs.recording": ("record",),
    "recovery": ("JacobianConfig", "RecoveryConfig", "WarmupConfig"),
    "results": ("Compensation", "CutResult", "Decisions", "Evaluation", "Ranking", "Recovery", "read_result"),
    "runs.arguments": ("ModelArguments", "NetworkArguments", "WeightsArguments"),
    "runs.comparing": ("report",),
    "runs.encoding": ("encode",),
    "runs.formats": ("convert", "export", "slice_lora"),
    "runs.inspection": ("check_structure", "inspect"),
    "runs.loops": ("Pruning",),
    "runs.plan": ("Plan",),
    "runs.run": ("Run",),
    "runs.sampling": ("sample",),
    "runs.search": ("best",),
    "runs.sweep": ("sweep",),
    "runs.trials": ("TrialConfig",),
    "structure": ("Block", "Cut", "Dim", "Structure", "StructureBuilder"),
    "teacher": ("Book", "BookConfig"),
    "schedules": ("AdaptiveConfig", "CutConfig", "ProgressiveConfig"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = sorted(_PLACE_OF)

if TYPE_CHECKING:
    from .api import compress as compress
    from .api import evaluate as evaluate
    from .api import finetune as finetune
    from .api import prune as prune
    from .api import quickstart as quickstart
    from .api import rank as rank


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        if name.startswith("_"):
            raise AttributeError(f"module 'secateur' has no attribute {name!r}")
        # Classes of pruned models, which diffusers asks for by the names that a pipeline's index gives.
        return importlib.import_module(".io.pruned", __name__).for_diffusers(name)
    value = getattr(importlib.import_module(f".{_PLACE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
