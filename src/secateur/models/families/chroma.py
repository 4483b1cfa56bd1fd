"""`ChromaTransformer2DModel`: Flux with one network for all modulations; discovery finds its widths, and no blocks.

A modulation is made from the place of its block among all, so that no block can leave without moving the others'.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel
from torch import Tensor

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Size, config_of
from ..packing import PATCH, pack, packed_shape, positions, size_of, unpacked_prediction

TEXT_TOKENS = 512


def _arguments(
    network: ChromaTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Packed latents, where tokens stand, time in [0, 1], and the mask of the text with that of the image."""
    hidden_BNC, mask_BN = pack(x_BCHW), kwargs["attention_mask"]
    return {
        **kwargs,
        "hidden_states": hidden_BNC,
        "timestep": timesteps_B / 1000,
        "img_ids": positions(size_of(x_BCHW), x_BCHW.device),
        "txt_ids": torch.zeros(mask_BN.shape[1], 3, dtype=torch.int64, device=x_BCHW.device),
        "attention_mask": torch.cat([mask_BN, mask_BN.new_ones(hidden_BNC.shape[:2])], dim=1),
    }


def _conditions(model: ChromaTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    states = draw(TEXT_TOKENS, config_of(model)["joint_attention_dim"])
    return {"encoder_hidden_states": states, "attention_mask": torch.ones(batch_size, TEXT_TOKENS)}


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """T5's states, and a mask that leaves in one token of what they are padded with."""
    states, _, mask, *_ = pipeline.encode_prompt(
        prompts, device=pipeline.device, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    return {"encoder_hidden_states": states, "attention_mask": mask}


CHROMA = Family(
    ChromaTransformer2DModel,
    discovery.describe,
    arguments=_arguments,
    prediction=unpacked_prediction,
    input_shape=packed_shape,
    conditions=_conditions,
    prompts={"ChromaPipeline": _encode},
    patch_size=lambda model: PATCH,
    even_levels=True,
)
