"""Names of tables, and opening them with the `datasets` library.

`datasets:NAME[:SPLIT][,image=COLUMN][,label=COLUMN][,caption=COLUMN][,config=NAME][,stream=ROWS]` names one. NAME is a
file, a folder or a hub id. With `stream` only the first ROWS rows are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants

from ..base.errors import DataError, first_line

PREFIX = "datasets:"
SPELLING = f"{PREFIX}NAME[:SPLIT][,image=COLUMN][,label=COLUMN][,caption=COLUMN][,config=NAME][,stream=ROWS]"
TABLES = (".parquet", ".arrow")
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # of `save_to_disk`: of a `Dataset`, of a `DatasetDict`
OPTIONS = ("image", "label", "caption", "config", "stream")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_SECONDS = 10


@dataclass(frozen=True)
class TableSource:
    """The place of a table, and the chosen split, columns and config."""

    place: str
    split: str | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)

    def spelled(self, **changes: str) -> str:
        """Its spelling, with some choices changed."""
        chosen = {**self.chosen, **changes}
        split = chosen.pop("split", self.split)
        options = "".join(f",{name}={value}" for name, value in chosen.items())
        return f"{PREFIX}{self.place}" + (f":{split}" if split else "") + options


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()


def parse_source(source: str) -> TableSource:
    """Read `SPELLING`, or a path alone.

    Raises:
        DataError: it is written differently.
    """
    text = source.removeprefix(PREFIX)
    if text and Path(text).exists():  # its name may contain the separators
        return TableSource(text)
    named, *options = text.split(",")
    place, _, split = named.partition(":")
    pairs = [option.partition("=") for option in options]
    wrong = [name for name, _, value in pairs if name not in OPTIONS or not value]
    if wrong or not place:
        raise DataError(f"{source} cannot be understood; write {SPELLING}")
    return TableSource(place, split or None, {name: value for name, _, value in pairs})


def open_source(source: TableSource) -> Any:
    """Open the `datasets.Dataset`.

    Raises:
        DataError: `datasets` is not installed, there is no such data or split, or it cannot be read or fetched.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset, load_from_disk  # optional, and slow to import
    except ImportError as error:
        raise DataError(f"{source.place} needs the library datasets: pip install 'secateur[datasets]'") from error
    path, rows = Path(source.place), source.chosen.get("stream")
    if rows is not None and (not rows.isdecimal() or is_saved(path)):
        raise DataError(f"{source.place} cannot be streamed as {rows} rows; give a number, and no saved data set")
    if "config" in source.chosen and (path.is_file() or is_saved(path)):
        raise DataError(f"{source.place} is a table without configs; leave ,config={source.chosen['config']} out")
    try:
        if (path / SAVED_SPLITS).is_file():
            splits = load_from_disk(path)
            return splits[_split(source, splits)]
        if (path / SAVED).is_file():
            if source.split is not None:
                raise DataError(f"{source.place} is one table without splits; leave :{source.split} out")
            return load_from_disk(path)
        if path.is_file():
            place: dict[str, Any] = {"path": path.suffix[1:], "data_files": str(path), "split": source.split or "train"}
            return load_dataset(**place) if rows is None else _streamed(place, int(rows))
        if not path.is_dir():
            _check_hub(source)
        config = source.chosen.get("config")
        split = source.split or _split(source, get_dataset_split_names(source.place, config))
        place = {"path": source.place, "name": config, "split": split}
        return load_dataset(**place) if rows is None else _streamed(place, int(rows))
    except DataError:
        raise
    except Exception as error:  # damaged files, builders and networks may raise anything
        raise DataError(f"{source.place} cannot be read by datasets: {first_line(error.__cause__ or error)}") from error


def _streamed(place: Mapping[str, Any], rows: int) -> Any:
    """The first `rows` rows of `load_dataset(**place)`, as a table in the cache of `datasets`."""
    from datasets import Dataset, load_dataset

    features = load_dataset(**place, streaming=True).features
    return Dataset.from_generator(_first_rows, features=features, gen_kwargs={"place": dict(place), "rows": rows})


def _first_rows(place: Mapping[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    return iter(load_dataset(**place, streaming=True).decode(False).take(rows))


def _split(source: TableSource, splits: Collection[str]) -> str:
    """The split that was named, else `train`, else the only one."""
    split = source.split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits), "train"))
    if split in splits:
        return split
    spelled = source.spelled(split=next(iter(splits), "train"))
    raise DataError(f"{source.place} has no split {split}, only {', '.join(splits)}; write for example {spelled}")


def _check_hub(source: TableSource) -> None:
    """Find out within seconds whether a data set cannot be downloaded; `load_dataset` tries six times first."""
    if not HUB_ID.fullmatch(source.place):
        raise DataError(f"{source.place} does not exist, and is no hub id such as huggan/flowers-102-categories")
    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(source.place, timeout=HUB_SECONDS)
    except Exception as error:  # depends on the library that uses the network
        raise DataError(
            f"{source.place} is no local file or folder, and the hub did not give it: {first_line(error)}; without a "
            "network, HF_HUB_OFFLINE=1 takes a copy that was fetched before"
        ) from error
