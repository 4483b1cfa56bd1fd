"""What would stop a run, found before long work starts."""

from __future__ import annotations

from torch import nn

from ..base.errors import DataError, SecateurError, require
from ..data import ImageDataset, LatentDataset
from ..data.conditions import GIVE_LABELS, check_conditions
from ..io.pipeline import Loaded
from ..models.network import class_count, device_of, input_shape
from ..recipes import Recipe
from ..recovery import RecoveryConfig
from ..recovery.accelerator import check_accelerator
from ..recovery.objectives import build_objective
from ..recovery.recomputing import check_recomputing
from ..schedules import AdaptiveConfig, Granularity, ProgressiveConfig, check_fits


def check_recovery(
    model: nn.Module, dataset: ImageDataset, recovery: RecoveryConfig, teacher: nn.Module | None
) -> None:
    """Find what would stop the recovery, before long work starts.

    Raises:
        SecateurError: an unknown objective, a missing teacher, latents to be mirrored, labels that do not fit, or what
            the device, the processes, the installed trackers or the model cannot do.
    """
    build_objective(recovery, teacher)
    check_accelerator(recovery, device_of(model))
    if recovery.gradient_checkpointing:
        check_recomputing(model)
    mirrored = recovery.horizontal_flip and isinstance(dataset, LatentDataset)
    require(not mirrored, "mirrored latents are not the latents of mirrored images; turn recovery.horizontal_flip off")
    check_conditions(model, dataset)


def check_comparable(model: str, loaded: Loaded, other: str, dense: Loaded) -> None:
    """Find that two models answer different questions, so that neither can be a reference or a teacher of the other.

    Raises:
        SecateurError: their processes, input shapes or classes differ.
    """
    different = {
        "have different scheduler configs or encoders": loaded.process != dense.process,
        "take inputs of different shapes": input_shape(loaded.model) != input_shape(dense.model),
        "know different numbers of classes": class_count(loaded.model) != class_count(dense.model),
    }
    for what, found in different.items():
        if found:
            raise SecateurError(f"{model} and {other} {what}: they cannot be compared")


def check_new_labels(dataset: ImageDataset) -> None:
    """Find that there are no labels to learn, before long work starts.

    Raises:
        DataError: the data has none.
    """
    if not dataset.class_names:
        raise DataError(f"{dataset.name} has no labels to learn; {GIVE_LABELS}")


def check_schedule(recipe: Recipe, granularity: Granularity) -> None:
    """Find that pruning would not be done before the budget is, before long work starts.

    Raises:
        SecateurError: the stages take as many steps as there are, or more; or they drop blocks, and widths are asked.
    """
    schedules: dict[str, ProgressiveConfig | AdaptiveConfig]
    schedules = {"progressive": recipe.progressive, "adaptive": recipe.adaptive}
    check_fits(schedules.get(recipe.schedule), recipe.recovery.steps, granularity == "depth")
