"""`SanaTransformer2DModel`: heads of linear and cross-attention, gated convolutional feed-forward widths, blocks."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor

from ...base.errors import ModelError
from ...structure import Block, Structure, StructureBuilder
from ..conditions import Conditions
from ..family import Draw, Family, Size, counted, sample_and_timestep, text_mask
from ..layers.attention import declare_attention

TEXT_TOKENS = 300


def describe_sana(model: SanaTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width is not cut.

    A single head of linear attention is not cut: its cost is quadratic in its channels.
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        if block.attn1.heads > 1:
            declare_attention(builder, f"{name}.attn1", block.attn1)
        declare_attention(builder, f"{name}.attn2", block.attn2)
        _declare_gated_convolution(builder, f"{name}.ff", block.ff)
        builder.blocks[name] = Block(name, listed=True)
    return builder.build()


def _declare_gated_convolution(builder: StructureBuilder, name: str, feed_forward: GLUMBConv) -> None:
    """A pointwise convolution to two halves, a depthwise one over both, and one back from their product."""
    inner = builder.dim(name, feed_forward.conv_point.in_channels)
    builder.writes(f"{name}.conv_inverted", inner, repeats=2)
    builder.writes(f"{name}.conv_depth", inner, repeats=2)
    builder.reads(f"{name}.conv_point", inner)


def _arguments(
    network: SanaTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Time is scaled as the config says.

    Raises:
        ModelError: a Sana Sprint without its guidance.
    """
    if network.config.guidance_embeds and "guidance" not in kwargs:
        raise ModelError("a Sana with guidance_embeds (Sprint) is trained on another process; this is not supported")
    return sample_and_timestep(network, x_BCHW, timesteps_B * network.config.timestep_scale, kwargs)


def _conditions(model: SanaTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    guidance = {"guidance": torch.full((batch_size,), 0.45)} if model.config.guidance_embeds else {}
    return {
        "encoder_hidden_states": draw(TEXT_TOKENS, model.config.caption_channels),
        "encoder_attention_mask": text_mask(batch_size, TEXT_TOKENS),
        **guidance,
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """Gemma's states and their mask; prompts, except the empty one, come after the pipeline's instruction."""
    instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    states, mask, empty, empty_mask = pipeline.encode_prompt(
        prompts,
        do_classifier_free_guidance=without,
        device=pipeline.device,
        complex_human_instruction=instruction,
    )
    return {
        "encoder_hidden_states": empty if without else states,
        "encoder_attention_mask": empty_mask if without else mask,
    }


SANA = Family(
    SanaTransformer2DModel,
    describe_sana,
    arguments=_arguments,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers"),
    prompts={"SanaPipeline": _encode},
    lora_pipeline="SanaPipeline",
)
