"""Rows of named tensors on disk, in safetensors shards: written once, each whole or not at all, read by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import DataError, first_line
from .files import atomic_file

SHARD_BYTES = 64 * 2**20  # at most; what a killed run loses
SHARD_ROWS = 1024  # at most
OPEN_SHARDS = 256


@dataclass(frozen=True)
class Shards:
    """`count` rows in `folder`, of `row_bytes` each; rows of one shard are written together."""

    folder: Path
    count: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """Of a shard; the last one may have fewer."""
        return max(1, min(SHARD_ROWS, SHARD_BYTES // self.row_bytes))

    @property
    def bytes(self) -> int:
        return self.count * self.row_bytes

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [number for number in range(math.ceil(self.count / self.rows)) if not self._path(number).is_file()]

    def rows_of(self, number: int) -> range:
        """The rows that belong to a shard."""
        return range(number * self.rows, min((number + 1) * self.rows, self.count))

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard: of each tensor the rows `rows_of(number)`."""
        with atomic_file(self._path(number)) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows at `indices`, in that order.

        Raises:
            DataError: a shard is missing or damaged.
        """
        gathered = [self._row(index) for index in indices]
        return {name: torch.stack([row[name] for row in gathered]) for name in gathered[0]}

    def _row(self, index: int) -> dict[str, Tensor]:
        number, row = divmod(index, self.rows)
        path = self._path(number)
        try:
            shard = _opened(path)
            return {name: shard.get_slice(name)[row] for name in shard.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            reason = first_line(error)
            raise DataError(f"{path} cannot be read: {reason}; remove it, and it is encoded again") from error

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.safetensors"


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(path: Path) -> Any:
    return safe_open(path, "pt")
