"""AdamW for bfloat16 weights with stochastic rounding, so that small updates count on average."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw


class RoundedAdamW(Optimizer):
    """AdamW whose updates are computed in float32 and rounded stochastically to the weights' bfloat16.

    With rounding to nearest, every update smaller than half of a weight's last bit is lost. With rounding to either
    neighbour by a probability that depends on the distance, the weight has the right expectation. Moments are float32.
    Random bits come from torch's global generator.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update one parameter, so that there is one float32 copy at a time."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        exact = local(parameter).float()
        adamw(
            [exact],
            [local(parameter.grad).float()],
            [local(state["exp_avg"])],
            [local(state["exp_avg_sq"])],
            [],
            [state["step"]],
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        rounds = parameter.dtype == torch.bfloat16  # LoRA factors are float32
        local(parameter).copy_(stochastically_rounded(exact) if rounds else exact)


def stochastically_rounded(values: Tensor) -> Tensor:
    """Round float32 `values` to one of their bfloat16 neighbours, with `values` as the expectation."""
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).bfloat16()  # bfloat16 is the upper half of float32


def local(value: Tensor | None) -> Tensor:
    """This process's shard of a tensor; a plain tensor itself."""
    assert value is not None
    return value.to_local() if isinstance(value, DTensor) else value
