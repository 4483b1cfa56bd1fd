"""What is measured image by image: chunks on disk, shared out over the processes, none measured twice.

A chunk is a dictionary of tensors with one row per image, in a .safetensors file. A run that was stopped finds the
chunks that it finished, and processes that share a file system each measure their part. No whole set of images is ever
in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..base.console import progress
from ..base.distributed import process_count, process_index
from ..base.errors import SecateurError, first_line
from ..base.files import atomic_file
from ..base.fingerprint import fingerprint
from ..process.base import Process

Chunk = dict[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """Rows of `count` images in `folder`, `chunk_size` to a file; a tensor may stop before the last image."""

    folder: Path
    count: int
    chunk_size: int

    def ranges(self) -> list[range]:
        """The images of every chunk."""
        return [
            range(start, min(start + self.chunk_size, self.count)) for start in range(0, self.count, self.chunk_size)
        ]

    def path(self, indices: range) -> Path:
        """The file of a chunk."""
        return self.folder / f"{indices.start:08d}-{indices.stop:08d}.safetensors"

    def measure(self, chunk_of: Callable[[range], Chunk], description: str) -> None:
        """Write the chunks of this process's part that are not there yet."""
        mine = self.ranges()[process_index() :: process_count()]
        missing = [indices for indices in mine if not self.path(indices).is_file()]
        if not missing:
            return
        total, left = sum(map(len, mine)), sum(map(len, missing))
        with progress(description, total, start=total - left) as advance:
            for indices in missing:
                chunk = {name: tensor.cpu().contiguous() for name, tensor in chunk_of(indices).items()}
                with atomic_file(self.path(indices)) as temporary:
                    save_file(chunk, temporary)
                advance(len(indices), "")

    def chunk(self, indices: range) -> Chunk:
        """The chunk of `indices`, which are one of `ranges`.

        Raises:
            SecateurError: the file is missing or damaged.
        """
        try:
            return load_file(self.path(indices))
        except (SafetensorError, OSError) as error:
            raise SecateurError(f"{self.path(indices)} cannot be read, remove it: {first_line(error)}") from error

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk, in order."""
        return (self.chunk(indices) for indices in self.ranges())

    def read(self, names: Sequence[str]) -> Chunk:
        """The named tensors of all images that have them; absent where no chunk has them."""
        parts: dict[str, list[Tensor]] = {}
        for chunk in self.chunks():
            for name in names:
                if name in chunk:
                    parts.setdefault(name, []).append(chunk[name])
        return {name: torch.cat(tensors) for name, tensors in parts.items()}


def key_of(*parts: Any) -> str:
    """A name for rows that rest on `parts`, plain JSON values: other parts, another name."""
    return fingerprint(parts)


def model_fingerprint(model: nn.Module, process: Process) -> list[Any]:
    """What tells a model from others: its class, process, and sums over each of its tensors."""
    sums = []
    for name, tensor in model.state_dict().items():
        values = tensor.cpu().double()  # MPS has no float64
        sums.append((name, list(tensor.shape), values.sum().item(), values.square().sum().item()))
    return [type(model).__name__, repr(process), sums]
