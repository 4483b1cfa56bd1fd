"""Functions without files on random values: manifests, compositions of cuts, the solver, typed records."""

import functools
from types import SimpleNamespace

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import dit
from secateur.base.errors import SecateurError, TargetError
from secateur.io.manifest import Manifest, composed
from secateur.models.registry import describe
from secateur.results import Compensation, CutResult, Evaluation, Ranking, Trials
from secateur.results.codec import from_json, to_json
from secateur.schedules import Target, no_scores, removal_steps
from secateur.schedules.solver import solve
from secateur.structure import check_cut

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
HEAD = {"format": "secateur-pruning", "format_version": 1, "base": {"id": "a", "class": "UNet2DModel", "config": {}}}


@given(VALUES)
def test_a_manifest_of_any_shape_is_read_or_refused(value):
    for given_value in (value, {**HEAD, "steps": value}, {**HEAD, "steps": [{"kind": "cut", "dims": value}]}):
        try:
            Manifest.from_json(given_value)
        except SecateurError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", [Ranking, CutResult, Compensation, Evaluation, Trials])
@given(value=VALUES)
def test_a_result_of_any_shape_is_read_or_refused(kind, value):
    fields = [field.encode_name for field in msgspec.structs.fields(kind)] if issubclass(kind, msgspec.Struct) else []
    for given_value in (value, dict.fromkeys(fields, value)):
        try:
            from_json(kind, given_value, "file.json")
        except SecateurError as error:
            assert str(error).startswith("file.json")  # noqa: PT017


@given(VALUES)
def test_what_is_written_as_json_comes_back(value):
    again = to_json(value)
    assert to_json(again) == again


@st.composite
def histories(draw):
    """Cuts of one width of up to 12 units, each of what the one before it left, and the units that remain."""
    left = list(range(draw(st.integers(2, 12))))
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        kept = sorted(draw(st.sets(st.integers(0, len(left) - 1), min_size=1)))
        steps.append({"kind": "cut", "dims": {"width": {"size": len(left), "kept": kept}}, "removed_blocks": []})
        left = [left[unit] for unit in kept]
    return steps, left


@given(histories())
def test_cuts_one_after_another_are_one_cut(history):
    steps, left = history
    cuts = [list(cut.kept["width"]) for cut in composed(Manifest(HEAD["base"], tuple(steps)))]
    removes = len(left) < steps[0]["dims"]["width"]["size"]
    assert cuts == ([left] if removes else [])


@functools.cache
def structure():
    return describe(dit())


def cost_by(price, block_price):
    """Every unit of a width costs `price`, every block `block_price`."""

    def cost(kept, removed_blocks=()):
        units = {name: dim.size for name, dim in structure().dims.items()} | dict(kept)
        left = [n for name, n in units.items() if not any(name.startswith(f"{block}.") for block in removed_blocks)]
        macs = 1.0 + price * sum(left) + block_price * (len(structure().blocks) - len(removed_blocks))
        return SimpleNamespace(macs=macs, parameters=macs)

    return cost


@given(
    seed=st.integers(0, 2**31),
    asked=st.floats(0.01, 1.0),
    granularity=st.sampled_from(["width", "depth", "both"]),
    allocation=st.sampled_from(["local", "spare-heads", "global", "global-macs"]),
    round_to=st.sampled_from([1, 2, 8, 16]),
    price=st.floats(0.1, 10),
    block_price=st.floats(0.0, 10),
)
def test_a_cut_meets_its_target_and_keeps_the_best_units(
    seed, asked, granularity, allocation, round_to, price, block_price
):
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(value.shape, generator=generator) for name, value in no_scores(structure()).items()}
    cost = cost_by(price, block_price)
    options = {"allocation": allocation, "granularity": granularity, "round_to": round_to, "cost": cost}
    steps = removal_steps(structure(), scores, **options)
    try:
        found = solve(structure(), Target("macs", asked, True), steps, scores, cost)
    except TargetError as error:
        assert "out of reach" in str(error)  # noqa: PT017
        return
    check_cut(structure(), found.cut)
    assert found.reached <= found.asked * (1 + 1e-6)
    assert found == solve(structure(), Target("macs", asked, True), steps, scores, cost)
    for name, kept in found.cut.kept.items():
        gone = sorted(set(range(structure().dims[name].size)) - set(kept))
        assert scores[name][list(kept)].min() >= scores[name][gone].max()
