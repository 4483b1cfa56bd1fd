"""The interface of data sets: images or latents of one shape with their conditions, read by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..models.conditions import LABELS, UNCONDITIONAL, Conditions, moved
from ..models.family import Shape


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1] or latents, (B, C, H, W) float32, with their conditions.

    Clips and their latents have an axis of frames after the channels.
    """

    sample: Tensor
    conditions: Conditions = field(default_factory=dict)

    @property
    def class_labels(self) -> Tensor | None:
        """(B,) int64, or None."""
        return self.conditions.get(LABELS)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.sample.to(device), moved(self.conditions, device))


class ImageDataset(Protocol):
    """A finite set of images, or of their latents, of one shape."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Shape:
        """C, H, W of every image that `batch` returns, C, T, H, W of every clip."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class label; empty without labels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the images do, their shape, or their conditions."""
        ...

    @property
    def captions(self) -> tuple[str, ...]:
        """A text for each image; empty without captions."""
        ...

    @property
    def null(self) -> Conditions:
        """The null condition, one row of each entry: the encoded empty prompt; empty without captions."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, in that order."""
        ...


class PixelDataset(ImageDataset, Protocol):
    """Images of a user's data, not encoded."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64, or None."""
        ...


def calibration_batch(dataset: ImageDataset, n: int, seed: int) -> Batch:
    """`n` images drawn without replacement, the same for the same seed; all of them if there are fewer."""
    return dataset.batch(calibration_order(dataset, seed)[:n].tolist())


def calibration_order(dataset: ImageDataset, seed: int) -> Tensor:
    """The indices of all images, shuffled, the same for the same seed."""
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))


def labelled(labels: Tensor | None, indices: Tensor) -> Conditions:
    """The class labels at `indices` as conditions, none where there are no `labels`."""
    return UNCONDITIONAL if labels is None else {LABELS: labels[indices]}
