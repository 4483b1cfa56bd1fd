"""A recovery that measures how much memory it takes of its process; torchrun starts it several times."""

import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import diffusers
import torch

from secateur.data import Batch
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig, recover

SIZES = {"num_layers": 6, "num_attention_heads": 8, "sample_size": 8, "num_embeds_ada_norm": 2, "in_channels": 1}
CONFIG = RecoveryConfig(steps=6, batch_size=8, grad_norms_every=0, checkpoint_every=100, log_every=100)
STATUS = Path("/proc/self/status")


def network(head: int = 64) -> diffusers.DiTTransformer2DModel:
    return diffusers.DiTTransformer2DModel(attention_head_dim=head, **SIZES)


def memory(name: str) -> int:
    """Bytes that are resident now (VmRSS), or were at most since `forget_peak` (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Watched:
    """Images; watches the memory up to the first steps, then during steps; what comes after the last is left over."""

    begin: int = 0
    peak: int = 0
    asked: int = 0
    name: str = "noise"
    shape: tuple[int, int, int] = (1, 8, 8)
    class_names: tuple[str, ...] = ("a", "b")
    null: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return 64

    def batch(self, indices: list[int]) -> Batch:
        self.asked += 1
        if self.asked == 3:  # drawn while the first step runs, in which moments and buffers are made
            self.begin = memory("VmHWM")
            forget_peak()
        if self.asked == CONFIG.steps:
            self.peak = memory("VmHWM")
            forget_peak()
        return Batch(torch.zeros(len(indices), *self.shape), {"class_labels": torch.zeros(len(indices)).long()})


if __name__ == "__main__":
    out, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    config = replace(CONFIG, **changes)
    recover(network(2), FlowProcess(), Watched(), config, out / "first", network(2))  # libraries, threads, connections
    data, before = Watched(), memory("VmRSS")
    forget_peak()
    model, teacher = network(), network()
    average = recover(model, FlowProcess(), data, config, out / "second", teacher)
    found = {"begin": data.begin, "steps": data.peak, "end": memory("VmHWM")}
    taken = {name: value - before for name, value in found.items()}
    (out / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(taken))
