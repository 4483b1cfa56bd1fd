"""`secateur encode`: the latents and text embeddings of a data set, ahead of the commands that need them."""

from __future__ import annotations

from pathlib import Path

from ..base.console import say
from ..base.distributed import one_process
from ..base.errors import SecateurError
from ..base.rules import checked
from ..data import LatentDataset
from ..io.locate import Component
from ..runs.subject import encode_data, open_data, open_model
from .options import Model


@checked
def encode(
    model: Model, *, data: str, component: Component | None = None, device: str = "auto", dry_run: bool = False
) -> Path:
    """Encode images by a pipeline's VAE, and captions by its text encoders, once.

    Every command does this by itself when it has to; before training in several processes it must be done. The cache is
    $SECATEUR_CACHE, or secateur in the user's cache folder. Stopped, it goes on with the same command.

    Args:
        model: pipeline folder or hub id.
        data: image folder (with metadata.jsonl for captions), parquet, datasets:NAME, .npz with images, or digits.
        component: which part of a pipeline, unet or transformer; the default takes the one that is there.
        device: auto, cpu, cuda, mps ...
        dry_run: say what would be written, and stop.

    Returns:
        The folder of the latents.
    """
    one_process("encode")
    loaded, _ = open_model(model, device=device, component=component)
    dataset = open_data(data, loaded)
    if not isinstance(dataset, LatentDataset):
        raise SecateurError(f"{model} takes images as they are: there is nothing to encode")
    if not dry_run:
        encode_data(dataset, loaded)
        say(f"latents    {len(dataset)} images as {dataset.shape} in {dataset.latents.folder}")
    return dataset.latents.folder
