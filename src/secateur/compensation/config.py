"""The options of compensation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..base.rules import Count, Seed, at_least, check_fields, within

CompensationTarget = Literal["auto", "output", "stream"]


@dataclass(frozen=True)
class CompensationConfig:
    """How the layers that stay are refitted to the dense model.

    Attributes:
        target: what a layer is fitted to: its own output in the dense model (output), or the residual stream after its
            block there (stream). auto: stream if the width of the stream is not cut, as in transformers, else output,
            as in U-Nets; docs/compensation.md has the measurements.
        num_tuples: number of calibration tuples (image, timestep, noise, condition); images are reused if there are
            fewer. Timesteps are spread evenly over the whole range.
        ridge: strength of the pull towards the weights after the cut, as a share of the mean square of an input.
        rows: largest number of positions (pixels, tokens) used for one layer, drawn at random from all tuples.
        rounds: how often the layers of a block are refitted in turn to the stream, since each refit changes the error
            left to the others. No effect with target output.
        condition_dropout: share of the tuples with the null condition, as in training for guidance; the model must have
            one.
        batch_size: tuples per pass; changes speed and memory only.
        offload: keep waiting tuples in CPU memory while a layer is refitted; changes speed and memory only.
        seed: seed of images, timesteps, noise and positions.
    """

    target: CompensationTarget = "auto"
    num_tuples: Count = 512
    ridge: Annotated[float, at_least(0)] = 0.01
    rows: Count = 24_576
    rounds: Count = 2
    condition_dropout: Annotated[float, within(0, 1)] = 0.0
    batch_size: Count = 32
    offload: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields("compensation", self)

    @property
    def rows_each(self) -> int:
        """The largest number of positions used of one tuple."""
        return max(1, self.rows // self.num_tuples)
