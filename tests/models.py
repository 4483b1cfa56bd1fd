"""Small random models of every supported architecture."""

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.models.embeddings import TimestepEmbedding
from hypothesis import strategies as st
from torch import nn

from secateur.structure import Cut, Structure


def randomize(model: nn.Module, seed: int = 0, scale: float = 0.25) -> nn.Module:
    """Random values in every parameter, so that nothing is hidden behind a zero or an identity at initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (scale / 0.25) * fan_in**-0.5)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.add_(1)
    return model.eval()


def unet(**changes: object) -> UNet2DModel:
    """A U-Net with attention of a few thousand parameters."""
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    model = UNet2DModel(**(config | changes))
    if isinstance(model.class_embedding, TimestepEmbedding):
        # diffusers hands this one float32 in a float64 model.
        model.class_embedding.register_forward_pre_hook(
            lambda module, args: (args[0].to(module.linear_1.weight.dtype),)
        )
    return randomize(model)


def dit(**changes: object) -> DiTTransformer2DModel:
    """A class-conditional DiT of a few thousand parameters."""
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "patch_size": 2,
        "num_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": 10,
    }
    return randomize(DiTTransformer2DModel(**(config | changes)))


DOWN_UP = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
}


@st.composite
def unets(draw: st.DrawFn, **fixed: object) -> UNet2DModel:
    """Random `UNet2DModel` configurations: norm groups that straddle skips, head sizes, block types, embeddings."""
    groups = draw(st.sampled_from([1, 2, 4]))
    depth = draw(st.integers(1, 3))
    channels = tuple(groups * 2 * draw(st.integers(1, 5)) for _ in range(depth))
    head_dim = draw(st.sampled_from([None, 2, groups * 2]))
    if head_dim is not None and any(width % head_dim for width in channels):
        head_dim = None
    down = tuple(draw(st.sampled_from(sorted(DOWN_UP))) for _ in range(depth))
    embedding = draw(st.sampled_from([{}, {"num_class_embeds": 3}]))
    if not fixed:
        embedding = draw(
            st.sampled_from([embedding, {"class_embed_type": "timestep", "time_embedding_type": "fourier"}])
        )
    up = tuple(draw(st.sampled_from(sorted(DOWN_UP.values()))) for _ in range(depth))
    drawn = {
        "in_channels": draw(st.sampled_from([1, 3])),
        "out_channels": draw(st.sampled_from([1, 3])),
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2D", "UNetMidBlock2D", None])),
        "norm_num_groups": groups,
        "attn_norm_num_groups": draw(st.sampled_from([None, groups])),
        "attention_head_dim": head_dim,
        "layers_per_block": draw(st.integers(1, 2)),
        "downsample_padding": draw(st.sampled_from([0, 1])),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "time_embedding_type": draw(st.sampled_from(["positional", "fourier", "learned"])),
        "time_embedding_dim": draw(st.sampled_from([None, 12])),
        "num_train_timesteps": 1000,
        "mid_block_scale_factor": draw(st.sampled_from([1, 1.5])),
        "add_attention": draw(st.booleans()),
    }
    return unet(**(drawn | embedding | fixed))


@st.composite
def dits(draw: st.DrawFn) -> DiTTransformer2DModel:
    """Random `DiTTransformer2DModel` configurations."""
    return dit(
        num_layers=draw(st.integers(1, 4)),
        num_attention_heads=draw(st.sampled_from([1, 2, 3, 4])),
        attention_head_dim=draw(st.sampled_from([4, 8])),
        activation_fn=draw(st.sampled_from(["gelu-approximate", "gelu", "geglu", "geglu-approximate", "swiglu"])),
        attention_bias=draw(st.booleans()),
        out_channels=draw(st.sampled_from([1, 2])),
        norm_elementwise_affine=False,
    )


@st.composite
def cuts(draw: st.DrawFn, structure: Structure) -> Cut:
    """Any valid cut of a structure."""
    kept = {}
    for dims in structure.links.values():
        level = draw(st.integers(1, dims[0].levels))
        for dim in dims:
            units: list[int] = []
            for cell in dim.cell_ranges():
                count = len(cell) * level // dim.levels
                units += draw(st.permutations(cell))[:count]
            kept[dim.name] = tuple(sorted(units))
    removable = sorted(structure.blocks)
    removed = draw(st.sets(st.sampled_from(removable))) if removable else set()
    listed = {name for name, block in structure.blocks.items() if block.listed}
    if listed and listed <= removed:
        removed.discard(min(listed))
    return Cut(kept, tuple(sorted(removed)))


def inputs_for(model: nn.Module, batch_size: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by keyword for a model built here."""
    generator = torch.Generator().manual_seed(seed)
    size, channels = model.config.sample_size, model.config.in_channels
    x = torch.randn(batch_size, channels, size, size, generator=generator)
    timestep = torch.randint(1, 1000, (batch_size,), generator=generator)
    labels = torch.randint(1, 3, (batch_size,), generator=generator)  # Fourier embeddings take the log
    if isinstance(model, DiTTransformer2DModel):
        return {"hidden_states": x, "timestep": timestep, "class_labels": labels}
    inputs = {"sample": x, "timestep": timestep}
    return inputs if model.class_embedding is None else inputs | {"class_labels": labels}


@torch.no_grad()
def output(model: nn.Module, batch_size: int = 2, seed: int = 0) -> torch.Tensor:
    """The model's output on `inputs_for`."""
    return model(**inputs_for(model, batch_size, seed), return_dict=False)[0]
