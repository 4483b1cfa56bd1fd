"""`Flux2Transformer2DModel` (FLUX.2 dev and klein): fused projections, shared modulation; structure by discovery.

Its latents are packed 2 x 2 into channels before they are normalized, so a token is one pixel of them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Shape, Size, config_of, counted, denoised_channels, sides
from ..layout import Layout
from ..packing import size_of
from .flux import BLOCK_NAMES, FUSED_LAYERS

GUIDANCE = 4.0  # guidance input of a guidance-distilled model (dev): the default of diffusers' pipeline
SAMPLE_SIZE = 64  # latents of 1024 pixels, if the config does not say
TEXT_TOKENS = 512


def _input_shape(model: Flux2Transformer2DModel) -> Shape:
    config = config_of(model)
    return config["in_channels"], *sides(config.get("sample_size") or SAMPLE_SIZE)


def _positions(*lengths: int, batch_size: int, device: torch.device) -> Tensor:
    """(time, row, column, place in the text) of every token, (B, N, 4)."""
    grid = torch.cartesian_prod(*(torch.arange(length, device=device) for length in lengths))
    return grid.expand(batch_size, -1, -1)


def _arguments(
    network: Flux2Transformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Latents row by row, positions of tokens, time in [0, 1], and the guidance input of dev."""
    (height, width), tokens = size_of(x_BCHW), kwargs["encoder_hidden_states"].shape[1]
    here: dict[str, Any] = {"batch_size": len(x_BCHW), "device": x_BCHW.device}
    distilled = {"guidance": torch.full_like(timesteps_B, GUIDANCE, dtype=torch.float32)}
    return {
        "hidden_states": x_BCHW.flatten(2).transpose(1, 2),
        "timestep": timesteps_B / 1000,
        "img_ids": _positions(1, height, width, 1, **here),
        "txt_ids": _positions(1, 1, 1, tokens, **here),
        **(distilled if network.config.guidance_embeds else {}),
        **kwargs,
    }


def _prediction(output_BNC: Tensor, x_BCHW: Tensor) -> Tensor:
    return denoised_channels(output_BNC.transpose(1, 2).unflatten(2, size_of(x_BCHW)), x_BCHW)


def _conditions(model: Flux2Transformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    return {"encoder_hidden_states": draw(TEXT_TOKENS, config_of(model)["joint_attention_dim"])}


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """States of several layers of Mistral (dev) or Qwen 3 (klein); the empty prompt is encoded like any other."""
    states, _ = pipeline.encode_prompt(prompts, device=pipeline.device, max_sequence_length=TEXT_TOKENS)
    return {"encoder_hidden_states": states}


LAYOUT = Layout(
    {
        "time_guidance_embed.timestep_embedder.linear_1.*": "time_in.in_layer.*",
        "time_guidance_embed.timestep_embedder.linear_2.*": "time_in.out_layer.*",
        "time_guidance_embed.guidance_embedder.linear_1.*": "guidance_in.in_layer.*",
        "time_guidance_embed.guidance_embedder.linear_2.*": "guidance_in.out_layer.*",
        "double_stream_modulation_img.linear.*": "double_stream_modulation_img.lin.*",
        "double_stream_modulation_txt.linear.*": "double_stream_modulation_txt.lin.*",
        "single_stream_modulation.linear.*": "single_stream_modulation.lin.*",
        "transformer_blocks.{}.ff.linear_in.*": "double_blocks.{}.img_mlp.0.*",
        "transformer_blocks.{}.ff.linear_out.*": "double_blocks.{}.img_mlp.2.*",
        "transformer_blocks.{}.ff_context.linear_in.*": "double_blocks.{}.txt_mlp.0.*",
        "transformer_blocks.{}.ff_context.linear_out.*": "double_blocks.{}.txt_mlp.2.*",
        "single_transformer_blocks.{}.attn.to_qkv_mlp_proj.*": "single_blocks.{}.linear1.*",
        "single_transformer_blocks.{}.attn.to_out.*": "single_blocks.{}.linear2.*",
        **BLOCK_NAMES,
    },
    {theirs: ours for theirs, ours in FUSED_LAYERS.items() if theirs.startswith("double")},
    ("norm_out.linear",),
)

FLUX2 = Family(
    Flux2Transformer2DModel,
    discovery.describe,
    arguments=_arguments,
    prediction=_prediction,
    input_shape=_input_shape,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers", single_transformer_blocks="num_single_layers"),
    prompts={"Flux2Pipeline": _encode, "Flux2KleinPipeline": _encode},
    patch_size=lambda model: 1,
    even_levels=True,
    shift_by_steps=True,
    sampled_in=50,
    layout=LAYOUT,
    lora_pipeline="Flux2Pipeline",
)
