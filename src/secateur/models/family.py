"""The record of one architecture: everything about it that the library must know.

The defaults fit most denoisers of diffusers: `model(x, timestep=t, **conditions)`, with a `config` that has the size of
the sample.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from ..base.errors import ModelError
from ..base.units import number_of
from ..structure import Structure
from .conditions import UNCONDITIONAL, Conditions
from .layout import Layout

Shape = tuple[int, ...]  # (C, H, W) of one sample, (C, T, H, W) of a clip
Size = tuple[int, int]  # height and width
Draw = Callable[..., Tensor]  # sizes -> standard normal values of shape (batch, *sizes)
Prompts = Callable[[Any, list[str], Size, bool], dict[str, Tensor]]


class Labels(NamedTuple):
    """Class labels that a network takes.

    Attributes:
        classes: their number, "no class" not counted.
        key: entry of the config that holds the number.
        null: whether there is one more embedding, the last, for "no class" (Peebles & Xie 2023, section 3.1).
    """

    classes: int
    key: str
    null: bool


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """The diffusers config of `model`.

    Raises:
        ModelError: it has none.
    """
    config = getattr(model, "config", None)
    if config is None:
        name = type(model).__name__
        raise ModelError(f"{name} has no config to read its sizes from: register a Family({name}, ...) that says them")
    return config


def architecture_of(model: nn.Module) -> type[nn.Module]:
    """The class that builds `model`, instead of a subclass that only marks it as pruned."""
    return next(each for each in type(model).__mro__ if "__init__" in vars(each))


def shape_by_config(model: nn.Module) -> Shape:
    """(C, H, W) by the `in_channels` and `sample_size` of the config.

    Raises:
        ModelError: the config does not say, or there is none.
    """
    config = config_of(model)
    if config.get("sample_size") is None:
        raise ModelError(f"the config of {type(model).__name__} has no sample_size; set it to the image size")
    return config["in_channels"], *sides(config["sample_size"])


def sides(size: int | Size) -> Size:
    """Height and width of a size, which may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def sample_and_timestep(
    network: nn.Module, x: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a `forward` that takes the sample first, the time as `timestep` if at all, and conditions by
    name."""
    first, *others = inspect.signature(network.forward).parameters.values()
    takes_time = any(each.name == "timestep" or each.kind is each.VAR_KEYWORD for each in others)
    return {first.name: x} | ({"timestep": timesteps_B} if takes_time else {}) | dict(kwargs)


def denoised_channels(output_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """The output without the half of its channels that predicts the variance, if it has one.

    Raises:
        ModelError: the network does not predict as many channels as it takes, or twice as many, or another size.
    """
    taken, predicted = x_BCHW.shape[1], output_BCHW.shape[1]
    if predicted not in (taken, 2 * taken):
        raise ModelError(
            f"the model takes {number_of(taken, 'channel')} and predicts {predicted}; this is not supported"
        )
    size, found = ("x".join(map(str, each.shape[2:])) for each in (x_BCHW, output_BCHW))
    if found != size:
        raise ModelError(
            f"the model takes samples of {size} and predicts {found}; does its sample_size fit its patches?"
        )
    return output_BCHW[:, :taken]


def as_it_is(output: Tensor, x: Tensor) -> Tensor:
    """The whole output."""
    return output


def no_conditions(model: nn.Module, batch_size: int, draw: Draw) -> Conditions:
    """An architecture that takes no text."""
    return UNCONDITIONAL


def text_mask(batch_size: int, tokens: int) -> Tensor:
    """A mask (B, tokens) of a caption that fills three quarters: 1 for its tokens, 0 for padding."""
    return (torch.arange(tokens) < 3 * tokens // 4).long().repeat(batch_size, 1)


def labels_by_config(model: nn.Module) -> Labels | None:
    """Labels by `num_class_embeds`, or by `num_embeds_ada_norm` with a "no class"; None without `class_labels`.

    Raises:
        ModelError: labels that are not class indices.
    """
    config: Mapping[str, Any] = getattr(model, "config", {})
    if "class_labels" not in inspect.signature(model.forward).parameters:  # PixArt keeps DiT's entries in its config
        return None
    if (kind := config.get("class_embed_type")) is not None:
        raise ModelError(f"{type(model).__name__} takes labels by class_embed_type={kind!r}, which is not supported")
    for key, null in (("num_class_embeds", False), ("num_embeds_ada_norm", True)):
        if config.get(key):
            return Labels(config[key], key, null)
    return None


def counted(**keys: str) -> Callable[[nn.Module], dict[str, Any]]:
    """The entries of a config that count the blocks of lists: `counted(transformer_blocks="num_layers")`."""
    return lambda model: {key: len(getattr(model, name)) for name, key in keys.items()}


def counted_by_rebuilding(model: nn.Module) -> dict[str, Any]:
    """The entries of the config that count the blocks left in each list, found by building the class on the meta
    device.

    An entry counts a list if its value is the original length of the list, and if the class builds a list of the
    present length when given that instead.
    """
    config, lengths = config_of(model), _lengths(model)
    by_config = _rebuilt_lengths(model, {})
    found: dict[str, Any] = {}
    for name, length in lengths.items():
        before = by_config.get(name, length)
        for key, value in config.items():
            counts = type(value) is int and value == before != length
            if counts and _rebuilt_lengths(model, {key: length}).get(name) == length:
                found[key] = length
                break
    return found


def _lengths(model: nn.Module) -> dict[str, int]:
    return {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _rebuilt_lengths(model: nn.Module, changes: Mapping[str, Any]) -> dict[str, int]:
    known = inspect.signature(type(model).__init__).parameters
    config = {key: value for key, value in config_of(model).items() if key in known}
    with init_empty_weights(include_buffers=False):
        try:
            return _lengths(type(model)(**{**config, **changes}))
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError):
            return {}  # this entry means something else


def whole_model(model: nn.Module) -> nn.Module:
    """All of the model is pruned."""
    return model


def patch_by_config(model: nn.Module) -> int:
    """Side of a patch, by `patch_size` of the config; 1 if it has none."""
    return config_of(model).get("patch_size") or 1


@dataclass(frozen=True)
class Family:
    """Everything about one architecture. Only `architecture` and `describe` are required.

    Attributes:
        architecture: the class.
        describe: declares the structure of a live model.
        call: (model, conditions) to the prediction, for a network that is called by a user's own function; the fields
            up to `taken_shape` are then not used.
        arguments: (network, sample, timesteps (B,), conditions by argument) to keyword arguments of `forward`, without
            `return_dict`. The sample is an image or its latents (B, C, H, W), and time is in the unit of the process.
        prediction: (output, sample) to the prediction, of the shape of the sample.
        input_shape: (C, H, W) of one sample: an image, or latents as the autoencoder gives them.
        taken_shape: (C, H, W) of the network's input for a sample of a height and width, if it differs from the
            sample's.
        conditions: random text states, pooled text and sizes for a batch, drawn with the given function.
        example_inputs: keyword arguments for a batch of a size, if they are not `arguments` of a random sample.
        labels: the class labels that a model takes, if any.
        depth_entries: entries of the config to update when blocks are removed, so that plain diffusers loads it.
        prompts: by class name of a pipeline, (pipeline, prompts, image size, without) to conditions; `without` asks for
            the pipeline's null condition, the empty prompt or zeros.
        rescaled: (guided prediction, conditional prediction) to the former as rescaled by its pipeline.
        unguided: the `guidance_scale` of its pipeline that means no guidance.
        network: the part of a loaded model that is pruned.
        patch_size: pixels of the sample per token, along each side.
        even_levels: whether its pipeline spaces the noise levels of a flow evenly, overriding the scheduler's spacing.
        sampled_in: default steps of its pipeline, for guidance-distilled models (`guidance_embeds`), which were trained
            at those times only.
        shift_by_steps: whether its pipeline shifts noise levels by the number of tokens and of steps (Flux.2).
        counts_by_place: whether blocks depend on their position among all, so that its class cannot build a model
            without some, and programs that read single files do not run one (Chroma).
        layout: the tensor names of its authors, in which single files are written; None: it is not written as one.
        lora_pipeline: the diffusers pipeline whose loader knows the names of the architecture's LoRAs.
        loops_over_samples: whether a pass loops over the samples of a batch, as over a list or over captions of
            different lengths; memory of large batches is then counted from small ones.
        used_outside: patterns over names of modules that are called from outside the block that holds them; sharding
            (FSDP) must wrap them separately.
    """

    architecture: type[nn.Module]
    describe: Callable[[Any], Structure]
    call: Callable[[nn.Module, Conditions], Tensor] | None = None
    arguments: Callable[[Any, Tensor, Tensor, Mapping[str, Any]], dict[str, Any]] = sample_and_timestep
    prediction: Callable[[Tensor, Tensor], Tensor] = denoised_channels
    input_shape: Callable[[Any], Shape] = shape_by_config
    taken_shape: Callable[[Any, Size], Shape] | None = None
    conditions: Callable[[Any, int, Draw], Conditions] = no_conditions
    example_inputs: Callable[[Any, int, Size | None], dict[str, Any]] | None = None
    labels: Callable[[Any], Labels | None] = labels_by_config
    depth_entries: Callable[[Any], Mapping[str, Any]] = counted_by_rebuilding
    prompts: Mapping[str, Prompts] = field(default_factory=dict)
    rescaled: Callable[[Tensor, Tensor], Tensor] = as_it_is
    unguided: float = 1.0
    network: Callable[[Any], nn.Module] = whole_model
    patch_size: Callable[[Any], int] = patch_by_config
    even_levels: bool = False
    shift_by_steps: bool = False
    sampled_in: int | None = None
    counts_by_place: bool = False
    layout: Layout | None = None
    lora_pipeline: str | None = None
    loops_over_samples: bool = False
    used_outside: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        return self  # copies of a network share its family
