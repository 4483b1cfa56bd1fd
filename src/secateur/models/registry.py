"""Which function declares the structure of which architecture."""

from collections.abc import Callable
from typing import Any

from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from ..structure.dims import Structure
from .families.autoencoder_kl import describe_autoencoder_kl
from .families.dit import describe_dit, describe_pixart
from .families.flux import describe_flux
from .families.sana import describe_sana
from .families.sd3 import describe_sd3
from .families.unet2d import describe_unet2d

_DECLARATIONS: dict[type[nn.Module], Callable[[Any], Structure]] = {
    UNet2DModel: describe_unet2d,
    UNet2DConditionModel: describe_unet2d,
    DiTTransformer2DModel: describe_dit,
    PixArtTransformer2DModel: describe_pixart,
    SD3Transformer2DModel: describe_sd3,
    FluxTransformer2DModel: describe_flux,
    SanaTransformer2DModel: describe_sana,
    AutoencoderKL: describe_autoencoder_kl,
}


def register_structure(architecture: type[nn.Module], declaration: Callable[[Any], Structure]) -> None:
    """Declare the structure of your own architecture; see docs/adding-an-architecture.md."""
    _DECLARATIONS[architecture] = declaration


def supported_architectures() -> tuple[str, ...]:
    """Class names that `describe` knows."""
    return tuple(architecture.__name__ for architecture in _DECLARATIONS)


def unsupported(name: str) -> str:
    """What to say of an architecture that nobody declared."""
    return (
        f"{name} has no declared structure; supported: {', '.join(supported_architectures())}. "
        "docs/adding-an-architecture.md shows how to declare one"
    )


def architecture_named(name: str) -> type[Any]:
    """The class called `name` that has a declared structure.

    Raises:
        KeyError: there is none.
    """
    return {architecture.__name__: architecture for architecture in _DECLARATIONS}[name]


def describe(model: nn.Module) -> Structure:
    """The structure of `model`, read from its live modules, so that a pruned model can be described again.

    Raises:
        ValueError: an architecture that nobody declared, or a parameter that is not where it was declared.
    """
    for architecture in type(model).__mro__:
        if architecture in _DECLARATIONS:
            return _with_all_parameters(model, _DECLARATIONS[architecture](model))
    raise ValueError(unsupported(type(model).__name__))


def _with_all_parameters(model: nn.Module, structure: Structure) -> Structure:
    """`structure`, once `model` is seen to have what it names; LoRA wraps layers, which renames their weights."""
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named = (piece.parameter for dim in structure.dims.values() for piece in dim.slices)
    lacking = next((name for name in named if name not in present), None)
    if lacking is not None:
        raise ValueError(
            f"{type(model).__name__} has no parameter {lacking}: merge or unload adapters, or correct the declaration"
        )
    return structure
