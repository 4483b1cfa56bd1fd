"""The cache folder for results that are expensive to compute."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import SecateurError


def cache_folder() -> Path:
    """SECATEUR_CACHE, or `secateur` in the user's cache folder.

    Raises:
        SecateurError: there is no home folder.
    """
    if own := os.environ.get("SECATEUR_CACHE"):
        return Path(own)
    if users := os.environ.get("XDG_CACHE_HOME"):
        return Path(users) / "secateur"
    try:
        return Path.home() / ".cache" / "secateur"
    except RuntimeError as error:
        raise SecateurError("there is no home folder for the cache; set SECATEUR_CACHE") from error
