"""`DiTTransformer2DModel` (DiT and SiT) and `PixArtTransformer2DModel`: heads, feed-forward width, blocks."""

from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from ...structure.dims import Block, Structure, StructureBuilder
from ..layers.transformer_block import declare_transformer_block


def describe_dit(model: DiTTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width stays.

    The head of the model reads the conditioning embedding of the first block; when that block is removed, the next
    kept block's embedding takes its place (the same tensor in every converted DiT or SiT checkpoint).
    """
    return _blocks(model).build(head_conditioning="norm1.emb")


def describe_pixart(model: PixArtTransformer2DModel) -> Structure:
    """As `describe_dit`, with cross-attention to the text, for PixArt-alpha and -sigma.

    One embedding modulates all blocks, so the head reads none of theirs.
    """
    return _blocks(model).build()


def _blocks(model: DiTTransformer2DModel | PixArtTransformer2DModel) -> StructureBuilder:
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        declare_transformer_block(builder, name, block)
        builder.blocks[name] = Block(name, listed=True)
    return builder
