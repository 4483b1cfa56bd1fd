"""The blocks of Flux and its descendants (Chroma): double stream, then single stream."""

from collections.abc import Iterable
from typing import Any

from ...structure.dims import Block, StructureBuilder
from .attention import declare_attention
from .feedforward import declare_feed_forward

STREAMS = ("encoder_hidden_states", "hidden_states")


def declare_double_stream(builder: StructureBuilder, blocks: Iterable[Any]) -> None:
    """Declare heads, both feed-forward widths and each block of `transformer_blocks`. The residual width is not cut."""
    for i, block in enumerate(blocks):
        name = f"transformer_blocks.{i}"
        declare_attention(builder, f"{name}.attn", block.attn)
        declare_feed_forward(builder, f"{name}.ff", block.ff)
        declare_feed_forward(builder, f"{name}.ff_context", block.ff_context)
        builder.blocks[name] = Block(name, listed=True, returns=STREAMS)


def declare_single_stream(builder: StructureBuilder, blocks: Iterable[Any], returns: tuple[str, ...] = ()) -> None:
    """Declare heads, feed-forward width and each block of `single_transformer_blocks`; `returns` as in `Block`.

    Its last layer projects the channels of its attention and of its feed-forward back together, in this order.
    """
    for i, block in enumerate(blocks):
        name = f"single_transformer_blocks.{i}"
        heads = declare_attention(builder, f"{name}.attn", block.attn)
        inner = builder.dim(f"{name}.mlp", block.proj_mlp.out_features)
        builder.writes(f"{name}.proj_mlp", inner)
        builder.reads(f"{name}.proj_out", [*(heads or [block.attn.inner_dim]), *inner])
        builder.blocks[name] = Block(name, listed=True, returns=returns)
