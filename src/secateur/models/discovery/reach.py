"""Which layers the sample passes through. The others work on conditions alone: token refiners and modulations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


def reached(model: nn.Module, inputs: Mapping[str, Any]) -> set[str]:
    """Names of the modules of `model` that are called with something that depends on the sample.

    The sample is the first of `inputs`, and whatever else has the shape of an output (sound beside a video). Found by
    one pass in which only the sample requires gradients.
    """
    with torch.no_grad():
        shapes = {each.shape for each in tree_leaves(model(**inputs)) if isinstance(each, Tensor)}
    first = next(iter(inputs))
    found: set[str] = set()

    def watched(name: str, value: Any) -> Any:
        def watch(tensor: Tensor) -> Tensor:
            is_sample = tensor.is_floating_point() and (name == first or tensor.shape in shapes)
            return tensor.detach().requires_grad_().clone() if is_sample else tensor

        return tree_map_only(Tensor, watch, value)

    def see(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if any(isinstance(each, Tensor) and each.requires_grad for each in tree_leaves((args, kwargs))):
                found.add(name)

        return hook

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack, torch.enable_grad():
        for name, module in model.named_modules():
            stack.enter_context(module.register_forward_pre_hook(see(name), with_kwargs=True))
        model.requires_grad_(False)
        try:
            model(**{name: watched(name, value) for name, value in inputs.items()})
        finally:
            for parameter in trained:
                parameter.requires_grad_()
    return found
