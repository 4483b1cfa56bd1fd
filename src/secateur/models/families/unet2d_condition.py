"""`UNet2DConditionModel`, the text-conditional U-Net of Stable Diffusion 1, 2 and XL."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...base.errors import StructureError
from ...structure import Structure
from ..conditions import Conditions
from ..family import Draw, Family, Size
from .unet2d import describe_unet2d, no_depth

TEXT_TOKENS = 77  # of CLIP
KNOWN = {  # entries of the config for inputs beside time and text
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_cond_proj_dim": (None,),
}


def describe_unet2d_condition(model: UNet2DConditionModel) -> Structure:
    """Declare `model` like any U-Net of images, after checking that all of its inputs are supported.

    Raises:
        StructureError: it takes other inputs than a text of one width: an image, or its own guidance (LCM).
    """
    config: Any = model.config
    widths = config.cross_attention_dim
    if not isinstance(widths, int) and len(set(widths)) > 1:
        raise StructureError(
            f"a U-Net that reads texts of several widths (cross_attention_dim={widths}) is not supported"
        )
    for entry, known in KNOWN.items():
        if config.get(entry) not in known:
            raise StructureError(f"a U-Net with {entry}={config[entry]!r} is not supported: it takes more than a text")
    return describe_unet2d(model)


def _conditions(model: UNet2DConditionModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    width = config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else config.cross_attention_dim[0]
    conditions: dict[str, Tensor] = {"encoder_hidden_states": draw(TEXT_TOKENS, config.encoder_hid_dim or width)}
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


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    states, empty = pipeline.encode_prompt(prompts, pipeline.device, 1, without)
    return {"encoder_hidden_states": empty if without else states}


def _encode_xl(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """Two CLIPs side by side, the second one's pooled output, and the sizes of Podell et al. 2023, section 2.2.

    The null condition is zeros.
    """
    states, empty, pooled, pooled_empty = pipeline.encode_prompt(
        prompts, device=pipeline.device, do_classifier_free_guidance=without
    )
    uncropped = (*size, 0, 0, *size)
    return {
        "encoder_hidden_states": empty if without else states,
        "added_cond_kwargs.text_embeds": pooled_empty if without else pooled,
        "added_cond_kwargs.time_ids": torch.tensor(uncropped, dtype=torch.float32).repeat(len(prompts), 1),
    }


UNET2D_CONDITION = Family(
    UNet2DConditionModel,
    describe_unet2d_condition,
    conditions=_conditions,
    depth_entries=no_depth,
    prompts={"StableDiffusionPipeline": _encode, "StableDiffusionXLPipeline": _encode_xl},
    lora_pipeline="StableDiffusionXLPipeline",
)
