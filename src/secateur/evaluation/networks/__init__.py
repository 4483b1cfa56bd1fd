"""Feature networks, for distances between sets of images."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch

from ...base.errors import ModelError
from ...base.units import number_of
from .inception import INCEPTION, InceptionFeatures, load_inception
from .network import FeatureNetwork, network_fingerprint
from .pretrained import NetworkFeatures, load_timm, load_transformers
from .small import SmallFeatures, load_small_features

# Classifiers in the package, by the shape of the images that they were trained on.
EMBEDDED = {(1, 8, 8): "digits-features", (1, 16, 16): "fashion-features"}
PRETRAINED: dict[str, Callable[[str], NetworkFeatures]] = {"timm": load_timm, "transformers": load_transformers}


def feature_network(
    name_or_path: str | Path | None, channels: int, size: tuple[int, int], device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The network to compare images (channels, *size) by.

    `FID`, or a path to Inception weights (.safetensors or .pth), is Inception; `digits-features` and `fashion-features`
    are in the package; `timm:NAME` and `transformers:ID` are pretrained networks (DINOv2 ...); a folder is one of
    `SmallFeatures.save`. None: the package's own for 1x8x8 and 1x16x16 images, else Inception.

    Raises:
        ModelError: it is missing, cannot be read, or takes another number of channels.
    """
    device = torch.device(device)
    if name_or_path is None:
        name_or_path = EMBEDDED.get((channels, *size), INCEPTION)
    if name_or_path == INCEPTION:
        return load_inception().to(device)
    kind, _, name = str(name_or_path).partition(":")
    if kind in PRETRAINED and name:
        return PRETRAINED[kind](name).to(device)
    if str(name_or_path).endswith((".safetensors", ".pth")):
        return load_inception(Path(name_or_path)).to(device)
    packaged = name_or_path in EMBEDDED.values()
    folder = Path(str(files("secateur"))) / "assets" / name_or_path if packaged else Path(name_or_path)
    network = load_small_features(folder)
    if (taken := network.config["in_channels"]) != channels:
        raise ModelError(f"{folder} takes {number_of(taken, 'channel')}, the images have {channels}")
    return network.to(device)


def metric_name(network: FeatureNetwork, metric: str = "FD") -> str:
    """The name of a metric: `FID`, `KID`, `IS` ... with Inception only; with any other network `FD[<name>]`,
    `KID[<name>]` ..."""
    if isinstance(network, InceptionFeatures):
        return {"FD": INCEPTION, "rFD": "rFID"}.get(metric, metric)
    return f"{metric}[{network.name}]"


__all__ = [
    "EMBEDDED",
    "FeatureNetwork",
    "InceptionFeatures",
    "NetworkFeatures",
    "SmallFeatures",
    "feature_network",
    "load_inception",
    "load_small_features",
    "metric_name",
    "network_fingerprint",
]
