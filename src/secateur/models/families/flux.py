"""`FluxTransformer2DModel`: heads and feed-forward widths of double- and single-stream blocks, and the blocks.

The network sees latents as tokens: 2 x 2 pixels side by side in the channels, N = h w / 4 tokens of a latent (C, h, w).
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ...base.errors import ModelError
from ...structure import Block, Structure, StructureBuilder
from ..conditions import Conditions
from ..family import Draw, Family, Shape, Size, config_of, counted, denoised_channels, sides
from ..layers.attention import declare_attention
from ..layers.feedforward import declare_feed_forward

PATCH = 2  # pixels to a token, along each side
GUIDANCE = 3.5  # what a guidance-distilled Flux is given: the default of diffusers' pipeline
SAMPLE_SIZE = 128  # of the latents of 1024 pixels, where the config does not say
TEXT_TOKENS = 512
STREAMS = ("encoder_hidden_states", "hidden_states")


def describe_flux(model: FluxTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width and the rotary embedding stay.

    A single-stream block projects the channels of its attention and of its feed-forward back together, in this order.
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        declare_attention(builder, f"{name}.attn", block.attn)
        declare_feed_forward(builder, f"{name}.ff", block.ff)
        declare_feed_forward(builder, f"{name}.ff_context", block.ff_context)
        builder.blocks[name] = Block(name, listed=True, returns=STREAMS)
    for i, block in enumerate(model.single_transformer_blocks):
        name = f"single_transformer_blocks.{i}"
        heads = declare_attention(builder, f"{name}.attn", block.attn)
        inner = builder.dim(f"{name}.mlp", block.proj_mlp.out_features)
        builder.writes(f"{name}.proj_mlp", inner)
        builder.reads(f"{name}.proj_out", [*(heads or [block.attn.inner_dim]), *inner])
        builder.blocks[name] = Block(name, listed=True, returns=STREAMS)
    return builder.build()


def pack(x_BCHW: Tensor) -> Tensor:
    """Tokens (B, N, 4 C), row by row, the channels of a token ordered as (C, 2, 2)."""
    batch_size, channels, height, width = x_BCHW.shape
    patches = x_BCHW.reshape(batch_size, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, channels * PATCH**2)


def unpack(x_BNC: Tensor, size: Size) -> Tensor:
    """The inverse of `pack`: latents (B, C, *size)."""
    height, width = size
    patches = x_BNC.reshape(len(x_BNC), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(x_BNC), -1, height, width)


def positions(size: Size, device: torch.device | None = None) -> Tensor:
    """(0, row, column) of every token of latents of `size`, (N, 3)."""
    rows, columns = (torch.arange(length // PATCH, device=device) for length in size)
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.int64, device=device), rows, columns)


def _arguments(
    network: FluxTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Packed latents, where tokens stand, time in [0, 1], and guidance.

    A model that was distilled from a guided one (FLUX.1-dev) takes `GUIDANCE`, unless `kwargs` has another.
    """
    states_BNC = kwargs["encoder_hidden_states"]
    distilled = {"guidance": torch.full_like(timesteps_B, GUIDANCE, dtype=torch.float32)}
    return {
        "hidden_states": pack(x_BCHW),
        "timestep": timesteps_B / 1000,
        "img_ids": positions((x_BCHW.shape[2], x_BCHW.shape[3]), x_BCHW.device),
        "txt_ids": torch.zeros(states_BNC.shape[1], 3, dtype=torch.int64, device=x_BCHW.device),
        **(distilled if network.config.guidance_embeds else {}),
        **kwargs,
    }


def _prediction(output_BNC: Tensor, x_BCHW: Tensor) -> Tensor:
    return denoised_channels(unpack(output_BNC, (x_BCHW.shape[2], x_BCHW.shape[3])), x_BCHW)


def _input_shape(model: FluxTransformer2DModel) -> Shape:
    """That of the latents before they are packed.

    Raises:
        ModelError: the config says a size that cannot be packed.
    """
    config = config_of(model)
    height, width = sides(config.get("sample_size") or SAMPLE_SIZE)
    if height % PATCH or width % PATCH:
        raise ModelError(f"the config's sample_size is {config['sample_size']}; Flux takes latents of an even size")
    return config["in_channels"] // PATCH**2, height, width


def _conditions(model: FluxTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    return {
        "encoder_hidden_states": draw(TEXT_TOKENS, config.joint_attention_dim),
        "pooled_projections": draw(config.pooled_projection_dim),
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """T5 states and CLIP's pooled output; the empty prompt is encoded as any other, as for the pipeline's true CFG."""
    states, pooled, _ = pipeline.encode_prompt(prompts, device=pipeline.device)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


FLUX = Family(
    FluxTransformer2DModel,
    describe_flux,
    arguments=_arguments,
    prediction=_prediction,
    input_shape=_input_shape,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers", single_transformer_blocks="num_single_layers"),
    prompts={"FluxPipeline": _encode},
    patch_size=lambda model: PATCH,
    even_levels=True,
)
