"""The options of a teacher's book: how many tuples, and what is in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from ..base.rules import Count, Seed, at_least, check_fields
from ..models.jacobian import Projection

StoredDtype = Literal["auto", "float32", "bfloat16", "float16"]
JacobianAnswer = Literal["none", "growth", "products"]


@dataclass(frozen=True)
class BookConfig:
    """How many of the teacher's answers are written, and how.

    Attributes:
        num_tuples: tuples of image, noise, timestep and condition to learn from; None is by the rule of
            docs/teachers-book.md, from steps and batch size.
        held_out: further tuples that are never learned from, the first ones with other noise: the error on them, beside
            that on those, tells overfitting.
        dtype: of the answers; auto is that of the teacher's weights.
        batch_size: tuples to a pass of the teacher; changes speed and memory only.
        seed: draws images, timesteps, noise, flips and dropped conditions.
    """

    num_tuples: Count | None = None
    held_out: Annotated[int, at_least(0)] = 128
    dtype: StoredDtype = "auto"
    batch_size: Count = 32
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields("book", self)


@dataclass(frozen=True)
class Contents:
    """What a tuple holds beside the teacher's output.

    Attributes:
        label_dropout: how often the condition is replaced by none; drawn when the book is written.
        horizontal_flip: half of the images are mirrored; drawn then too.
        jacobian: how the output answers a small change of the input: nothing, the growth ||J'v||^2 (2ndmatch), or the
            products J'v themselves (first-order).
        directions: how many v there are for each tuple.
        projection: vjp for J'v, jvp for Jv.
        blocks: glob patterns of the blocks whose hidden states are held.
        inputs: what those blocks took, beside what they returned.
    """

    label_dropout: float = 0.0
    horizontal_flip: bool = False
    jacobian: JacobianAnswer = "none"
    directions: int = 0
    projection: Projection = "vjp"
    blocks: tuple[str, ...] = ()
    inputs: bool = False


def stored_dtype(config: BookConfig, weights: torch.dtype) -> torch.dtype:
    """The dtype that answers are written in."""
    found = weights if config.dtype == "auto" else getattr(torch, config.dtype)
    assert isinstance(found, torch.dtype)
    return found
