"""The interface of feature networks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ...base.fingerprint import fingerprint, tensors_fingerprint


class FeatureNetwork(Protocol):
    """Maps images (B, C, H, W) in [-1, 1] to features (B, dim), and these to class logits if it is a classifier."""

    name: str
    dim: int

    def __call__(self, images_BCHW: Tensor) -> Tensor: ...

    def classify(self, features_BD: Tensor) -> Tensor | None:
        """Class logits (B, K), on the network's device, of features on any.

        None: the network has no classes, so there is no Inception Score.
        """
        ...


def network_fingerprint(network: FeatureNetwork) -> str:
    """Changes with the name of a feature network, with its weights or those of its attribute `network`, and with the
    size and normalization of the images that it looks at."""
    module = network if isinstance(network, nn.Module) else getattr(network, "network", None)
    weights = tensors_fingerprint(module.state_dict()) if isinstance(module, nn.Module) else None
    seen_as = [str(getattr(network, part, None)) for part in ("size", "mean", "std")]
    return fingerprint([network.name, weights, *seen_as])
