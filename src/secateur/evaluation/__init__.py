"""What pruning gained and what it cost: efficiency, fidelity, consistency and denoising loss."""

from .consistency import mse, psnr, ssim
from .denoising import denoising_loss_per_timestep
from .efficiency import (
    Efficiency,
    Latency,
    count_macs,
    count_parameters,
    measure_efficiency,
    measure_latency,
    peak_activation_bytes,
    weights_bytes,
)
from .evaluate import EvaluationConfig, evaluate_models
from .features import FeatureNetwork, SmallFeatures, feature_network, load_small_features, metric_name
from .fidelity import FeatureStatistics, Fidelity, frechet, frechet_distance, frechet_std
from .write import write_evaluation

__all__ = [
    "Efficiency",
    "EvaluationConfig",
    "FeatureNetwork",
    "FeatureStatistics",
    "Fidelity",
    "Latency",
    "SmallFeatures",
    "count_macs",
    "count_parameters",
    "denoising_loss_per_timestep",
    "evaluate_models",
    "feature_network",
    "frechet",
    "frechet_distance",
    "frechet_std",
    "load_small_features",
    "measure_efficiency",
    "measure_latency",
    "metric_name",
    "mse",
    "peak_activation_bytes",
    "psnr",
    "ssim",
    "weights_bytes",
    "write_evaluation",
]
