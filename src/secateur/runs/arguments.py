"""Keyword arguments that functions share: which model, how it was trained, and where it runs."""

from __future__ import annotations

from typing import cast

import torch

from ..io.locate import Component, HubOptions
from ..process.named import ProcessLike
from ..process.own import Forward, Loss
from ..recipes import RecipeArguments


class WeightsArguments(HubOptions, total=False):
    """Which network, and on which device; what is left out, or None, has its default.

    Attributes:
        component: part of a pipeline: unet, transformer, transformer_2 (Wan 2.2) or vae; by default the unet or
            transformer that it has.
        device: where the model goes. By default objects stay where they are, and loaded models go to the accelerator,
            if any.
        subfolder: folder of the model or pipeline inside what is loaded.
        variant: variant of the weights to load, such as fp16; by default the plain ones, or the only ones.
        torch_dtype: dtype of the weights to load; by default the saved one.
        revision, token, cache_dir: for loading from the hub, as in diffusers.
    """

    component: Component | None
    device: str | torch.device | None
    subfolder: str | None
    variant: str | None
    torch_dtype: torch.dtype | None


class ModelArguments(WeightsArguments, total=False):
    """Which model, how it was trained, and on which device.

    Attributes:
        process: how it was trained, if no scheduler config beside it says so: a name (ddpm, v-prediction, flow,
            flow-sit), a diffusers scheduler, its config, or a `Process`. A number, as in `auto:4`, is for a model
            distilled into that many steps.
    """

    process: ProcessLike


class NetworkArguments(ModelArguments, total=False):
    """Which model; `forward` and `loss` describe one that the library cannot call, or has no loss for.

    Attributes:
        forward: (model, batch) -> output, in place of a process and the library's own way to call the network.
        loss: (model, batch) -> scalar, in place of the process's loss.
    """

    forward: Forward | None
    loss: Loss | None


class CompressionArguments(NetworkArguments, RecipeArguments, total=False):
    """Which model, and replacements for parts of the recipe."""


OF_ONE_REPOSITORY = ("revision", "subfolder", "variant")


def of_another_model(arguments: NetworkArguments) -> ModelArguments:
    """The arguments that a teacher or a reference shares with the model: all but those of the model's own repository.

    To give a teacher those too, load it: `teacher=secateur.load("user/dense", revision="main")`.
    """
    kept = set(ModelArguments.__annotations__) - {*OF_ONE_REPOSITORY}
    return cast(ModelArguments, {name: value for name, value in arguments.items() if name in kept})


def divided(arguments: CompressionArguments) -> tuple[RecipeArguments, NetworkArguments]:
    """The arguments split into those about the recipe and those about the model.

    A network with the user's `forward` or `loss` has no noisy samples, and so no book: unless asked for one, its recipe
    goes without.
    """
    parts = {name: value for name, value in arguments.items() if name in RecipeArguments.__annotations__}
    about_model = {name: value for name, value in arguments.items() if name not in parts}
    if any(about_model.get(own) is not None for own in ("forward", "loss")) and parts.get("records") is None:
        parts["records"] = False
    return cast(RecipeArguments, parts), cast(NetworkArguments, about_model)
