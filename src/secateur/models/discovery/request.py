"""A request for example inputs of a model, and builders of inputs that many classes take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """The inputs that are asked for.

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
        """The number of the first of `keys` that the config has."""
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
    def text_tokens(self) -> int:
        """Length of texts; some classes fix it."""
        return self.first("max_text_seq_length", otherwise=TEXT_TOKENS)

    @property
    def axes(self) -> int:
        """Number of axes of positions."""
        names = ("axes_dims_rope", "rope_axes_dim", "axes_dims", "axes_dim_rope")
        return next((len(self.config[name]) for name in names if self.config.get(name)), 3)


def positions(of: Request) -> Tensor:
    grid = torch.cartesian_prod(torch.arange(of.height), torch.arange(of.width))
    return torch.cat([torch.zeros(len(grid), max(of.axes - 2, 0), dtype=torch.int64), grid], 1)[:, : of.axes].float()


def text(of: Request) -> Tensor:
    return of.draw(of.text_tokens, of.first(*TEXT_WIDTHS))


# The meaning of names in almost all of diffusers.
KNOWN: dict[str, Callable[[Request], Any]] = {
    "encoder_hidden_states": text,
    "timestep": lambda of: torch.linspace(100.0, 900.0, of.batch),
    "pooled_projections": lambda of: of.draw(of.first("pooled_projection_dim", "in_text_dim2")),
    "guidance": lambda of: torch.full((of.batch,), 3.5) if of.config.get("guidance_embeds") else None,
    "img_ids": positions,
    "txt_ids": lambda of: torch.zeros(of.text_tokens, of.axes),
    "encoder_attention_mask": lambda of: torch.ones(of.batch, of.text_tokens, dtype=torch.int64),
    "encoder_hidden_states_mask": lambda of: torch.ones(of.batch, of.text_tokens, dtype=torch.int64),
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
    "padding_mask": lambda of: torch.zeros(1, 1, of.height, of.width) if of.config.get("concat_padding_mask") else None,
    "position_ids": lambda of: torch.zeros(of.text_tokens + of.height * of.width, 3),
    "text_bth": text,
    "text_lens": lambda of: torch.tensor([of.text_tokens] * of.batch),
    "prior_token_id": lambda of: torch.arange(of.batch * of.tokens).view(of.batch, of.tokens),
    "prior_token_drop": lambda of: torch.zeros(of.batch, of.tokens, dtype=torch.bool),
}
