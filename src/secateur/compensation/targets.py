"""Which layers of a pruned model are refitted, and to which target."""

from __future__ import annotations

from torch import nn

from ..base.errors import SecateurError
from ..models.registry import describe
from ..structure import has_streams
from .config import CompensationConfig, CompensationTarget
from .counterparts import Counterparts, Layer, shared_weights


def chosen_target(pruned: nn.Module, config: CompensationConfig) -> CompensationTarget:
    """The target in `config`; for auto, the one that suits the model.

    Raises:
        SecateurError: the target is stream, and the model's stream was cut.
    """
    suits = has_streams(pruned, describe(pruned))
    if config.target == "stream" and not suits:
        raise SecateurError(
            f"the stream target needs blocks that add to a stream whose width stays, and those of "
            f"{type(pruned).__name__} do not; use target output"
        )
    return config.target if config.target != "auto" else "stream" if suits else "output"


def layers_to_refit(pruned: nn.Module, parts: Counterparts) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers to refit (those that read a cut dim or, if blocks were removed, any dim), and those that cannot be
    refitted."""
    reading = dict.fromkeys(
        piece.module for dim in describe(pruned).dims.values() for piece in dim.slices if piece.role == "in"
    )
    shared = shared_weights(pruned)
    layers, left = {}, {}
    for name in reading:
        layer, module = parts.layers.get(name), pruned.get_submodule(name)
        if layer is None:
            left[name] = f"a {type(module).__name__} has no closed form here"
        elif layer.lost == 0 and not parts.blocks_left:
            continue
        elif name in shared:
            left[name] = "another layer has the same weights"
        elif isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
            left[name] = "a grouped convolution, or one whose padding is not of zeros"
        elif isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
            left[name] = f"a convolution with padding {module.padding!r}"
        else:
            layers[name] = layer
    return layers, left
