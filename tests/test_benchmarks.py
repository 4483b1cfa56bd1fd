"""Every benchmark runs, at a size that says nothing about its question."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torture

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL = ["--seeds", "0", "--images", "60"]
CASES = {
    "blocks": ["--model digits-sit --targets blocks=8 --steps 60 --methods", "one shot, cosine", "adaptive, cosine"],
    "bootstrap": ["--sets 2 --images 12 --steps 2"],
    "calibration": ["--timesteps 2 --rounds 1"],
    "compensation": ["--model digits-unet --targets macs=50% --settings num_tuples=16,rounds=1 --images 12"],
    "compensation_cost": ["--models digits-unet"],
    "criteria": ["--steps 30 --seeds 0 --images 12 --runs RUNS"],
    "decoder": ["--steps 1 --dense-steps 2 --seeds 0"],
    "dense_samples": ["--groups digits --steps 2 --out RUNS"],
    "gradient_flow": [
        "--model digits-unet --targets macs=50% --steps 40 --methods",
        "one shot, magnitude",
        "progressive, taylor, short stages",
    ],
    "growth": ["--models digits-unet --images 4 --bins 2"],
    "long_blocks": ["--model digits-sit --targets blocks=8 --steps 2 --methods", "one shot, cosine"],
    "long_recovery": ["--steps 2 --methods denoising"],
    "memory_table": ["--models", "DiT-XL/2, 256 px"],
    "precisions": ["--models digits-sit --steps 2 --rounds 2 --precisions bfloat16"],
    "recovery": ["--model digits-unet --targets macs=50% --steps 2 --methods denoising --budgets steps"],
    "recipes": ["--model digits-unet --targets macs=50% --steps 60 --methods", "plain", "refitted, book, Muon"],
    "recovery_cost": ["--rounds 1 --settings denoising --models", "DiT-S/2, 32x32x4"],
    "scale": ["--steps 2 --rounds 1 --batch-size 4"],
    "scoring": ["--model digits-sit --largest 8 32"],
    "second_match": ["--steps 2 --settings", "denoising, dropout 0.1"],
    "sizes": ["--models ddpm-cifar10"],
    "speedup": ["--rounds 2 --models dit-s-2 --round-to 8 --batches 1"],
    "variants": ["--only square"],
}
WITH_SEEDS = (
    "blocks",
    "gradient_flow",
    "long_blocks",
    "long_recovery",
    "recipes",
    "recovery",
    "second_match",
    "variants",
)
WITH_TABLES = (
    "blocks",
    "gradient_flow",
    "recovery",
    "long_blocks",
    "long_recovery",
    "compensation",
    "recipes",
    "second_match",
)


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_runs(name, tmp_path):
    words, *names = CASES[name]
    arguments = [word.replace("RUNS", str(tmp_path / "runs")) for word in words.split()] + names
    if name in WITH_SEEDS:
        arguments += SMALL
    run(name, arguments, tmp_path)
    if name in WITH_TABLES:
        run(name, ["--table"], tmp_path)
        assert list((tmp_path / "results").glob("*.md"))
    for path in (tmp_path / "results").glob("*.json"):
        assert json.loads(path.read_text())


def run(name, arguments, tmp_path):
    places = {"BENCHMARK_RESULTS": str(tmp_path / "results"), "SECATEUR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, FOLDER / f"{name}.py", *arguments]
    done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_benchmark_is_run():
    """Except for shared modules, and those that need hours, other results, more data, a GPU, or much memory."""
    apart = {"bench", "book", "choosing", "drawing", "train_dense", "fashion_set", "dit_xl", "guides", "gpu"}
    assert {path.stem for path in FOLDER.glob("*.py")} - apart <= {*CASES}
