"""Tensor files with a checksum, so that damage by a disk or a copy is noticed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from .errors import DataError, first_line
from .files import atomic_file, require_regular

CHECKSUM = "crc32"  # in the metadata of a file


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to `path` atomically, as safetensors."""
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(kept, temporary, {CHECKSUM: _checksum(kept)})


def check_tensors(path: Path) -> None:
    """Check all of a file written by `write_tensors` against its checksum.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        require_regular(path)
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
        if _checksum(load_file(path)) != expected:
            raise ValueError("it is not what was written")
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; remove it, and it is made again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by `write_tensors`, memory-mapped.

    Raises:
        DataError: it is missing or damaged.
    """
    check_tensors(path)
    return load_file(path)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Checksum of names, types, shapes and bytes."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(errors="replace"), found)
        found = zlib.crc32(tensor.cpu().reshape(-1).view(uint8).numpy().data, found)
    return f"{found:08x}"
