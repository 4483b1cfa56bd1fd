"""Which class label a name stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, tensor

Name = TypeVar("Name", str, int)
MOST_CLASSES = 1_000_000


def classes_of(found: Sequence[Name]) -> tuple[tuple[str, ...], Tensor]:
    """Names of all classes, and the labels (N,) of the `found` class of each of N images.

    Whole numbers are the labels themselves, so 0, 207 and 281 are those classes of an ImageNet model, of 282 names in
    all. Other names are labelled from 0 on as they sort, and so are numbers of a million or more.
    """
    numbers = [int(name) for name in map(str, found) if name.isascii() and name.isdecimal()]
    if len(numbers) == len(found) and max(numbers, default=0) < MOST_CLASSES:
        return numbered(max(numbers, default=-1) + 1), tensor(numbers)
    names = sorted(set(found))
    place = {name: label for label, name in enumerate(names)}
    return tuple(map(str, names)), tensor([place[name] for name in found])


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none but their labels."""
    return tuple(map(str, range(count)))
