"""Options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ..base.errors import require, require_known
from ..base.rules import ONE_OR_MORE, Count, Seed, at_least, check_fields, within
from .measurement import OfFeatures
from .metrics import METRICS
from .metrics.clip import ClipOptions
from .metrics.frechet import FrechetOptions
from .metrics.ftle import FtleOptions
from .metrics.latency import LatencyOptions

LEAST_IMAGES = 2
MOST_IMAGES = 10_000_000  # features of them are in memory


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure.

    Attributes:
        metrics: latency, throughput and peak memory; loss per timestep; output-error, the relative distance of outputs
            from the reference's; consistency with the reference's samples (SSIM, PSNR, MSE), ms-ssim, lpips; frechet,
            the distance from the data (FID); rfid, that from the reference's samples; kid; inception-score; prdc
            (precision, recall, density, coverage); per-class, prdc and diversity of every class; clip, the CLIP score
            of samples and their captions; ftle, the sampler's finite-time Lyapunov exponent. By default latency, loss,
            consistency and frechet, as far as models and data allow; output-error in place of the last two where no
            images can be drawn. Sizes, MACs and layers are always measured.
        num_images: samples of each model, drawn from the same noise.
        num_pairs: at most this many of them are compared with the reference's image by image.
        num_real_images: at most this many images of the data are compared with the samples.
        num_inference_steps: sampler steps.
        guidance_scale: classifier-free guidance; 1 is off.
        guidance_channels: number of output channels that are guided; None: all. The original samplers of DiT and SiT
            guide 3.
        scheduler: class name of a diffusers scheduler for sampling; None: the process's own deterministic one.
        batch_size: images per batch; changes speed and memory only.
        seed: seed of everything that is drawn; sample i depends on seed and i only.
        bootstrap: number of resamples for the intervals.
        features: feature network of the distances: FID, a file of Inception weights, timm:NAME, transformers:ID, or a
            folder; None: the one that fits the images.
        latency: options of the metric latency.
        frechet: options of the metric frechet.
        clip: options of the metric clip.
        ftle: options of the metric ftle.
    """

    metrics: Annotated[tuple[str, ...], ONE_OR_MORE] | None = None
    num_images: Annotated[int, within(1, MOST_IMAGES)] = 1000
    num_pairs: Annotated[int, at_least(2)] = 1000  # one has no uncertainty
    num_real_images: Annotated[int, within(1, MOST_IMAGES)] = 50_000
    num_inference_steps: Count = 50
    guidance_scale: Annotated[float, at_least(0)] = 1.0
    guidance_channels: Count | None = None
    scheduler: str | None = None
    batch_size: Count = 128
    seed: Seed = 0
    bootstrap: Annotated[int, at_least(10)] = 100
    features: str | None = None
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    frechet: FrechetOptions = field(default_factory=FrechetOptions)
    clip: ClipOptions = field(default_factory=ClipOptions)
    ftle: FtleOptions = field(default_factory=FtleOptions)

    def __post_init__(self) -> None:
        check_fields("evaluation", self)
        named = self.metrics or ()
        for name in named:
            require_known("metric", name, METRICS)
        leasts = {name: metric.least_images for name in named if isinstance(metric := METRICS[name], OfFeatures)}
        least = max(leasts.values(), default=LEAST_IMAGES)
        most = max(leasts, key=lambda name: leasts[name], default="")
        images = f"at least {least}" + (f", {most} takes {least - 1} neighbours" if least > LEAST_IMAGES else "")
        for field_name in ("num_images", "num_real_images"):
            count = getattr(self, field_name)
            require(count >= least, f"evaluation {field_name} is {count}; give {images}")
        used = self.metrics is None or "frechet" in named or self.frechet == FrechetOptions()
        only = "give statistics and save_statistics with the metric frechet only, which they are for"
        require(used, f"evaluation frechet is {self.frechet}; {only}")
