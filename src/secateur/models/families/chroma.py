"""`ChromaTransformer2DModel`: a Flux whose modulations are computed by one network from rows of a table."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel
from torch import Tensor

from ...structure import Structure, StructureBuilder, Table
from ..conditions import Conditions
from ..family import Draw, Family, Size, config_of, counted
from ..layers.flux_blocks import declare_double_stream, declare_single_stream
from ..layout import Layout
from ..packing import PATCH, pack, packed_shape, positions, size_of, unpacked_prediction
from .flux import BLOCK_NAMES, FUSED_LAYERS

TEXT_TOKENS = 512
SINGLE, DOUBLE = 3, 6  # modulations of a block, of a double-stream one for each of its streams


def describe_chroma(model: ChromaTransformer2DModel) -> Structure:
    """Declare heads, feed-forward widths and blocks of `model`, with the modulations of each block."""
    builder = StructureBuilder()
    declare_double_stream(builder, model.transformer_blocks)
    declare_single_stream(builder, model.single_transformer_blocks)
    builder.tables.append(_modulations(len(model.transformer_blocks), len(model.single_transformer_blocks)))
    return builder.build()


def _modulations(doubles: int, singles: int) -> Table:
    """Rows in order: those of single-stream blocks, of double-stream blocks for images, for text, two for the head."""
    images = SINGLE * singles
    texts = images + DOUBLE * doubles
    rows = {f"transformer_blocks.{i}": (*_run(images, DOUBLE, i), *_run(texts, DOUBLE, i)) for i in range(doubles)} | {
        f"single_transformer_blocks.{i}": _run(0, SINGLE, i) for i in range(singles)
    }
    return Table("time_text_embed.mod_proj", texts + DOUBLE * doubles + 2, rows, ("distilled_guidance_layer",))


def _run(start: int, count: int, index: int) -> tuple[int, ...]:
    return tuple(range(start + count * index, start + count * (index + 1)))


def _arguments(
    network: ChromaTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Packed latents, positions of tokens, time in [0, 1], and the mask of text and image."""
    hidden_BNC, tokens = pack(x_BCHW), kwargs["encoder_hidden_states"].shape[:2]
    mask_BN = kwargs.get("attention_mask", hidden_BNC.new_ones(tokens)).to(hidden_BNC.dtype)
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
    """T5's states, and a mask that includes one padding token."""
    states, _, mask, *_ = pipeline.encode_prompt(
        prompts, device=pipeline.device, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    return {"encoder_hidden_states": states, "attention_mask": mask}


LAYOUT = Layout(
    {
        "distilled_guidance_layer.layers.{}.linear_1.*": "distilled_guidance_layer.layers.{}.in_layer.*",
        "distilled_guidance_layer.layers.{}.linear_2.*": "distilled_guidance_layer.layers.{}.out_layer.*",
        "distilled_guidance_layer.norms.{}.weight": "distilled_guidance_layer.norms.{}.scale",
        "distilled_guidance_layer.*": "distilled_guidance_layer.*",
        **BLOCK_NAMES,
    },
    FUSED_LAYERS,
)

CHROMA = Family(
    ChromaTransformer2DModel,
    describe_chroma,
    arguments=_arguments,
    prediction=unpacked_prediction,
    input_shape=packed_shape,
    conditions=_conditions,
    depth_entries=counted(transformer_blocks="num_layers", single_transformer_blocks="num_single_layers"),
    prompts={"ChromaPipeline": _encode},
    patch_size=lambda model: PATCH,
    even_levels=True,
    counts_by_place=True,
    layout=LAYOUT,
    lora_pipeline="ChromaPipeline",
)
