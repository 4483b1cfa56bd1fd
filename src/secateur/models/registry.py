"""The family of each architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import diffusers
from accelerate.utils import extract_model_from_parallel
from diffusers import ConfigMixin, ModelMixin
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..base.errors import ModelError, StructureError
from ..structure import Block, Structure
from . import discovery
from .families.aura_flow import AURA_FLOW
from .families.autoencoder_kl import AUTOENCODER_KL, AUTOENCODER_KL_DECODER
from .families.chroma import CHROMA
from .families.dit import DIT
from .families.flux import FLUX
from .families.flux2 import FLUX2
from .families.lumina2 import LUMINA2
from .families.pixart import PIXART
from .families.qwen_image import QWEN_IMAGE
from .families.sana import SANA
from .families.sd3 import SD3
from .families.unet2d import UNET2D
from .families.unet2d_condition import UNET2D_CONDITION
from .families.wan import WAN
from .families.z_image import Z_IMAGE
from .family import Family, architecture_of, sample_and_timestep

DECLARED = (UNET2D, UNET2D_CONDITION, DIT, PIXART, SD3, FLUX, CHROMA, SANA, AUTOENCODER_KL, AUTOENCODER_KL_DECODER)
DISCOVERED = (FLUX2, QWEN_IMAGE, Z_IMAGE, LUMINA2, AURA_FLOW, WAN)  # only how they are called is declared
BUILT_IN = (*DECLARED, *DISCOVERED)

OWN = "_secateur_family"  # attribute of a network whose family differs from that of its class

_FAMILIES: dict[type[nn.Module], Family] = {family.architecture: family for family in BUILT_IN}


def register_family(family: Family) -> None:
    """Declare your own architecture, or another family for a known one."""
    _FAMILIES[family.architecture] = family


def register_structure(architecture: type[nn.Module], describe: Callable[[Any], Structure]) -> None:
    """Declare the structure of an architecture that is called like diffusers' denoisers.

    For one that is called differently, or has no diffusers config, see `register_family`.
    """
    register_family(Family(architecture, describe))


def families() -> tuple[Family, ...]:
    """All families that are registered."""
    return tuple(_FAMILIES.values())


def family_of(model: nn.Module) -> Family:
    """The family of `model`, or of the network inside a wrapper of accelerate or torch.compile.

    A network that is called by a user's own functions has its own family (`attach_family`). An unregistered class has
    its base class's family, or else one whose structure is discovered; of diffusers' own classes it is not known how
    they are called.
    """
    network = network_of(model)
    attached: _Attachment | None = vars(network).get(OWN)
    if attached is not None and attached.family is not None:
        return attached.family
    architecture = type(network)
    family = next((_FAMILIES[each] for each in architecture.__mro__ if each in _FAMILIES), None)
    if family is not None:
        return family
    called = _unknown if architecture_of(network).__module__.startswith("diffusers.") else sample_and_timestep
    return Family(architecture, _discovered, arguments=called, example_inputs=discovery.example_inputs)


def _unknown(network: nn.Module, *_: Any) -> dict[str, Any]:
    """Refuse to call a class of diffusers that is not declared: several count time in [0, 1], or from noise to image.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"how {type(network).__name__} is called is not declared, so it can be inspected, planned and cut by magnitude "
        "only: give forward= and loss=, or declare a Family (docs/adding-an-architecture.md)"
    )


def check_callable(network: nn.Module) -> None:
    """Check that it is known how `network` is called, before long work starts.

    Raises:
        ModelError: it is not.
    """
    if family_of(network).arguments is _unknown:
        _unknown(network_of(network))


class _Attachment:
    """A family that is attached to a network, to its copies, and to networks `along` with it, until all lose it."""

    def __init__(self, family: Family, before: _Attachment | None) -> None:
        self.family: Family | None = family
        self.before = before
        self.along: list[_Attachment] = []

    def __deepcopy__(self, memo: object) -> _Attachment:
        return self


def attach_family(network: nn.Module, family: Family, along: nn.Module | None = None) -> None:
    """Give `network` and its copies, but not its class, this `family`, as long as `along` has its own."""
    attachment = vars(network)[OWN] = _Attachment(family, vars(network).get(OWN))
    if along is not None:
        vars(along)[OWN].along.append(attachment)


def detach_family(network: nn.Module) -> None:
    """Undo the last `attach_family`, also for copies of the network that were made since."""
    attachment: _Attachment = vars(network).pop(OWN)
    if attachment.before is not None:
        vars(network)[OWN] = attachment.before
    for each in (attachment, *attachment.along):
        each.family = None


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a wrapper of accelerate or torch.compile."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def supported_architectures() -> tuple[str, ...]:
    """Class names that `describe` knows."""
    return tuple(architecture.__name__ for architecture in _FAMILIES)


def unsupported(name: str) -> str:
    """The message for an undeclared architecture."""
    return (
        f"{name} has no declared structure; supported: {', '.join(supported_architectures())}. "
        "docs/adding-an-architecture.md shows how to declare one"
    )


def is_known(name: str) -> bool:
    """Whether there is an architecture of that name, declared or in diffusers."""
    try:
        return architecture_named(name) is not None
    except KeyError:
        return False


def architecture_named(name: str) -> type[Any]:
    """The class called `name` with a declared structure, or else the diffusers model of that name.

    Raises:
        KeyError: there is none.
    """
    declared = {architecture.__name__: architecture for architecture in _FAMILIES}
    found = declared.get(name) or getattr(diffusers, name, None)
    if not isinstance(found, type) or not (name in declared or issubclass(found, ModelMixin)):
        raise KeyError(name)
    return found


def describe(model: nn.Module) -> Structure:
    """The structure of `model`, or of the network inside a wrapper, read from its live modules, so that a pruned model
    can be described again.

    Raises:
        StructureError: the architecture is not declared, the model lacks a declared parameter, or it is quantized.
    """
    network = network_of(model)
    _refuse_quantized(network)
    return _with_all_elements(network, _with_all_parameters(network, family_of(network).describe(network)))


def left_out(model: nn.Module) -> Mapping[str, str]:
    """What discovery does not cut, and why, by name; empty for a declared architecture.

    Raises:
        StructureError: as `describe`.
    """
    is_declared = family_of(model).describe not in (_discovered, discovery.describe)
    return {} if is_declared else discovery.discover(network_of(model)).left_out


def _discovered(model: nn.Module) -> Structure:
    if not isinstance(model, ConfigMixin):
        raise StructureError(unsupported(type(model).__name__))
    try:
        return discovery.discover(model).structure
    except ValueError as error:
        name = type(model).__name__
        raise StructureError(
            f"{name} is not declared, and its structure could not be discovered: {error}. "
            "docs/adding-an-architecture.md shows how to declare one"
        ) from error


def _refuse_quantized(model: nn.Module) -> None:
    """Refuse weights that are codes: integers, or tensors of a class that decodes them, such as torchao's."""
    quantizer = getattr(model, "hf_quantizer", None)  # of diffusers
    coded = [name for name, parameter in model.named_parameters() if _is_coded(parameter)]
    if quantizer is not None or coded:
        by = f"{coded[0]} holds codes" if quantizer is None else type(quantizer).__name__
        raise StructureError(
            f"{type(model).__name__} is quantized ({by}), which cannot be pruned; give the model before that"
        )


def _is_coded(parameter: nn.Parameter) -> bool:
    if isinstance(parameter, DTensor):
        return False
    return is_traceable_wrapper_subclass(parameter) or not (parameter.is_floating_point() or parameter.is_complex())


def _with_all_elements(model: nn.Module, structure: Structure) -> Structure:
    """`structure` with the other elements of the lists that its blocks are in as `outside`: they cannot be removed."""
    lists = dict.fromkeys(name.rpartition(".")[0] for name, block in structure.blocks.items() if block.listed)
    elements = [f"{name}.{child}" for name in lists for child, _ in model.get_submodule(name).named_children()]
    staying = tuple(Block(name, listed=True) for name in elements if name not in structure.blocks)
    return replace(structure, outside=staying)


def _with_all_parameters(model: nn.Module, structure: Structure) -> Structure:
    """Check that `model` has all parameters of `structure`: LoRA wraps layers, which renames their weights."""
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named = (piece.parameter for dim in structure.dims.values() for piece in dim.slices)
    lacking = next((name for name in named if name not in present), None)
    if lacking is not None:
        layer, _, name = lacking.rpartition(".")
        if f"{layer}.parametrizations.{name}" in dict(model.named_modules()):
            raise StructureError(
                f"{lacking} is parametrized: call torch.nn.utils.parametrize.remove_parametrizations on {layer}"
            )
        raise StructureError(
            f"{type(model).__name__} has no parameter {lacking}: merge or unload adapters, or correct the declaration"
        )
    return structure
