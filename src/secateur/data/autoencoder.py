"""The autoencoder of a latent model: images to the latents that the network sees, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel
from torch import Tensor, nn

from ..base.errors import ModelError
from ..io.checkpoint import described, load_any
from ..io.locate import Place
from ..io.pruned import dense_class
from ..models.network import device_of

AUTOENCODERS: dict[str, type[Any]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderDC": AutoencoderDC,
    "VQModel": VQModel,
}
AT_ONCE = 8  # images to decode; activations of a VAE are large


@dataclass(frozen=True)
class LatentSpace:
    """Shapes on both sides of an autoencoder, by its config alone."""

    channels: int
    image_channels: int
    factor: int  # pixels to a latent, along each side

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """C, H, W of the images whose latents have `latent_shape`."""
        return self.image_channels, latent_shape[1] * self.factor, latent_shape[2] * self.factor


def latent_space(source: Path | nn.Module) -> LatentSpace:
    """What the config of an autoencoder says, or that in its folder.

    Raises:
        ModelError: another class than those of `AUTOENCODERS`.
    """
    name, config = _described(source)
    if name not in AUTOENCODERS:
        where = source if isinstance(source, Path) else "the pipeline"
        raise ModelError(f"{where} holds a {name}; latents are supported of {', '.join(AUTOENCODERS)}")
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    factor = 2 ** (len(widths) - 1)
    return LatentSpace(config["latent_channels"], config["in_channels"], factor)


def _described(source: Path | nn.Module) -> tuple[str, Mapping[str, Any]]:
    if isinstance(source, Path):
        return described(Place(source))
    return dense_class(source).__name__, source.config  # type: ignore[return-value]


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder with the normalization of its latents: (z - shift) scale, z the encoder's output.

    `scale` and `shift` are (C, 1, 1): `scaling_factor` and `shift_factor` of the config (Rombach et al. 2022, section
    D.1), or `latents_mean` and `latents_std` where it has them, as diffusers' pipelines use them.
    """

    model: nn.Module
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def encode(self, x_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images in [-1, 1]: mean + std noise of each posterior, where there is one."""
        weight = next(self.model.parameters())
        (encoded,) = self.model.encode(x_BCHW.to(weight), return_dict=False)  # type: ignore[operator]
        drawn = encoded if isinstance(encoded, Tensor) else encoded.mean + encoded.std * noise_BCHW.to(weight)
        return (drawn.to(self.scale) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents, a few at a time; about [-1, 1], not clamped."""
        weight = next(self.model.parameters())
        parts = (z_BCHW.to(self.scale) / self.scale + self.shift).to(weight).split(AT_ONCE)
        images = [self.model.decode(part, return_dict=False)[0] for part in parts]  # type: ignore[operator]
        return torch.cat(images).to(self.scale).contiguous()


def open_autoencoder(source: Path | nn.Module, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder in a folder, in float32 on `device`; one in memory is used as it is, where it is.

    Raises:
        ModelError: as `latent_space`; damaged or missing weights.
    """
    channels = latent_space(source).channels
    model: Any = source
    if isinstance(source, Path):
        model = load_any(Place(source), AUTOENCODERS[_described(source)[0]])  # its decoder may be pruned
        nn.Module.to(model, device, torch.float32).requires_grad_(False)  # past diffusers' warning
    config, shape, here = model.config, (channels, 1, 1), device_of(model)
    scale = torch.full(shape, config.get("scaling_factor") or 1.0, device=here)
    shift = torch.full(shape, config.get("shift_factor") or 0.0, device=here)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift = torch.tensor(config["latents_mean"], device=here).view(shape)
        scale = scale / torch.tensor(config["latents_std"], device=here).view(shape)
    return Autoencoder(model, scale, shift)
