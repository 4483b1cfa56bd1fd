"""`UNet2DModel`: residual channels, resnet and attention inner widths, time embedding."""

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from .attention import declare_self_attention
from .dims import Block, Structure, StructureBuilder
from .removal import Skip

BLOCKS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "UNetMidBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
)


def describe_unet2d(model: UNet2DModel) -> Structure:
    """Walk the forward pass of `model` and declare what can be removed.

    Image channels and the sinusoidal embedding stay. A residual stream is one dim from the layer that opens it (a
    convolution or a resnet with a shortcut) to the last that adds to it; skip connections read it again later.

    Raises:
        ValueError: a block type whose structure is not declared here.
    """
    for block in (*model.down_blocks, *model.up_blocks, model.mid_block):
        if block is not None and type(block).__name__ not in BLOCKS:
            raise ValueError(
                f"UNet2DModel block {type(block).__name__} is not supported; supported: {', '.join(BLOCKS)}"
            )
    walk = _Walk(model)
    return walk.builder.build()


class _Walk:
    def __init__(self, model: UNet2DModel) -> None:
        self.builder = StructureBuilder()
        self.temb = self._time_embedding(model)
        hidden = self.builder.dim("conv_in", model.conv_in.out_channels)
        self.builder.writes("conv_in", hidden)
        skips = [hidden]
        for i, block in enumerate(model.down_blocks):
            name = f"down_blocks.{i}"
            for layer, resnet in enumerate(block.resnets):
                hidden = self._resnet(f"{name}.resnets.{layer}", resnet, hidden)
                hidden = self._attention(f"{name}.attentions.{layer}", _layer(block, layer), hidden)
                skips.append(hidden)
            for layer, sampler in enumerate(block.downsamplers or ()):
                hidden = self._resample(f"{name}.downsamplers.{layer}", sampler, hidden)
                skips.append(hidden)
        if model.mid_block is not None:
            for layer, resnet in enumerate(model.mid_block.resnets):
                hidden = self._resnet(f"mid_block.resnets.{layer}", resnet, hidden)
                hidden = self._attention(f"mid_block.attentions.{layer}", _layer(model.mid_block, layer), hidden)
        for i, block in enumerate(model.up_blocks):
            name = f"up_blocks.{i}"
            for layer, resnet in enumerate(block.resnets):
                hidden = self._resnet(f"{name}.resnets.{layer}", resnet, hidden + skips.pop())
                hidden = self._attention(f"{name}.attentions.{layer}", _layer(block, layer), hidden)
            for layer, sampler in enumerate(block.upsamplers or ()):
                hidden = self._resample(f"{name}.upsamplers.{layer}", sampler, hidden)
        self.builder.normalizes("conv_norm_out", hidden, model.conv_norm_out.num_groups)
        self.builder.reads("conv_out", hidden)

    def _time_embedding(self, model: UNet2DModel) -> list[str]:
        """The embedding that every resnet reads; nothing when class labels are added to it as they are."""
        embedded = [("time_embedding", model.time_embedding)]
        if isinstance(model.class_embedding, TimestepEmbedding):
            embedded.append(("class_embedding", model.class_embedding))
        temb = (
            []
            if isinstance(model.class_embedding, nn.Identity)
            else self.builder.dim("time_embedding", model.time_embedding.linear_2.out_features)
        )
        for name, module in embedded:
            inner = self.builder.dim(f"{name}.inner", module.linear_1.out_features)
            self.builder.writes(f"{name}.linear_1", inner)
            self.builder.reads(f"{name}.linear_2", inner)
            self.builder.writes(f"{name}.linear_2", temb)
        if isinstance(model.class_embedding, nn.Embedding):
            self.builder.add("class_embedding.weight", 1, temb, "out")
        return temb

    def _resnet(self, name: str, resnet: ResnetBlock2D | Skip, hidden: list[str]) -> list[str]:
        if isinstance(resnet, Skip):
            return hidden
        inner = self.builder.dim(f"{name}.inner", resnet.conv1.out_channels)
        self.builder.normalizes(f"{name}.norm1", hidden, resnet.norm1.num_groups)
        self.builder.reads(f"{name}.conv1", hidden)
        self.builder.writes(f"{name}.conv1", inner)
        if resnet.time_emb_proj is not None:
            self.builder.reads(f"{name}.time_emb_proj", self.temb)
            repeats = 2 if resnet.time_embedding_norm == "scale_shift" else 1
            self.builder.writes(f"{name}.time_emb_proj", inner, repeats=repeats)
        self.builder.normalizes(f"{name}.norm2", inner, resnet.norm2.num_groups)
        self.builder.reads(f"{name}.conv2", inner)
        if resnet.conv_shortcut is None:
            self.builder.writes(f"{name}.conv2", hidden)
            if not (resnet.up or resnet.down):
                self.builder.blocks[name] = Block(name, listed=False)
            return hidden
        out = self.builder.dim(name, resnet.conv2.out_channels)
        self.builder.reads(f"{name}.conv_shortcut", hidden)
        self.builder.writes(f"{name}.conv_shortcut", out, bias=resnet.conv_shortcut.bias is not None)
        self.builder.writes(f"{name}.conv2", out)
        return out

    def _attention(self, name: str, attention: Attention | None, hidden: list[str]) -> list[str]:
        if attention is not None:
            declare_self_attention(self.builder, name, attention, hidden)
            self.builder.blocks[name] = Block(name, listed=False)
        return hidden

    def _resample(self, name: str, sampler: nn.Module, hidden: list[str]) -> list[str]:
        if isinstance(sampler, ResnetBlock2D):
            return self._resnet(name, sampler, hidden)
        assert isinstance(sampler, Downsample2D | Upsample2D)
        if not sampler.use_conv:
            return hidden
        out = self.builder.dim(name, sampler.conv.out_channels)
        self.builder.reads(f"{name}.conv", hidden)
        self.builder.writes(f"{name}.conv", out)
        return out


def _layer(block: nn.Module, layer: int) -> Attention | None:
    """The attention that follows resnet `layer`, if there is one."""
    attentions = getattr(block, "attentions", None)
    if attentions is None or layer >= len(attentions) or not isinstance(attentions[layer], Attention):
        return None
    return attentions[layer]
