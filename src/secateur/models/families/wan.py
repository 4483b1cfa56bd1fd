"""`WanTransformer3DModel` (Wan 2.1 and 2.2, text to video): clips (B, C, T, H, W); structure by discovery."""

from typing import Any

from diffusers import WanTransformer3DModel
from torch import Tensor

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Shape, Size, config_of, counted

SAMPLE_SIZE = (
    21,
    60,
    104,
)  # frames, height, width of the latents of 81 frames of 480 x 832, where the config is silent
TEXT_TOKENS = 512


def _input_shape(model: WanTransformer3DModel) -> Shape:
    config = config_of(model)
    return config["in_channels"], *(config.get("sample_size") or SAMPLE_SIZE)


def _conditions(model: WanTransformer3DModel, batch_size: int, draw: Draw) -> Conditions:
    return {"encoder_hidden_states": draw(TEXT_TOKENS, config_of(model)["text_dim"])}


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """States of UMT5; the empty prompt is encoded like any other."""
    states, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS, device=pipeline.device
    )
    return {"encoder_hidden_states": states}


WAN = Family(
    WanTransformer3DModel,
    discovery.describe,
    input_shape=_input_shape,
    conditions=_conditions,
    depth_entries=counted(blocks="num_layers"),
    prompts={"WanPipeline": _encode},
    patch_size=lambda model: config_of(model)["patch_size"][-1],
)
