"""What a criterion is: a function that scores, its own options, its price, and what it ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_origin, get_type_hints

from torch import nn

from ..base.errors import SecateurError, require, require_known, require_one_of
from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .ranking import Ranking

FORWARD_SHARE = 1 / 3  # a forward pass takes about a third of the time of forward and backward together


@dataclass(frozen=True)
class Options:
    """The options of one criterion; this base class is that of a criterion without any.

    A field whose type is a `Literal` takes no other value.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                require_one_of(f"scoring option {name}", getattr(self, name), hint)


@dataclass(frozen=True)
class ScoringConfig:
    """How units are scored.

    Attributes:
        num_timesteps: evenly spaced calibration timesteps; 0 takes every one of the process (gradient-flow: 32). For
            ced, deviation, cosine and loss-change: bins, each image once in each at a random timestep (0: 8).
        num_images: calibration images, all used at every timestep.
        batch_size: (image, timestep) pairs in one pass; changes speed and memory only.
        seed: draws the calibration images, their noise, and random scores.
        options: the criterion's own, of its class or by name; None takes its defaults.
    """

    num_timesteps: int = 0
    num_images: int = 128
    batch_size: int = 256
    seed: int = 0
    options: Options | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require(self.num_timesteps >= 0, f"scoring num_timesteps is {self.num_timesteps}; give 0 (all) or more")
        require(self.num_images >= 1, f"scoring num_images is {self.num_images}; give at least 1")
        require(self.batch_size >= 1, f"scoring batch_size is {self.batch_size}; give at least 1")


@dataclass(frozen=True)
class Price:
    """What a ranking takes: forward and backward passes of one image, a forward pass being a third of one."""

    passes: float = 0.0


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Criterion(Generic[OptionsT]):
    """One way to rank what can be removed.

    Attributes:
        name: on the command line and in files.
        options: the class of its options.
        score: the scores of a model's units and blocks; low leaves first. The model may be in any mode, and frozen or
            not, and is left as it was.
        price: what that takes.
        ranks: every width and block, or blocks only.
        needs_data: whether it looks at images and at the process.
    """

    name: str
    options: type[OptionsT]
    score: Callable[[nn.Module, Process, Batch, Structure, ScoringConfig, OptionsT], Ranking]
    price: Callable[[nn.Module, Process, ScoringConfig, OptionsT], Price]
    ranks: Literal["widths", "blocks"] = "widths"
    needs_data: bool = True

    def options_of(self, config: ScoringConfig) -> OptionsT:
        """The options that `config` gives, or the defaults.

        Raises:
            SecateurError: they are another criterion's, or there is none of that name.
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
        """`config` with this criterion's options in full, as they are recorded.

        Raises:
            SecateurError: as `options_of`.
        """
        return dataclasses.replace(config, options=self.options_of(config))


def free(model: nn.Module, process: Process, config: ScoringConfig, options: Options) -> Price:
    """The price of a criterion that runs no pass."""
    return Price()
