"""InceptionV3 by torch-fidelity, by which FID, KID and IS are defined."""

from __future__ import annotations

import io
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file of another kind
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...base.errors import ModelError, first_line

INCEPTION = "FID"
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_WEIGHTS}"


class InceptionFeatures:
    """Features (B, 2048) of the InceptionV3 that FID is defined by (Heusel et al. 2017), from torch-fidelity."""

    name = INCEPTION
    dim = 2048

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        pixels = ((images_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return self.network(pixels.expand(-1, 3, -1, -1))[0]  # a grey image is repeated

    def classify(self, features_BD: Tensor) -> Tensor:
        """The 1008 logits without bias that the Inception Score is computed from in practice."""
        weight = self.network.fc.weight
        return features_BD.to(weight.device) @ weight.T

    def to(self, device: torch.device) -> InceptionFeatures:
        return InceptionFeatures(self.network.to(device))


def load_inception(weights: Path | None = None) -> InceptionFeatures:
    """The Inception of torch-fidelity, with `weights` (.safetensors, or its own .pth) or those in its download cache.

    Raises:
        ModelError: torch-fidelity cannot be imported, or the weights are missing; nothing is downloaded.
    """
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except Exception as error:  # a broken torchvision below it raises other errors than ImportError
        raise ModelError(f"FID needs torch-fidelity (pip install 'secateur[eval]'): {first_line(error)}") from error
    source: io.BytesIO | None = None
    cache = Path(torch.hub.get_dir(), "checkpoints", INCEPTION_WEIGHTS)
    if weights is not None:
        source = io.BytesIO()
        torch.save(_read_weights(weights), source)  # torch-fidelity reads pickles only: give it one of ours
        source.seek(0)
    elif not cache.is_file():
        raise ModelError(
            f"FID needs Inception weights: download {INCEPTION_URL} to {cache.parent}, or give the file by "
            "--evaluation.features"
        )
    return InceptionFeatures(FeatureExtractorInceptionV3(INCEPTION, ["2048"], source))


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ModelError(f"{path} is not a readable {path.suffix} file of weights: {first_line(error)}") from error
