"""What pruning gained and what it cost: efficiency, fidelity, consistency and denoising loss."""

from .checks import check_evaluation
from .config import EvaluationConfig, MetricName
from .estimates import independent_difference, verdict
from .measure import evaluate_models
from .metrics.efficiency import measure_efficiency, measure_latency
from .metrics.lyapunov import finite_time_lyapunov_exponents
from .networks import FeatureNetwork, SmallFeatures
from .pretrained import NetworkFeatures
from .statistics import read_statistics, write_statistics
from .write import write_evaluation

__all__ = [
    "EvaluationConfig",
    "FeatureNetwork",
    "MetricName",
    "NetworkFeatures",
    "SmallFeatures",
    "check_evaluation",
    "evaluate_models",
    "finite_time_lyapunov_exponents",
    "independent_difference",
    "measure_efficiency",
    "measure_latency",
    "read_statistics",
    "verdict",
    "write_evaluation",
    "write_statistics",
]
