"""Example inputs of classes whose `forward` takes special arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .request import KNOWN, TEXT_TOKENS, Request, positions, text


def _z_image(of: Request) -> dict[str, Any]:
    pictures = of.draw(of.channels, 1, of.height, of.width)
    return {"x": [*pictures], "t": torch.linspace(0.1, 0.9, of.batch), "cap_feats": [*text(of)]}


def _bria_fibo(of: Request) -> dict[str, Any]:
    layers = of.config["num_layers"] + of.config["num_single_layers"]
    states = of.draw(TEXT_TOKENS, of.config["joint_attention_dim"])
    return {
        "hidden_states": of.draw(of.height * of.width, of.channels),
        "encoder_hidden_states": states,
        "text_encoder_layers": [of.draw(TEXT_TOKENS, of.config["text_encoder_dim"]) for _ in range(layers)],
        "timestep": KNOWN["timestep"](of),
        "img_ids": positions(of),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def _ace_step(of: Request) -> dict[str, Any]:
    own = of.config["audio_acoustic_hidden_dim"]
    return {
        "hidden_states": of.draw(8, own),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "timestep_r": torch.linspace(0.0, 0.5, of.batch),
        "encoder_hidden_states": text(of),
        "context_latents": of.draw(8, of.channels - own),
    }


def _kandinsky_5(of: Request) -> dict[str, Any]:
    times, rows, columns = (
        torch.arange(length // patch)
        for length, patch in zip((of.frames, of.height, of.width), of.config["patch_size"], strict=True)
    )
    return {
        "hidden_states": of.draw(of.frames, of.height, of.width, of.channels),
        "encoder_hidden_states": text(of),
        "timestep": KNOWN["timestep"](of),
        "pooled_projections": of.draw(of.config["in_text_dim2"]),
        "visual_rope_pos": (times, rows, columns),
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def _hunyuan_dit(of: Request) -> dict[str, Any]:
    first, second = of.config["text_len"], of.config["text_len_t5"]
    size, head = of.tokens, of.config["attention_head_dim"]
    return {
        "hidden_states": of.draw(of.channels, of.height, of.width),
        "timestep": KNOWN["timestep"](of),
        "encoder_hidden_states": of.draw(first, of.config["cross_attention_dim"]),
        "text_embedding_mask": torch.ones(of.batch, first, dtype=torch.int64),
        "encoder_hidden_states_t5": of.draw(second, of.config["cross_attention_dim_t5"]),
        "text_embedding_mask_t5": torch.ones(of.batch, second, dtype=torch.int64),
        "image_meta_size": torch.full((of.batch, 6), 64.0),
        "style": torch.zeros(of.batch, dtype=torch.int64),
        "image_rotary_emb": (torch.ones(size, head), torch.zeros(size, head)),
    }


def _hunyuan_video_15(of: Request) -> dict[str, Any]:
    return {
        "hidden_states": of.draw(of.channels, of.frames, of.height, of.width),
        "timestep": KNOWN["timestep"](of),
        "encoder_hidden_states": text(of),
        "encoder_attention_mask": torch.ones(of.batch, TEXT_TOKENS, dtype=torch.int64),
        "encoder_hidden_states_2": of.draw(5, of.config["text_embed_2_dim"]),
        "encoder_attention_mask_2": torch.ones(of.batch, 5, dtype=torch.int64),
        "image_embeds": of.draw(4, of.config["image_embed_dim"]),
    }


def _framepack(of: Request) -> dict[str, Any]:
    sample = of.draw(of.channels, of.frames, of.height, of.width)
    times = torch.arange(of.frames).expand(of.batch, -1)
    return {
        "hidden_states": sample,
        "timestep": KNOWN["timestep"](of),
        "encoder_hidden_states": text(of),
        "encoder_attention_mask": torch.ones(of.batch, TEXT_TOKENS, dtype=torch.int64),
        "pooled_projections": KNOWN["pooled_projections"](of),
        "image_embeds": of.draw(4, of.config["image_proj_dim"]),
        "indices_latents": times + 3,
        "guidance": KNOWN["guidance"](of),
        "latents_clean": sample[:, :, :1],
        "indices_latents_clean": times[:, :1],
        "latents_history_2x": sample[:, :, :2],
        "indices_latents_history_2x": times[:, :2],
        "latents_history_4x": torch.cat([sample[:, :, :2]] * 2, dim=2),
        "indices_latents_history_4x": torch.arange(4).expand(of.batch, -1),
    }


def _wan_vace(of: Request) -> dict[str, Any]:
    control = of.draw(of.config["vace_in_channels"], of.frames, of.height, of.width)
    return {
        "hidden_states": of.draw(of.channels, of.frames, of.height, of.width),
        "timestep": KNOWN["timestep"](of),
        "encoder_hidden_states": text(of),
        "control_hidden_states": control,
    }


def _joy_image_plus(of: Request) -> dict[str, Any]:
    times, rows, columns = of.config["patch_size"]
    grid = (of.frames // times, of.height // rows, of.width // columns)
    return {
        "hidden_states": of.draw(grid[0] * grid[1] * grid[2], of.channels, times, rows, columns),
        "timestep": KNOWN["timestep"](of),
        "encoder_hidden_states": text(of),
        "shape_list": [[grid]] * of.batch,
    }


def _krea_2(of: Request) -> dict[str, Any]:
    return {
        "hidden_states": of.draw(of.height * of.width, of.channels),
        "encoder_hidden_states": of.draw(TEXT_TOKENS, of.config["num_text_layers"], of.config["text_hidden_dim"]),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "position_ids": torch.zeros(TEXT_TOKENS + of.height * of.width, 3),
    }


def _lumina_next(of: Request) -> dict[str, Any]:
    head = of.config["hidden_size"] // of.config["num_attention_heads"]
    return {
        "hidden_states": of.draw(of.channels, of.height, of.width),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "encoder_hidden_states": text(of),
        "encoder_mask": torch.ones(of.batch, TEXT_TOKENS, dtype=torch.int64),
        "image_rotary_emb": torch.polar(torch.ones(64, 64, head // 2), torch.zeros(64, 64, head // 2)),
    }


def _hidream(of: Request) -> dict[str, Any]:
    layers, width = of.config["llama_layers"], of.config["caption_channels"]
    return {
        "hidden_states": of.draw(of.channels, of.height, of.height),
        "timesteps": KNOWN["timestep"](of),
        "encoder_hidden_states_t5": of.draw(TEXT_TOKENS, width[0]),
        "encoder_hidden_states_llama3": torch.stack([of.draw(TEXT_TOKENS, width[1]) for _ in range(max(layers) + 1)]),
        "pooled_embeds": of.draw(of.config["text_emb_dim"]),
    }


def _ideogram_4(of: Request) -> dict[str, Any]:
    length = TEXT_TOKENS + of.height * of.width
    role = torch.tensor([3] * TEXT_TOKENS + [2] * (length - TEXT_TOKENS))
    return {
        "hidden_states": of.draw(length, of.channels),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "encoder_hidden_states": of.draw(length, of.config["llm_features_dim"]),
        "position_ids": torch.zeros(of.batch, length, 3, dtype=torch.int64),
        "segment_ids": torch.zeros(of.batch, length, dtype=torch.int64),
        "indicator": role.expand(of.batch, length),
    }


def _qwen_image_21(of: Request) -> dict[str, Any]:
    slots = of.height * of.width // 4
    mask = torch.tensor([False] * TEXT_TOKENS + [True] * slots).expand(of.batch, -1)
    return {
        "hidden_states": of.draw(of.height * of.width, of.channels),
        "encoder_hidden_states": text(of),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "img_shapes": [[(1, of.height, of.width)]] * of.batch,
        "img_mask": mask,
    }


def _ltx_2(of: Request) -> dict[str, Any]:
    tokens, sounds = of.frames * of.height * of.width, 5
    return {
        "hidden_states": of.draw(tokens, of.channels),
        "audio_hidden_states": of.draw(sounds, of.config["audio_in_channels"]),
        "encoder_hidden_states": text(of),
        "audio_encoder_hidden_states": text(of),
        "timestep": KNOWN["timestep"](of),
        "num_frames": of.frames,
        "height": of.height,
        "width": of.width,
        "audio_num_frames": sounds,
    }


def _stable_audio_3(of: Request) -> dict[str, Any]:
    return {
        "hidden_states": of.draw(of.channels, 8),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "encoder_hidden_states": text(of),
        "global_hidden_states": of.draw(of.config["global_cond_dim"]),
    }


def _prior(of: Request) -> dict[str, Any]:
    width = of.config["embedding_dim"]
    return {
        "hidden_states": of.draw(width),
        "timestep": KNOWN["timestep"](of),
        "proj_embedding": of.draw(of.config.get("embedding_proj_dim") or width),
        "encoder_hidden_states": of.draw(of.config["num_embeddings"], width),
    }


def _temporal(of: Request) -> dict[str, Any]:
    return {
        "hidden_states": torch.cat([of.draw(of.channels, of.height, of.width)] * of.frames),
        "num_frames": of.frames,
    }


PARTICULAR: dict[str, Callable[[Request], dict[str, Any]]] = {
    "AceStepTransformer1DModel": _ace_step,
    "BriaFiboTransformer2DModel": _bria_fibo,
    "HiDreamImageTransformer2DModel": _hidream,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "HunyuanVideoFramepackTransformer3DModel": _framepack,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video_15,
    "Ideogram4Transformer2DModel": _ideogram_4,
    "JoyImageEditPlusTransformer3DModel": _joy_image_plus,
    "Kandinsky5Transformer3DModel": _kandinsky_5,
    "Krea2Transformer2DModel": _krea_2,
    "LTX2VideoTransformer3DModel": _ltx_2,
    "LuminaNextDiT2DModel": _lumina_next,
    "PriorTransformer": _prior,
    "QwenImage21Transformer2DModel": _qwen_image_21,
    "StableAudio3DiTModel": _stable_audio_3,
    "TransformerTemporalModel": _temporal,
    "WanVACETransformer3DModel": _wan_vace,
    "ZImageTransformer2DModel": _z_image,
}
