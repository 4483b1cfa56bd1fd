"""`SD3Transformer2DModel` (Stable Diffusion 3 and 3.5): heads shared by image and text, feed-forward widths, blocks."""

from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor

from ...structure import Block, Structure, StructureBuilder
from ..conditions import Conditions
from ..family import Draw, Family, Size
from ..layers.attention import declare_attention
from ..layers.feedforward import declare_feed_forward
from ..layout import Layout, projections

TEXT_TOKENS = 77 + 256  # CLIP's and T5's
STREAMS = ("encoder_hidden_states", "hidden_states")


def describe_sd3(model: SD3Transformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`. The residual width is not cut.

    The last block drops the text stream, which no other can do, so it cannot be removed.
    """
    builder = StructureBuilder()
    for i, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{i}"
        declare_attention(builder, f"{name}.attn", block.attn)
        if block.attn2 is not None:
            declare_attention(builder, f"{name}.attn2", block.attn2)
        declare_feed_forward(builder, f"{name}.ff", block.ff)
        if not block.context_pre_only:
            declare_feed_forward(builder, f"{name}.ff_context", block.ff_context)
            builder.blocks[name] = Block(name, listed=True, returns=STREAMS)
    return builder.build()


def _conditions(model: SD3Transformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    config: Any = model.config
    return {
        "encoder_hidden_states": draw(TEXT_TOKENS, config.joint_attention_dim),
        "pooled_projections": draw(config.pooled_projection_dim),
    }


def _depth_entries(model: SD3Transformer2DModel) -> dict[str, Any]:
    dual = tuple(i for i, block in enumerate(model.transformer_blocks) if block.use_dual_attention)
    return {"num_layers": len(model.transformer_blocks), "dual_attention_layers": dual}


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    states, empty, pooled, pooled_empty = pipeline.encode_prompt(
        prompts, None, None, device=pipeline.device, do_classifier_free_guidance=without
    )
    return {
        "encoder_hidden_states": empty if without else states,
        "pooled_projections": pooled_empty if without else pooled,
    }


LAYOUT = Layout(
    {
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj.*": "x_embedder.proj.*",
        "time_text_embed.timestep_embedder.linear_1.*": "t_embedder.mlp.0.*",
        "time_text_embed.timestep_embedder.linear_2.*": "t_embedder.mlp.2.*",
        "time_text_embed.text_embedder.linear_1.*": "y_embedder.mlp.0.*",
        "time_text_embed.text_embedder.linear_2.*": "y_embedder.mlp.2.*",
        "context_embedder.*": "context_embedder.*",
        "transformer_blocks.{}.attn.norm_added_q.*": "joint_blocks.{}.context_block.attn.ln_q.*",
        "transformer_blocks.{}.attn.norm_added_k.*": "joint_blocks.{}.context_block.attn.ln_k.*",
        "transformer_blocks.{}.attn.norm_q.*": "joint_blocks.{}.x_block.attn.ln_q.*",
        "transformer_blocks.{}.attn.norm_k.*": "joint_blocks.{}.x_block.attn.ln_k.*",
        "transformer_blocks.{}.attn2.norm_q.*": "joint_blocks.{}.x_block.attn2.ln_q.*",
        "transformer_blocks.{}.attn2.norm_k.*": "joint_blocks.{}.x_block.attn2.ln_k.*",
        "transformer_blocks.{}.attn.to_out.0.*": "joint_blocks.{}.x_block.attn.proj.*",
        "transformer_blocks.{}.attn2.to_out.0.*": "joint_blocks.{}.x_block.attn2.proj.*",
        "transformer_blocks.{}.attn.to_add_out.*": "joint_blocks.{}.context_block.attn.proj.*",
        "transformer_blocks.{}.norm1.linear.*": "joint_blocks.{}.x_block.adaLN_modulation.1.*",
        "transformer_blocks.{}.norm1_context.linear.*": "joint_blocks.{}.context_block.adaLN_modulation.1.*",
        "transformer_blocks.{}.ff.net.0.proj.*": "joint_blocks.{}.x_block.mlp.fc1.*",
        "transformer_blocks.{}.ff.net.2.*": "joint_blocks.{}.x_block.mlp.fc2.*",
        "transformer_blocks.{}.ff_context.net.0.proj.*": "joint_blocks.{}.context_block.mlp.fc1.*",
        "transformer_blocks.{}.ff_context.net.2.*": "joint_blocks.{}.context_block.mlp.fc2.*",
        "proj_out.*": "final_layer.linear.*",
        "norm_out.linear.*": "final_layer.adaLN_modulation.1.*",
    },
    {
        "joint_blocks.{}.x_block.attn.qkv": projections("transformer_blocks.{}.attn.to_?"),
        "joint_blocks.{}.x_block.attn2.qkv": projections("transformer_blocks.{}.attn2.to_?"),
        "joint_blocks.{}.context_block.attn.qkv": projections("transformer_blocks.{}.attn.add_?_proj"),
    },
    ("norm_out.linear", "transformer_blocks.{}.norm1_context.linear"),
)

SD3 = Family(
    SD3Transformer2DModel,
    describe_sd3,
    conditions=_conditions,
    depth_entries=_depth_entries,
    prompts={"StableDiffusion3Pipeline": _encode},
    layout=LAYOUT,
    lora_pipeline="StableDiffusion3Pipeline",
)
