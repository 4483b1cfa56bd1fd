"""Writing and uploading a pruned model with its model card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..base.distributed import from_main, is_main_process
from ..base.files import write_text
from ..base.shards import is_sharded
from ..io import checkpoint, hub
from ..io.manifest import manifest_of
from ..io.pipeline import save_pipeline
from ..reporting.card import model_card, write_picture
from ..reporting.product import licence_of_base
from ..results import Evaluation
from .run import Run
from .subject import require_weights


def save_pretrained(
    model: nn.Module | Run,
    folder: str | Path,
    scheduler_config: Mapping[str, Any] | None = None,
    *,
    evaluation: Evaluation | None = None,
    images: Mapping[str, Tensor] | None = None,
    licence: str | None = None,
) -> Path:
    """Write a model to `folder`: safetensors, JSON, and a model card if it was pruned. Other files in the folder stay.

    Args:
        model: the network; or what `compress` returned, whose pipeline is written if it has one.
        folder: the folder to write.
        scheduler_config: config of the scheduler that it was trained with, to be written beside it.
        evaluation: measurements, for the card; a run has its own.
        images: samples of each model from the same noise, (N, C, H, W) in [-1, 1], for the card; a run has its own.
        licence: licence of the base model, by the hub's name for it; by default read from the base model's card, if it
            is on this disk.

    Raises:
        SecateurError: the disk is full, the folder cannot be written, the model has no weights, or its tensors do not
            match its config and the cuts made by secateur.
    """
    return _save(model, Path(folder), str(folder), scheduler_config, evaluation, images, licence)


def push_to_hub(
    model: nn.Module | Run,
    repo_id: str,
    scheduler_config: Mapping[str, Any] | None = None,
    *,
    evaluation: Evaluation | None = None,
    images: Mapping[str, Tensor] | None = None,
    licence: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes, model card included, and return the address of the commit.

    Args:
        repo_id: "NAME/REPOSITORY", created if it does not exist.
        private: create it as a private repository.
        token: token of the hub; by default that of the login.
        model, scheduler_config, evaluation, images, licence: as for `save_pretrained`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _save(model, folder, repo_id, scheduler_config, evaluation, images, licence)
        upload = partial(hub.upload, folder, repo_id, private, token)
        return from_main(upload) if isinstance(model, nn.Module) and is_sharded(model) else upload()


def _save(
    model: nn.Module | Run,
    folder: Path,
    place: str,
    scheduler_config: Mapping[str, Any] | None,
    evaluation: Evaluation | None,
    images: Mapping[str, Tensor] | None,
    licence: str | None,
) -> Path:
    run = model if isinstance(model, Run) else None
    network = run.model if run is not None else model
    assert isinstance(network, nn.Module)
    require_weights(network)
    if run is not None and run.subject.in_pipeline:
        save_pipeline(run.subject.loaded, network, folder)
    else:
        scheduler = run.subject.loaded.scheduler_config if run is not None else None
        checkpoint.save_pretrained(network, folder, scheduler_config or scheduler)
    if (manifest := manifest_of(network)) is None or (is_sharded(network) and not is_main_process()):
        return folder
    own = images if images is not None or run is None else run.images
    card = model_card(
        manifest.to_json(),
        place,
        pipeline=run is not None and run.subject.in_pipeline,
        licence=licence or licence_of_base(str(manifest.base.get("id") or "")),
        cut=run.cut if run else None,
        compensation=run.compensation if run else None,
        evaluation=evaluation or (run.evaluation if run else None),
        command=str(run.settings.get("command_line") or "") if run else "",
        picture=write_picture(own or {}, folder),
    )
    write_text(folder / "README.md", card)
    return folder
