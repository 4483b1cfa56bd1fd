"""Tiny random text-to-image pipelines, complete with text encoders and tokenizers; they need transformers."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from models import randomize
from pipelines import LINEAR, deep_compression, image_folder, vae
from secateur.data import LatentDataset
from secateur.runs.data import encode_data, open_data
from secateur.runs.subject import open_subject

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 8
U_NET = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def clip_tokenizer() -> CLIPTokenizer:
    """Letters, of which a prompt may have six."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer({word: index for index, word in enumerate(words)}, [], model_max_length=8)


def clip(projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return randomize((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed=int(projected))


def clip_model(folder: Path) -> Path:
    """A whole CLIP, of images and text, with its tokenizer."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 54, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    model = randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)))
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in ["▁", *LETTERS])]
    return T5Tokenizer(words, extra_ids=0)


def t5() -> T5EncoderModel:
    return randomize(
        T5EncoderModel(T5Config(vocab_size=30, d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2)), seed=2
    )


def gemma_tokenizer() -> GemmaTokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"acdgot"]  # few, so that long instructions are short
    return GemmaTokenizer({word: index for index, word in enumerate(words)}, [])


def gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=11,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
    )
    return randomize(Gemma2Model(config), seed=3)


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    network = randomize(UNet2DConditionModel(**U_NET, cross_attention_dim=WIDTH))
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae(), clip(), clip_tokenizer(), network, scheduler, None, None, requires_safety_checker=False
    )
    return saved(pipeline, folder)


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    network = UNet2DConditionModel(
        **U_NET,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )
    tokenizers = clip_tokenizer(), clip_tokenizer()
    scheduler = DDIMScheduler(**LINEAR)
    return saved(
        StableDiffusionXLPipeline(vae(), clip(), clip(True), *tokenizers, randomize(network), scheduler), folder
    )


def stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    t5_wide = T5EncoderModel(T5Config(vocab_size=30, d_model=32, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    encoders = clip(True), clip_tokenizer(), clip(True), clip_tokenizer(), randomize(t5_wide), t5_tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return saved(StableDiffusion3Pipeline(randomize(network), scheduler, vae(shift_factor=0.1), *encoders), folder)


def pixart(folder: Path) -> PixArtAlphaPipeline:
    network = PixArtTransformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
    )
    return saved(PixArtAlphaPipeline(t5_tokenizer(), t5(), vae(), randomize(network), DDIMScheduler(**LINEAR)), folder)


def flux(folder: Path, sample_size: int = 8, **changes: Any) -> FluxPipeline:
    """A guidance-distilled Flux, whose scheduler shifts by the size of the image, as FLUX.1-dev has them."""
    network = FluxTransformer2DModel(
        in_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        axes_dims_rope=(2, 2, 4),
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        **{"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True, **changes},
    )
    network.register_to_config(sample_size=sample_size)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    encoders = clip(), clip_tokenizer(), t5(), t5_tokenizer()
    return saved(FluxPipeline(scheduler, vae(shift_factor=0.1), *encoders, randomize(network)), folder)


def sana(folder: Path, **changes: Any) -> SanaPipeline:
    """Sana on 32 x 32 pixels, with its own scheduler, which describes a flow in another way."""
    network = SanaTransformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        **changes,
    )
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return saved(SanaPipeline(gemma_tokenizer(), gemma(), deep_compression(), randomize(network), scheduler), folder)


def saved(pipeline: Any, folder: Path) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


PIPELINES = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "pixart": pixart,
    "sana": sana,
}
NOISE = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def captioned(tmp_path):
    return image_folder(tmp_path / "images", captions=True)


def opened(folder, data):
    loaded = open_subject(str(folder), device="cpu")
    dataset = encode_data(open_data(str(data), loaded), loaded)
    assert isinstance(dataset, LatentDataset)
    return loaded, dataset
