"""`Lumina2Transformer2DModel` (Lumina-Image 2.0): refiners of either stream, grouped queries; structure by discovery.

Its time runs from noise to image, and so does its velocity: both are reversed here, so that outside a call they are as
in every other flow.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Size, config_of, denoised_channels, text_mask

TEXT_TOKENS = 256


def _arguments(
    network: Lumina2Transformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Time runs from noise to image."""
    return {"hidden_states": x_BCHW, "timestep": 1 - timesteps_B / 1000, **kwargs}


def _prediction(output_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    return -denoised_channels(output_BCHW, x_BCHW)


def _rescaled(guided_BCHW: Tensor, conditioned_BCHW: Tensor) -> Tensor:
    """Scale every row of pixels of a channel to its norm without guidance."""
    return guided_BCHW * (conditioned_BCHW.norm(dim=-1, keepdim=True) / guided_BCHW.norm(dim=-1, keepdim=True))


def _conditions(model: Lumina2Transformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config = config_of(model)
    tokens = min(TEXT_TOKENS, config["axes_lens"][0] - 1)  # the image has a place after them
    return {
        "encoder_hidden_states": draw(tokens, config["cap_feat_dim"]),
        "encoder_attention_mask": text_mask(batch_size, tokens),
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """Gemma's states and their mask; prompts, except the empty one, come after the pipeline's system prompt."""
    states, mask, empty, empty_mask = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=without, device=pipeline.device, max_sequence_length=TEXT_TOKENS
    )
    return {
        "encoder_hidden_states": empty if without else states,
        "encoder_attention_mask": empty_mask if without else mask,
    }


LUMINA2 = Family(
    Lumina2Transformer2DModel,
    discovery.describe,
    arguments=_arguments,
    prediction=_prediction,
    conditions=_conditions,
    prompts={"Lumina2Pipeline": _encode},
    rescaled=_rescaled,
    even_levels=True,
    lora_pipeline="Lumina2Pipeline",
    loops_over_samples=True,
)
