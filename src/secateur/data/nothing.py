"""A data set without images, for comparing models with each other alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..models.conditions import UNCONDITIONAL
from ..models.family import Shape
from .dataset import Batch


@dataclass(frozen=True)
class NoData:
    """No images, of the shape that a model takes; `image_shape` is the shape of its samples."""

    shape: Shape
    image_shape: Shape
    name = "no data"
    class_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    labels = None
    fingerprint = "no data"
    null = UNCONDITIONAL

    @property
    def images(self) -> NoData:
        """The data set of images behind latents: also empty."""
        return NoData(self.image_shape, self.image_shape)

    def __len__(self) -> int:
        return 0

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at no `indices`."""
        return Batch(torch.empty(len(indices), *self.shape))
