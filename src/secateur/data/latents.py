"""A data set of latents and encoded captions, which needs neither VAE nor text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..base.fingerprint import fingerprint, tensors_fingerprint
from ..base.rows import Chunk, FileRows, MemoryRows, Rows
from ..models.conditions import Conditions
from ..models.family import Shape
from .dataset import Batch, ImageDataset, PixelDataset, labelled
from .nothing import NoData

LATENTS = "latents"


@dataclass(frozen=True)
class RowsMadeWhenRead(MemoryRows):
    """Rows in memory; `make` computes a chunk when one of its rows is first read."""

    make: Callable[[range], Chunk] = field(kw_only=True, repr=False)

    def has(self, indices: range) -> bool:
        return True

    def chunk(self, indices: range) -> Chunk:
        if indices not in self.kept:
            self.kept[indices] = self.make(indices)
        return self.kept[indices]


@dataclass(frozen=True)
class LatentDataset:
    """Encoded `images`: their latents (N, *shape), and the text conditions of their captions if there are any.

    `null` are the conditions of the empty prompt. `images` are kept for uses that need pixels. `made_by` gives a
    fingerprint of the VAE in memory that encodes them.
    """

    images: PixelDataset
    shape: Shape
    latents: Rows
    text: Rows | None = None
    null: Conditions = field(default_factory=dict)
    made_by: Callable[[], str] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def captions(self) -> tuple[str, ...]:
        return self.images.captions

    @property
    def fingerprint(self) -> str:
        """Changes with the images, the VAE, the captions, and the text encoders, for which the empty prompt stands."""
        about = [self.images.fingerprint, self.made_by and self.made_by()]
        return fingerprint(about if self.text is None else [*about, *self.captions, tensors_fingerprint(self.null)])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        text = {} if self.text is None else self.text.read(indices)
        labels = labelled(self.images.labels, torch.as_tensor(indices, dtype=torch.int64))
        return Batch(self.latents.read(indices)[LATENTS], {**labels, **text})


@dataclass(frozen=True)
class EncodedDataset(LatentDataset):
    """Latents and conditions in files written by `data.encode`."""

    latents: FileRows
    text: FileRows | None = None

    @property
    def fingerprint(self) -> str:
        """Changes also with the encoders."""
        encoded = [rows.folder.name for rows in (self.latents, self.text) if rows is not None]
        return fingerprint([self.images.fingerprint, *encoded])


def will_have_text(dataset: ImageDataset) -> bool:
    """Whether the data's captions are conditions, encoded or not yet."""
    return isinstance(dataset, LatentDataset) and dataset.text is not None


def pixels(dataset: ImageDataset) -> ImageDataset:
    """The images themselves; for latents, the images that were encoded."""
    return dataset.images if isinstance(dataset, LatentDataset | NoData) else dataset
