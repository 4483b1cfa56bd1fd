"""All metrics, in the order of the report: one file each, and a line here."""

from ..measurement import Measurement
from .clip import CLIP_SCORE
from .consistency import CONSISTENCY
from .frechet import FRECHET, RFID
from .ftle import FTLE
from .inception_score import INCEPTION_SCORE
from .kid import KID
from .latency import LATENCY
from .loss import LOSS
from .lpips import LPIPS
from .ms_ssim import MS_SSIM
from .output_error import OUTPUT_ERROR
from .per_class import PER_CLASS
from .prdc import PRDC

METRICS: dict[str, Measurement] = {
    metric.name: metric
    for metric in (
        LATENCY,
        LOSS,
        FTLE,
        OUTPUT_ERROR,
        CONSISTENCY,
        MS_SSIM,
        LPIPS,
        CLIP_SCORE,
        FRECHET,
        RFID,
        KID,
        INCEPTION_SCORE,
        PRDC,
        PER_CLASS,
    )
}
