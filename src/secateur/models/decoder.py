"""The decoder of an `AutoencoderKL` as a network of its own: what its pruning cuts, prices, trains and exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor, nn

from .families.autoencoder_kl import describe_autoencoder_kl
from .predict import call
from .registry import register_structure


class AutoencoderKLDecoder(nn.Module):
    """A view of `autoencoder`: its decoding layers under their own names, the very same modules.

    The encoder is no part of it, so that parameters, MACs, averages and exports are the decoder's. It moves along, and
    what is saved is the whole autoencoder.
    """

    autoencoder: AutoencoderKL

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.__dict__["autoencoder"] = autoencoder  # no submodule
        self.post_quant_conv = autoencoder.post_quant_conv
        self.decoder = autoencoder.decoder

    def forward(self, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """Images (B, C, H, W) in about [-1, 1] of the encoder's own latents (B, c, h, w), not scaled.

        Always a tuple; `return_dict` is what every diffusers model takes.
        """
        return (self.decoder(sample if self.post_quant_conv is None else self.post_quant_conv(sample)),)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents of an image of that height and width."""
        factor = 2 ** (len(self.config["block_out_channels"]) - 1)
        return self.config["latent_channels"], height // factor, width // factor

    @property
    def config(self) -> Mapping[str, Any]:
        return {**self.autoencoder.config, "_class_name": type(self.autoencoder).__name__}  # what is saved

    def register_to_config(self, **entries: Any) -> None:
        self.autoencoder.register_to_config(**entries)

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        self.autoencoder.save_pretrained(folder, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AutoencoderKLDecoder:
        self.autoencoder._apply(fn, recurse)
        return self


@call.register
def _(model: AutoencoderKLDecoder, x_BCHW: Tensor, timesteps_B: Tensor, told: Mapping[str, Any]) -> Tensor:
    return model(x_BCHW, return_dict=False)[0]


def as_network(model: nn.Module) -> nn.Module:
    """What of a loaded `model` is pruned: the decoder of an `AutoencoderKL`, any other model itself."""
    return AutoencoderKLDecoder(model) if isinstance(model, AutoencoderKL) else model


register_structure(AutoencoderKLDecoder, describe_autoencoder_kl)
