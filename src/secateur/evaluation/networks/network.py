"""The interface of feature networks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
