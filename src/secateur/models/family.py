"""All that is particular to one architecture, in one record.

The defaults are what most denoisers of diffusers do: `model(x, timestep=t, **conditions)`, with a `config` that says
the size of the sample.
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
from ..structure import Structure
from .conditions import UNCONDITIONAL, Conditions

Shape = tuple[int, ...]  # (C, H, W) of one sample, (C, T, H, W) of a clip
Size = tuple[int, int]  # height and width
Draw = Callable[..., Tensor]  # sizes -> standard normal values of shape (batch, *sizes)
Prompts = Callable[[Any, list[str], Size, bool], dict[str, Tensor]]


class Labels(NamedTuple):
    """Class labels that a network takes.

    Attributes:
        classes: their number, "no class" not counted.
        key: entry of the config that holds the number.
        null: whether one more embedding, the last, stands for "no class" (Peebles & Xie 2023, section 3.1).
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
    """The class that builds `model`: without classes around it that only say that it was pruned."""
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
    """Height and width of a size that is one number where they are equal."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def sample_and_timestep(
    network: nn.Module, x: Tensor, timesteps_B: Tensor, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """`forward` takes the sample first, the time as `timestep` where it takes one, and the conditions by name."""
    first, *others = inspect.signature(network.forward).parameters.values()
    takes_time = any(each.name == "timestep" or each.kind is each.VAR_KEYWORD for each in others)
    return {first.name: x} | ({"timestep": timesteps_B} if takes_time else {}) | dict(kwargs)


def denoised_channels(output_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """The output without the half of its channels that learns the variance, if it has one.

    Raises:
        ModelError: the network does not predict as many channels as it takes, or twice as many.
    """
    taken, predicted = x_BCHW.shape[1], output_BCHW.shape[1]
    if predicted not in (taken, 2 * taken):
        raise ModelError(f"the model takes {taken} channels and predicts {predicted}; this is not supported")
    return output_BCHW[:, :taken]


def as_it_is(output: Tensor, x: Tensor) -> Tensor:
    """The whole output."""
    return output


def no_conditions(model: nn.Module, batch_size: int, draw: Draw) -> Conditions:
    """An architecture that takes no text."""
    return UNCONDITIONAL


def text_mask(batch_size: int, tokens: int) -> Tensor:
    """1 for the tokens of a caption that fills three quarters, 0 for what it is padded with, (B, tokens)."""
    return (torch.arange(tokens) < 3 * tokens // 4).long().repeat(batch_size, 1)


def labels_by_config(model: nn.Module) -> Labels | None:
    """Labels by `num_class_embeds`, or `num_embeds_ada_norm` where there is a "no class"; None without `class_labels`.

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
    """The entries of the config that count the blocks left in each list, found by building the class without memory.

    An entry counts a list if it held the length that the list has by the config, and if with the present length in its
    place the class builds a list of that length.
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
    """Sides of a patch, by `patch_size` of the config; 1 where it has none."""
    return config_of(model).get("patch_size") or 1


@dataclass(frozen=True)
class Family:
    """All that is particular to one architecture. Only `architecture` and `describe` are needed.

    Attributes:
        architecture: the class.
        describe: declares the structure of a live model.
        call: (model, conditions) to the prediction, of a network that a user's own function calls; what follows up to
            `taken_shape` is then not asked for.
        arguments: (network, sample, timesteps (B,), conditions by argument) to keyword arguments of `forward`, without
            `return_dict`. The sample is an image or its latents (B, C, H, W), and time is in the unit of the process.
        prediction: (output, sample) to the prediction, of the shape of the sample.
        input_shape: (C, H, W) of one sample: an image, or latents as the autoencoder gives them.
        taken_shape: (C, H, W) of what the network takes for a sample of a height and width, where it is another.
        conditions: random text states, pooled text, sizes of a batch, drawn by the function that it is given.
        example_inputs: keyword arguments of a batch of a size, where they are not `arguments` of a random sample.
        labels: the class labels that a model takes, if any.
        depth_entries: entries of the config that follow the blocks that are left, so that plain diffusers loads it.
        prompts: by class name of a pipeline, (pipeline, prompts, image size, without) to conditions; `without` asks
            for what the pipeline guides away from, the empty prompt or zeros.
        rescaled: (guided prediction, prediction at the conditions) to what its pipeline makes of the former.
        unguided: the `guidance_scale` of its pipeline that stands for no guidance.
        network: what of a loaded model is pruned.
        patch_size: pixels of the sample to a token, along each side.
        even_levels: its pipeline spaces the noise levels of a flow evenly, whatever the scheduler does by itself.
        sampled_in: steps that its pipeline takes by default, where the model is told the guidance that it was distilled
            with (`guidance_embeds`): it knows no other times.
        shift_by_steps: its pipeline shifts them by the number of tokens and of steps (Flux.2).
        counts_by_place: a block is told its place among all, so that its class cannot build a model that lost some,
            and programs that read single files do not run one (Chroma).
        used_outside: patterns over names of modules that are called from outside of the block that holds them; what
            shards block by block (FSDP) must wrap them apart.
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
    used_outside: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        return self  # a copy of a network is of the same family
