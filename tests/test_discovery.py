"""Discovered structures: equal to those declared by hand, proven, adapted to other sizes; and the table of classes."""

import copy
import re
import sys
import types
from functools import partial

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import architectures
import models
import secateur
from architectures import TABLE
from caches import own_cache
from secateur.io.manifest import apply_cut
from secateur.models import discovery
from secateur.models.discovery import proofs
from secateur.models.discovery.blocks import blocks_of, listed_modules
from secateur.models.discovery.influence import influences
from secateur.models.discovery.inputs import working
from secateur.models.discovery.prove import prove
from secateur.models.discovery.widths import widths_of
from secateur.models.network import example_batch, example_inputs
from secateur.models.precision import dtype_of
from secateur.models.predict import predict
from secateur.models.registry import describe, left_out
from secateur.structure import Cut, check_random_cuts, check_structure, remove
from secateur.structure.cost import cost_model

cache = pytest.fixture(own_cache, autouse=True)


def slices(dim):
    return frozenset(
        (piece.parameter, piece.axis, piece.offset, dim.width_of(piece), piece.role) for piece in dim.slices
    )


# Wide enough that no channel of Sana's rectified queries is zero at all tokens.
SANA = {"attention_head_dim": 16, "num_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32}


@pytest.mark.parametrize("make", [models.flux, partial(models.sana, **SANA), models.pixart])
def test_what_is_found_is_what_was_declared_by_hand(make):
    model = make()
    declared, elements = describe(model), listed_modules(model)
    inputs, _ = working(model)
    with torch.no_grad():
        blocks, _ = blocks_of(model, elements, lambda: model(**inputs))
    found = {
        slices(dim)
        for _, influence in influences(model, elements, lambda: model(**inputs))
        for dim in widths_of(influence, model).dims
    }
    assert blocks == declared.blocks
    assert found == {slices(dim) for dim in declared.dims.values()}


# Lists in and out and norms over the stream; fused projections; five axes; grouped queries over sound.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "heads", "inner", "blocks"),
    [
        ("ZImageTransformer2DModel", 5, 5, 5),
        ("Flux2Transformer2DModel", 6, 9, 6),
        ("WanTransformer3DModel", 6, 3, 3),
        ("StableAudioDiTModel", 6, 3, 3),
    ],
)
def test_classes_that_nobody_declared(name, heads, inner, blocks):
    model = architectures.small(name)
    structure = describe(model)
    counts = [sum(dim.endswith(end) for dim in structure.dims) for end in (".heads", ".inner")]
    assert [*counts, len(structure.blocks)] == [heads, inner, blocks]
    inputs = example_inputs(model, 2, (4, 6))
    assert all(check.ok for check in check_random_cuts(model, structure, inputs, 2, seed=9))
    cut = models.half(model)
    predicted = cost_model(model, structure, inputs)({dim: len(units) for dim, units in cut.kept.items()})
    smaller = remove(copy.deepcopy(model), structure, cut)
    counted = cost_model(smaller, describe(smaller), inputs)({})
    assert predicted.parameters == counted.parameters
    assert predicted.macs == pytest.approx(counted.macs, rel=1e-9)


def test_a_pruned_model_is_described_again_and_larger_ones_after_a_small_copy(monkeypatch):
    monkeypatch.setattr(proofs, "SMALL", 0)  # a copy even of this one
    model = architectures.small(
        "WanTransformer3DModel", num_attention_heads=6, attention_head_dim=12, ffn_dim=50, num_layers=5, text_dim=20
    )
    structure = describe(model)
    assert structure.dims["blocks.3.attn1.heads"].size == 6
    assert structure.dims["blocks.3.attn1.heads"].width == 12
    assert structure.dims["blocks.4.ffn.net.inner"].size == 50
    assert len(structure.blocks) == 5
    inputs = example_inputs(model, 2, (4, 6))
    assert all(check.ok for check in check_random_cuts(model, structure, inputs, 2))
    remove(model, structure, Cut({"blocks.3.attn1.heads": (0, 2, 5), "blocks.1.ffn.net.inner": (1, 7)}, ("blocks.0",)))
    again = describe(model)
    assert (again.dims["blocks.2.attn1.heads"].size, again.dims["blocks.0.ffn.net.inner"].size) == (3, 2)
    assert len(again.blocks) == 4
    assert all(check.ok for check in check_random_cuts(model, again, inputs, 2))


def test_fused_projections_are_fitted_by_their_sums(monkeypatch):
    monkeypatch.setattr(proofs, "SMALL", 0)
    model = architectures.small("Flux2Transformer2DModel", num_attention_heads=3, mlp_ratio=2.0, num_single_layers=2)
    structure = describe(model)
    name = "single_transformer_blocks.1.attn"
    assert (structure.dims[f"{name}.heads"].size, structure.dims[f"{name}.inner"].size) == (3, 96)
    offsets = [piece.offset for piece in structure.dims[f"{name}.inner"].slices if piece.axis == 0]
    assert offsets == [144, 240]
    remove(model, structure, Cut({f"{name}.heads": (1,), f"{name}.inner": tuple(range(7))}))
    again = describe(model)
    assert (again.dims[f"{name}.heads"].size, again.dims[f"{name}.inner"].size) == (1, 7)
    assert all(check.ok for check in check_structure(model, again, example_inputs(model, 2, (4, 6)), random_cuts=1))


def test_a_class_with_its_config_is_proven_once(cache, monkeypatch):
    model = architectures.small("PriorTransformer")
    first = describe(model)
    kept = list(cache.glob("structures/PriorTransformer-*.json"))
    assert len(kept) == 1
    monkeypatch.setattr(proofs, "prove", lambda *_: pytest.fail("proven again"))
    assert describe(model) == first
    kept[0].write_text("{}")
    monkeypatch.undo()
    monkeypatch.setenv("SECATEUR_CACHE", str(cache))
    assert describe(model) == first


def test_a_proof_is_of_the_code_of_a_class(tmp_path, monkeypatch):
    """A class of a user's own may change between two runs, and in a notebook between two cells."""
    written = (
        "from torch import nn\nclass Own(nn.Linear):\n    def forward(self, x):\n        return super().forward(x)"
    )

    def key(of_file, code):
        (tmp_path / "own.py").write_text(code)
        module = types.ModuleType("own")
        if of_file:
            module.__file__ = str(tmp_path / "own.py")
        monkeypatch.setitem(sys.modules, "own", module)
        exec(code, vars(module))
        return proofs._key(module.Own(2, 2), {})

    for of_file in (True, False):
        assert key(of_file, written) == key(of_file, written) != key(of_file, written.replace("(x)", "(x + 1)"))
    assert key(True, written) != key(False, written)


def test_declarations_take_precedence():
    assert left_out(models.dit()) == {}
    assert discovery.describe is not describe


RANDOM = {
    "Flux2Transformer2DModel": {
        "num_attention_heads": st.integers(2, 4),
        "num_layers": st.integers(1, 3),
        "num_single_layers": st.integers(1, 4),
        "mlp_ratio": st.sampled_from([1.5, 2.0, 3.0]),
    },
    "QwenImageTransformer2DModel": {
        "num_attention_heads": st.integers(2, 4),
        "num_layers": st.integers(2, 4),
        "joint_attention_dim": st.integers(6, 40),
    },
    "WanTransformer3DModel": {
        "num_attention_heads": st.integers(2, 4),
        "num_layers": st.integers(1, 5),
        "ffn_dim": st.integers(5, 60),
    },
    "Lumina2Transformer2DModel": {
        "num_layers": st.integers(1, 4),
        "num_refiner_layers": st.integers(1, 2),
    },
}


@pytest.mark.torture
@pytest.mark.parametrize("name", RANDOM)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_masks_equal_removal_in_random_configurations(name, data, monkeypatch):
    """What is proven on a small copy holds for the model, and predicted costs are those of the cut models."""
    monkeypatch.setattr(proofs, "SMALL", 0)
    model = architectures.small(name, **data.draw(st.fixed_dictionaries(RANDOM[name])))
    structure, inputs = describe(model), example_inputs(model, 2, (4, 6))
    assert structure.dims
    seed = data.draw(st.integers(0, 1000))
    assert all(check.ok for check in check_random_cuts(model, structure, inputs, 2, seed=seed))
    cut = models.half(model)
    predicted = cost_model(model, structure, inputs)({dim: len(units) for dim, units in cut.kept.items()})
    smaller = remove(copy.deepcopy(model), structure, cut)
    counted = cost_model(smaller, describe(smaller), inputs)({})
    assert (predicted.parameters, predicted.macs) == (counted.parameters, pytest.approx(counted.macs, rel=1e-9))


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")  # of other libraries, which a class would count as a failure
def test_the_table_of_all_classes():
    """Fifty classes, of images, videos and sounds, have removable parts that are proven; none is wrong."""
    rows, works = [], 0
    for name in architectures.NAMES:
        try:
            model, result = architectures.proven(name)
        except Exception as error:
            rows.append(f"| {name} | | | {architectures.one_line(error)} |")
            continue
        rows.append(architectures.row(name, model, result))
        works += bool(result.structure.dims)
        inputs, _ = working(model)
        if not result.structure.dims:
            continue
        wrong = [check for check in check_random_cuts(model, result.structure, inputs, 4, seed=77) if not check.ok]
        assert not wrong, (name, wrong)
    assert works >= 50
    text = architectures.page(rows, works)
    if TABLE.read_text() != text:
        TABLE.write_text(text)
        pytest.fail("docs/architectures.md was out of date; it is written anew")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["QwenImageTransformer2DModel", "LTXVideoTransformer3DModel", "Kandinsky5Transformer3DModel"]
)
def test_the_table_says_what_holds(name):
    model, result = architectures.proven(name)
    assert architectures.row(name, model, result) in TABLE.read_text().splitlines()


def test_the_list_of_classes_is_that_of_diffusers():
    """Of the installed version: an older one has fewer."""
    assert len(architectures.NAMES) > 50
    named = re.findall(r"^\| (\w+) \|", TABLE.read_text(), flags=re.M)
    assert [name for name in named if hasattr(diffusers.models, name)] == architectures.NAMES


def test_prove_leaves_the_weights_alone():
    model = architectures.small("PriorTransformer")
    before = copy.deepcopy(model.state_dict())
    inputs, _ = working(model)
    prove(model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_diffusers_finds_a_narrower_model_of_a_class_that_nobody_declared(tmp_path):
    model = architectures.small("PriorTransformer")
    apply_cut(model, models.half(model))
    model.save_pretrained(tmp_path)
    loaded = diffusers.AutoModel.from_pretrained(str(tmp_path))
    assert type(loaded) is secateur.PrunedPriorTransformer
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    with pytest.raises(AttributeError):
        _ = secateur.PrunedNonsense


def test_weights_that_a_class_keeps_in_float32_do_not_say_in_what_it_computes():
    model = architectures.small("WanTransformer3DModel")
    for name, parameter in model.named_parameters():  # as diffusers loads it with torch_dtype
        if not any(part in name for part in model._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    assert next(model.parameters()).dtype == torch.float32
    sample, conditions = example_batch(model, 2, (2, 4, 4))
    with torch.no_grad():
        found = predict(model, sample.float(), torch.tensor([30.0, 900.0]), conditions)
    assert (sample.dtype, found.dtype, bool(found.isfinite().all())) == (torch.bfloat16, torch.float32, True)
    assert dtype_of(model.float()) == torch.float32
