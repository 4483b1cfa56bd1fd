"""How networks are called that take more than a sample and a time, with and without wrappers."""

import pytest
import torch
from diffusers import CogView3PlusTransformer2DModel, FluxPipeline, FluxTransformer2DModel
from torch import nn

import secateur
from models import dit, flux, half, sample_for, sana, uvit
from secateur import register_family, register_structure
from secateur.base.errors import ModelError
from secateur.models.families.flux import GUIDANCE
from secateur.models.family import Family
from secateur.models.jacobian import higher_order, project, unit_directions
from secateur.models.network import class_count, example_batch, example_inputs, input_shape, null_class
from secateur.models.packing import pack, positions, unpack
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.structure import StructureBuilder, masked, masks_of, remove

LATENTS = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))


def test_latents_are_packed_as_the_pipeline_of_flux_packs_them():
    tokens = pack(LATENTS)
    assert torch.equal(tokens, FluxPipeline._pack_latents(LATENTS, 2, 3, 6, 4))
    assert torch.equal(unpack(tokens, (6, 4)), LATENTS)
    assert torch.equal(unpack(tokens, (6, 4)), FluxPipeline._unpack_latents(tokens, 48, 32, 8))
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 2, "cpu", torch.float32)
    assert torch.equal(positions((6, 4)).float(), ids)


@pytest.mark.parametrize("distilled", [False, True])
def test_flux_gets_time_in_its_own_unit_and_positions_of_tokens(distilled):
    model = flux(guidance_embeds=distilled)
    sample, conditions = sample_for(model)
    timesteps = torch.tensor([30.0, 900.0])
    found = predict(model, sample, timesteps, conditions)
    guidance = {"guidance": torch.full((2,), GUIDANCE)} if distilled else {}
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
    text_ids = torch.zeros(conditions["encoder_hidden_states"].shape[1], 3)
    packed = FluxPipeline._pack_latents(sample, 2, 4, 8, 8)
    expected = model(packed, timestep=timesteps / 1000, img_ids=ids, txt_ids=text_ids, **guidance, **conditions).sample
    assert torch.equal(found, FluxPipeline._unpack_latents(expected, 64, 64, 8))
    assert not torch.allclose(found, predict(model, sample, timesteps.flip(0), conditions))


class Wrapped(nn.parallel.DistributedDataParallel):
    """The wrapper that accelerate adds for training in several processes, without the processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("make", [dit, flux, sana])
def test_a_wrapper_is_called_and_what_is_in_it_decides_how(make):
    model = make()
    wrapper = Wrapped(model)
    sample, conditions = sample_for(model)
    timesteps = torch.tensor([30.0, 900.0])
    assert torch.equal(predict(wrapper, sample, timesteps, conditions), predict(model, sample, timesteps, conditions))
    assert wrapper.calls == 1


def test_a_user_s_class_is_called_as_it_was_registered():
    class Mine(nn.Module):
        def forward(self, t, image):
            return image + t.view(-1, 1, 1, 1)

    register_family(
        Family(Mine, describe, arguments=lambda model, x, timesteps, conditions: {"t": timesteps, "image": x})
    )
    assert torch.equal(predict(Mine(), LATENTS, torch.ones(2)), LATENTS + 1)


class Returning(nn.Module):
    """Passes its keyword arguments on to `answer`."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, sample, timestep, **options):
        return self.answer(sample, **options)


def test_options_are_passed_only_by_name_and_one_value_may_be_in_a_dict():
    inner = dit()
    sample, conditions = sample_for(inner)
    timesteps = torch.tensor([30.0, 900.0])
    assert torch.equal(predict(Returning(lambda x: {"sample": x + 1}), LATENTS, timesteps), LATENTS + 1)
    passing = Returning(lambda x, **options: inner(x, timesteps, **options))  # answers in an output of diffusers
    assert torch.equal(predict(passing, sample, timesteps, conditions), predict(inner, sample, timesteps, conditions))
    with pytest.raises(ModelError, match="Returning returns loss, sample: return the prediction alone, or first"):
        predict(Returning(lambda x: {"loss": x, "sample": x}), LATENTS, timesteps)


def test_the_size_of_flux_is_the_config_s_or_that_of_1024_pixels():
    model = flux()
    assert input_shape(model) == (4, 8, 8)
    assert input_shape(FluxTransformer2DModel.from_config(dict(model.config) | {"sample_size": None})) == (4, 128, 128)
    model.register_to_config(sample_size=[6, 8])
    assert input_shape(model) == (4, 6, 8)
    model.register_to_config(sample_size=7)
    with pytest.raises(ModelError, match="sample_size is 7; Flux takes latents of an even size"):
        input_shape(model)


def test_time_of_sana_is_scaled_and_sprint_is_refused():
    model = sana(timestep_scale=0.5)
    sample, conditions = sample_for(model)
    expected = model(sample, timestep=torch.tensor([20.0, 300.0]), **conditions).sample
    torch.testing.assert_close(predict(model, sample, torch.tensor([40.0, 600.0]), conditions), expected)
    with pytest.raises(ModelError, match="Sprint"):
        predict(sana(guidance_embeds=True), sample, torch.ones(2), conditions)


def test_what_flux_predicts_must_have_the_shape_of_what_it_takes():
    model = flux(out_channels=12)
    sample, conditions = sample_for(model)
    with pytest.raises(ModelError, match="takes 4 channels and predicts 3"):
        predict(model, sample, torch.ones(2), conditions)


@torch.no_grad()
def test_a_masked_flux_predicts_what_the_cut_one_does():
    model = flux()
    structure = describe(model)
    cut = half(model)
    sample, conditions = sample_for(model)
    timesteps = torch.tensor([30.0, 900.0])
    with masked(model, structure, masks_of(cut, structure)):
        expected = predict(model, sample, timesteps, conditions)
    found = predict(remove(model, structure, cut), sample, timesteps, conditions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_jacobian_of_flux_is_that_of_its_latents():
    model = flux()
    sample, conditions = sample_for(model)
    (v,) = unit_directions([torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))])
    timesteps = FlowProcess().timesteps(torch.tensor([0.2, 0.7]))
    with higher_order("jvp"):
        _, (forward,) = project(model, sample, timesteps, conditions, [v], "jvp")
        _, (backward,) = project(model, sample, timesteps, conditions, [v], "vjp")
    step = 0.05
    with torch.no_grad():
        ahead, behind = (predict(model, sample + sign * step * v, timesteps, conditions) for sign in (1, -1))
    torch.testing.assert_close(forward, (ahead - behind) / (2 * step), rtol=0.01, atol=1e-4)
    torch.testing.assert_close((v * forward).flatten(1).sum(1), (v * backward).flatten(1).sum(1), rtol=1e-3, atol=1e-5)


def test_a_class_of_diffusers_that_is_not_declared_is_cut_but_not_called():
    sizes = {"num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 2, "text_embed_dim": 8, "sample_size": 8}
    model = CogView3PlusTransformer2DModel(
        in_channels=4, out_channels=4, time_embed_dim=8, pos_embed_max_size=8, **sizes
    )
    secateur.prune(model, target="macs=70%", criterion="magnitude", process="flow", device="cpu")
    data = [{"latents": torch.randn(4, 8, 8), "encoder_hidden_states": torch.randn(4, 8)}]
    with pytest.raises(ModelError, match="how CogView3PlusTransformer2DModel is called is not declared"):
        secateur.rank(model, data=data, criterion="taylor", process="flow", device="cpu")


@pytest.mark.parametrize("work", ["compress", "finetune"])
def test_what_would_call_it_refuses_it_before_anything_is_written(work, tmp_path):
    model = CogView3PlusTransformer2DModel(num_layers=2, attention_head_dim=4, num_attention_heads=2, sample_size=8)
    data = [{"latents": torch.randn(16, 8, 8), "encoder_hidden_states": torch.randn(4, 4096)}]
    about = {"data": data, "process": "flow", "device": "cpu", "out": tmp_path / "run"}
    asked = {"target": "macs=70%", "criterion": "magnitude"} if work == "compress" else {}
    with pytest.raises(ModelError, match=r"^how CogView3PlusTransformer2DModel is called is not declared"):
        getattr(secateur, work)(model, **asked, **about)
    assert not any(tmp_path.iterdir())


def test_a_network_without_a_config_is_called_by_its_family():
    model = uvit()
    sample, conditions = example_batch(model, 2)
    assert sample.shape == (2, 3, 8, 8)
    assert (class_count(model), null_class(model)) == (3, None)
    timesteps = torch.tensor([30.0, 900.0])
    assert torch.equal(
        predict(model, sample, timesteps, conditions), model(sample, timesteps, conditions["class_labels"])
    )


def test_a_network_without_a_config_needs_no_sizes_to_be_described_and_called():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)

        def forward(self, image, timestep):
            return self.down(self.up(image).relu()) * timestep.view(-1, 1, 1, 1)

    def describe_mine(model):
        builder = StructureBuilder()
        hidden = builder.dim("hidden", model.up.out_channels)
        builder.writes("up", hidden)
        builder.reads("down", hidden)
        return builder.build()

    register_structure(Mine, describe_mine)
    model = Mine()
    assert describe(model).dims["hidden"].size == 6
    assert torch.equal(predict(model, LATENTS, torch.ones(2)), model(LATENTS, torch.ones(2)))
    assert class_count(model) is None
    for needs_a_size in (input_shape, lambda model: example_batch(model, 1), lambda model: example_inputs(model, 1)):
        with pytest.raises(ModelError, match=r"Mine has no config to read its sizes from: register a Family\(Mine, "):
            needs_a_size(model)
