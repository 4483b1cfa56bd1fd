"""Which layer of the dense model each layer of a pruned model comes from, and which of its outputs are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..base.errors import ModelError
from ..io.manifest import manifest_of
from ..models.registry import describe
from ..structure import Cut, Structure, kept_entries, name_after, remove, rescaling
from ..structure.cost import skeleton

T = TypeVar("T")
Projection: TypeAlias = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Layer:
    """A layer with weights that both models have.

    Attributes:
        name: in the pruned model.
        dense: its name in the dense model.
        outputs: indices of the dense layer's outputs that are left; None: all.
        lost: number of the dense layer's inputs that were removed.
        factor: the factor by which the cut multiplied its weights.
    """

    name: str
    dense: str
    outputs: Tensor | None
    lost: int
    factor: float

    def target(self, output: Tensor, axis: int) -> Tensor:
        """The output that the pruned layer should have when the dense one has `output`, whose channels are on
        `axis`."""
        kept = output if self.outputs is None else output.index_select(axis, self.outputs.to(output.device))
        return kept if self.factor == 1 else kept * self.factor


@dataclass(frozen=True)
class Counterparts:
    """All linear layers and convolutions of a pruned model, by name, and the dense name of each of its modules."""

    layers: Mapping[str, Layer]
    dense_names: Mapping[str, str]
    blocks_left: bool  # whether any block was removed


def cuts_between(pruned: nn.Module, dense: nn.Module) -> tuple[Cut, ...]:
    """The cuts that turned `dense` into `pruned`, by their manifests.

    Raises:
        ModelError: `pruned` was not cut, or comes from another model.
    """
    manifest, before = manifest_of(pruned), manifest_of(dense)
    shared = before.cuts if before is not None else ()
    if manifest is None:
        raise ModelError(f"this {type(pruned).__name__} has no pruning.json: it was not cut")
    if manifest.cuts[: len(shared)] != shared:
        raise ModelError("the reference was cut in another way than the model that is to be refitted")
    return manifest.cuts[len(shared) :]


def counterparts(pruned: nn.Module, dense: nn.Module, cuts: Sequence[Cut]) -> Counterparts:
    """Follow every layer of `dense` through `cuts` to its place in `pruned`.

    Raises:
        ModelError: the cuts do not lead from `dense` to the shapes of `pruned`.
    """
    hollow = skeleton(dense)
    dense_names = {name: name for name, _ in hollow.named_modules() if name}
    kept: dict[str, dict[int, Tensor]] = {}  # by the parameter's present name
    factors: dict[str, float] = {}
    for cut in cuts:
        structure = describe(hollow)
        shapes = {name: parameter.shape for name, parameter in hollow.named_parameters(remove_duplicate=False)}
        for name, axes in kept_entries(structure, cut, shapes).items():
            for axis, index in axes.items():
                before = kept.setdefault(name, {}).get(axis)
                kept[name][axis] = index if before is None else before[index]
        for name, factor in rescaling(structure, cut).items():
            factors[name] = factors.get(name, 1.0) * factor
        dense_names = _renamed(dense_names, structure, cut)
        kept, factors = _renamed(kept, structure, cut), _renamed(factors, structure, cut)
        try:
            remove(hollow, structure, cut)
        except ValueError as error:
            raise ModelError(f"the reference is not the model that was cut: {error}") from error
    _check_shapes(hollow, pruned)
    layers = {}
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name in dense_names:
            weight = f"{name}.weight"
            axes = kept.get(weight, {})
            inputs = dense.get_submodule(dense_names[name]).get_parameter("weight").shape[1]
            lost = inputs - len(axes[1]) if 1 in axes else 0
            layers[name] = Layer(name, dense_names[name], axes.get(0), lost, factors.get(weight, 1.0))
    return Counterparts(layers, dense_names, any(cut.removed_blocks for cut in cuts))


def projection(model: nn.Module, name: str) -> Projection:
    """The layer `name` of `model`."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module


def _renamed(values: Mapping[str, T], structure: Structure, cut: Cut) -> dict[str, T]:
    """The values by the names after the cut, without those of removed modules."""
    named = ((name_after(structure, cut, name), value) for name, value in values.items())
    return {name: value for name, value in named if name is not None}


def _check_shapes(expected: nn.Module, pruned: nn.Module) -> None:
    shapes = {name: parameter.shape for name, parameter in expected.named_parameters()}
    for name, parameter in pruned.named_parameters():
        if shapes.get(name) != parameter.shape:
            raise ModelError(
                f"{name} of the pruned model is {tuple(parameter.shape)}, and by its cuts should be "
                f"{tuple(shapes.get(name, ()))}: the reference is not the model that it was cut from"
            )


def shared_weights(model: nn.Module) -> set[str]:
    """The modules that share their weight with another module."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor):
            users.setdefault(id(weight), []).append(name)
    return {name for names in users.values() if len(names) > 1 for name in names}
