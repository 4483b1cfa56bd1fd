"""Peak memory of the stages of a run: weights, and what passes allocate, counted on copies on the meta device."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..compensation import Price
from ..criteria import criterion_named
from ..criteria.criterion import Memory
from ..criteria.memory import without_data, without_values
from ..evaluation import EvaluationConfig
from ..models.network import example_inputs
from ..process.own import OwnObjective
from ..recovery import RecoveryConfig
from ..recovery.memory import recovery_memory
from ..recovery.objectives.build import build_objective
from ..recovery.objectives.objective import PROJECTING, TRAINING
from ..recovery.recomputing import recomputing
from .subject import Subject
from .timing import Work, price_of_compensation

FLOAT = 4  # bytes; students, their gradients, the averages and AdamW's two moments are in float32
OPTIMIZER, AVERAGE = 2, 1  # copies of the weights
SAVING = ("optimizer", "weight_precision", "offload", "freeze", "lora", "parallel")  # options of recovery


def peak_bytes(
    subject: Subject, work: Work, passes: Passes | None = None, refit: Price | None = None
) -> dict[str, float]:
    """Peak bytes of each stage on the model's device, for a run in a folder (one in memory keeps more models).

    Passes are counted for the dense model; those of a pruned one are its share by MACs. Inputs, libraries and memory
    that the allocator reserves are not included. A stage whose passes cannot be counted on the meta device is left out.
    """
    passes = passes or Passes(subject)
    dense, plan = _bytes_of(subject.model), work.plan
    weights, activations = 1.0, 1.0
    if plan is not None:
        weights, activations = plan.after.parameters / plan.before.parameters, plan.after.macs / plan.before.macs
    cut, stages = dense * weights, {}
    if work.ranking is not None:
        ranked = passes.ranking(work)
        stages["rank"] = dense + passes.forward(work.ranking[1].batch_size) if ranked is None else float(ranked.peak)
    if (refit := refit or price_of_compensation(subject, work)) is not None:
        stages["compensate"] = dense + cut + refit.bytes
    if work.book is not None:
        stages["record"] = dense + passes.forward(work.book[0].batch_size)
    if work.recovery is not None:
        if work.pruned_late is not None:
            weights = activations = 1.0
        stages["recover"] = _recovery(subject, work, work.recovery, passes, weights, activations)
    if work.evaluation is not None:
        models = 1 if plan is None else 2 if work.pruned_late else 3 if work.compensation is None else 4
        stages["evaluate"] = dense + (models - 1) * cut + passes.forward(_sampled_at_once(work.evaluation))
    return {stage: each for stage, each in stages.items() if not math.isnan(each)}


def _recovery(
    subject: Subject, work: Work, config: RecoveryConfig, passes: Passes, weights: float, activations: float
) -> float:
    """A student with its gradients, optimizer and average; and the teacher, if the objective needs one.

    With options that save memory, `recovery_memory` counts it, for the size of the loaded model.
    """
    saves = any(getattr(config, name) != getattr(RecoveryConfig(), name) for name in SAVING)
    asked = None if work.reads or work.book is not None else work.teacher or subject.model
    if saves and not isinstance(subject.process, OwnObjective):
        counted = replace(config, objective="denoising", weights={}) if asked is None else config
        return float(recovery_memory(subject.model, asked, subject.process, counted, subject.device).total)
    objective = build_objective(config, work.teacher or subject.model)
    parameters = FLOAT * sum(parameter.numel() for parameter in subject.model.parameters())
    micro_batch = config.batch_size // config.accumulation
    recomputes = config.gradient_checkpointing and not objective.differentiates_twice  # what is recomputed is then kept
    passed = passes.training(micro_batch, recomputes)
    graph = 1.0  # of the passes that the backward pass needs, as shares of a plain one
    if objective.differentiates_twice:
        projected = objective.jacobian.directions * PROJECTING[objective.jacobian.projection][0]
        graph += projected / TRAINING / objective.jacobian.every_n_samples
    held = parameters * weights * (2 + OPTIMIZER + AVERAGE)  # itself and its gradients
    peak = held + activations * passed * graph
    if objective.needs_teacher and not work.reads and work.book is None:
        peak += _bytes_of(work.teacher or subject.model) + passes.forward(micro_batch)
    return peak


def _sampled_at_once(config: EvaluationConfig) -> int:
    return min(config.batch_size, config.num_images) * (1 if config.guidance_scale == 1 else 2)


class Passes:
    """Memory that passes of a subject's model allocate; each is counted once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._rankings: dict[str, Memory | None] = {}
        self.forward = functools.cache(functools.partial(_or_unknown, _forward, subject.model))
        self.training = functools.cache(functools.partial(_or_unknown, _training, subject.model))

    def ranking(self, work: Work) -> Memory | None:
        """Memory of a ranking by gradients, if it is far more than the model's own."""
        if work.ranking is None:
            return None
        key = repr(work.ranking)
        if key not in self._rankings:
            name, config = work.ranking
            chosen = criterion_named(name)
            config, subject = chosen.configured(config), self._subject
            self._rankings[key] = None
            if chosen.memory is not None:
                with suppress(Exception), _unlogged():  # as in `_or_unknown`
                    self._rankings[key] = chosen.memory(subject.model, subject.process, config, config.options)
        return self._rankings[key]


def _or_unknown(count: Callable[..., float], *arguments: Any) -> float:
    """What `count` returns; nan for a network that needs values, such as lengths of texts, which the meta device
    lacks."""
    try:
        with _unlogged():
            return count(*arguments)
    except Exception:  # of any type, from inside the network
        return math.nan


@contextmanager
def _unlogged() -> Iterator[None]:
    """torch logs errors of tensors without data, also those that are caught."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    heard, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = heard


def _forward(model: nn.Module, batch_size: int) -> float:
    """Bytes that a forward pass allocates beside the weights."""
    with without_data(model) as (hollow, memory), torch.no_grad():
        held = memory.peak
        hollow(**without_values(example_inputs(model, batch_size), _dtype(hollow)))
        return float(memory.peak - held)


def _training(model: nn.Module, batch_size: int, recomputes: bool) -> float:
    """Bytes that a forward and a backward pass allocate beside weights and gradients, in the model's own dtype."""
    with without_data(model) as (hollow, memory), recomputing(hollow, recomputes):
        hollow.requires_grad_(True)
        held = memory.peak
        outputs = tree_leaves(hollow(**without_values(example_inputs(model, batch_size), _dtype(hollow))))
        losses = [each.float().square().mean() for each in outputs if isinstance(each, Tensor) and each.requires_grad]
        for parameter in hollow.parameters():  # which would keep its gradient
            parameter.register_post_accumulate_grad_hook(_forget)
        torch.stack(losses).sum().backward()
        return float(memory.peak - held)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _bytes_of(model: nn.Module) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())))
