"""Random stand-ins for what a network is told beside its sample: classes, text states, pooled text, sizes.

Each function gives the conditions of one architecture. Text lengths are those of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from .conditions import UNCONDITIONAL, Conditions

Draw = Callable[..., Tensor]  # sizes -> standard normal values of shape (batch, *sizes)

CLIP_TOKENS = 77
PIXART_TOKENS = 120
T5_AND_CLIP_TOKENS = 256 + CLIP_TOKENS
FLUX_TOKENS = 512
SANA_TOKENS = 300


def example_conditions(model: nn.Module, batch_size: int, draw: Draw) -> Conditions:
    """Conditions of `batch_size` samples; none for an architecture that takes no text."""
    conditions = next((CONDITIONS[each] for each in type(model).__mro__ if each in CONDITIONS), None)
    return UNCONDITIONAL if conditions is None else conditions(model, batch_size, draw)


def _unet2d_condition(model: UNet2DConditionModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    width = config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else config.cross_attention_dim[0]
    conditions: dict[str, Tensor] = {"encoder_hidden_states": draw(CLIP_TOKENS, config.encoder_hid_dim or width)}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditions["added_cond_kwargs.text_embeds"] = draw(pooled)
        conditions["added_cond_kwargs.time_ids"] = 512 + 64 * draw(6)
    indices = torch.arange(batch_size)
    if config.class_embed_type in ("projection", "simple_projection"):
        conditions["class_labels"] = draw(config.projection_class_embeddings_input_dim)
    elif config.class_embed_type == "identity":
        conditions["class_labels"] = draw(model.time_embedding.linear_2.out_features)
    elif config.class_embed_type == "timestep":
        conditions["class_labels"] = indices
    elif config.num_class_embeds is not None:
        conditions["class_labels"] = indices % config.num_class_embeds
    return conditions


def _pixart(model: PixArtTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    return {
        "encoder_hidden_states": draw(PIXART_TOKENS, config.caption_channels or config.cross_attention_dim),
        "added_cond_kwargs.resolution": 512 + 64 * draw(2),
        "added_cond_kwargs.aspect_ratio": draw(1).exp(),
    }


def _sd3(model: SD3Transformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    return {
        "encoder_hidden_states": draw(T5_AND_CLIP_TOKENS, config.joint_attention_dim),
        "pooled_projections": draw(config.pooled_projection_dim),
    }


def _flux(model: FluxTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    return {
        "encoder_hidden_states": draw(FLUX_TOKENS, config.joint_attention_dim),
        "pooled_projections": draw(config.pooled_projection_dim),
    }


def _sana(model: SanaTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    conditions = {"encoder_hidden_states": draw(SANA_TOKENS, config.caption_channels)}
    return conditions | ({"guidance": torch.full((batch_size,), 0.45)} if config.guidance_embeds else {})


CONDITIONS: dict[type, Callable[[Any, int, Draw], Conditions]] = {
    UNet2DConditionModel: _unet2d_condition,
    PixArtTransformer2DModel: _pixart,
    SD3Transformer2DModel: _sd3,
    FluxTransformer2DModel: _flux,
    SanaTransformer2DModel: _sana,
}
