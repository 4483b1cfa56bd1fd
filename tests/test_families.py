"""One suite over all families: what the record of an architecture must provide."""

import copy
from fnmatch import fnmatch
from functools import partial

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.utils._pytree import tree_leaves

import architectures
import models
from secateur import (
    EvaluationConfig,
    Family,
    RecoveryConfig,
    from_pretrained,
    register_family,
    register_structure,
)
from secateur.base.errors import ModelError
from secateur.io.manifest import apply_cut
from secateur.io.pipeline import Loaded
from secateur.io.single_file import write_single_file
from secateur.models.family import counted
from secateur.models.network import as_network, example_batch, example_inputs, input_shape
from secateur.models.predict import predict
from secateur.models.registry import BUILT_IN, DISCOVERED, describe, families, family_of
from secateur.process.diffusion import DiffusionProcess
from secateur.process.reconstruction import reconstruction_by
from secateur.runs.memory import peak_bytes
from secateur.runs.subject import open_subject
from secateur.runs.timing import Work
from secateur.structure import Block, Cut, StructureBuilder, check_structure, masked, masks_of
from secateur.structure.cost import cost_model

MAKERS = {
    "UNet2DModel": models.unet,
    "UNet2DConditionModel": models.unet_condition,
    "DiTTransformer2DModel": models.dit,
    "PixArtTransformer2DModel": models.pixart,
    "SD3Transformer2DModel": models.sd3,
    "FluxTransformer2DModel": models.flux,
    "ChromaTransformer2DModel": models.chroma,
    "SanaTransformer2DModel": models.sana,
    "AutoencoderKL": models.autoencoder,
    "AutoencoderKLDecoder": lambda: as_network(models.autoencoder()),
    "UViT": models.uvit,
}
FITTING = {"QwenImageTransformer2DModel": {"in_channels": 8, "out_channels": 2}}  # as many channels out as in
DISCOVERED_MAKERS = {
    name: partial(architectures.small, name, **FITTING.get(name, {}))
    for name in (family.architecture.__name__ for family in DISCOVERED)
}
ALL = [*MAKERS, *(pytest.param(name, marks=pytest.mark.slow) for name in DISCOVERED_MAKERS)]  # each is proven first
OF_DEPTH = ["DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel"]
OF_DEPTH += ["SanaTransformer2DModel"]


@pytest.fixture(scope="module", params=ALL)
def model(request):
    return as_network((MAKERS | DISCOVERED_MAKERS)[request.param]())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path_factory.getbasetemp() / "structures-of-families"))


def test_every_family_is_in_this_suite():
    assert {family.architecture.__name__ for family in BUILT_IN} < set(MAKERS | DISCOVERED_MAKERS)
    assert {family.architecture for family in BUILT_IN} < {family.architecture for family in families()}


@pytest.mark.slow
def test_its_structure_is_proven_on_its_own_example_inputs(model):
    structure = describe(model)
    assert structure.dims
    assert structure.blocks
    inputs = example_inputs(model, 2, (8, 8))
    checks = list(check_structure(model, structure, inputs, random_cuts=2))
    assert [check for check in checks if not check.ok] == []


def test_example_inputs_are_the_same_at_every_call_and_priced(model):
    first, second = (example_inputs(model, 2, (8, 8)) for _ in range(2))
    assert first.keys() == second.keys()
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    assert all(torch.equal(*each) for each in pairs if isinstance(each[0], torch.Tensor))
    assert cost_model(model, describe(model), first)({}).macs > 0


@pytest.mark.slow
def test_the_memory_of_its_passes_is_counted_without_data(model):
    process = reconstruction_by(model.autoencoder) if hasattr(model, "autoencoder") else DiffusionProcess()
    subject = open_subject(Loaded(model, process))
    work = Work(recovery=RecoveryConfig(batch_size=2), evaluation=EvaluationConfig(num_images=4, batch_size=2))
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    peak = peak_bytes(subject, work)
    assert peak["recover"] > 5 * weights
    assert weights < peak["evaluate"] < peak["recover"]


def test_its_prediction_has_the_shape_of_a_sample(model):
    sample, conditions = example_batch(model, 2, (8, 8))
    with torch.no_grad():
        found = predict(model, sample.double(), torch.tensor([30.0, 900.0]), conditions)
    assert found.shape == (2, *input_shape(model)[:-2], 8, 8)
    assert found.dtype == torch.float64


def test_modules_used_outside_of_their_block_are_there(model):
    names = [name for name, _ in model.named_modules()]
    for pattern in family_of(model).used_outside:
        assert any(fnmatch(name, pattern) for name in names)


def test_a_module_that_the_head_reads_from_a_block_is_declared(model):
    """Otherwise, sharding by blocks would leave it without weights in the head."""
    for path in describe(model).head_conditioning.values():
        assert any(fnmatch(path, pattern) for pattern in family_of(model).used_outside)


@pytest.mark.parametrize("name", OF_DEPTH)
def test_plain_diffusers_builds_what_is_left_of_the_blocks_from_the_config(name):
    model = MAKERS[name]()
    structure = describe(model)
    apply_cut(model, Cut({}, tuple(structure.removable(list(structure.blocks)[:2]))))
    config = {key: value for key, value in model.config.items() if not key.startswith("secateur")}
    rebuilt = type(model).from_config(config)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_the_rows_of_a_table_are_removed_with_their_blocks(tmp_path):
    """Two cuts of a Chroma, whose blocks read rows by position; the class alone would assign wrong rows."""
    model = models.chroma(num_layers=3, num_single_layers=4)
    dense = copy.deepcopy(model)
    apply_cut(model, Cut({}, ("transformer_blocks.1", "single_transformer_blocks.0")))
    apply_cut(model, Cut({}, ("single_transformer_blocks.1",)))
    removed = ("transformer_blocks.1", "single_transformer_blocks.0", "single_transformer_blocks.2")
    inputs, structure = example_inputs(dense, 2, (8, 8)), describe(dense)
    with torch.no_grad(), masked(dense, structure, masks_of(Cut({}, removed), structure)):
        expected = dense(**inputs)[0]
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    plain = type(dense).from_config(dict(model.config.items()))
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for each in (model, loaded):
            torch.testing.assert_close(each(**inputs)[0], expected, rtol=1e-5, atol=1e-6)
        assert (plain(**inputs)[0] - expected).abs().max() > 1e-2
    assert type(loaded).__name__ == "PrunedChromaTransformer2DModel"
    with pytest.raises(ModelError, match="as others: export diffusers"):
        write_single_file(model, tmp_path / "model.safetensors")


class Other(ModelMixin, ConfigMixin):
    """An architecture whose config counts its layers by a key of its own, beside others of the same value."""

    @register_to_config
    def __init__(self, patch_size: int = 4, depth: int = 4, refiner_depth: int = 2, num_layers: int = 7):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(nn.Linear(patch_size, patch_size) for _ in range(depth))
        self.refiner = nn.ModuleList(nn.Linear(patch_size, patch_size) for _ in range(refiner_depth))

    def forward(self, sample):
        for block in (*self.transformer_blocks, *self.refiner):
            sample = block(sample)
        return sample


def describe_other(model):
    builder = StructureBuilder()
    for name in ("transformer_blocks", "refiner"):
        for i in range(len(model.get_submodule(name))):
            builder.blocks[f"{name}.{i}"] = Block(f"{name}.{i}", listed=True)
    return builder.build()


@pytest.mark.parametrize("declared", [False, True])
def test_the_keys_of_a_config_that_follow_a_depth_cut_are_the_family_s(declared):
    if declared:
        entries = counted(transformer_blocks="depth", refiner="refiner_depth")
        register_family(Family(Other, describe_other, depth_entries=entries))
    else:
        register_structure(Other, describe_other)
    model = Other()
    dense = copy.deepcopy(dict(model.config))
    apply_cut(model, Cut({}, ("transformer_blocks.1", "transformer_blocks.3", "refiner.0")))
    changed = {key: value for key, value in model.config.items() if key in dense and value != dense[key]}
    assert changed == {"depth": 2, "refiner_depth": 1}
    config = {key: value for key, value in model.config.items() if key in dense and not key.startswith("_")}
    assert Other.from_config(config).state_dict().keys() == model.state_dict().keys()
