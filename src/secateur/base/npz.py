"""Reading untrusted `.npz` files: sizes are checked against the file before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import DataError, first_line
from .files import require_regular

UNPACKED = 256 * 2**20  # bytes to which any file may unpack
RATIO = 30  # larger files may unpack to this many times their size


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays, as far as the file has them; never Python objects.

    Raises:
        DataError: it is not a regular file, is damaged, holds something other than an array under a name, or unpacks to
            far more than its size.
    """
    try:
        require_regular(path)
        most = max(UNPACKED, RATIO * path.stat().st_size)
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            there = {name: f"{name}.npy" for name in names if f"{name}.npy" in archive.namelist()}
            for member in there.values():
                most -= _unpacked(archive, member)
                if most < 0:
                    raise ValueError(f"{member} unpacks to far more than the file holds; save it uncompressed")
            return {name: _array(archive, member) for name, member in there.items()}
    except Exception as error:  # a damaged archive can raise nearly anything: zip, zlib, header, memory
        raise DataError(f"{path} is not a readable .npz: {first_line(error)}") from error


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _unpacked(archive: zipfile.ZipFile, member: str) -> int:
    """Bytes of an array, by its header."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        size = math.prod(max(side, 0) for side in shape) * dtype.itemsize
        held = archive.getinfo(member).file_size - stream.tell()
    if not dtype.hasobject and size > held:
        raise ValueError(f"{member} says {size} bytes and holds {held}")
    return size
