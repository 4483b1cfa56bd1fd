"""Differences between the images of two models from the same noise: MSE, PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...base.devices import in_float64
from ...results.measured import Metric
from ..measurement import OfPairs

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, section III-C


def mse(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Mean squared error of each pair of images, (B,) float64."""
    return (_exact(a_BCHW) - _exact(b_BCHW)).square().flatten(1).mean(1)


def psnr(a_BCHW: Tensor, b_BCHW: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Peak signal-to-noise ratio of each pair, (B,) float64, in dB; infinite for equal images."""
    data_range = value_range[1] - value_range[0]
    return 10 * torch.log10(data_range**2 / mse(a_BCHW, b_BCHW))


def ssim(a_BCHW: Tensor, b_BCHW: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Structural similarity of each pair, (B,) float64, at most 1: Wang et al. 2004, eq. 13, averaged by eq. 17.

    Gaussian window of 11 pixels, sigma 1.5, at all positions inside the image; channels are averaged. For images
    smaller than the window it shrinks to the largest odd size that fits (7 for 8x8); such values are not comparable
    with those of larger images.
    """
    luminance, structure = similarity(a_BCHW, b_BCHW, value_range)
    return (luminance * structure).flatten(1).mean(1)


def similarity(a_BCHW: Tensor, b_BCHW: Tensor, value_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of every window: Wang et al. 2004, eq. 6, and eq. 9 times 10."""
    size = min(WINDOW, *a_BCHW.shape[2:])
    size -= 1 - size % 2
    taps = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * SIGMA**2))
    low, data_range = value_range[0], value_range[1] - value_range[0]
    a, b = _exact(a_BCHW) - low, _exact(b_BCHW) - low  # the luminance term takes black to be 0
    window = (taps / taps.sum()).to(a.device)
    mean_a, mean_b = _blur(a, window), _blur(b, window)
    variance_a = _blur(a * a, window) - mean_a**2
    variance_b = _blur(b * b, window) - mean_b**2
    covariance = _blur(a * b, window) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_a + variance_b + c2)


def _exact(x: Tensor) -> Tensor:
    """To float64, on the CPU if the device has none."""
    return in_float64(x)


def _blur(x_BCHW: Tensor, window: Tensor) -> Tensor:
    """Separable correlation of each channel with `window`, valid positions only."""
    channels = x_BCHW.shape[1]
    rows = window.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    columns = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    return F.conv2d(F.conv2d(x_BCHW, rows, groups=channels), columns, groups=channels)


CONSISTENCY = OfPairs(
    name="consistency",
    gives={
        "ssim": Metric("SSIM", "higher", "reference"),
        "psnr": Metric("PSNR", "higher", "reference", "dB"),
        "mse": Metric("MSE", "lower", "reference"),
    },
    needs=frozenset({"samples", "reference"}),
    load=lambda subject: {"ssim": ssim, "psnr": psnr, "mse": mse},
)
