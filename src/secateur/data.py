"""Images as batches: an image folder (sub-folders are classes), an `.npz` with `images`, or `digits`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from .conditions import LABELS, UNCONDITIONAL, Conditions, moved
from .errors import DataError

ACCEPTED = "an image folder, an .npz file with `images` (and `labels`), or the word `digits`"
# Formats are named so that Pillow never hands a file to an external program (EPS).
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pnm"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to L
MOST_CLASSES = 1_000_000
WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1] or latents, (B, C, H, W) float32, and the conditions that belong to them."""

    sample: Tensor
    conditions: Conditions = field(default_factory=dict)

    @property
    def class_labels(self) -> Tensor | None:
        """(B,) int64, or None."""
        return self.conditions.get(LABELS)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.sample.to(device), moved(self.conditions, device))


class ImageDataset(Protocol):
    """A finite set of images of one shape, read by index."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of every image that `batch` returns."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class label; empty without labels."""
        ...

    @property
    def null(self) -> Conditions:
        """What stands for no condition, a row of each: an encoded empty prompt; empty without captions."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, in that order."""
        ...


def load_data(source: str | Path, shape: tuple[int, int, int] | None = None) -> ImageDataset:
    """Open images for a model that takes `shape` (C, H, W); by default the shape of the data.

    Images are cropped at the centre to the aspect ratio of `shape`, resized with antialiasing (bicubic), and
    turned grey or into RGB where the model takes 1 or 3 channels.

    Raises:
        DataError: nothing is there, an image cannot be read, or its channels do not fit `shape`.
    """
    path = Path(source)
    if source == "digits":
        return _digits(shape)
    if path.is_dir():
        return _open_folder(path, shape)
    if path.is_file() and path.suffix == ".npz":
        return _open_npz(path, shape)
    if path.is_file():
        raise DataError(f"{path} is not data that can be opened; give {ACCEPTED}")
    meant = difflib.get_close_matches(str(source).lower(), ["digits"])
    hint = "; did you mean `digits`?" if meant else ""
    raise DataError(f"{path} does not exist{hint}; give {ACCEPTED}")


def calibration_batch(dataset: ImageDataset, n: int, seed: int) -> Batch:
    """`n` images drawn without replacement, the same for the same seed; all of them if there are fewer."""
    return dataset.batch(calibration_order(dataset, seed)[:n].tolist())


def calibration_order(dataset: ImageDataset, seed: int) -> Tensor:
    """The indices of all images, shuffled, the same for the same seed."""
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))


def labelled(labels: Tensor | None, indices: Tensor) -> Conditions:
    """The class labels at `indices` as conditions, none where there are no `labels`."""
    return UNCONDITIONAL if labels is None else {LABELS: labels[indices]}


# ---------------------------------------------------------------------------------------------------- arrays


@dataclass(frozen=True)
class ArrayDataset:
    """Images in memory, (N, C, H, W): uint8, or float in [0, 1]."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images: Tensor
    labels: Tensor | None
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[chosen]
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        images = _fit(_match_channels(images, self.shape[0]), self.shape[1:])
        return Batch(images * 2 - 1, labelled(self.labels, chosen))


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


def _check_channels(where: str | Path, found: int, shape: tuple[int, int, int]) -> None:
    if found != shape[0] and {found, shape[0]} != {1, 3}:
        raise DataError(f"{where} has {found}-channel images, the model takes {shape[0]} channels: give other data")


def _digits(shape: tuple[int, int, int] | None) -> ArrayDataset:
    from sklearn.datasets import load_digits  # a slow import, needed for this data set only

    data = load_digits()
    shape = shape or (1, 8, 8)
    _check_channels("digits", 1, shape)
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    return ArrayDataset("digits", shape, tuple(str(digit) for digit in range(10)), images, labels)


def _open_npz(path: Path, shape: tuple[int, int, int] | None) -> ArrayDataset:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("images", "labels", "names") if key in archive}
    except Exception as error:  # a damaged or hostile archive can raise nearly anything: zip, zlib, header, memory
        raise DataError(f"{path} is not a readable .npz: {error}".replace("\n", " ")) from error
    if "images" not in arrays:
        raise DataError(f"{path} holds no array `images`; save one with numpy.savez(path, images=..., labels=...)")
    images = _npz_images(path, arrays["images"])
    shape = shape or (images.shape[1], images.shape[2], images.shape[3])
    _check_channels(path, images.shape[1], shape)
    if "labels" not in arrays:
        return ArrayDataset(path.stem, shape, (), images, None)
    labels = _npz_labels(path, arrays["labels"], len(images))
    classes = int(labels.max()) + 1
    names = tuple(str(name) for name in arrays.get("names", np.arange(classes)).ravel())
    if len(names) < classes:
        raise DataError(f"{path} has {len(names)} `names` for {classes} classes; give one name per class")
    return ArrayDataset(path.stem, shape, names, images, labels)


def _npz_images(path: Path, array: np.ndarray) -> Tensor:
    if array.ndim not in (3, 4) or array.size == 0:
        raise DataError(f"{path}: `images` has shape {array.shape}; give (N, H, W) or (N, H, W, C), not empty")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{path}: `images` is {array.dtype}; give uint8, or floats in [0, 1]")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
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


# ---------------------------------------------------------------------------------------------------- folders


@dataclass(frozen=True)
class FolderDataset:
    """Image files, decoded when they are asked for, by a few threads."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Tensor | None
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int]) -> Batch:
        with ThreadPoolExecutor(WORKERS) as pool:
            images = list(pool.map(lambda index: _decode(self.paths[index], self.shape), indices))
        return Batch(torch.stack(images), labelled(self.labels, torch.as_tensor(indices, dtype=torch.int64)))


def _open_folder(folder: Path, shape: tuple[int, int, int] | None) -> FolderDataset:
    paths = _image_files(folder)
    if not paths:
        raise DataError(
            f"{folder} holds no images; put {', '.join(SUFFIXES)} files in it, or in one sub-folder per class"
        )
    with ThreadPoolExecutor(WORKERS) as pool:
        headers = list(pool.map(_header, paths))
    unreadable = [str(path) for path, header in zip(paths, headers, strict=True) if header is None]
    if unreadable:
        first = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        raise DataError(f"{len(unreadable)} of {len(paths)} images cannot be read: {first}; repair or remove them")
    native = [header for header in headers if header is not None]
    if shape is None:
        shape = (max(channels for channels, _, _ in native), *native[0][1:])
    _check_channels(folder, max(channels for channels, _, _ in native), shape)
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(part) == 1 for part in parts):  # images outside sub-folders belong to no class
        return FolderDataset(folder.name, shape, (), paths, None)
    names = tuple(sorted({part[0] for part in parts}))
    index = {name: label for label, name in enumerate(names)}
    return FolderDataset(folder.name, shape, names, paths, torch.tensor([index[part[0]] for part in parts]))


def _image_files(folder: Path) -> tuple[Path, ...]:
    """Every visible image file below `folder`, sorted; links are followed, each folder is read once."""
    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        links = {name: os.path.realpath(os.path.join(root, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, real in links.items() if real not in seen)
        seen.update(links.values())
        found += [Path(root, name) for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return tuple(sorted(found))


def _header(path: Path) -> tuple[int, int, int] | None:
    """Channels (1 or 3), height and width by the file's header; None if it cannot be read."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            if image.mode == "F":  # floats have no agreed range
                return None
            grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
            return (1 if grey else 3), image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _decode(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """One image (C, H, W) in [-1, 1], upright by its EXIF tag, transparency laid on white."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded: {error}; repair or remove it") from error
    picture = _opaque(upright).convert("L" if shape[0] == 1 else "RGB")
    if picture.size != (shape[2], shape[1]):
        picture = ImageOps.fit(picture, (shape[2], shape[1]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).float() / 127.5 - 1
    return pixels.unsqueeze(0) if shape[0] == 1 else pixels.permute(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """Eight bits a channel, without transparency."""
    if image.mode.startswith("I"):  # Pillow's own conversion of 16 bits clips
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image
