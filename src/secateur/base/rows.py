"""Rows of named tensors, written once, chunk by chunk, and read by row or by chunk.

A chunk is a dictionary of tensors with one row for each item. In a folder each chunk is a safetensors file, written
atomically: a stopped run resumes with the first missing one, and processes that share a file system write a part each.
Files are memory-mapped, so that reading a row takes only the memory of the row. Each has a checksum, which is verified
once, so that damage by a disk or a copy is noticed.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .console import progress
from .distributed import process_count, process_index
from .errors import DataError, first_line
from .tensors import check_tensors, write_tensors

CHUNK_BYTES = 64 * 2**20  # most bytes in a chunk, which a killed run loses
CHUNK_ROWS = 1024  # at most
OPEN_FILES = 256

Chunk = dict[str, Tensor]


def chunk_size_of(row_bytes: int) -> int:
    """The number of rows of `row_bytes` each in a chunk of moderate size."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))


@dataclass(frozen=True)
class Rows(ABC):
    """`count` rows in chunks of `chunk_size`; a tensor of a chunk may end before the last row."""

    count: int
    chunk_size: int

    @abstractmethod
    def has(self, indices: range) -> bool:
        """Whether the chunk of `indices`, one of `ranges`, is written."""

    @abstractmethod
    def write(self, indices: range, chunk: Chunk) -> None:
        """Write the chunk of `indices`, one of `ranges`."""

    @abstractmethod
    def chunk(self, indices: range) -> Chunk:
        """The chunk of `indices`, one of `ranges`.

        Raises:
            DataError: it is missing or damaged.
        """

    def ranges(self) -> list[range]:
        """The rows of every chunk."""
        starts = range(0, self.count, self.chunk_size)
        return [range(start, min(start + self.chunk_size, self.count)) for start in starts]

    def missing(self) -> list[range]:
        """The rows of every chunk that is not written yet."""
        return [indices for indices in self.ranges() if not self.has(indices)]

    def fill(
        self,
        measure: Callable[[range], Chunk],
        description: str,
        at_once: int | None = None,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the missing chunks of this process's part, with a progress bar.

        `measure` computes the tensors of some rows: of a chunk, or at most `at_once` rows; `written` is called after
        every chunk.
        """
        mine = self.ranges()[process_index() :: process_count()]
        missing = [indices for indices in mine if not self.has(indices)]
        if not missing:
            return
        total, left = sum(map(len, mine)), sum(map(len, missing))
        with progress(description, total, start=total - left) as advance:
            for indices in missing:
                parts = []
                for start in range(indices.start, indices.stop, at_once or len(indices)):
                    part = range(start, min(start + (at_once or len(indices)), indices.stop))
                    parts.append({name: tensor.cpu() for name, tensor in measure(part).items()})
                    advance(len(part), "")
                self.write(indices, joined(parts))
                written()

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk, in order."""
        return (self.chunk(indices) for indices in self.ranges())

    def columns(self, names: Sequence[str]) -> Chunk:
        """The named tensors of all rows that have them; names that no chunk has are absent."""
        return joined({name: chunk[name] for name in names if name in chunk} for chunk in self.chunks())

    def read(self, indices: Sequence[int]) -> Chunk:
        """The rows at `indices`, one or more, in that order; their tensors have all rows.

        Raises:
            DataError: a chunk is missing or damaged.
        """
        gathered = [self._row(index) for index in indices]
        return {name: torch.stack([row[name] for row in gathered]) for name in gathered[0]}

    def _row(self, index: int) -> Chunk:
        start = index - index % self.chunk_size
        chunk = self.chunk(range(start, min(start + self.chunk_size, self.count)))
        return {name: tensor[index - start] for name, tensor in chunk.items()}


@dataclass(frozen=True)
class FileRows(Rows):
    """Rows in the files of `folder`, whose name has a fingerprint of their inputs."""

    folder: Path

    def path(self, indices: range) -> Path:
        """The file of a chunk."""
        return self.folder / f"{indices.start:08d}-{indices.stop:08d}.safetensors"

    def has(self, indices: range) -> bool:
        return self.path(indices).is_file()

    def write(self, indices: range, chunk: Chunk) -> None:
        write_tensors(self.path(indices), chunk)

    def chunk(self, indices: range) -> Chunk:
        path = self.path(indices)
        stamp = _stamp(path)
        _check(path, stamp)
        return _mapped(path, stamp)


@dataclass(frozen=True)
class MemoryRows(Rows):
    """Rows in memory."""

    kept: dict[range, Chunk] = field(default_factory=dict, repr=False)

    def has(self, indices: range) -> bool:
        return indices in self.kept

    def write(self, indices: range, chunk: Chunk) -> None:
        self.kept[indices] = chunk

    def chunk(self, indices: range) -> Chunk:
        return self.kept[indices]


def rows_at(folder: Path | None, count: int, chunk_size: int) -> Rows:
    """Rows in files of `folder`; without one, in memory."""
    return MemoryRows(count, chunk_size) if folder is None else FileRows(count, chunk_size, folder)


def remove_rows(folder: Path) -> None:
    """Remove the files of all rows below `folder`, and let go of them: until then they take room on the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    _mapped.cache_clear()


def joined(chunks: Iterator[Chunk] | Sequence[Chunk]) -> Chunk:
    """The rows of `chunks` one after another."""
    parts: dict[str, list[Tensor]] = {}
    for chunk in chunks:
        for name, tensor in chunk.items():
            parts.setdefault(name, []).append(tensor)
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; it is made again by the same command") from error
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@cache
def _check(path: Path, stamp: tuple[int, ...]) -> None:
    """Check the file for damage, once."""
    check_tensors(path)


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: Path, stamp: tuple[int, ...]) -> Chunk:
    """The tensors of a file, memory-mapped; `stamp` changes when it is written again."""
    return load_file(path)
