"""A process for networks with user-defined functions for their call and their loss.

Batches have any form that those functions take. They are passed as conditions, a row for each sample, and reassembled
for every call, so that criteria and objectives can handle such a network like any other. It has one timestep, no noise
is added, and it cannot be sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from ..base.errors import DataError, SecateurError
from ..models.conditions import Conditions

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, repr=False)
class OwnObjective:
    """A `Process` of one timestep, by a user's functions.

    Attributes:
        forward: (model, batch) -> output, a tensor or any nest of tensors with the samples along their first axis.
        loss: (model, batch) -> the mean loss of the batch, a scalar, or the loss of each sample, (B,).
        layout: how a batch is assembled from its tensors.
    """

    forward: Forward | None
    loss: Loss | None
    layout: TreeSpec

    num_train_timesteps = 1

    def __repr__(self) -> str:
        """The same in every process, for fingerprints; it changes with the code of the functions."""
        return f"OwnObjective({_text_of(self.forward)}, {_text_of(self.loss)}, {self.layout})"

    def timesteps(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u, dtype=torch.long)

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return sample

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return sample

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        return output

    def predict(self, model: nn.Module, conditions: Conditions) -> Tensor:
        """The output of `model` on the batch in `conditions`, (B, ...); several tensors are concatenated, (B, N).

        Raises:
            SecateurError: there is no `forward`, or it returns no tensors.
        """
        if self.forward is None:
            raise SecateurError("this needs the network's output: give forward=, a function (model, batch) -> output")
        outputs = [
            leaf for leaf in tree_leaves(self.forward(model, self.batch(conditions))) if isinstance(leaf, Tensor)
        ]
        if not outputs:
            raise SecateurError("forward= returned no tensor; return the network's output")
        return outputs[0] if len(outputs) == 1 else torch.cat([output.flatten(1) for output in outputs], dim=1)

    def errors(self, model: nn.Module, conditions: Conditions) -> Tensor:
        """The loss of each sample of the batch in `conditions`, (B,); the mean for each if only that is known.

        Raises:
            SecateurError: there is no `loss`, or it returns something else.
        """
        if self.loss is None:
            raise SecateurError("this needs a loss: give loss=, a function (model, batch) -> scalar")
        count = len(next(iter(conditions.values())))
        found = self.loss(model, self.batch(conditions))
        if not isinstance(found, Tensor) or found.shape not in ((), (1,), (count,)):
            raise SecateurError(f"loss= returned {_described(found)}; return a scalar, or one value for each sample")
        return found.expand(count)

    def batch(self, conditions: Conditions) -> Any:
        """The batch for `forward` and `loss`."""
        return tree_unflatten([conditions[str(i)] for i in range(self.layout.num_leaves)], self.layout)


def taken_apart(batch: Any) -> tuple[dict[str, Tensor], TreeSpec]:
    """The tensors of a batch as conditions, and the layout to reassemble them.

    Raises:
        DataError: it holds something other than tensors with equally many samples.
    """
    leaves, layout = tree_flatten(batch)
    strange = next((leaf for leaf in leaves if not isinstance(leaf, Tensor) or leaf.ndim == 0), None)
    if not leaves or strange is not None:
        raise DataError(f"a batch holds {_described(strange)}; forward= and loss= take tensors, samples first")
    counts = {len(leaf) for leaf in leaves}
    if len(counts) > 1:
        raise DataError(f"the tensors of a batch have {', '.join(map(str, sorted(counts)))} rows; give one per sample")
    return {str(i): leaf for i, leaf in enumerate(leaves)}, layout


def _text_of(function: Any) -> str:
    """The name of a function with its code; of any other callable its type."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return f"{type(function).__module__}.{type(function).__qualname__}"
    return f"{function.__module__}.{function.__qualname__} {_code(code)}"


def _code(code: CodeType) -> list[Any]:
    """Instructions, names and constants, without places in files; constants hold the code of inner functions."""
    constants = [_code(each) if isinstance(each, CodeType) else _ordered(each) for each in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _ordered(constant: Any) -> str:
    """The text of a constant; of a set in a fixed order."""
    return str(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
