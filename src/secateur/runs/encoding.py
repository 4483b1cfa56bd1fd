"""Encode a data set ahead of time: latents and text embeddings, into the cache that all functions read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.console import shown
from ..base.errors import SecateurError
from ..base.rules import checked
from ..data import EncodedDataset
from .arguments import WeightsArguments
from .data import encode_data, open_data
from .subject import open_subject


@checked
def encode(
    model: Any,
    *,
    data: str | Path,
    progress: bool = False,
    **arguments: Unpack[WeightsArguments],
) -> EncodedDataset:
    """Encode images with a pipeline's VAE, and captions with its text encoders, once; returns the encoded data set.

    Other functions do this themselves when needed. Several processes encode a part each. The cache is $SECATEUR_CACHE,
    or secateur in the user's cache folder. After a stop, the same call resumes.

    Args:
        model: folder or hub id of a pipeline.
        data: a path; objects in memory are encoded when they are used.
        progress: show progress bars and print notes.
        arguments: those of `WeightsArguments`.

    Raises:
        SecateurError: the model takes images without encoding; or as `open_data`.
    """
    with shown(progress):
        subject = open_subject(model, **arguments)
        dataset = encode_data(open_data(data, subject), subject)
    if not isinstance(dataset, EncodedDataset):
        raise SecateurError(f"{subject.name} takes images as they are: there is nothing to encode")
    return dataset
