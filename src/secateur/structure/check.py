"""Checks a declared structure: masks against removal, for each width and block, and for random cuts."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .dims import Cut, Dim, Structure
from .masks import masked, masks_of
from .precision import full_precision
from .removal import remove

TOLERANCE = 1e-4  # of the largest output, in float32; a wrong declaration is off by far more


@dataclass(frozen=True)
class Check:
    """One cut, masked and removed.

    Attributes:
        name: the width, link of widths or block that was cut alone, or "random cut".
        error: largest difference of the two outputs over the largest output; infinite if the cut model does not run.
        hint: where to look if it is wrong; otherwise a remark.
    """

    name: str
    error: float
    hint: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= TOLERANCE


def count_checks(structure: Structure, random_cuts: int) -> int:
    """The number of checks that `check_structure` makes."""
    return len(structure.links) + len(structure.blocks) + random_cuts


def check_structure(
    model: nn.Module,
    structure: Structure,
    inputs: Mapping[str, Any],
    *,
    random_cuts: int = 3,
    seed: int = 0,
    describe: Callable[[nn.Module], Structure] | None = None,
) -> Iterator[Check]:
    """Compare masks with removal on `inputs`, the keyword arguments of `model`.

    `model` does not change: a copy with random weights is cut, so that no zero or identity from initialization hides an
    error. Widths of one link are cut together. If `describe` is given, it must also describe every cut model, as
    commands on a pruned model need. An error of the forward pass is a failed check.
    """
    generator = torch.Generator().manual_seed(seed)
    model, inputs = _randomized(model, generator, inputs)
    try:
        dense = _run(model, inputs)
    except Exception as error:
        yield Check("nothing cut", math.inf, f"the model itself fails: {_reason(error)}")
        return
    misplaced = _misplaced(model, structure)
    for link, dims in structure.links.items():
        name = link if len(dims) == 1 else f"{link} and {len(dims) - 1} linked"
        if hint := next((misplaced[dim.name] for dim in dims if dim.name in misplaced), ""):
            yield Check(name, math.inf, hint)
        elif dims[0].levels == 1:
            yield Check(name, 0.0, "one level only: nothing to cut")
        else:
            yield _compare(name, model, structure, Cut(_units(dims, generator)), inputs, dense, describe)
    for name in structure.blocks:
        if structure.removable([name]):
            yield _compare(name, model, structure, Cut({}, (name,)), inputs, dense, describe)
        else:
            yield Check(name, 0.0, "the only listed block: it stays")
    for _ in range(random_cuts):
        yield _compare("random cut", model, structure, _random_cut(structure, generator), inputs, dense, describe)


def check_random_cuts(
    model: nn.Module, structure: Structure, inputs: Mapping[str, Any], count: int, seed: int = 0
) -> Iterator[Check]:
    """As `check_structure`, but only random cuts of several widths and blocks."""
    generator = torch.Generator().manual_seed(seed)
    model, inputs = _randomized(model, generator, inputs)
    dense = _run(model, inputs)
    for _ in range(count):
        yield _compare("random cut", model, structure, _random_cut(structure, generator), inputs, dense)


def _randomized(
    model: nn.Module, generator: torch.Generator, inputs: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy in eval mode and at least float32, whose activations keep their size through the layers; its inputs."""
    model = copy.deepcopy(model).eval()
    if next(model.parameters()).dtype != torch.float64:
        model.float()
    draw_weights(model, generator)
    dtype = next(model.parameters()).dtype
    return model, tree_map_only(
        Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, dict(inputs)
    )


@torch.no_grad()
def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Random values in every parameter, such that activations keep their size through the layers."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        values = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(values + 1 if is_gain else values)


@full_precision()  # rounding by TF32 is above the tolerance
def _run(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """All outputs of `model`, flattened; it is called with `return_dict=False` if it takes that."""
    known = inspect.signature(model.forward).parameters
    with torch.no_grad():
        output = model(**inputs, return_dict=False) if "return_dict" in known else model(**inputs)
    found = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
    return found[0] if len(found) == 1 else torch.cat([each.flatten().float() for each in found])


def _units(dims: tuple[Dim, ...], generator: torch.Generator) -> dict[str, tuple[int, ...]]:
    """Random units to keep at a random level below the full one."""
    level = int(torch.randint(1, dims[0].levels, (), generator=generator))
    kept = {}
    for dim in dims:
        units: list[int] = []
        for cell in dim.cell_ranges():
            order = torch.randperm(len(cell), generator=generator)[: len(cell) * level // dim.levels]
            units += (order + cell.start).tolist()
        kept[dim.name] = tuple(sorted(units))
    return kept


def _random_cut(structure: Structure, generator: torch.Generator) -> Cut:
    """About half of the links and a quarter of the blocks."""
    kept: dict[str, tuple[int, ...]] = {}
    for dims in structure.links.values():
        if dims[0].levels > 1 and torch.rand((), generator=generator) < 0.5:
            kept |= _units(dims, generator)
    removed = [name for name in structure.blocks if torch.rand((), generator=generator) < 0.25]
    return Cut(kept, tuple(structure.removable(removed)))


def _misplaced(model: nn.Module, structure: Structure) -> dict[str, str]:
    """Errors in the slices of dims that shapes alone show, by dim."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    taken: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
    found: dict[str, str] = {}
    for dim in structure.dims.values():
        for piece in dim.slices:
            shape = shapes.get(piece.parameter)
            end = piece.offset + dim.size * dim.width_of(piece)
            others = taken.setdefault((piece.parameter, piece.axis), [])
            place = f"{piece.parameter} axis {piece.axis} from {piece.offset} to {end}"
            if shape is None:
                found[dim.name] = f"the model has no parameter {piece.parameter}"
            elif piece.axis >= len(shape) or end > shape[piece.axis]:
                found[dim.name] = f"{place} lies outside of {tuple(shape)}"
            elif overlap := next((name for start, stop, name in others if start < end and piece.offset < stop), None):
                found[dim.name] = f"{place} overlaps {overlap}"
            others.append((piece.offset, end, dim.name))
    return found


def _compare(
    name: str,
    model: nn.Module,
    structure: Structure,
    cut: Cut,
    inputs: Mapping[str, Any],
    dense: Tensor,
    describe: Callable[[nn.Module], Structure] | None = None,
) -> Check:
    try:
        with masked(model, structure, _masks(cut, structure, model)):
            expected = _run(model, inputs)
        pruned = remove(_with_same_tensors(model), structure, cut)
        found = _run(pruned, inputs)
        error = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    except Exception:  # a forward pass may raise anything
        return Check(name, math.inf, _explain(model, structure, cut, inputs))
    if not error <= TOLERANCE:  # also if it is NaN
        return Check(name, error, _explain(model, structure, cut, inputs))
    if describe is not None:
        try:
            describe(pruned)
        except Exception as failure:
            where = "; a block that left is a Skip, which has no parts" if cut.removed_blocks else ""
            return Check(name, math.inf, f"the cut model cannot be described again: {_reason(failure)}{where}")
    return Check(name, error, "its mask changes nothing" if torch.equal(expected, dense) else "")


def _reason(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _masks(cut: Cut, structure: Structure, model: nn.Module) -> dict[str, Tensor]:
    """Masks of the cut's dims and blocks only, so that other wrong declarations do not interfere."""
    masks = masks_of(cut, structure, next(model.parameters()).device)
    return {name: masks[name] for name in (*cut.kept, *cut.removed_blocks)}


def _with_same_tensors(model: nn.Module) -> nn.Module:
    """A copy of the modules of `model` with the same tensors, to be cut."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def _explain(model: nn.Module, structure: Structure, cut: Cut, inputs: Mapping[str, Any]) -> str:
    """Run the cut again, watching every module: where it fails, or first differs from the masked model."""
    pruned = _with_same_tensors(model)
    with _Trace(model) as before, _Trace(pruned) as after:
        try:
            with masked(model, structure, _masks(cut, structure, model)):
                _run(model, inputs)
            after.running.append("removal")
            remove(pruned, structure, cut)
            after.running.clear()
            _run(pruned, inputs)
        except Exception as error:
            place = next((trace.running[-1] for trace in (before, after) if trace.running), "the model")
            reason = f"fails in {place}: {_reason(error)}"
        else:
            differing = next((name for name in after.seen if after.differs(before, name)), None)
            reason = f"first differs after {differing}" if differing else "differs in the model's own forward"
    return "; ".join([reason, *_stale(model, pruned, structure, cut)])


def _stale(model: nn.Module, pruned: nn.Module, structure: Structure, cut: Cut) -> Iterator[str]:
    """Attributes beside the weights of a cut dim that may still have its dense size."""
    if len(cut.kept) != 1:
        return
    (dim,) = (structure.dims[name] for name in cut.kept)
    holders = {piece.module for piece in dim.slices} | {piece.module.rpartition(".")[0] for piece in dim.slices}
    for holder in sorted(holders):
        before, after = model.get_submodule(holder), pruned.get_submodule(holder)
        if type(before).__module__.startswith("torch."):
            continue
        for key, value in vars(before).items():
            if type(value) is int and 1 < value in (dim.size, dim.size * dim.width) and vars(after).get(key) == value:
                yield f"{holder}.{key} is still {value}"


class _Trace:
    """Watches one model: which modules are running, and the shape, mean and size of what each returned last."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.running: list[str] = []
        self.seen: dict[str, tuple[torch.Size, float, float]] = {}

    def __enter__(self) -> _Trace:
        self.hooks = []
        for name, module in self.model.named_modules():
            if name:
                self.hooks.append(module.register_forward_pre_hook(self._begin(name)))
                self.hooks.append(module.register_forward_hook(self._end(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def differs(self, other: _Trace, name: str) -> bool:
        """Whether module `name` returned different values of the same shape here and in `other`."""
        if name not in other.seen or self.seen[name][0] != other.seen[name][0]:
            return False
        (_, mean, size), (_, other_mean, other_size) = self.seen[name], other.seen[name]
        return max(abs(mean - other_mean), abs(size - other_size)) > TOLERANCE * other_size

    def _begin(self, name: str) -> Callable[..., None]:
        return lambda *_: self.running.append(name)

    def _end(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.running.pop()
            tensor = next((value for value in _flat(output) if isinstance(value, Tensor)), None)
            if tensor is not None:
                values = tensor.double()
                self.seen[name] = (tensor.shape, values.mean().item(), values.square().mean().sqrt().item())

        return hook


def _flat(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)
