"""The options of compensation."""

from dataclasses import dataclass
from typing import Literal

from ..base.errors import require, require_one_of

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
        condition_dropout: share of the tuples with the null condition, as in training for guidance.
        batch_size: tuples per pass; changes speed and memory only.
        offload: keep waiting tuples in CPU memory while a layer is refitted; changes speed and memory only.
        seed: seed of images, timesteps, noise and positions.
    """

    target: CompensationTarget = "auto"
    num_tuples: int = 512
    ridge: float = 0.01
    rows: int = 24_576
    rounds: int = 2
    condition_dropout: float = 0.0
    batch_size: int = 32
    offload: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("compensation target", self.target, CompensationTarget)
        require(self.num_tuples >= 1, f"compensation num_tuples is {self.num_tuples}; give at least 1")
        require(self.ridge >= 0, f"compensation ridge is {self.ridge}; give 0 or more")
        require(self.rows >= 1, f"compensation rows is {self.rows}; give at least 1")
        require(self.rounds >= 1, f"compensation rounds is {self.rounds}; give at least 1")
        require(
            0 <= self.condition_dropout <= 1, f"compensation condition_dropout is {self.condition_dropout}; give 0 to 1"
        )
        require(self.batch_size >= 1, f"compensation batch_size is {self.batch_size}; give at least 1")
