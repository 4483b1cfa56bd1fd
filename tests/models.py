"""Small random models of every supported architecture."""

import torch
from diffusers import (
    AutoencoderKL,
    ChromaTransformer2DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.normalization import RMSNorm
from hypothesis import strategies as st
from torch import nn

from secateur import register_family
from secateur.models.conditions import Conditions
from secateur.models.families.autoencoder_kl import AutoencoderKLDecoder
from secateur.models.families.uvit import uvit_family
from secateur.models.network import example_batch, example_inputs
from secateur.models.registry import describe
from secateur.structure import Cut, Structure
from uvit import UViT

register_family(uvit_family(UViT))


def randomize(model: nn.Module, seed: int = 0, scale: float = 0.25) -> nn.Module:
    """Random values in every parameter, so that nothing is hidden behind a zero or an identity at initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (scale / 0.25) * fan_in**-0.5)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm | nn.RMSNorm | RMSNorm) and module.weight is not None:
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
        # diffusers passes float32 to this layer in a float64 model.
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


def unet_condition(**changes: object) -> UNet2DConditionModel:
    """A text-conditional U-Net of a few thousand parameters."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,  # the number of heads, by its historical name
        "cross_attention_dim": 12,
    }
    return randomize(UNet2DConditionModel(**(config | changes)))


def sdxl(**changes: object) -> UNet2DConditionModel:
    """The shape of SDXL's U-Net: several layers in a transformer, linear projections, embeddings of text and size."""
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 3),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    }
    return unet_condition(**(config | changes))


def pixart(**changes: object) -> PixArtTransformer2DModel:
    """A PixArt transformer of a few thousand parameters."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "caption_channels": 12,
    }
    return randomize(PixArtTransformer2DModel(**(config | changes)))


def sd3(**changes: object) -> SD3Transformer2DModel:
    """A Stable Diffusion 3 transformer of a few thousand parameters."""
    heads, head_dim = changes.get("num_attention_heads", 4), changes.get("attention_head_dim", 8)
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "joint_attention_dim": 12,
        "caption_projection_dim": heads * head_dim,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 8,
    }
    return randomize(SD3Transformer2DModel(**(config | changes)))


def flux(**changes: object) -> FluxTransformer2DModel:
    """A Flux transformer of a few thousand parameters, whose config says a size, as those on the hub do not."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
    }
    model = FluxTransformer2DModel(**(config | changes))
    model.register_to_config(sample_size=8)
    return randomize(model)


def chroma(**changes: object) -> ChromaTransformer2DModel:
    """A Chroma transformer of a few thousand parameters, whose config says a size, as those on the hub do not."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "joint_attention_dim": 12,
        "approximator_num_channels": 8,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    }
    model = ChromaTransformer2DModel(**(config | changes))
    model.register_to_config(sample_size=8)
    return randomize(model)


def sana(**changes: object) -> SanaTransformer2DModel:
    """A Sana transformer of a few thousand parameters."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 4,
        "attention_head_dim": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
    }
    return randomize(SanaTransformer2DModel(**(config | changes)))


def autoencoder(**changes: object) -> AutoencoderKL:
    """A variational autoencoder of a few thousand parameters."""
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_num_groups": 4,
    }
    return randomize(AutoencoderKL(**(config | changes)))


def uvit(**changes: object) -> UViT:
    """A U-ViT of a few thousand parameters."""
    return randomize(UViT(**({"img_size": 8, "embed_dim": 16, "num_heads": 4, "depth": 4, "num_classes": 3} | changes)))


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
def unet_conditions(draw: st.DrawFn) -> UNet2DConditionModel:
    """Random text-conditional U-Nets: blocks with and without attention, projections, depths, embeddings."""
    groups = draw(st.sampled_from([1, 2, 4]))
    depth = draw(st.integers(1, 2))
    with_attention = [draw(st.booleans()) for _ in range(depth)]
    class_embedding = [
        {},
        {"num_class_embeds": 3, "class_embeddings_concat": draw(st.booleans())},
        {"class_embed_type": "timestep"},
        {"class_embed_type": "identity"},
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 6},
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6},
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 2},
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 30,
            "num_class_embeds": draw(st.sampled_from([None, 3])),
        },
    ]
    return unet_condition(
        block_out_channels=tuple(4 * draw(st.integers(1, 4)) for _ in range(depth)),
        down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in with_attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(with_attention)),
        mid_block_type=draw(st.sampled_from(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])),
        norm_num_groups=groups,
        attention_head_dim=draw(st.sampled_from([1, 2, 4])),
        transformer_layers_per_block=draw(st.sampled_from([1, 2])),
        layers_per_block=draw(st.integers(1, 2)),
        use_linear_projection=draw(st.booleans()),
        only_cross_attention=draw(st.booleans()),
        upcast_attention=draw(st.booleans()),
        encoder_hid_dim=draw(st.sampled_from([None, 6])),
        resnet_time_scale_shift=draw(st.sampled_from(["default", "scale_shift"])),
        time_embedding_type=draw(st.sampled_from(["positional", "fourier"])),
        time_embedding_act_fn=draw(st.sampled_from([None, "gelu"])),
        timestep_post_act=draw(st.sampled_from([None, "silu"])),
        **draw(st.sampled_from(class_embedding)),
    )


@st.composite
def pixarts(draw: st.DrawFn) -> PixArtTransformer2DModel:
    """Random PixArt-alpha and -sigma configurations."""
    heads, head_dim = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([4, 12]))
    return pixart(
        num_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        cross_attention_dim=heads * head_dim,
        caption_channels=draw(st.sampled_from([None, 12])),
        activation_fn=draw(st.sampled_from(["gelu-approximate", "geglu", "swiglu", "linear-silu"])),
        attention_bias=draw(st.booleans()),
        norm_elementwise_affine=draw(st.booleans()),
        use_additional_conditions=draw(st.booleans()) and heads * head_dim % 3 == 0,
    )


@st.composite
def sd3s(draw: st.DrawFn) -> SD3Transformer2DModel:
    """Random Stable Diffusion 3 and 3.5 configurations."""
    layers = draw(st.integers(1, 3))
    return sd3(
        num_layers=layers,
        num_attention_heads=draw(st.integers(1, 3)),
        qk_norm=draw(st.sampled_from([None, "rms_norm", "layer_norm"])),
        dual_attention_layers=tuple(i for i in range(layers) if draw(st.booleans())),
    )


@st.composite
def fluxes(draw: st.DrawFn) -> FluxTransformer2DModel:
    """Random Flux configurations."""
    return flux(
        num_layers=draw(st.integers(0, 2)),
        num_single_layers=draw(st.integers(1, 3)),
        num_attention_heads=draw(st.integers(1, 3)),
        guidance_embeds=draw(st.booleans()),
    )


@st.composite
def chromas(draw: st.DrawFn) -> ChromaTransformer2DModel:
    """Random Chroma configurations."""
    return chroma(
        num_layers=draw(st.integers(0, 2)),
        num_single_layers=draw(st.integers(1, 3)),
        num_attention_heads=draw(st.integers(1, 3)),
        approximator_layers=draw(st.integers(1, 2)),
    )


@st.composite
def sanas(draw: st.DrawFn) -> SanaTransformer2DModel:
    """Random Sana configurations."""
    heads, cross_heads = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    return sana(
        num_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        attention_head_dim=16 // heads,
        num_cross_attention_heads=cross_heads,
        cross_attention_head_dim=16 // cross_heads,
        attention_bias=draw(st.booleans()),
        mlp_ratio=draw(st.sampled_from([1.5, 2.5])),
        qk_norm=draw(st.sampled_from([None, "rms_norm_across_heads"])),
        guidance_embeds=draw(st.booleans()),
        interpolation_scale=draw(st.sampled_from([None, 1])),
        norm_elementwise_affine=draw(st.booleans()),
    )


@st.composite
def decoders(draw: st.DrawFn) -> AutoencoderKLDecoder:
    """Decoders of random autoencoders."""
    depth = draw(st.integers(1, 2))
    up = tuple(draw(st.sampled_from(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])) for _ in range(depth))
    random_autoencoder = autoencoder(
        latent_channels=draw(st.integers(1, 3)),
        block_out_channels=tuple(4 * draw(st.integers(1, 4)) for _ in range(depth)),
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=up,
        layers_per_block=draw(st.integers(1, 2)),
        norm_num_groups=draw(st.sampled_from([1, 2, 4])),
        mid_block_add_attention=draw(st.booleans()),
        use_post_quant_conv=draw(st.booleans()),
    )
    return AutoencoderKLDecoder(random_autoencoder)


@st.composite
def uvits(draw: st.DrawFn) -> UViT:
    """Random U-ViT configurations."""
    return uvit(
        depth=2 * draw(st.integers(1, 2)),
        num_heads=draw(st.sampled_from([1, 2, 4])),
        qkv_bias=draw(st.booleans()),
        mlp_time_embed=draw(st.booleans()),
        conv=draw(st.booleans()),
        skip=draw(st.booleans()),
    )


# Architectures that load and save, and all of them.
STRATEGIES = {
    "unet": unets(),
    "dit": dits(),
    "unet-condition": unet_conditions(),
    "pixart": pixarts(),
    "sd3": sd3s(),
    "flux": fluxes(),
    "chroma": chromas(),
    "sana": sanas(),
    "autoencoder": decoders(),
}
ALL_STRATEGIES = STRATEGIES | {"uvit": uvits()}


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
    return Cut(kept, tuple(structure.removable(sorted(removed))))


def half(model: nn.Module) -> Cut:
    """The first half of every dim that can be halved."""
    structure = describe(model)
    return Cut(
        {
            dim.name: tuple(unit for cell in dim.cell_ranges() for unit in cell[: len(cell) // 2])
            for dim in structure.dims.values()
            if dim.levels % 2 == 0
        }
    )


def inputs_for(model: nn.Module, batch_size: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs by keyword for a model built here."""
    if not isinstance(model, UViT | DiTTransformer2DModel | UNet2DModel):
        return example_inputs(model, batch_size, (8, 8))
    generator = torch.Generator().manual_seed(seed)
    size, channels = (8, 3) if isinstance(model, UViT) else (model.config.sample_size, model.config.in_channels)
    x = torch.randn(batch_size, channels, size, size, generator=generator)
    timestep = torch.randint(1, 1000, (batch_size,), generator=generator)
    labels = torch.randint(1, 3, (batch_size,), generator=generator)  # Fourier embeddings take the log
    if isinstance(model, UViT):
        return {"x": x, "timesteps": timestep, "y": labels}
    if isinstance(model, DiTTransformer2DModel):
        return {"hidden_states": x, "timestep": timestep, "class_labels": labels}
    inputs = {"sample": x, "timestep": timestep}
    return inputs if model.class_embedding is None else inputs | {"class_labels": labels}


TEXT = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_mask")


def sample_for(model: nn.Module, batch_size: int = 2, seed: int = 0) -> tuple[torch.Tensor, Conditions]:
    """A random sample (B, C, 8, 8) for a model built here, and its conditions: a short text, if any."""
    if not isinstance(model, DiTTransformer2DModel | UNet2DModel):
        sample, conditions = example_batch(model, batch_size, (8, 8))
        return sample, {name: value[:, :16] if name in TEXT else value for name, value in conditions.items()}
    inputs = inputs_for(model, batch_size, seed)
    return next(iter(inputs.values())), {name: inputs[name] for name in ("class_labels",) if name in inputs}


@torch.no_grad()
def output(model: nn.Module, batch_size: int = 2, seed: int = 0) -> torch.Tensor:
    """The model's output on `inputs_for`."""
    found = model(**inputs_for(model, batch_size, seed))
    return found if isinstance(found, torch.Tensor) else found[0]
