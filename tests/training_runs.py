"""What tests of training share: images, a data set that fails, logs, and runs in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import dit
from secateur.data import ArrayDataset, Batch
from secateur.recovery import JacobianConfig, RecoveryConfig

CONFIG = RecoveryConfig(
    steps=6, batch_size=4, learning_rate=1e-3, checkpoint_every=2, log_every=1, dropout=0.1, label_dropout=0.5
)
# A Jacobian term that would outweigh the others without the automatic weight, and that weight at every step.
BALANCED = {"weights": {"jacobian": 1e6}, "jacobian": JacobianConfig(auto_weight=True), "grad_norms_every": 1}
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def images() -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(10, 1, 8, 8, generator=generator)
    return ArrayDataset("noise", (1, 8, 8), ("a", "b"), pixels, torch.arange(10) % 2)


@dataclass
class Failing:
    """The images, until batch number `at` is asked for."""

    at: int
    fail: type[BaseException] | signal.Signals
    inner: ArrayDataset = field(default_factory=images)
    asked: int = 0
    name: str = "noise"
    shape: tuple[int, int, int] = (1, 8, 8)
    class_names: tuple[str, ...] = ("a", "b")
    null: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: list[int]) -> Batch:
        self.asked += 1
        if self.asked == self.at:
            if isinstance(self.fail, signal.Signals):
                os.kill(os.getpid(), self.fail)
            else:
                raise self.fail
        return self.inner.batch(indices)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def options_of(objective: str) -> dict[str, Any]:
    """Options that give every term of the objective an effect."""
    return BALANCED if objective == "2ndmatch" else {}


def assert_logs_agree(one: Path, other: Path, rel: float = 1e-4) -> None:
    """Everything in the logs of two runs except time and memory: losses, terms, gradient norms, weights."""
    for single, joined in zip(log(one), log(other), strict=True):
        single, joined = (
            {k: v for k, v in record.items() if k not in ("seconds", "peak_gib")} for record in (single, joined)
        )
        assert single == pytest.approx(joined, rel=rel)


def smaller() -> nn.Module:
    """A teacher that differs from `dit()`."""
    teacher = dit()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.9)
    return teacher


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def stage_log(folder: Path) -> list[dict[str, object]]:
    """The decisions of every stage, without times."""
    lines = (folder / "stages.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def start(
    script: Path, source: str, *arguments: object, launcher: tuple[str, ...] = (), **streams: Any
) -> subprocess.Popen[bytes]:
    """Run `source`, written to `script`, in a process of its own, which finds the modules that this one does."""
    script.write_text(source)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, str(script), *map(str, arguments)], env=environment, **streams)
