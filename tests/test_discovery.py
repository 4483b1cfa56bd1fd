"""Discovered structures: equal to those declared by hand, proven, and adapted to other sizes."""

import copy
import re
import sys
import time
import types
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import architectures
import models
import secateur
from secateur.base.errors import ModelError
from secateur.io.manifest import apply_cut
from secateur.models import discovery
from secateur.models.discovery import proofs
from secateur.models.discovery.blocks import blocks_of, listed_modules
from secateur.models.discovery.influence import influences
from secateur.models.discovery.inputs import working
from secateur.models.discovery.prove import prove
from secateur.models.discovery.reach import reached
from secateur.models.discovery.widths import widths_of
from secateur.models.network import example_batch, example_inputs
from secateur.models.precision import dtype_of
from secateur.models.predict import predict
from secateur.models.registry import describe, left_out
from secateur.structure import Cut, Structure, check_random_cuts, check_structure, remove
from secateur.structure.cost import cost_model, count_flops, skeleton
from secateur.structure.known_values import without_memory

TABLE = Path(__file__).parent.parent / "docs" / "architectures.md"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    return tmp_path


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


DIM = 32


class Layer(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.config_heads, self.qkv, self.out = (heads,), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 40), nn.Linear(40, DIM)
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.config_heads[0], -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm2(x)).relu())


class Mine(ModelMixin, ConfigMixin):
    """A network with traps: heads that no attribute counts, and every third layer is different."""

    @register_to_config
    def __init__(self, in_channels: int = 8, hidden_size: int = DIM, num_heads: int = 4, num_layers: int = 6):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(in_channels, DIM), nn.Linear(DIM, in_channels)
        self.layers = nn.ModuleList(Layer(num_heads) for _ in range(num_layers))

    def forward(self, hidden_states, timestep, return_dict=True):
        x = self.proj_in(hidden_states) * (1 + timestep.view(-1, 1, 1) / 1000)
        for i, layer in enumerate(self.layers):
            x = layer(x) * (2.0 if i % 3 == 2 else 1.0)
        return (self.proj_out(x),)


class Modulated(Layer):
    def __init__(self, heads):
        super().__init__(heads)
        self.modulation = nn.Sequential(nn.Linear(DIM, 24), nn.SiLU(), nn.Linear(24, DIM))

    def forward(self, x, encoder_hidden_states):
        return super().forward(x + self.modulation(encoder_hidden_states).mean(1, keepdim=True))


class Refined(Mine):
    """A network whose text is refined by blocks like its own, and modulates them."""

    @register_to_config
    def __init__(self, in_channels: int = 8, hidden_size: int = DIM, num_heads: int = 4, num_layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(Modulated(num_heads) for _ in range(num_layers))
        self.helpers = nn.ModuleList(Layer(num_heads) for _ in range(2))

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True):
        for helper in self.helpers:
            encoder_hidden_states = helper(encoder_hidden_states)
        x = self.proj_in(hidden_states) * (1 + timestep.view(-1, 1, 1) / 1000)
        for layer in self.layers:
            x = layer(x, encoder_hidden_states)
        return (self.proj_out(x),)


def test_heads_whose_number_would_not_follow_are_not_cut_and_the_reason_is_given():
    model = Mine()
    assert not [name for name in describe(model).dims if name.endswith("heads")]
    assert len([name for name in describe(model).dims if name.endswith("inner")]) == 6
    assert "layers.0" in left_out(model)["layers.0.heads"]


def test_layers_that_depend_on_their_position_are_not_cut():
    assert describe(Mine()).blocks.keys() <= {"layers.5"}
    assert "not those of its mask" in left_out(Mine())["layers.1"]


def test_a_dependence_on_place_that_a_shallow_copy_hides_is_found_on_a_deep_one(monkeypatch):
    """Only the last layer differs; a copy of three layers has it too."""
    monkeypatch.setattr(proofs, "SMALL", 0)
    monkeypatch.setattr(proofs, "SHALLOW", 2)
    model = Mine(num_layers=9)
    assert not describe(model).blocks
    assert any("full depth" in reason for reason in left_out(model).values())


def test_a_class_of_unknown_inputs_is_refused_in_one_line():
    class Strange(Mine):
        def forward(self, hidden_states, spin):
            return (self.proj_out(self.proj_in(hidden_states)) * spin,)

    with pytest.raises(ValueError, match="the argument spin of Strange is of unknown meaning") as caught:
        describe(Strange())
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="spin"):
        example_inputs(Strange(), 1)


def test_declarations_take_precedence():
    assert left_out(models.dit()) == {}
    assert discovery.describe is not describe


def klein_4b(tokens, text):
    """MACs of Flux.2 klein 4B: 13 D^2 a token and block (gated feed-forwards of 3 D), and attention."""
    width, blocks, both = 3072, 25, tokens + text
    ends = 2 * tokens * 128 * width + text * 7680 * width
    return blocks * (13 * width**2 * both + 2 * both**2 * width) + ends


def qwen_image(tokens, text):
    """MACs of Qwen-Image: 12 D^2 a token and block, two modulations a sample and block, and attention."""
    width, blocks, both = 3072, 60, tokens + text
    ends = 2 * tokens * 64 * width + text * 3584 * width
    return blocks * (12 * width**2 * (both + 1) + 2 * both**2 * width) + ends


def z_image(tokens, text):
    """MACs of Z-Image: patches of 2 x 2; two refiners of either stream and thirty joint blocks."""
    width = 3840
    rows = 30 * (tokens + text) + 2 * tokens + 2 * text
    squares = 30 * (tokens + text) ** 2 + 2 * tokens**2 + 2 * text**2
    return (4 * width**2 + 3 * width * 10240) * rows + 2 * squares * width


KLEIN_4B = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
PLANNED = {
    "Flux2Transformer2DModel": KLEIN_4B,
    "QwenImageTransformer2DModel": {},
    "ZImageTransformer2DModel": {},
    "Lumina2Transformer2DModel": {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "parameters", "macs", "blocks"),
    [  # as released in transformer/config.json of black-forest-labs/FLUX.2-klein-4B, of Qwen/Qwen-Image and of
        # Tongyi-MAI/Z-Image-Turbo; the last two are the defaults of diffusers. MACs at 64 x 64 latents and at what
        # captions take in examples
        ("Flux2Transformer2DModel", KLEIN_4B, 3.88e9, klein_4b(64 * 64, 512), 25),
        ("QwenImageTransformer2DModel", {}, 20.4e9, qwen_image(32 * 32, 512), 60),
        ("ZImageTransformer2DModel", {}, 6.15e9, z_image(32 * 32, 384), 32),
    ],
)
def test_released_models_are_planned_without_memory(name, config, parameters, macs, blocks):
    with torch.device("meta"):
        model = getattr(diffusers, name)(**config)
    structure = describe(model)
    assert len(structure.blocks) == blocks
    cost = cost_model(model, structure, example_inputs(model, 1, (64, 64)))
    dense, half = cost({}), cost({dim.name: dim.size // 2 for dim in structure.dims.values()})
    assert dense.parameters == pytest.approx(parameters, rel=0.01)
    assert dense.macs == pytest.approx(macs, rel=1e-3)
    assert 0.49 < half.macs / dense.macs < 0.52


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


@pytest.mark.filterwarnings("ignore")  # of what diffusers asks autocast for on a CPU
@pytest.mark.parametrize(
    "name",
    [
        "ErnieImageTransformer2DModel",  # asks for a precision by device
        "GlmImageTransformer2DModel",  # takes what a mask says
        "HiDreamImageTransformer2DModel",  # sends tokens to experts
        "HunyuanVideo15Transformer3DModel",  # asks whether an image is given
        "MochiTransformer3DModel",
        "QwenImage21Transformer2DModel",  # repeats text as often as the input says
    ],
)
def test_macs_without_memory_are_those_of_a_run(name, monkeypatch):
    model = architectures.small(name)
    inputs, index = working(model)
    found = count_flops(model, inputs)[""] / 2 / len(next(iter(inputs.values())))
    monkeypatch.setattr(proofs, "_discovery", lambda model: proofs.Discovery(None, index))
    monkeypatch.setattr(proofs, "FRAMES", 3)
    hollow = skeleton(model)
    for each in (inputs, discovery.example_inputs(hollow, 2, (4, 6))):  # values stay known on the meta device
        assert cost_model(hollow, Structure({}, {}), each)({}).macs == pytest.approx(found, rel=1e-9)


def test_integers_with_memory_are_left_alone_where_others_are_counted_without():
    with without_memory():
        assert (torch.arange(4) * 2).tolist() == [0, 2, 4, 6]
        assert torch.zeros(3, dtype=torch.bool, device="meta").sum().item() == 0


@pytest.mark.parametrize(
    "name",
    [
        "CogVideoXTransformer3DModel",  # a fixed length of texts
        "HiDreamImageTransformer2DModel",  # an entry for each block
        "Ideogram4Transformer2DModel",  # frequencies that are a part of the head
        "Krea2Transformer2DModel",  # other heads over text
        "LTX2VideoTransformer3DModel",  # and over sound
        "PRXTransformer2DModel",  # the size of a head in the code
        "WanVACETransformer3DModel",  # places of blocks
    ],
)
def test_a_small_copy_of_the_config_that_a_class_has_by_default_can_be_called(name):
    given = RELEASED if name.startswith("HiDream") else {}
    with torch.device("meta"):
        model = getattr(diffusers, name)(**given)
    shallow, deep, inputs, _ = proofs._running_copy(model, proofs._initial(model))
    assert sum(each.numel() for each in shallow.parameters()) < 10_000_000
    assert len(inputs) > 2
    with torch.device("meta"):
        counts = [len(each) for each in proofs.lists_of(type(model)(**deep)).values()]
    assert counts == [len(each) for each in proofs.lists_of(model).values()]


# Its code needs torchvision; declared by hand, and called with sizes at 1024 pixels.
APART = {"CosmosTransformer3DModel", "PixArtTransformer2DModel"}


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")
def test_classes_are_discovered_and_counted_at_the_configs_that_they_have_by_default():
    """All classes of the table with widths whose defaults build something."""
    names = re.findall(r"^\| (\w+) \| `", TABLE.read_text(), flags=re.M)
    found = 0
    for name in set(names) - APART:
        try:
            with torch.device("meta"):
                model = getattr(diffusers.models, name)()
        except Exception:  # defaults that lack something
            continue
        structure = discovery.describe(model)
        assert structure.dims, name
        assert cost_model(model, structure, discovery.example_inputs(model, 1))({}).macs > 0
        found += 1
    assert found >= 48


# HiDream-ai/HiDream-I1-Full; the class has no working defaults.
RELEASED = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "caption_channels": [4096, 4096],
    "llama_layers": [*range(32), *[31] * 16],
    "axes_dims_rope": (64, 32, 32),
}


def test_the_code_of_cosmos_that_needs_torchvision_is_not_needed_to_discover_it(monkeypatch):
    """With a stand-in for the one function that it takes from there."""

    class Transforms:
        class InterpolationMode:
            NEAREST = "nearest"

        class functional:
            @staticmethod
            def resize(mask, size, interpolation):
                return F.interpolate(mask, size=size, mode=interpolation)

    monkeypatch.setattr("diffusers.models.transformers.transformer_cosmos.transforms", Transforms, raising=False)
    with torch.device("meta"):
        model = diffusers.CosmosTransformer3DModel()
    *_, inputs, _ = proofs._running_copy(model, proofs._initial(model))
    assert inputs["padding_mask"].shape == (1, 1, 4, 6)


def test_layers_that_the_sample_does_not_pass_through_stay_whole():
    """Token refiners and modulations, by what they are called with and not by their names."""
    found = reached(model := Refined(), working(model)[0])
    assert "layers.0" in found
    assert not {"helpers.0", "helpers.1", "layers.0.modulation.0"} & found
    structure, reasons = describe(model), left_out(model)
    assert not [name for name in (*structure.dims, *structure.blocks) if name.startswith("helpers")]
    assert "token refiner" in reasons["helpers.0"]
    assert [name for name in structure.dims if name.startswith("layers.0") and "norm" not in name]
    assert "modulation" in reasons["layers.0.modulation.inner"]
    said = str(secateur.inspect(model)).splitlines()
    assert "width       layers.*.inner (2)" in said
    assert "block       layers.* (2)" in said
    assert "not cut     layers.*.modulation.inner (2), helpers.* (2): the sample does not pass through it" in str(said)
    assert any(line.startswith("not cut     layers.*.heads (2): without it, outputs are not those") for line in said)


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


@pytest.mark.torture
@pytest.mark.parametrize("name", PLANNED)
def test_released_models_are_planned_in_seconds_with_the_memory_of_every_stage(name):
    """On the meta device: sizes, operations and bytes alone; benchmarks/sizes.py measures the seconds."""
    with torch.device("meta"):
        model = getattr(diffusers, name)(**PLANNED[name])
    describe(model)  # proves the structure
    begun = time.perf_counter()
    planned = secateur.plan(model, target="macs=50%", process="flow")
    assert time.perf_counter() - begun < 60  # a machine that is busy with other work
    assert planned.cut.after.macs == pytest.approx(0.5 * planned.cut.before.macs, rel=0.01)
    assert {"rank", "compensate", "recover", "evaluate"} <= planned.peak.keys()
    assert planned.flops["compensate"] > 0


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
