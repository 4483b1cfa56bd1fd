"""The numbers of a run in plain language: what was asked, what was reached, what was lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.units import format_count
from ..results.evaluation import Evaluation, ModelResult
from ..schedules.target import format_amount
from .classes import class_scores, collapsed_classes
from .run import Run
from .stages import decisions, removal_step, soft_stages
from .verdicts import verdict_of, verdicts

UNITS = {"macs": " MACs", "params": " parameters", "latency": "", "blocks": " blocks"}


@dataclass(frozen=True)
class Card:
    """One key number: what it is, its value, and what to compare it with."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Summary:
    """Sentences and key numbers for people, `numbers` for programs, and what nobody measured."""

    sentences: tuple[str, ...]
    cards: tuple[Card, ...]
    not_measured: tuple[str, ...]
    notes: tuple[str, ...]
    numbers: dict[str, Any]


def summarize(run: Run) -> Summary:
    """Say what the run's own files say, and no more."""
    sentences = [*_target(run), *_size(run), *_stages(run), *_speed(run.evaluation), *_quality(run.evaluation),
                 *_classes(run.evaluation)]  # fmt: skip
    if not run.cut and run.ranking:
        sentences.insert(0, _ranked(run))
    missing = _not_measured(run)
    numbers = {
        "command": run.config.get("command_line", run.config.get("command")),
        "target": {key: run.cut.get(key) for key in ("target", "metric", "asked", "reached", "dense")},
        "before": run.cut.get("before"),
        "after": run.cut.get("after"),
        "progressive": _progressive(run),
        "decisions": decisions(run.stages) or None,
        "fidelity": {
            "metric": run.evaluation.metric or None,
            "samples": run.evaluation.samples,
            "reference_samples": run.evaluation.reference_samples,
        },
        "models": [dataclasses.asdict(model) for model in run.evaluation.models],
        "sentences": sentences,
        "not_measured": missing,
        "notes": list(run.evaluation.notes),
    }
    return Summary(tuple(sentences), tuple(_cards(run)), tuple(missing), run.evaluation.notes, finite(numbers))


def percent(part: float, whole: float) -> str:
    """A share with one decimal, without a trailing zero."""
    return f"{100 * part / whole:.1f}".removesuffix(".0") + "%" if whole else "–"


def _ranked(run: Run) -> str:
    dims, blocks = run.ranking["dims"], run.ranking.get("blocks", {})
    seconds = run.ranking.get("seconds")
    took = "" if seconds is None else f" in {seconds:.3g} s"
    what = f"{sum(map(len, dims.values()))} units of {len(dims)} dims" if dims else f"{len(blocks)} blocks"
    return f"Ranked {what} by {run.ranking['criterion']}{took}; nothing was cut."


def _target(run: Run) -> list[str]:
    cut = run.cut
    if not cut:
        return []
    metric, unit = cut["metric"], UNITS.get(cut["metric"], "")
    reached, dense = format_amount(metric, cut["reached"]), format_amount(metric, cut["dense"])
    share = percent(cut["reached"], cut["dense"])
    missed = ", more than asked" if cut["reached"] > 1.005 * cut["asked"] else ""
    return [f"Asked for {cut['target']}; reached {share} ({reached} of {dense}{unit}){missed}."]


def _size(run: Run) -> list[str]:
    before, after, metric = run.cut.get("before"), run.cut.get("after"), run.cut.get("metric")
    if not before or not after:
        return []
    kept = []
    if metric != "macs":
        kept.append(f"{percent(after['macs'], before['macs'])} of the MACs")
    if metric != "params":
        parameters = f"{format_count(after['parameters'])} of {format_count(before['parameters'])}"
        kept.append(f"{percent(after['parameters'], before['parameters'])} of the parameters ({parameters})")
    blocks = len(run.cut.get("removed_blocks", []))
    gone = f"; {blocks} block{'s' * (blocks != 1)} removed" if blocks else ""
    return [f"That leaves {' and '.join(kept)}{gone}."]


def _progressive(run: Run) -> dict[str, Any] | None:
    """Stages of soft pruning so far, the steps they took, their seconds, and whether masked units were removed."""
    stages = soft_stages(run.stages)
    if not stages:
        return None
    seconds = sum(stage["seconds"] for stage in stages)
    finished = removal_step(stages) is not None
    return {"stages": len(stages), "steps": stages[-1]["step"], "seconds": seconds, "finished": finished}


def _stages(run: Run) -> list[str]:
    if decided := decisions(run.stages):
        removed = sum(len(stage["removed"]) for stage in decided)
        seconds = sum(stage.get("seconds", 0) for stage in decided)
        return [f"{removed} blocks left by {len(decided)} decisions during recovery, which took {seconds:.3g} s."]
    found = _progressive(run)
    if found is None:
        return []
    stages, steps, last = found["stages"], found["steps"], max((record["step"] for record in run.records), default=0)
    if not found["finished"]:
        return [f"Pruning progressively: {stages} stages in {steps} steps so far, masked units are still there."]
    when = f"the first {steps} of {last:g} steps" if last > steps else f"{steps} steps"
    return [f"Pruned progressively over {stages} stages in {when}; deciding what leaves took {found['seconds']:.3g} s."]


def _speed(evaluation: Evaluation) -> list[str]:
    if len(evaluation.models) < 2:
        return []
    dense, final = evaluation.models[0], evaluation.models[-1]
    shared = [batch for batch in dense.latency if batch in final.latency]
    if not shared:
        return []
    where = f" on {evaluation.device}" if evaluation.device else ""
    found = [_speedup(evaluation, dense, final, batch) for batch in shared]
    return [f"One call of the {final.name} model{where}: {'; '.join(found)}."]


def _speedup(evaluation: Evaluation, dense: ModelResult, final: ModelResult, batch: str) -> str:
    slow, fast = dense.latency[batch], final.latency[batch]
    times = f"({slow.median_ms:.3g} → {fast.median_ms:.3g} ms)"
    if _unclear(evaluation, dense, final, batch):
        return f"no clear difference at batch {batch} {times}"
    ratio = slow.median_ms / fast.median_ms
    change = f"{ratio:.2f}× faster" if ratio > 1 else f"{1 / ratio:.2f}× slower"
    return f"{change} at batch {batch} {times}"


def _unclear(evaluation: Evaluation, dense: ModelResult, final: ModelResult, batch: str) -> bool:
    """Whether the difference may be noise: by its interval, or where none is known because the quartiles overlap."""
    verdict = verdict_of(evaluation, f"latency_{batch}", final.name, dense.name)
    one, other = dense.latency[batch], final.latency[batch]
    overlap = one.lower_ms <= other.upper_ms and other.lower_ms <= one.upper_ms
    return overlap if verdict is None else verdict == "unclear"


def _quality(evaluation: Evaluation) -> list[str]:
    models, sentences = evaluation.models, []
    if frechet := _chain(models, lambda model: model.frechet, ".3g"):
        samples = f"{evaluation.samples} samples" if evaluation.samples else "samples"
        sentences.append(
            f"Fréchet distance {evaluation.metric} of {samples} to real images, lower is better: {frechet}"
            f"{_judged(evaluation, 'fd')}."
        )
    if ssim := _chain(models, lambda model: model.ssim, ".3f"):
        sentences.append(
            f"SSIM to {evaluation.reference} on the same {evaluation.start}, 1 is identical: {ssim}"
            f"{_judged(evaluation, 'ssim')}."
        )
    if loss := _chain(models, lambda model: model.loss, ".4g"):
        sentences.append(f"Mean {evaluation.loss}: {loss}{_judged(evaluation, 'denoising_loss')}.")
    if ftle := _chain(models, lambda model: model.ftle, ".3g"):
        sentences.append(f"Finite-time Lyapunov exponent, how fast the sampler parts neighbouring noises: {ftle}.")
    return sentences


def _judged(evaluation: Evaluation, metric: str) -> str:
    """What the metric says of the final model, where differences have been compared with their uncertainty."""
    final = evaluation.models[-1].name
    words = [verdict.text for verdict in verdicts(evaluation, metric, final)]
    return f"; {final} is {', '.join(words)}" if words else ""


def _classes(evaluation: Evaluation) -> list[str]:
    scores = class_scores(evaluation)
    lost = collapsed_classes(scores)
    if not lost:
        return []
    found, score = lost[0]
    dense, *_, final = found.models.values()
    fall = f"{score} {dense[score]:.2f} → {final[score]:.2f} with {final.get('samples')} samples"
    return [
        f"{len(lost)} of {len(scores)} classes lost a quarter or more of {evaluation.reference}'s coverage or "
        f"diversity; most of all {found.name} ({fall})."
    ]


def _chain(models: Sequence[ModelResult], value: Callable[[ModelResult], float | None], digits: str) -> str:
    measured = [(model.name, value(model)) for model in models]
    return " → ".join(f"{number:{digits}} {name}" for name, number in measured if number is not None)


def _not_measured(run: Run) -> list[str]:
    evaluation = run.evaluation
    if not evaluation.models:
        return ["speed and quality (the run has no evaluation)"]
    compared = evaluation.models[1:]
    checks = {
        "latency": all(model.latency for model in evaluation.models),
        "Fréchet distance": all(model.frechet is not None for model in evaluation.models),
        evaluation.loss: all(model.loss is not None for model in evaluation.models),
        f"SSIM to {evaluation.reference if compared else 'a dense reference'}": (
            bool(compared) and all(model.ssim is not None for model in compared)
        ),
    }
    return [name for name, measured in checks.items() if not measured]


def _cards(run: Run) -> list[Card]:
    before, after = run.cut.get("before"), run.cut.get("after")
    cards = []
    for label, key in (("MACs", "macs"), ("Parameters", "parameters")):
        if before and after:
            note = f"{format_count(after[key])} of {format_count(before[key])}"
            cards.append(Card(f"{label} kept", percent(after[key], before[key]), note))
    models = run.evaluation.models
    if len(models) < 2:
        return cards
    dense, final = models[0], models[-1]
    batches = [batch for batch in dense.latency if batch in final.latency]
    if batches:
        slow, fast = dense.latency[batches[-1]], final.latency[batches[-1]]
        note = f"{slow.median_ms:.3g} → {fast.median_ms:.3g} ms a call"
        note += ", no clear difference" if _unclear(run.evaluation, dense, final, batches[-1]) else ""
        cards.append(Card(f"Speed, batch {batches[-1]}", f"{slow.median_ms / fast.median_ms:.2f}×", note))
    if final.frechet is not None and dense.frechet is not None:
        cards.append(
            Card(run.evaluation.metric, f"{final.frechet:.3g}", f"{dense.name} {dense.frechet:.3g}; lower is better")
        )
    if final.ssim is not None:
        others = "; ".join(f"{model.name} {model.ssim:.2f}" for model in models[1:-1] if model.ssim is not None)
        cards.append(Card(f"SSIM to {dense.name}", f"{final.ssim:.2f}", others or "1 is identical"))
    return cards


def finite(value: Any) -> Any:
    """The same with None for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
