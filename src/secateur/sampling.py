"""Deterministic sampling: the same seeds give the same images, whatever the batch size."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .conditions import UNCONDITIONAL, Conditions, dropped, moved, rows
from .errors import SecateurError, require
from .inputs import device_of, inference
from .process import Process, predict
from .progress import progress


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (len(seeds), *shape), each image from a generator of its own, on the CPU."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def generate(
    model: nn.Module,
    process: Process,
    noise_BCHW: Tensor,
    conditions: Conditions = UNCONDITIONAL,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    null: Conditions = UNCONDITIONAL,
) -> Tensor:
    """Integrate the deterministic sampler from `noise_BCHW`; samples or latents (B, C, H, W), not clamped.

    With `guidance_scale` other than 1, classifier-free guidance (Ho & Salimans 2022, eq. 6) pushes away from the
    prediction at the `null` conditions.

    Raises:
        SecateurError: more steps than the process has, or guidance without null conditions to guide away from.
    """
    most = process.num_train_timesteps
    require(1 <= num_inference_steps <= most, f"num_inference_steps is {num_inference_steps}; give 1 to {most}")
    guided = guidance_scale != 1.0
    if guided and not (conditions and null):
        raise SecateurError("the model has no null condition to guide away from; use guidance_scale 1")
    scheduler = process.scheduler()
    scheduler.set_timesteps(num_inference_steps, device=noise_BCHW.device)
    everywhere = torch.ones(len(noise_BCHW), dtype=torch.bool, device=noise_BCHW.device)
    unconditioned = dropped(conditions, everywhere, null) if guided else UNCONDITIONAL
    sample = noise_BCHW
    for timestep in scheduler.timesteps:
        t_B = process.sampler_to_model(timestep).expand(len(sample)).to(sample.device)
        output = predict(model, sample, t_B, conditions)
        if guided:
            unconditional = predict(model, sample, t_B, unconditioned)
            output = unconditional + guidance_scale * (output - unconditional)
        sample = scheduler.step(process.model_to_sampler(output), timestep, sample, return_dict=False)[0]
    return sample


def generate_images(
    model: nn.Module,
    process: Process,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    conditions: Conditions = UNCONDITIONAL,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    null: Conditions = UNCONDITIONAL,
    batch_size: int = 128,
    description: str = "sampling",
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Images (len(seeds), C, H, W) in [-1, 1] on the CPU, one seed each, drawn in batches with a progress bar.

    `shape` is that of one sample, `conditions` have a row for each seed; `decode` turns latents into images.
    """
    require(batch_size >= 1, f"batch_size is {batch_size}; give at least 1")
    device = device_of(model)
    images = []
    with inference(model), progress(description, len(seeds)) as advance:
        for start in range(0, len(seeds), batch_size):
            chosen = slice(start, start + batch_size)
            noise = initial_noise(seeds[chosen], shape).to(device)
            batch = generate(
                model,
                process,
                noise,
                moved(rows(conditions, chosen), device),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                null=null,
            )
            images.append((batch if decode is None else decode(batch)).clamp(-1, 1).cpu())
            advance(len(noise), "")
    return torch.cat(images)
