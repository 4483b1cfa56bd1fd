"""Invariant 1: masked equals removed, on any valid cut of any supported architecture."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import cuts, dit, dits, output, unet, unets

from secateur.structure import Cut, check_cut, describe, masked, masks_of, remove

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@PROPERTY
@given(st.data())
@pytest.mark.parametrize("models", [unets(), dits()], ids=["unet", "dit"])
def test_masked_equals_removed(models, data):
    model = data.draw(models).double()
    structure = describe(model)
    cut = data.draw(cuts(structure))
    with masked(model, structure, masks_of(cut, structure)):
        expected = output_double(model)
    removed = remove(copy.deepcopy(model), structure, cut)
    found = output_double(removed)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max() + 1))


def output_double(model):
    torch.set_default_dtype(torch.float64)
    try:
        return output(model)
    finally:
        torch.set_default_dtype(torch.float32)
