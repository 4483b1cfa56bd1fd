"""`BasicTransformerBlock`, the layer of DiT, PixArt and the U-Nets: heads and feed-forward width."""

from collections.abc import Iterable

from diffusers.models.attention import BasicTransformerBlock

from ...structure.dims import Block, StructureBuilder
from .attention import declare_attention
from .feedforward import declare_feed_forward


def declare_transformer_block(builder: StructureBuilder, name: str, block: BasicTransformerBlock) -> None:
    """Declare self-attention, cross-attention if there is one, and feed-forward; the residual width is not cut."""
    declare_attention(builder, f"{name}.attn1", block.attn1)
    if block.attn2 is not None:
        declare_attention(builder, f"{name}.attn2", block.attn2)
    declare_feed_forward(builder, f"{name}.ff", block.ff)


def declare_listed_blocks(builder: StructureBuilder, name: str, blocks: Iterable[BasicTransformerBlock]) -> None:
    """Declare the layers of the list `name`, each of which can be removed."""
    for i, block in enumerate(blocks):
        declare_transformer_block(builder, f"{name}.{i}", block)
        builder.blocks[f"{name}.{i}"] = Block(f"{name}.{i}", listed=True)
