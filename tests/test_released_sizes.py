"""Networks of released sizes, without memory: discovered by small copies, counted, and planned."""

import re
import time

import diffusers
import pytest
import torch
from torch.nn import functional as F

import architectures
import secateur
from architectures import TABLE
from caches import own_cache
from secateur.models import discovery
from secateur.models.discovery import proofs
from secateur.models.discovery.inputs import working
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.structure import Structure
from secateur.structure.cost import cost_model, count_flops, skeleton
from secateur.structure.known_values import without_memory

cache = pytest.fixture(own_cache, autouse=True)


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
        pytest.param(
            *("QwenImageTransformer2DModel", {}, 20.4e9, qwen_image(32 * 32, 512), 60), marks=pytest.mark.torture
        ),
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
