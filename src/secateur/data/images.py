"""Reading encoded images into tensors, from files or bytes."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..base.errors import DataError, first_line
from ..base.files import require_regular
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
SKIPPED_SHOWN = 3  # names of one kind shown in a message
WORKERS = min(8, os.cpu_count() or 1)
MOST_PIXELS = 89_478_485  # from here on Pillow warns of decompression bombs
PIXELS_AT_ONCE = 4_000_000  # larger images are decoded one at a time, and flattened in strips of this size
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B")
COLOURED = ("P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
DEEPEST = 65535  # white of 16 bits
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF

File: TypeAlias = Path | IO[bytes]
Header: TypeAlias = tuple[int, int, int]  # channels (1 or 3), height, width
Result = TypeVar("Result")

_large = threading.Lock()


def in_threads(function: Callable[..., Result], *arguments: Iterable[object]) -> list[Result]:
    """As `list(map(function, *arguments))`, by a few threads; Pillow releases the interpreter's lock while it
    decodes."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, *arguments))


def read_header(file: File) -> Header | str:
    """The header of an image, or why the image cannot be used."""
    try:
        with _opened(file) as image:
            if (reason := _unusable(image)) is not None:
                return reason
            return (1 if image.mode in GREY else 3), image.height, image.width
    except UNREADABLE as error:
        return "no image" if isinstance(error, UnidentifiedImageError) else first_line(error)


def _opened(file: File) -> Image.Image:
    """Open an image and read its header.

    Raises:
        OSError, ValueError, SyntaxError: it cannot be read, or is a pipe or a device.
    """
    if isinstance(file, Path):
        require_regular(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # said by `_unusable`
        return Image.open(file, formats=tuple(FORMATS))


def _unusable(image: Image.Image) -> str | None:
    """Why an image cannot be used: values without an agreed range, or too many pixels; None if it can."""
    if image.width * image.height > MOST_PIXELS:
        return f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}"
    if image.mode not in GREY + COLOURED:  # of floats, for one: they have no agreed range
        return f"its mode {image.mode} has no agreed range"
    if image.format == "TIFF" and image.mode.startswith("I"):
        tags = image.tag_v2  # type: ignore[attr-defined]
        if (tags.get(BITS), tags.get(SAMPLE_FORMAT, (1,)), tags.get(PHOTOMETRIC)) != ((16,), (1,), 1):
            return "its values are not grey levels from 0 to 65535; save it with 8 or 16 bits"
    return None


def shape_for(
    where: str | Path, headers: Sequence[Header | str], name_of: Callable[[int], str], shape: Header | None
) -> Header:
    """`shape`, or if it is None that of the images: the most channels of any, and the size of the first.

    Raises:
        DataError: an image cannot be used, or the channels do not fit `shape`.
    """
    native = [header for header in headers if not isinstance(header, str)]
    if len(native) < len(headers):
        bad = [f"{name_of(index)} ({header})" for index, header in enumerate(headers) if isinstance(header, str)]
        first = ", ".join(bad[:SKIPPED_SHOWN]) + (", ..." if len(bad) > SKIPPED_SHOWN else "")
        raise DataError(f"{len(bad)} of {len(headers)} images cannot be read: {first}; repair or remove them")
    channels = max(found for found, _, _ in native)
    shape = shape or (channels, *native[0][1:])
    check_channels(where, channels, shape)
    return shape


def decode(file: File, name: str, shape: Header) -> Tensor:
    """One image (C, H, W) in [-1, 1], rotated by its EXIF tag, transparency over white."""
    try:
        with _opened(file) as image, _large if image.width * image.height > PIXELS_AT_ONCE else nullcontext():
            if (reason := _unusable(image)) is not None:  # it may have been replaced since its header was read
                raise ValueError(reason)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return fitted(image, shape)
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be decoded: {first_line(error)}; repair or remove it") from error


def fitted(image: Image.Image, shape: Header) -> Tensor:
    """A loaded image as (C, H, W) in [-1, 1]: cropped at the centre, resized, transparency over white."""
    deep = image.mode.startswith("I")
    picture = _levels(image) if deep else _flat(image, "L" if shape[0] == 1 else "RGB")
    if picture.size != (shape[2], shape[1]):
        picture = ImageOps.fit(picture, (shape[2], shape[1]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).float()
    if deep:
        return (pixels.clamp(0, DEEPEST) / DEEPEST * 2 - 1).expand(shape[0], -1, -1)
    return (pixels.unsqueeze(0) if shape[0] == 1 else pixels.permute(2, 0, 1)) / 127.5 - 1


def _levels(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits as floats: Pillow has no smaller type that it resizes without clipping."""
    return Image.fromarray(np.asarray(image, np.float32).clip(0, DEEPEST))


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """The image with eight bits a channel and no transparency; a large one in strips, which take little memory."""
    rows = max(1, PIXELS_AT_ONCE // image.width)
    if image.height <= rows:
        return _opaque(image).convert(mode)
    flat = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(_opaque(strip).convert(mode), (0, top))
    return flat


def _opaque(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image
