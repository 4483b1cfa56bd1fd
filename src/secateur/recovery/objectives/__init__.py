"""Recovery objectives: what recovery minimizes. One file each; docs/adding-an-objective.md shows how to add one."""

from ...base.errors import require_known
from .denoising import DENOISING
from .distillation import DISTILLATION
from .features import FEATURES
from .first_order import FIRST_ORDER
from .objective import Objective, Terms
from .rms_distillation import RMS_DISTILLATION
from .second_match import SECOND_MATCH

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (DENOISING, DISTILLATION, RMS_DISTILLATION, FEATURES, FIRST_ORDER, SECOND_MATCH)
}


def objective_named(name: str) -> Objective:
    """The objective called `name`.

    Raises:
        SecateurError: there is none; the message gives the nearest name, and all.
    """
    require_known("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


__all__ = ["OBJECTIVES", "Objective", "Terms", "objective_named"]
