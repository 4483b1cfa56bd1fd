"""MACs and parameters of any cut of a network that the library can call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..base.errors import ModelError
from ..structure import Structure
from ..structure.cost import CostModel, UncountableError, cost_model
from .network import example_inputs
from .predict import calling


def priced(model: nn.Module, structure: Structure, inputs: Mapping[str, Any] | None = None) -> CostModel:
    """The prices of all cuts of `model` per sample, counted on `inputs` (keyword arguments) or on an example.

    Raises:
        ModelError: the pass fails, or depends on values that it computes; or as `example_inputs`.
    """
    inputs = example_inputs(model, 1) if inputs is None else inputs
    with calling(model):
        try:
            return cost_model(model, structure, inputs)
        except UncountableError as error:
            raise ModelError(str(error)) from error
