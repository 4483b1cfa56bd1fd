"""LoRA of a dense model, sliced so that it fits the pruned one.

A LoRA adds up @ down to the weight of a layer (Hu et al. 2022, arXiv 2106.09685, equation 3). A cut removes rows and
columns of that weight, so it removes rows of `up` and columns of `down`: merging and cutting commute.

Shapes: `down` is (rank, in) or (rank, in, height, width), `up` is (out, rank) or (out, rank, 1, 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import diffusers
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ..base.errors import ModelError
from ..base.units import number_of
from ..models.registry import describe, family_of
from ..structure import Cut, kept_entries, name_after, remove, rescaling
from .foreign import quiet
from .manifest import Manifest, dense_skeleton, manifest_of

Part = Literal["down", "up", "alpha"]

PEFT: dict[Part, str] = {"down": ".lora_A.weight", "up": ".lora_B.weight", "alpha": ".alpha"}
BIAS = ".lora_B.bias"
ENDINGS: dict[str, Part] = {  # of peft, of kohya, and of diffusers before it used peft
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    BIAS: "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
DORA = ("dora_scale", "lora_magnitude_vector")  # of kohya, of peft; diffusers drops the former
TEXT_ENCODERS = ("text_encoder", "lora_te")
KOHYA = re.compile(r"lora_(unet|transformer)_")
HEADS = re.compile(r"(base_model\.model\.|diffusion_model\.|unet\.|transformer\.)*")


@dataclass(frozen=True)
class Piece:
    """One tensor of a LoRA of the network.

    Attributes:
        key: its key in the file.
        head: beginning of the new key; kohya's spells the layer with underscores for dots.
        module: the layer.
        ending: end of the key, one of `ENDINGS`.
        tensor: the values.
    """

    key: str
    head: str
    module: str
    ending: str
    tensor: Tensor

    @property
    def part(self) -> Part:
        return ENDINGS[self.ending]

    @property
    def weight(self) -> str:
        """The parameter that the LoRA adds to."""
        return f"{self.module}.weight"

    @property
    def new_key(self) -> str:
        """kohya's stay kohya's, all others become peft's."""
        if KOHYA.match(self.head):
            return f"{self.head}{self.module.replace('.', '_')}{self.ending}"
        return f"{self.head}{self.module}{BIAS if self.ending == BIAS else PEFT[self.part]}"


def slice_lora(lora: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The LoRA of `model`, by name, from the LoRA of the dense model that it was pruned from.

    Layers of removed blocks are dropped, those of later blocks are renamed, and those of text encoders stay. Keys of
    kohya with underscores stay as they are spelled; all others get the names that diffusers writes.

    Raises:
        ModelError: `model` was not pruned, or a tensor does not belong to a LoRA of its dense base.
    """
    if dora := next((key for key in lora if any(part in key for part in DORA)), None):
        raise ModelError(f"{dora} belongs to a DoRA, whose norms depend on removed weights; it cannot be sliced")
    manifest = manifest_of(model)
    if manifest is None:
        raise ModelError(f"this {type(model).__name__} has no pruning.json: it is dense, and its LoRA fit as they are")
    dense = dense_skeleton(manifest)
    lora = _folded(lora)
    text = {key: tensor for key, tensor in lora.items() if key.startswith(TEXT_ENCODERS)}
    network = {key: tensor for key, tensor in lora.items() if key not in text}
    try:
        pieces = _pieces(network, dense)
    except ModelError as unknown:
        pieces = _pieces(_by_diffusers(network, dense, unknown), dense)
    _check(pieces, dense)
    for cut in manifest.cuts:
        pieces = _follow(pieces, dense, cut)
        remove(dense, describe(dense), cut)
    return text | _folded({piece.new_key: piece.tensor.contiguous() for piece in pieces})


def _folded(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA with each alpha beside peft's matrices multiplied into `up`: diffusers refuses a file that has both."""
    folded = {key.replace(".default.weight", ".weight"): tensor for key, tensor in lora.items()}
    for key in [key for key in folded if key.endswith(".alpha")]:
        layer = key.removesuffix(".alpha")
        down, up = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        if down in folded and up in folded:
            folded[up] = folded[up] * (folded.pop(key).item() / len(folded[down]))
    return folded


def _by_diffusers(lora: Mapping[str, Tensor], dense: nn.Module, unknown: ModelError) -> dict[str, Tensor]:
    """Convert a LoRA with the original authors' names, as many trainers write it, to diffusers' names.

    Raises:
        ModelError: `unknown`, if diffusers does not know them either.
    """
    name = family_of(dense).lora_pipeline
    if name is None:
        raise unknown
    options = {"unet_config": dense.config} if "StableDiffusion" in name and "3" not in name else {}
    try:
        with quiet():
            copied = {key: tensor.clone() for key, tensor in lora.items()}  # some converters scale in place
            found = getattr(diffusers, name).lora_state_dict(copied, **options)
    except Exception as error:  # its converters may raise anything
        raise unknown from error
    converted, alphas = found if isinstance(found, tuple) else (found, None)
    scales = {key: torch.as_tensor(alpha) for key, alpha in (alphas or {}).items()}
    return _folded({**converted, **scales})


def refit_warning(manifest: Manifest) -> str | None:
    """A warning for a model whose weights were refitted after its cuts; None if they were not.

    A LoRA adds to weights. Those of a refitted model differ from the dense ones, so the sum differs too.
    """
    steps = [step for step in manifest.steps if step["kind"] == "compensation"]
    if not steps:
        return None
    layers, before, after = (steps[-1][key] for key in ("layers", "before", "after"))
    was = "was" if layers == 1 else "were"
    return (
        f"{number_of(layers, 'layer')} {was} refitted after the cut, so the LoRA adds to other weights than it was "
        f"trained on. Without it, the output's squared distance to the dense one is {after:.3g} of its square "
        f"({before:.3g} before the refit): compare images with the LoRA"
    )


def _pieces(lora: Mapping[str, Tensor], dense: nn.Module) -> list[Piece]:
    modules = {name for name, module in dense.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    spelled = {name.replace(".", "_"): name for name in modules}
    component = "unet." if isinstance(dense, UNet2DModel | UNet2DConditionModel) else "transformer."
    return [_piece(key, tensor, modules, spelled, component) for key, tensor in lora.items()]


def _piece(key: str, tensor: Tensor, modules: set[str], spelled: Mapping[str, str], component: str) -> Piece:
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if ending is None:
        raise ModelError(
            f"{key} is no part of a LoRA of linear layers and convolutions, which is all that can be sliced"
        )
    if kohya := KOHYA.match(key):
        head, layer = kohya.group(), key[kohya.end() : -len(ending)]
        module = spelled.get(layer, layer)
    else:
        head, bare = component, HEADS.sub("", key[: -len(ending)], count=1).replace(".processor.", ".")
        module = f"{bare}.0" if f"{bare}.0" in modules else bare  # old keys say to_out for to_out.0
    if module not in modules:
        raise ModelError(f"{key} is for a layer {module}, which the dense base of the model does not have")
    return Piece(key, head, module, ending, tensor)


def _check(pieces: Iterable[Piece], dense: nn.Module) -> None:
    """Check that every layer has two matrices of one rank, in the dense layer's shape."""
    ranks: dict[str, dict[Part, int]] = {}
    for piece in pieces:
        shape, weight = piece.tensor.shape, dense.get_parameter(piece.weight).shape
        if piece.ending.endswith(".bias"):
            fits = shape == weight[:1]
        elif piece.part == "down":
            fits = len(shape) > 1 and shape[1] == weight[1] and math.prod(shape[1:]) == math.prod(weight[1:])
        else:
            fits = piece.part == "alpha" or (len(shape) > 1 and shape[0] == weight[0] and math.prod(shape[2:]) == 1)
        if not fits:
            raise ModelError(
                f"{piece.key} has shape {tuple(shape)}, and {piece.weight} of the dense base {tuple(weight)}: "
                "this is a LoRA of another model"
            )
        if piece.part != "alpha" and len(shape) > 1:
            ranks.setdefault(piece.module, {})[piece.part] = shape[0] if piece.part == "down" else shape[1]
    for module, rank in ranks.items():
        if rank.get("down") != rank.get("up"):
            raise ModelError(f"the LoRA of {module} is not two matrices of one rank")


def _follow(pieces: Iterable[Piece], dense: nn.Module, cut: Cut) -> list[Piece]:
    """The pieces after `cut`; `dense` is the model before it."""
    structure = describe(dense)
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters(remove_duplicate=False)}
    keep, factors = kept_entries(structure, cut, shapes), rescaling(structure, cut)
    followed = []
    for piece in pieces:
        module = name_after(structure, cut, piece.module)
        if module is None:
            continue
        tensor, axis = piece.tensor, 0 if piece.part == "up" else 1
        kept = keep.get(piece.weight, {}).get(axis)
        if kept is not None and piece.part != "alpha":
            tensor = torch.index_select(tensor, axis, kept)
        if piece.part == "up" and piece.weight in factors:
            tensor = tensor * factors[piece.weight]
        followed.append(replace(piece, module=module, tensor=tensor))
    return followed
