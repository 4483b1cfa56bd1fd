"""What pruning gained and what it cost: efficiency, fidelity, consistency and denoising loss."""

from .efficiency import measure_efficiency, measure_latency
from .evaluate import EvaluationConfig, MetricName, evaluate_models
from .features import SmallFeatures
from .lyapunov import finite_time_lyapunov_exponents
from .write import write_evaluation

__all__ = [
    "EvaluationConfig",
    "MetricName",
    "SmallFeatures",
    "evaluate_models",
    "finite_time_lyapunov_exponents",
    "measure_efficiency",
    "measure_latency",
    "write_evaluation",
]
