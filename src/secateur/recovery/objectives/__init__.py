"""Recovery objectives: what recovery minimizes. One file each; docs/adding-an-objective.md shows how to add one."""

from ...base.errors import TrainingError
from .denoising import DENOISING
from .distillation import DISTILLATION
from .features import FEATURES
from .first_order import FIRST_ORDER
from .objective import Objective, Terms
from .second_match import SECOND_MATCH

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (DENOISING, DISTILLATION, FEATURES, FIRST_ORDER, SECOND_MATCH)
}


def objective_named(name: str) -> Objective:
    """The objective called `name`.

    Raises:
        TrainingError: there is none; the message lists the names.
    """
    if name not in OBJECTIVES:
        raise TrainingError(f"objective {name!r} is unknown; use {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


__all__ = ["OBJECTIVES", "Objective", "Terms", "objective_named"]
