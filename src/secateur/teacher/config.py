"""The options of a teacher's book: how many tuples, and what is in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from ..base.errors import require
from ..base.rules import Count, Seed, at_least, check_fields
from ..models.jacobian import Projection

StoredDtype = Literal["auto", "float32", "bfloat16", "float16"]
JacobianAnswer = Literal["none", "growth", "products"]


@dataclass(frozen=True)
class BookConfig:
    """How many of the teacher's answers are recorded, and how.

    Attributes:
        num_tuples: number of tuples (image, noise, timestep, condition) to train on; None: from steps and batch size,
            by the rule in docs/teachers-book.md.
        held_out: number of further tuples that are never trained on (the first ones again, with other noise): a larger
            error on them shows overfitting.
        dtype: dtype of the answers; auto: that of the teacher's passes, which is that of its weights, or bfloat16 where
            recovery runs in it.
        batch_size: tuples per pass of the teacher; changes speed and memory only.
        seed: seed of images, timesteps, noise, flips and dropped conditions.
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
    """What a tuple contains beside the teacher's output.

    Attributes:
        label_dropout: how often the condition is replaced by the null condition; drawn during recording.
        horizontal_flip: whether half of the images are mirrored; drawn during recording.
        jacobian: none, the growth ||J'v||^2 of the output under a small change of the input (2ndmatch), or the products
            J'v themselves (first-order).
        directions: number of directions v for each tuple.
        projection: vjp for J'v, jvp for Jv.
        blocks: glob patterns of the blocks whose hidden states are recorded.
        inputs: whether inputs of those blocks are recorded beside their outputs.
    """

    label_dropout: float = 0.0
    horizontal_flip: bool = False
    jacobian: JacobianAnswer = "none"
    directions: int = 0
    projection: Projection = "vjp"
    blocks: tuple[str, ...] = ()
    inputs: bool = False

    def __post_init__(self) -> None:
        apart = self.jacobian == "none" or not self.blocks
        require(apart, "a book holds hidden states or answers about the Jacobian, not both; record two")


def stored_dtype(config: BookConfig, weights: torch.dtype) -> torch.dtype:
    """The dtype that answers are written in."""
    found = weights if config.dtype == "auto" else getattr(torch, config.dtype)
    assert isinstance(found, torch.dtype)
    return found
