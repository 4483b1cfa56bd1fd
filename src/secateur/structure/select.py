"""Which parts of a structure may be cut, by patterns over names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from .dims import Dim, Structure


@dataclass(frozen=True)
class Selection:
    """A part of a structure, and the reason for each dim and block left out, by name."""

    structure: Structure
    left_out: Mapping[str, str]


def select(structure: Structure, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Selection:
    """Leave out dims and blocks that `include` does not match, or `exclude` does.

    A pattern is a glob over names of dims, blocks and modules: `*.heads`, `transformer_blocks.1?`, `mid_block.*`. An
    excluded module is not changed: a dim is left out if any of its slices is there, a block if any of its modules is.
    Only included modules may change: a dim is kept if its name matches, or if all of its slices are in matching
    modules. Dims of one link are left out together.

    Raises:
        ValueError: a pattern matches nothing.
    """
    for pattern in (*include, *exclude):
        if pattern != "*" and not _matches_anything(structure, pattern):
            raise ValueError(f"pattern {pattern!r} matches no width, block or module that can be cut")
    left_out: dict[str, str] = {}
    for link, dims in structure.links.items():
        reasons = {dim.name: reason for dim in dims if (reason := _why_not_dim(dim, include, exclude))}
        if not reasons:
            continue
        first = next(iter(reasons))
        for dim in dims:
            left_out[dim.name] = reasons.get(dim.name, f"moves with {first}, which is {reasons[first]} (link {link})")
    modules = {piece.module for dim in structure.dims.values() for piece in dim.slices}
    for name in structure.blocks:
        inside = [module for module in modules if module.startswith(f"{name}.")]
        if reason := _why_not_named([name], [name, *inside], include, exclude):
            left_out[name] = reason
    dims_kept = {name: dim for name, dim in structure.dims.items() if name not in left_out}
    blocks = {name: block for name, block in structure.blocks.items() if name not in left_out}
    attention = {module: dim for module, dim in structure.attention.items() if dim in dims_kept}
    attributes = {path: dim for path, dim in structure.attributes.items() if dim in dims_kept}
    outside = tuple(block for name, block in structure.blocks.items() if name in left_out)
    kept = replace(
        structure,
        dims=dims_kept,
        blocks=blocks,
        attention=attention,
        attributes=attributes,
        outside=structure.outside + outside,
    )
    return Selection(kept, left_out)


def _why_not_dim(dim: Dim, include: Sequence[str], exclude: Sequence[str]) -> str:
    modules = [piece.module for piece in dim.slices]
    return _why_not_named([dim.name], modules, include, exclude)


def _why_not_named(names: list[str], modules: list[str], include: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a dim or block with these `names`, which changes `modules`, is left out; empty if it is not."""
    if found := next((pattern for pattern in exclude if any(_matches([*names, *modules], pattern))), None):
        return f"excluded by {found!r}"
    if any(any(_matches(names, pattern)) or all(_matches(modules, pattern)) for pattern in include):
        return ""
    return "not included"


def _matches(names: Iterable[str], pattern: str) -> list[bool]:
    """Whether each name, or a module that holds it, matches; `a.*` means the whole of `a`."""
    return [any(fnmatchcase(each, pattern) for each in (*_parents(name), f"{name}.")) for name in names]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _matches_anything(structure: Structure, pattern: str) -> bool:
    names = [*structure.dims, *structure.blocks]
    names += [piece.module for dim in structure.dims.values() for piece in dim.slices]
    return any(_matches(names, pattern))
