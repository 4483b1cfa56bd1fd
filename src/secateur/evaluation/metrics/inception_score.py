"""Inception Score: are single images clear, and all of them together varied?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..estimates import Estimate

SPLITS = 10


def inception_score(logits_NK: Tensor, counts_RN: Tensor, splits: int = SPLITS) -> Estimate:
    """exp of the mean KL divergence of p(y|x) from p(y), between 1 and K: Salimans et al. 2016, section 4.

    As published, the mean over `splits` consecutive parts of the images, each with a p(y) of its own. Parts need many
    more images than there are classes: with few the score is too low.
    """
    log_p = logits_NK.cpu().double().log_softmax(1)
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(1)
    weights = torch.cat([torch.ones(1, len(p), dtype=torch.float64), counts_RN])
    scores = []
    for chosen in torch.arange(len(p)).tensor_split(min(splits, len(p))):
        share = weights[:, chosen]
        share = share / share.sum(1, keepdim=True)
        marginal = share @ p[chosen]
        entropy = -torch.special.xlogy(marginal, marginal).sum(1)
        scores.append((entropy + share @ negative_entropy[chosen]).exp())
    values = torch.stack(scores).nanmean(0)  # a small part can be empty in a resample
    return Estimate(float(values[0]), values[1:])
