"""benchmarks/gpu.py runs on a CPU with small models, and keeps its results if a part fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.torture
def test_every_part_of_the_gpu_script_runs(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    assert subprocess.run(command, timeout=300).returncode == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["failed"]
    assert {"loop", "objectives", "memory", "stages", "speed"} <= set(found)
    assert len(found["objectives"]) == 10
    assert "| memory | counted_gb | measured_gb |" in (tmp_path / "gpu.md").read_text()
