"""`AuraFlowTransformer2DModel`: joint and single-stream blocks, time in [0, 1]; structure by discovery."""

from collections.abc import Mapping
from typing import Any

from diffusers import AuraFlowTransformer2DModel
from torch import Tensor

from .. import discovery
from ..conditions import Conditions
from ..family import Draw, Family, Size, config_of, counted

TEXT_TOKENS = 256


def _arguments(
    network: AuraFlowTransformer2DModel, x_BCHW: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Time in [0, 1]; the network multiplies by 1000 itself."""
    return {"hidden_states": x_BCHW, "timestep": timesteps_B / 1000, **kwargs}


def _conditions(model: AuraFlowTransformer2DModel, batch_size: int, draw: Draw) -> Conditions:
    return {"encoder_hidden_states": draw(TEXT_TOKENS, config_of(model)["joint_attention_dim"])}


def _encode(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """States of UMT5, zero behind the end of a prompt; the pipeline passes no mask."""
    states, _, empty, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=without, device=pipeline.device, max_sequence_length=TEXT_TOKENS
    )
    return {"encoder_hidden_states": empty if without else states}


AURA_FLOW = Family(
    AuraFlowTransformer2DModel,
    discovery.describe,
    arguments=_arguments,
    conditions=_conditions,
    depth_entries=counted(
        joint_transformer_blocks="num_mmdit_layers", single_transformer_blocks="num_single_dit_layers"
    ),
    prompts={"AuraFlowPipeline": _encode},
    lora_pipeline="AuraFlowPipeline",
)
