"""`FluxTransformer2DModel`: heads and feed-forward widths of double- and single-stream blocks, and the blocks."""

from diffusers import FluxTransformer2DModel

from ...structure.dims import Block, Structure, StructureBuilder
from ..layers.attention import declare_attention
from ..layers.feedforward import declare_feed_forward

STREAMS = ("encoder_hidden_states", "hidden_states")


def describe_flux(model: FluxTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width and the rotary embedding stay.

    A single-stream block projects the channels of its attention and of its feed-forward back together, in this order.
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        declare_attention(builder, f"{name}.attn", block.attn)
        declare_feed_forward(builder, f"{name}.ff", block.ff)
        declare_feed_forward(builder, f"{name}.ff_context", block.ff_context)
        builder.blocks[name] = Block(name, listed=True, returns=STREAMS)
    for i, block in enumerate(model.single_transformer_blocks):
        name = f"single_transformer_blocks.{i}"
        heads = declare_attention(builder, f"{name}.attn", block.attn)
        inner = builder.dim(f"{name}.mlp", block.proj_mlp.out_features)
        builder.writes(f"{name}.proj_mlp", inner)
        builder.reads(f"{name}.proj_out", [*(heads or [block.attn.inner_dim]), *inner])
        builder.blocks[name] = Block(name, listed=True, returns=STREAMS)
    return builder.build()
