"""What a run will make of the model, found before long work starts: reachable target, predicted size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..base.units import format_count
from ..compensation import Price
from ..criteria import criterion_named
from ..criteria.criterion import FORWARD_SHARE, Memory
from ..evaluation import forward_passes
from ..models.network import example_inputs
from ..recovery.reading import contents_of, tuples_for
from ..results import CutResult
from ..schedules import CutConfig, Target, no_scores, one_shot
from ..teacher.book import tuple_bytes
from .subject import Subject
from .timing import Work, format_duration, predict_seconds, price_of_compensation, seconds_per_pair


def plan_cut(subject: Subject, target: Target, cut: CutConfig) -> CutResult | None:
    """Plan the cut with equal scores; None for a target of latency or quality, which only measuring can plan.

    Widths under local allocation do not depend on scores; under global allocation the plan is an estimate.

    Raises:
        TargetError: the target is out of reach.
    """
    if target.metric == "latency" or target.is_quality:
        return None
    structure = subject.structure
    found = one_shot(subject.model, structure, target, no_scores(structure), cut, example_inputs(subject.model, 1))[1]
    return replace(found, excluded=subject.excluded)


@dataclass(frozen=True)
class Plan:
    """What a function will make of a model, and how long it will take; it prints as lines.

    Attributes:
        device: that it was predicted for.
        seconds: predicted, by stage.
        target: as it was asked for; None where nothing is cut.
        cut: what it comes to; None where that is found by measuring.
        removable: widths and blocks that the model has.
        allocation: of the cut.
        memory: that a ranking by gradients takes, at most and for sums of gradients alone, and how to do with less.
        metrics: predicted seconds of each metric of the evaluation, and of the samples, for a model of the dense size.
        compensation: what refitting what stays takes.
        book: tuples of the teacher's book, held out ones too, and the bytes that they take.
    """

    device: str
    seconds: Mapping[str, float]
    target: str | None = None
    cut: CutResult | None = None
    removable: tuple[int, int] = (0, 0)
    allocation: str = "local"
    memory: Memory | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    compensation: Price | None = None
    book: tuple[int, int] | None = None

    def __str__(self) -> str:
        lines = [] if self.target is None else [f"target     {self.target}", *self._size()]
        lines += [f"{stage:10} about {format_duration(each)} on {self.device}" for stage, each in self.seconds.items()]
        if len(self.seconds) > 1:
            lines.append(f"{'in all':10} about {format_duration(sum(self.seconds.values()))}")
        if self.metrics:
            each = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in self.metrics.items())
            lines.append(f"{'evaluation':10} of one dense model about {each}")
        if self.memory is not None:
            lines.append(f"{'memory':10} about {format_count(self.memory.peak)}B to rank")
            if self.memory.sums > self.memory.peak / 4:
                sums = format_count(self.memory.sums)
                lines.append(f"{'':10} of it {sums}B for sums of gradients; none with {self.memory.hint}")
        if self.compensation is not None:
            count, size = len(self.compensation.layers), format_count(self.compensation.bytes)
            lines.append(f"{'refit':10} {count} layers, about {size}B of memory beside both models")
            lines += [f"{'':10} not {name}: {why}" for name, why in self.compensation.left.items()]
        if self.book is not None:
            tuples, held = self.book
            lines.append(f"{'book':10} {tuples:,} tuples, {format_count(held)}B in memory or on disk")
        return "\n".join(lines)

    def _size(self) -> Iterator[str]:
        cut = self.cut
        if cut is None:
            yield "cut        found by measuring during the run"
            return
        sizes = {"MACs": (cut.before.macs, cut.after.macs), "parameters": (cut.before.parameters, cut.after.parameters)}
        for label, (before, after) in sizes.items():
            yield f"{label:10} {format_count(before)} -> {format_count(after)} ({100 * after / before:.1f}%)"
        widths, blocks = self.removable
        narrowed = sum(dim.kept < dim.units for dim in cut.dims.values())
        yield f"cut        {narrowed} of {widths} widths, {len(cut.removed_blocks)} of {blocks} blocks"
        if cut.excluded:
            yield f"whole      {', '.join(cut.excluded)}"
        if self.allocation != "local":
            yield f"           ({self.allocation} allocation: the ranking will change these numbers)"


def plan_of(subject: Subject, work: Work, target: Target | None = None, cut: CutConfig | None = None) -> Plan:
    """The plan of `work` on the subject, timed by a few measured steps of its model."""
    second = seconds_per_pair(subject)
    seconds = predict_seconds(subject, work, second)
    passes = {} if work.evaluation is None else forward_passes(work.evaluation, subject.process)
    metrics = {name: count * FORWARD_SHARE * second for name, count in passes.items()}
    removable = len(subject.structure.dims), len(subject.structure.blocks)
    allocation = "local" if cut is None else cut.allocation
    asked = None if target is None else str(target)
    refit, memory = price_of_compensation(subject, work), _memory(subject, work)
    book = _book(subject, work)
    return Plan(str(subject.device), seconds, asked, work.plan, removable, allocation, memory, metrics, refit, book)


def _book(subject: Subject, work: Work) -> tuple[int, int] | None:
    """The tuples of the teacher's book, and their bytes."""
    if work.book is None:
        return None
    config, recovery = work.book
    tuples = tuples_for(recovery, config) + config.held_out
    return tuples, tuples * tuple_bytes(subject.model, contents_of(recovery, {}), config)


def _memory(subject: Subject, work: Work) -> Memory | None:
    """What the ranking takes, where that is far more than the model itself does."""
    if work.ranking is None:
        return None
    name, config = work.ranking
    chosen = criterion_named(name)
    config = chosen.configured(config)
    return None if chosen.memory is None else chosen.memory(subject.model, subject.process, config, config.options)
