"""Images in memory: an `.npz` with `images`, or the embedded `digits` and `fashion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import DataError
from ..base.fingerprint import fingerprint, tensors_fingerprint
from ..base.npz import read_arrays
from ..base.units import number_of
from ..models.conditions import UNCONDITIONAL
from .classes import MOST_CLASSES, numbered
from .dataset import Batch, labelled

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to L


@dataclass(frozen=True)
class ArrayDataset:
    """Images in memory, (N, C, H, W): uint8, or float in [0, 1]."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images: Tensor
    labels: Tensor | None
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the images and their labels."""
        tensors = {"images": self.images} | ({} if self.labels is None else {"labels": self.labels})
        return fingerprint([self.shape, self.class_names, tensors_fingerprint(tensors)])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if self.images.shape[1:] == self.shape:
            images = _as_fractions(self.images[chosen])
        else:  # one at a time: they may be much larger than the result
            images = torch.cat([self._fitted(self.images[index : index + 1]) for index in indices])
        return Batch(images * 2 - 1, labelled(self.labels, chosen))

    def _fitted(self, images: Tensor) -> Tensor:
        return _fit(_match_channels(_as_fractions(images), self.shape[0]), self.shape[1:])


def _as_fractions(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _match_channels(images_BCHW: Tensor, channels: int) -> Tensor:
    if images_BCHW.shape[1] == channels:
        return images_BCHW
    if channels == 3:
        return images_BCHW.expand(-1, 3, -1, -1)
    return (images_BCHW * images_BCHW.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _fit(images_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop at the centre to the aspect ratio of `size` (H, W), then resize with antialiasing."""
    height, width = images_BCHW.shape[2:]
    if (height, width) == size:
        return images_BCHW
    scale = min(height / size[0], width / size[1])
    crop = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    images_BCHW = images_BCHW[:, :, top : top + crop[0], left : left + crop[1]]
    return F.interpolate(images_BCHW, size, mode="bicubic", antialias=True).clamp(0, 1)


def check_channels(where: str | Path, found: int, shape: tuple[int, int, int]) -> None:
    if found != shape[0] and {found, shape[0]} != {1, 3}:
        hint = "give other data, or the whole pipeline of a latent model"
        raise DataError(f"{where} has {found}-channel images, the model takes {number_of(shape[0], 'channel')}: {hint}")


def open_digits(shape: tuple[int, int, int] | None) -> ArrayDataset:
    """The 1797 handwritten digits of scikit-learn, 8 x 8."""
    from sklearn.datasets import load_digits  # a slow import, needed for this data set only

    data = load_digits()
    shape = shape or (1, 8, 8)
    check_channels("digits", 1, shape)
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    return ArrayDataset("digits", shape, numbered(10), images, labels)


def open_fashion(shape: tuple[int, int, int] | None) -> ArrayDataset:
    """10,000 images of clothes, 16 x 16, a thousand of each of ten classes (Fashion-MNIST, Xiao et al. 2017)."""
    return open_npz(Path(str(files("secateur"))) / "assets" / "fashion-mnist" / "fashion.npz", shape)


def open_npz(path: Path, shape: tuple[int, int, int] | None) -> ArrayDataset:
    arrays = read_arrays(path, ("images", "labels", "names"))
    if "images" not in arrays:
        raise DataError(f"{path} holds no array `images`; save one with numpy.savez(path, images=..., labels=...)")
    images = _npz_images(path, arrays["images"])
    shape = shape or (images.shape[1], images.shape[2], images.shape[3])
    check_channels(path, images.shape[1], shape)
    if "labels" not in arrays:
        return ArrayDataset(path.stem, shape, (), images, None)
    labels = _npz_labels(path, arrays["labels"], len(images))
    classes = int(labels.max()) + 1
    names = tuple(map(str, arrays["names"].ravel())) if "names" in arrays else numbered(classes)
    if len(names) < classes:
        raise DataError(f"{path} has {len(names)} `names` for {number_of(classes, 'class')}; give one name per class")
    return ArrayDataset(path.stem, shape, names, images, labels)


def _npz_images(path: Path, array: np.ndarray) -> Tensor:
    if array.ndim not in (3, 4) or array.size == 0:
        raise DataError(f"{path}: `images` has shape {array.shape}; give (N, H, W) or (N, H, W, C), not empty")
    if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise DataError(f"{path}: `images` is {array.dtype}; give uint8, uint16, or floats in [0, 1]")
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise DataError(f"{path}: `images` is float but not all in [0, 1]; rescale, or save as uint8")
    images = torch.from_numpy(array)
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)


def _npz_labels(path: Path, array: np.ndarray, count: int) -> Tensor:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise DataError(f"{path}: `labels` is {array.dtype} {array.shape}; give one integer for each of {count} images")
    if array.min() < 0 or array.max() >= MOST_CLASSES:
        raise DataError(f"{path}: `labels` run from {array.min()} to {array.max()}; give class indices from 0")
    return torch.from_numpy(array.astype(np.int64))
