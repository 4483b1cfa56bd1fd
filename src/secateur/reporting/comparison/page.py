"""One self-contained page that compares many runs, with its figures, tables and numbers as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...base.files import atomic_file, write_json, write_text
from ...results import CutResult, Losses, Trials, read_result
from ...results.run_settings import RunSettings, read_settings
from ...results.trials import search_table
from ..files import write_figures, write_tables
from ..grids import comparison_grid
from ..pages import MOST_SAMPLES, as_svgs, captions_of, class_names, link_to, render, strip_of, strips_by_class
from ..plots.comparison import Look, Point, looks, plot_front, plot_lines, plot_widths
from ..plots.curves import series
from ..summary import finite
from .entries import TRIALS, Entry, read_entries
from .groups import Group, amount_of, group_entries
from .search import plot_search, search_sentences
from .summary import (
    Comparison,
    cautions,
    compare,
    comparison_table,
    dense_mean,
    latency_batches,
    run_table,
    sentences_of,
)

MOST_ROWS = 24  # of images; also of columns of widths and of lines in a figure
SAME_NOISE = 0.1  # mean difference of dense images, in [-1, 1], below which they come from the same noise
NOT_SETTINGS = ("command", "command_line", "versions", "device")
SQUARED = "mean squared error"
TRAINING = {  # what recoveries may measure, a figure each: its title, and what is on its axis
    "training": ("Loss on the data", SQUARED),
    "training_teacher": ("Error against the teacher", SQUARED),
    "training_teacher_rms": ("RMS error against the teacher", "root mean squared error"),
    "training_own": ("Recovery loss", "loss"),
}
SECTIONS = {
    "search": "The search",
    "comparison": "Methods",
    "front": "Quality against cost",
    "samples": "Samples",
    "curves": "Widths and recovery",
    "runs": "Runs",
    "limits": "Limits",
    "run": "Reproduce",
}
ALTERNATIVES = {
    "front": "Quality of every method against its MACs",
    "front_latency": "Quality of every method against its measured latency",
    "widths": "Share of every dim that each method keeps",
    "training": "Loss on the data, without the other terms of the recovery's loss, by step, for every method",
    "training_teacher": "Mean squared error against the teacher's output by step of recovery, by method",
    "training_teacher_rms": "Root mean squared error against the teacher's output by step of recovery, by method",
    "training_own": "Recovery loss by step, of an objective with terms of its own, for every method that has it",
    "denoising": "Denoising loss of every final model by timestep",
    "search": "Score of every candidate by the steps of its trial",
}


def write_comparison(out: str | Path, runs: Sequence[str | Path] | None = None) -> Path:
    """Write `report.html`, `report.json`, `plots/` and `tables/` into `out`; returns the page.

    `runs` are folders of runs, sweeps or searches; None takes those of the sweep or search in `out`.

    Raises:
        SecateurError: a folder holds no run, or a damaged one.
    """
    out = Path(out)
    entries = read_entries(runs or [out])
    found = compare(entries, group_entries(entries))
    chosen = [group for group in found.groups if group.done][:MOST_ROWS]
    looked = dict(
        zip(
            [group.label for group in found.groups],
            looks([group.method for group in found.groups], [group.target for group in found.groups]),
            strict=True,
        )
    )
    figures = _figures(found, chosen, looked)
    tables = {"comparison": comparison_table(found), "runs": run_table(found)}
    searched = [entry.trial for entry in entries if entry.trial is not None and entry.trial.rung is not None]
    if searched:
        tables["search"] = search_table(tuple(searched))
        if any(trial.score for trial in searched):
            figures["search"] = plot_search(searched)
    write_figures(out, figures)
    write_tables(out, tables)
    images, labels, apart = _same_noise(chosen)
    if images:
        with atomic_file(out / "plots" / "samples.png") as temporary:
            comparison_grid({name: batch[:MOST_SAMPLES] for name, batch in images.items()}).save(temporary, "PNG")
    config = read_settings(out)
    trials = read_result(Trials, out / TRIALS) if (out / TRIALS).is_file() else None
    sentences = search_sentences(trials) or sentences_of(found)
    write_json(out / "report.json", finite(_numbers(found, config, sentences)))
    first = next((entry.run for entry in found.entries if entry.run is not None and entry.run.images), None)
    captions, caption_kind = ((), "") if first is None else captions_of(first)
    names = {} if first is None else class_names(first.evaluation)
    there = {
        "search": "search" in tables,
        "front": "front" in figures,
        "samples": bool(images),
        "curves": bool({"widths", "denoising", *TRAINING} & figures.keys()),
    }
    page = render(
        "comparison.html",
        title=_title(found, config),
        sentences=sentences,
        verdict=next((sentence for sentence in sentences if " best of " in sentence), sentences[0]),
        figures=as_svgs(figures, ALTERNATIVES),
        tables=tables,
        courses=[name for name in TRAINING if name in figures],
        judged=found.metrics[found.judged_by] if found.judged_by else None,
        sections=[(key, name) for key, name in SECTIONS.items() if there.get(key, True)],
        strips=[
            strip_of(name, batch, captions, key=f"sample-{place}") for place, (name, batch) in enumerate(images.items())
        ],
        caption_kind=caption_kind,
        classes=strips_by_class(images, labels, names),
        reconstructions=any(
            entry.run is not None and entry.run.evaluation is not None and entry.run.evaluation.reconstructions
            for entry in found.entries
        ),
        apart=apart,
        runs=[_described(entry, out) for entry in found.entries],
        cautions=cautions(found),
        metrics=found.metrics,
        command=config.command_line,
        settings=json.dumps({key: value for key, value in config.items() if key not in NOT_SETTINGS}, indent=2,
                            ensure_ascii=False),
        facts={key: config[key] for key in ("model", "data", "device") if config.get(key)},
        versions=config.versions or _shared_versions(found),
        differing=_differing(found),
        hidden=len([group for group in found.groups if group.done]) - len(chosen),
    )  # fmt: skip
    return write_text(out / "report.html", page)


def _title(found: Comparison, config: RunSettings) -> str:
    models = {Path(entry.facets.get("model", "")).name for entry in found.entries} - {""}
    name = models.pop() if len(models) == 1 else ""
    kind = {"sweep": "a sweep", "best": "the search for a recipe"}.get(config.command, "a comparison")
    return f"{name}: {kind}" if name else kind.capitalize()


def _figures(found: Comparison, groups: Sequence[Group], looked: Mapping[str, Look]) -> dict[str, Figure]:
    """Every figure for which the runs have numbers."""
    figures: dict[str, Figure] = {}
    batches = latency_batches(found)
    if found.measured:
        figures["front"] = _front(found, looked, "macs", "MACs of one call")
        if batches and all(group.amount(f"latency_{batches[-1]}") for group in found.measured):
            cost = f"latency_{batches[-1]}"
            figures["front_latency"] = _front(found, looked, cost, f"latency, batch {batches[-1]} (% of dense)")
    shown = {group.label: group.done[0] for group in groups}
    cuts = {
        label: entry.run.cut
        for label, entry in shown.items()
        if entry.run is not None and entry.run.cut is not None and entry.run.cut.dims
    }
    if cuts:
        figures["widths"] = plot_widths(_shares(cuts))
    for name, (title, unit) in TRAINING.items():
        curves = {label: curve for label, entry in shown.items() if (curve := _recovery(entry, name))[0]}
        objectives = {entry.facets.get("objective") for label, entry in shown.items() if label in curves}
        if curves and (name != "training_own" or len(objectives) == 1):  # losses of two objectives share no axis
            figures[name] = plot_lines(curves, looked, f"{title} (smoothed)", "step", unit, True)
    losses = {
        label: _by_timestep(entry.final.denoising_loss)
        for label, entry in shown.items()
        if entry.final is not None
        and entry.final.denoising_loss is not None
        and len(entry.final.denoising_loss.losses) > 1  # a point is no curve
    }
    if losses:
        found_dense = [entry.dense.denoising_loss for entry in shown.values() if entry.dense is not None]
        dense = next((curve for curve in found_dense if curve is not None), None)
        figures["denoising"] = plot_lines(
            losses, looked, "Denoising loss by timestep", "timestep", SQUARED, False,
            None if dense is None else _by_timestep(dense),
        )  # fmt: skip
    return figures


def _front(found: Comparison, looked: Mapping[str, Look], cost: str, label: str) -> Figure:
    points = []
    for group in found.measured:
        amount = group.amount(cost)
        assert amount is not None
        single = [
            (value, entry.final.estimates[found.judged_by].value)
            for entry in group.done
            if entry.final is not None
            and found.judged_by in entry.final.estimates
            and (value := amount_of(entry, cost)) is not None
        ]
        several = tuple(single) if len(single) > 1 else ()
        points.append(
            Point(group.method, group.target, amount.value, found.quality(group), looked[group.label], several)
        )
    quality = dense_mean(found)
    return plot_front(
        points, None if quality is None else (_dense_cost(found, cost), quality.value),
        found.metrics[found.judged_by].label, label, found.lower_is_better, cost == "macs",
    )  # fmt: skip


def _dense_cost(found: Comparison, cost: str) -> float:
    """The dense model's cost; latencies are in percent of its own."""
    return (
        100.0
        if cost != "macs"
        else next(
            float(entry.dense.macs)
            for entry in found.entries
            if entry.dense is not None and entry.dense.macs is not None
        )
    )


def _shares(cuts: Mapping[str, CutResult]) -> dict[str, dict[str, float | None]]:
    """Percent of each dim that each cut leaves: 0 in a block that was removed, None where the model has no such dim.

    A removed block of which no cut names a dim has a row of its own.
    """
    known = list(dict.fromkeys(name for cut in cuts.values() for name in cut.dims))
    shares: dict[str, dict[str, float | None]] = {}
    for label, cut in cuts.items():
        removed = cut.removed_blocks
        within = [name for name in known if name.startswith(tuple(f"{block}." for block in removed))]
        bare = [block for block in removed if not any(name.startswith(f"{block}.") for name in known)]
        left = {name: 100 * dim.kept / dim.units for name, dim in cut.dims.items()}
        shares[label] = dict.fromkeys([*known, *bare], None) | dict.fromkeys([*within, *bare], 0.0) | left
    return shares


def _recovery(entry: Entry, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one of the quantities `TRAINING`; empty if the run's recovery did not measure it."""
    if entry.run is None:
        return [], []
    records, terms = entry.run.recovery.records, ("denoising", "distillation")
    if name == "training_own":
        return series(records if not any(term in record for record in records for term in terms) else (), "loss")
    if name == "training":
        return series(records, "denoising")
    unsquared = entry.run.config.objective == "rms-distillation"
    return series(records if unsquared == (name == "training_teacher_rms") else (), "distillation")


def _by_timestep(curve: Losses) -> tuple[Sequence[float], Sequence[float]]:
    return curve.timesteps, [float("nan") if loss is None else loss for loss in curve.losses]


def _same_noise(groups: Sequence[Group]) -> tuple[dict[str, Tensor], Tensor | None, list[str]]:
    """Images of the dense model and of each group's first model, from the same noise; the labels; and the groups that
    were drawn from other noise.

    Runs share their noise if the dense model drew the same images in them.
    """
    images: dict[str, Tensor] = {}
    labels: Tensor | None = None
    apart = []
    for group in groups:
        run = group.done[0].run
        if run is None or not run.images:
            continue
        names = list(run.images)
        dense, final = run.images[names[0]], run.images[names[-1]]
        if not images:
            labels = run.class_labels
            if len(names) > 1:
                images[names[0]] = dense
        if len(names) > 1 and names[0] in images and not _alike(images[names[0]], dense):
            apart.append(group.label)
        else:
            images[group.label] = final
    return images, labels, apart


def _alike(one: Tensor, other: Tensor) -> bool:
    count = min(len(one), len(other))
    same_shape = one.shape[1:] == other.shape[1:]
    return same_shape and bool(torch.mean((one[:count].float() - other[:count].float()).abs()) < SAME_NOISE)


def _described(entry: Entry, out: Path) -> dict[str, Any]:
    """What the page says of one run; its own report is linked if it lies in a folder below this page."""
    page = entry.folder / "report.html"
    link = link_to(page.relative_to(out).as_posix()) if page.is_file() and page.is_relative_to(out) else None
    command = entry.run.config.command_line if entry.run else ""
    return {
        "name": entry.name, "status": entry.status, "reason": entry.reason, "folder": str(entry.folder), "link": link,
        "command": command, "reproduce": _reproduce(entry),
    }  # fmt: skip


def _reproduce(entry: Entry) -> str:
    """The settings of a run, to repeat it."""
    if entry.run is None:
        return ""
    return json.dumps({key: value for key, value in entry.run.config.items() if key not in NOT_SETTINGS}, indent=2)


def _shared_versions(found: Comparison) -> dict[str, str]:
    for entry in found.entries:
        if entry.run is not None and entry.run.config.versions:
            return entry.run.config.versions
    return {}


def _differing(found: Comparison) -> dict[str, list[str]]:
    """Settings that differ between runs, and their values."""
    flat = [_flat(entry.run.config) for entry in found.entries if entry.run is not None]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: list(dict.fromkeys(one.get(key, "–") for one in flat)) for key in keys}
    return {key: value for key, value in values.items() if len(value) > 1}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if prefix == "" and key in ("command_line", "device"):
            continue
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return found


def _numbers(found: Comparison, config: RunSettings, sentences: Sequence[str]) -> dict[str, Any]:
    """The comparison as JSON."""

    def entry_numbers(entry: Entry) -> dict[str, Any]:
        model = entry.final
        return {
            "name": entry.name,
            "folder": str(entry.folder),
            **entry.facets,
            "seed": entry.seed,
            "status": entry.status,
            "reason": entry.reason,
            "seconds": entry.trial.seconds if entry.trial else None,
            "recovery_seconds": entry.recovery_seconds,
            "macs": model and model.macs,
            "parameters": model and model.parameters,
            "latency_ms": {batch: timing.median_ms for batch, timing in model.latency.items()} if model else {},
            "estimates": {key: vars(value) for key, value in model.estimates.items()} if model else {},
        }

    def group_numbers(group: Group) -> dict[str, Any]:
        keys = [key for key in found.metrics if group.metric(key) is not None]
        return {
            "method": group.method,
            "target": group.target,
            "runs": [entry.name for entry in group.entries],
            "metrics": {key: vars(group.metric(key)) for key in keys},
        }

    return {
        "command": config.command_line or None,
        "sentences": list(sentences),
        "judged_by": found.judged_by,
        "metrics": {key: vars(metric) for key, metric in found.metrics.items()},
        "groups": [group_numbers(group) for group in found.groups],
        "runs": [entry_numbers(entry) for entry in found.entries],
        "cautions": cautions(found),
    }
