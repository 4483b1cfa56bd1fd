"""Networks made with parts that must not be cut: discovery leaves them whole, and says why."""

import pytest
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

import secateur
from caches import own_cache
from secateur.base.errors import ModelError
from secateur.models.discovery import proofs
from secateur.models.discovery.inputs import working
from secateur.models.discovery.reach import reached
from secateur.models.network import example_inputs
from secateur.models.registry import describe, left_out

cache = pytest.fixture(own_cache, autouse=True)


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
