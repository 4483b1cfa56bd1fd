"""Tiny random pipelines of the models of 2025 and 2026, complete with text encoders; they need transformers."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)

from models import randomize
from pipelines import SMALL, vae
from text_pipelines import LETTERS, WIDTH, gemma, gemma_tokenizer, saved, t5, t5_tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{% if message.content is string %}{{ message.content }}"
    "{% else %}{{ message.content[0].text }}{% endif %}<|im_end|>{% endfor %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES = {"hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
TEXT = {**SIZES, "vocab_size": 64, "head_dim": 4, "max_position_embeddings": 2048}
EIGHTFOLD = {
    "block_out_channels": (4, 4, 4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
VIDEO_VAE = {"base_dim": 4, "z_dim": 2, "num_res_blocks": 1, "latents_mean": [0.3, -0.2], "latents_std": [1.5, 0.7]}


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Small letters, spaces and ends of lines."""
    words = [*SPECIAL, *LETTERS, "Ġ", "Ċ"]
    tokenizer = Qwen2Tokenizer({word: index for index, word in enumerate(words)}, [], pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen_3(layers: int) -> Qwen3ForCausalLM:
    return randomize(Qwen3ForCausalLM(Qwen3Config(**TEXT, num_hidden_layers=layers)), seed=4)


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 0]}
    text = {**TEXT, "num_hidden_layers": 2, "rope_scaling": rope}
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return randomize(Qwen2_5_VLForConditionalGeneration(config), seed=5)


def mistral() -> Mistral3ForConditionalGeneration:
    text = {**TEXT, "num_hidden_layers": 30, "model_type": "mistral"}
    vision = {**SIZES, "model_type": "pixtral", "num_hidden_layers": 1, "head_dim": 4, "image_size": 8, "patch_size": 4}
    del vision["num_key_value_heads"]
    return randomize(Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)), seed=6)


def flux_2_vae() -> AutoencoderKLFlux2:
    """Four pixels to a latent along each side, with 2 x 2 latents packed into one; normalized by batch statistics."""
    model = randomize(AutoencoderKLFlux2(latent_channels=2, **SMALL))
    generator = torch.Generator().manual_seed(7)
    model.bn.running_mean.copy_(torch.randn(8, generator=generator))
    model.bn.running_var.copy_(torch.rand(8, generator=generator) + 0.5)
    return model


def dynamic(**changes: Any) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler that shifts by the size of the image."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **changes)


def flux_2_network(text: int, **changes: Any) -> Flux2Transformer2DModel:
    network = Flux2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        **changes,
    )
    network.register_to_config(sample_size=8)
    return randomize(network)


def flux_2_klein(folder: Path) -> Flux2KleinPipeline:
    parts = flux_2_vae(), qwen_3(28), qwen_tokenizer()
    network = flux_2_network(3 * WIDTH, guidance_embeds=False)
    return saved(Flux2KleinPipeline(dynamic(), *parts, network, is_distilled=True), folder)


def flux_2_dev(folder: Path) -> Flux2Pipeline:
    parts = flux_2_vae(), mistral(), qwen_tokenizer()
    return saved(Flux2Pipeline(dynamic(), *parts, flux_2_network(3 * WIDTH)), folder)


def qwen_image(folder: Path) -> QwenImagePipeline:
    network = QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    network.register_to_config(sample_size=8)
    autoencoder = randomize(AutoencoderKLQwenImage(**VIDEO_VAE, dim_mult=[1, 2], temperal_downsample=[False]))
    scheduler = dynamic(base_shift=0.5, max_shift=0.9, max_image_seq_len=8192)
    parts = autoencoder, qwen_vl(), qwen_tokenizer()
    return saved(QwenImagePipeline(scheduler, *parts, randomize(network)), folder)


def z_image(folder: Path) -> ZImagePipeline:
    network = ZImageTransformer2DModel(
        in_channels=2,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    network.register_to_config(sample_size=8)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = vae(shift_factor=0.1), qwen_3(2), qwen_tokenizer()
    return saved(ZImagePipeline(scheduler, *parts, randomize(network)), folder)


def chroma(folder: Path) -> ChromaPipeline:
    network = ChromaTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    network.register_to_config(sample_size=8)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = vae(shift_factor=0.1), t5(), t5_tokenizer()
    return saved(ChromaPipeline(scheduler, *parts, randomize(network)), folder)


def lumina_2(folder: Path) -> Lumina2Pipeline:
    network = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=2,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(2, 2, 4),
        axes_lens=(1024, 64, 64),
        cap_feat_dim=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    parts = vae(shift_factor=0.1, **EIGHTFOLD), gemma(), gemma_tokenizer()
    return saved(Lumina2Pipeline(randomize(network), scheduler, *parts), folder)


def umt5() -> UMT5EncoderModel:
    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return randomize(UMT5EncoderModel(UMT5Config(vocab_size=30, **sizes)), seed=8)


def wan_network(seed: int = 0) -> WanTransformer3DModel:
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=2,
        out_channels=2,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=24,
        num_layers=2,
        rope_max_seq_len=32,
    )
    network.register_to_config(sample_size=(3, 8, 8))
    return randomize(network, seed)


def wan(folder: Path, **second: Any) -> WanPipeline:
    """Clips of five frames: two pixels and two frames to a latent, except for the first frame."""
    autoencoder = AutoencoderKLWan(
        **VIDEO_VAE, dim_mult=[1, 2], temperal_downsample=[True], scale_factor_temporal=2, scale_factor_spatial=2
    )
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    parts = t5_tokenizer(), umt5(), randomize(autoencoder)
    return saved(WanPipeline(*parts, scheduler, wan_network(), **second), folder)


def wan_2_2(folder: Path) -> WanPipeline:
    """Two networks, one for each part of the noise levels."""
    return wan(folder, transformer_2=wan_network(seed=1), boundary_ratio=0.875)


def aura_flow(folder: Path) -> AuraFlowPipeline:
    network = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    parts = t5_tokenizer(), umt5(), vae(**EIGHTFOLD)
    return saved(AuraFlowPipeline(*parts, randomize(network), scheduler), folder)


RECENT = {
    "flux2-klein": flux_2_klein,
    "flux2-dev": flux_2_dev,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "chroma": chroma,
    "lumina2": lumina_2,
    "wan": wan,
    "wan2.2": wan_2_2,
    "aura-flow": aura_flow,
}
