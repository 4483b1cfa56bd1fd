"""Reconstruction: the process of a decoder. The sample is an image, and its latents take the place of the noisy sample.

An encoder maps an image x to a Gaussian over latents, z = mu(x) + sigma(x) noise (Kingma & Welling 2014, section 2.4;
Rombach et al. 2022, section 3.1), which takes the place of adding noise; the network's target is x. There is one
timestep.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..base.errors import ModelError, SecateurError

AT_ONCE = 8  # images to encode; activations of an encoder are large


@dataclass(frozen=True)
class Reconstruction:
    """A `Process` with the encoder of `autoencoder`, which is never trained; `digest` identifies the encoder."""

    autoencoder: AutoencoderKL = field(repr=False, compare=False)
    digest: str

    num_train_timesteps = 1

    def timesteps(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u, dtype=torch.long)

    @torch.no_grad()
    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents (B, c, h, w), a draw of each posterior; uses as many entries of `noise` as there are latents."""
        weight = next(self.autoencoder.encoder.parameters())
        parts = []
        for images, normal in zip(sample.split(AT_ONCE), noise.split(AT_ONCE), strict=True):
            posterior = self.autoencoder.encode(images.to(weight)).latent_dist
            parts.append(posterior.mean + posterior.std * first_entries(normal, posterior.mean))
        return torch.cat(parts).to(sample)

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return sample

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        return output

    def scheduler(self) -> Any:
        raise SecateurError(
            "a decoder draws no samples, so it takes no scheduler and no ftle; to sample, take the unet or transformer"
        )

    def sampler_to_model(self, timestep: Tensor) -> Tensor:
        return timestep

    def model_to_sampler(self, output: Tensor) -> Tensor:
        return output


def reconstruction_by(autoencoder: AutoencoderKL) -> Reconstruction:
    """The process of the decoder of `autoencoder`.

    Raises:
        ModelError: an image has fewer values than its latents, so noise of its shape does not suffice.
    """
    config: Any = autoencoder.config
    pixels = 4 ** (len(config["block_out_channels"]) - 1)  # pixels per latent
    if config["latent_channels"] > pixels * config["in_channels"]:
        raise ModelError("the autoencoder's latents are larger than its images: its decoder is not supported")
    digest = hashlib.sha256()
    for name, tensor in autoencoder.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            if tensor.is_meta:
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
            else:
                digest.update(tensor.cpu().double().numpy().tobytes())  # independent of the dtype of the weights
    return Reconstruction(autoencoder, digest.hexdigest()[:16])


def first_entries(noise: Tensor, like: Tensor) -> Tensor:
    """The first entries of each sample of `noise` (B, ...), in the shape, dtype and device of `like` (B, ...)."""
    return noise.flatten(1)[:, : like[0].numel()].reshape(like.shape).to(like)
