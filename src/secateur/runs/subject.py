"""The model that a function works on, opened from any form in which a user gives it, with its process and structure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn
from typing_extensions import Unpack

from ..base.devices import choose_device
from ..base.errors import ModelError, SecateurError, first_line, is_out_of_memory, require
from ..base.shards import is_sharded
from ..criteria import criterion_named
from ..data.autoencoder import Autoencoder, open_autoencoder
from ..io.checkpoint import from_pretrained
from ..io.levels import process_of
from ..io.locate import Component
from ..io.pipeline import Loaded, as_expert, load, loaded_from_pipeline, open_pipeline
from ..io.pruned import class_name, saved_module
from ..io.sharded import whole_model
from ..models.families.autoencoder_kl import AutoencoderKLDecoder
from ..models.network import IMAGE_CHANNELS, as_network, device_of, input_shape
from ..models.registry import describe, network_of
from ..process.base import Process
from ..process.named import ProcessLike, config_of, is_partial, is_process, named, over
from ..process.reconstruction import Reconstruction, reconstruction_by
from ..results import Ranking
from ..schedules import CutConfig
from ..structure import Structure
from ..structure.select import select
from .arguments import WeightsArguments

ACCEPTED = "a folder, a hub id, an nn.Module, a DiffusionPipeline, or what secateur.load returned"


@dataclass(frozen=True)
class Subject:
    """A model with its process, its structure, and the pipeline that it is part of.

    Attributes:
        loaded: model and process, and the pipeline that it was taken from.
        structure: that of the model, without `excluded`.
        name: its name in manifests and runs.
        settings: how it was opened, for the run's settings.
        excluded: dims and blocks of the model that must not be cut.
    """

    loaded: Loaded
    structure: Structure
    name: str
    settings: Mapping[str, Any] = field(default_factory=lambda: {"component": None, "process": "auto"})

    excluded: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    @property
    def process(self) -> Process:
        return self.loaded.process

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def on_cpu(self) -> bool:
        """Whether processes communicate on the CPU."""
        return self.device.type == "cpu"

    @property
    def in_pipeline(self) -> bool:
        """Whether the result is a whole pipeline."""
        return self.loaded.pipeline is not None

    @cached_property
    def autoencoder(self) -> Autoencoder | None:
        """Turns images into the latents that the model works on, and back; None for a model of pixels."""
        return None if self.loaded.vae is None else open_autoencoder(self.loaded.vae, self.device)

    def with_model(self, model: nn.Module) -> Subject:
        """The subject with `model` in place of its own, and with its structure."""
        return replace(self, loaded=replace(self.loaded, model=model), structure=described(self.name, model))

    def selected(self, cut: CutConfig) -> Subject:
        """The subject with its structure reduced to what `cut` includes.

        Raises:
            SecateurError: a pattern matches nothing.
        """
        try:
            selection = select(self.structure, cut.include, cut.exclude)
        except ValueError as error:
            raise SecateurError(f"{self.name}: {error}") from error
        return replace(self, structure=selection.structure, excluded=tuple(selection.left_out))

    def pipeline_with(self, model: nn.Module) -> DiffusionPipeline | None:
        """The subject's pipeline with `model` in it; its other parts are shared, or loaded."""
        source, component = self.loaded.pipeline, str(self.loaded.component)
        if source is None or isinstance(source, Path):
            parts: dict[str, Any] = {component: saved_module(model)}
            return None if source is None else open_pipeline(source, **parts)
        pipeline = copy.copy(source)
        setattr(pipeline, component, saved_module(model))
        return pipeline


def open_subject(
    model: Any,
    process: ProcessLike = None,
    keeps_shards: bool = False,
    for_plan: bool = False,
    **arguments: Unpack[WeightsArguments],
) -> Subject:
    """Open `model`, in whatever form it is given.

    Args:
        model: a folder, a hub id or an embedded model; a module or a pipeline, which do not change; or what
            `secateur.load` returned.
        process: how the model was trained; overrides its folder or pipeline.
        keeps_shards: take a sharded model (FSDP2) as it is; by default its weights are gathered, in every process.
        for_plan: take a model on the meta device too, which has no weights.
        arguments: those of `ModelArguments`.

    Raises:
        SecateurError: it is not a model, it cannot be loaded, its process is unknown, or its structure is not declared.
    """
    if isinstance(model, Subject):
        return model
    component = arguments.get("component")
    if isinstance(model, str | Path):
        loaded = load(model, process=process, **_to_load(arguments))
        name = str(model)
    else:
        loaded = _loaded(model, process, component)
        if not keeps_shards:
            loaded = replace(loaded, model=_gathered(loaded.model))
        name = _name_of(loaded)
        if not for_plan:
            require_weights(loaded.model)
        _settle(loaded.model, arguments)
    settings = {"component": component, "process": named(process)}
    return Subject(loaded, described(name, loaded.model), name, settings)


def open_weights(model: Any, default_device: str = "auto", **arguments: Unpack[WeightsArguments]) -> nn.Module:
    """The network of `model` alone, without a process; otherwise as `open_subject`.

    A loaded model goes to `default_device` unless another is given.
    """
    if isinstance(model, str | Path):
        return as_network(from_pretrained(model, **_to_load(arguments, default_device)))
    if isinstance(model, DiffusionPipeline):
        model = loaded_from_pipeline(model, arguments.get("component"))
    if isinstance(model, Subject | Loaded):
        model = model.model
    if not isinstance(model, nn.Module):
        raise SecateurError(f"a model is {ACCEPTED}; this is a {type(model).__name__}")
    network = as_network(_gathered(network_of(model)))
    _settle(network, arguments)
    return network


def _gathered(model: nn.Module) -> nn.Module:
    """`model`, or another with all of its weights if it is sharded."""
    return whole_model(model, "what you ask for").to(device_of(model)) if is_sharded(model) else model


def require_weights(model: nn.Module) -> None:
    """Refuse a model on the meta device.

    Raises:
        SecateurError: it is there.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SecateurError(
            f"this {type(model).__name__} is on the meta device, which holds no weights: plans and `describe` take it; "
            "for all else load its weights, or make them by `to_empty` and an initialization"
        )


def _to_load(arguments: WeightsArguments, default_device: str = "auto") -> WeightsArguments:
    return {**arguments, "device": choose_device(str(arguments.get("device") or default_device))}


def _settle(model: nn.Module, arguments: WeightsArguments) -> None:
    """Move a model in memory to the device asked for, unless it has no weights.

    Raises:
        SecateurError: there are arguments for loading it.
    """
    asked = {name for name, value in arguments.items() if value is not None} - {"component", "device"}
    if asked:
        raise SecateurError(f"this model is in memory already: leave out {', '.join(sorted(asked))}")
    has_weights = not any(parameter.is_meta for parameter in model.parameters())
    if (device := arguments.get("device")) is not None and has_weights:
        model.to(choose_device(str(device)))


def _loaded(model: Any, process: ProcessLike, component: Component | None) -> Loaded:
    """An object in memory with its process."""
    if isinstance(model, Loaded):
        config = config_of(process)
        if config is None or isinstance(model.process, Reconstruction):
            return model
        config = over(config, lambda: model.scheduler_config)
        settled = process_of(process if is_process(process) else config, model.model, model.vae is not None)
        settled = as_expert(settled, model.pipeline, model.component)
        return replace(model, process=settled, scheduler_config=config)
    if isinstance(model, DiffusionPipeline):
        return loaded_from_pipeline(model, component, process)
    if not isinstance(model, nn.Module):
        raise SecateurError(f"a model is {ACCEPTED}; this is a {type(model).__name__}")
    network = network_of(model)
    if isinstance(network, AutoencoderKL):
        return Loaded(as_network(network), reconstruction_by(network))
    if isinstance(network, AutoencoderKLDecoder):
        return Loaded(network, reconstruction_by(network.autoencoder))
    if (config := config_of(process)) is None or is_partial(config):
        raise SecateurError(
            "a module does not say how it was trained: give process=, a diffusers scheduler, its config, a Process, or "
            "one of ddpm, v-prediction, flow, flow-sit"
        )
    return Loaded(network, process_of(process, network, _takes_latents(network)), config)


def _takes_latents(network: nn.Module) -> bool:
    try:
        return input_shape(network)[0] not in IMAGE_CHANNELS
    except ModelError:
        return False  # nothing is drawn from a network of unknown shape


def _name_of(loaded: Loaded) -> str:
    """The name of a model in memory: where diffusers loaded it from, or its class."""
    return str(getattr(loaded.model, "name_or_path", "") or class_name(loaded.model))


def described(name: str, network: nn.Module) -> Structure:
    """The structure of `network`; errors call it `name`.

    Raises:
        ModelError: it is not declared, or a part of it is not, or values of its config do not fit it.
    """
    try:
        return describe(network)
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    except (TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise ModelError(f"{name} cannot be described: {type(error).__name__}: {first_line(error)}") from error


def check_ranked(subject: Subject, ranking: Ranking, criterion: str, otherwise: str) -> None:
    """Check that `ranking`, by `criterion`, scores every block of the model, and every unit if it ranks widths.

    Raises:
        SecateurError: it does not; the message is `otherwise`.
    """
    dims, blocks = subject.structure.dims, subject.structure.blocks
    widths = criterion_named(criterion).ranks == "blocks" or all(
        len(ranking.dims.get(name, ())) == dim.size for name, dim in dims.items()
    )
    require(widths and blocks.keys() <= ranking.blocks.keys(), otherwise)
