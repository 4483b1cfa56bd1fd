"""The definition of a criterion: a function that scores, its options, its price, and what it ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from torch import nn

from ..base.errors import SecateurError, require_known
from ..base.rules import Count, Seed, at_least, check_fields
from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .ranking import Ranking

FORWARD_SHARE = 1 / 3  # a forward pass takes about a third of the time of forward and backward together


@dataclass(frozen=True)
class Options:
    """The options of one criterion; this base class is for criteria without options.

    Fields are checked by their types and annotated rules.
    """

    def __post_init__(self) -> None:
        check_fields("scoring option", self)


@dataclass(frozen=True)
class ScoringConfig:
    """How units are scored.

    Attributes:
        num_timesteps: number of evenly spaced calibration timesteps; 0: all of the process, None: the criterion's
            default. For criteria that drop blocks: number of bins; each image is used once in each, at a random
            timestep.
        num_images: number of calibration images, all used at every timestep; docs/benchmarks.md shows the effect of
            more.
        batch_size: (image, timestep) pairs in one pass; changes speed and memory only.
        seed: seed of the calibration images, their noise, and random scores.
        options: the criterion's own options, of its class or by name; None: its defaults.
    """

    num_timesteps: Annotated[int, at_least(0)] | None = None
    num_images: Count = 64
    batch_size: Count = 256
    seed: Seed = 0
    options: Options | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fields("scoring", self)

    def timesteps_of(self, process: Process) -> int:
        """The number of timesteps, after the criterion has filled in its default."""
        assert self.num_timesteps is not None
        return min(self.num_timesteps or process.num_train_timesteps, process.num_train_timesteps)


@dataclass(frozen=True)
class Price:
    """Cost of a ranking in forward-and-backward passes of one image; a forward pass is a third of one."""

    passes: float = 0.0


@dataclass(frozen=True)
class Memory:
    """Memory of a ranking.

    Attributes:
        peak: bytes, weights included.
        sums: bytes of it that hold sums of gradients over several passes.
        hint: options that avoid these sums.
    """

    peak: int
    sums: int = 0
    hint: str = ""


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Criterion(Generic[OptionsT]):
    """One way to rank what can be removed.

    Attributes:
        name: its name on the command line and in files.
        options: the class of its options.
        score: computes the scores of a model's units and blocks; the lowest are removed first. The model may be in any
            mode, frozen or not, and does not change.
        price: computes the cost of that.
        ranks: every width and block, or blocks only.
        needs_data: whether it uses images and the process.
        timesteps: default number of timesteps; 0: all.
        memory: computes its memory, if it takes far more than the model; None if it does not.
    """

    name: str
    options: type[OptionsT]
    score: Callable[[nn.Module, Process, Batch, Structure, ScoringConfig, OptionsT], Ranking]
    price: Callable[[nn.Module, Process, Structure, ScoringConfig, OptionsT], Price]
    ranks: Literal["widths", "blocks"] = "widths"
    needs_data: bool = True
    timesteps: int = 0
    memory: Callable[[nn.Module, Process, ScoringConfig, OptionsT], Memory | None] | None = None

    def options_of(self, config: ScoringConfig) -> OptionsT:
        """The options that `config` gives, or the defaults.

        Raises:
            SecateurError: they belong to another criterion, or there is no option of that name.
        """
        given = config.options
        if given is None:
            return self.options()
        if isinstance(given, Mapping):
            for name in given:
                require_known(
                    f"option of {self.name}", name, [field.name for field in dataclasses.fields(self.options)]
                )
            return self.options(**given)
        if type(given) is not self.options:
            raise SecateurError(f"{self.name} takes {self.options.__name__}, not {type(given).__name__}")
        return given

    def configured(self, config: ScoringConfig) -> ScoringConfig:
        """The complete `config`, as it is recorded: with this criterion's options and number of timesteps.

        Raises:
            SecateurError: as `options_of`.
        """
        timesteps = self.timesteps if config.num_timesteps is None else config.num_timesteps
        return dataclasses.replace(config, options=self.options_of(config), num_timesteps=timesteps)


def free(model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: Options) -> Price:
    """The price of a criterion that runs no pass."""
    return Price()
