"""Which function declares the structure of which architecture."""

from collections.abc import Callable
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn

from .dims import Structure
from .dit import describe_dit
from .unet2d import describe_unet2d

_DECLARATIONS: dict[type[nn.Module], Callable[[Any], Structure]] = {
    UNet2DModel: describe_unet2d,
    DiTTransformer2DModel: describe_dit,
}


def register_structure(architecture: type[nn.Module], declaration: Callable[[Any], Structure]) -> None:
    """Declare the structure of your own architecture; see docs/adding-an-architecture.md."""
    _DECLARATIONS[architecture] = declaration


def supported_architectures() -> tuple[str, ...]:
    """Class names that `describe` knows."""
    return tuple(architecture.__name__ for architecture in _DECLARATIONS)


def architecture_named(name: str) -> type[Any]:
    """The class called `name` that has a declared structure.

    Raises:
        KeyError: there is none.
    """
    return {architecture.__name__: architecture for architecture in _DECLARATIONS}[name]


def describe(model: nn.Module) -> Structure:
    """The structure of `model`, read from its live modules, so that a pruned model can be described again.

    Raises:
        ValueError: an architecture that nobody declared.
    """
    for architecture in type(model).__mro__:
        if architecture in _DECLARATIONS:
            return _DECLARATIONS[architecture](model)
    raise ValueError(
        f"{type(model).__name__} has no declared structure; supported: {', '.join(supported_architectures())}. "
        "docs/adding-an-architecture.md shows how to declare one"
    )
