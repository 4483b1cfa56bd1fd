"""A feature network small enough for the package: a classifier of small images."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.errors import ModelError, SecateurError, first_line
from ...base.files import atomic_folder, read_json, write_json


class SmallFeatures(nn.Module):
    """A small convolutional classifier; the input of its last layer are the features."""

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
            nn.AdaptiveAvgPool2d(2),  # a 2x2 grid keeps the position of strokes
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
