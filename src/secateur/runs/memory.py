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
from torch import nn

from ..compensation import Price
from ..criteria import criterion_named
from ..criteria.criterion import Memory
from ..criteria.memory import peak_of_batch, without_data, without_values
from ..evaluation import EvaluationConfig
from ..models.network import example_inputs
from ..models.registry import describe
from ..recovery import RecoveryConfig
from ..recovery.memory import recovery_memory
from ..results import CutResult
from ..structure import remove
from ..structure.cost import skeleton
from ..structure.repeats import Repeats, left_out, once
from .subject import Subject
from .timing import Work, planned_cut, price_of_compensation


def peak_bytes(
    subject: Subject, work: Work, passes: Passes | None = None, refit: Price | None = None
) -> dict[str, float]:
    """Peak bytes of each stage on the model's device, for a run in a folder (one in memory keeps more models).

    Inputs, libraries and memory that the allocator reserves are not included. A stage whose passes cannot be counted
    on the meta device is left out.
    """
    passes = passes or Passes(subject)
    dense, pruned, stages = _bytes_of(subject.model), pruned_to(subject, work.plan), {}
    cut = _bytes_of(pruned)
    if work.ranking is not None:
        ranked = passes.ranking(work)
        stages["rank"] = dense + passes.forward(work.ranking[1].batch_size) if ranked is None else float(ranked.peak)
    if (refit := refit or price_of_compensation(subject, work)) is not None:
        at_once = 0 if work.compensation is None else work.compensation.batch_size
        stages["compensate"] = dense + cut + max(float(refit.bytes), passes.forward(at_once))
    if work.book is not None:
        stages["record"] = dense + passes.forward(work.book[0].batch_size)
    if work.recovery is not None:
        stages["recover"] = passes.recovery(work, work.recovery, pruned)
    if work.evaluation is not None:
        beside = sum(map(_bytes_of, work.copies)) + (0 if work.reference is None else _bytes_of(work.reference))
        at_once = _sampled_at_once(work.evaluation)
        stages["evaluate"] = dense + work.cut_models * cut + beside + passes.forward(at_once)
    return {stage: each for stage, each in stages.items() if not math.isnan(each)}


def pruned_to(subject: Subject, plan: CutResult | None) -> nn.Module:
    """The model after the planned cut, without values; the dense one, if nothing is cut or that is not known."""
    hollow = skeleton(subject.model)
    return hollow if plan is None else remove(hollow, describe(hollow), planned_cut(subject, plan))


def _sampled_at_once(config: EvaluationConfig) -> int:
    return min(config.batch_size, config.num_images) * (1 if config.guidance_scale == 1 else 2)


class Passes:
    """Memory that passes of a subject's model allocate; each is counted once."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._hollow = subject, skeleton(subject.model)
        self._rankings: dict[str, Memory | None] = {}
        self._recoveries: dict[str, float] = {}
        forward = functools.cache(functools.partial(_forward, self._hollow))
        self.forward = functools.cache(functools.partial(_or_unknown, peak_of_batch, self._hollow, forward))

    def recovery(self, work: Work, config: RecoveryConfig, pruned: nn.Module) -> float:
        """Peak bytes of the recovery of the pruned model, or of a copy of the dense one if that is pruned on the way.

        A book replaces the teacher; a schedule needs the dense model in any case.
        """
        late, reads = work.pruned_late is not None, work.reads or work.book is not None
        student = self._hollow if late else pruned
        shapes = [tuple(parameter.shape) for parameter in student.parameters()]
        key = repr((shapes, late, reads, replace(config, seed=0)))
        if key not in self._recoveries:
            teacher = work.teacher or self._hollow
            self._recoveries[key] = _or_unknown(_recovery, self._subject, teacher, student, config, late, reads)
        return self._recoveries[key]

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
                    self._rankings[key] = chosen.memory(self._hollow, subject.process, config, config.options)
        return self._rankings[key]


def _recovery(
    subject: Subject, teacher: nn.Module, student: nn.Module, config: RecoveryConfig, late: bool, reads: bool
) -> float:
    taken = recovery_memory(student, teacher, subject.process, config, subject.device, by_book=reads)
    return float(taken.total + (_bytes_of(subject.model) if late and not taken.teacher else 0))


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


def _forward(model: nn.Module, batch_size: int) -> int:
    """Bytes that a forward pass allocates beside the weights."""
    structure, inputs = describe(model), example_inputs(model, batch_size)

    def count(found: Repeats) -> int:
        with without_data(model) as (hollow, memory), torch.no_grad(), left_out(hollow, structure, found, memory):
            held = memory.peak
            hollow(**without_values(inputs, _dtype(hollow)))
            return memory.peak - held

    return once(model, structure, count)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _bytes_of(model: nn.Module) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())))
