"""The autoencoder of a latent model: images to the latents that the network sees, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel
from safetensors import SafetensorError
from torch import Tensor, nn

from ..base.errors import ModelError, first_line
from ..base.files import read_json
from ..io.checkpoint import from_pretrained
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


def latent_space(folder: Path) -> LatentSpace:
    """What the config in `folder` says.

    Raises:
        ModelError: another class than those of `AUTOENCODERS`.
    """
    config = read_json(folder / "config.json")
    if (name := config.get("_class_name")) not in AUTOENCODERS:
        raise ModelError(f"{folder} holds a {name}; latents are supported of {', '.join(AUTOENCODERS)}")
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    factor = 2 ** (len(widths) - 1)
    return LatentSpace(config["latent_channels"], config["in_channels"], factor)


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
        (encoded,) = self.model.encode(x_BCHW, return_dict=False)  # type: ignore[operator]
        drawn = encoded if isinstance(encoded, Tensor) else encoded.mean + encoded.std * noise_BCHW
        return (drawn - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents, a few at a time; about [-1, 1], not clamped."""
        parts = (z_BCHW.to(self.scale) / self.scale + self.shift).split(AT_ONCE)
        images = [self.model.decode(part, return_dict=False)[0] for part in parts]  # type: ignore[operator]
        return torch.cat(images).contiguous()


def open_autoencoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Load the autoencoder in `folder`, in float32.

    Raises:
        ModelError: as `latent_space`; damaged or missing weights.
    """
    channels = latent_space(folder).channels
    try:
        architecture = AUTOENCODERS[read_json(folder / "config.json")["_class_name"]]
        if architecture is AutoencoderKL:
            model: Any = from_pretrained(folder, torch_dtype=torch.float32)  # its decoder may be pruned
        else:
            model = architecture.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {first_line(error)}") from error
    model = model.eval().requires_grad_(False).to(device)
    config, shape = model.config, (channels, 1, 1)
    scale = torch.full(shape, config.get("scaling_factor") or 1.0, device=device_of(model))
    shift = torch.full(shape, config.get("shift_factor") or 0.0, device=device_of(model))
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift = torch.tensor(config["latents_mean"], device=shift.device).view(shape)
        scale = scale / torch.tensor(config["latents_std"], device=scale.device).view(shape)
    return Autoencoder(model, scale, shift)
