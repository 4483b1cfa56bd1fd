"""Small networks with the names and results of the originals of DiT and SiT, and their checkpoints."""

import math

import torch
from torch import nn
from torch.nn import functional as F

import secateur
from models import randomize

HIDDEN, HEADS, DEPTH, PATCH, CLASSES, GRID = 32, 4, 3, 2, 10, 4


def positions_on_a_line(positions, width):
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(width // 2).double() / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def time_features(t, width=256):
    half = width // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x_BLD):
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x_BLD).chunk(3, 2))
        weights_BHLL = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights_BHLL @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(HIDDEN, 4 * HIDDEN), "fc2": nn.Linear(4 * HIDDEN, HIDDEN)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 6 * HIDDEN))

    def forward(self, x, c):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(c)[:, None].chunk(6, 2)
        x = x + gate_1 * self.attn(normal(x) * (1 + scale_1) + shift_1)
        inner = F.gelu(self.mlp["fc1"](normal(x) * (1 + scale_2) + shift_2), approximate="tanh")
        return x + gate_2 * self.mlp["fc2"](inner)


def normal(x):
    return F.layer_norm(x, (HIDDEN,), eps=1e-6)


class Original(nn.Module):
    """DiT (Peebles & Xie 2023, figure 3) with the tensor names of the published checkpoints."""

    def __init__(self, channels=1, learn_sigma=True):
        super().__init__()
        self.channels, self.outputs = channels, channels * (1 + learn_sigma)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, HIDDEN, PATCH, PATCH)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(CLASSES + 1, HIDDEN)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(HIDDEN, PATCH * PATCH * self.outputs),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN)),
            }
        )
        self.pos_embed = nn.Parameter(torch.empty(1, GRID * GRID, HIDDEN), requires_grad=False)
        randomize(self)
        column, row = torch.arange(GRID).repeat(GRID), torch.arange(GRID).repeat_interleave(GRID)
        self.pos_embed.data = torch.cat([positions_on_a_line(axis, HIDDEN // 2) for axis in (column, row)], 1)[None]

    @torch.no_grad()
    def forward(self, x, t, y):
        c = self.t_embedder["mlp"](time_features(t)) + self.y_embedder["embedding_table"](y)
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c)[:, None].chunk(2, 2)
        x = self.final_layer["linear"](normal(x) * (1 + scale) + shift)
        x = x.unflatten(2, (PATCH, PATCH, self.outputs)).unflatten(1, (GRID, GRID))  # (B, row, column, p, q, C)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, GRID * PATCH, GRID * PATCH)


class OriginalSiT(Original):
    """SiT (Ma et al. 2024): its forward pass drops the second half of the output."""

    def forward(self, x, t, y):
        return super().forward(x, t, y)[:, : self.channels]


def written(tmp_path, model, name):
    torch.save(model.state_dict(), tmp_path / name)
    secateur.convert(tmp_path / name, tmp_path / "out", num_heads=HEADS)
    return tmp_path / "out"


def inputs(times, channels=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(times), channels, GRID * PATCH, GRID * PATCH, generator=generator)
    return x, times, torch.arange(len(times)) % (CLASSES + 1)
