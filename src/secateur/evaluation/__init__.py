"""What pruning gained and what it cost: efficiency, fidelity, consistency and denoising loss."""

from .efficiency import measure_efficiency, measure_latency
from .evaluate import EvaluationConfig, evaluate_models
from .features import SmallFeatures
from .write import write_evaluation

__all__ = [
    "EvaluationConfig",
    "SmallFeatures",
    "evaluate_models",
    "measure_efficiency",
    "measure_latency",
    "write_evaluation",
]
