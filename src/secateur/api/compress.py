"""All stages of a compression: `compress`, and an example (`quickstart`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.console import shown
from ..base.distributed import is_main_process, require_folder, wait_for_everyone
from ..base.origin import recorded
from ..base.rules import Seed, checked
from ..recipes import Recipe, for_target, resolve
from ..recovery import WarmupConfig
from ..reporting import write_report
from ..runs.arguments import CompressionArguments, divided
from ..runs.checks import check_compression, check_written, warmup_of
from ..runs.compression import compress_stages, run_settings, with_labels_of
from ..runs.data import encode_data, inputs_of, name_of
from ..runs.folder import circumstances, folder_or_memory
from ..runs.opening import opened, required
from ..runs.run import Run
from ..runs.stages import (
    pipeline_stage,
    warmup_stage,
)
from ..runs.teaching import as_recordable
from ..runs.tidy import tidy
from ..schedules import parse_target


@recorded
@checked
def compress(
    model: Any,
    *,
    target: str,
    data: Any,
    recipe: str | Recipe = "default",
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    keep: bool = False,
    progress: bool = False,
    **arguments: Unpack[CompressionArguments],
) -> Run:
    """Prune a model to a target, recover what that cost, and measure dense, pruned and recovered side by side.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned; it does not change.
        target: the size to reach: macs=56%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1); or a quality to keep, for which the smallest model is searched: ssim=0.95 (to the dense
            model's samples) or loss=5% (the most that the loss may rise).
        data: samples to calibrate, train and evaluate with.
        recipe: a recipe, or the name of one.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained before the ranking.
        warmup: how the new labels are trained.
        cache: folder through which several runs share the samples of equal models, and the teacher's book.
        out: run folder. A run that was stopped there is resumed; a finished one is continued to more steps, if its
            schedule is one-shot, its learning rate constant, and the length of a book that it records was given.
        keep: keep everything in the folder. By default the models before recovery are removed at the end, weights that
            are there twice become one file, and the last checkpoint is removed unless a longer run could continue from
            it.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`, and those of `RecipeArguments`, which replace parts of the recipe.

    Returns:
        The run: `.model`, `.pipeline`, `.ranking`, `.cut`, `.evaluation`, `.report()`.

    Raises:
        SecateurError: bad input, an unreachable target, a run that cannot be resumed.
    """
    require_folder("compress", out)
    parts, about_model = divided(arguments)
    goal, labels = parse_target(target), warmup_of(new_labels, warmup)
    settings = for_target(resolve(recipe, **parts), goal)
    with shown(progress), opened(model, data, new_labels, **about_model) as (subject, given_data):
        dataset = required(given_data)
        check_written(subject, out)
        inputs = partial(inputs_of, dataset, model=subject)
        subject = with_labels_of(dataset, subject, new_labels, settings.recovery.seed)
        subject = subject.selected(settings.cut)
        settings = as_recordable(settings, subject, dataset)
        cut = check_compression(subject, dataset, goal, settings)
        about = run_settings(subject, goal, name_of(data, dataset), settings, labels)
        wait_for_everyone(subject.on_cpu)  # nobody writes where the settings are refused
        with folder_or_memory(out, about, inputs) as folder:
            dataset = encode_data(dataset, subject)
            if labels is not None:
                subject = warmup_stage(folder, subject, dataset, labels, settings.recovery).selected(settings.cut)
            kept = None if cache is None else Path(cache)
            stages = compress_stages(folder, subject, dataset, goal, settings, cut, kept)
            if folder is not None:
                pipeline_stage(folder, subject, stages.model)
                if is_main_process():
                    write_report(folder)
                    if not keep:
                        tidy(folder, settings.recovery, settings.schedule == "one-shot")
        return Run(subject, stages, about | circumstances(), folder)


@recorded
@checked
def quickstart(
    *, out: str | Path | None = None, target: str = "macs=50%", seed: Seed = 0, progress: bool = False
) -> Run:
    """Prune the embedded U-Net to half its MACs, recover it, and measure it; offline, in under two minutes."""
    return compress(
        "fashion-unet", target=target, data="fashion", recipe="quickstart", seed=seed, out=out, progress=progress
    )
