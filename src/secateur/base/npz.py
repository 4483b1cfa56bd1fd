"""Arrays in foreign `.npz` files: sizes are compared with what the file holds before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import DataError, first_line
from .files import require_regular

UNPACKED = 256 * 2**20  # bytes that any file may unpack to
RATIO = 30  # and a large one, to so many times its size


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file has; never any Python objects.

    Raises:
        DataError: it is no regular file, is damaged, holds something else under a name, or unpacks to far more than
            its size.
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
