"""The decoder of `AutoencoderKL`: residual channels, inner widths, attention channels, layers."""

from diffusers import AutoencoderKL

from ...structure.dims import Structure, StructureBuilder
from ..layers.convolution import declare_attention_after, declare_resample, declare_resnet


def describe_autoencoder_kl(model: AutoencoderKL) -> Structure:
    """Declare the decoder of `model`. The encoder stays: another one would move the latents that networks know."""
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
