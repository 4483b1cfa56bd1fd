"""`SD3Transformer2DModel` (Stable Diffusion 3 and 3.5): heads shared by image and text, feed-forward widths, blocks."""

from diffusers import SD3Transformer2DModel

from ...structure.dims import Block, Structure, StructureBuilder
from ..layers.attention import declare_attention
from ..layers.feedforward import declare_feed_forward

STREAMS = ("encoder_hidden_states", "hidden_states")


def describe_sd3(model: SD3Transformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width stays.

    The last block drops the text stream, as no other can, so it is not among the blocks that may leave.
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        declare_attention(builder, f"{name}.attn", block.attn)
        if block.attn2 is not None:
            declare_attention(builder, f"{name}.attn2", block.attn2)
        declare_feed_forward(builder, f"{name}.ff", block.ff)
        if not block.context_pre_only:
            declare_feed_forward(builder, f"{name}.ff_context", block.ff_context)
            builder.blocks[name] = Block(name, listed=True, returns=STREAMS)
    return builder.build()
