"""`secateur quickstart`: the whole job, offline, on two CPU cores, in under three minutes."""

from pathlib import Path

from ..base.rules import Seed, checked
from .compress import compress


@checked
def quickstart(*, out: Path = Path("runs/quickstart"), target: str = "macs=50%", seed: Seed = 0) -> Path:
    """Prune the embedded digits U-Net to half its MACs, recover it, evaluate it, and write a report.

    Args:
        out: run folder; run again with the same settings to resume or to see the report.
        target: what to reach.
        seed: seeds calibration, recovery and evaluation.
    """
    return compress("digits-unet", target=target, data="digits", out=out, recipe="quickstart", seed=seed)
