"""The objective of pretraining: the error against the process's own target."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...models.predict import predict
from ...process.base import Process
from ...process.own import OwnObjective
from ...teacher import Draw, Teacher, at
from .objective import JacobianConfig, Objective, Terms


def denoising_terms(
    student: nn.Module, teacher: nn.Module | Teacher | None, process: Process, draw: Draw, config: JacobianConfig
) -> Terms:
    """Error against the process's target: noise (L_simple, DDPM, eq. 14), v, sample or flow velocity; or the user's
    loss."""
    if isinstance(process, OwnObjective):
        return {"denoising": process.errors(student, draw.conditions).mean()}
    x_t, target = noisy_and_target(process, draw)
    prediction = predict(student, *at(x_t, draw))
    return {"denoising": F.mse_loss(prediction.to(target.dtype), target)}


def noisy_and_target(process: Process, draw: Draw) -> tuple[Tensor, Tensor]:
    """x_t and the process's target, (B, C, H, W) each; of a decoder, latents and image."""
    return process.add_noise(draw.sample, draw.noise, draw.timesteps), target_of(process, draw)


def target_of(process: Process, draw: Draw) -> Tensor:
    """The process's target, (B, C, H, W): noise, v, sample or flow velocity; of a decoder, the image."""
    return process.target(draw.sample, draw.noise, draw.timesteps)


DENOISING = Objective("denoising", denoising_terms, {"denoising": 1.0}, compiles=True)
