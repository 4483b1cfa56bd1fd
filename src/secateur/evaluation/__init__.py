"""Measuring what pruning gained and cost: efficiency, fidelity, consistency and denoising loss."""

from .config import EvaluationConfig
from .estimates import independent_difference, verdict
from .measure import evaluate_models
from .metrics import METRICS
from .metrics.clip import ClipOptions
from .metrics.frechet import FrechetOptions
from .metrics.ftle import FtleOptions, finite_time_lyapunov_exponents
from .metrics.latency import LatencyOptions, measure_latency
from .networks import FeatureNetwork, NetworkFeatures, SmallFeatures
from .plan import Plan, forward_passes, plan_evaluation
from .statistics import read_statistics, write_statistics
from .write import write_evaluation

__all__ = [
    "METRICS",
    "ClipOptions",
    "EvaluationConfig",
    "FeatureNetwork",
    "FrechetOptions",
    "FtleOptions",
    "LatencyOptions",
    "NetworkFeatures",
    "Plan",
    "SmallFeatures",
    "evaluate_models",
    "finite_time_lyapunov_exponents",
    "forward_passes",
    "independent_difference",
    "measure_latency",
    "plan_evaluation",
    "read_statistics",
    "verdict",
    "write_evaluation",
    "write_statistics",
]
