"""Samples of a model as data, if there are no images: `generated`, or `generated:4096` for that many.

Sample i depends on the model, the seed and i alone: its noise is that of `process.sampling.initial_noise`, and labels
are all classes in turn. Samples are kept in the cache, under the fingerprint of the model that drew them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..base.cache import cache_folder
from ..base.errors import DataError, require
from ..base.fingerprint import fingerprint, model_fingerprint
from ..base.rows import Chunk, FileRows, chunk_size_of
from ..base.seeds import VERSION
from ..models.conditions import UNCONDITIONAL
from ..models.family import Shape
from ..models.network import IMAGE_CHANNELS, class_count, device_of, inference, input_shape, takes_text
from ..process.base import Process
from ..process.grid import usual_steps
from ..process.reconstruction import Reconstruction
from ..process.sampling import generate, initial_noise
from .classes import numbered
from .dataset import Batch, labelled
from .latents import LATENTS, LatentDataset

WORD = "generated"
DEFAULT_COUNT = 1024
STEPS = 50  # of the process's own deterministic sampler, at most
SEED = 0
AT_ONCE = 64


@dataclass(frozen=True)
class GeneratedDataset:
    """Samples of a model, (N, *shape), with their labels; `draw_samples` draws them.

    Attributes:
        rows: their storage.
        draw: draws the samples with given numbers.
    """

    shape: Shape
    class_names: tuple[str, ...]
    rows: FileRows
    draw: Callable[[range], Chunk] = field(repr=False)

    name = WORD
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.rows.folder.name, self.rows.count])

    @property
    def labels(self) -> Tensor | None:
        """Classes take turns."""
        return torch.arange(len(self)) % len(self.class_names) if self.class_names else None

    def __len__(self) -> int:
        return self.rows.count

    def noise(self, indices: Sequence[int]) -> Tensor:
        """The initial noise of the samples at `indices`, (len(indices), *shape)."""
        return initial_noise(indices, self.shape, SEED)

    def batch(self, indices: Sequence[int]) -> Batch:
        samples = self.rows.read(indices)[LATENTS]
        return Batch(samples, labelled(self.labels, torch.as_tensor(indices, dtype=torch.int64)))


def is_generated(data: object) -> bool:
    """Whether `data` means samples of the dense model."""
    return isinstance(data, str) and (data == WORD or data.startswith(f"{WORD}:"))


def open_generated(
    text: str,
    model: nn.Module,
    process: Process,
    decode: Callable[[Tensor], Tensor] | None,
    images: Shape,
) -> GeneratedDataset | LatentDataset:
    """Samples of `model` as a data set, drawn already or not.

    Args:
        text: `generated`, or `generated:COUNT`.
        model: a denoiser without text, of images or latents.
        process: the process, for its sampler.
        decode: turns latents into images; None for a model of images.
        images: C, H, W of the images.

    Raises:
        DataError: no count after the colon; the model is a decoder, or takes text.
    """
    _, colon, count = text.partition(":")
    require(not colon or (count.isdigit() and int(count) > 0), f"{text} has no number; write {WORD}:4096")
    if isinstance(process, Reconstruction):
        raise DataError("a decoder draws nothing by itself; give images")
    if takes_text(model):
        raise DataError("the model draws for texts, of which there are none; give images with captions")
    shape, classes = input_shape(model), class_count(model)
    about = [VERSION, model_fingerprint(model, process), shape, STEPS, SEED]
    row = torch.float32.itemsize * shape[0] * shape[1] * shape[2]
    folder = cache_folder() / WORD / fingerprint(about)
    rows = FileRows(int(count or DEFAULT_COUNT), min(AT_ONCE, chunk_size_of(row)), folder)
    names = () if classes is None else numbered(classes)
    drawn = GeneratedDataset(
        shape,
        names,
        rows,
        partial(_drawn, model, process, shape, classes, decode is None and shape[0] in IMAGE_CHANNELS),
    )
    if decode is None:
        return drawn
    decoded = DecodedDataset(images, drawn, decode, device_of(model))
    return LatentDataset(decoded, shape, rows)


def draw_samples(dataset: GeneratedDataset) -> None:
    """Draw the missing samples, each process a part."""
    dataset.rows.folder.mkdir(parents=True, exist_ok=True)
    dataset.rows.fill(dataset.draw, "samples of the dense model")


@dataclass(frozen=True)
class DecodedDataset:
    """The images of generated latents, decoded on access."""

    shape: Shape
    latents: GeneratedDataset
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    device: torch.device

    name = WORD
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.latents.class_names

    @property
    def labels(self) -> Tensor | None:
        return self.latents.labels

    @property
    def fingerprint(self) -> str:
        return self.latents.fingerprint

    def __len__(self) -> int:
        return len(self.latents)

    @torch.no_grad()
    def batch(self, indices: Sequence[int]) -> Batch:
        drawn = self.latents.batch(indices)
        parts = [self.decode(part.to(self.device)).cpu() for part in drawn.sample.split(AT_ONCE)]
        return Batch(torch.cat(parts).clamp(-1, 1), drawn.conditions)


def _drawn(
    model: nn.Module, process: Process, shape: Shape, classes: int | None, clamped: bool, numbers: range
) -> Chunk:
    device = device_of(model)
    labels = None if classes is None else torch.arange(numbers.start, numbers.stop) % classes
    conditions = labelled(labels, torch.arange(len(numbers))) if labels is not None else UNCONDITIONAL
    steps = usual_steps(process, STEPS)
    with inference(model):
        noise = initial_noise(numbers, shape, SEED).to(device)
        on_device = {name: value.to(device) for name, value in conditions.items()}
        samples = generate(model, process, noise, on_device, num_inference_steps=steps)
    if not samples.isfinite().all():
        raise DataError("the model draws samples that are not finite: check weights and scheduler, or give images")
    return {LATENTS: (samples.clamp(-1, 1) if clamped else samples).float()}
