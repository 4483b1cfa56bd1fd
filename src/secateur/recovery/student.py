"""Preparing a model for training, and back: precision of the weights, frozen parameters, LoRA and dropout."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch
from torch import nn

from ..base.errors import TrainingError
from ..data.conditions import disable_label_dropout
from ..models.precision import saved
from ..models.recomputing import can_recompute
from .config import RecoveryConfig
from .lora import add_lora, check_lora, merge_lora
from .objectives import OBJECTIVES, objective_named

WRAPPED = "units cannot be removed from weights that LoRA wraps; prune in one shot before, or train the weights"
CHANGES = "recovery.compile is for networks that do not change on the way; prune in one shot before"
REFITS = "a refit at the cuts of a schedule needs the whole teacher; leave teacher out of recovery.offload"
MATCHED_BY_SHAPE = ("adafactor", "adamw8bit")  # their state does not have the shape of shards


def check_student(model: nn.Module, config: RecoveryConfig) -> None:
    """Check, before long work starts, that `model` can be trained with `config`.

    Raises:
        TrainingError: a library is missing, a pattern matches nothing, nothing is to be trained, or options do not go
            together.
    """
    if config.optimizer == "adamw8bit" and find_spec("torchao") is None:
        raise TrainingError("optimizer adamw8bit needs torchao; pip install 'secateur[optimizers]', or use adafactor")
    if config.weight_precision == "bf16" and config.optimizer not in ("adamw", "adamw8bit"):
        raise TrainingError(
            f"weight_precision bf16 is rounded by adamw and adamw8bit, not by {config.optimizer}; use one of them"
        )
    if config.weight_precision == "bf16" and config.mixed_precision == "fp16":
        raise TrainingError("weights in bf16 do not go with passes in fp16; leave recovery.mixed_precision auto")
    if config.compile and not (objective_named(config.objective).compiles and config.parallel == "ddp"):
        compiled = ", ".join(name for name, objective in OBJECTIVES.items() if objective.compiles)
        raise TrainingError(
            f"recovery.compile is for objectives {compiled} with parallel ddp: compiled networks have no "
            "second derivatives, and cannot be watched inside; leave it out"
        )
    if config.parallel != "ddp" and config.optimizer in MATCHED_BY_SHAPE:
        raise TrainingError(f"optimizer {config.optimizer} does not work on shards; use adamw or muon with them")
    if config.lora.rank:
        check_lora(config.lora, model, frozen_by(model, config.freeze))
        if objective_named(config.objective).compares_blocks:
            raise TrainingError(
                f"objective {config.objective} follows blocks by their weights, which LoRA wraps; use distillation"
            )
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise TrainingError(f"no weight of {type(model).__name__} requires a gradient; call its requires_grad_()")
    if not trained - frozen_by(model, config.freeze):
        raise TrainingError(f"freeze {', '.join(config.freeze)} leaves nothing to train")


def check_recomputing(model: nn.Module) -> None:
    """Check that `model` can recompute its activations, before long work starts.

    Raises:
        TrainingError: it cannot.
    """
    if not can_recompute(model):
        raise TrainingError(
            f"{type(model).__name__} has no gradient checkpointing; turn recovery.gradient_checkpointing off, "
            "or raise the accumulation to save memory"
        )


def frozen_by(model: nn.Module, patterns: tuple[str, ...]) -> set[str]:
    """The parameters that `patterns` name.

    Raises:
        TrainingError: one matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise TrainingError(f"freeze {pattern} matches no parameter; there is {names[0]}")
        found |= matched
    return found


def make_ready(model: nn.Module, config: RecoveryConfig, device: torch.device) -> dict[str, bool]:
    """Move and cast `model`, freeze and add what `config` asks for; return which parameters were trainable before, by
    name."""
    check_student(model, config)
    dtype = trained_dtype(model, config)
    if any(parameter.device != device for parameter in model.parameters()):
        nn.Module.to(model, device)
    for tensor in saved(model).values():
        tensor.data = tensor.data.to(dtype)
    model.train()
    trained = trainable(model)
    frozen = frozen_by(model, config.freeze)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    if config.lora.rank:
        add_lora(model, config.lora, frozen)
    return trained


def trained_dtype(model: nn.Module, config: RecoveryConfig) -> torch.dtype:
    """The dtype in which `model` is trained: float32, float64 if it has that already, or bfloat16."""
    exact = {torch.promote_types(parameter.dtype, torch.float32) for parameter in model.parameters()}
    return torch.bfloat16 if config.weight_precision == "bf16" else max(exact, key=lambda each: each.itemsize)


def silence_dropout(model: nn.Module, config: RecoveryConfig) -> None:
    """Switch off label dropout, which the draws do, and set the dropout that `config` asks for."""
    disable_label_dropout(model)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout


def make_as_before(model: nn.Module, config: RecoveryConfig, trained: Mapping[str, bool]) -> None:
    """Merge LoRA factors into the weights, and let parameters be trainable as they were before."""
    if config.lora.rank:
        merge_lora(model)
    if config.lora.rank or config.freeze:
        make_trainable(model, trained)


def trainable(model: nn.Module) -> dict[str, bool]:
    """Which parameters need gradients, by name."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def make_trainable(model: nn.Module, trained: Mapping[str, bool]) -> None:
    """Let parameters need gradients as `trainable` found; others, of blocks renamed by a cut, stay as they are."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))
