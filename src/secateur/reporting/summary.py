"""A run in plain language: a one-sentence verdict, key numbers, then what was asked, reached and lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..base.units import format_count, number_of
from ..results import Change, Evaluation, ModelResult, to_json
from ..results.numbers import format_change, format_measured, format_number, format_seconds, percent
from ..results.verdicts import Kind
from .classes import class_scores, collapsed_classes
from .run import Run

Badge = Literal["better", "worse", "same", ""]
BADGES: dict[Kind, Badge] = {"better": "better", "worse": "worse", "unclear": "same", "different": ""}
QUALITY = ("fd", "kid", "denoising_loss")  # the verdict on quality uses the first that was compared


@dataclass(frozen=True)
class Card:
    """One key number: its label, its value, what to compare it with, and whether it is better than the reference's."""

    label: str
    value: str
    note: str
    badge: Badge = ""


@dataclass(frozen=True)
class Summary:
    """The summary of a run.

    Attributes:
        verdict: in one sentence.
        sentences: what was asked, reached and lost.
        cards: key numbers.
        not_measured: the usual measurements that are missing.
        notes: the evaluation's notes.
        numbers: everything as JSON values.
    """

    verdict: str
    sentences: tuple[str, ...]
    cards: tuple[Card, ...]
    not_measured: tuple[str, ...]
    notes: tuple[str, ...]
    numbers: dict[str, Any]


def summarize(run: Run) -> Summary:
    """Summarize the results of a run."""
    quality = run.quality.sentences() if run.quality else ()
    sentences = [*_ranked(run), *quality, *(run.cut.sentences() if run.cut else ()), *_stages(run)]
    sentences += run.compensation.sentences() if run.compensation else ()
    sentences += run.decisions.sentences()
    sentences += [*(run.recorded.sentences() if run.recorded else ()), *run.recovery.sentences()]
    if run.evaluation is not None:
        sentences += [*run.evaluation.sentences(), *_classes(run.evaluation)]
    missing = not_measured(run)
    notes = run.evaluation.all_notes() if run.evaluation else ()
    verdict = verdict_of(run)
    numbers = {
        "command": run.config.begun_by,
        "verdict": verdict,
        "sentences": sentences,
        "not_measured": missing,
        "notes": list(notes),
        "cut": to_json(run.cut),
        "quality": to_json(run.quality),
        "recorded": to_json(run.recorded),
        "compensation": to_json(run.compensation),
        "decisions": to_json(run.decisions),
        "evaluation": _without_rounds(to_json(run.evaluation)),
    }
    return Summary(verdict, tuple(sentences), tuple(_cards(run)), tuple(missing), notes, finite(numbers))


def verdict_of(run: Run) -> str:
    """The run in one sentence: how much smaller, how much faster, how good."""
    found = [_compute(run)] if run.cut is not None or (run.evaluation and run.evaluation.compares) else []
    evaluation = run.evaluation
    if evaluation is None:
        if not found and run.recovery.records:
            return f"Trained for {number_of(run.recovery.steps, 'step')}; speed and quality were not measured."
        if not found:
            return "Ranked; nothing was cut." if run.ranking is not None else "Nothing was measured yet."
        return f"{found[0]}; speed and quality were not measured."
    if not evaluation.compares:
        return f"{_alone(evaluation)}; there was nothing to compare it with."
    found += [*_faster(evaluation), _quality_verdict(evaluation)]
    return f"{', '.join(part for part in found if part)}."


def _compute(run: Run) -> str:
    share = _macs(run).ratio
    if 0.995 <= share <= 1.005:
        return "The same compute"
    names = {"Half": 0.5, "A quarter of": 0.25, "A third of": 1 / 3, "Two thirds of": 2 / 3, "Three quarters of": 0.75}
    named = next((name for name, value in names.items() if abs(share / value - 1) < 0.02), None)
    return f"{named} the compute" if named else f"{100 * share:.0f}% of the compute"


def _macs(run: Run) -> Change:
    if run.evaluation is not None and run.evaluation.compares:
        return run.evaluation.macs
    assert run.cut is not None
    return Change(run.cut.before.macs, run.cut.after.macs)


def _faster(evaluation: Evaluation) -> list[str]:
    if not evaluation.latency:
        return []
    batch = list(evaluation.latency)[-1]
    ratio = 1 / evaluation.latency[batch].ratio
    if not evaluation.clear_time(batch):
        return ["no measurable change of speed"]
    factor = max(ratio, 1 / ratio)
    shown = f"{factor:.1f}" if factor >= 1.05 else f"{factor:.2f}"  # "1.0× faster" would contradict itself
    return [f"{shown}× {'faster' if ratio > 1 else 'slower'}"]


def _quality_verdict(evaluation: Evaluation) -> str:
    reference, final = evaluation.reference, evaluation.final_name
    for key in QUALITY:
        kind = evaluation.verdict(key, final, reference)
        if kind is None:
            continue
        label = evaluation.metrics[key].label
        if kind == "unclear":
            return f"{label} not distinguishable from {reference}"
        numbers = f"{format_number(evaluation.final[key].value)} against {format_number(evaluation.dense[key].value)}"
        return f"{label} measurably {kind} than {reference} ({numbers})"
    return "quality not compared"


def _alone(evaluation: Evaluation) -> str:
    model = evaluation.final
    quality = [
        f"{evaluation.metrics[key].label} {format_number(model[key].value)}"
        for key in QUALITY
        if key in model.estimates
    ]
    return ", ".join([f"{format_count(model.parameters)} parameters", f"{format_count(model.macs)} MACs", *quality[:1]])


def _ranked(run: Run) -> list[str]:
    ranking = run.ranking
    if ranking is None or run.cut is not None:
        return []
    took = "" if ranking.seconds is None else f" in {format_seconds(ranking.seconds)}"
    units = sum(map(len, ranking.dims.values()))
    of_dims = f"{number_of(units, 'unit')} of {number_of(len(ranking.dims), 'dim')}"
    what = of_dims if units else number_of(len(ranking.blocks), "block")
    return [f"Ranked {what} by {ranking.criterion}{took}; nothing was cut."]


def _stages(run: Run) -> list[str]:
    decisions, trained = run.decisions, run.recovery.steps
    if decisions.blocks:
        seconds = format_seconds(sum(stage.seconds for stage in decisions.blocks))
        count, removed = len(decisions.blocks), number_of(len(decisions.removed_blocks), "block")
        return [f"{number_of(count, 'decision')} during recovery removed {removed}; deciding took {seconds}."]
    if not decisions.soft:
        return []
    stages, step = number_of(len(decisions.soft), "stage"), decisions.soft[-1].step
    steps = number_of(step, "step")
    if decisions.removal_step is None:
        return [f"Pruning progressively: {stages} in {steps} so far, masked units are still there."]
    seconds = format_seconds(sum(stage.seconds for stage in decisions.soft))
    when = f"the first {step:,} of {number_of(trained, 'step')}" if trained > step else steps
    return [f"Pruned progressively over {stages} in {when}; deciding what to remove took {seconds}."]


def _classes(evaluation: Evaluation) -> list[str]:
    if evaluation.dense.per_class is None or evaluation.final.per_class is None:  # some of its samples diverged
        return []
    scores = class_scores(evaluation)
    lost = collapsed_classes(scores)
    if not lost:
        return []
    found, score = lost[0]
    before, after = found.value(evaluation.reference, score), found.value(found.final, score)
    fall = f"{score} {before:.2f} → {after:.2f} with {number_of(found.models[found.final].samples, 'sample')}"
    return [
        f"{len(lost)} of {len(scores)} classes lost a quarter or more of {evaluation.reference}'s coverage or "
        f"diversity; most of all {found.name} ({fall})."
    ]


def not_measured(run: Run) -> list[str]:
    """The usual measurements that the run does not have."""
    evaluation = run.evaluation
    if evaluation is None:
        return ["speed and quality (the run has no evaluation)"]
    models = list(evaluation.models.values())

    def measured(key: str, among: list[ModelResult]) -> bool:
        return bool(among) and all(key in model.estimates for model in among)

    checks: dict[str, bool] = {
        "latency": all(model.latency for model in models),
        "Fréchet distance": measured("fd", models),
        evaluation.loss: measured("denoising_loss", models),
        f"SSIM to {evaluation.reference if evaluation.compares else 'a dense reference'}": measured("ssim", models[1:]),
    }
    return [name for name, there in checks.items() if not there]


def _cards(run: Run) -> list[Card]:
    evaluation = run.evaluation
    if evaluation is None or not evaluation.compares:
        sizes = (("Compute", "macs", "MACs"), ("Parameters", "parameters", "parameters")) if run.cut else ()
        return [_size_card(label, unit, lambda size, k=key: getattr(size, k), run) for label, key, unit in sizes]  # type: ignore[misc]
    cards = [
        _amount_card("Compute", "MACs", evaluation.macs),
        _amount_card("Parameters", "parameters", evaluation.parameters),
    ]
    if evaluation.latency:
        batch = list(evaluation.latency)[-1]
        times = evaluation.latency[batch]
        note = f"{format_change(times.before, times.after)} ms a call at batch {batch}"
        badge: Badge = "same" if not evaluation.clear_time(batch) else "better" if times.ratio < 1 else "worse"
        cards.append(Card("Speed", f"{1 / times.ratio:.2f}×", note, badge))
    quality = [key for key in ("fd", "kid", "denoising_loss", "ssim") if key in evaluation.final.estimates]
    shown = quality[:1] if quality[:1] != ["ssim"] else []
    return cards + [_metric_card(evaluation, key) for key in (*shown, *(["ssim"] if "ssim" in quality else []))]


def _size_card(label: str, unit: str, size: Callable[[Any], float], run: Run) -> Card:
    assert run.cut is not None
    return _amount_card(label, unit, Change(size(run.cut.before), size(run.cut.after)))


def _amount_card(label: str, unit: str, change: Change) -> Card:
    badge: Badge = "same" if abs(change.ratio - 1) < 0.005 else "better" if change.ratio < 1 else "worse"
    note = f"{format_count(change.after)} of {format_count(change.before)} {unit} stay"
    return Card(label, percent(change.after, change.before), note, badge)


def _metric_card(evaluation: Evaluation, key: str) -> Card:
    metric, final, dense = evaluation.metrics[key], evaluation.final[key], evaluation.dense
    direction = f"{metric.better} is better" if metric.better else ""
    kind = evaluation.verdict(key, evaluation.final_name, evaluation.reference)
    if key in dense.estimates:
        note = f"{evaluation.reference} {format_measured(dense[key].value, dense[key].std)}; {direction}"
        return Card(
            metric.label[:1].upper() + metric.label[1:], format_number(final.value), note, BADGES[kind] if kind else ""
        )
    between = [f"{name} {format_number(model[key].value)}" for name, model in evaluation.models.items()
               if key in model.estimates and name != evaluation.final_name]  # fmt: skip
    label = f"{metric.label} to {evaluation.reference}"
    return Card(
        label, format_number(final.value), "; ".join([*between, "1 is identical" if key == "ssim" else direction])
    )


def _without_rounds(evaluation: Any) -> Any:
    """Leave out the time of every round, and the layers, which are in the tables."""
    if evaluation is None:
        return None
    for model in evaluation["models"].values():
        del model["layers"]
        for kind in ("latency", "compiled_latency"):
            for timing in model[kind].values():
                del timing["times_ms"]
    return evaluation


def finite(value: Any) -> Any:
    """The same, with None in place of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
