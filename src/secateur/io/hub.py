"""Publishing a model on the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import nn

from .checkpoint import save_pretrained


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    scheduler_config: Mapping[str, Any] | None = None,
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload `model` as `save_pretrained` writes it, and return the address of the commit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(model, Path(scratch) / "model", scheduler_config)
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned with secateur"))
