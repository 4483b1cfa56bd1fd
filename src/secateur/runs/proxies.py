"""How trainable a network is, judged by zero-cost proxies."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from ..base.console import shown
from ..base.rules import Seed, checked
from ..criteria import ScoringConfig
from ..criteria.gradients import differentiable
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
