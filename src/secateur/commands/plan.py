"""What a run will do, found before long work starts: reachable target, predicted size, predicted time."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..checkpoint import Loaded
from ..data import ImageDataset
from ..inputs import example_inputs
from ..process import denoising_error
from ..recipes import Recipe
from ..recovery.conditioning import check_labels
from ..recovery.objectives import build_objective
from ..schedules import Target, no_scores, one_shot
from ..schedules.target import format_count
from ..structure import Structure
from .common import say

FORWARD_SHARE = 1 / 3  # a forward pass costs about a third of a training step
TIMED_STEPS = 3


def check_plan(
    loaded: Loaded, structure: Structure, target: Target, recipe: Recipe, dataset: ImageDataset
) -> dict[str, Any] | None:
    """Plan the cut with equal scores and check that recovery can start; None for a latency target.

    Widths under local allocation do not depend on scores; under global allocation the plan is an estimate.

    Raises:
        SecateurError: what would otherwise fail after the ranking.
    """
    build_objective(recipe.recovery.objective, recipe.recovery.weights, loaded.model)
    check_labels(loaded.model, dataset)
    if target.metric == "latency":
        return None
    _, description = one_shot(
        loaded.model, structure, target, no_scores(structure), recipe.cut, example_inputs(loaded.model, 1)
    )
    return description


def print_plan(
    plan: dict[str, Any] | None, loaded: Loaded, structure: Structure, target: Target, recipe: Recipe
) -> None:
    """Print what a run would do, with predicted size and time."""
    recovery, scoring, evaluation = recipe.recovery, recipe.scoring, recipe.evaluation
    say(f"target     {target}")
    ratio = 1.0
    if plan is None:
        say("cut        found by measuring latency on this device during the run")
    else:
        ratio = plan["after"]["macs"] / plan["before"]["macs"]
        for name, label in (("macs", "MACs"), ("parameters", "parameters")):
            before, after = plan["before"][name], plan["after"][name]
            say(f"{label:10} {format_count(before)} -> {format_count(after)} ({100 * after / before:.1f}%)")
        narrowed = sum(entry["kept"] < entry["units"] for entry in plan["dims"].values())
        blocks = len(plan["removed_blocks"])
        say(f"cut        {narrowed} of {len(structure.dims)} widths, {blocks} of {len(structure.blocks)} blocks")
        if recipe.cut.allocation == "global":
            say("           (global allocation: the ranking will change these numbers)")
    step = seconds_per_pair(loaded)
    timesteps = scoring.num_timesteps or loaded.process.num_train_timesteps
    pairs = timesteps * scoring.num_images * (1 + FORWARD_SHARE)
    scored = 0.0 if recipe.criterion in ("random", "magnitude") else pairs
    teacher = FORWARD_SHARE if recovery.objective != "denoising" else 0.0
    trained = recovery.steps * recovery.batch_size * (ratio + teacher)
    sampled = evaluation.num_images * evaluation.num_inference_steps * FORWARD_SHARE * (1 + 2 * ratio)
    for label, pairs in (("rank", scored), ("recover", trained), ("sample", sampled)):
        say(f"{label:10} about {_duration(pairs * step)} on {next(loaded.model.parameters()).device}")


def seconds_per_pair(loaded: Loaded, batch_size: int = 32) -> float:
    """Seconds that one image takes in a forward and backward pass of the dense model, measured."""
    inputs = example_inputs(loaded.model, batch_size)
    sample = next(iter(inputs.values()))
    timesteps = loaded.process.timesteps(torch.linspace(0.1, 0.9, batch_size)).to(sample.device)
    seconds = []
    for _ in range(TIMED_STEPS):
        begun = time.perf_counter()
        loss = denoising_error(
            loaded.model, loaded.process, sample, torch.randn_like(sample), timesteps, inputs.get("class_labels")
        )
        loss.mean().backward()
        loaded.model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    return min(seconds) / batch_size


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
