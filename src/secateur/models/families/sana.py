"""`SanaTransformer2DModel`: heads of linear and cross-attention, gated convolutional feed-forward widths, blocks."""

from diffusers import SanaTransformer2DModel
from diffusers.models.transformers.sana_transformer import GLUMBConv

from ...structure.dims import Block, Structure, StructureBuilder
from ..layers.attention import declare_attention


def describe_sana(model: SanaTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width stays.

    A single head of linear attention stays whole: its products cost the square of its channels.
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        if block.attn1.heads > 1:
            declare_attention(builder, f"{name}.attn1", block.attn1)
        declare_attention(builder, f"{name}.attn2", block.attn2)
        _declare_gated_convolution(builder, f"{name}.ff", block.ff)
        builder.blocks[name] = Block(name, listed=True)
    return builder.build()


def _declare_gated_convolution(builder: StructureBuilder, name: str, feed_forward: GLUMBConv) -> None:
    """A pointwise convolution to two halves, a depthwise one over both, and one back from their product."""
    inner = builder.dim(name, feed_forward.conv_point.in_channels)
    builder.writes(f"{name}.conv_inverted", inner, repeats=2)
    builder.writes(f"{name}.conv_depth", inner, repeats=2)
    builder.reads(f"{name}.conv_point", inner)
