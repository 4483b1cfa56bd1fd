"""What a training step costs: denoising, + distillation, + first-order, + 2ndMatch, in FLOPs, time and memory.

    python benchmarks/recovery_cost.py

Students are cut to 56 % of the MACs of their teachers; weights are random. Times are medians of interleaved rounds. If
a setting has the Jacobian term at every n-th step only, time and FLOPs are means over n steps, and memory is the
maximum. Memory is that of all tensors which operators return, with the student, its optimizer and its average, and
without the teacher.
"""

from __future__ import annotations

import argparse
import statistics
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import secateur
from bench import RESULTS, timed, write_json, write_text
from secateur import JacobianConfig, RecoveryConfig

BASE = RecoveryConfig(grad_norms_every=0, checkpoint_every=10**6, log_every=1000)
TWICE = replace(BASE, objective="2ndmatch")
SETTINGS: dict[str, RecoveryConfig] = {
    "denoising": BASE,
    "+ distillation": replace(BASE, objective="distillation"),
    "+ first-order": replace(BASE, objective="first-order"),
    "+ 2ndMatch": TWICE,
    "+ 2ndMatch, jvp": replace(TWICE, jacobian=JacobianConfig(projection="jvp")),
    "+ 2ndMatch, 1/4 of the batch": replace(TWICE, jacobian=JacobianConfig(every_n_samples=4)),
    "+ 2ndMatch, every 5th step": replace(TWICE, jacobian=JacobianConfig(every_n=5)),
}


@dataclass(frozen=True)
class Case:
    """A teacher, its process, and the number of images per step."""

    model: Any
    process: str
    batch_size: int


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )
    dit = DiTTransformer2DModel(
        sample_size=32, patch_size=2, num_layers=12, num_attention_heads=6, attention_head_dim=64, out_channels=4
    )
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.02)
    return {"U-Net, CIFAR-10 shape": Case(unet, "ddpm", 4), "DiT-S/2, 32x32x4": Case(dit, "flow", 4)}


def training(case: Case, student: nn.Module, config: RecoveryConfig, steps: int) -> Callable[[], nn.Module]:
    """A run of `steps` steps."""
    channels, size = int(case.model.config["in_channels"]), int(case.model.config["sample_size"])
    images = torch.rand(case.batch_size, channels, size, size, generator=torch.Generator().manual_seed(0))
    data = [{"images": images, "labels": torch.zeros(case.batch_size, dtype=torch.int64)}]
    recovery = replace(config, steps=steps, batch_size=case.batch_size)
    options: dict[str, Any] = {"data": data, "process": case.process, "recovery": recovery}
    return lambda: secateur.finetune(student, teacher=case.model, **options)


class Flops(TorchDispatchMode):
    """Counts FLOPs by torch's formulas; its own counter cannot follow `autograd.grad` through modules."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


def sdpa_flops(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    """Two products over all pairs of tokens."""
    return 4 * query.numel() * key.shape[-2]


def sdpa_backward_flops(gradient: Tensor, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    """Five products: the scores again, and the gradients of values, probabilities, queries and keys."""
    return 10 * query.numel() * key.shape[-2]


FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flops,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are created inside, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for storage in [value.untyped_storage() for value in tree_leaves(output) if isinstance(value, Tensor)]:
            if storage._cdata not in self.alive:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return output

    def free(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size


def measure(case: Case, rounds: int, settings: dict[str, RecoveryConfig]) -> dict[str, dict[str, float]]:
    """FLOPs, bytes and seconds of a step with every setting, as the difference of runs of 2 n and n steps."""
    student = secateur.prune(case.model, target="macs=56%", criterion="magnitude", process=case.process)
    found: dict[str, dict[str, float]] = {}
    for name, config in settings.items():
        every_n = config.jacobian.every_n
        with Flops() as counter:
            training(case, student, config, every_n)()
        with LiveBytes() as live:
            training(case, student, config, every_n)()
        found[name] = {"flops": counter.total / every_n, "peak_bytes": live.peak}
    times: dict[str, list[float]] = {name: [] for name in settings}
    for round_ in range(rounds):
        for name, config in settings.items():
            every_n = config.jacobian.every_n
            short, long = (timed(training(case, student, config, count * every_n))[1] for count in (1, 2))
            times[name].append((long - short) / every_n)
        print(f"round {round_ + 1} of {rounds}", flush=True)
    for name, measured in times.items():
        found[name]["seconds"] = statistics.median(measured)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="denoising is needed")
    parser.add_argument("--models", nargs="+", help="by default all")
    asked = parser.parse_args()
    rounds, settings = asked.rounds, {name: SETTINGS[name] for name in asked.settings}
    chosen = {name: case for name, case in cases().items() if asked.models is None or name in asked.models}
    found = {name: measure(case, rounds, settings) for name, case in chosen.items()}
    lines = [
        "| model | objective | FLOPs | time | peak memory | ms a step | MiB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for model, entries in found.items():
        plain = entries["denoising"]
        for name, entry in entries.items():
            ratios = (f"{entry[key] / plain[key]:.2f}x" for key in ("flops", "seconds", "peak_bytes"))
            amounts = f"{1000 * entry['seconds']:.0f} | {entry['peak_bytes'] / 2**20:.0f}"
            lines.append(f"| {model} | {name} | {' | '.join(ratios)} | {amounts} |")
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    write_json(RESULTS / "recovery-cost.json", {"environment": environment, "rounds": rounds, "models": found})
    write_text(RESULTS / "recovery-cost.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
