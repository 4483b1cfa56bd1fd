"""The manifest of a pruned model: its dense base and, in order, every cut and recovery since.

In memory it is part of the model's config. On disk it is `pruning.json`, to which the config has a pointer.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from accelerate import init_empty_weights
from torch import nn

from ..base.errors import SecateurError, StructureError
from ..base.records import record_of
from ..base.shards import require_whole
from ..models.registry import architecture_named, describe, family_of, is_known
from ..structure import Cut, Removal, forget_removals, removals_of, remove
from .foreign import explicit, hollow, quiet
from .pruned import dense_class, give_class, saved_module

MANIFEST = "pruning.json"
MANIFEST_KEY = "_secateur_pruning"  # in the config in memory; diffusers warns of unknown keys without an underscore
POINTER_KEY = "_secateur_manifest"  # in the config on disk
FREQUENCIES_KEY = "_secateur_original_frequencies"  # likewise, for a converted DiT
FORMAT_VERSION = 1
MOST_CUTS = 1_000  # that cannot be replayed together


class DimCut(msgspec.Struct):
    """The units that a step keeps of a dim of `size` units."""

    size: int
    kept: tuple[int, ...]


class CutStep(msgspec.Struct, tag="cut", tag_field="kind"):
    """The part of a "cut" step that says what is kept."""

    dims: dict[str, DimCut]
    removed_blocks: tuple[str, ...]

    @property
    def cut(self) -> Cut:
        return Cut({name: dim.kept for name, dim in self.dims.items()}, self.removed_blocks)


class Base(msgspec.Struct):
    """The dense model."""

    id: str
    name: str = msgspec.field(name="class")
    config: dict[str, Any] = {}


class Document(msgspec.Struct):
    """The whole of `pruning.json`."""

    format: Literal["secateur-pruning"]
    format_version: int
    base: Base
    steps: tuple[dict[str, Any], ...]
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Manifest:
    """The origin of a pruned model: its dense base and, in order, every cut and recovery since."""

    base: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "secateur-pruning",
            "format_version": FORMAT_VERSION,
            "base": dict(self.base),
            "steps": [dict(step) for step in self.steps],
            "versions": library_versions(),
        }

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Every cut since the base, in order."""
        return tuple(step.cut for step in self._cut_steps("the manifest"))

    @property
    def narrows(self) -> bool:
        """Whether a cut removed channels or heads, not only blocks."""
        steps = self._cut_steps("the manifest")
        return any(len(dim.kept) < dim.size for step in steps for dim in step.dims.values())

    @property
    def digest(self) -> str:
        """SHA-256 of base and steps, which does not depend on library versions."""
        history = {"base": dict(self.base), "steps": [dict(step) for step in self.steps]}
        return hashlib.sha256(json.dumps(history, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_json(value: Any, source: Any = "the manifest") -> Manifest:
        """Read the result of `to_json`, and check every cut.

        Raises:
            SecateurError: it has other fields, or another version of the format.
        """
        document = record_of(Document, value, source)
        if document.format_version != FORMAT_VERSION:
            version = document.format_version
            raise SecateurError(f"{source} has format version {version}; this secateur reads {FORMAT_VERSION}")
        manifest = Manifest(value["base"], document.steps)
        list(manifest._cut_steps(source))
        return manifest

    def _cut_steps(self, source: Any) -> Iterator[CutStep]:
        for number, step in enumerate(self.steps):
            if step.get("kind") == "cut":
                yield record_of(CutStep, step, f"{source}, step {number},")


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("secateur", "torch", "diffusers", "safetensors")}


def manifest_of(model: nn.Module) -> Manifest | None:
    """The manifest of a model that was pruned here or loaded; None for a dense one.

    It includes cuts made directly with `structure.remove`, without details. A network without a diffusers config has
    none.
    """
    if not hasattr(model, "register_to_config"):
        return None
    config: Mapping[str, Any] = getattr(model, "config", {})
    noted = Manifest.from_json(config[MANIFEST_KEY]) if MANIFEST_KEY in config else None
    if not (removals := removals_of(model)):
        return noted
    noted = noted or _begun(model, "")
    return replace(noted, steps=(*noted.steps, *(_step(removal) for removal in removals)))


def apply_cut(model: nn.Module, cut: Cut, details: Mapping[str, Any] | None = None, base_id: str = "") -> nn.Module:
    """Remove `cut` from `model` in place, write it into the model's manifest with `details`, and return the model.

    A network without a diffusers config has no place for it, and cannot be saved either.

    Raises:
        SecateurError: the weights are sharded (FSDP2).
        StructureError: the cut does not fit, or the structure of the model is not known.
    """
    require_whole(model, "a cut")
    if not hasattr(model, "register_to_config"):
        return _remove(model, cut)
    manifest = manifest_of(model) or _begun(model, base_id)
    _remove(model, cut)
    removal = removals_of(model)[-1]
    attach(model, replace(manifest, steps=(*manifest.steps, {**_step(removal), **(details or {})})))
    return model


def _remove(model: nn.Module, cut: Cut) -> nn.Module:
    """Remove `cut` from `model`, in place."""
    try:
        return remove(model, describe(model), cut)
    except ValueError as error:  # `structure` knows no errors of ours
        raise StructureError(str(error)) from error


def attach(model: nn.Module, manifest: Manifest) -> None:
    """Attach `manifest`, which describes every cut that was made, to `model`."""
    forget_removals(model)
    blocks_left = any(cut.removed_blocks for cut in manifest.cuts)
    entries = dict(family_of(model).depth_entries(model)) if blocks_left else {}
    model.register_to_config(**entries, **{MANIFEST_KEY: manifest.to_json()})  # type: ignore[operator]
    give_class(model, _loads_in_diffusers(model, manifest))


def _loads_in_diffusers(model: nn.Module, manifest: Manifest) -> bool:
    """Whether the dense class can build the model from its config, as it can if only listed blocks were removed."""
    dense, saved = dense_class(model), saved_module(model)
    by_place = family_of(model).counts_by_place and any(cut.removed_blocks for cut in manifest.cuts)
    if manifest.narrows or by_place or not is_known(dense.__name__):
        return False
    built = hollow(dense, {**saved.config, "_class_name": dense.__name__}, 10**6)  # type: ignore[dict-item]
    return shapes(built) == shapes(saved)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every saved tensor of `model`, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def dense_skeleton(manifest: Manifest) -> nn.Module:
    """The dense base of a pruned model, on the meta device."""
    with init_empty_weights(include_buffers=False), quiet():
        return architecture_named(manifest.base["class"]).from_config(explicit(manifest.base["config"]))


def pruned_skeleton(manifest: Manifest) -> nn.Module:
    """The pruned model that `manifest` describes, on the meta device: its cuts are replayed on the base.

    Raises:
        StructureError: a cut does not fit.
    """
    model = dense_skeleton(manifest)
    for cut in composed(manifest):
        _remove(model, cut)
    attach(model, manifest)
    return model


def composed(manifest: Manifest) -> Iterator[Cut]:
    """The cuts of a manifest, with consecutive cuts of the same dims combined.

    A dim that a cut names for the first time may exist only since the cut before, such as the channels of a last head.

    Raises:
        StructureError: a cut does not fit the model after the one before it, or there are far too many.
    """
    kept: dict[str, tuple[int, ...]] = {}
    count = 0
    for step in manifest._cut_steps("the manifest"):
        dims = {name: dim for name, dim in step.dims.items() if len(dim.kept) < dim.size}
        if kept and not dims.keys() <= kept.keys():
            yield Cut(kept)
            kept, count = {}, count + 1
        for name, dim in dims.items():
            before = kept.get(name)
            if before is not None and (len(before) != dim.size or not all(0 <= unit < dim.size for unit in dim.kept)):
                raise StructureError(f"a cut of {name} is not of the {len(before)} units that were left")
            kept[name] = dim.kept if before is None else tuple(before[unit] for unit in dim.kept)
        if step.removed_blocks:
            yield Cut(kept, step.removed_blocks)
            kept, count = {}, count + 1
        if count > MOST_CUTS:
            raise StructureError(f"it lists more than {MOST_CUTS:,} cuts, one after another")
    if kept:
        yield Cut(kept)


def removed_since(model: nn.Module, reference: nn.Module) -> tuple[str, ...]:
    """The blocks of `reference`, by its names, that later cuts removed from `model`; none if it comes from another.

    Every cut uses the block numbers of the model before it, so the cuts are replayed, following modules instead of
    names.
    """
    manifest, before = manifest_of(model), manifest_of(reference)
    shared = before.cuts if before is not None else ()
    if manifest is None or manifest.cuts[: len(shared)] != shared:
        return ()
    skeleton = dense_skeleton(manifest)
    for cut in shared:
        remove(skeleton, describe(skeleton), cut)
    blocks = {name: skeleton.get_submodule(name) for name in describe(skeleton).blocks}
    for cut in manifest.cuts[len(shared) :]:
        remove(skeleton, describe(skeleton), cut)
    left = set(skeleton.modules())
    return tuple(name for name, block in blocks.items() if block not in left)


STAGES = {"cut": "pruned", "compensation": "compensated", "recovery": "recovered"}


def stage_of(model: nn.Module) -> str:
    """The stage of a model, by the last step of its manifest: dense, pruned, compensated or recovered."""
    manifest = manifest_of(model)
    kinds = [] if manifest is None else [step["kind"] for step in manifest.steps]
    return next((STAGES[kind] for kind in reversed(kinds) if kind in STAGES), "dense")


def beside(reference: nn.Module, model: nn.Module) -> dict[str, nn.Module]:
    """Two models by their stages, the reference first; if these are equal, they are named reference and model."""
    one, other = stage_of(reference), stage_of(model)
    return {one: reference, other: model} if one != other else {"reference": reference, "model": model}


def note_labels(model: nn.Module, class_names: Sequence[str], base_id: str = "") -> None:
    """Note in the manifest that `model` was given other classes; a dense model gets a manifest."""
    config = _plain_config(model)
    manifest = manifest_of(model) or _begun(model, base_id)
    counts = {key: config[key] for key in ("num_embeds_ada_norm", "num_class_embeds") if key in config}
    base = {**manifest.base, "config": {**manifest.base["config"], **counts}}
    step = {"kind": "labels", "classes": len(class_names), "names": list(class_names)}
    attach(model, Manifest(base, (*manifest.steps, step)))


def note_step(model: nn.Module, kind: str, details: Mapping[str, Any]) -> None:
    """Append a step, for example a recovery, to the manifest of a pruned model."""
    manifest = manifest_of(model)
    if manifest is not None:
        attach(model, replace(manifest, steps=(*manifest.steps, {"kind": kind, **details})))


def _begun(model: nn.Module, base_id: str) -> Manifest:
    return Manifest({"id": base_id, "class": dense_class(model).__name__, "config": _plain_config(model)})


def _step(removal: Removal) -> dict[str, Any]:
    dims = {name: {"size": removal.sizes[name], "kept": list(units)} for name, units in sorted(removal.kept.items())}
    return {"kind": "cut", "dims": dims, "removed_blocks": list(removal.removed_blocks)}


def _plain_config(model: nn.Module) -> dict[str, Any]:
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    kept = {key: value for key, value in config.items() if not key.startswith("_") or key == FREQUENCIES_KEY}
    return json.loads(json.dumps(kept))  # as if it had been read back
