"""The optimizers of recovery: AdamW, ones with a smaller state, and Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from ..base.shards import whole
from .config import RecoveryConfig
from .rounding import RoundedAdamW
from .shards import shard_like

HIGHEST = "highest_lr"  # a parameter group's peak learning rate
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024
STEPS, EPS = 5, 1e-7
ENOUGH = 4e7  # operations on a stack of matrices from which a CPU is faster in bfloat16


def build_optimizer(config: RecoveryConfig, model: nn.Module) -> Optimizer:
    """The optimizer that `config` names over the parameters of `model` that need gradients."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    group = {"params": list(named.values()), HIGHEST: config.learning_rate}
    rate, decay, rounds = config.learning_rate, config.weight_decay, config.weight_precision == "bf16"
    if config.optimizer == "adamw":
        if rounds:
            return RoundedAdamW([group], rate, config.betas, decay)
        return torch.optim.AdamW([group], rate, config.betas, weight_decay=decay, fused=True)
    if config.optimizer == "adamw8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit([group], rate, config.betas, weight_decay=decay, bf16_stochastic_round=rounds)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor([group], rate, weight_decay=decay)
    by_muon = matrix_names(model)
    matrices = [parameter for name, parameter in named.items() if name in by_muon]
    rest = [parameter for name, parameter in named.items() if name not in by_muon]
    return Muon(matrices, rest, config.muon_learning_rate, config.learning_rate, config.betas, config.weight_decay)


def learning_rate_at(config: RecoveryConfig, step: int, highest: float | None = None) -> float:
    """Learning rate of optimizer step `step` (0, 1, ...): linear warm-up, then constant or down to zero.

    `highest` is the rate reached after the warm-up, by default AdamW's.
    """
    highest = config.learning_rate if highest is None else highest
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.lr_schedule == "cosine":
        return highest * (1 + cos(pi * done)) / 2
    if config.lr_schedule == "linear":
        return highest * (1 - done)
    return highest


def set_learning_rate(optimizer: Optimizer, rate_at: Callable[[float], float]) -> None:
    """Set the learning rate of each group to `rate_at` its own peak rate."""
    for group in optimizer.param_groups:
        rate = rate_at(group[HIGHEST])
        if isinstance(group["lr"], Tensor):  # as in torchao's optimizers, whose compiled step reads it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def matrix_names(model: nn.Module) -> set[str]:
    """The parameters that Muon updates: matrices and convolutions that are not (part of) an embedding."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = model.named_parameters()
    return {name for name, each in named if each.ndim >= 2 and "embed" not in name and id(each) not in tables}


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for matrices, which moves along orthogonalized momentum, and AdamW for the rest.

    A convolution counts as the matrix (out, in x height x width). The update of an (out, rest) matrix is scaled by
    sqrt(max(1, out / rest)), so that it changes outputs equally for every shape. Matrices have no weight decay. Sharded
    matrices are gathered by every process for the update.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        rest: Sequence[nn.Parameter],
        lr: float = 3e-3,
        rest_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "rule": "muon", "lr": lr, HIGHEST: lr, "momentum": momentum},
            {"params": list(rest), "rule": "adamw", "lr": rest_lr, HIGHEST: rest_lr, "betas": betas}
            | {"weight_decay": weight_decay},
        ]
        super().__init__([group for group in groups if group["params"]], {"fused": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            gradients = {p: p.grad for p in group["params"] if p.grad is not None}
            if group["rule"] == "muon":
                self._orthogonal_step(gradients, group["lr"], group["momentum"])
            elif gradients:
                self._adamw_step(gradients, group)

    def _orthogonal_step(self, gradient_of: dict[Tensor, Tensor], lr: float, momentum: float) -> None:
        alike: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}  # stacked, since many are small
        for parameter in gradient_of:
            out = len(parameter)
            alike.setdefault((torch.Size((out, parameter.numel() // out)), parameter.device), []).append(parameter)
        for ((out, rest), _), group in alike.items():
            buffers = [self._buffer(parameter) for parameter in group]
            gradients = [gradient_of[parameter] for parameter in group]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            nesterov = torch._foreach_lerp(gradients, buffers, momentum)
            matrices_NOR = torch.stack([whole(update).flatten(1) for update in nesterov])
            updates = orthogonalized(matrices_NOR).mul_(-lr * max(1.0, out / rest) ** 0.5)
            for parameter, update in zip(group, updates, strict=True):
                parameter.add_(shard_like(update.view(parameter.shape), parameter))

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def _adamw_step(self, gradients: dict[Tensor, Tensor], group: dict[str, Any]) -> None:
        for parameter in gradients:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    # The fused kernel reads it where the weights are.
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in gradients]
        adamw(
            list(gradients),
            list(gradients.values()),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware."""
    if device.type == "cpu":
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return device.type != "mps"


def is_faster_in_bfloat16(matrices_NOR: Tensor) -> bool:
    """Whether `orthogonalized` takes less time in bfloat16."""
    count, *sides = matrices_NOR.shape
    short, long = sorted(sides)
    operations = STEPS * count * (4 * short**2 * long + 2 * short**3)
    return multiplies_bfloat16(matrices_NOR.device) and (matrices_NOR.device.type != "cpu" or operations >= ENOUGH)


def orthogonalized(matrices_NOR: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Each matrix with its singular values brought near to 1, by five steps of a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A A) X with A = X X', starting from X divided by its Frobenius norm. By default in bfloat16 if
    the device multiplies it in hardware, but for small matrices on a CPU; else in float32.
    """
    if dtype is None:
        dtype = torch.bfloat16 if is_faster_in_bfloat16(matrices_NOR) else torch.float32
    a, b, c = COEFFICIENTS
    tall = matrices_NOR.shape[1] > matrices_NOR.shape[2]
    x = (matrices_NOR.mT if tall else matrices_NOR).to(dtype)
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + EPS).to(dtype)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NOR.dtype)
