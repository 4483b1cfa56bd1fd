"""Encoding ahead: latents and text embeddings of a data set, in the cache that all functions read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.console import shown
from ..base.distributed import one_process
from ..base.errors import SecateurError
from ..base.rules import checked
from ..data import EncodedDataset
from ..io.locate import Component
from .data import encode_data, open_data
from .subject import open_subject


@checked
def encode(
    model: Any,
    *,
    data: str | Path,
    component: Component | None = None,
    device: str | None = None,
    progress: bool = False,
) -> EncodedDataset:
    """Encode images by a pipeline's VAE, and captions by its text encoders, once; what was encoded, as a data set.

    The functions do this by themselves; before training in several processes it must be done. The cache is
    $SECATEUR_CACHE, or secateur in the user's cache folder. Stopped, the same call goes on.

    Args:
        model: folder or hub id of a pipeline.
        data: a path; what is in memory is encoded there.
        component: of the pipeline, by default the unet or transformer that is there.
        device: where to.
        progress: show how far it is.

    Raises:
        SecateurError: the model takes images as they are, or as `open_data`.
    """
    one_process("encode")
    with shown(progress):
        subject = open_subject(model, device=device, component=component)
        dataset = encode_data(open_data(data, subject), subject)
    if not isinstance(dataset, EncodedDataset):
        raise SecateurError(f"{subject.name} takes images as they are: there is nothing to encode")
    return dataset
