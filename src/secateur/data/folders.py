"""Image files below a folder: sub-folders are classes, and `metadata.jsonl` may hold captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import DataError
from ..base.fingerprint import files_fingerprint, fingerprint
from ..models.conditions import UNCONDITIONAL
from .captions import read_captions
from .classes import classes_of, numbered
from .dataset import Batch, labelled
from .images import SUFFIXES, decode, in_threads, read_header, shape_for


@dataclass(frozen=True)
class FolderDataset:
    """Image files, decoded on access by a few threads."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Tensor | None
    fingerprint: str
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int]) -> Batch:
        images = in_threads(lambda index: decode(self.paths[index], str(self.paths[index]), self.shape), indices)
        return Batch(torch.stack(images), labelled(self.labels, torch.as_tensor(indices, dtype=torch.int64)))


def open_folder(folder: Path, paths: Sequence[Path], shape: tuple[int, int, int] | None) -> FolderDataset:
    """The images at `paths`, all below `folder`."""
    if not paths:
        raise DataError(
            f"{folder} holds no images; put {', '.join(SUFFIXES)} files in it, or in one sub-folder per class"
        )
    shape = shape_for(folder, in_threads(read_header, paths), lambda index: str(paths[index]), shape)
    names, labels = _classes([path.relative_to(folder).parts for path in paths])
    if names:
        _check_classes(folder, names)
    about = fingerprint([files_fingerprint(paths, folder), shape])
    return FolderDataset(folder.name, shape, names, tuple(paths), labels, about, read_captions(folder, paths))


def _classes(places: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], Tensor | None]:
    """Names and labels by the first folder of each place; none if an image is outside of all sub-folders."""
    if any(len(parts) == 1 for parts in places):
        return (), None
    return classes_of([parts[0] for parts in places])


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """Refuse a sub-folder without images if labels follow the order of names: the labels after it would shift.

    Raises:
        DataError: naming the sub-folder.
    """
    folders = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    without = sorted(set(folders) - set(names))
    if without and set(names) != set(numbered(len(names))):
        known = ", ".join(SUFFIXES)
        raise DataError(
            f"{folder / without[0]} holds no image of a known suffix ({known}), so the classes after it would get "
            "other labels; convert its images, or remove it"
        )


def visible_files(folder: Path) -> tuple[Path, ...]:
    """Every visible file below `folder`, sorted; links are followed, but each folder is read once."""
    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        links = {name: os.path.realpath(os.path.join(root, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, real in links.items() if real not in seen)
        seen.update(links.values())
        found += [Path(root, name) for name in files if name[0] != "."]
    return tuple(sorted(found))
