"""What a training step costs: denoising, + distillation, + first-order, + 2ndMatch, in FLOPs, time and memory.

    python benchmarks/recovery_cost.py

Students are cut to 56 % of the MACs of their teachers; random weights. Times are medians of interleaved rounds. Where a
setting takes the Jacobian term at every n-th step only, time and FLOPs are means over n steps, memory is the most.
Memory is what operators return, beyond weights, inputs and what the optimizer holds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench import RESULTS
from secateur.base.files import write_json, write_text
from secateur.data import ArrayDataset
from secateur.data.conditions import accepts
from secateur.evaluation.metrics.latency import LiveBytes
from secateur.models.network import example_inputs, input_shape
from secateur.models.registry import describe
from secateur.process.base import Process
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, RecoveryConfig
from secateur.recovery.draws import draw_step
from secateur.recovery.objectives import build_objective
from secateur.schedules import CutConfig, no_scores, one_shot, parse_target
from secateur.structure import remove
from secateur.teacher import Draw

BASE = RecoveryConfig()
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
    """A teacher, its process, and how many images and threads a step takes."""

    model: nn.Module
    process: Process
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
    return {"U-Net, CIFAR-10 shape": Case(unet, DiffusionProcess(), 4), "DiT-S/2, 32x32x4": Case(dit, FlowProcess(), 4)}


def cut(model: nn.Module) -> nn.Module:
    structure = describe(model)
    request: tuple[Any, ...] = (parse_target("macs=56%"), no_scores(structure), CutConfig(), example_inputs(model, 1))
    return remove(copy.deepcopy(model), structure, one_shot(model, structure, *request)[0].cut)


def step(student: nn.Module, case: Case, config: RecoveryConfig, draw: Draw, number: int) -> None:
    """Forward and backward passes of one step."""
    objective = build_objective(config, case.model).at(number)
    with objective.layers(student, case.model):
        terms = objective.terms(student, case.model, case.process, draw, objective.jacobian)
        objective.loss(terms).backward()


def draw_for(case: Case) -> Draw:
    shape = input_shape(case.model)
    images = torch.rand(case.batch_size, *shape, generator=torch.Generator().manual_seed(0))
    dataset = ArrayDataset("random", shape, ("a",), images, torch.zeros(case.batch_size, dtype=torch.int64))
    config = replace(BASE, batch_size=case.batch_size)
    return draw_step(dataset, case.process, config, 0, accepts=accepts(case.model))[0]


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


def measure(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    student, draw = cut(case.model).train(), draw_for(case)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-9, fused=True)
    found: dict[str, dict[str, float]] = {}
    for name, config in SETTINGS.items():
        flops, peaks = [], []
        for number in numbers(config):
            with Flops() as counter:
                step(student, case, config, draw, number)
            flops.append(float(counter.total))
            optimizer.zero_grad()
            with LiveBytes([*student.state_dict().values(), *case.model.state_dict().values(), draw.sample]) as live:
                step(student, case, config, draw, number)
            peaks.append(live.peak)
            optimizer.zero_grad()
        found[name] = {"flops": mean_over_steps(flops, config), "peak_bytes": max(peaks)}
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for round_ in range(rounds):
        for name, config in SETTINGS.items():
            seconds = []
            for number in numbers(config):
                begun = time.perf_counter()
                step(student, case, config, draw, number)
                optimizer.step()
                optimizer.zero_grad()
                seconds.append(time.perf_counter() - begun)
            times[name].append(mean_over_steps(seconds, config))
        print(f"round {round_ + 1} of {rounds}", flush=True)
    for name, measured in times.items():
        found[name]["seconds"] = statistics.median(measured)
    return found


def numbers(config: RecoveryConfig) -> tuple[int, int]:
    """A step with the Jacobian term, and one without it where it is not taken at every step."""
    return config.jacobian.every_n - 1, config.jacobian.every_n


def mean_over_steps(amounts: list[float], config: RecoveryConfig) -> float:
    """The mean of a step with the Jacobian term and of the n - 1 without it that follow."""
    every_n = config.jacobian.every_n
    return (amounts[0] + (every_n - 1) * amounts[1]) / every_n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = {name: measure(case, rounds) for name, case in cases().items()}
    lines = [
        "| model | objective | FLOPs | time | peak memory | ms a step | MiB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for model, settings in found.items():
        plain = settings["denoising"]
        for name, entry in settings.items():
            ratios = (f"{entry[key] / plain[key]:.2f}x" for key in ("flops", "seconds", "peak_bytes"))
            amounts = f"{1000 * entry['seconds']:.0f} | {entry['peak_bytes'] / 2**20:.0f}"
            lines.append(f"| {model} | {name} | {' | '.join(ratios)} | {amounts} |")
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    write_json(RESULTS / "recovery-cost.json", {"environment": environment, "rounds": rounds, "models": found})
    write_text(RESULTS / "recovery-cost.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
