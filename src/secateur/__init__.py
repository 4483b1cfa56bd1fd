"""secateur prunes pretrained diffusion and flow models and recovers what pruning cost.

What is in `__all__` is public. A public name or argument that goes is deprecated for one minor version before it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .base.lookup import register_with_diffusers

__version__ = "0.2.0"

# Where each public name lives: imported when it is first asked for, since torch and diffusers take seconds.
_PLACES = {
    "api.compress": ("compress", "quickstart"),
    "api.one_stage": ("compensate", "evaluate", "finetune", "prune", "rank"),
    "api.plans": ("plan", "plan_evaluate", "plan_finetune", "plan_prune", "plan_rank", "plan_record"),
    "base.errors": ("SecateurError",),
    "compensation": ("CompensationConfig",),
    "criteria": (
        "CedOptions",
        "DiffPruningOptions",
        "GradientFlowOptions",
        "MagnitudeOptions",
        "ReconstructionOptions",
        "ReplacementOptions",
        "ScoringConfig",
        "TaylorOptions",
        "ranking_memory",
    ),
    "data": ("load_data",),
    "evaluation": (
        "ClipOptions",
        "EvaluationConfig",
        "FrechetOptions",
        "FtleOptions",
        "LatencyOptions",
        "SmallFeatures",
    ),
    "io.checkpoint": ("from_pretrained",),
    "io.pipeline": ("load", "load_pipeline", "save_pipeline"),
    "io.manifest": ("apply_cut",),
    "models.family": ("Family",),
    "models.network": ("example_inputs",),
    "models.registry": ("describe", "register_family", "register_structure"),
    "process.base": ("Process",),
    "process.diffusion": ("DiffusionProcess",),
    "process.flow": ("FlowProcess",),
    "recipes": ("RECIPES", "Recipe", "RecipeArguments", "recipe_named"),
    "recovery": ("FeaturesConfig", "JacobianConfig", "LoraConfig", "RecoveryConfig", "WarmupConfig"),
    "recovery.memory": ("RecoveryMemory", "recovery_memory"),
    "runs.recording": ("record",),
    "results": ("Compensation", "CutResult", "Decisions", "Evaluation", "Ranking", "Recovery", "read_result"),
    "runs.arguments": ("ModelArguments", "NetworkArguments", "WeightsArguments"),
    "runs.comparing": ("Comparison", "report"),
    "runs.encoding": ("encode",),
    "runs.formats": ("convert", "export", "slice_lora"),
    "runs.inspection": ("check_structure", "inspect"),
    "runs.loops": ("Pruning",),
    "runs.plan": ("Plan",),
    "runs.proxies": ("replacement_distance", "zero_cost_proxies"),
    "runs.publishing": ("push_to_hub", "save_pretrained"),
    "runs.run": ("Run",),
    "runs.sampling": ("sample",),
    "runs.best": ("best", "plan_best"),
    "runs.sweep": ("plan_sweep", "sweep"),
    "runs.trials": ("TrialConfig",),
    "structure": ("Block", "Cut", "Dim", "Structure", "StructureBuilder"),
    "teacher": ("Book", "BookConfig"),
    "schedules": ("AdaptiveConfig", "CutConfig", "ProgressiveConfig"),
    "schedules.proxies": ("Judgement",),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = sorted(_PLACE_OF)

if TYPE_CHECKING:  # what type checkers and editors see
    from .api.compress import compress as compress
    from .api.compress import quickstart as quickstart
    from .api.one_stage import compensate as compensate
    from .api.one_stage import evaluate as evaluate
    from .api.one_stage import finetune as finetune
    from .api.one_stage import prune as prune
    from .api.one_stage import rank as rank
    from .api.plans import plan as plan
    from .api.plans import plan_evaluate as plan_evaluate
    from .api.plans import plan_finetune as plan_finetune
    from .api.plans import plan_prune as plan_prune
    from .api.plans import plan_rank as plan_rank
    from .api.plans import plan_record as plan_record
    from .base.errors import SecateurError as SecateurError
    from .compensation import CompensationConfig as CompensationConfig
    from .criteria import CedOptions as CedOptions
    from .criteria import DiffPruningOptions as DiffPruningOptions
    from .criteria import GradientFlowOptions as GradientFlowOptions
    from .criteria import MagnitudeOptions as MagnitudeOptions
    from .criteria import ReconstructionOptions as ReconstructionOptions
    from .criteria import ReplacementOptions as ReplacementOptions
    from .criteria import ScoringConfig as ScoringConfig
    from .criteria import TaylorOptions as TaylorOptions
    from .criteria import ranking_memory as ranking_memory
    from .data import load_data as load_data
    from .evaluation import ClipOptions as ClipOptions
    from .evaluation import EvaluationConfig as EvaluationConfig
    from .evaluation import FrechetOptions as FrechetOptions
    from .evaluation import FtleOptions as FtleOptions
    from .evaluation import LatencyOptions as LatencyOptions
    from .evaluation import SmallFeatures as SmallFeatures
    from .io.checkpoint import from_pretrained as from_pretrained
    from .io.manifest import apply_cut as apply_cut
    from .io.pipeline import load as load
    from .io.pipeline import load_pipeline as load_pipeline
    from .io.pipeline import save_pipeline as save_pipeline
    from .models.family import Family as Family
    from .models.network import example_inputs as example_inputs
    from .models.registry import describe as describe
    from .models.registry import register_family as register_family
    from .models.registry import register_structure as register_structure
    from .process.base import Process as Process
    from .process.diffusion import DiffusionProcess as DiffusionProcess
    from .process.flow import FlowProcess as FlowProcess
    from .recipes import RECIPES as RECIPES
    from .recipes import Recipe as Recipe
    from .recipes import RecipeArguments as RecipeArguments
    from .recipes import recipe_named as recipe_named
    from .recovery import FeaturesConfig as FeaturesConfig
    from .recovery import JacobianConfig as JacobianConfig
    from .recovery import LoraConfig as LoraConfig
    from .recovery import RecoveryConfig as RecoveryConfig
    from .recovery import WarmupConfig as WarmupConfig
    from .recovery.memory import RecoveryMemory as RecoveryMemory
    from .recovery.memory import recovery_memory as recovery_memory
    from .results import Compensation as Compensation
    from .results import CutResult as CutResult
    from .results import Decisions as Decisions
    from .results import Evaluation as Evaluation
    from .results import Ranking as Ranking
    from .results import Recovery as Recovery
    from .results import read_result as read_result
    from .runs.arguments import ModelArguments as ModelArguments
    from .runs.arguments import NetworkArguments as NetworkArguments
    from .runs.arguments import WeightsArguments as WeightsArguments
    from .runs.best import best as best
    from .runs.best import plan_best as plan_best
    from .runs.comparing import Comparison as Comparison
    from .runs.comparing import report as report
    from .runs.encoding import encode as encode
    from .runs.formats import convert as convert
    from .runs.formats import export as export
    from .runs.formats import slice_lora as slice_lora
    from .runs.inspection import check_structure as check_structure
    from .runs.inspection import inspect as inspect
    from .runs.loops import Pruning as Pruning
    from .runs.plan import Plan as Plan
    from .runs.proxies import replacement_distance as replacement_distance
    from .runs.proxies import zero_cost_proxies as zero_cost_proxies
    from .runs.publishing import push_to_hub as push_to_hub
    from .runs.publishing import save_pretrained as save_pretrained
    from .runs.recording import record as record
    from .runs.run import Run as Run
    from .runs.sampling import sample as sample
    from .runs.sweep import plan_sweep as plan_sweep
    from .runs.sweep import sweep as sweep
    from .runs.trials import TrialConfig as TrialConfig
    from .schedules import AdaptiveConfig as AdaptiveConfig
    from .schedules import CutConfig as CutConfig
    from .schedules import ProgressiveConfig as ProgressiveConfig
    from .schedules.proxies import Judgement as Judgement
    from .structure import Block as Block
    from .structure import Cut as Cut
    from .structure import Dim as Dim
    from .structure import Structure as Structure
    from .structure import StructureBuilder as StructureBuilder
    from .teacher import Book as Book
    from .teacher import BookConfig as BookConfig


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        if name.startswith("_"):
            raise AttributeError(f"module 'secateur' has no attribute {name!r}")
        # Classes of pruned models, which diffusers asks for by the names that a pipeline's index gives.
        return importlib.import_module(".io.pruned", __name__).for_diffusers(name)
    importlib.import_module(".base.console", __name__)  # before diffusers, whose bars would warn in a notebook
    value = getattr(importlib.import_module(f".{_PLACE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register_with_diffusers()
