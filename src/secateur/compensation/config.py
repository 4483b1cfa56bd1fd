"""The options of compensation."""

from dataclasses import dataclass
from typing import Literal

from ..base.errors import require, require_one_of

CompensationTarget = Literal["auto", "output", "stream"]


@dataclass(frozen=True)
class CompensationConfig:
    """How the layers that stay are refitted to the dense model.

    Attributes:
        target: what a layer aims at: its own output in the dense model (output), or the residual stream behind its
            block there (stream). auto takes stream where the width of the stream stays, as in transformers, and output
            elsewhere, as in U-Nets; docs/compensation.md has the measurements.
        num_tuples: calibration tuples of image, timestep, noise and condition; images are reused if there are fewer.
            Timesteps are spread evenly over the whole range.
        ridge: strength of the pull towards the weights of the cut, as a share of the mean square of an input.
        rows: at most so many positions (pixels, tokens), drawn at random, are taken of all tuples for one layer.
        rounds: how often the layers of a block are refitted in turn to the stream, since each changes what the others
            lack. Of no effect on the output target.
        condition_dropout: share of the tuples whose condition is dropped, as training did for guidance.
        batch_size: tuples in one pass; changes speed and memory only.
        offload: tuples that wait for a layer to be refitted wait in the memory of the CPU; changes speed and memory
            only.
        seed: draws images, timesteps, noise and positions.
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
