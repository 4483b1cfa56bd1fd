"""`secateur quickstart`: a whole compression, offline, on two CPU cores, in under two minutes."""

from __future__ import annotations

import time
from pathlib import Path

import secateur

from ..base.console import say


def quickstart(*, out: Path = Path("runs/quickstart"), target: str = "macs=50%", seed: int = 0) -> None:
    """Prune the embedded U-Net to half its MACs, recover it, evaluate it, and write a report.

    Args:
        out: run folder; run again with the same settings to resume or to see the report.
        target: the size to reach, such as macs=30% or params=50%.
        seed: seed of calibration, recovery and evaluation.
    """
    begun = time.perf_counter()
    say(str(secateur.quickstart(out=out, target=target, seed=seed)))
    say(f"\nmodel    {out / 'model'}\nreport   {out / 'report.html'}\nseconds  {time.perf_counter() - begun:.0f}")
