"""Sampling: an image depends on seed and number alone, not on batch size, device or number of processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..base.errors import SecateurError, require
from ..base.seeds import Purpose, normal, torch_seed
from ..models.conditions import UNCONDITIONAL, Conditions, dropped, moved
from ..models.network import IMAGE_CHANNELS, device_of, inference
from ..models.predict import predict
from ..models.registry import family_of
from .base import Process
from .samplers import sampler, scaled, step


def initial_noise(numbers: Sequence[int], shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normal noise (len(numbers), *shape) on the CPU, the start of the images with these numbers."""
    return normal(shape, numbers, seed, Purpose.SAMPLE)


def _generators(numbers: Sequence[int], seed: int) -> list[torch.Generator]:
    """Generators for a stochastic sampler, one on the CPU for each image."""
    seeds = [torch_seed(seed, Purpose.SAMPLER, index=number) for number in numbers]
    return [torch.Generator().manual_seed(each) for each in seeds]


@torch.no_grad()
def generate(
    model: nn.Module,
    process: Process,
    noise_BCHW: Tensor,
    conditions: Conditions = UNCONDITIONAL,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    guidance_channels: int | None = None,
    null: Conditions = UNCONDITIONAL,
    scheduler: str | None = None,
    generators: Sequence[torch.Generator] = (),
) -> Tensor:
    """Integrate the sampler from `noise_BCHW`; samples or latents (B, C, H, W), not clamped.

    The sampler is the process's deterministic one, or the diffusers `scheduler` of that class name; a stochastic one
    draws from `generators`, one for each image. With `guidance_scale` other than 1, classifier-free guidance (Ho &
    Salimans 2022, eq. 6) moves the prediction away from that at the `null` conditions: in all channels, or in the first
    `guidance_channels`, as in the released samplers of DiT and SiT (three of four). If the family's pipeline rescales
    the guided prediction (Qwen-Image, Lumina 2), so does this.

    Raises:
        SecateurError: there are more steps than the process has, the scheduler does not fit, or there is guidance
            without null conditions.
    """
    most = process.num_train_timesteps
    require(1 <= num_inference_steps <= most, f"num_inference_steps is {num_inference_steps}; give 1 to {most}")
    is_guided = guidance_scale != 1.0
    if is_guided and not (conditions and null):
        raise SecateurError("the model has no null condition to guide away from; use guidance_scale 1")
    solver = sampler(process, scheduler)
    solver.set_timesteps(num_inference_steps, device=noise_BCHW.device)
    # Flow schedulers start from unscaled noise, and do not have this attribute.
    everywhere = torch.ones(len(noise_BCHW), dtype=torch.bool, device=noise_BCHW.device)
    unconditioned = dropped(conditions, everywhere, null) if is_guided else UNCONDITIONAL
    sample = noise_BCHW * getattr(solver, "init_noise_sigma", 1.0)
    for timestep in solver.timesteps:
        t_B = process.sampler_to_model(timestep).expand(len(sample)).to(sample.device)
        x_t = scaled(solver, sample, timestep)
        network = network_at(model, process, float(timestep))
        output = predict(network, x_t, t_B, conditions)
        if is_guided:
            unconditional = predict(network, x_t, t_B, unconditioned)
            moved_output = guided(output, unconditional, guidance_scale, guidance_channels)
            output = family_of(network).rescaled(moved_output, output)
        sample = step(solver, process.model_to_sampler(output), timestep, sample, generators)
    return sample


def network_at(model: nn.Module, process: Process, timestep: float) -> nn.Module:
    """`model`, or if it is one of two experts, the one for this timestep of the sampler."""
    expert = getattr(process, "expert", None)
    if expert is None or expert.covers(timestep / process.num_train_timesteps):
        return model
    return expert.other().to(device_of(model)).eval()


def guided(output_BCHW: Tensor, null_BCHW: Tensor, scale: float, channels: int | None) -> Tensor:
    """The output moved away from that at the null conditions; channels after `channels` are unchanged."""
    chosen = slice(channels)
    moved_BCHW = null_BCHW[:, chosen] + scale * (output_BCHW[:, chosen] - null_BCHW[:, chosen])
    return moved_BCHW if channels is None else torch.cat([moved_BCHW, output_BCHW[:, channels:]], dim=1)


def generate_batch(
    model: nn.Module,
    process: Process,
    numbers: Sequence[int],
    shape: tuple[int, ...],
    conditions: Conditions = UNCONDITIONAL,
    *,
    seed: int = 0,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    guidance_channels: int | None = None,
    null: Conditions = UNCONDITIONAL,
    scheduler: str | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Images (len(numbers), C, H, W) in [-1, 1], or latents, on the model's device, drawn at once.

    Each depends on `seed` and its number alone. `shape` is that of one sample, `conditions` have a row for each image;
    `decode` turns latents into images.
    """
    device = device_of(model)
    with inference(model):
        sample = generate(
            model,
            process,
            initial_noise(numbers, shape, seed).to(device),
            moved(conditions, device),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_channels=guidance_channels,
            null=null,
            scheduler=scheduler,
            generators=_generators(numbers, seed),
        )
        if decode is not None:
            return decode(sample).clamp(-1, 1)
        return sample.clamp(-1, 1) if shape[0] in IMAGE_CHANNELS else sample  # latents have no range
