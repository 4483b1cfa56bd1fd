"""The proven structure of a model of an undeclared class; each class and config is proven once.

Widths are proven on a shallow copy with a small config. Blocks are proven on one that is as deep as the model, since a
model may treat every n-th layer differently. The result is kept in the cache folder, until a library or the code of the
class changes.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...base.cache import cache_folder
from ...base.errors import ModelError, SecateurError, first_line
from ...base.files import write_json
from ...structure import Structure, check_random_cuts
from ...structure.known_values import placed_like
from ..family import Size, architecture_of, config_of
from .fit import Template, counts_of, fit, lists_of
from .inputs import candidates, fixed_size, working
from .prove import Proven, prove
from .shrink import reductions

LIBRARIES = ("secateur", "torch", "diffusers")
VERSION = 3  # of the cached results
SMALL = 2_000_000  # models up to this many parameters are proven on themselves
LARGEST = 50_000_000  # parameters of a small copy, at most
SHALLOW = 3  # blocks per list
DEEP_CUTS = 6
SIDE, FRAMES = 64, 5  # of example latents, where the config says no size


class Discovery(msgspec.Struct, frozen=True):
    """The result for a class with a config: its template, and on which of the example inputs it runs."""

    template: Template
    inputs: int


def describe(model: nn.Module) -> Structure:
    """The proven structure of `model`.

    Raises:
        ValueError: discovery fails for its class; the message says why.
    """
    return discover(model).structure


def discover(model: nn.Module) -> Proven:
    """The proven structure of `model`, and why everything else is not cut.

    Raises:
        ValueError: discovery fails for its class; the message says why.
    """
    try:
        return fit(_discovery(model).template, model)
    except SecateurError as error:
        raise ValueError(str(error)) from error


def example_inputs(model: nn.Module, batch_size: int, size: Size | None = None) -> dict[str, Any]:
    """Random keyword arguments of `model`, in its dtype and on its device; `size` is the height and width of latents.

    Raises:
        ModelError: discovery fails for its class.
    """
    index = _discovery(model).inputs
    config = config_of(model)
    own = config.get("sample_size")
    size = size or ((own, own) if isinstance(own, int) else fixed_size(config) or (SIDE, SIDE))
    inputs = next(each for i, each in enumerate(candidates(model, batch_size, FRAMES, size)) if i == index)
    return tree_map_only(Tensor, functools.partial(placed_like, next(model.parameters())), inputs)


def _discovery(model: nn.Module) -> Discovery:
    """From the cache, or proven now."""
    config = _initial(model)
    place = cache_folder() / "structures" / f"{architecture_of(model).__name__}-{_key(model, config)}.json"
    if place.is_file():
        try:
            return msgspec.json.decode(place.read_bytes(), type=Discovery)
        except msgspec.MsgspecError:  # damaged: proven again
            pass
    found = _prove(model, config)
    write_json(place, msgspec.to_builtins(found))
    return found


def _key(model: nn.Module, config: Mapping[str, Any]) -> str:
    """Identifies a proof: the class, its config, the versions of the libraries, and the code of classes outside of
    them."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    classes = {each for module in model.modules() for each in type(module).__mro__}
    own = sorted(_code(each) for each in classes if each.__module__.partition(".")[0] not in (*LIBRARIES, "builtins"))
    facts = [VERSION, architecture_of(model).__module__, versions, config, own]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def _code(each: type) -> str:
    """A hash of the file of a class, or of its functions if it was not read from a file."""
    try:
        written = Path(inspect.getfile(each)).read_bytes()
    except (OSError, TypeError):
        codes = [value.__code__ for value in vars(each).values() if inspect.isfunction(value)]
        written = repr([(code.co_code, code.co_names, code.co_consts) for code in codes]).encode()
    return hashlib.sha256(written).hexdigest()


def _initial(model: nn.Module) -> dict[str, Any]:
    """The entries of the config with which the class is built."""
    known = inspect.signature(architecture_of(model).__init__).parameters
    return {key: value for key, value in config_of(model).items() if key in known}


def _prove(model: nn.Module, config: Mapping[str, Any]) -> Discovery:
    shallow, deep, inputs, index = _running_copy(model, config)
    proven = prove(shallow, inputs)
    shapes = {name: tuple(parameter.shape) for name, parameter in shallow.named_parameters(remove_duplicate=False)}
    counts = {name: counts_of(shallow, dim, proven.structure) for name, dim in proven.structure.dims.items()}
    template = Template(proven, shapes, lists_of(shallow), counts)
    if {name: len(elements) for name, elements in lists_of(model).items()} != {
        name: len(elements) for name, elements in lists_of(shallow).items()
    }:
        template = _proven_deep(template, _built(architecture_of(model), deep), index)
    return Discovery(template, index)


def _running_copy(
    model: nn.Module, config: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any], dict[str, Any], int]:
    """A small and shallow model of the same class, or a copy of the model if it is small; the config of one as deep as
    the model, and inputs with their index.

    Raises:
        ModelError: none can be built and called; the message says why the first one cannot.
    """
    if sum(parameter.numel() for parameter in model.parameters()) <= SMALL and not _is_meta(model):
        itself = copy.deepcopy(model).eval().float().cpu()
        return itself, config, *working(itself)
    reasons = []
    for shallow, deep in zip(reductions(config, SHALLOW), reductions(config), strict=True):
        try:
            small = _built(architecture_of(model), shallow)
            return small, deep, *working(small)
        except ModelError as reason:
            reasons.append(reason)
    raise reasons[0]


def _built(architecture: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    name = architecture.__name__
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in architecture(**config).parameters())
        if size > LARGEST:
            raise ModelError(f"a small copy of {name} would have {size / 1e6:.0f} M parameters still")
        return architecture(**config).eval()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"no small copy of {name} can be built: {first_line(error)}") from error


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _proven_deep(template: Template, deep: nn.Module, index: int) -> Template:
    """Leave out the blocks, or the widths, for which random cuts of a copy as deep as the model fail."""
    inputs = next(each for i, each in enumerate(candidates(deep)) if i == index)
    structure = fit(template, deep).structure
    small = template.proven.structure
    proven = template.proven
    if alone := _only_random(deep, replace(structure, dims={}, attention={}, attributes={}), inputs):
        proven = _left_whole(proven, replace(proven.structure, blocks={}), small.blocks, alone)
    if alone := _only_random(deep, replace(structure, blocks={}), inputs):
        proven = _left_whole(proven, replace(proven.structure, dims={}), small.dims, alone)
    return replace(template, proven=proven)


def _left_whole(proven: Proven, kept: Structure, names: Iterable[str], reason: str) -> Proven:
    reasons = dict.fromkeys(names, f"cuts of a model of full depth are wrong: {reason}")
    return Proven(kept, {**proven.left_out, **reasons})


def _only_random(model: nn.Module, structure: Structure, inputs: Mapping[str, Any]) -> str:
    """What is wrong with a random cut of `structure`; empty if nothing is.

    Raises:
        ModelError: `model` does not run.
    """
    if not structure.dims and not structure.blocks:
        return ""
    try:
        checks = list(check_random_cuts(model, structure, inputs, DEEP_CUTS))
    except Exception as error:  # of any type, from inside the model
        raise ModelError(f"a small copy of full depth does not run: {first_line(error)}") from error
    return next((check.hint or f"error {check.error:.1e}" for check in checks if not check.ok), "")
