"""What to measure, and of how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from ..base.errors import require
from ..base.rules import ONE_OR_MORE, Count, Seed, at_least, check_fields, within
from .metrics.perceptual import CLIP

MetricName = Literal[
    "latency",
    "loss",
    "consistency",
    "ms-ssim",
    "lpips",
    "frechet",
    "rfid",
    "kid",
    "inception-score",
    "prdc",
    "per-class",
    "clip",
    "ftle",
]
DtypeName = Literal["float32", "bfloat16", "float16"]

METRICS: tuple[MetricName, ...] = get_args(MetricName)
OF_PAIRS = {"consistency", "ms-ssim", "lpips"}  # of an image and the reference's from the same noise
OF_FEATURES = {"frechet", "rfid", "kid", "inception-score", "prdc", "per-class"}
OF_REAL_FEATURES = {"kid", "prdc", "per-class"}
NEED_REFERENCE = {"ms-ssim", "lpips", "rfid"}
MOST_NEIGHBOURS = 5
MOST_IMAGES = 10_000_000  # features of them are in memory


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure.

    Attributes:
        metrics: latency, throughput and peak memory; loss per timestep; consistency with the reference's samples (SSIM,
            PSNR, MSE), ms-ssim, lpips; frechet, the distance from the data (FID); rfid, that from the reference's
            samples; kid; inception-score; prdc (precision, recall, density, coverage); per-class, prdc and diversity
            of every class; clip, the CLIP score of samples and their captions; ftle, the sampler's finite-time Lyapunov
            exponent. Sizes, MACs and layers are always there.
        num_images: samples of each model, drawn from the same noise.
        num_pairs: of these, how many are compared with the reference's image by image, at most.
        num_real_images: images of the data that the samples are compared with, at most.
        num_inference_steps: sampler steps.
        guidance_scale: classifier-free guidance; 1 is off.
        scheduler: class name of a diffusers scheduler to sample by; None is the process's own deterministic one.
        batch_size: images at once; changes speed and memory only.
        seed: of the first sample; sample i depends on seed + i only.
        bootstrap: resamples that the intervals rest on.
        latency_rounds: timed rounds, in each of which every model runs once.
        latency_batch_sizes: batch sizes to time.
        latency_dtype: dtype of the timed calls; None is the models' own.
        compile: also time torch.compile.
        features: network of the distances: FID, a file of Inception weights, timm:NAME, transformers:ID, or a folder;
            None takes the one that fits.
        clip: the CLIP model of the metric clip: a hub id of transformers, or a folder.
        statistics: .npz with mu and sigma (pytorch-fid) that the Fréchet distance is to, in the place of the data's.
        save_statistics: folder to write mu and sigma of the data and of every model's samples to, as .npz files.
        ftle_images: trajectories to average the exponent over.
        ftle_iterations: power iterations; the exponent rises with them towards its value.
    """

    metrics: Annotated[tuple[MetricName, ...], ONE_OR_MORE] = ("latency", "loss", "consistency", "frechet")
    num_images: Annotated[int, within(1, MOST_IMAGES)] = 1000
    num_pairs: Count = 1000
    num_real_images: Annotated[int, within(1, MOST_IMAGES)] = 50_000
    num_inference_steps: Count = 50
    guidance_scale: float = 1.0
    scheduler: str | None = None
    batch_size: Count = 128
    seed: Seed = 0
    bootstrap: Annotated[int, at_least(10)] = 100
    latency_rounds: Count = 20
    latency_batch_sizes: Annotated[tuple[Count, ...], ONE_OR_MORE] = (1, 32)
    latency_dtype: DtypeName | None = None
    compile: bool = False
    features: str | None = None
    clip: str = CLIP
    statistics: str | None = None
    save_statistics: str | None = None
    ftle_images: Annotated[int, at_least(2)] = 16
    ftle_iterations: Count = 5

    def __post_init__(self) -> None:
        check_fields("evaluation", self)
        neighbours = MOST_NEIGHBOURS + 1 if {"prdc", "per-class"} & set(self.metrics) else 2
        with_neighbours = f"at least {neighbours}" + (", prdc takes 5 neighbours" if neighbours > 2 else "")
        rules = {
            "num_images": (self.num_images >= neighbours, with_neighbours),
            "num_real_images": (self.num_real_images >= neighbours, with_neighbours),
            "statistics": (
                self.statistics is None or "frechet" in self.metrics,
                "them with the metric frechet only, which they are for",
            ),
            "save_statistics": (
                self.save_statistics is None or self.measures_features,
                "it with a metric of features only, such as frechet",
            ),
        }
        for name, (valid, wanted) in rules.items():
            require(valid, f"evaluation {name} is {getattr(self, name)}; give {wanted}")

    @property
    def measures_features(self) -> bool:
        """Whether images go through the feature network."""
        return bool(OF_FEATURES & set(self.metrics))

    @property
    def needs_real_features(self) -> bool:
        """Whether the data's images go through the feature network too."""
        own_statistics = self.statistics is None and "frechet" in self.metrics
        return own_statistics or self.save_statistics is not None or bool(OF_REAL_FEATURES & set(self.metrics))

    @property
    def draws_samples(self) -> bool:
        """Whether images are drawn at all."""
        return bool((OF_FEATURES | OF_PAIRS | {"clip"}) & set(self.metrics))
