"""Residual and resampling layers of U-Nets and autoencoders."""

from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ...base.errors import StructureError
from ...structure.dims import Block, StructureBuilder
from ...structure.streams import Skip
from .attention import declare_attention
from .transformer_block import declare_transformer_block


def declare_embedding(builder: StructureBuilder, name: str, embedding: TimestepEmbedding, out: list[str]) -> None:
    """Declare two linear layers that add to `out`, which may be wider than one of them."""
    inner = builder.dim(f"{name}.inner", embedding.linear_1.out_features)
    builder.writes(f"{name}.linear_1", inner)
    builder.reads(f"{name}.linear_2", inner)
    builder.writes(f"{name}.linear_2", out)


def declare_resnet(
    builder: StructureBuilder, name: str, resnet: ResnetBlock2D | Skip, hidden: list[str], temb: list[str]
) -> list[str]:
    """Declare a resnet over `hidden` conditioned by `temb`; return its output channels."""
    if isinstance(resnet, Skip):
        return hidden
    inner = builder.dim(f"{name}.inner", resnet.conv1.out_channels)
    builder.normalizes(f"{name}.norm1", hidden, resnet.norm1.num_groups)
    builder.reads(f"{name}.conv1", hidden)
    builder.writes(f"{name}.conv1", inner)
    if resnet.time_emb_proj is not None:
        builder.reads(f"{name}.time_emb_proj", temb)
        repeats = 2 if resnet.time_embedding_norm == "scale_shift" else 1
        builder.writes(f"{name}.time_emb_proj", inner, repeats=repeats)
    builder.normalizes(f"{name}.norm2", inner, resnet.norm2.num_groups)
    builder.reads(f"{name}.conv2", inner)
    if resnet.conv_shortcut is None:
        builder.writes(f"{name}.conv2", hidden)
        if not (resnet.up or resnet.down):
            builder.blocks[name] = Block(name, listed=False)
        return hidden
    out = builder.dim(name, resnet.conv2.out_channels)
    builder.reads(f"{name}.conv_shortcut", hidden)
    builder.writes(f"{name}.conv_shortcut", out, bias=resnet.conv_shortcut.bias is not None)
    builder.writes(f"{name}.conv2", out)
    return out


def declare_resample(
    builder: StructureBuilder, name: str, sampler: nn.Module, hidden: list[str], temb: list[str]
) -> list[str]:
    """Declare a layer that halves or doubles the resolution of `hidden`; return its output channels."""
    if isinstance(sampler, ResnetBlock2D):
        return declare_resnet(builder, name, sampler, hidden, temb)
    assert isinstance(sampler, Downsample2D | Upsample2D)
    if not sampler.use_conv:
        return hidden
    out = builder.dim(name, sampler.conv.out_channels)
    builder.reads(f"{name}.conv", hidden)
    builder.writes(f"{name}.conv", out)
    return out


def declare_attention_after(
    builder: StructureBuilder, block: nn.Module, block_name: str, layer: int, hidden: list[str]
) -> None:
    """Declare the attention or transformer over `hidden` that follows resnet `layer` of `block`, if there is one.

    Raises:
        StructureError: a kind of attention whose structure is not declared here.
    """
    attentions = getattr(block, "attentions", None) or ()
    if layer >= len(attentions) or attentions[layer] is None or isinstance(attentions[layer], Skip):
        return
    name, attention = f"{block_name}.attentions.{layer}", attentions[layer]
    if isinstance(attention, Attention):
        declare_attention(builder, name, attention, hidden)
        builder.blocks[name] = Block(name, listed=False)
    elif isinstance(attention, Transformer2DModel):
        _declare_transformer(builder, name, attention, hidden)
    else:
        raise StructureError(f"{name} is a {type(attention).__name__}, which is not supported")


def _declare_transformer(
    builder: StructureBuilder, name: str, transformer: Transformer2DModel, hidden: list[str]
) -> None:
    """Declare a transformer over the pixels of `hidden`, projected to its own width, which is not cut.

    Of several layers, each can be removed from their list; a transformer of one layer is skipped as a whole, with its
    projections. The config keeps the dense model's number of layers, so that a transformer reduced to one layer is
    still of the former kind.
    """
    builder.normalizes(f"{name}.norm", hidden, transformer.norm.num_groups)
    builder.reads(f"{name}.proj_in", hidden)
    several = transformer.config.num_layers > 1
    for i, layer in enumerate(transformer.transformer_blocks):
        layer_name = f"{name}.transformer_blocks.{i}"
        declare_transformer_block(builder, layer_name, layer)
        if several:
            builder.blocks[layer_name] = Block(layer_name, listed=True)
    builder.writes(f"{name}.proj_out", hidden)
    if not several:
        builder.blocks[name] = Block(name, listed=False, returns=("hidden_states",))
