"""Which blocks of the dense model a pruned model still has, and what they return for another input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..base.errors import TrainingError
from ..io.manifest import MANIFEST_KEY, dense_skeleton, manifest_of
from ..models.predict import network_of
from ..models.registry import describe
from ..structure import Cut, Structure, kept_entries, remove
from ..structure.streams import returned_tensors, streams_of
from ..teacher.hidden import Call, Lineage, lineage_of


def called_with(model: nn.Module, name: str, call: Call, taken: Tensor) -> Tensor:
    """What block `name` returns for the image's stream if its input there is `taken`, and otherwise that of `call`."""
    network = network_of(model)
    block, module = describe(network).blocks[name], network.get_submodule(name)
    stream = streams_of(block, module)[block.image]
    args, kwargs = list(call.args), dict(call.kwargs)
    if stream.position < len(args):
        args[stream.position] = taken
    else:
        kwargs[stream.name] = taken
    # Only the network's own forward is wrapped in autocast, and the call's other arguments come from inside it.
    lower = nullcontext() if call.autocast is None else torch.autocast(taken.device.type, call.autocast)
    with lower:
        return returned_tensors(block, module(*args, **kwargs))[block.image]


@dataclass(frozen=True)
class Pair:
    """A block of the pruned model, the same block of the dense one, and the channels that stayed; None means all.

    Attributes:
        student: its name in the pruned model.
        teacher: its name in the dense model.
        taken: indices of the dense model's channels that are left of its input.
        returned: indices of those that are left of its output.
    """

    student: str
    teacher: str
    taken: Tensor | None = None
    returned: Tensor | None = None


# By student and teacher, with the number of steps in the manifest at that time.
_known: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module | Lineage, tuple[int, list[Pair]]]]
_known = WeakKeyDictionary()


def surviving_blocks(student: nn.Module, teacher: nn.Module | Lineage) -> list[Pair]:
    """The blocks of `student`, each with the block of `teacher` that it comes from, in the order of the forward pass.

    Every cut since the teacher is repeated on a model on the meta device, following modules instead of names.

    Raises:
        TrainingError: `student` does not come from `teacher` by the cuts in its manifest.
    """
    student, teacher = network_of(student), teacher if isinstance(teacher, Lineage) else network_of(teacher)
    steps = len(getattr(student, "config", {}).get(MANIFEST_KEY, {}).get("steps", ()))
    known = _known.setdefault(student, WeakKeyDictionary())
    if teacher not in known or known[teacher][0] != steps:
        lineage = teacher if isinstance(teacher, Lineage) else lineage_of(teacher)
        known[teacher] = steps, _surviving_blocks(student, lineage)
    return known[teacher][1]


def _surviving_blocks(student: nn.Module, dense: Lineage) -> list[Pair]:
    names, manifest, shared = list(describe(student).blocks), manifest_of(student), dense.cuts
    later = manifest.cuts[len(shared) :] if manifest is not None else ()
    if manifest is None or not later:
        if names != list(dense.blocks):
            raise TrainingError("the student has other blocks than the teacher, and no manifest that says which stayed")
        return [Pair(name, name) for name in names]
    if manifest.cuts[: len(shared)] != shared:
        raise TrainingError("the student was not pruned from this teacher, so its blocks are not the teacher's")
    skeleton = dense_skeleton(manifest)
    for cut in shared:
        remove(skeleton, describe(skeleton), cut)
    modules = {name: skeleton.get_submodule(name) for name in dense.blocks}
    ends = {module: _Ends() for module in modules.values()}
    for cut in later:
        structure = describe(skeleton)
        for name in structure.blocks:
            ends[skeleton.get_submodule(name)].follow(skeleton, structure, cut, name)
        remove(skeleton, structure, cut)
    old_name = {module: name for name, module in modules.items()}
    present = {name: skeleton.get_submodule(name) for name in describe(skeleton).blocks}
    return [Pair(name, old_name[module], ends[module].taken, ends[module].returned) for name, module in present.items()]


class _Ends:
    """Which of the dense model's channels are left of a block's input and output."""

    def __init__(self) -> None:
        self.taken: Tensor | None = None
        self.returned: Tensor | None = None

    def follow(self, model: nn.Module, structure: Structure, cut: Cut, block: str) -> None:
        """Apply `cut`, by what the block's first parameter reads and its last weight writes."""
        shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
        kept = kept_entries(structure, cut, shapes)
        first, last = _first_read(structure, block, shapes), _last_written(structure, block, shapes)
        self.taken = _composed(self.taken, kept.get(first[0], {}).get(first[1]) if first else None)
        self.returned = _composed(self.returned, kept.get(last, {}).get(0) if last else None)


def _first_read(structure: Structure, block: str, shapes: Mapping[str, torch.Size]) -> tuple[str, int] | None:
    """The parameter and axis with which `block` first reads its input, if that may lose channels."""
    axes = {
        piece.parameter: piece.axis
        for dim in structure.dims.values()
        for piece in dim.slices
        if piece.role in ("norm", "in") and piece.parameter.startswith(f"{block}.")
    }
    name = next((name for name in shapes if name.startswith(f"{block}.")), None)
    return (name, axes[name]) if name in axes and name is not None else None


def _last_written(structure: Structure, block: str, shapes: Mapping[str, torch.Size]) -> str | None:
    """The last weight of `block`, which writes its output, if that may lose channels."""
    weights = [name for name in shapes if name.startswith(f"{block}.") and name.endswith(".weight")]
    written = {piece.parameter for dim in structure.dims.values() for piece in dim.slices if piece.role == "out"}
    return weights[-1] if weights and weights[-1] in written else None


def _composed(before: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """Indices of the dense model's channels after another cut that keeps `kept`."""
    if kept is None:
        return before
    return kept if before is None else before[kept]


def sliced(hidden: Tensor, kept: Tensor | None, channels_first: bool) -> Tensor:
    """The `kept` channels of a hidden state, (B, C, H, W) or (B, N, C)."""
    if kept is None:
        return hidden
    return hidden.index_select(1 if channels_first else -1, kept.to(hidden.device, non_blocking=True))


def chosen(pairs: Sequence[Pair], patterns: Sequence[str]) -> list[Pair]:
    """The pairs whose block of the teacher matches one of the glob `patterns`.

    Raises:
        TrainingError: there is none.
    """
    if not pairs:
        raise TrainingError("objective features compares blocks, and the network has none; use distillation")
    found = [pair for pair in pairs if any(fnmatchcase(pair.teacher, pattern) for pattern in patterns)]
    if not found:
        some = ", ".join(pair.teacher for pair in pairs[:3])
        raise TrainingError(f"features blocks {', '.join(patterns)} match no block; there are {some} ...")
    return found
