"""The model that a run made: its folder, how to load it, its size, origin and licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ..base.errors import SecateurError
from .run import Run

FOLDERS = ("pipeline", "model", "compensated", "pruned")  # best first: the run's model is in the first that exists
MANIFEST = "pruning.json"
MEGABYTE = 10**6
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True)
class Product:
    """A folder with a model to load.

    Attributes:
        path: the folder.
        pipeline: whether it holds a whole pipeline, or one network.
        bytes: its size on disk.
        base: the model that it was pruned from.
        licence: that of the base, if its model card states it.
        pruned: whether something was cut from it.
    """

    path: str
    pipeline: bool
    bytes: int
    base: str
    licence: str | None
    pruned: bool

    @property
    def size(self) -> str:
        """Size on disk, in MB."""
        return f"{self.bytes / MEGABYTE:,.1f} MB"

    @property
    def snippet(self) -> str:
        """Python code that loads it."""
        return load_snippet(self.path, self.pipeline, self.pruned)


def load_snippet(place: str, pipeline: bool, pruned: bool = True) -> str:
    """Python code that loads the folder or hub id `place`."""
    if pipeline:
        first = "import secateur  # diffusers can then load what was cut\n" if pruned else ""
        return (
            f"{first}from diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline.from_pretrained({place!r})"
        )
    return f"import secateur\n\nmodel = secateur.from_pretrained({place!r})"


def product_of(run: Run) -> Product | None:
    """The model that the run made, or None."""
    folder = next((run.folder / name for name in FOLDERS if (run.folder / name).is_dir()), None)
    if folder is None:
        return None
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    base = run.config.model
    licence = licence_of(folder) or licence_of_base(base)
    return Product(
        str(folder), (folder / "model_index.json").is_file(), size, base, licence, any(folder.rglob(MANIFEST))
    )


def licence_of_base(base: str) -> str | None:
    """The licence of the model at this path or hub id, if its card is on this disk; nothing is downloaded."""
    if not base:
        return None
    if Path(base).is_dir():
        return licence_of(Path(base))
    try:
        card = try_to_load_from_cache(base, "README.md")
    except HFValidationError:  # not a hub id
        return None
    return licence_of(Path(card).parent) if isinstance(card, str) else None


def licence_of(folder: Path) -> str | None:
    """The licence that the model card in `folder` states, or None."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError, SecateurError):
        return None
    front = FRONT_MATTER.match(text)
    found = re.search(r"^license(?:_name)?:\s*(\S.*)$", front[1], re.MULTILINE) if front else None
    return found[1].strip().strip("\"'") if found else None
