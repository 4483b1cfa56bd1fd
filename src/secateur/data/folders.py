"""Image files below a folder: sub-folders are classes, and `metadata.jsonl` may hold captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..conditions import UNCONDITIONAL
from ..errors import DataError
from .arrays import check_channels
from .captions import read_captions
from .dataset import Batch, labelled

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
WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class FolderDataset:
    """Image files, decoded when they are asked for, by a few threads."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Tensor | None
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int]) -> Batch:
        with ThreadPoolExecutor(WORKERS) as pool:
            images = list(pool.map(lambda index: _decode(self.paths[index], self.shape), indices))
        return Batch(torch.stack(images), labelled(self.labels, torch.as_tensor(indices, dtype=torch.int64)))


def open_folder(folder: Path, shape: tuple[int, int, int] | None) -> FolderDataset:
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
    check_channels(folder, max(channels for channels, _, _ in native), shape)
    captions = read_captions(folder, paths)
    parts = [path.relative_to(folder).parts for path in paths]
    if any(len(part) == 1 for part in parts):  # images outside sub-folders belong to no class
        return FolderDataset(folder.name, shape, (), paths, None, captions)
    names = tuple(sorted({part[0] for part in parts}))
    index = {name: label for label, name in enumerate(names)}
    return FolderDataset(folder.name, shape, names, paths, torch.tensor([index[part[0]] for part in parts]), captions)


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
