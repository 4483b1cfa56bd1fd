"""Opening whatever a user names as data."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import DataError
from .arrays import ArrayDataset, open_digits, open_npz
from .folders import FolderDataset, open_folder

ACCEPTED = "an image folder, an .npz file with `images` (and `labels`), or the word `digits`"


def load_data(source: str | Path, shape: tuple[int, int, int] | None = None) -> ArrayDataset | FolderDataset:
    """Open images for a model that takes `shape` (C, H, W); by default the shape of the data.

    Images are cropped at the centre to the aspect ratio of `shape`, resized with antialiasing (bicubic), and
    turned grey or into RGB where the model takes 1 or 3 channels.

    Raises:
        DataError: nothing is there, an image cannot be read, or its channels do not fit `shape`.
    """
    path = Path(source)
    if source == "digits":
        return open_digits(shape)
    if path.is_dir():
        return open_folder(path, shape)
    if path.is_file() and path.suffix == ".npz":
        return open_npz(path, shape)
    if path.is_file():
        raise DataError(f"{path} is not data that can be opened; give {ACCEPTED}")
    meant = difflib.get_close_matches(str(source).lower(), ["digits"])
    hint = "; did you mean `digits`?" if meant else ""
    raise DataError(f"{path} does not exist{hint}; give {ACCEPTED}")
