"""`DiTTransformer2DModel` (DiT and SiT): heads, feed-forward width, blocks."""

from diffusers import DiTTransformer2DModel

from ...structure import Structure, StructureBuilder
from ..family import Family, counted
from ..layers.transformer_block import declare_listed_blocks


def describe_dit(model: DiTTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width is not cut.

    The head of the model reads the conditioning embedding of the first block; when that block is removed, the next
    kept block's embedding takes its place (the same tensor in every converted DiT or SiT checkpoint).
    """
    builder = StructureBuilder()
    declare_listed_blocks(builder, "transformer_blocks", model.transformer_blocks)
    return builder.build(head_conditioning="norm1.emb")


DIT = Family(
    DiTTransformer2DModel,
    describe_dit,
    depth_entries=counted(transformer_blocks="num_layers"),
    used_outside=("transformer_blocks.*.norm1.emb",),
)
