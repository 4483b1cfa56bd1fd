"""Feature networks: what distances between sets of images compare them by."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file that is none of its own
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import ModelError, SecateurError, first_line
from ..base.files import atomic_folder, read_json, write_json
from .pretrained import load_timm, load_transformers

DIGITS_FEATURES = "digits-features"
INCEPTION = "FID"
PRETRAINED: dict[str, Callable[[str], Any]] = {"timm": load_timm, "transformers": load_transformers}
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_WEIGHTS}"


class FeatureNetwork(Protocol):
    """Maps images (B, C, H, W) in [-1, 1] to features (B, dim), and these to class logits if it is a classifier."""

    name: str
    dim: int

    def __call__(self, images_BCHW: Tensor) -> Tensor: ...

    def classify(self, features_BD: Tensor) -> Tensor | None:
        """Class logits (B, K), on the network's device, of features on any.

        None: the network has no classes, so there is no Inception Score by it.
        """
        ...


class SmallFeatures(nn.Module):
    """A small convolutional classifier; what it computes before its last layer are the features."""

    dim = 64

    def __init__(self, in_channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.name = "small-features"
        self.config = {"in_channels": in_channels, "num_classes": num_classes, "width": width}
        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),  # a 2x2 grid keeps where a stroke is
            nn.Flatten(),
            nn.Linear(8 * width, self.dim),
        )
        self.head = nn.Linear(self.dim, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, 64) of images in [-1, 1]."""
        return self.trunk(images_BCHW)

    def classify(self, features_BD: Tensor) -> Tensor:
        """Class logits (B, num_classes) of features."""
        return self.head(F.silu(features_BD.to(self.head.weight.device)))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Class logits (B, num_classes) of images in [-1, 1]."""
        return self.classify(self(images_BCHW))

    def save(self, folder: str | Path) -> Path:
        """Write `config.json` and `model.safetensors` to `folder`."""
        with atomic_folder(folder) as temporary:
            write_json(temporary / "config.json", self.config)
            save_file(self.state_dict(), temporary / "model.safetensors")
        return Path(folder)


def load_small_features(folder: str | Path) -> SmallFeatures:
    """The network that `SmallFeatures.save` wrote, frozen, in eval mode, named after its folder.

    Raises:
        ModelError: the folder does not hold such a network.
    """
    folder = Path(folder)
    try:
        network = SmallFeatures(**read_json(folder / "config.json"))
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (SecateurError, SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} holds no feature network of SmallFeatures.save: {first_line(error)}") from error
    network.name = folder.resolve().name
    return network.eval().requires_grad_(False)


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
        ModelError: torch-fidelity does not import, or the weights are missing; nothing is downloaded.
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


def feature_network(
    name_or_path: str | Path | None, channels: int, size: tuple[int, int], device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The network to compare images (channels, *size) by.

    `FID`, or a path to Inception weights (.safetensors or .pth), is Inception; `digits-features` is the one in the
    package; `timm:NAME` and `transformers:ID` are pretrained networks (DINOv2 ...); a folder is one of
    `SmallFeatures.save`. None: `digits-features` for 1x8x8 images, else Inception.

    Raises:
        ModelError: it is missing, cannot be read, or takes another number of channels.
    """
    device = torch.device(device)
    if name_or_path is None:
        name_or_path = DIGITS_FEATURES if (channels, *size) == (1, 8, 8) else INCEPTION
    if name_or_path == INCEPTION:
        return load_inception().to(device)
    kind, _, name = str(name_or_path).partition(":")
    if kind in PRETRAINED and name:
        return PRETRAINED[kind](name).to(device)
    if str(name_or_path).endswith((".safetensors", ".pth")):
        return load_inception(Path(name_or_path)).to(device)
    packaged = name_or_path == DIGITS_FEATURES
    folder = Path(str(files("secateur"))) / "assets" / DIGITS_FEATURES if packaged else Path(name_or_path)
    network = load_small_features(folder)
    if network.config["in_channels"] != channels:
        raise ModelError(f"{folder} takes {network.config['in_channels']} channels, the images have {channels}")
    return network.to(device)


def metric_name(network: FeatureNetwork, metric: str = "FD") -> str:
    """`FID`, `KID`, `IS` ... are by Inception only; by any other network it is `FD[<name>]`, `KID[<name>]` ..."""
    if isinstance(network, InceptionFeatures):
        return {"FD": INCEPTION, "rFD": "rFID"}.get(metric, metric)
    return f"{metric}[{network.name}]"
