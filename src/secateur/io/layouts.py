"""Tensor names of the original authors, for architectures that diffusers renamed.

A layout inverts diffusers' conversion of the authors' checkpoints: it renames layers, concatenates those that the
authors fused, and swaps scale and shift back where diffusers swapped them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base.errors import ModelError

PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Layout:
    """A mapping to the authors' names; in a name `{}` stands for the number of a block, and `*` for the rest.

    Attributes:
        renamed: name of a tensor in diffusers -> the authors'; the first match counts.
        fused: layer of the authors -> the layers of diffusers that are its rows, in order.
        swapped: layers of diffusers whose two halves are in the other order; `{}` is the number of the last block.
    """

    renamed: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()

    def original(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a model by the authors' names.

        Raises:
            ModelError: one has no such name.
        """
        left, found = dict(state), {}
        last = max(_numbers(state, "transformer_blocks.{}.norm1.linear"), default=0)
        for name in (f"{layer.format(last)}.{part}" for layer in self.swapped for part in PARTS):
            if name in left:
                left[name] = torch.cat(left[name].chunk(2)[::-1])
        for theirs, ours in self.fused.items():
            for number in _numbers(left, ours[0]):
                for part in PARTS:
                    names = [f"{name.format(number)}.{part}" for name in ours]
                    if all(name in left for name in names):
                        found[f"{theirs.format(number)}.{part}"] = torch.cat([left.pop(name) for name in names])
        return found | {self._renamed(name): tensor for name, tensor in left.items()}

    def _renamed(self, name: str) -> str:
        for ours, theirs in self.renamed.items():
            if match := re.fullmatch(_pattern(ours), name):
                return theirs.replace("*", "{}").format(*match.groups())
        raise ModelError(f"{name} has no name in the original layout of this architecture")


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)")


def _numbers(state: Mapping[str, Tensor], layer: str) -> list[int]:
    """The numbers of the blocks that have `layer`."""
    matches = (re.fullmatch(_pattern(f"{layer}.weight"), name) for name in state)
    return sorted(int(match[1]) for match in matches if match)


def _projections(template: str) -> tuple[str, ...]:
    """The queries, keys and values of an attention, in the order in which the authors fuse them."""
    return tuple(template.replace("?", x) for x in "qkv")


_FLUX_BLOCKS = {
    "transformer_blocks.{}.attn.norm_q.weight": "double_blocks.{}.img_attn.norm.query_norm.scale",
    "transformer_blocks.{}.attn.norm_k.weight": "double_blocks.{}.img_attn.norm.key_norm.scale",
    "transformer_blocks.{}.attn.norm_added_q.weight": "double_blocks.{}.txt_attn.norm.query_norm.scale",
    "transformer_blocks.{}.attn.norm_added_k.weight": "double_blocks.{}.txt_attn.norm.key_norm.scale",
    "transformer_blocks.{}.attn.to_out.0.*": "double_blocks.{}.img_attn.proj.*",
    "transformer_blocks.{}.attn.to_add_out.*": "double_blocks.{}.txt_attn.proj.*",
    "transformer_blocks.{}.norm1.linear.*": "double_blocks.{}.img_mod.lin.*",
    "transformer_blocks.{}.norm1_context.linear.*": "double_blocks.{}.txt_mod.lin.*",
    "transformer_blocks.{}.ff.net.0.proj.*": "double_blocks.{}.img_mlp.0.*",
    "transformer_blocks.{}.ff.net.2.*": "double_blocks.{}.img_mlp.2.*",
    "transformer_blocks.{}.ff_context.net.0.proj.*": "double_blocks.{}.txt_mlp.0.*",
    "transformer_blocks.{}.ff_context.net.2.*": "double_blocks.{}.txt_mlp.2.*",
    "single_transformer_blocks.{}.attn.norm_q.weight": "single_blocks.{}.norm.query_norm.scale",
    "single_transformer_blocks.{}.attn.norm_k.weight": "single_blocks.{}.norm.key_norm.scale",
    "single_transformer_blocks.{}.proj_out.*": "single_blocks.{}.linear2.*",
    "single_transformer_blocks.{}.norm.linear.*": "single_blocks.{}.modulation.lin.*",
    "context_embedder.*": "txt_in.*",
    "x_embedder.*": "img_in.*",
    "proj_out.*": "final_layer.linear.*",
    "norm_out.linear.*": "final_layer.adaLN_modulation.1.*",
}
_FLUX_FUSED = {
    "double_blocks.{}.img_attn.qkv": _projections("transformer_blocks.{}.attn.to_?"),
    "double_blocks.{}.txt_attn.qkv": _projections("transformer_blocks.{}.attn.add_?_proj"),
    "single_blocks.{}.linear1": (
        *_projections("single_transformer_blocks.{}.attn.to_?"),
        "single_transformer_blocks.{}.proj_mlp",
    ),
}
FLUX = Layout(
    {
        "time_text_embed.timestep_embedder.linear_1.*": "time_in.in_layer.*",
        "time_text_embed.timestep_embedder.linear_2.*": "time_in.out_layer.*",
        "time_text_embed.text_embedder.linear_1.*": "vector_in.in_layer.*",
        "time_text_embed.text_embedder.linear_2.*": "vector_in.out_layer.*",
        "time_text_embed.guidance_embedder.linear_1.*": "guidance_in.in_layer.*",
        "time_text_embed.guidance_embedder.linear_2.*": "guidance_in.out_layer.*",
        **_FLUX_BLOCKS,
    },
    _FLUX_FUSED,
    ("norm_out.linear",),
)
CHROMA = Layout(
    {
        "distilled_guidance_layer.layers.{}.linear_1.*": "distilled_guidance_layer.layers.{}.in_layer.*",
        "distilled_guidance_layer.layers.{}.linear_2.*": "distilled_guidance_layer.layers.{}.out_layer.*",
        "distilled_guidance_layer.norms.{}.weight": "distilled_guidance_layer.norms.{}.scale",
        "distilled_guidance_layer.*": "distilled_guidance_layer.*",
        **_FLUX_BLOCKS,
    },
    _FLUX_FUSED,
)
SD3 = Layout(
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
        "joint_blocks.{}.x_block.attn.qkv": _projections("transformer_blocks.{}.attn.to_?"),
        "joint_blocks.{}.x_block.attn2.qkv": _projections("transformer_blocks.{}.attn2.to_?"),
        "joint_blocks.{}.context_block.attn.qkv": _projections("transformer_blocks.{}.attn.add_?_proj"),
    },
    ("norm_out.linear", "transformer_blocks.{}.norm1_context.linear"),
)
WAN = Layout(
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
QWEN_IMAGE = Layout({"*": "*"})  # diffusers' names are the authors'

FLUX2 = Layout(
    {
        "time_guidance_embed.timestep_embedder.linear_1.*": "time_in.in_layer.*",
        "time_guidance_embed.timestep_embedder.linear_2.*": "time_in.out_layer.*",
        "time_guidance_embed.guidance_embedder.linear_1.*": "guidance_in.in_layer.*",
        "time_guidance_embed.guidance_embedder.linear_2.*": "guidance_in.out_layer.*",
        "double_stream_modulation_img.linear.*": "double_stream_modulation_img.lin.*",
        "double_stream_modulation_txt.linear.*": "double_stream_modulation_txt.lin.*",
        "single_stream_modulation.linear.*": "single_stream_modulation.lin.*",
        "transformer_blocks.{}.ff.linear_in.*": "double_blocks.{}.img_mlp.0.*",
        "transformer_blocks.{}.ff.linear_out.*": "double_blocks.{}.img_mlp.2.*",
        "transformer_blocks.{}.ff_context.linear_in.*": "double_blocks.{}.txt_mlp.0.*",
        "transformer_blocks.{}.ff_context.linear_out.*": "double_blocks.{}.txt_mlp.2.*",
        "single_transformer_blocks.{}.attn.to_qkv_mlp_proj.*": "single_blocks.{}.linear1.*",
        "single_transformer_blocks.{}.attn.to_out.*": "single_blocks.{}.linear2.*",
        **_FLUX_BLOCKS,
    },
    {theirs: ours for theirs, ours in _FLUX_FUSED.items() if theirs.startswith("double")},
    ("norm_out.linear",),
)
Z_IMAGE_LISTS = ("layers", "noise_refiner", "context_refiner")
Z_IMAGE = Layout(
    {
        "all_x_embedder.2-1.*": "x_embedder.*",
        "all_final_layer.2-1.*": "final_layer.*",
        **{f"{name}.{{}}.attention.to_out.0.*": f"{name}.{{}}.attention.out.*" for name in Z_IMAGE_LISTS},
        **{f"{name}.{{}}.attention.norm_q.*": f"{name}.{{}}.attention.q_norm.*" for name in Z_IMAGE_LISTS},
        **{f"{name}.{{}}.attention.norm_k.*": f"{name}.{{}}.attention.k_norm.*" for name in Z_IMAGE_LISTS},
        "*": "*",
    },
    {f"{name}.{{}}.attention.qkv": _projections(f"{name}.{{}}.attention.to_?") for name in Z_IMAGE_LISTS},
)

LAYOUTS = {
    "FluxTransformer2DModel": FLUX,
    "ChromaTransformer2DModel": CHROMA,
    "SD3Transformer2DModel": SD3,
    "WanTransformer3DModel": WAN,
    "QwenImageTransformer2DModel": QWEN_IMAGE,
    "Flux2Transformer2DModel": FLUX2,
    "ZImageTransformer2DModel": Z_IMAGE,
}
