"""The decoder of `AutoencoderKL`: residual channels, inner widths, attention channels, layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...structure import Structure, StructureBuilder
from ..family import Family, Size, as_it_is, config_of
from ..layers.convolution import declare_attention_after, declare_resample, declare_resnet


class AutoencoderKLDecoder(nn.Module):
    """The decoder of `autoencoder` as a separate network, with the same modules under the same names.

    The encoder is not part of it, so that parameters, MACs, averages and exports are the decoder's. The encoder is
    moved with it, and saving writes the whole autoencoder.
    """

    autoencoder: AutoencoderKL

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.__dict__["autoencoder"] = autoencoder  # not a submodule
        self.post_quant_conv = autoencoder.post_quant_conv
        self.decoder = autoencoder.decoder

    def forward(self, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """Images (B, C, H, W) in about [-1, 1] of the encoder's own latents (B, c, h, w), not scaled.

        Always returns a tuple; `return_dict` is for compatibility with diffusers.
        """
        return (self.decoder(sample if self.post_quant_conv is None else self.post_quant_conv(sample)),)

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


def describe_autoencoder_kl(model: AutoencoderKL | AutoencoderKLDecoder) -> Structure:
    """Declare the decoder of `model`. The encoder is not cut: that would change the latents that networks were trained
    on."""
    builder, decoder = StructureBuilder(), model.decoder
    hidden = builder.dim("decoder.conv_in", decoder.conv_in.out_channels)
    builder.writes("decoder.conv_in", hidden)
    blocks = {"mid_block": decoder.mid_block} | {f"up_blocks.{i}": block for i, block in enumerate(decoder.up_blocks)}
    for name, block in blocks.items():
        for layer, resnet in enumerate(block.resnets):
            hidden = declare_resnet(builder, f"decoder.{name}.resnets.{layer}", resnet, hidden, [])
            declare_attention_after(builder, block, f"decoder.{name}", layer, hidden)
        for layer, sampler in enumerate(getattr(block, "upsamplers", None) or ()):
            hidden = declare_resample(builder, f"decoder.{name}.upsamplers.{layer}", sampler, hidden, [])
    builder.normalizes("decoder.conv_norm_out", hidden, decoder.conv_norm_out.num_groups)
    builder.reads("decoder.conv_out", hidden)
    return builder.build()


def _latent_shape(model: AutoencoderKLDecoder, size: Size) -> tuple[int, int, int]:
    config, (height, width) = config_of(model), size
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return config["latent_channels"], height // factor, width // factor


def _no_depth(model: AutoencoderKL | AutoencoderKLDecoder) -> dict[str, Any]:
    """Empty: the config has one layer count for all levels, so no entry can say which layers were removed."""
    return {}


AUTOENCODER_KL = Family(AutoencoderKL, describe_autoencoder_kl, depth_entries=_no_depth, network=AutoencoderKLDecoder)
AUTOENCODER_KL_DECODER = Family(
    AutoencoderKLDecoder,
    describe_autoencoder_kl,
    prediction=as_it_is,
    taken_shape=_latent_shape,
    depth_entries=_no_depth,
)
