"""Data as objects in memory: tensors, sequences, data sets and loaders of torch, tables of `datasets`.

Floating-point samples are passed to the network as they are; uint8 are pixels from 0 to 255, uint16 from 0 to 65535. Of
a loader, the data set, or the subset of it that a `SubsetRandomSampler` names, and the `collate_fn` are used, since the
order of samples is drawn here; one without a length is read once, into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data import Dataset as TorchDataset

from ..base.console import say
from ..base.errors import DataError
from ..base.seeds import seeded
from ..models.conditions import LABELS, UNCONDITIONAL
from ..models.family import Shape
from .dataset import Batch, ImageDataset

SAMPLES = ("images", "pixel_values", "latents", "sample", "hidden_states")  # keys of the samples in a dictionary
LABEL_NAMES = ("labels", "label", LABELS)
CAPTION_NAMES = ("captions", "caption", "text", "prompt")
AT_ONCE = 256  # samples read together where only their labels are kept
FINGERPRINTED = 64  # number of evenly spaced samples in the fingerprint
ACCEPTED = (
    "a path, a tensor, a sequence or loader of tensors, of (images, labels) or of dictionaries, a datasets.Dataset, or "
    "a data set of secateur"
)

Read = Callable[[Sequence[int]], Any]


@dataclass(frozen=True)
class ObjectDataset:
    """Samples read by index with `read`, and converted to batches with `converted`.

    Attributes:
        read: list of indices -> raw batch, as a user's loader collates it.
        converted: raw batch -> samples with their conditions.
    """

    name: str
    shape: Shape
    class_names: tuple[str, ...]
    count: int
    read: Read
    converted: Callable[[Any], Batch]
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.converted(self.read(list(indices)))

    @cached_property
    def labels(self) -> Tensor | None:
        """(N,) int64, or None; reads everything once, a part at a time."""
        if self.batch([0]).class_labels is None:
            return None
        parts = [self.batch(part.tolist()).class_labels for part in torch.arange(self.count).split(AT_ONCE)]
        return torch.cat([labels for labels in parts if labels is not None])

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of `FINGERPRINTED` evenly spaced samples and of their number, the same for every seed of the
        random generators."""
        return self._digest(seed=0)

    @cached_property
    def is_random(self) -> bool:
        """Whether a sample may change from one read to the next, as under random augmentation."""
        return self._digest(seed=1) != self.fingerprint

    def _digest(self, seed: int) -> str:
        places = torch.linspace(0, self.count - 1, min(FINGERPRINTED, self.count)).long().unique().tolist()
        with seeded(seed):
            batch = self.batch(places)
        digest = hashlib.sha256(str((self.count, self.shape)).encode())
        for tensor in (batch.sample, *batch.conditions.values()):
            digest.update(tensor.detach().cpu().double().numpy().tobytes())
        return digest.hexdigest()[:16]


def is_random(dataset: ImageDataset | None) -> bool:
    """Whether a sample of the data may change from one read to the next."""
    return isinstance(dataset, ObjectDataset) and dataset.is_random


def open_objects(data: Any, of_batches: bool = False, axes: int = 3) -> tuple[Read, int]:
    """A function that reads raw batches of `data`, and the number of samples.

    A sequence may hold single samples, which have `axes` axes, or batches; `of_batches` says that it holds batches.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    read, count = _reader(data, of_batches, axes)
    if count == 0:
        raise DataError("the data is empty; give at least one sample")
    return read, count


def _reader(data: Any, of_batches: bool, axes: int) -> tuple[Read, int]:
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    if isinstance(data, Tensor):
        return lambda indices: data[torch.as_tensor(indices)], len(data)
    if _is_pair(data, axes):
        return _reader(TensorDataset(*map(torch.as_tensor, data)), of_batches, axes)
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            return _in_memory(list(data))
        collate = data.collate_fn if data.batch_sampler is not None else default_collate  # else for single samples
        samples = _sampled(data)
        return partial(_collated, samples, collate), len(samples)
    if isinstance(data, TorchDataset) or (hasattr(data, "__getitem__") and hasattr(data, "features")):
        if not hasattr(data, "__len__"):
            raise DataError("a data set without a length cannot be read by index; wrap it in a DataLoader")
        return partial(_collated, data, default_collate), len(data)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if not data:
            raise DataError("the data is empty; give at least one sample")
        if of_batches or (_rows(data[0]) is not None and not _is_sample(data[0], axes)):
            return _in_memory(list(data))
        return partial(_collated, data, default_collate), len(data)
    raise DataError(f"data is a {type(data).__name__}; give {ACCEPTED}")


def _is_pair(data: Any, axes: int) -> bool:
    """Whether it is all samples and all labels, rather than a sequence of two batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    if not all(isinstance(part, np.ndarray | Tensor) for part in data):
        return False
    samples, labels = data
    return samples.ndim == axes + 1 and labels.ndim == 1 and len(samples) == len(labels)


def _sampled(loader: DataLoader[Any]) -> Any:
    """The loader's data set, or the part of it from which its sampler draws.

    Raises:
        DataError: its sampler draws in another way than in order, shuffled, from a subset, or by processes.
    """
    sampler = loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, sorted(map(int, sampler.indices)))
    if not isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        raise DataError(
            f"the loader draws its samples by {type(sampler).__name__}, and here they are drawn anew, each as often: "
            "give the data set, or a torch.utils.data.Subset of it"
        )
    return loader.dataset


def _collated(items: Any, collate: Callable[[list[Any]], Any], indices: Sequence[int]) -> Any:
    return _stacked([items[index] for index in indices], collate)


def _stacked(samples: list[Any], collate: Callable[[list[Any]], Any] = default_collate) -> Any:
    """One batch of the samples.

    Raises:
        DataError: a tensor has another shape in one than in another.
    """
    try:
        return collate(samples)
    except RuntimeError as error:
        shapes = _unequal_shapes(samples)
        if not shapes:
            raise
        raise DataError(f"{shapes}; give one shape, such as texts padded to one length beside their mask") from error


def _unequal_shapes(samples: list[Any]) -> str:
    """Which tensor of the samples differs in shape, and how; empty if none does."""
    named = [each if isinstance(each, Mapping) else {"the data": _sample_of(each)} for each in samples]
    for name in named[0]:
        shapes = {tuple(np.shape(each[name])) for each in named}
        if len(shapes) > 1:
            return f"{name} has samples of shapes {' and '.join(map(str, sorted(shapes)[:2]))}"
    return ""


def _is_sample(item: Any, axes: int) -> bool:
    """Whether one item of a sequence is a single image (C, H, W), or a clip, alone, with its label or in a
    dictionary."""
    first = _sample_of(item)
    return isinstance(first, Tensor) and first.ndim == axes


def _sample_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        return next((item[name] for name in SAMPLES if name in item), next(iter(item.values()), None))
    return item[0] if isinstance(item, Sequence) and item else item


def _rows(item: Any) -> int | None:
    first = _sample_of(item)
    return len(first) if isinstance(first, Tensor) and first.ndim > 0 else None


def _in_memory(batches: list[Any]) -> tuple[Read, int]:
    """Batches in memory, from which single samples are read."""
    counts = [_rows(batch) for batch in batches]
    if any(count is None for count in counts):
        raise DataError("a batch of the data holds no tensor; give tensors, samples along their first axis")
    places = [(number, row) for number, count in enumerate(counts) for row in range(count or 0)]

    def read(indices: Sequence[int]) -> Any:
        return _stacked([_row(batches[places[index][0]], places[index][1]) for index in indices])

    return read, len(places)


def _row(batch: Any, row: int) -> Any:
    if isinstance(batch, Mapping):
        return {name: _row(value, row) for name, value in batch.items()}
    if isinstance(batch, tuple | list) and not isinstance(batch[0], str):
        return tuple(_row(value, row) for value in batch)
    return batch[row]


def as_batch(raw: Any, parameters: frozenset[str], classes: int | None = None) -> Batch:
    """Convert a raw batch to samples and conditions; `parameters` are the argument names of the network's `forward`,
    and `classes` is the number of its classes, if labels must be among them.

    Raises:
        DataError: it contains no samples, or a label is out of range.
    """
    batch = _as_batch(raw, parameters)
    if classes is not None and batch.class_labels is not None:
        low, high = batch.class_labels.min().item(), batch.class_labels.max().item()
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise DataError(
                f"the data has the label {wrong}, the model knows 0 to {classes - 1}; give data of its classes"
            )
    return batch


def _as_batch(raw: Any, parameters: frozenset[str]) -> Batch:
    if isinstance(raw, Tensor):
        return Batch(_pixels(raw))
    if isinstance(raw, Mapping):
        return _from_mapping(raw, parameters)
    if isinstance(raw, tuple | list) and len(raw) in (1, 2) and isinstance(raw[0], Tensor):
        labels = {} if len(raw) == 1 else {LABELS: torch.as_tensor(raw[1]).long()}
        return Batch(_pixels(raw[0]), labels)
    raise DataError(f"a batch of the data is a {type(raw).__name__}; give tensors, (images, labels) or dictionaries")


def captions_of(raw: Any) -> list[str] | None:
    """The captions of a raw batch; None where it has none."""
    found = next((raw[name] for name in CAPTION_NAMES if name in raw), None) if isinstance(raw, Mapping) else None
    return None if found is None else list(found)


def _from_mapping(raw: Mapping[str, Any], parameters: frozenset[str]) -> Batch:
    name = next((name for name in SAMPLES if name in raw), None)
    if name is None:
        raise DataError(
            f"a batch of the data has {', '.join(map(str, raw))}; name the samples {', '.join(SAMPLES[:3])}"
        )
    labels = next((torch.as_tensor(raw[key]).long() for key in LABEL_NAMES if key in raw), None)
    conditions = {} if labels is None else {LABELS: labels}
    for key, value in raw.items():
        if key == name or key in LABEL_NAMES or key in CAPTION_NAMES:
            continue
        if key.partition(".")[0] not in parameters or key == "timestep":
            say(f"data       {key} is no argument of the network: it is not used")
        elif isinstance(value, Mapping):
            conditions |= {f"{key}.{inner}": torch.as_tensor(each) for inner, each in value.items()}
        else:
            conditions[key] = torch.as_tensor(value)
    return Batch(_pixels(torch.as_tensor(raw[name])), conditions)


def _pixels(samples: Tensor) -> Tensor:
    """Convert levels of 8 or 16 bits to [-1, 1]; floating-point numbers are unchanged.

    Raises:
        DataError: they are other integers.
    """
    most = {torch.uint8: 255, torch.uint16: 65535}.get(samples.dtype)
    if most is None and not samples.is_floating_point():
        raise DataError(
            f"samples are {str(samples.dtype).removeprefix('torch.')}; give uint8 (0 to 255), uint16, or floats in the "
            "range that the network was trained on"
        )
    return samples.float() if most is None else samples.float() / most * 2 - 1
