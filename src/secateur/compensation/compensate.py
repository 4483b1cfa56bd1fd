"""The refit of a whole model; docs/compensation.md explains and measures it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base.console import note, progress
from ..base.devices import in_float64, where_float64
from ..base.distributed import process_count, sum_over_processes
from ..base.errors import TrainingError, require
from ..data import Batch
from ..io.manifest import note_step
from ..models.conditions import UNCONDITIONAL, Conditions
from ..models.network import in_full_precision, inference
from ..process.base import Process
from ..results.compensation import Compensation, Reader
from ..structure import Cut
from .config import CompensationConfig
from .counterparts import counterparts, cuts_between
from .fitting import Fitting, open_folder
from .outputs import refit_to_outputs
from .streams import refit_to_streams
from .targets import chosen_target, layers_to_refit
from .tuples import Tuples, draw_tuples

MEASURED = 64  # tuples on which the error of the whole model is measured


def compensate(
    pruned: nn.Module,
    dense: nn.Module,
    process: Process,
    batch: Batch,
    config: CompensationConfig | None = None,
    cuts: Sequence[Cut] | None = None,
    null: Conditions = UNCONDITIONAL,
    folder: str | Path | None = None,
) -> Compensation:
    """Refit `pruned`, in place, to the model that it was cut from, without gradients.

    Adds a step of kind "compensation" to the manifest of `pruned`.

    Args:
        pruned: the model after the cut, on one device with `dense` and `batch`.
        dense: the model before it.
        process: how noise is added to the tuples.
        batch: calibration images, with the conditions that the model takes.
        config: options.
        cuts: the cuts of `dense`, if there is no manifest.
        null: the null condition, for `config.condition_dropout`.
        folder: keeps the fitted layers, for resuming.

    Raises:
        ModelError: `pruned` was not cut from `dense`.
        SecateurError: a stream target for a model whose stream was cut, `config.condition_dropout` without a null
            condition, or a `folder` of another compensation.
        TrainingError: an output is not finite.
    """
    config = config or CompensationConfig()
    begun = time.monotonic()
    enough = config.num_tuples >= process_count()
    require(enough, f"{config.num_tuples} calibration tuples are fewer than the {process_count()} processes; give more")
    check_null_condition(config, bool(null))
    parts = counterparts(pruned, dense, cuts_between(pruned, dense) if cuts is None else cuts)
    layers, left = layers_to_refit(pruned, parts)
    target = chosen_target(pruned, config)
    if folder is not None:
        open_folder(Path(folder), _identity(pruned, config, list(layers)))
    tuples = draw_tuples(process, batch, config, null)
    with (
        in_full_precision(pruned),  # passes are suspended halfway, and autocast would go on outside of them
        in_full_precision(dense),
        inference(pruned),
        inference(dense),
        progress("layers refitted", len(layers)) as advance,
    ):
        fitting = Fitting(advance, None if folder is None else Path(folder))
        fitting.left.update(left)
        looked_at = [each for each in tuples if each.numbers[0] < MEASURED]
        outputs = [each.run(pruned)() for each in looked_at]
        if target == "stream":
            pairs = refit_to_streams(pruned, dense, parts, layers, tuples, config, fitting)
        else:
            pairs = refit_to_outputs(pruned, dense, layers, tuples, config, fitting)
    expected = [there for _, there in pairs]
    before, after = (_error(found, expected, looked_at) for found in (outputs, [here for here, _ in pairs]))
    _note_unsettled(fitting.readers, config.ridge)
    options = asdict(replace(config, target=target))
    result = Compensation(
        fitting.readers,
        config.num_tuples,
        before,
        after,
        options,
        time.monotonic() - begun,
        fitting.left,
    )
    errors = {"before": before, "after": after, "layers": len(fitting.readers)}
    if hasattr(pruned, "register_to_config"):
        note_step(pruned, "compensation", {**options, **errors})
    return result


def check_null_condition(config: CompensationConfig, has_null: bool) -> None:
    """Check that there is a null condition to replace others by, if some are to be replaced.

    Raises:
        SecateurError: there is none.
    """
    require(
        not config.condition_dropout or has_null,
        "compensation.condition_dropout puts the null condition in place of others, and this model has none: leave it "
        "out",
    )


def _note_unsettled(readers: Mapping[str, Reader], ridge: float) -> None:
    """Say how many layers were fitted to few positions exactly, and so perhaps badly to all others."""
    few = [name for name, reader in readers.items() if reader.rows < reader.columns]
    if few and not ridge:
        note(
            f"{len(few)} of {len(readers)} layers have fewer positions than inputs ({few[0]} first), and without a "
            "ridge they are fitted to those alone: give more compensation.num_tuples, or a ridge"
        )


def _identity(pruned: nn.Module, config: CompensationConfig, names: Sequence[str]) -> dict[str, object]:
    """Identifies what a folder of fitted layers belongs to; batch sizes are left out, since they change rounding
    only."""
    weights = sum(in_float64(parameter).abs().sum().item() for parameter in pruned.parameters())
    return {"config": asdict(replace(config, batch_size=1, offload=False)), "layers": list(names), "weights": weights}


def _error(found: Sequence[Tensor], expected: Sequence[Tensor], tuples: Sequence[Tuples]) -> float:
    """E|dense output - output|^2 / E|dense output|^2 over the first `MEASURED` tuples.

    Raises:
        TrainingError: it is not finite.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=where_float64(expected[0].device))
    for here, there, each in zip(found, expected, tuples, strict=False):
        counted = [row for row, number in enumerate(each.numbers) if number < MEASURED]
        error, size = ((there - here)[counted], there[counted])
        sums += torch.stack([in_float64(values).square().sum() for values in (error, size)])
    error, size = sum_over_processes(sums).tolist()
    if not error < float("inf"):
        raise TrainingError("an output of the model is not finite: check weights and scheduler, or refit in float32")
    return error / size if size else 0.0
