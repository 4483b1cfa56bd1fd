"""Encoding ahead: latents and text embeddings of a data set, in the cache that all functions read."""

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
    """Encode images by a pipeline's VAE, and captions by its text encoders, once; what was encoded, as a data set.

    The functions do this by themselves. Several processes encode a part each. The cache is $SECATEUR_CACHE, or
    secateur in the user's cache folder. Stopped, the same call goes on.

    Args:
        model: folder or hub id of a pipeline.
        data: a path; what is in memory is encoded there.
        progress: show how far it is.
        arguments: as `WeightsArguments` has them.

    Raises:
        SecateurError: the model takes images as they are, or as `open_data`.
    """
    with shown(progress):
        subject = open_subject(model, **arguments)
        dataset = encode_data(open_data(data, subject), subject)
    if not isinstance(dataset, EncodedDataset):
        raise SecateurError(f"{subject.name} takes images as they are: there is nothing to encode")
    return dataset
