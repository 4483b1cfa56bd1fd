"""Class labels from class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, tensor

Name = TypeVar("Name", str, int)
MOST_CLASSES = 1_000_000


def classes_of(found: Sequence[Name]) -> tuple[tuple[str, ...], Tensor]:
    """Names of all classes, and the labels (N,) of the `found` class of each of N images.

    Integers are the labels themselves, so 0, 207 and 281 mean those classes of an ImageNet model (and there are 282
    names). Other names are labelled from 0 in sorted order, and so are numbers of a million or more.
    """
    numbers = [int(name) for name in map(str, found) if name.isascii() and name.isdecimal()]
    if len(numbers) == len(found) and max(numbers, default=0) < MOST_CLASSES:
        return numbered(max(numbers, default=-1) + 1), tensor(numbers)
    names = sorted(set(found))
    place = {name: label for label, name in enumerate(names)}
    return tuple(map(str, names)), tensor([place[name] for name in found])


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that only have labels."""
    return tuple(map(str, range(count)))
