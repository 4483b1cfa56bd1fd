"""What says which model is meant: the keyword arguments that functions share, written and documented once."""

from __future__ import annotations

from typing import cast

import torch

from ..io.locate import Component, HubOptions
from ..process.named import ProcessLike
from ..process.own import Forward, Loss
from ..recipes import RecipeArguments


class WeightsArguments(HubOptions, total=False):
    """Which network, and where it goes; what is left out, or None, has its default.

    Attributes:
        component: of a pipeline: unet, transformer, transformer_2 (Wan 2.2) or vae; by default whichever of unet and
            transformer is there.
        device: where to. By default objects stay where they are, and what is loaded goes to the accelerator, if any.
        subfolder: of what is loaded: the folder of the model or pipeline in it.
        variant: of the weights that are loaded, such as fp16; by default the plain ones, or the only ones there are.
        torch_dtype: of the weights that are loaded; by default the saved one.
        revision, token, cache_dir: of what is loaded from the hub, as diffusers takes them.
    """

    component: Component | None
    device: str | torch.device | None
    subfolder: str | None
    variant: str | None
    torch_dtype: torch.dtype | None


class ModelArguments(WeightsArguments, total=False):
    """Which model, how it was trained, and where it goes.

    Attributes:
        process: how it was trained, where that is not beside it: a name (ddpm, v-prediction, flow, flow-sit), a
            diffusers scheduler, its config, or a `Process`. A number behind a name, `auto:4`, is of a model that was
            distilled into so many steps.
    """

    process: ProcessLike


class NetworkArguments(ModelArguments, total=False):
    """Which model, also one that the library does not know how to call or to judge.

    Attributes:
        forward: (model, batch) -> output, instead of a process and of the library's own way to call the network.
        loss: (model, batch) -> scalar, likewise.
    """

    forward: Forward | None
    loss: Loss | None


class CompressionArguments(NetworkArguments, RecipeArguments, total=False):
    """Which model, and what replaces parts of the recipe."""


OF_ONE_REPOSITORY = ("revision", "subfolder", "variant")


def of_another_model(arguments: NetworkArguments) -> ModelArguments:
    """The arguments that a teacher or a reference shares with the model: all but those of the model's own repository.

    To give a teacher those too, load it: `teacher=secateur.load("user/dense", revision="main")`.
    """
    kept = set(ModelArguments.__annotations__) - {*OF_ONE_REPOSITORY}
    return cast(ModelArguments, {name: value for name, value in arguments.items() if name in kept})


def divided(arguments: CompressionArguments) -> tuple[RecipeArguments, NetworkArguments]:
    """The arguments about the recipe, and those about the model."""
    parts = {name: value for name, value in arguments.items() if name in RecipeArguments.__annotations__}
    about_model = {name: value for name, value in arguments.items() if name not in parts}
    return cast(RecipeArguments, parts), cast(NetworkArguments, about_model)
