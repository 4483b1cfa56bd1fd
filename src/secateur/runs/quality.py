"""Quality targets: the smallest model that keeps a quality before any training, found by bisection over its size.

Cutting and refitting take seconds, so several sizes are tried. Quality is assumed to fall as the model shrinks; that of
the chosen model was measured.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ..base.console import say
from ..base.distributed import one_process
from ..base.errors import TargetError, require
from ..compensation import CompensationConfig, compensate
from ..criteria import ScoringConfig
from ..data import ImageDataset
from ..data.conditions import null_conditions
from ..evaluation import EvaluationConfig, evaluate_models
from ..io.manifest import apply_cut
from ..process.own import OwnObjective
from ..results import QualitySearch, QualityTry, read_result, write_result
from ..schedules import CutConfig, Target
from ..structure import Cut
from .data import decoder
from .stages import calibration, planned_cut
from .subject import Subject

TRIES = 7  # determine the size to 1 / 2^7 of the MACs
IMAGES = 128  # samples of each model
METRICS = {"ssim": ("consistency", "SSIM to the dense model's samples"), "loss": ("loss", "rise of the denoising loss")}


def check_quality(subject: Subject, goal: Target, one_shot: bool = True) -> None:
    """Check that a quality target can be used here; any other target passes.

    Raises:
        SecateurError: several processes, a schedule that cuts during recovery, or a network that cannot be sampled.
    """
    if not goal.is_quality:
        return
    one_process(f"the search for {goal}")
    require(one_shot, f"{goal} is reached by one-shot cuts before recovery; add --schedule one-shot, or ask for a size")
    own = isinstance(subject.process, OwnObjective)
    require(not own, f"{goal} is measured on samples, which forward= and loss= lack; ask for a size")


def search_quality(
    folder: Path | None,
    subject: Subject,
    dataset: ImageDataset,
    goal: Target,
    scores: Mapping[str, Tensor],
    cut: CutConfig,
    compensation: CompensationConfig | None,
    evaluation: EvaluationConfig,
) -> tuple[Target, QualitySearch]:
    """The share of the MACs of the smallest model that keeps `goal`, and all sizes tried; writes `quality.json`.

    Raises:
        TargetError: no smaller model keeps it.
    """
    path = None if folder is None else folder / "quality.json"
    metric = METRICS[goal.metric][1]
    before = read_result(QualitySearch, path).tries if path is not None and path.is_file() else ()
    done = {each.asked: each for each in before}
    found = QualitySearch(str(goal), metric)
    low, high = 0.0, 1.0
    with _quality_of(subject, dataset, goal, evaluation) as quality_of:
        for _ in range(TRIES):
            asked = (low + high) / 2
            one = done.get(asked) or _tried(subject, dataset, asked, goal, scores, cut, compensation, quality_of)
            say(f"{goal}: {_said(one)}")
            found = replace(found, tries=(*found.tries, one))
            if path is not None:
                write_result(path, found)
            low, high = (low, min(asked, one.macs or asked)) if one.holds else (asked, high)
    if found.found is None:
        raise TargetError(f"no smaller model holds {goal}: {'; '.join(map(_said, found.tries[-2:]))}; ask for less")
    return Target("macs", found.found.asked, True), found


def _tried(
    subject: Subject,
    dataset: ImageDataset,
    asked: float,
    goal: Target,
    scores: Mapping[str, Tensor],
    cut: CutConfig,
    compensation: CompensationConfig | None,
    quality_of: Callable[[nn.Module], float | None],
) -> QualityTry:
    """Cut a copy of the model to a share of the MACs, refit and measure it."""
    try:
        planned = planned_cut(subject, Target("macs", asked, True), scores, cut)
    except TargetError:
        return QualityTry(asked, None, None, False)
    model = apply_cut(copy.deepcopy(subject.model), planned.cut)
    if compensation is not None and planned.cut != Cut():
        batch = calibration(subject, dataset, ScoringConfig(num_images=compensation.num_tuples, seed=compensation.seed))
        null = null_conditions(subject.model, dataset)
        compensate(model, subject.model, subject.process, batch, compensation, [planned.cut], null)
    quality = quality_of(model)
    holds = quality is not None and (quality >= goal.value if goal.metric == "ssim" else quality <= goal.value)
    return QualityTry(asked, planned.result.reached / planned.result.dense, quality, holds)


@contextmanager
def _quality_of(
    subject: Subject, dataset: ImageDataset, goal: Target, evaluation: EvaluationConfig
) -> Iterator[Callable[[nn.Module], float | None]]:
    """A function from a model to its SSIM, or to the rise of its loss; draws the dense model's samples once."""
    name = METRICS[goal.metric][0]
    config = replace(EvaluationConfig(), metrics=(name,), num_images=IMAGES, num_pairs=IMAGES)
    sampler = ("num_inference_steps", "guidance_scale", "guidance_channels", "scheduler", "batch_size", "seed")
    config = replace(config, **{each: getattr(evaluation, each) for each in sampler})
    with tempfile.TemporaryDirectory(prefix="secateur-") as cache:

        def measure(model: nn.Module) -> float | None:
            models = {"dense": subject.model, "tried": model.eval()}
            found, _ = evaluate_models(models, subject.process, dataset, config, decoder(subject), cache=Path(cache))
            assert found is not None
            dense, tried = (found.models[each].estimates for each in models)
            key = "ssim" if goal.metric == "ssim" else "denoising_loss"
            if key not in tried:
                return None
            return tried[key].value if key == "ssim" else tried[key].value / dense[key].value - 1

        yield measure


def _said(one: QualityTry) -> str:
    if one.macs is None:
        return f"no cut goes down to {100 * one.asked:.3g}% of the MACs"
    quality = "not finite" if one.quality is None else f"{one.quality:.3g}"
    return f"{100 * one.macs:.3g}% of the MACs, {quality}, {'holds' if one.holds else 'does not hold'}"
