"""MS-SSIM: structural similarity at five scales."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...base.errors import DataError, require
from ...data import pixels
from ...data.clips import shape_side_by_side
from ...results.measured import Metric
from ..measurement import OfPairs, Subject
from .consistency import WINDOW, similarity

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli & Bovik 2003, section 3.2
LEAST_PIXELS = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1


def ms_ssim(a_BCHW: Tensor, b_BCHW: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Multi-scale structural similarity of each pair, (B,) float64: Wang, Simoncelli & Bovik 2003, eq. 7.

    Five scales, each the mean of 2x2 pixels of the one before, or fewer at an odd edge; negative contrast and structure
    count as 0, since their exponents are not integers. Channels are averaged, as in `ssim`.

    Raises:
        DataError: images of fewer than 161 pixels a side, on whose last scale no window fits.
    """
    if min(a_BCHW.shape[2:]) < LEAST_PIXELS:
        size = "x".join(map(str, a_BCHW.shape[2:]))
        raise DataError(f"MS-SSIM needs images of {LEAST_PIXELS} pixels a side or more, these are {size}; use SSIM")
    product = torch.ones((), dtype=torch.float64)  # (B, C) from the first scale on
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            a_BCHW, b_BCHW = (F.avg_pool2d(x_BCHW, 2, ceil_mode=True) for x_BCHW in (a_BCHW, b_BCHW))
        luminance, structure = similarity(a_BCHW, b_BCHW, value_range)
        last = scale == len(WEIGHTS) - 1
        mean_BC = (luminance * structure if last else structure).mean((2, 3))
        product = product * mean_BC.clamp(min=0) ** weight
    return product.mean(1)


def check(subject: Subject) -> None:
    """Refuse images that are too small for the last scale."""
    _, height, width = shape_side_by_side(pixels(subject.dataset).shape)
    need = f"ms-ssim needs images of {LEAST_PIXELS} pixels a side, these are {height}x{width}; use consistency"
    require(min(height, width) >= LEAST_PIXELS, need)


MS_SSIM = OfPairs(
    name="ms-ssim",
    gives={"ms_ssim": Metric("MS-SSIM", "higher", "reference")},
    needs=frozenset({"samples", "reference"}),
    check=check,
    load=lambda subject: {"ms_ssim": ms_ssim},
)
