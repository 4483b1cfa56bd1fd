"""Any torch network as a feature network, and those of timm and transformers by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.errors import ModelError, first_line
from ...io.index import check_transformers

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NetworkFeatures:
    """Features (B, dim) of any network that takes normalized RGB images of one size.

    `forward(network, x)` gives the features as (B, dim); by default the network's output is that. Images are resized
    to `size` (H, W) by antialiased bicubic interpolation; a grey image is repeated.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        dim: int,
        size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        forward: Callable[[nn.Module, Tensor], Tensor] = lambda network, x: network(x),
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.dim, self.size = name, dim, size
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.forward = forward

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        x = (images_BCHW.expand(-1, 3, -1, -1) + 1) / 2
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.forward(self.network, (x - self.mean.to(x)) / self.std.to(x))

    def classify(self, features_BD: Tensor) -> None:
        """No classes: these are features for distances only."""
        return None

    def to(self, device: torch.device) -> NetworkFeatures:
        self.network.to(device)
        return self


def load_timm(name: str) -> NetworkFeatures:
    """The pooled features of the timm model `name`, pretrained, at its own input size and normalization.

    Raises:
        ModelError: timm does not import, or has no such weights.
    """
    try:
        import timm

        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # a missing package, a name it does not know, a download that fails: of any type
        raise ModelError(f"features timm:{name} cannot be loaded (pip install timm): {first_line(error)}") from error
    config = network.pretrained_cfg
    size = (config["input_size"][1], config["input_size"][2])
    return NetworkFeatures(network, f"timm:{name}", network.num_features, size, config["mean"], config["std"])


def load_transformers(name: str) -> NetworkFeatures:
    """The class token of a vision transformer of transformers, such as `facebook/dinov2-large` at 224 pixels.

    FD by DINOv2 follows people's judgement better than FID does (Stein et al. 2023).

    Raises:
        ModelError: transformers does not import, or `name` is no such model.
    """
    try:
        from transformers import AutoModel

        check_transformers(name)
        network = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        size, dim = min(224, network.config.image_size), network.config.hidden_size
    except Exception as error:  # as `load_timm`
        raise ModelError(
            f"features transformers:{name} cannot be loaded (pip install transformers): {first_line(error)}"
        ) from error
    return NetworkFeatures(
        network, name.rstrip("/").split("/")[-1], dim, (size, size), forward=lambda network, x: network(x)[0][:, 0]
    )
