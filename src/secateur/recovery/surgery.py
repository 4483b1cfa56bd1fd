"""Cutting a model while it trains: weights, moving average and optimizer moments lose the same units together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..io.manifest import apply_cut
from ..models.registry import describe
from ..structure import Cut, kept_entries, name_after, rescaling
from .checkpoints import TrainingState


def cut_training_state(state: TrainingState, cut: Cut, details: Mapping[str, Any], base_id: str) -> None:
    """Apply `cut` to the model, the average and Adam's moments of `state`, in place, and remember it in `state.cuts`.

    What stays keeps its moments; a weight that removal multiplies by c has a gradient 1 / c as large, and such moments.
    The balance of the Jacobian term starts over: before the cut the student was little else than its teacher.
    """
    structure = describe(state.model)
    before = dict(state.model.named_parameters())
    kept = kept_entries(structure, cut, {name: parameter.shape for name, parameter in before.items()})
    factors = rescaling(structure, cut)
    for model in (state.model, state.ema.model):
        apply_cut(model, cut, details, base_id)
    after = dict(state.model.named_parameters())
    moments: dict[Tensor, dict[str, Tensor]] = {}
    for name, parameter in before.items():
        renamed = name_after(structure, cut, name)
        if renamed in after and parameter in state.optimizer.state:
            found = state.optimizer.state[parameter]
            moments[after[renamed]] = _cut_moments(found, kept.get(name, {}), factors.get(name, 1.0))
    state.optimizer.state.clear()
    state.optimizer.state.update(moments)
    (group,) = state.optimizer.param_groups
    group["params"] = [parameter for parameter in after.values() if parameter.requires_grad]
    state.jacobian_scale, state.balanced = 1.0, 0
    state.cuts.append(
        {
            "kept": {name: list(units) for name, units in cut.kept.items()},
            "removed_blocks": list(cut.removed_blocks),
            "step": state.step,
            "details": dict(details),
            "base_id": base_id,
        }
    )


def replay_cuts(state: TrainingState, cuts: list[dict[str, Any]]) -> None:
    """Apply the `cuts` that a checkpoint remembers to a fresh state, so that its tensors fit."""
    for saved in cuts:
        state.step = saved["step"]
        cut = Cut({name: tuple(units) for name, units in saved["kept"].items()}, tuple(saved["removed_blocks"]))
        cut_training_state(state, cut, saved["details"], saved["base_id"])


def _cut_moments(moments: Mapping[str, Tensor], kept: Mapping[int, Tensor], factor: float) -> dict[str, Tensor]:
    cut = {}
    for name, value in moments.items():
        if value.ndim:  # Adam's step count has no axis
            for axis, entries in kept.items():
                value = value.index_select(axis, entries.to(value.device))
            value = value / (factor**2 if name == "exp_avg_sq" else factor)
        cut[name] = value
    return cut
