"""Opening data by its name: a path or a word."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..base.console import note
from ..base.errors import DataError
from ..base.units import number_of
from ..models.family import Shape
from . import tars
from .arrays import ArrayDataset, open_digits, open_fashion, open_npz
from .captions import METADATA
from .clips import open_clips
from .dataset import PixelDataset
from .folders import open_folder, visible_files
from .images import SUFFIXES
from .table_sources import PREFIX, TABLES, is_saved
from .tables import open_table

CLIP_AXES = 4  # of a clip: channels, frames, height, width
EMBEDDED: dict[str, Callable[[tuple[int, int, int] | None], ArrayDataset]] = {
    "digits": open_digits,
    "fashion": open_fashion,
}
MOST_KINDS = 3  # of suffixes in a message
ACCEPTED = (
    "an image folder, parquet or arrow (a file, a folder, or what `save_to_disk` wrote), datasets:NAME[:SPLIT] of the "
    "hub, WebDataset shards (a tar file, a folder of them, a{000..099}.tar), an .npz file with `images` (and "
    "`labels`), or one of the words `digits` and `fashion`"
)


def load_data(source: str | Path, shape: Shape | None = None) -> PixelDataset:
    """Open images for a model that takes `shape` (C, H, W); by default the shape of the data.

    For a model of clips, `shape` is (C, T, H, W), and the source a folder of clips.

    Images are cropped at the centre to the aspect ratio of `shape`, resized with antialiasing (bicubic), and
    converted to grey or RGB if the model takes 1 or 3 channels.

    Raises:
        DataError: nothing is there, an image cannot be read, or its channels do not fit `shape`.
    """
    path = Path(source)
    if shape is not None and len(shape) == CLIP_AXES:
        if not path.is_dir():
            raise DataError(f"{source} is no folder; a model of videos takes a folder of clips")
        return open_clips(path, shape)
    size = None if shape is None else (shape[0], shape[1], shape[2])
    if source in EMBEDDED:
        return EMBEDDED[str(source)](size)
    if path.is_dir():
        return _open_directory(path, size)
    if str(source).startswith(tars.PREFIX) or path.suffix == tars.SUFFIX:
        return tars.open_tars(str(source), size)
    if str(source).startswith(PREFIX) or (path.is_file() and path.suffix in TABLES):
        return open_table(str(source), size)
    if path.is_file() and path.suffix == ".npz":
        return open_npz(path, size)
    if path.exists():
        raise DataError(f"{path} is not data that can be opened; give {ACCEPTED}")
    raise DataError(f"{path} does not exist{_meant(str(source))}; give {ACCEPTED}")


def _open_directory(folder: Path, shape: tuple[int, int, int] | None) -> PixelDataset:
    if is_saved(folder):
        return open_table(str(folder), shape)
    files = visible_files(folder)
    images = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    tables = [path for path in files if path.suffix in TABLES and path.stem != "metadata"]
    if not images and not tables and any(path.suffix == tars.SUFFIX for path in files):
        return tars.open_tars(str(folder), shape)
    if images and tables:
        raise DataError(
            f"{folder} holds {len(images)} image files and {len(tables)} of parquet or arrow; for the tables give "
            f"{PREFIX}{folder}, for the images a folder of these alone"
        )
    if tables:
        return open_table(str(folder), shape)
    dataset = open_folder(folder, images, shape)
    _note_skipped(folder, [path for path in files if path not in set(images) and path.name != METADATA])
    return dataset


def _note_skipped(folder: Path, skipped: Sequence[Path]) -> None:
    """Print which files of an image folder are not used."""
    if skipped:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in skipped).most_common(MOST_KINDS)
        said = ", ".join(f"{count} of {suffix}" for suffix, count in kinds)
        note(f"{folder}: {number_of(len(skipped), 'file')} without a known suffix of images left out ({said})")


def _meant(source: str) -> str:
    if close := difflib.get_close_matches(source.lower(), EMBEDDED, 1):
        return f"; did you mean `{close[0]}`?"
    looks_hosted = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    return f" (a data set of the hub is {PREFIX}{source})" if looks_hosted else ""
