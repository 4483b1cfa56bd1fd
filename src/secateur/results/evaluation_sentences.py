"""An evaluation in plain language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base.units import number_of
from .numbers import format_change, format_series

if TYPE_CHECKING:
    from .evaluation import Evaluation


def speed_sentences(evaluation: Evaluation) -> list[str]:
    if not evaluation.compares or not evaluation.latency:
        return []
    where = f" on {evaluation.device}" if evaluation.device else ""
    found = [_speedup(evaluation, batch) for batch in evaluation.latency]
    return [f"One call of the {evaluation.final_name} model{where}: {'; '.join(found)}."]


def _speedup(evaluation: Evaluation, batch: str) -> str:
    times = evaluation.latency[batch]
    said = f"({format_change(times.before, times.after)} ms)"
    if not evaluation.clear_time(batch):
        return f"no measurable difference at batch {batch} {said}"
    ratio = 1 / times.ratio
    return f"{f'{ratio:.2f}× faster' if ratio > 1 else f'{1 / ratio:.2f}× slower'} at batch {batch} {said}"


def quality_sentences(evaluation: Evaluation) -> list[str]:
    sentences, fidelity = [], evaluation.fidelity
    if fidelity is not None and (chain := _chain(evaluation, "fd")):
        sentences.append(
            f"Fréchet distance {fidelity.metric} of {number_of(fidelity.samples, 'sample')} to real images, lower is "
            f"better: {chain}{_judged(evaluation, 'fd')}."
        )
    if chain := _chain(evaluation, "ssim"):
        sentences.append(
            f"SSIM to {evaluation.reference} on the same {evaluation.start}, 1 is identical: {chain}"
            f"{_judged(evaluation, 'ssim')}."
        )
    if chain := _chain(evaluation, "denoising_loss"):
        sentences.append(f"Mean {evaluation.loss}: {chain}{_judged(evaluation, 'denoising_loss')}.")
    if chain := _chain(evaluation, "ftle"):
        sentences.append(f"Finite-time Lyapunov exponent, how fast the sampler separates neighbouring noises: {chain}.")
    return sentences


def _chain(evaluation: Evaluation, key: str) -> str:
    """The values of all models: "3.14 dense → 41.2 pruned → 5.17 recovered"."""
    measured = {name: model.value(key) for name, model in evaluation.models.items()}
    known = {name: value for name, value in measured.items() if value is not None}
    return " → ".join(f"{text} {name}" for name, text in zip(known, format_series(list(known.values())), strict=True))


def _judged(evaluation: Evaluation, metric: str) -> str:
    """The verdict of the metric on the final model, if differences were compared with their uncertainty."""
    final = evaluation.final_name
    words = [verdict.text for verdict in evaluation.verdicts(metric, final)]
    return f"; {final}: {', '.join(words)}" if words else ""
