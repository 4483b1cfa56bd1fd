"""Tables with a column of images, by the `datasets` library: saved to disk, parquet, arrow, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import DataError
from ..base.fingerprint import files_fingerprint, fingerprint
from ..models.conditions import UNCONDITIONAL
from .classes import classes_of
from .dataset import Batch, labelled
from .images import File, Header, decode, in_threads, read_header, shape_for
from .table_sources import TableSource, open_source, parse_source

CAPTIONS = ("text", "caption", "prompt")  # names of columns, in lower case
AT_ONCE = 4096  # rows whose headers are read


@dataclass(frozen=True)
class TableDataset:
    """Rows of a `datasets.Dataset` in arrow's format with one column of images, decoded on access."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    rows: Any
    labels: Tensor | None
    fingerprint: str
    captions: tuple[str, ...] = ()
    null = UNCONDITIONAL

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        names = [f"row {index} of {self.name}" for index in chosen]
        images = in_threads(decode, _files(self.rows[chosen]), names, [self.shape] * len(chosen))
        return Batch(torch.stack(images), labelled(self.labels, torch.as_tensor(chosen, dtype=torch.int64)))


def open_table(named: str, shape: tuple[int, int, int] | None) -> TableDataset:
    """Open the table that `named` spells (`table_sources`), for images of `shape`.

    The columns of images and of labels are found by their features, that of captions by its name.

    Raises:
        DataError: as `open_source`; it is not clear which column is meant; an image cannot be read; a row lacks its
            label or caption.
    """
    source = parse_source(named)
    table = open_source(source)
    kinds = {name: _kind(feature) for name, feature in table.features.items()}
    image = _column(source, kinds, "image", [name for name, kind in kinds.items() if kind == "Image"])
    label = _column(source, kinds, "label", [name for name, kind in kinds.items() if kind == "ClassLabel"])
    texts = [name for name, kind in kinds.items() if kind == "string" and name.lower() in CAPTIONS]
    caption = _column(source, kinds, "caption", texts)
    if image is None:
        hint = f"name one that holds them as {source.spelled(image='COLUMN')}"
        raise DataError(f"{source.place} has no column of images among {_listed(kinds)}; {hint}")
    rows = table.select_columns(image).with_format("arrow")
    names, labels = _labels(source, table, label)
    captions = _captions(source, table, caption)
    headers: list[Header | str] = []
    for start in range(0, len(rows), AT_ONCE):
        headers += in_threads(read_header, _files(rows[start : start + AT_ONCE]))
    shape = shape_for(source.place, headers, lambda index: f"row {index}", shape)
    made_of = fingerprint([_fingerprint(rows, (image, label, caption)), shape])
    return TableDataset(Path(source.place).stem, shape, names, rows, labels, made_of, captions)


def _kind(feature: Any) -> str:
    """The kind of a column: Image, ClassLabel ..., or the type of plain values: string, int64 ..."""
    return str(getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__)


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _column(source: TableSource, kinds: Mapping[str, str], role: str, fitting: Sequence[str]) -> str | None:
    """The column that was chosen for a role, else the only one that fits; None if none does."""
    chosen = source.chosen.get(role)
    if chosen is not None and chosen not in kinds:
        raise DataError(f"{source.place} has no column {chosen}; it has {_listed(kinds)}")
    if chosen is None and len(fitting) > 1:
        spelled = source.spelled(**{role: fitting[0]})
        raise DataError(f"{source.place} has several {role} columns, {', '.join(fitting)}; choose one as {spelled}")
    return chosen or next(iter(fitting), None)


def _labels(source: TableSource, table: Any, column: str | None) -> tuple[tuple[str, ...], Tensor | None]:
    """Class names and labels; none if no row has a label, as in many test splits."""
    if column is None:
        return (), None
    values, feature = _values(table, column), table.features[column]
    names = getattr(feature, "names", None)
    there = [isinstance(value, str) or (isinstance(value, int) and value >= 0) for value in values]
    if not any(there):
        if "label" in source.chosen and names is None:
            raise DataError(
                f"{source.place} has no label in the column {column}, of {_kind(feature)}; give texts or integers"
            )
        return (), None
    if names is None:
        _check_all(source, column, "label", there)
        return classes_of(values)
    _check_all(
        source, column, "label", [known and value < len(names) for known, value in zip(there, values, strict=True)]
    )
    return tuple(map(str, names)), torch.tensor(values)


def _captions(source: TableSource, table: Any, column: str | None) -> tuple[str, ...]:
    if column is None:
        return ()
    values = _values(table, column)
    _check_all(source, column, "caption", [isinstance(value, str) for value in values])
    return tuple(values)


def _check_all(source: TableSource, column: str, role: str, good: Sequence[bool]) -> None:
    if not all(good):
        first = f"{good.count(False)} of {len(good)} rows, the first {good.index(False)}"
        raise DataError(f"{source.place} has no {role} in the column {column} of {first}; choose other rows or columns")


def _values(table: Any, column: str) -> list[Any]:
    return table.select_columns(column).with_format("arrow")[:][column].to_pylist()


def _files(rows: Any) -> list[File]:
    """A file object or path for Pillow for each row of an arrow table with one column; bytes stay on disk."""
    return [_file(value) for value in rows.column(0)]


def _file(value: Any) -> File:
    """The image in a row: bytes, or a structure of `datasets` with bytes or a path. Anything else becomes empty
    bytes."""
    from pyarrow import BinaryScalar, BufferReader, StringScalar, StructScalar  # comes with `datasets`

    fields = value if isinstance(value, StructScalar) and value.is_valid else {"bytes": value}
    content, path = fields.get("bytes"), fields.get("path")
    if isinstance(content, BinaryScalar) and content.is_valid:
        return BufferReader(content.as_buffer())
    return Path(path.as_py()) if isinstance(path, StringScalar) and path.is_valid else BytesIO()


def _fingerprint(rows: Any, columns: Sequence[str | None]) -> str:
    """Changes with the files that hold the rows, with the choice of rows among them, and with the columns."""
    paths = [Path(file["filename"]) for file in rows.cache_files]
    files = files_fingerprint(paths, paths[0].parent) if paths else ""
    return fingerprint([files, rows._fingerprint, *columns])
