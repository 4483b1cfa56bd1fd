"""The tuples of a teacher's book: each is a function of the book's seed and its number alone.

So x_t is computed when needed and never stored, any process can draw any tuple, and a longer book begins with the
tuples of a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..base.seeds import Purpose, normal, permutation, stream, uniform
from ..data import ImageDataset
from ..models.conditions import Conditions, dropped
from ..process.base import Process, timesteps_at
from .config import Contents
from .draw import Draw, mirrored

GOLDEN = (5**0.5 - 1) / 2
NOISE = 0  # parts of a tuple's stream; 1, 2, ... are directions
CHOICES = 2**32  # flip and dropped condition
ORDER, START = CHOICES + 1, CHOICES + 2  # of all tuples: images, and the first time


@dataclass(frozen=True, eq=False)
class Tuples:
    """Image, noise, timestep and condition of each tuple.

    Images come in shuffled epochs. Times are u_n = frac(u_0 + n g) with the golden ratio g: every prefix of this
    sequence is spread evenly over [0, 1) (Kronecker; Roberts 2018).

    Attributes:
        accepts: selects the conditions that the model takes.
        null: the null condition.
        noise: random stream of the noise. A held-out tuple differs from a trained one by its noise only, so that the
            difference of their errors is due to memorization.
    """

    dataset: ImageDataset
    process: Process
    contents: Contents
    accepts: Callable[[Conditions], Conditions]
    null: Conditions
    seed: int
    noise: Purpose = Purpose.BOOK

    def draw(self, numbers: Sequence[int], answers: Mapping[str, Tensor] | None = None) -> Draw:
        """The tuples of these numbers, in this order, with their `answers`."""
        batch = self.dataset.batch([self.image(number) for number in numbers])
        choices = torch.from_numpy(np.stack([self._choices(number) for number in numbers]))
        flipped = choices[:, 0] < (0.5 if self.contents.horizontal_flip else 0.0)
        unconditional = choices[:, 1] < self.contents.label_dropout

        def noise(part: int) -> Tensor:
            return normal(self.dataset.shape, numbers, self.seed, self.noise, part=part)

        return Draw(
            sample=mirrored(batch.sample, flipped),
            noise=noise(NOISE),
            timesteps=timesteps_at(self.process, self.times(numbers)),
            conditions=dropped(self.accepts(batch.conditions), unconditional, self.null),
            normal=noise,
            answers=answers or {},
        )

    def image(self, number: int) -> int:
        """The index of the image of a tuple."""
        epoch, place = divmod(number, len(self.dataset))
        return int(_order(self.seed, epoch, len(self.dataset))[place])

    def times(self, numbers: Sequence[int]) -> Tensor:
        """u in [0, 1), (len(numbers),) float64."""
        start = uniform(1, self.seed, Purpose.BOOK, part=START).double()
        return (start + GOLDEN * torch.tensor(numbers, dtype=torch.float64)) % 1

    def _choices(self, number: int) -> np.ndarray:
        return stream(self.seed, Purpose.BOOK, index=number, part=CHOICES).random(2, np.float32)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> Tensor:
    return permutation(length, seed, Purpose.BOOK, step=epoch, part=ORDER)
