"""benchmarks/gpu.py runs on a CPU with small models, ends in time, and keeps its results if a part fails."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def test_a_part_ends_with_the_time_and_fails_alone(tmp_path):
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    bench, begun = gpu.Bench(torch.device("cpu"), True, 0.3, tmp_path / "gpu.json"), time.perf_counter()
    bench.part("first", 0, lambda bench: {"ms": 1.0})
    bench.part("slow", 0, lambda bench: time.sleep(60))
    bench.part("late", 10, lambda bench: {"ms": 1.0})
    assert time.perf_counter() - begun < 10
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["first"] == {"ms": 1.0}
    assert found["failed"] == {"slow": "RuntimeError: the time was over"}
    assert bench.found["failed"]["late"].endswith("it takes 10")


@pytest.mark.torture
def test_every_part_of_the_gpu_script_runs(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    assert subprocess.run(command, timeout=300).returncode == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["failed"]
    assert {"loop", "objectives", "memory", "stages", "speed"} <= set(found)
    assert len(found["objectives"]) == 10
    assert "| memory | counted_gb | measured_gb |" in (tmp_path / "gpu.md").read_text()
