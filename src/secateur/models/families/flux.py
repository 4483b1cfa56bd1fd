"""`FluxTransformer2DModel`: heads and feed-forward widths of double- and single-stream blocks, and the blocks."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ...structure import Structure, StructureBuilder
from ..conditions import Conditions
from ..family import Draw, Family, Size, counted
from ..layers.flux_blocks import STREAMS, declare_double_stream, declare_single_stream
from ..packing import PATCH, pack, packed_shape, positions, size_of, unpacked_prediction

GUIDANCE = 3.5  # guidance input of a guidance-distilled Flux: the default of diffusers' pipeline
TEXT_TOKENS = 512


def describe_flux(model: FluxTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width and the rotary embedding are not
    cut."""
    builder = StructureBuilder()
    declare_double_stream(builder, model.transformer_blocks)
    declare_single_stream(builder, model.single_transformer_blocks, STREAMS)
    return builder.build()


def _arguments(
    network: FluxTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Packed latents, positions of tokens, time in [0, 1], and guidance.

    A guidance-distilled model (FLUX.1-dev) gets `GUIDANCE`, unless `kwargs` has another value.
    """
    states_BNC = kwargs["encoder_hidden_states"]
    distilled = {"guidance": torch.full_like(timesteps_B, GUIDANCE, dtype=torch.float32)}
    return {
        "hidden_states": pack(x_BCHW),
        "timestep": timesteps_B / 1000,
        "img_ids": positions(size_of(x_BCHW), x_BCHW.device),
        "txt_ids": torch.zeros(states_BNC.shape[1], 3, dtype=torch.int64, device=x_BCHW.device),
        **(distilled if network.config.guidance_embeds else {}),
        **kwargs,
    }


def _conditions(model: FluxTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    return {
        "encoder_hidden_states": draw(TEXT_TOKENS, config.joint_attention_dim),
        "pooled_projections": draw(config.pooled_projection_dim),
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """T5 states and CLIP's pooled output; the empty prompt is encoded as usual, as for the pipeline's true CFG."""
    states, pooled, _ = pipeline.encode_prompt(prompts, device=pipeline.device)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


FLUX = Family(
    FluxTransformer2DModel,
    describe_flux,
    arguments=_arguments,
    prediction=unpacked_prediction,
    input_shape=packed_shape,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers", single_transformer_blocks="num_single_layers"),
    prompts={"FluxPipeline": _encode},
    patch_size=lambda model: PATCH,
    even_levels=True,
    sampled_in=28,
)
