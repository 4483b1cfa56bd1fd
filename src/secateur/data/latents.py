"""The latents of images, and what encoded their captions, as a data set that needs neither VAE nor text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..base.fingerprint import fingerprint
from ..base.rows import FileRows
from ..models.conditions import Conditions
from .dataset import Batch, ImageDataset, PixelDataset, labelled

LATENTS = "latents"


@dataclass(frozen=True)
class LatentDataset:
    """Encoded `images`: their latents (N, *shape), and the text conditions of their captions if there are any.

    `null` are the conditions of the empty prompt. `images` stay at hand for what looks at pixels.
    """

    images: PixelDataset
    shape: tuple[int, int, int]
    latents: FileRows
    text: FileRows | None = None
    null: Conditions = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def fingerprint(self) -> str:
        """Changes with the images, with what encodes them, and with their captions."""
        encoded = [rows.folder.name for rows in (self.latents, self.text) if rows is not None]
        return fingerprint([self.images.fingerprint, *encoded])

    @property
    def captions(self) -> tuple[str, ...]:
        return self.images.captions

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        text = {} if self.text is None else self.text.read(indices)
        labels = labelled(self.images.labels, torch.as_tensor(indices, dtype=torch.int64))
        return Batch(self.latents.read(indices)[LATENTS], {**labels, **text})


def pixels(dataset: ImageDataset) -> ImageDataset:
    """The images themselves: of latents, what was encoded."""
    return dataset.images if isinstance(dataset, LatentDataset) else dataset
