"""Compare models at one stroke: cost, denoising loss, distance from the dense model and from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..conditions import LABELS, moved
from ..data import Batch, ImageDataset, calibration_batch
from ..errors import DataError, ModelError, SecateurError, require
from ..inputs import device_of, input_shape, null_class
from ..process import Process
from ..recovery.conditioning import accepts, check_conditions, null_conditions, sample_conditions
from ..sampling import generate_images, initial_noise
from .consistency import mse, psnr, ssim
from .denoising import denoising_loss_per_timestep
from .efficiency import Efficiency, measure_efficiency
from .features import FeatureNetwork, feature_network, metric_name
from .fidelity import FeatureStatistics, fidelity
from .lyapunov import finite_time_lyapunov_exponents

MetricName = Literal["latency", "loss", "consistency", "frechet", "ftle"]
FROM_SAMPLES = {"consistency", "frechet"}
REAL_SHOWN = 64
LOSS_IMAGES = 128


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure.

    Attributes:
        metrics: latency and peak memory; loss per timestep; consistency with the reference's samples (SSIM, PSNR, MSE);
            frechet, the distance from the data; ftle, the sampler's finite-time Lyapunov exponent. Sizes and MACs are
            always there.
        num_images: samples of each model, drawn from the same noise.
        num_real_images: images of the data that the samples are compared with, at most.
        num_inference_steps: sampler steps.
        guidance_scale: classifier-free guidance; 1 is off.
        batch_size: images at once; changes speed and memory only.
        seed: of the first sample; sample i depends on seed + i only.
        latency_rounds: timed rounds, in each of which every model runs once.
        latency_batch_sizes: batch sizes to time.
        compile: also time torch.compile.
        features: network of the Fréchet distance, FID or a folder; None takes the one that fits.
        ftle_images: trajectories to average the exponent over.
        ftle_iterations: power iterations; the exponent rises with them towards its value.
    """

    metrics: tuple[MetricName, ...] = ("latency", "loss", "consistency", "frechet")
    num_images: int = 1000
    num_real_images: int = 50_000
    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    batch_size: int = 128
    seed: int = 0
    latency_rounds: int = 20
    latency_batch_sizes: tuple[int, ...] = (1, 32)
    compile: bool = False
    features: str | None = None
    ftle_images: int = 16
    ftle_iterations: int = 5

    def __post_init__(self) -> None:
        rules = {
            "metrics": (len(self.metrics) >= 1, "one or more of latency, loss, consistency, frechet, ftle"),
            "num_images": (self.num_images >= 2, "at least 2"),
            "num_real_images": (self.num_real_images >= 2, "at least 2"),
            "num_inference_steps": (self.num_inference_steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
            "latency_rounds": (self.latency_rounds >= 1, "at least 1"),
            "ftle_images": (self.ftle_images >= 2, "at least 2"),
            "ftle_iterations": (self.ftle_iterations >= 1, "at least 1"),
            "latency_batch_sizes": (min(self.latency_batch_sizes, default=0) >= 1, "one or more, each at least 1"),
        }
        for name, (valid, wanted) in rules.items():
            require(valid, f"evaluation {name} is {getattr(self, name)}; give {wanted}")


def evaluate_models(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    memory: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure `models`, the first of which is the dense reference.

    Calls that share the reference, the data and `config` may be given one `memory`: what depends on nothing else, the
    reference's samples and the statistics of the data, is then found once.

    Returns the result as plain JSON values, and tensors to look at: each model's images (num_images, C, H, W) in
    [-1, 1], drawn from the same seeds, up to 64 images of the data as `real`, and `class_labels` (num_images,) of
    the samples if there are any; classes take turns.

    Raises:
        ModelError: `config.features` cannot be loaded, or guidance is asked of a model without a null class.
        DataError: the labels do not fit the models' classes, or there are fewer than two images.
    """
    reference, dense = next(iter(models.items()))
    _check(dense, dataset, config)
    sampled = FROM_SAMPLES & set(config.metrics)
    memory = {} if memory is None else memory
    images: dict[str, Tensor] = {}
    if sampled:
        images[reference] = _once(memory, "samples", lambda: _draw(reference, dense, process, dataset, config))
        others = {name: model for name, model in models.items() if name != reference}
        images |= {name: _draw(name, model, process, dataset, config) for name, model in others.items()}
    batch_sizes = config.latency_batch_sizes if "latency" in config.metrics else ()
    costs = measure_efficiency(models, rounds=config.latency_rounds, batch_sizes=batch_sizes, compile=config.compile)
    network, notes = _features(dataset, device_of(dense), config) if "frechet" in config.metrics else (None, [])
    real = None
    if network is not None:
        real = _once(memory, "real", lambda: _real_statistics(network, dataset, device_of(dense), config))
    batch = _loss_batch(dense, dataset, config)

    entries = {}
    for name, model in models.items():
        entry: dict[str, Any] = costs[name].to_dict()
        entry["relative"] = _relative(costs[name], costs[reference])
        entry["denoising_loss"] = _denoising(model, process, batch, config) if "loss" in config.metrics else None
        entry["ftle"] = _lyapunov(model, process, dataset, config) if "ftle" in config.metrics else None
        finite = name in images and bool(images[name].isfinite().all())
        compared = finite and name != reference and "consistency" in config.metrics
        entry["consistency"] = _consistency(images[name], images[reference]) if compared else None
        entry["fidelity"] = None
        if sampled and not finite:
            entry["notes"].append("some samples are not finite, so they are not compared")
        elif network is not None and real is not None:
            features = _embed(network, images[name], device_of(dense), config)
            entry["fidelity"] = asdict(fidelity(metric_name(network), features, real))
        entries[name] = entry
    result = {
        "format": 1,
        "reference": reference,
        "data": {"name": dataset.name, "images": len(dataset), "shape": list(dataset.shape)},
        "config": asdict(config)
        | {"latency_batch_sizes": list(config.latency_batch_sizes), "metrics": list(config.metrics)},
        "environment": _environment(device_of(dense)),
        "notes": notes,
        "models": entries,
    }
    return result, images | _to_look_at(dense, dataset, config)


def _once(memory: dict[str, Any], name: str, compute: Callable[[], Any]) -> Any:
    """What `memory` holds under `name`, computed and kept there if it is not known yet."""
    if name not in memory:
        memory[name] = compute()
    return memory[name]


def _to_look_at(model: nn.Module, dataset: ImageDataset, config: EvaluationConfig) -> dict[str, Tensor]:
    shown = {"real": calibration_batch(dataset, REAL_SHOWN, config.seed).sample}
    conditions = sample_conditions(model, dataset, config.num_images, config.seed)
    return shown | {name: value for name, value in conditions.items() if name == LABELS}


def _check(model: nn.Module, dataset: ImageDataset, config: EvaluationConfig) -> None:
    shape = input_shape(model)
    if shape != dataset.shape:
        raise DataError(f"{dataset.name} gives images {dataset.shape}; open it as load_data(source, {shape})")
    check_conditions(model, dataset, needed=null_class(model) is None)
    if len(dataset) < 2:
        raise DataError(f"{dataset.name} has 1 image, an evaluation needs at least 2; give more data")
    if config.guidance_scale != 1.0 and not null_conditions(model, dataset):
        raise ModelError(f"{type(model).__name__} has no null class to guide away from; use guidance_scale 1")


def _draw(name: str, model: nn.Module, process: Process, dataset: ImageDataset, config: EvaluationConfig) -> Tensor:
    return generate_images(
        model,
        process,
        range(config.seed, config.seed + config.num_images),
        input_shape(model),
        sample_conditions(model, dataset, config.num_images, config.seed),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        null=null_conditions(model, dataset),
        batch_size=config.batch_size,
        description=f"sampling {name}",
    )


def _features(
    dataset: ImageDataset, device: torch.device, config: EvaluationConfig
) -> tuple[FeatureNetwork | None, list[str]]:
    """The feature network, or None with a note if nobody asked for one by name and none is at hand."""
    try:
        return feature_network(config.features, dataset.shape[0], dataset.shape[1:], device), []
    except SecateurError as error:
        if config.features is not None:
            raise
        return None, [f"no Fréchet distance: {error}"]


@torch.no_grad()
def _embed(network: FeatureNetwork, images: Tensor, device: torch.device, config: EvaluationConfig) -> Tensor:
    return torch.cat([network(chunk.to(device)).cpu() for chunk in images.split(config.batch_size)])


def _real_statistics(
    network: FeatureNetwork, dataset: ImageDataset, device: torch.device, config: EvaluationConfig
) -> FeatureStatistics:
    result = FeatureStatistics(network.dim)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))
    for indices in order[: config.num_real_images].split(config.batch_size):
        result.update(_embed(network, dataset.batch(indices.tolist()).sample, device, config))
    return result


def _loss_batch(model: nn.Module, dataset: ImageDataset, config: EvaluationConfig) -> Batch:
    """Images with the labels that the model takes: none, the data's, or its null class."""
    batch = calibration_batch(dataset, LOSS_IMAGES, config.seed)
    null = null_class(model)
    if batch.class_labels is None and null is not None:
        return Batch(batch.sample, {LABELS: torch.full((len(batch.sample),), null)})
    return Batch(batch.sample, accepts(model)(batch.conditions))


def _denoising(model: nn.Module, process: Process, batch: Batch, config: EvaluationConfig) -> dict[str, Any]:
    timesteps, losses = denoising_loss_per_timestep(
        model, process, batch, seed=config.seed, batch_size=config.batch_size
    )
    return {
        "timesteps": timesteps.tolist(),
        "losses": [_number(loss) for loss in losses.tolist()],
        "mean": _number(float(losses.mean())),
    }


def _lyapunov(model: nn.Module, process: Process, dataset: ImageDataset, config: EvaluationConfig) -> dict[str, Any]:
    noise = initial_noise(range(config.seed, config.seed + config.ftle_images), input_shape(model))
    conditions = sample_conditions(model, dataset, config.ftle_images, config.seed)
    exponents = finite_time_lyapunov_exponents(
        model,
        process,
        noise.to(device_of(model)),
        moved(conditions, device_of(model)),
        num_inference_steps=config.num_inference_steps,
        iterations=config.ftle_iterations,
        seed=config.seed,
    )
    return {"mean": _number(float(exponents.mean())), "std": _number(float(exponents.std()))}


def _consistency(images: Tensor, reference: Tensor) -> dict[str, Any]:
    values = {"ssim": ssim(images, reference), "psnr": psnr(images, reference), "mse": mse(images, reference)}
    return {
        name: {"mean": _number(float(value.mean())), "std": _number(float(value.std()))}
        for name, value in values.items()
    }


def _relative(cost: Efficiency, reference: Efficiency) -> dict[str, Any]:
    """Shares of the reference's cost; `speedup` is by its median latency."""
    return {
        "parameters": cost.parameters / reference.parameters,
        "macs": cost.macs / reference.macs,
        "weights_bytes": cost.weights_bytes / reference.weights_bytes,
        "speedup": {
            batch: reference.latency[batch].median_ms / latency.median_ms for batch, latency in cost.latency.items()
        },
    }


def _number(value: float) -> float | None:
    """The value, or None for what JSON cannot hold: the PSNR of equal images, the loss of a diverged model."""
    return value if math.isfinite(value) else None


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
