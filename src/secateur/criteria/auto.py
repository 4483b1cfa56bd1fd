"""Auto: the criterion that suits the model, where a refit and training follow the cut.

Magnitude where residual widths are cut, as in U-Nets; Diff-Pruning elsewhere, as in transformers. Where only blocks are
removed, recipes take `replacement` in its place. By measurement: docs/benchmarks/objectives.md. To set options of one
of them, name it instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..data import Batch
from ..models.registry import describe
from ..process.base import Process
from ..structure import Structure, has_streams
from .criterion import Criterion, Memory, Options, Price, ScoringConfig
from .diff_pruning import DIFF_PRUNING
from .magnitude import MAGNITUDE
from .ranking import Ranking
from .taylor import TIMESTEPS


def suited(model: nn.Module) -> Criterion[Any]:
    """The criterion that suits `model`, which may be on the meta device."""
    return DIFF_PRUNING if has_streams(model, describe(model)) else MAGNITUDE


def auto(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """Scores by the criterion that suits `model`; the ranking says which.

    Raises:
        TrainingError: as that criterion.
    """
    chosen = suited(model)
    found = chosen.score(model, process, batch, structure, config, chosen.options())
    return replace(found, criterion=chosen.name)


def price(model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: Options) -> Price:
    """Price of the criterion that suits `model`."""
    chosen = suited(model)
    return chosen.price(model, process, structure, config, chosen.options())


def memory(model: nn.Module, process: Process, config: ScoringConfig, options: Options) -> Memory | None:
    """Memory of the criterion that suits `model`."""
    chosen = suited(model)
    found = chosen.memory and chosen.memory(model, process, config, chosen.options())
    return found and replace(found, hint=found.hint and f"--criterion {chosen.name} {found.hint}")


AUTO = Criterion("auto", Options, auto, price, memory=memory, timesteps=TIMESTEPS)
