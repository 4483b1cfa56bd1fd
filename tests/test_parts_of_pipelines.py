"""Limits on what the parts of a pipeline may build beside their weights: none of the released parts comes near."""

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import diffusers
import transformers
from torch import nn

from secateur.io.foreign import at_most, quiet
from secateur.io.pipeline import PART_BUFFERS, PER_STORED
from secateur.io.weights import stored_tensors

pytestmark = pytest.mark.slow

# Released configurations: of the text encoders from their config.json, of the autoencoders the defaults of diffusers
# but for SD's and Sana's. The second one is as deep, with as many tensors, and narrow.
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
CLIP_NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 64}
T5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
T5_NARROW = {"d_model": 16, "d_ff": 16, "d_kv": 4, "num_heads": 2, "vocab_size": 64}
QWEN_3 = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
QWEN_3 |= {"vocab_size": 151936, "max_position_embeddings": 40960}
NARROW = {"hidden_size": 32, "intermediate_size": 16, **GROUPED}
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "CLIP-L": (
        "CLIPTextModel",
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        CLIP_NARROW,
    ),
    "CLIP-bigG": (
        "CLIPTextModelWithProjection",
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
        },
        CLIP_NARROW | {"projection_dim": 8},
    ),
    "T5-XXL": ("T5EncoderModel", {**T5, "vocab_size": 32128}, T5_NARROW),
    "UMT5-XXL": ("UMT5EncoderModel", {**T5, "vocab_size": 256384}, T5_NARROW),
    "Qwen3-4B": (
        "Qwen3ForCausalLM",
        {**QWEN_3, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
        NARROW,
    ),
    "Qwen3-8B": ("Qwen3ForCausalLM", {**QWEN_3, "hidden_size": 4096, "intermediate_size": 12288}, NARROW),
    "Gemma-2-2B": (
        "Gemma2Model",
        {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256000,
        },
        NARROW,
    ),
    "Qwen2.5-VL-7B": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "max_position_embeddings": 128000,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
        {
            "text_config": {
                **NARROW,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
            },
            "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        },
    ),
    "Mistral-Small-24B": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {
                "model_type": "mistral",
                "hidden_size": 5120,
                "intermediate_size": 32768,
                "num_hidden_layers": 40,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 131072,
                "max_position_embeddings": 131072,
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "head_dim": 64,
                "image_size": 1540,
                "patch_size": 14,
            },
        },
        {
            "text_config": NARROW,
            "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8},
        },
    ),
}
FOUR = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
SD = {**FOUR, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SD_NARROW = {"block_out_channels": (4, 8, 16, 16), "norm_num_groups": 2}
SANA = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
DC = {
    "latent_channels": 32,
    "encoder_block_types": SANA,
    "decoder_block_types": SANA,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
}
DC_NARROW = {f"{side}_block_out_channels": (8, 16, 32, 32, 64, 64) for side in ("encoder", "decoder")}
AUTOENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SD and SDXL": ("AutoencoderKL", SD, SD_NARROW),
    "Flux": ("AutoencoderKL", SD | {"latent_channels": 16, "use_quant_conv": False}, SD_NARROW),
    "Flux.2": ("AutoencoderKLFlux2", {}, SD_NARROW),
    "Wan": ("AutoencoderKLWan", {}, {"base_dim": 4}),
    "Qwen-Image": ("AutoencoderKLQwenImage", {}, {"base_dim": 4}),
    "Sana": ("AutoencoderDC", DC, DC_NARROW | {"attention_head_dim": 8, "latent_channels": 4}),
}


def built(architecture: Any, config: dict[str, Any]) -> nn.Module:
    if issubclass(architecture, diffusers.ModelMixin):
        return architecture(**config)
    return architecture(architecture.config_class(**config))


def narrowed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with `changes`, also in its parts."""
    found = copy.deepcopy(config)
    for key, value in changes.items():
        found[key] = {**found.get(key, {}), **value} if key.endswith("_config") else value
    return found


@pytest.mark.parametrize(
    ("library", "architecture", "config", "narrow"),
    [("transformers", *each) for each in ENCODERS.values()] + [("diffusers", *each) for each in AUTOENCODERS.values()],
    ids=[*ENCODERS, *AUTOENCODERS],
)
def test_no_released_part_is_refused(library, architecture, config, narrow, tmp_path):
    """Buffers at the released size, without memory; tensors and modules as many as there, in narrow layers."""
    kind = getattr(transformers if library == "transformers" else diffusers, architecture)
    with torch.device("meta"), at_most(10_000, PART_BUFFERS // 2):
        released = built(kind, config)
    small = built(kind, narrowed(config, narrow))
    assert small.state_dict().keys() == released.state_dict().keys()
    small.save_pretrained(tmp_path)
    stored = stored_tensors(tmp_path, tmp_path)
    assert stored <= len(released.state_dict())
    with quiet(text=True), at_most((PER_STORED - 1) * stored, PART_BUFFERS // 2):
        loaded = kind.from_pretrained(tmp_path, use_safetensors=True)
    assert all(map(torch.equal, loaded.state_dict().values(), small.state_dict().values()))
