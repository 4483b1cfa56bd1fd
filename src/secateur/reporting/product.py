"""What a run made: the folder to load, and what somebody who loads it should know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ..base.errors import SecateurError
from .run import Run

FOLDERS = ("pipeline", "model", "compensated", "pruned")  # the best that a run made is the first that is there
MEGABYTE = 10**6
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True)
class Product:
    """A folder to load.

    Attributes:
        path: of the folder.
        pipeline: whether it is a whole pipeline; else one network.
        bytes: on disk.
        base: the model that it was cut from.
        licence: of the base, where a model card says it.
    """

    path: str
    pipeline: bool
    bytes: int
    base: str
    licence: str | None

    @property
    def size(self) -> str:
        """On disk, in MB."""
        return f"{self.bytes / MEGABYTE:,.1f} MB"

    @property
    def snippet(self) -> str:
        """Python that loads it."""
        return load_snippet(self.path, self.pipeline)


def load_snippet(place: str, pipeline: bool) -> str:
    """Python that loads the folder or hub id `place`."""
    if pipeline:
        return (
            "import secateur  # diffusers can then load what was cut\n"
            "from diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({place!r})"
        )
    return f"import secateur\n\nmodel = secateur.from_pretrained({place!r})"


def product_of(run: Run) -> Product | None:
    """The model that the run made; None where it made none."""
    folder = next((run.folder / name for name in FOLDERS if (run.folder / name).is_dir()), None)
    if folder is None:
        return None
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    base = str(run.config.get("model") or "")
    licence = licence_of(folder) or licence_of_base(base)
    return Product(str(folder), (folder / "model_index.json").is_file(), size, base, licence)


def licence_of_base(base: str) -> str | None:
    """The licence of the model of this path or hub id, where its card is on this disk; nothing is downloaded."""
    if not base:
        return None
    if Path(base).is_dir():
        return licence_of(Path(base))
    try:
        card = try_to_load_from_cache(base, "README.md")
    except HFValidationError:  # no hub id
        return None
    return licence_of(Path(card).parent) if isinstance(card, str) else None


def licence_of(folder: Path) -> str | None:
    """The licence that the model card in `folder` states; None where there is no card, or it states none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError, SecateurError):
        return None
    front = FRONT_MATTER.match(text)
    found = re.search(r"^license(?:_name)?:\s*(\S.*)$", front[1], re.MULTILINE) if front else None
    return found[1].strip().strip("\"'") if found else None
