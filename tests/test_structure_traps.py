"""Traps of each architecture, one test per trap."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.testing._internal.two_tensor import TwoTensor

from models import autoencoder, dit, flux, half, inputs_for, output, pixart, sana, sd3, sdxl, unet_condition, uvit
from secateur.base.errors import SecateurError
from secateur.criteria.blocks.drops import outputs_without_each_block
from secateur.criteria.blocks.measure import watched
from secateur.models.network import inference
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.runs.subject import open_subject
from secateur.structure import Cut, masked, masks_of, remove

TEXT_MODELS = [unet_condition, sdxl, pixart, sd3, flux, sana]


def halved(model):
    return remove(model, describe(model), half(model))


def slices_of(model, dim):
    return {(piece.parameter, piece.axis, piece.offset) for piece in describe(model).dims[dim].slices}


@pytest.mark.parametrize("make", [*TEXT_MODELS, autoencoder, uvit])
def test_masked_equals_removed_in_float32_when_everything_is_halved(make):
    model = make()
    structure, cut = describe(model), half(model)
    assert len(cut.kept) > 5
    with masked(model, structure, masks_of(cut, structure)):
        expected = output(model)
    found = output(remove(model, structure, cut))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_stale_count_of_heads_changes_the_output_without_a_crash():
    model = halved(pixart())
    right = output(model)
    attention = model.transformer_blocks[0].attn1
    assert attention.heads == 2
    attention.heads = 4
    assert (output(model) - right).abs().max() > 1e-3


def test_the_single_head_of_an_autoencoder_is_cut_by_channels():
    model = autoencoder()
    dim = describe(model).dims["decoder.mid_block.attentions.0.channels"]
    assert dim.rescaled == tuple(f"decoder.mid_block.attentions.0.to_q.{kind}" for kind in ("weight", "bias"))
    assert halved(model).decoder.mid_block.attentions[0].scale == 8**-0.5


def test_the_encoder_of_an_autoencoder_is_not_cut():
    model = autoencoder()
    latents = model.encode(torch.ones(1, 3, 8, 8)).latent_dist.mean
    assert torch.equal(halved(model).encode(torch.ones(1, 3, 8, 8)).latent_dist.mean, latents)


@pytest.mark.parametrize("make", [partial(sd3, qk_norm="rms_norm"), flux])
def test_norms_of_queries_and_keys_keep_the_size_of_a_head(make):
    model = make()
    structure = describe(model)
    cut = Cut({"transformer_blocks.0.attn.heads": (1, 2)})
    attention = remove(model, structure, cut).transformer_blocks[0].attn
    norms = (attention.norm_q, attention.norm_k, attention.norm_added_q, attention.norm_added_k)
    assert [len(norm.weight) for norm in norms] == [8] * 4
    assert attention.heads == 2


def test_a_single_stream_block_of_flux_reads_attention_then_feed_forward():
    name = "single_transformer_blocks.1"
    assert (f"{name}.proj_out.weight", 1, 0) in slices_of(flux(), f"{name}.attn.heads")
    assert (f"{name}.proj_out.weight", 1, 32) in slices_of(flux(), f"{name}.mlp")
    block = remove(flux(), describe(flux()), Cut({f"{name}.attn.heads": (2,)})).single_transformer_blocks[1]
    assert block.proj_out._tp_packed_row_blocks == [8, 128]


def test_a_single_normalized_head_and_its_place_in_a_concatenation_are_not_cut():
    name = "single_transformer_blocks.0"
    model = flux(num_attention_heads=1)
    assert f"{name}.attn.heads" not in describe(model).dims
    assert (f"{name}.proj_out.weight", 1, 8) in slices_of(model, f"{name}.mlp")


def test_image_and_text_share_the_heads_of_joint_attention():
    touched = {parameter for parameter, *_ in slices_of(sd3(), "transformer_blocks.0.attn.heads")}
    name = "transformer_blocks.0.attn"
    layers = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
    assert {f"{name}.{layer}.weight" for layer in layers} < touched


def test_the_last_block_of_sd3_returns_no_text_and_is_not_removed():
    structure = describe(sd3(num_layers=3))
    assert list(structure.blocks) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert "transformer_blocks.2.ff_context" not in structure.dims
    assert not any("to_add_out" in piece for piece, *_ in slices_of(sd3(), "transformer_blocks.2.attn.heads"))


def test_dual_attention_has_heads_of_its_own():
    model = sd3(dual_attention_layers=(1,))
    remove(model, describe(model), Cut({"transformer_blocks.1.attn2.heads": (0,)}))
    assert [model.transformer_blocks[1].attn.heads, model.transformer_blocks[1].attn2.heads] == [4, 1]


@pytest.mark.parametrize("make", [*TEXT_MODELS, dit])
def test_modulation_positions_and_text_widths_stay(make):
    fixed = ("scale_shift_table", "adaln", "norm1.linear", "norm1_context", "pos_embed", "patch_embed", "embedder")
    model = make()
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    text_widths = {name: module.in_features for name, module in model.named_modules() if name.endswith("attn2.to_k")}
    halved(model)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(after[name], before[name]) for name in before if any(part in name for part in fixed))
    modules = dict(model.named_modules())
    assert all(modules[name].in_features == width for name, width in text_widths.items())


def test_both_halves_of_a_gated_feed_forward_are_cut():
    name = "mid_block.attentions.0.transformer_blocks.0.ff"
    halves = {offset for parameter, _, offset in slices_of(sdxl(), name) if parameter == f"{name}.net.0.proj.weight"}
    assert halves == {0, 64}


def test_the_depthwise_convolution_of_sana_stays_depthwise():
    feed_forward = halved(sana()).transformer_blocks[0].ff
    assert feed_forward.conv_depth.groups == feed_forward.conv_depth.in_channels == 40
    assert feed_forward.conv_inverted.out_channels == 40
    assert feed_forward.conv_point.in_channels == 20


def test_a_norm_over_all_heads_ignores_removed_heads():
    model = sana(qk_norm="rms_norm_across_heads")
    structure = describe(model)
    cut = Cut({"transformer_blocks.0.attn1.heads": (1, 3)})
    with masked(model, structure, masks_of(cut, structure)):
        expected = output(model)
    remove(model, structure, cut)
    torch.testing.assert_close(output(model), expected, rtol=1e-5, atol=1e-5)
    assert model.transformer_blocks[0].attn1.norm_k.dim == (8,)


@pytest.mark.parametrize("make", [*TEXT_MODELS, dit])
def test_gradient_checkpointing_sees_the_masks(make):
    model = make().train()
    structure = describe(model)
    masks = masks_of(half(model), structure)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(0)  # DiT drops labels
        if checkpointing:
            model.enable_gradient_checkpointing()
        with masked(model, structure, masks):
            model(**inputs_for(model), return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("make", [unet_condition, sdxl, pixart, sd3, flux])  # diffusers does not fuse Sana
def test_fused_projections_are_refused_before_and_right_after_pruning(make):
    model = halved(make())
    expected = output(model)
    model.fuse_qkv_projections()
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"attn1? are fused"):
        describe(model)


def test_an_adapter_that_holds_weights_of_its_own_is_refused():
    model = unet_condition()
    processor = IPAdapterAttnProcessor2_0(hidden_size=16, cross_attention_dim=12)
    model.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(processor)
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn2 holds weights"):
        describe(model)


def test_quantized_weights_are_refused_before_work():
    model = dit()
    layer = model.transformer_blocks[1].ff.net[2]
    whole, codes = layer.weight, layer.weight.detach().mul(100).to(torch.int8)
    for weight in (codes, TwoTensor(codes.float(), codes.float())):
        layer.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(SecateurError, match=r"quantized \(transformer_blocks\.1\.ff\.net\.2\.weight holds codes\)"):
            open_subject(model, FlowProcess())
    layer.weight = whole
    model.hf_quantizer = SimpleNamespace()
    with pytest.raises(ValueError, match=r"DiTTransformer2DModel is quantized \(SimpleNamespace\), .* before that"):
        describe(model)


def test_a_wrapped_layer_is_refused():
    class Wrapped(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.out_features, self.bias = base_layer, base_layer.out_features, None

    model = sd3()
    model.transformer_blocks[1].attn.to_q = Wrapped(model.transformer_blocks[1].attn.to_q)
    with pytest.raises(ValueError, match=r"no parameter transformer_blocks\.1\.attn\.to_q\.weight: merge or unload"):
        describe(model)


def test_a_parametrized_layer_is_refused_until_it_is_plain_again():
    model = sd3()
    layer = model.transformer_blocks[1].attn.to_q
    weight_norm(layer)
    with pytest.raises(ValueError, match=r"1\.attn\.to_q\.weight is parametrized: call .*remove_parametrizations on"):
        describe(model)
    parametrize.remove_parametrizations(layer, "weight")
    assert describe(model) == describe(sd3())


def test_a_compiled_network_has_the_structure_of_what_is_compiled():
    assert describe(torch.compile(dit(), backend="eager")) == describe(dit())


def test_freeu_is_refused_until_it_is_off():
    model = unet_condition()
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(ValueError, match=r"FreeU is on in this UNet2DConditionModel: call disable_freeu\(\) first"):
        describe(model)
    model.disable_freeu()
    assert describe(model) == describe(unet_condition())


def test_unknown_attention_inside_of_a_unet_is_named():
    model = unet_condition()
    model.mid_block.attentions[0] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"mid_block\.attentions\.0 is a Identity"):
        describe(model)


def test_a_transformer_of_one_layer_is_skipped_whole_and_others_by_layer():
    blocks = describe(sdxl()).blocks
    assert not blocks["mid_block.resnets.1"].listed
    assert blocks["mid_block.attentions.0.transformer_blocks.2"].listed
    assert "mid_block.attentions.0" not in blocks
    smaller = remove(
        sdxl(), describe(sdxl()), Cut({}, tuple(f"mid_block.attentions.0.transformer_blocks.{i}" for i in (0, 2)))
    )
    assert describe(smaller).blocks["mid_block.attentions.0.transformer_blocks.0"].listed  # whatever was cut before
    assert not describe(unet_condition()).blocks["mid_block.attentions.0"].listed


def test_all_layers_of_a_transformer_can_be_removed():
    model = sdxl()
    structure = describe(model)
    cut = Cut({}, tuple(name for name in structure.blocks if name.startswith("mid_block.attentions.0.")))
    with masked(model, structure, masks_of(cut, structure)):
        expected = output(model)
    torch.testing.assert_close(output(remove(model, structure, cut)), expected, rtol=1e-5, atol=1e-5)
    left = [name for name in structure.blocks if name not in cut.removed_blocks]
    assert list(describe(model).blocks) == left  # schedules rely on it


@pytest.mark.slow
@pytest.mark.parametrize("make", [*TEXT_MODELS, autoencoder, uvit, dit])
def test_the_output_without_a_block_is_that_of_the_model_which_lost_it(make):
    model = make()
    structure = describe(model)
    dropped = list(outputs_without_each_block(model, structure, lambda: output(model)))
    assert len(dropped) == len(structure.blocks) > 0
    for name, found in zip(structure.blocks, dropped, strict=True):
        expected = output(remove(copy.deepcopy(model), structure, Cut({}, (name,))))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [sdxl, unet_condition, sd3, flux])
def test_how_far_a_block_turns_the_image_is_seen_through_its_tuple(make):
    model = make()
    structure = describe(model)
    with inference(model), watched(model, structure) as seen:
        output(model)
    assert set(seen) == set(structure.blocks)
    assert all(distance.shape == (2,) and (distance > 0).all() for distance in seen.values())


def test_half_a_mask_blends_both_streams_of_a_block():
    model = flux(num_layers=1, num_single_layers=0)
    structure, name = describe(model), "transformer_blocks.0"
    seen = []
    with masked(model, structure, {name: torch.tensor([0.5])}):
        # Registered last, this hook sees what the mask made of the output.
        model.transformer_blocks[0].register_forward_hook(lambda *given: seen.append(given), with_kwargs=True)
        output(model)
    (_, _, taken, blended) = seen[0]
    raw = model.transformer_blocks[0].forward(**taken)
    for stream, x, y in zip(blended, (taken["encoder_hidden_states"], taken["hidden_states"]), raw, strict=True):
        torch.testing.assert_close(stream, (x + y) / 2)


def test_blocks_of_either_half_of_a_uvit_are_removed():
    model = uvit()
    structure = describe(model)
    cut = Cut({}, ("in_blocks.1", "mid_block"))
    with masked(model, structure, masks_of(cut, structure)):
        expected = output(model)
    torch.testing.assert_close(output(remove(model, structure, cut)), expected, rtol=1e-5, atol=1e-5)
    assert set(describe(model).blocks) == {"in_blocks.0", "out_blocks.0", "out_blocks.1"}


def test_class_embeddings_beside_those_of_time_keep_a_width_of_their_own_through_two_cuts():
    net = unet_condition(num_class_embeds=3, class_embeddings_concat=True)
    for kept in ({"time_embedding": (0, 1)}, {"time_embedding": (0,), "class_embedding": (0, 2, 3)}):
        structure, cut = describe(net), Cut(kept)
        with masked(net, structure, masks_of(cut, structure)):
            expected = output(net)
        remove(net, structure, cut)
        assert (output(net) - expected).abs().max() < 1e-5
    assert net.class_embedding.weight.shape == (3, 3)
