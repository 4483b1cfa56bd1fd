"""The manifest of a pruned model: its dense base and, in order, every cut and recovery since.

It travels in the model's config, so that a pipeline's own `save_pretrained` keeps it, and is written to `pruning.json`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import init_empty_weights
from torch import nn

from ..models.registry import architecture_named, describe, family_of
from ..structure import Cut, remove

MANIFEST = "pruning.json"
MANIFEST_KEY = "secateur_pruning"  # of the config
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Where a pruned model comes from: its dense base and, in order, every cut and recovery since."""

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
        return tuple(
            Cut({dim: tuple(entry["kept"]) for dim, entry in step["dims"].items()}, tuple(step["removed_blocks"]))
            for step in self.steps
            if step["kind"] == "cut"
        )

    @property
    def digest(self) -> str:
        """SHA-256 of base and steps: the same for the same history, whichever versions wrote it down."""
        history = {"base": dict(self.base), "steps": [dict(step) for step in self.steps]}
        return hashlib.sha256(json.dumps(history, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Manifest:
        """Raise `ValueError` if `value` was written by another version of the format."""
        if (version := value.get("format_version")) != FORMAT_VERSION:
            raise ValueError(f"its manifest has format version {version}; this secateur reads {FORMAT_VERSION}")
        return Manifest(value["base"], tuple(value["steps"]))


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("secateur", "torch", "diffusers", "safetensors")}


def manifest_of(model: nn.Module) -> Manifest | None:
    """The manifest of a model that `apply_cut` pruned or `from_pretrained` loaded; None for a dense model."""
    config: Mapping[str, Any] = getattr(model, "config", {})
    return Manifest.from_json(config[MANIFEST_KEY]) if MANIFEST_KEY in config else None


def apply_cut(model: nn.Module, cut: Cut, details: Mapping[str, Any] | None = None, base_id: str = "") -> nn.Module:
    """Remove `cut` from `model` in place, write it into the model's manifest with `details`, and return the model.

    A module without a config has no manifest: it is cut all the same.
    """
    structure = describe(model)
    if not hasattr(model, "register_to_config"):
        return remove(model, structure, cut)
    manifest = manifest_of(model) or Manifest(
        {"id": base_id, "class": _saved_class(model), "config": _plain_config(model)}
    )
    step = {
        "kind": "cut",
        "dims": {
            name: {"size": structure.dims[name].size, "kept": list(units)} for name, units in sorted(cut.kept.items())
        },
        "removed_blocks": list(cut.removed_blocks),
        **(details or {}),
    }
    remove(model, structure, cut)
    if cut.removed_blocks:
        _follow_depth(model)
    _attach(model, replace(manifest, steps=(*manifest.steps, step)))
    return model


def dense_skeleton(manifest: Manifest) -> nn.Module:
    """The dense base of a pruned model, without memory."""
    with init_empty_weights(include_buffers=False):
        return architecture_named(manifest.base["class"]).from_config(dict(manifest.base["config"]))


def pruned_skeleton(manifest: Manifest) -> nn.Module:
    """The pruned model that `manifest` describes, without memory: every cut replayed on the shapes of the base."""
    model = dense_skeleton(manifest)
    for cut in manifest.cuts:
        remove(model, describe(model), cut)
    if any(cut.removed_blocks for cut in manifest.cuts):
        _follow_depth(model)
    _attach(model, manifest)
    return model


def removed_since(model: nn.Module, reference: nn.Module) -> tuple[str, ...]:
    """The blocks of `reference`, by its names, that later cuts removed from `model`; none if it comes from another.

    Every cut numbers the blocks that were left before it, so the cuts are replayed, and modules followed, not names.
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


def note_labels(model: nn.Module, class_names: Sequence[str], base_id: str = "") -> None:
    """Write into the manifest that `model` was given other classes; one is begun for a dense model."""
    config = _plain_config(model)
    manifest = manifest_of(model) or Manifest({"id": base_id, "class": _saved_class(model), "config": config})
    counts = {key: config[key] for key in ("num_embeds_ada_norm", "num_class_embeds") if key in config}
    base = {**manifest.base, "config": {**manifest.base["config"], **counts}}
    step = {"kind": "labels", "classes": len(class_names), "names": list(class_names)}
    _attach(model, Manifest(base, (*manifest.steps, step)))


def note_step(model: nn.Module, kind: str, details: Mapping[str, Any]) -> None:
    """Append what was done to a pruned model, for example a recovery, to its manifest."""
    manifest = manifest_of(model)
    if manifest is not None:
        _attach(model, replace(manifest, steps=(*manifest.steps, {"kind": kind, **details})))


def _follow_depth(model: nn.Module) -> None:
    """Write the depth of a transformer into its config."""
    model.register_to_config(**family_of(model).depth_entries(model))  # type: ignore[operator]


def _attach(model: nn.Module, manifest: Manifest) -> None:
    model.register_to_config(**{MANIFEST_KEY: manifest.to_json()})  # type: ignore[operator]


def _saved_class(model: nn.Module) -> str:
    """The class in the config, which is another than the model's own where it is a view; a fresh config has none."""
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    return config.get("_class_name", type(model).__name__)


def _plain_config(model: nn.Module) -> dict[str, Any]:
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key != MANIFEST_KEY}
    return json.loads(json.dumps(kept))  # as a manifest that was read back has it
