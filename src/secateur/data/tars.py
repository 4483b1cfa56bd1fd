"""WebDataset shards: tar files whose members with one name make a sample, `000.jpg`, `000.cls`, `000.txt`.

Members are indexed once, when the data is opened, and read in place, so that images can be read in any order, and a
batch is the same for every number of processes. Named `webdataset:PLACE[,corrupt=skip]`; PLACE is a tar file, a folder
of them, or a name with braces, `train-{000..099}.tar`.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ..base.console import note
from ..base.errors import DataError, first_line
from ..base.fingerprint import files_fingerprint, fingerprint
from ..base.units import number_of
from ..models.conditions import UNCONDITIONAL
from .classes import classes_of
from .dataset import Batch, labelled
from .images import SUFFIXES, decode, in_threads, read_header, shape_for

PREFIX, SUFFIX, SKIP = "webdataset:", ".tar", ",corrupt=skip"
LABEL, CAPTION, RECORD = ".cls", ".txt", ".json"
CAPTIONS = ("caption", "text", "prompt")  # keys in a record
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Member:
    """The position of a file's bytes: tar, offset and size."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class _Window(io.RawIOBase):
    """The bytes of a member as a file object, read on access."""

    def __init__(self, member: Member) -> None:
        self.member, self.at = member, 0
        self.file = member.tar.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.member.size}[whence]
        self.at = max(0, start + offset)
        return self.at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        left = max(0, min(len(buffer), self.member.size - self.at))
        self.file.seek(self.member.offset + self.at)
        found = self.file.read(left)
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)

    def close(self) -> None:
        self.file.close()
        super().close()


@dataclass
class Sample:
    """The members of one name."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def image(self) -> Member | None:
        return next((member for suffix, member in self.members.items() if suffix in SUFFIXES), None)


@dataclass(frozen=True)
class TarDataset:
    """Images in tar files, decoded on access by a few threads."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images: tuple[Member, ...]
    keys: tuple[str, ...]
    labels: Tensor | None
    fingerprint: str
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        files = [io.BytesIO(self.images[index].read()) for index in chosen]
        names = [f"{self.keys[index]} of {self.images[index].tar}" for index in chosen]
        images = in_threads(decode, files, names, [self.shape] * len(chosen))
        return Batch(torch.stack(images), labelled(self.labels, torch.as_tensor(chosen, dtype=torch.int64)))


def open_tars(named: str, shape: tuple[int, int, int] | None) -> TarDataset:
    """Open the shards that `named` spells, for images of `shape`.

    Raises:
        DataError: there are no shards, a shard or an image is damaged (unless these are skipped), or a sample lacks its
            label or caption.
    """
    place, skips = named.removeprefix(PREFIX).removesuffix(SKIP), named.endswith(SKIP)
    paths = _shards(place)
    samples = [sample for path in paths for sample in _samples(path, skips) if sample.image is not None]
    headers = in_threads(_header, samples)
    if skips and (bad := [sample for sample, found in zip(samples, headers, strict=True) if isinstance(found, str)]):
        some = f"{len(bad)} of {number_of(len(samples), 'image')}"
        note(f"{place}: {some} left out, which cannot be read, {bad[0].key} first")
        readable = [(one, found) for one, found in zip(samples, headers, strict=True) if not isinstance(found, str)]
        samples, headers = [one for one, _ in readable], [found for _, found in readable]
    if not samples:
        raise DataError(f"{place} holds no images; give tar files with members such as 000.jpg and 000.cls")
    shape = shape_for(place, headers, lambda index: f"{samples[index].key} of {_tar(samples[index])}", shape)
    labels = _texts(place, samples, LABEL)
    names, numbers = classes_of(labels) if labels else ((), None)
    images = tuple(sample.image for sample in samples if sample.image is not None)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    places = [(str(image.tar.relative_to(root)), image.offset) for image in images]
    about = fingerprint([files_fingerprint(paths, root), places, shape])
    keys, captions = tuple(sample.key for sample in samples), _captions(place, samples)
    return TarDataset(Path(place).stem, shape, names, images, keys, numbers, about, captions)


def _shards(place: str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        found = sorted(each for each in path.rglob(f"*{SUFFIX}") if not each.name.startswith("."))
    else:
        found = [Path(each) for each in expanded(place)]
    missing = [each for each in found if not each.is_file()]
    if missing or not found:
        raise DataError(f"{missing[0] if missing else place} is no tar file; give {PREFIX}PLACE, a file or a folder")
    return found


def expanded(place: str) -> list[str]:
    """Expand braces in a name: a{00..02}.tar is a00.tar, a01.tar and a02.tar."""
    pieces = BRACES.split(place)
    fixed, starts, ends = pieces[::3], pieces[1::3], pieces[2::3]
    ranges = [
        [str(number).zfill(len(start)) for number in range(int(start), int(end) + 1)]
        for start, end in zip(starts, ends, strict=True)
    ]
    return ["".join(part for pair in zip(fixed, (*chosen, "")) for part in pair) for chosen in product(*ranges)]  # noqa: B905


def _samples(path: Path, skips: bool) -> Iterator[Sample]:
    """The samples of a shard; none if it is damaged and such shards are skipped."""
    try:
        found = _read(path)
    except (tarfile.TarError, OSError, ValueError) as error:
        if not skips:
            raise DataError(
                f"{path} is damaged: {first_line(error)}; repair or remove it, or leave it out by {SKIP[1:]}"
            ) from error
        note(f"{path} is damaged and left out: {first_line(error)}")
        return
    yield from found


def _read(path: Path) -> list[Sample]:
    """
    Raises:
        ValueError: the file ends too early.
    """
    size, samples = path.stat().st_size, dict[str, Sample]()
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            if not info.isfile():
                continue
            folder, _, name = info.name.rpartition("/")
            stem, dot, rest = name.partition(".")
            if info.offset_data + info.size > size:
                raise ValueError(f"it ends within {info.name}")
            if not stem:  # hidden files, which some archivers add
                continue
            sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), Sample(f"{folder}/{stem}".lstrip("/")))
            sample.members[f"{dot}{rest}".lower()] = Member(path, info.offset_data, info.size)
    with path.open("rb") as file:  # tarfile may stop too early, at a damaged header
        file.seek(max(0, size - tarfile.BLOCKSIZE))
        if file.read().strip(b"\0"):
            raise ValueError("it has no end of an archive")
    return list(samples.values())


def _header(sample: Sample) -> tuple[int, int, int] | str:
    assert sample.image is not None
    with cast(IO[bytes], io.BufferedReader(cast(Any, _Window(sample.image)))) as file:
        return read_header(file)


def _tar(sample: Sample) -> Path:
    return next(iter(sample.members.values())).tar


def _texts(place: str, samples: Sequence[Sample], suffix: str) -> list[str]:
    """The texts of the members with a suffix; empty if no sample has one."""
    without = [sample.key for sample in samples if suffix not in sample.members]
    if len(without) == len(samples):
        return []
    if without:
        raise DataError(f"{place} has no {suffix} for {len(without)} of {len(samples)} samples, {without[0]} first")
    return [sample.members[suffix].read().decode("utf-8", "replace").strip() for sample in samples]


def _captions(place: str, samples: Sequence[Sample]) -> tuple[str, ...]:
    if texts := _texts(place, samples, CAPTION):
        return tuple(texts)
    found = []
    for sample, text in zip(samples, _texts(place, samples, RECORD), strict=False):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{sample.key}{RECORD} of {_tar(sample)} is no JSON: {first_line(error)}") from error
        values = record if isinstance(record, dict) else {}
        found.append(next((values[name] for name in CAPTIONS if isinstance(values.get(name), str)), None))
    if all(caption is None for caption in found):
        return ()
    if None in found:
        raise DataError(f"{place} has no caption for {samples[found.index(None)].key}; give every sample one")
    return tuple(str(caption) for caption in found)
