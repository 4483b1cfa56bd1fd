"""Compensation of whole models: it lowers the error of every architecture and keeps every invariant of a cut."""

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import RMSNorm
from safetensors.torch import load_file
from torch import nn

import models
from compensation_runs import BUILDERS, CONFIG, batch_of, compensated, cut_of, process_of
from models import half
from secateur.base.errors import SecateurError
from secateur.compensation import CompensationConfig, compensate
from secateur.compensation.counterparts import counterparts
from secateur.compensation.fitting import Fitting
from secateur.compensation.passes import Parking
from secateur.data import Batch
from secateur.io.checkpoint import from_pretrained, save_pretrained
from secateur.io.lora import refit_warning
from secateur.io.manifest import apply_cut, manifest_of
from secateur.models.network import inference
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.structure import Cut, masked, masks_of, remove
from training_runs import TWO, assert_same, start

NORMS = (RMSNorm, nn.RMSNorm)
SANDWICHED = ["lumina2", "z-image"]
STREAMS = {"dit", "pixart", "sd3", "flux", "sana", "z-image", "lumina2", "qwen-image", "uvit"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["width", "depth", "both"])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_refit_lowers_the_error_of_every_architecture(name, kind):
    if kind == "depth" and name == "decoder":
        pytest.skip("it has no blocks")
    _, before, pruned, result = compensated(name, kind)
    assert result.options["target"] == ("stream" if name in STREAMS else "output")
    assert result.after < 0.9 * result.before
    assert not result.left
    assert all(reader.after <= reader.before * (1 + 1e-6) for reader in result.readers.values())
    now = pruned.state_dict()
    assert {key: value.shape for key, value in before.state_dict().items()} == {k: v.shape for k, v in now.items()}
    changed = {key for key, value in before.state_dict().items() if not torch.equal(value, now[key])}
    lossy = {name for name, reader in result.readers.items() if reader.before > 0}
    norms = {f"{key}.weight" for key, module in pruned.named_modules() if isinstance(module, NORMS)}
    assert {key.rpartition(".")[0] for key in changed - norms} == lossy
    assert bool(changed & norms) == (name in SANDWICHED)


@pytest.mark.parametrize("name", SANDWICHED)
def test_blocks_with_norms_behind_their_layers_take_over_what_another_added(name):
    """Every layer is fitted to the stream; the norms' weights are, too, since nothing else makes an addition longer."""
    dense = BUILDERS[name]()
    cut = Cut({}, ("layers.2",))
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    batch = batch_of(dense)
    result = compensate(pruned, dense, process_of(dense), batch, CONFIG, [cut])
    assert {reader.target for reader in result.readers.values()} == {"stream"}
    assert result.after < result.before / 2


def test_blocks_of_another_stream_have_no_part_in_a_goal():
    """The first block after those of the image alone, which is missing, reads image and text."""
    dense = BUILDERS["z-image"]()
    cut = Cut({}, ("layers.0",))
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    result = compensate(pruned, dense, process_of(dense), batch_of(dense), CONFIG, [cut])
    for name, reader in result.readers.items():
        assert (reader.before == 0) == name.startswith("noise_refiner"), name


@pytest.mark.parametrize("name", BUILDERS)
def test_masked_equals_removed_after_it(name):
    _, _, pruned, _ = compensated(name, "both")
    pruned.double()
    structure, batch = describe(pruned), batch_of(pruned, 2)
    sample = batch.sample.double()
    if name == "decoder":
        sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cut = half(pruned)
    assert cut.kept
    run = partial(predict, pruned, sample, torch.tensor([5, 700]), batch.conditions)
    with inference(pruned):
        with masked(pruned, structure, masks_of(cut, structure)):
            expected = run()
        remove(pruned, structure, cut)
        torch.testing.assert_close(run(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["unet", "dit", "sd3", "flux", "sana", "decoder"])
def test_saved_equals_loaded_and_the_manifest_says_what_was_done(name, tmp_path):
    dense = BUILDERS[name]()
    pruned = apply_cut(BUILDERS[name](), cut_of(dense, "both"))
    result = compensate(pruned, dense, process_of(dense), batch_of(dense), CONFIG)
    save_pretrained(pruned, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert_same(getattr(pruned, "autoencoder", pruned), loaded)
    step = manifest_of(loaded).steps[-1]
    assert step["kind"] == "compensation"
    assert step["ridge"] == CONFIG.ridge
    assert step["target"] == result.options["target"]
    assert (step["before"], step["after"], step["layers"]) == (result.before, result.after, len(result.readers))
    assert json.loads(json.dumps(step)) == step
    warning = refit_warning(manifest_of(loaded))
    assert warning.startswith(f"{len(result.readers)} layers were refitted")
    assert f"{result.after:.3g} of its square" in warning
    assert refit_warning(replace(manifest_of(loaded), steps=manifest_of(loaded).steps[:-1])) is None


@pytest.mark.parametrize("target", ["stream", "output"])
def test_a_layer_may_be_called_by_keyword(target, monkeypatch):
    config = replace(CONFIG, target=target)
    expected = compensated("dit", "both", config)[2]

    def by_keyword(self, hidden_states):
        act, _, last = self.net
        return last(input=act(hidden_states))

    monkeypatch.setattr(FeedForward, "forward", by_keyword)
    assert_same(compensated("dit", "both", config)[2], expected)


def test_a_small_layer_is_refitted_to_the_stream_in_half_precision_too():
    dense = models.dit().bfloat16()
    with torch.no_grad():
        dense.transformer_blocks[1].ff.net[2].weight.mul_(1e-3)
        dense.transformer_blocks[1].ff.net[2].bias.mul_(1e-3)
    cut = cut_of(dense, "width")
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    batch = batch_of(dense)
    result = compensate(pruned, dense, FlowProcess(), replace(batch, sample=batch.sample.bfloat16()), CONFIG, [cut])
    assert {reader.target for reader in result.readers.values()} == {"stream"}


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_the_same_seed_gives_the_same_weights_in_any_batches(name):
    once, again, split, other = (
        compensated(name, "both", config, torch.float64)[2].state_dict()
        for config in (CONFIG, CONFIG, replace(CONFIG, batch_size=5), replace(CONFIG, seed=1))
    )
    same, near, far = (
        max(float((once[key] - value).abs().max()) for key, value in weights.items())
        for weights in (again, split, other)
    )
    assert same == 0
    assert near < 1e-8 < 1e-3 < far


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_if_nothing_was_removed_no_weight_changes(name):
    dense = BUILDERS[name]()
    same = copy.deepcopy(dense)
    structure = describe(dense)
    whole = Cut({dim: tuple(range(structure.dims[dim].size)) for dim in structure.dims})
    result = compensate(same, dense, process_of(dense), batch_of(dense), CONFIG, [whole])
    assert not result.readers
    assert result.before == result.after == 0
    assert_same(same, dense)


@pytest.mark.parametrize(
    ("name", "target"), [("unet", "output"), ("dit", "output"), ("dit", "stream"), ("lumina2", "stream")]
)
def test_a_stopped_compensation_resumes_from_its_folder(name, target, tmp_path):
    config = replace(CONFIG, target=target)
    _, _, whole, expected = compensated(name, "both", config)
    stopped = stop_after(4)
    with pytest.raises(KeyboardInterrupt):
        compensated(name, "both", config, folder=tmp_path)
    stopped.undo()
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    _, _, resumed, result = compensated(name, "both", config, folder=tmp_path)
    assert_same(whole, resumed)
    assert (result.before, result.after) == (expected.before, expected.after)
    assert list(result.readers) == list(expected.readers)
    with pytest.raises(SecateurError, match="other settings"):
        compensated(name, "both", replace(config, ridge=1.0), folder=tmp_path)


def stop_after(layers: int) -> pytest.MonkeyPatch:
    """Stop a compensation after a number of layers."""
    keep, kept = Fitting.keep, []

    def stopping(self, modules, readers):
        if len(kept) >= layers:
            raise KeyboardInterrupt
        kept.extend(readers)
        keep(self, modules, readers)

    patch = pytest.MonkeyPatch()
    patch.setattr(Fitting, "keep", stopping)
    return patch


TWO_PROCESSES = """
import sys
import torch
from safetensors.torch import save_file
from dataclasses import replace
from secateur.base.distributed import is_main_process
from compensation_runs import CONFIG, compensated
torch.set_num_threads(1)
for name in ("unet", "dit", "lumina2"):
    _, _, pruned, result = compensated(name, "both", replace(CONFIG, batch_size=4), torch.float64)
    if is_main_process():
        save_file(pruned.state_dict(), f"{sys.argv[1]}/{name}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_refit_as_one(tmp_path):
    assert start(tmp_path / "two.py", TWO_PROCESSES, tmp_path, launcher=TWO).wait(timeout=300) == 0
    for name in ("unet", "dit"):
        _, _, alone, _ = compensated(name, "both", dtype=torch.float64)
        for key, value in load_file(tmp_path / f"{name}.safetensors").items():
            torch.testing.assert_close(value, alone.state_dict()[key], atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_half_precision_is_kept(name):
    dense = BUILDERS[name]().bfloat16()
    cut = cut_of(dense, "width")
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    result = compensate(pruned, dense, process_of(dense), batch_of(dense), CONFIG, [cut])
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert result.after < 0.9 * result.before


def test_cuts_compose():
    """A model that was cut twice is refitted to the first dense one, by its manifest."""
    dense = BUILDERS["unet"]()
    pruned = apply_cut(copy.deepcopy(dense), cut_of(dense, "both"))
    middle = copy.deepcopy(pruned)
    apply_cut(pruned, Cut({}, tuple(describe(pruned).blocks)[:1]))
    result = compensate(pruned, dense, DiffusionProcess(), batch_of(dense), CONFIG)
    assert result.after < 0.9 * result.before
    again = compensate(pruned, middle, DiffusionProcess(), batch_of(dense), CONFIG)
    assert again.readers


def test_a_layer_of_each_model_has_the_same_weights_before_the_refit():
    dense = BUILDERS["unet-condition"]()
    first = cut_of(dense, "both")
    pruned = remove(copy.deepcopy(dense), describe(dense), first)
    second = cut_of(pruned, "both")
    remove(pruned, describe(pruned), second)
    for name, layer in counterparts(pruned, dense, [first, second]).layers.items():
        bias = pruned.get_submodule(name).bias
        if bias is not None:
            torch.testing.assert_close(layer.target(dense.get_submodule(layer.dense).bias, 0), bias)


def test_a_gate_may_be_zero_for_all_images_of_a_micro_batch():
    """Also of the first, in which no linearity can be seen."""
    dense = models.dit()
    cut = half(dense)

    def closed(module, args, output):
        x, gate, shift, scale, gate_mlp = output
        open_ = (args[2] > 0).to(x)[:, None]
        return x, gate * open_, shift, scale, gate_mlp * open_

    def refitted(labels: list[int], **changes) -> tuple[nn.Module, float]:
        pruned = remove(copy.deepcopy(dense), describe(dense), cut)
        for model in (dense, pruned):
            for block in model.transformer_blocks:
                block.norm1.register_forward_hook(closed)
        batch = Batch(batch_of(dense, 16).sample, {"class_labels": torch.tensor(labels)})
        config = CompensationConfig(num_tuples=16, **changes)
        return pruned, compensate(pruned, dense, FlowProcess(), batch, config, [cut]).after

    labels = [0] * 4 + [1] * 12
    whole, after = refitted(labels)
    parts, same = refitted(labels, batch_size=4)
    assert same == pytest.approx(after, rel=1e-3)
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=1e-3, atol=1e-3)


def test_layers_that_share_weights_are_not_refitted_and_reported():
    dense = BUILDERS["dit"]()
    for block in dense.transformer_blocks[1:]:
        block.ff.net[2].weight = dense.transformer_blocks[0].ff.net[2].weight
    cut = half(dense)
    tied = {name: units for name, units in cut.kept.items() if ".ff" in name}
    cut = Cut({**cut.kept, **dict.fromkeys(tied, next(iter(tied.values())))})
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    result = compensate(pruned, dense, FlowProcess(), batch_of(dense), CONFIG, [cut])
    assert set(result.left) == {f"transformer_blocks.{index}.ff.net.2" for index in range(4)}
    assert "same weights" in result.left["transformer_blocks.0.ff.net.2"]


@pytest.mark.parametrize(("rows", "ridge", "noted"), [(4, 0.0, True), (4, 0.01, False), (1000, 0.0, False)])
def test_fits_to_a_few_positions_without_a_ridge_are_noted(rows, ridge, noted, caplog):
    compensated("dit", "width", replace(CONFIG, rows=rows, ridge=ridge))
    assert ("layers have fewer positions than inputs" in caplog.text) == noted


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_sums_can_be_kept_on_another_device(name, monkeypatch):
    """float64 stands for the other device: a tensor that was not moved back would have the wrong dtype."""
    moved = []

    def park(self, waiting):
        self._held[waiting] = [tensor for tensor in waiting.tensors() if tensor.dtype == torch.float32]
        for tensor in self._held[waiting]:
            moved.append(tensor.numel())
            self._parked[id(tensor)] = tensor, torch.float32
            tensor.data = tensor.data.double()

    monkeypatch.setattr(Parking, "park", park)
    parked = compensated(name, "both", replace(CONFIG, offload=True))[2].state_dict()
    rounding = 1e-2 if name in SANDWICHED else 1e-4  # views come back dense, and round differently
    for key, value in compensated(name, "both")[2].state_dict().items():
        torch.testing.assert_close(parked[key], value, atol=rounding, rtol=rounding)
    assert sum(moved) > 10_000
