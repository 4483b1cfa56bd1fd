import functools
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn

from secateur.base.errors import ModelError
from secateur.evaluation import LatencyOptions
from secateur.evaluation.costs import count_layers, count_macs, count_parameters, weights_bytes
from secateur.evaluation.metrics import latency
from secateur.evaluation.metrics.latency import measure_latency, peak_activation_bytes, time_models
from secateur.models.network import class_count, example_inputs, inference, input_shape, null_class


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=(8, 4),
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=3,
    )


@pytest.fixture(scope="module")
def dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,
        num_layers=2,
        patch_size=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )


def test_inputs_of_both_families(unet: UNet2DModel, dit: DiTTransformer2DModel) -> None:
    assert (input_shape(unet), class_count(unet), null_class(unet)) == ((1, 8, 4), 3, None)
    assert (input_shape(dit), class_count(dit), null_class(dit)) == ((1, 8, 8), 10, 10)
    assert unet(**example_inputs(unet, 5)).sample.shape == (5, 1, 8, 4)
    assert dit(**example_inputs(dit, 12)).sample.shape == (12, 2, 8, 8)
    unconditional = UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    assert class_count(unconditional) is None
    with pytest.raises(ModelError, match="no sample_size"):
        example_inputs(unconditional, 1)


def test_macs_of_a_transformer_by_hand(dit: DiTTransformer2DModel) -> None:
    tokens, width, layers, patch = 16, 16, 2, 4
    block = tokens * 4 * width**2  # q, k, v, out
    block += 2 * tokens**2 * width  # scores and their sum: what a counter of the fused kernel misses
    block += tokens * 2 * width * 4 * width  # feed-forward
    block += 256 * width + width**2 + 6 * width**2  # timestep embedding and modulation
    ends = tokens * patch * width + 256 * width + width**2 + 2 * width**2 + tokens * width * patch * 2
    assert count_macs(dit, example_inputs(dit, 1)) == layers * block + ends
    assert count_macs(dit, example_inputs(dit, 3)) == 3 * (layers * block + ends)


def test_macs_of_a_convolution() -> None:
    assert count_macs(nn.Conv2d(3, 5, 3, padding=1, stride=2), {"input": torch.zeros(1, 3, 8, 8)}) == 5 * 4 * 4 * 3 * 9


def test_shared_tensors_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert (count_parameters(model), weights_bytes(model)) == (32, 128)
    model[1].weight = model[0].weight
    assert (count_parameters(model), weights_bytes(model)) == (16, 64)


def test_counting_does_not_change_the_mode(dit: DiTTransformer2DModel) -> None:
    dit.train()
    count_macs(dit, example_inputs(dit, 1))
    assert dit.training
    dit.eval()
    peak_activation_bytes(dit, example_inputs(dit, 1))
    assert not dit.training


def test_peak_activation_is_what_lives_at_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight.view(10, 100)[:1]  # a view of a weight costs nothing
            x = x + weight  # 400
            skip = x.view(100)  # a view costs nothing
            for _ in range(5):
                x = x * 2  # the old one dies after the new one is made
            x.add_(1)  # in place
            return x.view(100) + skip  # three of 400 alive

    net = Net()
    assert peak_activation_bytes(net, {"x": torch.ones(1, 100)}) == 3 * 400
    assert peak_activation_bytes(net, {"x": torch.ones(1, 100)}) == 3 * 400  # the first left nothing behind


def test_latency_takes_turns_and_drops_the_warmup() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(0.2 if len(order) <= 2 else seconds)

    found = measure_latency({"a": lambda: call("a", 0.0), "b": lambda: call("b", 0.01)}, rounds=4, warmup=1)
    assert order == ["a", "b"] * 5
    assert found["a"].rounds == 4
    assert found["a"].median_ms < found["b"].median_ms < 100
    assert found["b"].lower_ms <= found["b"].median_ms <= found["b"].upper_ms
    assert found["b"].lower_ms >= 10


def test_a_failed_compilation_is_a_note(dit: DiTTransformer2DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, **options: object) -> Callable[..., object]:
        if model is dit:
            raise RuntimeError("no compiler\nat hand")
        return lambda **inputs: model(**inputs)

    monkeypatch.setattr(torch, "compile", refuse)
    twin = DiTTransformer2DModel.from_config(dit.config)
    found = time_models({"dit": dit, "twin": twin}, LatencyOptions(2, (1, 2), compile=True))
    assert found["dit"].notes == ("torch.compile failed: no compiler at hand",)
    assert (found["dit"].compiled_latency, found["twin"].notes) == ({}, ())
    assert set(found["twin"].compiled_latency) == set(found["dit"].latency) == {"1", "2"}
    assert found["dit"].latency["1"].rounds == 2
    assert found["dit"].peak_activation_bytes["2"] == 2 * found["dit"].peak_activation_bytes["1"]


def test_a_batch_that_does_not_fit_is_a_note(dit: DiTTransformer2DModel) -> None:
    def limited(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        if len(kwargs["hidden_states"]) > 4:
            torch.empty(10**15)

    other = DiTTransformer2DModel.from_config(dit.config)
    handle = other.register_forward_pre_hook(limited, with_kwargs=True)
    found = time_models({"dit": dit, "other": other}, LatencyOptions(2, (1, 8, 4)))
    handle.remove()
    for cost in found.values():
        assert cost.notes == ("batch size 8 was not timed: out of memory",)
        assert list(cost.latency) == list(cost.peak_activation_bytes) == ["1", "4"]


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compilation_works(dit: DiTTransformer2DModel) -> None:
    found = time_models({"dit": dit}, LatencyOptions(2, (1, 2), compile=True))["dit"]
    assert found.notes == ()
    assert set(found.compiled_latency) == {"1", "2"}


def test_layers_add_up_to_the_model(unet: UNet2DModel, dit: DiTTransformer2DModel) -> None:
    for model in (unet, dit):
        inputs = example_inputs(model, 1)
        layers = count_layers(model, inputs)
        assert sum(layer.macs for layer in layers) == count_macs(model, inputs)
        assert sum(layer.parameters for layer in layers) == count_parameters(model)
        assert len({layer.name for layer in layers}) == len(layers)
        assert all(layer.macs >= 0 for layer in layers)  # a DiT calls an embedding of its first block a second time
    found = {layer.name: layer for layer in layers}
    assert found["transformer_blocks.0.attn1"].macs == 2 * 16**2 * 16  # the products of attention, which no weight has
    assert found["transformer_blocks.0.attn1.to_q"].weight == (16, 16)
    assert found["transformer_blocks.0.attn1.to_q"].macs == 16 * 16 * 16


def test_shared_layers_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    first, second = count_layers(model, {"input": torch.zeros(1, 4)})
    assert (first.parameters, first.macs, second.parameters, second.macs) == (16, 16, 0, 16)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_timing_in_another_dtype_does_not_change_the_model(dit: DiTTransformer2DModel) -> None:
    found = time_models({"dit": dit}, LatencyOptions(3, (2,), "bfloat16"))["dit"]
    assert next(dit.parameters()).dtype == torch.float32
    assert found.dtype == "bfloat16"
    single = peak_activation_bytes(dit, example_inputs(dit, 2))
    assert found.peak_activation_bytes["2"] < 0.7 * single
    assert found.latency["2"].throughput(2) == pytest.approx(2000 / found.latency["2"].median_ms)
    assert len(found.latency["2"].times_ms) == 3


class Widened(nn.Module):
    """One class of models of many widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu()


def test_more_models_of_a_class_are_compiled_than_torch_compiles_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "example_inputs", lambda model, batch: {"x": torch.ones(batch, 4)})
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    models = [Widened(width) for width in range(1, 7)]
    compiled = [latency._compile(model, (1, 3)) for model in models]
    for model, call in zip(models, compiled, strict=True):
        with inference(model):
            assert torch.equal(call(torch.ones(3, 4)), model(torch.ones(3, 4)))
