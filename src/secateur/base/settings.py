"""Settings that may change when a run resumes: those that cannot change its result."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Settings of memory, speed and output. Compiled networks draw other dropout masks, if there are any.
FREE_IN_RECOVERY = frozenset(
    {"accumulation", "parallel", "gradient_checkpointing", "compile", "offload", "memory"}
    | {"checkpoint_every", "log_every", "grad_norms_every", "report_to"}
    | {"validation_every", "validation_prompts", "validation_classes"}
)
FREE = frozenset(
    {
        "scoring.batch_size",
        "book.batch_size",
        "compensation.batch_size",
        "compensation.offload",
        "evaluation.batch_size",
    }
    | {f"recovery.{name}" for name in FREE_IN_RECOVERY}
)


def differing(
    before: Mapping[str, Any], asked: Mapping[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, as JSON before and now, except the `free` ones.

    Names of settings in groups are dotted: "recovery.seed".
    """
    return {name: values for name, values in _changes(before, asked, "") if name not in free}


def say_differing(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The changes found by `differing`, as text for an error."""
    return ", ".join(f"{name} {there} there, {here} here" for name, (there, here) in changes.items())


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as they would be after writing and reading JSON: tuples become lists, and nothing is shared."""
    return json.loads(json.dumps(settings))


def _changes(before: Mapping[str, Any], asked: Mapping[str, Any], group: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in {**asked, **before}:
        there, here = before.get(key), asked.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _changes(there, here, f"{group}{key}.")
        elif there != here:
            yield f"{group}{key}", (there, here)
