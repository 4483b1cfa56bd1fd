"""`WanTransformer3DModel` (Wan 2.1 and 2.2, text to video): clips (B, C, T, H, W); structure by discovery."""

from typing import Any

from diffusers import WanTransformer3DModel
from torch import Tensor

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Shape, Size, config_of, counted
from ..layout import Layout

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


LAYOUT = Layout(
    {
        "condition_embedder.time_embedder.linear_1.*": "time_embedding.0.*",
        "condition_embedder.time_embedder.linear_2.*": "time_embedding.2.*",
        "condition_embedder.text_embedder.linear_1.*": "text_embedding.0.*",
        "condition_embedder.text_embedder.linear_2.*": "text_embedding.2.*",
        "condition_embedder.time_proj.*": "time_projection.1.*",
        "condition_embedder.image_embedder.norm1.*": "img_emb.proj.0.*",
        "condition_embedder.image_embedder.ff.net.0.proj.*": "img_emb.proj.1.*",
        "condition_embedder.image_embedder.ff.net.2.*": "img_emb.proj.3.*",
        "condition_embedder.image_embedder.norm2.*": "img_emb.proj.4.*",
        "blocks.{}.attn1.to_out.0.*": "blocks.{}.self_attn.o.*",
        "blocks.{}.attn2.to_out.0.*": "blocks.{}.cross_attn.o.*",
        "blocks.{}.attn1.to_*": "blocks.{}.self_attn.*",
        "blocks.{}.attn2.to_*": "blocks.{}.cross_attn.*",
        "blocks.{}.attn2.add_k_proj.*": "blocks.{}.cross_attn.k_img.*",
        "blocks.{}.attn2.add_v_proj.*": "blocks.{}.cross_attn.v_img.*",
        "blocks.{}.attn2.norm_added_k.*": "blocks.{}.cross_attn.norm_k_img.*",
        "blocks.{}.attn1.norm_*": "blocks.{}.self_attn.norm_*",
        "blocks.{}.attn2.norm_*": "blocks.{}.cross_attn.norm_*",
        "blocks.{}.ffn.net.0.proj.*": "blocks.{}.ffn.0.*",
        "blocks.{}.ffn.net.2.*": "blocks.{}.ffn.2.*",
        "blocks.{}.norm2.*": "blocks.{}.norm3.*",
        "blocks.{}.scale_shift_table": "blocks.{}.modulation",
        "scale_shift_table": "head.modulation",
        "proj_out.*": "head.head.*",
        "patch_embedding.*": "patch_embedding.*",
    }
)

WAN = Family(
    WanTransformer3DModel,
    discovery.describe,
    input_shape=_input_shape,
    conditions=_conditions,
    depth_entries=counted(blocks="num_layers"),
    prompts={"WanPipeline": _encode},
    patch_size=lambda model: config_of(model)["patch_size"][-1],
    layout=LAYOUT,
    lora_pipeline="WanPipeline",
)
