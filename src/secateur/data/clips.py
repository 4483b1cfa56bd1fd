"""Clips below a folder: sub-folders of frames, or video files; `metadata.jsonl` may hold captions.

A line of it is `{"file_name": ..., "text": ...}` for each clip, by the name of its folder or file.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..base.errors import DataError, first_line
from ..base.fingerprint import files_fingerprint, fingerprint
from ..base.units import number_of
from ..models.conditions import UNCONDITIONAL
from ..models.family import Shape
from .captions import read_captions
from .dataset import Batch
from .images import SUFFIXES, decode, fitted, in_threads

NUMBERED = re.compile(r"(\D*)(\d*)")  # a text and the number behind it
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi")


@dataclass(frozen=True)
class ClipDataset:
    """Clips (C, T, H, W), decoded on access: the middle T frames of each."""

    name: str
    shape: Shape
    paths: tuple[Path, ...]
    fingerprint: str
    captions: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    labels: Tensor | None = None
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch(torch.stack([read_clip(self.paths[index], self.shape) for index in indices]))


def open_clips(folder: Path, shape: Shape) -> ClipDataset:
    """The clips directly below `folder`, for a model of clips (C, T, H, W).

    Raises:
        DataError: there are none, one has fewer frames than the model takes, or video files cannot be read here.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = tuple(path for path in entries if path.suffix.lower() in VIDEOS or (path.is_dir() and _frames_of(path)))
    if not paths:
        raise DataError(
            f"{folder} holds no clips; put folders of frames in it ({', '.join(SUFFIXES[:3])} ...), or video files "
            f"({', '.join(VIDEOS)})"
        )
    if any(path.is_file() for path in paths) and importlib.util.find_spec("av") is None:
        raise DataError(f"{folder} holds video files, which need av: pip install 'secateur[video]'; or give frames")
    for path in filter(Path.is_dir, paths):
        _middle(path, len(_frames_of(path)), shape)
    files = [file for path in paths for file in (_frames_of(path) if path.is_dir() else [path])]
    about = fingerprint([files_fingerprint(files, folder), shape])
    return ClipDataset(folder.name, shape, paths, about, read_captions(folder, paths))


def read_clip(path: Path, shape: Shape) -> Tensor:
    """The middle frames of the clip at `path`, (C, T, H, W) in [-1, 1], cropped and resized like images.

    Raises:
        DataError: it has too few frames, or one cannot be read.
    """
    channels, _, height, width = shape
    size = (channels, height, width)
    if path.is_dir():
        files = _frames_of(path)
        chosen = [files[index] for index in _middle(path, len(files), shape)]
        return torch.stack(in_threads(lambda file: decode(file, str(file), size), chosen), dim=1)
    images = list(_decoded(path))
    return torch.stack([fitted(images[index], size) for index in _middle(path, len(images), shape)], dim=1)


def _frames_of(folder: Path) -> list[Path]:
    """The frames in the order of their names, numbers by value: 9.png comes before 10.png."""
    frames = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    return sorted(frames, key=lambda path: [(text, int(digits or 0)) for text, digits in NUMBERED.findall(path.name)])


def _middle(path: Path, count: int, shape: Shape) -> range:
    wanted = shape[1]
    if count < wanted:
        frames = number_of(count, "frame")
        raise DataError(f"{path} has {frames}, the model takes {wanted}; give longer clips, or remove it")
    start = (count - wanted) // 2
    return range(start, start + wanted)


def _decoded(path: Path) -> Iterator[Image.Image]:
    import av

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be decoded: {first_line(error)}; repair or remove it") from error


def side_by_side(x: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) as images of their frames in a row, (B, C, H, T W); images as they are."""
    return x if x.ndim == 4 else x.transpose(2, 3).flatten(3)


def shape_side_by_side(shape: Shape) -> tuple[int, int, int]:
    """C, H, W of an image, or of the frames of a clip in a row."""
    channels, *frames, height, width = shape
    return channels, height, width * math.prod(frames)
