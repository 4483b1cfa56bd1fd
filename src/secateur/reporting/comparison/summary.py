"""What a comparison found, in plain language: the best at each target, and what is too close to call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...base.units import number_of
from ...results import Mean, Metric, Table
from ...results.cut import goal_in_words
from ...results.means import tied
from ...results.numbers import Value, format_number
from .entries import Entry
from .groups import Group, amount_of

PREFERRED = ("fd", "denoising_loss")  # the metric to compare by, where all runs have it
MOST_METRICS = 4
SHOWN = ("fd", "kid", "ssim", "lpips", "precision", "recall", "denoising_loss")
STATUSES = ("done", "failed", "skipped", "waiting", "unreadable")


@dataclass(frozen=True)
class Comparison:
    """Runs in groups, and the metric that they are compared by; empty if no metric was measured."""

    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    metrics: dict[str, Metric]
    judged_by: str

    @property
    def measured(self) -> list[Group]:
        """Groups that have a value of the metric they are compared by."""
        return [group for group in self.groups if group.metric(self.judged_by) is not None]

    @property
    def lower_is_better(self) -> bool:
        return not self.judged_by or self.metrics[self.judged_by].better != "higher"

    def quality(self, group: Group) -> Mean:
        """The value of that metric for a `measured` group."""
        mean = group.metric(self.judged_by)
        assert mean is not None
        return mean


def compare(entries: Sequence[Entry], groups: Sequence[Group]) -> Comparison:
    """Choose the metric to compare by: the first of FD and denoising loss that all runs have, else the most
    frequent."""
    metrics: dict[str, Metric] = {}
    counts: Counter[str] = Counter()
    for entry in entries:
        if entry.run is not None and entry.run.evaluation is not None and entry.final is not None:
            metrics = {**entry.run.evaluation.metrics, **metrics}
            counts.update(entry.final.estimates.keys())
    directed = [key for key in (*PREFERRED, *metrics) if key in metrics and metrics[key].better]
    most = max((counts[key] for key in directed), default=0)
    judged_by = next((key for key in directed if counts[key] == most), "")
    return Comparison(tuple(entries), tuple(groups), metrics, judged_by)


def sentences_of(found: Comparison) -> list[str]:
    """Sentences: how many runs there are, which is best at each target, and which are tied with it."""
    counts = Counter(entry.status for entry in found.entries)
    stand = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    models = sorted({entry.facets["model"] for entry in found.entries if entry.facets.get("model")})
    of = f" of {models[0]}" if len(models) == 1 else ""
    sentences = [f"{number_of(len(found.entries), 'run')}{of}: {stand}."]
    dense = dense_mean(found)
    if dense is not None:
        sentences.append(f"{sentence_case(_judge(found))} of the dense model: {format_number(dense.value)}.")
    for target in dict.fromkeys(group.target for group in found.measured):
        sentences.append(_best(found, target))
    return sentences


def sentence_case(text: str) -> str:
    """`text` with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def _best(found: Comparison, target: str) -> str:
    groups = ordered(found, target)
    best, *others = groups
    quality = found.quality(best)
    at = f"At {goal_in_words(target)}, the best" if target else "The best"
    level = "lowest" if found.lower_is_better else "highest"
    sentence = f"{at} of {len(groups)} by {_judge(found)} is {best.method}: {quality}{_over(quality)}, the {level}"
    if len(groups) == 1:
        at = f"At {goal_in_words(target)}" if target else "Measured"
        return f"{at}: {_judge(found)} {quality}{_over(quality)} ({best.method})."
    close = [group.method for group in others if tied(quality, found.quality(group))]
    if not any(found.quality(group).error for group in groups):
        return f"{sentence}; how sure that is was not measured (more seeds would tell)."
    if not close:
        return f"{sentence}, by more than the uncertainty."
    return f"{sentence}; tied with it, within the uncertainty: {', '.join(close)}."


def ordered(found: Comparison, target: str) -> list[Group]:
    """The measured groups of one target, the best first."""
    groups = [group for group in found.measured if group.target == target]
    return sorted(groups, key=lambda group: found.quality(group).value * (1 if found.lower_is_better else -1))


def _over(mean: Mean) -> str:
    return f" over {mean.count} seeds" if mean.count > 1 else ""


def _judge(found: Comparison) -> str:
    return found.metrics[found.judged_by].label if found.judged_by else ""


def dense_mean(found: Comparison) -> Mean | None:
    """The compared metric of the dense model, if all runs have the same one."""
    values = [
        entry.dense.estimates[found.judged_by].value
        for entry in found.entries
        if entry.dense is not None and found.judged_by in entry.dense.estimates
    ]
    one_model = len({entry.facets.get("model") for entry in found.entries if entry.dense}) == 1
    return Mean(values[0]) if values and one_model and found.judged_by else None


def shown_metrics(found: Comparison) -> list[str]:
    """The quality columns: the metrics asked for most; the others are in the table of all runs."""
    return [key for key in SHOWN if key in found.metrics][:MOST_METRICS]


def latency_batches(found: Comparison) -> list[str]:
    """Batch sizes at which final models were timed beside the dense one."""
    finals = [entry.final for entry in found.entries if entry.final is not None and entry.dense is not None]
    return list(dict.fromkeys(batch for model in finals for batch in model.latency))


def comparison_table(found: Comparison) -> Table:
    """One line for each group: size, cost and quality; mean ± deviation over seeds."""
    metrics, batches = shown_metrics(found), latency_batches(found)[-1:]
    several = len({group.target for group in found.groups}) > 1
    columns = (
        "method",
        *(["target"] if several else []),
        "runs",
        "MACs",
        "parameters",
        *(f"latency, batch {batch} (% of dense)" for batch in batches),
        *(found.metrics[key].label for key in metrics),
        "recovery (s)",
    )
    rows = []
    for group in _sorted(found):
        counted: list[Value] = [_counted(group.amount(key)) for key in ("macs", "parameters")]
        timed: list[Value] = [_text(group.amount(f"latency_{batch}")) for batch in batches]
        values: list[Value] = [_text(group.metric(key)) for key in metrics]
        runs = f"{len(group.done)} of {len(group.entries)}" if len(group.done) < len(group.entries) else len(group.done)
        target = [group.target] if several else []
        rows.append((group.method, *target, runs, *counted, *timed, *values, _text(group.amount("recovery_seconds"))))
    dense = _dense_row(found, metrics, batches, several)
    return Table(columns, (dense, *rows) if dense else tuple(rows))


def _dense_row(
    found: Comparison, metrics: Sequence[str], batches: Sequence[str], several: bool
) -> tuple[Value, ...] | None:
    """The dense model's line, if all runs have the same one."""
    models = [entry.dense for entry in found.entries if entry.dense is not None]
    if not models or len({entry.facets.get("model") for entry in found.entries if entry.dense}) > 1:
        return None
    model = models[0]
    values: list[Value] = [str(model[key]) if key in model.estimates else None for key in metrics]
    costs: list[Value] = [model.macs, model.parameters, *["100"] * len(batches)]
    return ("dense", *([None] if several else []), None, *costs, *values, None)


def _sorted(found: Comparison) -> list[Group]:
    """By target, the best first, those without a value last."""
    targets = dict.fromkeys(group.target for group in found.groups)
    groups = [group for target in targets for group in ordered(found, target)]
    return [*groups, *[group for group in found.groups if group not in groups]]


def _counted(mean: Mean | None) -> Value:
    return None if mean is None else round(mean.value)


def _text(mean: Mean | None) -> Value:
    return None if mean is None else str(mean)


def run_table(found: Comparison) -> Table:
    """One line for each run; for one that did not finish, the reason."""
    metrics, batches = list(found.metrics), latency_batches(found)
    facets = list(dict.fromkeys(key for entry in found.entries for key in entry.facets))
    columns = (
        "run", *facets, "seed", "status", "reason", "MACs", "parameters",
        *(f"latency, batch {batch} (% of dense)" for batch in batches), *(found.metrics[key].label for key in metrics),
        "recovery (s)", "whole run (s)",
    )  # fmt: skip
    rows = []
    for entry in found.entries:
        costs: list[Value] = [
            amount_of(entry, key) for key in ("macs", "parameters", *(f"latency_{one}" for one in batches))
        ]
        estimates = {} if entry.final is None else entry.final.estimates
        values: list[Value] = [estimates[key].value if key in estimates else None for key in metrics]
        chosen = [entry.facets.get(key, "") for key in facets]
        ends = (entry.recovery_seconds, entry.trial.seconds if entry.trial else None)
        rows.append((entry.name, *chosen, entry.seed, entry.status, entry.reason, *costs, *values, *ends))
    return Table(columns, tuple(rows))


def cautions(found: Comparison) -> list[str]:
    """Differences between the runs that make their numbers hard to compare, as sentences."""
    runs = [entry.run for entry in found.entries if entry.run is not None]
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    checks: dict[str, list[Any]] = {
        "the device": [one.device for one in evaluations],
        "the number of samples": [one.fidelity.samples for one in evaluations if one.fidelity],
        "the features of the Fréchet distance": [one.fidelity.metric for one in evaluations if one.fidelity],
        "the sampler's steps": [one.config.get("num_inference_steps") for one in evaluations],
        "the data": [run.config.data or None for run in runs],
        "the dense model": [run.config.model or None for run in runs],
    }
    found_differences = [
        f"{name} ({', '.join(dict.fromkeys(map(str, values)))})"
        for name, values in checks.items()
        if len(set(map(str, values))) > 1
    ]
    differing = [f"Not the same in all runs: {'; '.join(found_differences)}. Compare with care."]
    notes = dict.fromkeys(note for one in evaluations for note in one.all_notes())
    return [*(differing if found_differences else []), *notes]
