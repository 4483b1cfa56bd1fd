"""`PixArtTransformer2DModel` (PixArt-alpha and -sigma): heads, feed-forward width, blocks."""

from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from ...structure import Structure, StructureBuilder
from ..conditions import Conditions
from ..family import Draw, Family, Size, counted, text_mask
from ..layers.transformer_block import declare_listed_blocks

TEXT_TOKENS = 120  # of alpha's pipeline


def describe_pixart(model: PixArtTransformer2DModel) -> Structure:
    """Declare heads of self- and cross-attention, feed-forward widths and blocks of `model`. The residual width is not
    cut.

    One embedding modulates all blocks, so the head does not read a block's.
    """
    builder = StructureBuilder()
    declare_listed_blocks(builder, "transformer_blocks", model.transformer_blocks)
    return builder.build()


def _conditions(model: PixArtTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    sizes = {"added_cond_kwargs.resolution": 512 + 64 * draw(2), "added_cond_kwargs.aspect_ratio": draw(1).exp()}
    return {
        "encoder_hidden_states": draw(TEXT_TOKENS, config.caption_channels or config.cross_attention_dim),
        "encoder_attention_mask": text_mask(batch_size, TEXT_TOKENS),
        **(sizes if model.use_additional_conditions else {}),
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    states, mask, empty, empty_mask = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=without, device=pipeline.device
    )
    height, width = size
    return {
        "encoder_hidden_states": empty if without else states,
        "encoder_attention_mask": empty_mask if without else mask,
        "added_cond_kwargs.resolution": torch.tensor([[height, width]], dtype=torch.float32).repeat(len(prompts), 1),
        "added_cond_kwargs.aspect_ratio": torch.tensor([[height / width]]).repeat(len(prompts), 1),
    }


PIXART = Family(
    PixArtTransformer2DModel,
    describe_pixart,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers"),
    prompts={"PixArtAlphaPipeline": _encode, "PixArtSigmaPipeline": _encode},
)
