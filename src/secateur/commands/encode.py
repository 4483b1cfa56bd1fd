"""`secateur encode`: the latents and text embeddings of a data set, ahead of the commands that need them."""

from __future__ import annotations

import secateur

from ..base.console import say
from ..runs.data import open_data
from .options import Model


def encode(on: Model, *, data: str, dry_run: bool = False) -> None:
    """Encode images by a pipeline's VAE, and captions by its text encoders, once.

    Every command does this by itself when it has to; before training in several processes it must be done. The cache is
    $SECATEUR_CACHE, or secateur in the user's cache folder. Stopped, it goes on with the same command.

    Args:
        on: the pipeline.
        data: image folder (with metadata.jsonl for captions), parquet, datasets:NAME, .npz with images, or digits.
        dry_run: say what would be written, and stop.
    """
    subject = on.subject()
    if dry_run:
        open_data(data, subject)
        return
    dataset = secateur.encode(subject, data=data)
    say(f"latents    {len(dataset)} images as {dataset.shape} in {dataset.latents.folder}")
