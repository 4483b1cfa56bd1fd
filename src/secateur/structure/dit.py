"""`DiTTransformer2DModel` (DiT and SiT): heads, feed-forward width, blocks. The residual width stays."""

from diffusers import DiTTransformer2DModel
from diffusers.models.activations import GEGLU, SwiGLU

from .attention import declare_self_attention
from .dims import Block, Structure, StructureBuilder


def describe_dit(model: DiTTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`.

    The head of the model reads the conditioning embedding of the first block; when that block is removed, the next
    kept block's embedding takes its place (the same tensor in every converted DiT or SiT checkpoint).
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        declare_self_attention(builder, f"{name}.attn1", block.attn1, [])
        activation, output = block.ff.net[0], block.ff.net[2]
        inner = builder.dim(f"{name}.ff", output.in_features)
        halves = 2 if isinstance(activation, GEGLU | SwiGLU) else 1
        builder.writes(f"{name}.ff.net.0.proj", inner, bias=activation.proj.bias is not None, repeats=halves)
        builder.reads(f"{name}.ff.net.2", inner)
        builder.blocks[name] = Block(name, listed=True)
    return builder.build(head_conditioning="norm1.emb")
