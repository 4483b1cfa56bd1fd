"""Opening model and data together; the model may be a network that is called or judged by the user's functions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import Unpack

from ..base.devices import choose_device
from ..base.errors import DataError, SecateurError, require
from ..base.shards import require_whole
from ..data import Batch, ImageDataset
from ..data.objects import ObjectDataset, open_objects
from ..io.pipeline import Loaded
from ..models.family import Family
from ..models.network import inference
from ..models.registry import attach_family, detach_family, family_of, network_of
from ..process.base import Process
from ..process.named import config_of
from ..process.own import Forward, Loss, OwnObjective, taken_apart
from .arguments import ModelArguments, NetworkArguments, of_another_model
from .checks import check_comparable
from .data import open_data
from .subject import Subject, described, open_subject, require_weights

SHAPE = (1, 1, 1)  # of the sample, which such a network does not use


@contextmanager
def opened(
    model: Any,
    data: Any,
    new_labels: bool = False,
    keeps_shards: bool = False,
    for_plan: bool = False,
    **arguments: Unpack[NetworkArguments],
) -> Iterator[tuple[Subject, ImageDataset | None]]:
    """Open a model and its data for the block; the data set is None without data.

    A sharded model is gathered, and one without weights refused, as by `open_subject`; a sharded network with functions
    of its user's own is refused.

    Raises:
        SecateurError: as `open_subject` and `open_data`; or the user's functions do not fit the model or the data.
    """
    forward, loss = arguments.pop("forward", None), arguments.pop("loss", None)
    if forward is None and loss is None:
        subject = open_subject(model, keeps_shards=keeps_shards, for_plan=for_plan, **cast(ModelArguments, arguments))
        yield subject, None if data is None else open_data(data, subject, new_labels)
        return
    if not isinstance(model, nn.Module):
        raise SecateurError("forward= and loss= are for a module; give the network itself")
    require(data is not None, "forward= and loss= need batches; give data")
    if not keeps_shards:
        require_whole(network_of(model), "what you ask for")
    if not for_plan:
        require_weights(network_of(model))
    if (device := arguments.get("device")) is not None:
        model.to(choose_device(str(device)))
    subject, dataset = _open_own(model, data, forward, loss)
    try:
        yield subject, dataset
    finally:
        detach_family(subject.model)


def required(dataset: ImageDataset | None) -> ImageDataset:
    """The data set, for a function that needs one.

    Raises:
        DataError: there is none.
    """
    if dataset is None:
        raise DataError("no data was given; give data=")
    return dataset


def _open_own(model: nn.Module, data: Any, forward: Forward | None, loss: Loss | None) -> tuple[Subject, ImageDataset]:
    read, count = open_objects(data, of_batches=True)
    _, layout = taken_apart(read([0]))
    objective = OwnObjective(forward, loss, layout)
    network, name = network_of(model), type(network_of(model)).__name__

    def converted(raw: Any) -> Batch:
        conditions, _ = taken_apart(raw)
        return Batch(torch.zeros(len(next(iter(conditions.values()))), *SHAPE), conditions)

    dataset = ObjectDataset(type(data).__name__, SHAPE, (), count, read, converted)
    example = dataset.batch([0]).to(next(network.parameters()).device)
    called = _arguments_of(network, partial(_call, objective), example)
    attach_family(
        network,
        Family(
            type(network),
            family_of(network).describe,
            call=objective.predict,
            input_shape=lambda model: SHAPE,
            labels=lambda model: None,
            example_inputs=lambda model, batch_size, size: _repeated(called, batch_size),
        ),
    )
    process = cast(Process, objective)  # except for sampling, which it does not offer
    return Subject(Loaded(network, process), described(name, network), name), dataset


def _call(objective: OwnObjective, model: nn.Module, batch: Batch) -> None:
    judge = objective.predict if objective.forward is not None else objective.errors
    judge(model, batch.conditions)


def _arguments_of(network: nn.Module, call: Any, example: Batch) -> Mapping[str, Any]:
    """The keyword arguments with which a user's function calls `network` on one sample.

    Raises:
        SecateurError: the function does not call it, or fails.
    """
    seen: list[Mapping[str, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        named: dict[str, Any] = {}
        for key, value in bound.arguments.items():
            kind = bound.signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise SecateurError(f"{type(module).__name__}.forward takes *{key}; name its arguments")
            named |= value if kind is inspect.Parameter.VAR_KEYWORD else {key: value}
        seen.append(named)

    with inference(network), network.register_forward_pre_hook(keep, with_kwargs=True):
        try:
            call(network, example)
        except SecateurError:
            raise
        except Exception as error:  # whatever a user's function raises
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SecateurError(f"forward= or loss= fails on the first sample of the data: {said}") from error
    if not seen:
        raise SecateurError("forward= and loss= do not call the network that was given; call their first argument")
    return seen[0]


def _repeated(arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments for one sample, repeated for `count` samples."""
    return tree_map_only(Tensor, lambda value: value.repeat(count, *[1] * (value.ndim - 1)), dict(arguments))


def beside(subject: Subject, model: Any, **arguments: Unpack[NetworkArguments]) -> Subject:
    """Open a teacher or a reference of the subject's model with the same arguments; a module gets the subject's
    process.

    Raises:
        SecateurError: as `open_subject`; or its process, inputs or classes differ from the subject's.
    """
    if isinstance(subject.process, OwnObjective):
        if not isinstance(model, nn.Module):
            raise SecateurError("with forward= and loss=, a teacher or a reference must be a module too")
        network = network_of(model)
        require_whole(network, "a teacher or a reference")
        family = family_of(subject.model)
        attach_family(network, Family(**{**vars(family), "architecture": type(network)}), along=subject.model)
        name = type(network).__name__
        return Subject(Loaded(network, subject.process), described(name, network), name)
    shared = of_another_model(arguments)
    on_meta = subject.device.type == "meta"
    device = None if on_meta else subject.device  # None: where it is
    shared["device"] = device
    if isinstance(model, nn.Module):
        gives_process = config_of(shared.get("process")) is not None
        shared = {"device": device, "process": shared["process"] if gives_process else subject.process}
    other = open_subject(model, for_plan=on_meta, **shared)
    check_comparable(subject, other)
    return other
