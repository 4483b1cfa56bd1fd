"""`UNet2DModel`, and parts shared with `UNet2DConditionModel`: channels, heads, time embedding, layers."""

from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from ...base.errors import StructureError
from ...structure import Structure, StructureBuilder
from ..family import Family
from ..layers.convolution import declare_attention_after, declare_embedding, declare_resample, declare_resnet

BLOCKS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "AttnUpBlock2D",
    "CrossAttnUpBlock2D",
    "ResnetUpsampleBlock2D",
)


def describe_unet2d(model: UNet2DModel | UNet2DConditionModel) -> Structure:
    """Walk the forward pass of `model` and declare what can be removed.

    Image channels, the sinusoidal embedding, the text encoder's width and the width inside transformers are not cut. A
    residual stream is one dim from the layer that begins it (a convolution or a resnet with a shortcut) to the last
    that adds to it; skip connections read it again later.

    Raises:
        StructureError: a block type whose structure is not declared here; or FreeU is on, which scales the first half
            of the channels, whichever they are.
    """
    if any(getattr(block, "s1", None) for block in model.up_blocks):
        raise StructureError(
            f"FreeU is on in this {type(model).__name__}: call disable_freeu() first, and enable it after the cut"
        )
    for block in (*model.down_blocks, *model.up_blocks, model.mid_block):
        if block is not None and type(block).__name__ not in BLOCKS:
            raise StructureError(
                f"{type(model).__name__} block {type(block).__name__} is not supported; supported: {', '.join(BLOCKS)}"
            )
    builder = StructureBuilder()
    temb = _time_embedding(builder, model)
    hidden = builder.dim("conv_in", model.conv_in.out_channels)
    builder.writes("conv_in", hidden)
    skips = [hidden]
    for i, block in enumerate(model.down_blocks):
        name = f"down_blocks.{i}"
        for layer, resnet in enumerate(block.resnets):
            hidden = declare_resnet(builder, f"{name}.resnets.{layer}", resnet, hidden, temb)
            declare_attention_after(builder, block, name, layer, hidden)
            skips.append(hidden)
        for layer, sampler in enumerate(block.downsamplers or ()):
            hidden = declare_resample(builder, f"{name}.downsamplers.{layer}", sampler, hidden, temb)
            skips.append(hidden)
    if model.mid_block is not None:
        for layer, resnet in enumerate(model.mid_block.resnets):
            hidden = declare_resnet(builder, f"mid_block.resnets.{layer}", resnet, hidden, temb)
            declare_attention_after(builder, model.mid_block, "mid_block", layer, hidden)
    for i, block in enumerate(model.up_blocks):
        name = f"up_blocks.{i}"
        for layer, resnet in enumerate(block.resnets):
            hidden = declare_resnet(builder, f"{name}.resnets.{layer}", resnet, hidden + skips.pop(), temb)
            declare_attention_after(builder, block, name, layer, hidden)
        for layer, sampler in enumerate(block.upsamplers or ()):
            hidden = declare_resample(builder, f"{name}.upsamplers.{layer}", sampler, hidden, temb)
    builder.normalizes("conv_norm_out", hidden, model.conv_norm_out.num_groups)
    builder.reads("conv_out", hidden)
    return builder.build()


def _time_embedding(builder: StructureBuilder, model: UNet2DModel | UNet2DConditionModel) -> list[str]:
    """The embedding that every resnet reads: the sum of those of time, classes, and text and size (SDXL).

    Empty if a term cannot be cut: raw labels, or embeddings with their own norms.
    """
    added = {"class_embedding": model.class_embedding, "add_embedding": getattr(model, "add_embedding", None)}
    embeddings = {name: module for name, module in added.items() if module is not None}
    shrinks = all(isinstance(module, TimestepEmbedding | nn.Embedding | nn.Linear) for module in embeddings.values())
    width = model.time_embedding.linear_2.out_features
    temb = builder.dim("time_embedding", width) if shrinks else []
    declare_embedding(builder, "time_embedding", model.time_embedding, temb)
    concatenated = model.config.get("class_embeddings_concat", False)
    # After a cut its width may differ from time's.
    classes = builder.dim("class_embedding", _width(model.class_embedding)) if concatenated and shrinks else temb
    for name, module in embeddings.items():
        if isinstance(module, TimestepEmbedding):
            declare_embedding(builder, name, module, classes)
        elif isinstance(module, nn.Embedding):
            builder.add(f"{name}.weight", 1, classes, "out")
        elif isinstance(module, nn.Linear):
            builder.writes(name, classes)
    return temb + classes if concatenated else temb


def _width(embedding: TimestepEmbedding | nn.Embedding | nn.Linear) -> int:
    last = embedding.linear_2 if isinstance(embedding, TimestepEmbedding) else embedding
    return last.embedding_dim if isinstance(last, nn.Embedding) else last.out_features


def no_depth(model: UNet2DModel | UNet2DConditionModel) -> dict[str, Any]:
    """Empty: the config has one layer count for all levels, so no entry can say which layers were removed."""
    return {}


UNET2D = Family(UNet2DModel, describe_unet2d, depth_entries=no_depth)
