"""U-ViT (Bao et al. 2023, arXiv 2209.12152), for the authors' own `UViT` module and networks laid out like it.

diffusers has no class for it: its `UVit2DModel` is aMUSEd's, which predicts masked tokens and has no noise to remove.
Register it for the class that you have: `secateur.register_structure(UViT, describe_uvit)`.
"""

from typing import Any

from ...structure.dims import Block, Structure, StructureBuilder
from ...structure.streams import Skip


def describe_uvit(model: Any) -> Structure:
    """Declare heads, feed-forward widths and blocks of a U-ViT. The residual width stays.

    Its blocks stand in `in_blocks`, `mid_block` and `out_blocks`, each with `attn.qkv` (queries, keys and values, each
    head by head), `attn.proj`, `attn.num_heads`, `mlp.fc1` and `mlp.fc2`. A skipped block hands its input on, down the
    long skip connection too, so blocks of both halves may leave independently.
    """
    builder = StructureBuilder()
    names = [f"in_blocks.{i}" for i in range(len(model.in_blocks))]
    names += ["mid_block", *(f"out_blocks.{i}" for i in range(len(model.out_blocks)))]
    for name in names:
        block = model.get_submodule(name)
        if not isinstance(block, Skip):
            _declare_block(builder, name, block)
    return builder.build()


def _declare_block(builder: StructureBuilder, name: str, block: Any) -> None:
    attention, qkv, num_heads = f"{name}.attn", block.attn.qkv, block.attn.num_heads
    heads = builder.dim(f"{attention}.heads", num_heads, qkv.out_features // 3 // num_heads)
    builder.writes(f"{attention}.qkv", heads, bias=qkv.bias is not None, repeats=3)
    builder.reads(f"{attention}.proj", heads)
    builder.follows(f"{attention}.num_heads", heads)
    builder.attention[attention] = heads[0]
    inner = builder.dim(f"{name}.mlp", block.mlp.fc1.out_features)
    builder.writes(f"{name}.mlp.fc1", inner)
    builder.reads(f"{name}.mlp.fc2", inner)
    builder.blocks[name] = Block(name, listed=False)
