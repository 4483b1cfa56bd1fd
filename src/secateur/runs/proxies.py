"""What a network without some blocks is worth, judged before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from ..base.console import shown
from ..base.errors import require_known
from ..base.rules import Seed, checked
from ..criteria import ScoringConfig
from ..criteria.gradients import differentiable
from ..criteria.replacement import REPLACEMENT, stand_ins
from ..models.network import inference
from ..schedules.proxies import BATCH_SIZE, ZICO_BATCHES, Judgement, judge
from .arguments import NetworkArguments
from .data import encode_data
from .opening import opened, required
from .stages import calibration


@checked
def zero_cost_proxies(
    model: Any, *, data: Any, seed: Seed = 0, progress: bool = False, **arguments: Unpack[NetworkArguments]
) -> Judgement:
    """The condition number of a network's NTK, ZiCo, and its loss, on 128 images: EntPruner's judges of candidates.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned; it does not change.
        data: samples, as for `rank`.
        seed: seed of the images, their timesteps and noise.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Raises:
        SecateurError: bad input.
    """
    with shown(progress), opened(model, data, **arguments) as (subject, dataset):
        scoring = ScoringConfig(num_images=BATCH_SIZE * ZICO_BATCHES, seed=seed)
        batch = calibration(subject, encode_data(required(dataset), subject), scoring)
        with inference(subject.model), differentiable(subject.model):
            return judge(subject.process, batch, seed)(subject.model)


@checked
def replacement_distance(
    model: Any,
    blocks: Sequence[str],
    *,
    data: Any,
    scoring: ScoringConfig | None = None,
    progress: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> float:
    """How far the prediction moves without `blocks` if affine maps of the stream stand in for them: what the criterion
    `replacement` compares.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned; it does not change.
        blocks: names of blocks, as `describe(model).blocks` has them.
        data: samples, as for `rank`.
        scoring: options of the criterion `replacement`.
        progress: show progress bars and print notes.
        arguments: those of `NetworkArguments`.

    Returns:
        The geometric mean over tuples of |prediction without the blocks - prediction| / |prediction|.

    Raises:
        SecateurError: bad input, or a block that the model does not have.
        TrainingError: an output is not finite.
    """
    with shown(progress), opened(model, data, **arguments) as (subject, dataset):
        for name in blocks:
            require_known("block", name, subject.structure.blocks)
        config = REPLACEMENT.configured(scoring or ScoringConfig())
        batch = calibration(subject, encode_data(required(dataset), subject), config)
        with stand_ins(subject.model, subject.process, batch, subject.structure, config) as found:
            return found.distance(blocks)
