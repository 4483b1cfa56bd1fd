"""Cutting a model during training: weights, moving average and optimizer state lose the same units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.errors import TrainingError
from ..io.manifest import apply_cut
from ..models.registry import describe
from ..structure import Cut, Structure, kept_entries, name_after, rescaling
from .averages import Average, module_of
from .quantized import is_quantized, plain, quantized

# State that scales with the square of the gradient, by the names in torch's optimizers.
SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "row_var", "col_var", "variance"})


@dataclass(frozen=True)
class Slicing:
    """The effect of a cut on one parameter, and on every tensor of its shape.

    Attributes:
        kept: indices of the entries that stay, for each axis that loses some.
        factor: the factor that removal multiplies the parameter by.
    """

    kept: Mapping[int, Tensor] = field(default_factory=dict)
    factor: float = 1.0

    def __call__(self, value: Tensor) -> Tensor:
        """The kept entries of `value`; axes of size 1, which hold a mean over the parameter's, stay."""
        for axis, entries in self.kept.items():
            if value.shape[axis] != 1:
                value = value.index_select(axis, entries.to(value.device))
        return value


def cut_in_training(
    model: nn.Module,
    cut: Cut,
    optimizer: Optimizer | None = None,
    average: Average | None = None,
    details: Mapping[str, Any] | None = None,
    base_id: str = "",
) -> None:
    """Apply `cut` to `model`, to the state of `optimizer` and to `average`, in place.

    Remaining entries keep their state. A weight that removal multiplies by c has a gradient 1 / c as large, and its
    optimizer state is scaled accordingly. 8-bit state is quantized again. State whose shape does not match a parameter
    that lost entries is reset. Parameters may be tied, and `optimizer` may hold parameters of other models.
    """
    structure = describe(model)
    names = _names(model)
    slicings = _slicings(model, structure, cut, names)
    renamed = {parameter: _name_after(structure, cut, aliases) for parameter, aliases in names.items()}
    apply_cut(model, cut, details, base_id)
    present = dict(model.named_parameters(remove_duplicate=False))
    successors = {
        parameter: None if name is None else present.get(name)  # parameters inside a removed block are gone too
        for parameter, name in renamed.items()
    }
    if optimizer is not None:
        _cut_optimizer(optimizer, successors, slicings)
    if isinstance(average, EMAModel):
        _cut_shadow(average, list(names), successors, slicings, list(model.parameters()))
    elif average is not None:
        apply_cut(module_of(average), cut, details, base_id)


def _names(model: nn.Module) -> dict[Tensor, list[str]]:
    """Every parameter with its names; tied ones have several."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _slicings(
    model: nn.Module, structure: Structure, cut: Cut, names: Mapping[Tensor, list[str]]
) -> dict[Tensor, Slicing]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    kept, factors = kept_entries(structure, cut, shapes), rescaling(structure, cut)
    return {
        parameter: Slicing(
            {axis: entries for name in aliases for axis, entries in kept.get(name, {}).items()},
            next((factors[name] for name in aliases if name in factors), 1.0),
        )
        for parameter, aliases in names.items()
    }


def _name_after(structure: Structure, cut: Cut, aliases: list[str]) -> str | None:
    return next((new for name in aliases if (new := name_after(structure, cut, name)) is not None), None)


def _cut_optimizer(
    optimizer: Optimizer, successors: Mapping[Tensor, Tensor | None], slicings: Mapping[Tensor, Slicing]
) -> None:
    state: dict[Tensor, Any] = {}
    for parameter, remembered in optimizer.state.items():
        successor = successors.get(parameter, parameter)
        if successor is None:
            continue
        sliced = _cut_state(remembered, parameter, slicings.get(parameter, Slicing()))
        if sliced is not None:
            state[successor] = sliced
    optimizer.state.clear()
    optimizer.state.update(state)
    for group in optimizer.param_groups:
        found = [successors.get(parameter, parameter) for parameter in group["params"]]
        group["params"] = [parameter for parameter in found if parameter is not None]


def _cut_state(state: Mapping[str, Any], parameter: Tensor, slicing: Slicing) -> dict[str, Any] | None:
    """The optimizer's state of a parameter after the cut; None if it must be reset."""
    if not slicing.kept and slicing.factor == 1:
        return dict(state)
    cut = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            values = plain(value)
            if not follows(values, parameter):
                return None
            values = slicing(values) / (slicing.factor**2 if name in SQUARES else slicing.factor)
            value = quantized(values, name not in SQUARES) if is_quantized(value) else values
        cut[name] = value
    return cut


def follows(value: Tensor, parameter: Tensor) -> bool:
    """Whether `value` is a plain tensor each axis of which is the parameter's, or a mean over it."""
    sizes = zip(value.shape, parameter.shape, strict=False)
    return type(value) is Tensor and value.ndim == parameter.ndim and all(one in (1, other) for one, other in sizes)


@torch.no_grad()
def _cut_shadow(
    average: EMAModel,
    before: list[Tensor],
    successors: Mapping[Tensor, Tensor | None],
    slicings: Mapping[Tensor, Slicing],
    after: list[nn.Parameter],
) -> None:
    """Cut the tensors that diffusers' average keeps in the order of the model's parameters."""
    if len(average.shadow_params) != len(before):
        raise TrainingError(
            f"the average holds {len(average.shadow_params)} tensors, the model {len(before)} parameters; "
            "make it from model.parameters()"
        )
    shadows = {
        successors[parameter]: slicings[parameter](shadow) * slicings[parameter].factor
        for parameter, shadow in zip(before, average.shadow_params, strict=True)
    }
    average.shadow_params = [shadows[parameter] for parameter in after]
