"""The library's functions as the commands call them: writing to a folder, which they return, and printing."""

from pathlib import Path

import secateur
from secateur.base.console import shown
from secateur.runs.subject import open_subject
from secateur.runs.sweep import planned_trials
from secateur.runs.trials import open_bench


def compress(model, *, out, dry_run=False, **options) -> Path:
    if dry_run:
        with shown(True):
            print(secateur.plan(model, **options))
    else:
        print(secateur.compress(model, out=out, progress=True, **options))
    return Path(out)


def prune(model, *, out, **options) -> Path:
    secateur.prune(model, out=out, progress=True, **options)
    return Path(out)


def rank(model, *, out, **options) -> Path:
    secateur.rank(model, out=out, progress=True, **options)
    return Path(out)


def finetune(model, *, out, **options) -> Path:
    secateur.finetune(model, out=out, progress=True, **options)
    return Path(out)


def evaluate(model, *, out, **options) -> Path:
    print(secateur.evaluate(model, out=out, progress=True, **options))
    return Path(out)


def planned_sweep(model, *, data, targets, shared, evaluation, new_labels, warmup, component, device, steps, **options):
    """Print the trials of a sweep with their times."""
    with shown(True):
        bench = open_bench(
            open_subject(model, device=device, component=component), data, warmup if new_labels else None
        )
        chosen = {"criteria": (), "objectives": (), "seeds": (0,), "recipes": ("all",), **options}
        print(planned_trials(bench, targets, steps=steps, shared=shared, evaluation=evaluation, **chosen))
