"""Publishing a folder on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi


def upload(folder: Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload the files of `folder` to the repository, which is created if needed; return the address of the commit."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned with secateur"))
