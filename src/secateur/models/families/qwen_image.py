"""`QwenImageTransformer2DModel`: one stream of image tokens and one of text; structure by discovery."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor
from torch.nn.functional import pad

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Size, config_of, counted, text_mask
from ..layout import Layout
from ..packing import PATCH, as_long_as, pack, packed_shape, size_of, unpacked_prediction

TEXT_TOKENS = 512


def _arguments(
    network: QwenImageTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Packed latents, their size in tokens, and time in [0, 1]."""
    height, width = size_of(x_BCHW)
    return {
        "hidden_states": pack(x_BCHW),
        "timestep": timesteps_B / 1000,
        "img_shapes": [[(1, height // PATCH, width // PATCH)]] * len(x_BCHW),
        **kwargs,
    }


def _conditions(model: QwenImageTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    return {
        "encoder_hidden_states": draw(TEXT_TOKENS, config_of(model)["joint_attention_dim"]),
        "encoder_hidden_states_mask": text_mask(batch_size, TEXT_TOKENS),
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """States of Qwen 2.5 VL with their mask, padded to `TEXT_TOKENS`, the pipeline's default limit."""
    states, mask = pipeline.encode_prompt(prompts, device=pipeline.device, max_sequence_length=TEXT_TOKENS)
    if mask is None:  # all captions have the same length
        mask = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
    missing = TEXT_TOKENS - states.shape[1]
    return {
        "encoder_hidden_states": pad(states, (0, 0, 0, missing)),
        "encoder_hidden_states_mask": pad(mask, (0, missing)),
    }


LAYOUT = Layout({"*": "*"})  # diffusers' names are the authors'

QWEN_IMAGE = Family(
    QwenImageTransformer2DModel,
    discovery.describe,
    arguments=_arguments,
    prediction=unpacked_prediction,
    input_shape=packed_shape,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers"),
    prompts={"QwenImagePipeline": _encode},
    rescaled=as_long_as,
    patch_size=lambda model: PATCH,
    even_levels=True,
    layout=LAYOUT,
    lora_pipeline="QwenImagePipeline",
)
