"""Defaults of a command's options, where they depend on another option: the recipe, the criterion, the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..compensation import CompensationConfig
from ..criteria import ScoringConfig, criterion_named
from ..evaluation import EvaluationConfig
from ..recipes import finetuning_config, resolve
from ..recovery import WarmupConfig
from ..runs.trials import TrialConfig
from ..schedules import CutConfig
from ..teacher import BookConfig


def defaults_of(name: str, options: Sequence[str]) -> dict[str, Any]:
    """The defaults of the groups of options of command `name`; of `compress`, of all parts of the chosen recipe."""
    criterion = _value("--criterion", options)
    scoring = criterion_named(criterion or "diff-pruning").configured(ScoringConfig())
    if name == "compress":
        chosen = resolve(_value("--recipe", options) or "default", criterion=criterion)
        parts = [part.name for part in fields(chosen) if part.name != "name"]
        return {part: getattr(chosen, part) for part in parts} | {"warmup": WarmupConfig()}
    trials = {"shared": TrialConfig(), "evaluation": EvaluationConfig(), "warmup": WarmupConfig()}
    groups: dict[str, dict[str, Any]] = {
        "rank": {"scoring": scoring},
        "prune": {"scoring": scoring, "cut": CutConfig(), "compensation": CompensationConfig()},
        "compensate": {"compensation": CompensationConfig()},
        "record": {"book": BookConfig(), "recovery": resolve("default").recovery},
        "finetune": {
            "recovery": finetuning_config(None, bool(_value("--teacher", options) or _value("--book", options)))
        },
        "evaluate": {"evaluation": EvaluationConfig()},
        "sweep": trials,
        "best": trials,
    }
    return groups.get(name, {})


def _value(option: str, options: Sequence[str]) -> str | None:
    """The last value given to an option, as the parser reads it; needed before parsing, for the defaults of others."""
    last = None
    for position, argument in enumerate(options):
        name, equals, value = argument.partition("=")
        if name == option:
            last = value if equals else "".join(options[position + 1 : position + 2])
    return last
