"""Parts without files, on whatever hypothesis thinks of: manifests, compositions of cuts, typed records."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.base.errors import SecateurError
from secateur.io.manifest import Manifest, composed
from secateur.results import CutResult, Evaluation, Ranking
from secateur.results.codec import from_json, to_json

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


@pytest.mark.parametrize("kind", [Ranking, CutResult, Evaluation])
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
    assert cuts == ([left] if len(left) < steps[0]["dims"]["width"]["size"] else [])  # one that takes nothing is none
