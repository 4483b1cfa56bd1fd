"""U-ViT (Bao et al. 2023, arXiv 2209.12152), for the authors' own `UViT` module and networks laid out like it.

diffusers has no class for it: its `UVit2DModel` is aMUSEd's, which predicts masked tokens and has no noise to remove.
Register it for the class that you have: `secateur.register_family(uvit_family(UViT))`.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...structure import Block, Skip, Structure, StructureBuilder
from ..conditions import LABELS
from ..family import Family, Labels, Shape, as_it_is


def describe_uvit(model: Any) -> Structure:
    """Declare heads, feed-forward widths and blocks of a U-ViT. The residual width is not cut.

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


def uvit_family(architecture: type[nn.Module]) -> Family:
    """The family of a class that is laid out and called like the authors' `UViT`; it needs no diffusers config."""
    return Family(
        architecture,
        describe_uvit,
        arguments=_arguments,
        prediction=as_it_is,
        input_shape=_input_shape,
        labels=_labels,
        patch_size=lambda model: model.patch_embed.proj.kernel_size[0],
    )


def _arguments(network: Any, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"x": x_BCHW, "timesteps": timesteps_B} | ({"y": kwargs[LABELS]} if LABELS in kwargs else {})


def _input_shape(model: Any) -> Shape:
    patch = model.patch_embed.proj
    side = math.isqrt(model.pos_embed.shape[1]) * patch.kernel_size[0]  # with one or two for time and class
    return patch.in_channels, side, side


def _labels(model: Any) -> Labels | None:
    table = getattr(model, "label_emb", None)
    return None if table is None else Labels(table.num_embeddings, "num_classes", null=False)
