"""Deterministic sampling: the same seeds give the same images, whatever the batch size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    class_labels_B: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    null_class: int | None = None,
) -> Tensor:
    """Integrate the deterministic sampler from `noise_BCHW`; images (B, C, H, W) in [-1, 1].

    With `guidance_scale` other than 1, classifier-free guidance (Ho & Salimans 2022, eq. 6) pushes away from the
    prediction at label `null_class`.

    Raises:
        SecateurError: more steps than the process has, or guidance without class labels to guide by.
    """
    most = process.num_train_timesteps
    require(1 <= num_inference_steps <= most, f"num_inference_steps is {num_inference_steps}; give 1 to {most}")
    guided = guidance_scale != 1.0
    if guided and (class_labels_B is None or null_class is None):
        raise SecateurError("the model has no null class to guide away from; use guidance_scale 1")
    scheduler = process.scheduler()
    scheduler.set_timesteps(num_inference_steps, device=noise_BCHW.device)
    sample = noise_BCHW
    for timestep in scheduler.timesteps:
        t_B = process.sampler_to_model(timestep).expand(len(sample)).to(sample.device)
        output = predict(model, sample, t_B, class_labels_B)
        if guided and class_labels_B is not None and null_class is not None:
            unconditional = predict(model, sample, t_B, torch.full_like(class_labels_B, null_class))
            output = unconditional + guidance_scale * (output - unconditional)
        sample = scheduler.step(process.model_to_sampler(output), timestep, sample, return_dict=False)[0]
    return sample.clamp(-1, 1)


def generate_images(
    model: nn.Module,
    process: Process,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    class_labels: Sequence[int] | None = None,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    null_class: int | None = None,
    batch_size: int = 128,
    description: str = "sampling",
) -> Tensor:
    """Images (len(seeds), *shape) in [-1, 1] on the CPU, one seed each, drawn in batches with a progress bar."""
    require(batch_size >= 1, f"batch_size is {batch_size}; give at least 1")
    device = device_of(model)
    labels = None if class_labels is None else torch.as_tensor(class_labels)
    images = []
    with inference(model), progress(description, len(seeds)) as advance:
        for start in range(0, len(seeds), batch_size):
            chosen = slice(start, start + batch_size)
            noise = initial_noise(seeds[chosen], shape).to(device)
            batch = generate(
                model,
                process,
                noise,
                None if labels is None else labels[chosen].to(device),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                null_class=null_class,
            )
            images.append(batch.cpu())
            advance(len(noise), "")
    return torch.cat(images)
