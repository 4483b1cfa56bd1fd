"""Inception Score: whether single images are clear, and all of them together varied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...base.errors import SecateurError
from ...results.measured import Metric
from ..estimates import Resampled
from ..measurement import FeatureSets, Measured, OfFeatures, Subject, looks_at_samples_only

if TYPE_CHECKING:
    from ..config import EvaluationConfig

SPLITS = 10


def inception_score(logits_NK: Tensor, counts_RN: Tensor, splits: int = SPLITS) -> Resampled:
    """exp of the mean KL divergence of p(y|x) from p(y), between 1 and K: Salimans et al. 2016, section 4.

    As published, the mean over `splits` parts of the N images, each with a p(y) of its own; part i begins at image
    i N // splits. Parts need many more images than there are classes; otherwise the score is too low.
    """
    log_p = logits_NK.cpu().double().log_softmax(1)
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(1)
    weights = torch.cat([torch.ones(1, len(p), dtype=torch.float64), counts_RN])
    scores = []
    parts = min(splits, len(p))
    for part in range(parts):
        chosen = slice(part * len(p) // parts, (part + 1) * len(p) // parts)
        share = weights[:, chosen]
        share = share / share.sum(1, keepdim=True)
        marginal = share @ p[chosen]
        entropy = -torch.special.xlogy(marginal, marginal).sum(1)
        scores.append((entropy + share @ negative_entropy[chosen]).exp())
    values = torch.stack(scores).nanmean(0)  # a small part can be empty in a resample
    return Resampled(float(values[0]), values[1:])


def check(subject: Subject) -> None:
    """Refuse a network that is not a classifier."""
    network = subject.network
    if network is not None and network.classify(torch.zeros(1, network.dim, device=subject.device)) is None:
        raise SecateurError(
            f"inception-score needs a classifier, {network.name} is none; leave it out of --metrics, or use "
            "--evaluation.features FID"
        )


def measure(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """The score of the samples by the network's own classes."""
    logits = sets.network.classify(sets.features_ND)
    assert logits is not None
    return Measured({"inception_score": inception_score(logits, sets.counts_RN)})


INCEPTION_SCORE = OfFeatures(
    name="inception-score",
    gives={"inception_score": Metric("IS", "higher")},
    check=check,
    measure=measure,
    needs_real=looks_at_samples_only,
)
