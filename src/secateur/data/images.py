"""Encoded images as tensors: what folders of files and tables of bytes have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..base.errors import DataError
from .arrays import check_channels

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
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

File: TypeAlias = Path | IO[bytes]
Header: TypeAlias = tuple[int, int, int]  # channels (1 or 3), height, width
Result = TypeVar("Result")


def in_threads(function: Callable[..., Result], *arguments: Iterable[object]) -> list[Result]:
    """As `list(map(function, *arguments))`, by a few threads; Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, *arguments))


def read_header(file: File) -> Header | None:
    """What an image's header says; None if it cannot be read."""
    try:
        with Image.open(file, formats=tuple(FORMATS)) as image:
            if image.mode == "F":  # floats have no agreed range
                return None
            grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
            return (1 if grey else 3), image.height, image.width
    except UNREADABLE:
        return None


def shape_for(
    where: str | Path, headers: Sequence[Header | None], name_of: Callable[[int], str], shape: Header | None
) -> Header:
    """`shape`, or if it is None that of the images: the most channels of any, and the size of the first.

    Raises:
        DataError: an image cannot be read, or the channels do not fit `shape`.
    """
    native = [header for header in headers if header is not None]
    if len(native) < len(headers):
        bad = [name_of(index) for index, header in enumerate(headers) if header is None]
        first = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise DataError(f"{len(bad)} of {len(headers)} images cannot be read: {first}; repair or remove them")
    channels = max(found for found, _, _ in native)
    shape = shape or (channels, *native[0][1:])
    check_channels(where, channels, shape)
    return shape


def decode(file: File, name: str, shape: Header) -> Tensor:
    """One image (C, H, W) in [-1, 1], upright by its EXIF tag, transparency laid on white."""
    try:
        with Image.open(file, formats=tuple(FORMATS)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be decoded: {error}; repair or remove it") from error
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
