"""LPIPS: the distance between images in the features of a pretrained network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...base.errors import ModelError, first_line, require
from ...data import pixels
from ...data.clips import shape_side_by_side
from ...models.network import IMAGE_CHANNELS
from ...results.measured import Metric
from ..measurement import LOOKS_AT_IMAGES, OfPairs, PairDistance, Subject

ALEXNET_WEIGHTS = "alexnet-owt-7be5be79.pth"
LEAST_PIXELS = 31  # of a side: what its poolings need


def load_lpips(device: torch.device | str = "cpu") -> PairDistance:
    """LPIPS by AlexNet (Zhang et al. 2018, version 0.1) of image pairs (B, C, H, W) in [-1, 1], (B,).

    Raises:
        ModelError: lpips cannot be imported, or the weights of its AlexNet are missing; nothing is downloaded.
    """
    try:
        from lpips import LPIPS
    except Exception as error:  # a broken torchvision below it raises other errors than ImportError
        raise ModelError(f"LPIPS needs the package lpips (pip install lpips): {first_line(error)}") from error
    cache = Path(torch.hub.get_dir(), "checkpoints", ALEXNET_WEIGHTS)
    if not cache.is_file():
        raise ModelError(
            f"LPIPS needs AlexNet weights: download https://download.pytorch.org/models/{ALEXNET_WEIGHTS} to "
            f"{cache.parent}"
        )
    network = LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)

    def distance(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        return network(a_BCHW.expand(-1, 3, -1, -1), b_BCHW.expand(-1, 3, -1, -1)).flatten()

    return distance


def check(subject: Subject) -> None:
    """Refuse images that AlexNet cannot look at, and load it once, to check that it is available."""
    channels, height, width = shape_side_by_side(pixels(subject.dataset).shape)
    require(
        min(height, width) >= LEAST_PIXELS,
        f"lpips needs images of {LEAST_PIXELS} pixels a side, these are {height}x{width}; use consistency",
    )
    require(channels in IMAGE_CHANNELS, f"{LOOKS_AT_IMAGES}, these have {channels}; give the whole pipeline")
    load_lpips(subject.device)


LPIPS = OfPairs(
    name="lpips",
    gives={"lpips": Metric("LPIPS", "lower", "reference")},
    needs=frozenset({"samples", "reference"}),
    check=check,
    load=lambda subject: {"lpips": load_lpips(subject.device)},
)
