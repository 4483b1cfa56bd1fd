"""What each metric is called, which direction is good, and what it is measured against."""

from __future__ import annotations

from ..results import Metric
from .networks import FeatureNetwork, metric_name

METRICS = {
    "ssim": Metric("SSIM", "higher", "reference"),
    "ms_ssim": Metric("MS-SSIM", "higher", "reference"),
    "psnr": Metric("PSNR", "higher", "reference", "dB"),
    "mse": Metric("MSE", "lower", "reference"),
    "lpips": Metric("LPIPS", "lower", "reference"),
    "image_ssim": Metric("SSIM to the image", "higher", "data"),
    "image_psnr": Metric("PSNR to the image", "higher", "data", "dB"),
    "image_mse": Metric("MSE to the image", "lower", "data"),
    "image_ms_ssim": Metric("MS-SSIM to the image", "higher", "data"),
    "image_lpips": Metric("LPIPS to the image", "lower", "data"),
    "clip_score": Metric("CLIP score", "higher"),
    "denoising_loss": Metric("mean denoising loss", "lower", "data"),
    "ftle": Metric("finite-time Lyapunov exponent"),
}
OF_DECODERS = {"denoising_loss": Metric("mean reconstruction error", "lower", "data")}
FEATURE_METRICS = {
    "fd": Metric("FD", "lower", "data"),
    "rfd": Metric("rFD", "lower", "reference"),
    "kid": Metric("KID", "lower", "data"),
    "inception_score": Metric("IS", "higher"),
    "precision": Metric("precision", "higher", "data"),
    "recall": Metric("recall", "higher", "data"),
    "density": Metric("density", "higher", "data"),
    "coverage": Metric("coverage", "higher", "data"),
}


def describe_metric(key: str, network: FeatureNetwork | None, decodes: bool = False) -> Metric:
    """The metric of a key of `estimates`; those of features are named after the `network` unless it is Inception.

    `decodes` says that the models are decoders, whose loss is no denoising.
    """
    if decodes and key in OF_DECODERS:
        return OF_DECODERS[key]
    if key in METRICS:
        return METRICS[key]
    if key in FEATURE_METRICS and network is not None:
        found = FEATURE_METRICS[key]
        return Metric(metric_name(network, found.label), found.better, found.against, found.unit)
    name, _, batch = key.rpartition("_")
    return Metric(f"{name.replace('_', ' ')}, batch {batch}", "lower", None, "ms")
