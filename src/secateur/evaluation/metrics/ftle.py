"""Finite-time Lyapunov exponent of a sampler: how fast it separates neighbouring noises, or brings them together.

The deterministic samplers used here (DDIM with eta 0, Euler) step by x' = A_t x + B_t f(x, t), so the map from noise to
image has the Jacobian prod_t (A_t + B_t J_t), J_t the network's. FTLE = (1/N) log of its largest singular value over N
steps (2ndMatch, arXiv 2506.05398), by power iteration with products of one step at a time.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...base.console import progress
from ...base.errors import require
from ...base.rules import Count, at_least, check_fields
from ...base.seeds import Purpose, normal
from ...data.conditions import sample_conditions
from ...models.conditions import UNCONDITIONAL, Conditions, moved
from ...models.jacobian import Projection, frozen, project, unit_directions
from ...models.network import device_of, inference, input_shape, takes_text
from ...models.predict import predict
from ...process.base import Process
from ...process.samplers import check_sampler
from ...process.sampling import initial_noise, network_at
from ...results.measured import Metric
from ..estimates import mean_estimate, resample_counts
from ..measurement import Measured, OfModels, Subject

if TYPE_CHECKING:
    from ..config import EvaluationConfig


@dataclass(frozen=True)
class FtleOptions:
    """Options of the metric ftle.

    Attributes:
        images: trajectories to average the exponent over.
        iterations: number of power iterations; the estimate rises with them towards the exponent.
    """

    images: Annotated[int, at_least(2)] = 16
    iterations: Count = 5

    def __post_init__(self) -> None:
        check_fields("evaluation ftle", self)


@dataclass(frozen=True)
class SamplerStep:
    """x' = scale * x + gain * f(x, timestep), f the network, timestep () in its unit; `sampled_at` in the sampler's."""

    timestep: Tensor
    sampled_at: float
    scale: float
    gain: float


def sampler_steps(process: Process, num_inference_steps: int) -> list[SamplerStep]:
    """The steps of the process's sampler, without clipping, found by probing it, since each is affine."""
    columns = []
    for sample, output in ((1.0, 0.0), (0.0, 1.0)):
        scheduler = process.scheduler()
        scheduler.register_to_config(clip_sample=False, thresholding=False)
        scheduler.set_timesteps(num_inference_steps)
        probe = torch.full((1,), sample, dtype=torch.float64)
        answer = process.model_to_sampler(torch.full((1,), output, dtype=torch.float64))
        columns.append([scheduler.step(answer, t, probe, return_dict=False)[0].item() for t in scheduler.timesteps])
    timesteps = [(process.sampler_to_model(t), float(t)) for t in scheduler.timesteps]
    return [SamplerStep(*times, *factors) for times, *factors in zip(timesteps, *columns, strict=True)]


def finite_time_lyapunov_exponents(
    model: nn.Module,
    process: Process,
    noise_BCHW: Tensor,
    conditions: Conditions = UNCONDITIONAL,
    *,
    num_inference_steps: int = 50,
    iterations: int = 10,
    seed: int = 0,
) -> Tensor:
    """FTLE of each trajectory from `noise_BCHW`, (B,) on the CPU, without guidance and without clipping.

    Each of `iterations` power iterations takes a jvp and a vjp of every step; the result rises towards the exponent.
    """
    steps = sampler_steps(process, num_inference_steps)
    t_B = [step.timestep.expand(len(noise_BCHW)).to(noise_BCHW.device) for step in steps]
    networks = [network_at(model, process, step.sampled_at) for step in steps]
    with ExitStack() as entered:
        for network in {id(each): each for each in (model, *networks)}.values():
            entered.enter_context(inference(network))
            entered.enter_context(frozen(network))
        advance = entered.enter_context(progress("Lyapunov exponents", 2 * iterations * len(steps)))
        trajectory = [noise_BCHW]
        for network, step, t in zip(networks, steps, t_B, strict=True):
            output = predict(network, trajectory[-1], t, conditions)
            trajectory.append(step.scale * trajectory[-1] + step.gain * output)

        def push(v: Tensor, index: int, transposed: bool) -> Tensor:
            """Multiply v by the Jacobian of one step, or by its transpose."""
            kind: Projection = "vjp" if transposed else "jvp"
            x, step = trajectory[index], steps[index]
            _, (product,) = project(networks[index], x, t_B[index], conditions, [v], kind, create_graph=False)
            advance(1, "")
            return step.scale * v + step.gain * product.detach()

        directions = normal(noise_BCHW.shape[1:], range(len(noise_BCHW)), seed, Purpose.LYAPUNOV)
        v = unit_directions([directions.to(noise_BCHW)])[0]
        with sdpa_kernel(SDPBackend.MATH):
            for _ in range(iterations):
                image = v
                for index in range(len(steps)):
                    image = push(image, index, transposed=False)
                grown = image.flatten(1).norm(dim=1)
                # Only the direction matters on the way back, and unit length keeps it in range.
                (back,) = unit_directions([image])
                for index in reversed(range(len(steps))):
                    back = push(back, index, transposed=True)
                (v,) = unit_directions([back])
    return grown.cpu().double().log() / len(steps)  # MPS has no float64


def measure(subject: Subject) -> dict[str, Measured]:
    """The exponent of every model, from the same noise."""
    return {name: _of_model(model, subject) for name, model in subject.models.items()}


def _of_model(model: nn.Module, subject: Subject) -> Measured:
    config = subject.config
    images, device = config.ftle.images, device_of(model)
    noise = initial_noise(range(images), input_shape(model), config.seed)
    conditions = sample_conditions(model, subject.dataset, range(images), config.seed)
    exponents = finite_time_lyapunov_exponents(
        model,
        subject.process,
        noise.to(device),
        moved(conditions, device),
        num_inference_steps=config.num_inference_steps,
        iterations=config.ftle.iterations,
        seed=config.seed,
    )
    return Measured({"ftle": mean_estimate(exponents, resample_counts(images, config.bootstrap, config.seed))})


def check(subject: Subject) -> None:
    """Refuse settings that the process's own sampler cannot handle."""
    check_sampler(subject.process, None, subject.config.num_inference_steps)
    require(len(subject.dataset) > 0 or not takes_text(subject.dense), "ftle is of samples for captions; give data")


def passes(config: EvaluationConfig, process: Process) -> float:
    """Passes of the trajectory, then of products with each step's Jacobian and its transpose: about two and three
    each."""
    options, steps = config.ftle, config.num_inference_steps
    return float(options.images * steps * (1 + options.iterations * (2 + 3)))


FTLE = OfModels(
    name="ftle",
    gives={"ftle": Metric("finite-time Lyapunov exponent")},
    check=check,
    passes=passes,
    measure=measure,
)
