"""`ZImageTransformer2DModel`: takes lists of latents and of captions; structure by discovery.

Its time runs from noise to image, and so does its velocity: both are reversed here, so that outside a call they are as
in every other flow.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn.functional import pad

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Shape, Size, config_of, sides, text_mask
from ..layout import Layout, projections

SAMPLE_SIZE = 128  # latents of 1024 pixels, if the config does not say
TEXT_TOKENS = 512
CAPTION_MULTIPLE = 32  # captions are padded to multiples of this


def _input_shape(model: ZImageTransformer2DModel) -> Shape:
    config = config_of(model)
    return config["in_channels"], *sides(config.get("sample_size") or SAMPLE_SIZE)


def _arguments(
    network: ZImageTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """For each sample a latent of one frame and the states of its own caption; time from noise to image."""
    states_BNC = kwargs["encoder_hidden_states"]
    mask_BN = kwargs.get("encoder_attention_mask", torch.ones(states_BNC.shape[:2]))
    lengths = mask_BN.sum(1).long().tolist()
    return {
        "x": [*x_BCHW.unsqueeze(2)],
        "t": 1 - timesteps_B / 1000,
        "cap_feats": [states[:length] for states, length in zip(states_BNC, lengths, strict=True)],
    }


def _prediction(output: Any, x_BCHW: Tensor) -> Tensor:
    return -torch.stack(list(output)).squeeze(2)


def _conditions(model: ZImageTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config = config_of(model)
    tokens = min(TEXT_TOKENS, (config["axes_lens"][0] - 2) // CAPTION_MULTIPLE * CAPTION_MULTIPLE)  # images come after
    return {
        "encoder_hidden_states": draw(tokens, config["cap_feat_dim"]),
        "encoder_attention_mask": text_mask(batch_size, tokens),
    }


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """States of Qwen 3 and their mask, padded to `TEXT_TOKENS`; the empty prompt is encoded like any other."""
    states, _ = pipeline.encode_prompt(
        list(prompts), device=pipeline.device, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    masks = [torch.ones(len(each), dtype=torch.int64, device=each.device) for each in states]
    return {
        "encoder_hidden_states": torch.stack([pad(each, (0, 0, 0, TEXT_TOKENS - len(each))) for each in states]),
        "encoder_attention_mask": torch.stack([pad(each, (0, TEXT_TOKENS - len(each))) for each in masks]),
    }


LISTS = ("layers", "noise_refiner", "context_refiner")
LAYOUT = Layout(
    {
        "all_x_embedder.2-1.*": "x_embedder.*",
        "all_final_layer.2-1.*": "final_layer.*",
        **{f"{name}.{{}}.attention.to_out.0.*": f"{name}.{{}}.attention.out.*" for name in LISTS},
        **{f"{name}.{{}}.attention.norm_q.*": f"{name}.{{}}.attention.q_norm.*" for name in LISTS},
        **{f"{name}.{{}}.attention.norm_k.*": f"{name}.{{}}.attention.k_norm.*" for name in LISTS},
        "*": "*",
    },
    {f"{name}.{{}}.attention.qkv": projections(f"{name}.{{}}.attention.to_?") for name in LISTS},
)

Z_IMAGE = Family(
    ZImageTransformer2DModel,
    discovery.describe,
    arguments=_arguments,
    prediction=_prediction,
    input_shape=_input_shape,
    conditions=_conditions,
    prompts={"ZImagePipeline": _encode},
    unguided=0.0,
    patch_size=lambda model: 2,
    even_levels=True,
    layout=LAYOUT,
    lora_pipeline="ZImagePipeline",
    loops_over_samples=True,
)
