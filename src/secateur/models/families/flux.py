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
from ..layout import Layout, projections
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


BLOCK_NAMES = {
    "transformer_blocks.{}.attn.norm_q.weight": "double_blocks.{}.img_attn.norm.query_norm.scale",
    "transformer_blocks.{}.attn.norm_k.weight": "double_blocks.{}.img_attn.norm.key_norm.scale",
    "transformer_blocks.{}.attn.norm_added_q.weight": "double_blocks.{}.txt_attn.norm.query_norm.scale",
    "transformer_blocks.{}.attn.norm_added_k.weight": "double_blocks.{}.txt_attn.norm.key_norm.scale",
    "transformer_blocks.{}.attn.to_out.0.*": "double_blocks.{}.img_attn.proj.*",
    "transformer_blocks.{}.attn.to_add_out.*": "double_blocks.{}.txt_attn.proj.*",
    "transformer_blocks.{}.norm1.linear.*": "double_blocks.{}.img_mod.lin.*",
    "transformer_blocks.{}.norm1_context.linear.*": "double_blocks.{}.txt_mod.lin.*",
    "transformer_blocks.{}.ff.net.0.proj.*": "double_blocks.{}.img_mlp.0.*",
    "transformer_blocks.{}.ff.net.2.*": "double_blocks.{}.img_mlp.2.*",
    "transformer_blocks.{}.ff_context.net.0.proj.*": "double_blocks.{}.txt_mlp.0.*",
    "transformer_blocks.{}.ff_context.net.2.*": "double_blocks.{}.txt_mlp.2.*",
    "single_transformer_blocks.{}.attn.norm_q.weight": "single_blocks.{}.norm.query_norm.scale",
    "single_transformer_blocks.{}.attn.norm_k.weight": "single_blocks.{}.norm.key_norm.scale",
    "single_transformer_blocks.{}.proj_out.*": "single_blocks.{}.linear2.*",
    "single_transformer_blocks.{}.norm.linear.*": "single_blocks.{}.modulation.lin.*",
    "context_embedder.*": "txt_in.*",
    "x_embedder.*": "img_in.*",
    "proj_out.*": "final_layer.linear.*",
    "norm_out.linear.*": "final_layer.adaLN_modulation.1.*",
}
FUSED_LAYERS = {
    "double_blocks.{}.img_attn.qkv": projections("transformer_blocks.{}.attn.to_?"),
    "double_blocks.{}.txt_attn.qkv": projections("transformer_blocks.{}.attn.add_?_proj"),
    "single_blocks.{}.linear1": (
        *projections("single_transformer_blocks.{}.attn.to_?"),
        "single_transformer_blocks.{}.proj_mlp",
    ),
}
LAYOUT = Layout(
    {
        "time_text_embed.timestep_embedder.linear_1.*": "time_in.in_layer.*",
        "time_text_embed.timestep_embedder.linear_2.*": "time_in.out_layer.*",
        "time_text_embed.text_embedder.linear_1.*": "vector_in.in_layer.*",
        "time_text_embed.text_embedder.linear_2.*": "vector_in.out_layer.*",
        "time_text_embed.guidance_embedder.linear_1.*": "guidance_in.in_layer.*",
        "time_text_embed.guidance_embedder.linear_2.*": "guidance_in.out_layer.*",
        **BLOCK_NAMES,
    },
    FUSED_LAYERS,
    ("norm_out.linear",),
)

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
    layout=LAYOUT,
    lora_pipeline="FluxPipeline",
)
