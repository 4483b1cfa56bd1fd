"""Images as batches: an image folder (sub-folders are classes), an `.npz` with `images` and `labels`, or `digits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1], (B, C, H, W) float32, and their class labels, (B,) int64, or None."""

    sample: Tensor
    class_labels: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        labels = None if self.class_labels is None else self.class_labels.to(device)
        return Batch(self.sample.to(device), labels)


class ImageDataset(Protocol):
    """A finite set of images of one shape, read by index."""

    name: str
    shape: tuple[int, int, int]  # C, H, W
    class_names: tuple[str, ...]  # empty without labels

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, in that order."""
        ...


def load_data(source: str | Path, shape: tuple[int, int, int] | None = None) -> ImageDataset:
    """Open images for a model that takes `shape` (C, H, W).

    Raises:
        DataError: nothing is there, an image cannot be read, or its channels do not fit `shape`.
    """
    raise NotImplementedError
