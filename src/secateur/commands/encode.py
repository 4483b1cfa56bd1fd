"""`secateur encode`: compute the latents and text embeddings of a data set, ahead of the commands that need them."""

from __future__ import annotations

import secateur

from ..base.console import say
from ..runs.data import open_data
from .options import Model


def encode(on: Model, *, data: str, dry_run: bool = False) -> None:
    """Encode images with a pipeline's VAE, and captions with its text encoders, once.

    Every command does this itself when needed. Under torchrun each process encodes a part. The cache is
    $SECATEUR_CACHE, or secateur in the user's cache folder. Run the same command again to resume.

    Args:
        on: the pipeline.
        data: image folder (with metadata.jsonl for captions), parquet, WebDataset shards, datasets:NAME, .npz with
            images, digits, or fashion.
        dry_run: print what would be written, and stop.
    """
    subject = on.subject()
    if dry_run:
        open_data(data, subject)
        return
    dataset = secateur.encode(subject, data=data)
    what = "clips" if len(dataset.shape) == 4 else "images"
    say(f"latents    {len(dataset)} {what} as {dataset.shape} in {dataset.latents.folder}")
