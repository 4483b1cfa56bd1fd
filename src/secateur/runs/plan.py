"""The plan of a run, made before long work starts: reachable target, predicted size, time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..base.distributed import process_count
from ..base.units import format_count, number_of
from ..compensation import Price
from ..criteria.criterion import FORWARD_SHARE, Memory
from ..evaluation import forward_passes
from ..recovery.reading import book_size
from ..results import CutResult
from ..schedules import CutConfig, Target, no_scores, one_shot
from .memory import Passes, peak_bytes
from .subject import Subject
from .timing import (
    Work,
    format_duration,
    predict_flops,
    predict_seconds,
    price_of_compensation,
    savings,
    seconds_per_pair,
)

SHOWN_SAVINGS = 2


def plan_cut(subject: Subject, target: Target, cut: CutConfig) -> CutResult | None:
    """Plan the cut with equal scores; None for a target of latency or quality, which must be measured.

    Widths under local allocation do not depend on scores; under global allocation the plan is an estimate.

    Raises:
        TargetError: the target is out of reach.
    """
    if target.metric == "latency" or target.is_quality:
        return None
    structure = subject.structure
    found = one_shot(subject.model, structure, target, no_scores(structure), cut)[1]
    return replace(found, excluded=subject.excluded)


@dataclass(frozen=True)
class Plan:
    """The size that a function will reach, and the time and memory that it will take; prints as lines.

    Attributes:
        device: the device that it was predicted for.
        seconds: predicted, by stage; empty on the meta device, where nothing can be timed.
        flops: predicted, by stage, 2 for a multiply-accumulate.
        peak: peak bytes of memory on the device, by stage, without those of libraries.
        target: as the user gave it; None if nothing is cut.
        cut: the planned cut; None if it is found by measuring.
        removable: number of widths and of blocks of the model.
        allocation: that of the cut.
        memory: memory that a ranking by gradients takes for sums of gradients, and how to reduce it.
        metrics: predicted seconds of each metric of the evaluation, and of the samples, for a model of the dense size.
        compensation: time and memory of the refit.
        book: number of tuples in the teacher's book, held-out ones included, and their bytes.
        savings: the options that save most time, and the seconds that each saves.
        why_book: why there is a book although nobody asked for one.
        processes: how many share the work, each on its own device.
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
    flops: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, float] = field(default_factory=dict)
    savings: Mapping[str, float] = field(default_factory=dict)
    why_book: str | None = None
    processes: int = 1

    def __str__(self) -> str:
        lines = [] if self.target is None else [f"target     {self.target}", *self._size()]
        lines += [f"{stage:10} about {format_duration(each)} on {self.device}" for stage, each in self.seconds.items()]
        if len(self.seconds) > 1:
            lines.append(f"{'in all':10} about {format_duration(sum(self.seconds.values()))}")
        if self.savings:
            said = " or ".join(f"{option} (saves {format_duration(each)})" for option, each in self.savings.items())
            lines.append(f"{'shorter':10} by {said}")
        if self.metrics:
            each = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in self.metrics.items())
            lines.append(f"{'evaluate':10} a model of the dense size: {each}")
        if not self.seconds:
            lines += [f"{stage:10} about {format_count(each)} FLOPs" for stage, each in self.flops.items()]
        lines += self._memory()
        if self.compensation is not None:
            count, size = len(self.compensation.layers), format_count(self.compensation.bytes)
            lines.append(f"{'refit':10} {number_of(count, 'layer')}, about {size}B of memory beside both models")
            lines += [f"{'':10} not {name}: {why}" for name, why in self.compensation.left.items()]
        if self.book is not None:
            tuples, held = self.book
            lines.append(f"{'book':10} {number_of(tuples, 'tuple')}, {format_count(held)}B in memory or on disk")
        if self.why_book is not None:
            lines.append(f"{'':10} recorded {self.why_book}")
        return "\n".join(lines)

    __repr__ = __str__

    def _memory(self) -> Iterator[str]:
        if self.peak:
            most = max(self.peak, key=lambda stage: self.peak[stage])
            others = [f"{stage} {format_count(each)}B" for stage, each in self.peak.items() if stage != most]
            also = f" ({', '.join(others)})" if others else ""
            where = f" on each of {self.processes} devices" if self.processes > 1 else ""
            yield f"{'memory':10} about {format_count(self.peak[most])}B at most{where}, to {most}{also}"
        if self.memory is not None and self.memory.sums > self.memory.peak / 4:
            yield (
                f"{'':10} {format_count(self.memory.sums)}B of it for sums of gradients to rank; none with "
                f"{self.memory.hint}"
            )

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
        left = f"{len(cut.removed_blocks)} of {number_of(blocks, 'block')}"
        yield f"cut        {narrowed} of {number_of(widths, 'width')}, {left}"
        if cut.excluded:
            yield f"not cut    {', '.join(cut.excluded)}"
        if self.allocation.startswith("global"):
            yield f"           ({self.allocation} allocation: the ranking will change these numbers)"


def plan_of(
    subject: Subject,
    work: Work,
    target: Target | None = None,
    cut: CutConfig | None = None,
    why_book: str | None = None,
) -> Plan:
    """The plan of `work` on the subject, timed by a few measured steps of its model, unless that is on the meta
    device."""
    second = 0.0 if subject.device.type == "meta" else seconds_per_pair(subject)
    refit = price_of_compensation(subject, work)
    seconds = predict_seconds(subject, work, second, refit) if second else {}
    calls = {} if work.evaluation is None else forward_passes(work.evaluation, subject.process)
    metrics = {name: count * FORWARD_SHARE * second for name, count in calls.items() if second}
    removable = len(subject.structure.dims), len(subject.structure.blocks)
    allocation = "local" if cut is None else cut.allocation
    asked = None if target is None else str(target)
    passes = Passes(subject)
    return Plan(
        str(subject.device),
        seconds,
        asked,
        work.plan,
        removable,
        allocation,
        passes.ranking(work),
        metrics,
        refit,
        _book(subject, work),
        predict_flops(subject, work, refit),
        peak_bytes(subject, work, passes, refit),
        dict(list(savings(work, seconds, subject.process).items())[:SHOWN_SAVINGS]) if seconds else {},
        why_book,
        process_count(),
    )


def _book(subject: Subject, work: Work) -> tuple[int, int] | None:
    """Number of tuples of the teacher's book, and their bytes."""
    if work.book is None:
        return None
    config, recovery = work.book
    return book_size(subject.model, recovery, config, subject.device)
