"""Example inputs of a class that nobody declared, from the signature of its `forward` and its config.

What a name means is the same in almost all of diffusers, so one table of names serves; how the sample is laid out is
found by trying. What a class takes beyond that stands in `PARTICULAR`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import ModelError
from ..family import architecture_of, config_of

TEXT_TOKENS = 7
TEXT_WIDTHS = (
    "joint_attention_dim",
    "text_embed_dim",
    "text_dim",
    "caption_channels",
    "cap_feat_dim",
    "context_in_dim",
    "text_in_dim",
    "in_text_dim",
    "dit_text_dim",
    "cond_token_dim",
    "cross_attention_input_dim",
    "encoder_hidden_states_channels",
    "encoder_hidden_size",
    "condition_dim",
    "cross_attention_dim",
    "hidden_size",
)


@dataclass(frozen=True)
class Request:
    """What inputs are asked for.

    Attributes:
        config: of the model.
        batch: number of samples.
        frames, height, width: of the latents.
    """

    model: Any
    config: Mapping[str, Any]
    batch: int
    frames: int
    height: int
    width: int

    def draw(self, *sizes: int) -> Tensor:
        """Standard normal values (batch, *sizes)."""
        generator = torch.Generator().manual_seed(sum(sizes))
        return torch.randn(self.batch, *sizes, generator=generator)

    def first(self, *keys: str, otherwise: int = 0) -> int:
        """The first of `keys` that the config has a number for."""
        return next((self.config[key] for key in keys if type(self.config.get(key)) is int), otherwise)

    @property
    def channels(self) -> int:
        return self.first("in_channels", "latent_channel", "io_channels", "in_visual_dim", "in_dim", "latent_dim")

    @property
    def patch(self) -> int:
        sides = self.config.get("patch_size") or 1
        return sides if isinstance(sides, int) else sides[-1]

    @property
    def tokens(self) -> int:
        """Number of patches of a picture."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def axes(self) -> int:
        """Number of axes of positions."""
        names = ("axes_dims_rope", "rope_axes_dim", "axes_dims", "axes_dim_rope")
        return next((len(self.config[name]) for name in names if self.config.get(name)), 3)


Layout = Callable[[Request], Any]

LAYOUTS: dict[str, Layout] = {
    "image": lambda of: of.draw(of.channels, of.height, of.width),
    "video": lambda of: of.draw(of.channels, of.frames, of.height, of.width),
    "frames first": lambda of: of.draw(of.frames, of.channels, of.height, of.width),
    "channels last": lambda of: of.draw(of.frames, of.height, of.width, of.channels),
    "tokens": lambda of: of.draw(of.height * of.width, of.channels),
    "tokens of a video": lambda of: of.draw(of.frames * of.height * of.width, of.channels),
    "sequence": lambda of: of.draw(of.channels, of.width * 4),
}


def _positions(of: Request) -> Tensor:
    grid = torch.cartesian_prod(torch.arange(of.height), torch.arange(of.width))
    return torch.cat([torch.zeros(len(grid), max(of.axes - 2, 0), dtype=torch.int64), grid], 1)[:, : of.axes].float()


def _text(of: Request) -> Tensor:
    return of.draw(TEXT_TOKENS, of.first(*TEXT_WIDTHS))


KNOWN: dict[str, Callable[[Request], Any]] = {
    "encoder_hidden_states": _text,
    "timestep": lambda of: torch.linspace(100.0, 900.0, of.batch),
    "pooled_projections": lambda of: of.draw(of.first("pooled_projection_dim", "in_text_dim2")),
    "guidance": lambda of: torch.full((of.batch,), 3.5) if of.config.get("guidance_embeds") else None,
    "img_ids": _positions,
    "txt_ids": lambda of: torch.zeros(TEXT_TOKENS, of.axes),
    "encoder_attention_mask": lambda of: torch.ones(of.batch, TEXT_TOKENS, dtype=torch.int64),
    "encoder_hidden_states_mask": lambda of: torch.ones(of.batch, TEXT_TOKENS, dtype=torch.int64),
    "num_frames": lambda of: of.frames,
    "height": lambda of: of.height,
    "width": lambda of: of.width,
    "original_size": lambda of: torch.tensor([[128, 128]] * of.batch),
    "target_size": lambda of: torch.tensor([[128, 128]] * of.batch),
    "crop_coords": lambda of: torch.tensor([[0, 0]] * of.batch),
    "img_shapes": lambda of: [[(1, of.height, of.width)]] * of.batch,
    "r_timestep": lambda of: torch.linspace(50.0, 450.0, of.batch),
    "timestep_r": lambda of: torch.linspace(50.0, 450.0, of.batch),
    "class_labels": lambda of: torch.arange(of.batch) if of.config.get("num_embeds_ada_norm") else None,
    "global_hidden_states": lambda of: of.draw(1, of.first("global_states_input_dim")),
    "proj_embedding": lambda of: of.draw(of.first("embedding_proj_dim", "embedding_dim")),
    "position_ids": lambda of: torch.zeros(TEXT_TOKENS + of.height * of.width, 3),
    "text_bth": _text,
    "text_lens": lambda of: torch.tensor([TEXT_TOKENS] * of.batch),
    "prior_token_id": lambda of: torch.arange(of.batch * of.tokens).view(of.batch, of.tokens),
    "prior_token_drop": lambda of: torch.zeros(of.batch, of.tokens, dtype=torch.bool),
}
ALWAYS = (
    "encoder_hidden_states",
    "timestep",
    "pooled_projections",
    "guidance",
    "img_ids",
    "txt_ids",
    "num_frames",
    "height",
    "width",
    "original_size",
    "target_size",
    "crop_coords",
    "img_shapes",
    "global_hidden_states",
    "class_labels",
)


def candidates(model: nn.Module, batch: int = 2, sides: tuple[int, int, int] = (3, 4, 6)) -> Iterator[dict[str, Any]]:
    """Keyword arguments that `model` may take, by layout of the sample; first without the arguments it can do without.

    Raises:
        ModelError: `forward` takes an argument that nothing is known of.
    """
    frames, height, width = sides
    of = Request(model, config_of(model), batch, frames, height, width)
    if (particular := PARTICULAR.get(architecture_of(model).__name__)) is not None:
        yield particular(of)
        return
    sample, *others = inspect.signature(model.forward).parameters.values()
    required = [each.name for each in others if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if unknown := next((name for name in required if name not in KNOWN), None):
        raise ModelError(f"the argument {unknown} of {type(model).__name__} is of unknown meaning")
    optional = [each.name for each in others if each.name in KNOWN and each.name not in required]
    for names in ([name for name in optional if name in ALWAYS], optional):
        given = {name: KNOWN[name](of) for name in (*required, *names)}
        given = {name: value for name, value in given.items() if value is not None}
        for layout in LAYOUTS.values():
            yield {sample.name: layout(of), **given}


def working(model: nn.Module, batch: int = 2) -> tuple[dict[str, Any], int]:
    """The first of the `candidates` that `model` runs on, and its index.

    Raises:
        ModelError: none works; it says why the first one did not.
    """
    reasons = []
    for index, inputs in enumerate(candidates(model, batch)):
        try:
            with torch.no_grad():
                model(**inputs)
            return inputs, index
        except Exception as error:
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
    raise ModelError(f"no example inputs of {type(model).__name__} are known to work: {reasons[0]}")


def _z_image(of: Request) -> dict[str, Any]:
    pictures = of.draw(of.channels, 1, of.height, of.width)
    return {"x": [*pictures], "t": torch.linspace(0.1, 0.9, of.batch), "cap_feats": [*_text(of)]}


def _bria_fibo(of: Request) -> dict[str, Any]:
    layers = of.config["num_layers"] + of.config["num_single_layers"]
    states = of.draw(TEXT_TOKENS, of.config["joint_attention_dim"])
    return {
        "hidden_states": of.draw(of.height * of.width, of.channels),
        "encoder_hidden_states": states,
        "text_encoder_layers": [of.draw(TEXT_TOKENS, of.config["text_encoder_dim"]) for _ in range(layers)],
        "timestep": KNOWN["timestep"](of),
        "img_ids": _positions(of),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def _ace_step(of: Request) -> dict[str, Any]:
    own = of.config["audio_acoustic_hidden_dim"]
    return {
        "hidden_states": of.draw(8, own),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "timestep_r": torch.linspace(0.0, 0.5, of.batch),
        "encoder_hidden_states": _text(of),
        "context_latents": of.draw(8, of.channels - own),
    }


def _kandinsky_5(of: Request) -> dict[str, Any]:
    times, rows, columns = (
        torch.arange(length // patch)
        for length, patch in zip((of.frames, of.height, of.width), of.config["patch_size"], strict=True)
    )
    return {
        "hidden_states": of.draw(of.frames, of.height, of.width, of.channels),
        "encoder_hidden_states": _text(of),
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
        "encoder_hidden_states": _text(of),
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
        "encoder_hidden_states": _text(of),
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
        "encoder_hidden_states": _text(of),
        "control_hidden_states": control,
    }


def _joy_image_plus(of: Request) -> dict[str, Any]:
    times, rows, columns = of.config["patch_size"]
    grid = (of.frames // times, of.height // rows, of.width // columns)
    return {
        "hidden_states": of.draw(grid[0] * grid[1] * grid[2], of.channels, times, rows, columns),
        "timestep": KNOWN["timestep"](of),
        "encoder_hidden_states": _text(of),
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
        "encoder_hidden_states": _text(of),
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
        "encoder_hidden_states": _text(of),
        "timestep": torch.linspace(0.1, 0.9, of.batch),
        "img_shapes": [[(1, of.height, of.width)]] * of.batch,
        "img_mask": mask,
    }


def _ltx_2(of: Request) -> dict[str, Any]:
    tokens, sounds = of.frames * of.height * of.width, 5
    return {
        "hidden_states": of.draw(tokens, of.channels),
        "audio_hidden_states": of.draw(sounds, of.config["audio_in_channels"]),
        "encoder_hidden_states": _text(of),
        "audio_encoder_hidden_states": _text(of),
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
        "encoder_hidden_states": _text(of),
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
