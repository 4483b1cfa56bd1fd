"""`import secateur` lets diffusers look up classes of this package, without importing diffusers."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]
ADDRESS = f"{PACKAGE}."  # prefix of class names in configs of narrower models: secateur.PrunedUNet2DModel


def register_with_diffusers() -> None:
    """Let `diffusers.AutoModel` find names such as secateur.PrunedUNet2DModel, now or once it is imported."""
    if "diffusers" in sys.modules:
        _extend()
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of diffusers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def and_extend(module: ModuleType) -> None:
                execute(module)
                _extend()

            spec.loader.exec_module = and_extend  # type: ignore[method-assign]
        return spec


def _extend() -> None:
    """Let the module in which `AutoModel` looks up names find those of this package."""
    module: Any = sys.modules["diffusers"]
    kind = type(module)

    class WithAddresses(kind):  # type: ignore[misc, valid-type]
        def __getattr__(self, name: str) -> Any:
            if name.startswith(ADDRESS):
                return getattr(importlib.import_module(PACKAGE), name.removeprefix(ADDRESS))
            return super().__getattr__(name)

    module.__class__ = WithAddresses
