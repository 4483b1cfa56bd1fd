"""A network with the modules of the U-ViT of Bao et al. 2023, by name and shape; the code is our own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.mlp = Mlp(dim, 4 * dim)
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    def __init__(
        self,
        img_size: int = 8,
        patch_size: int = 2,
        in_chans: int = 3,
        embed_dim: int = 16,
        depth: int = 4,
        num_heads: int = 4,
        qkv_bias: bool = False,
        mlp_time_embed: bool = False,
        num_classes: int = 3,
        conv: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__()
        tokens = (img_size // patch_size) ** 2
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        mlp = (nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(), nn.Linear(4 * embed_dim, embed_dim))
        self.time_embed = nn.Sequential(*mlp) if mlp_time_embed else nn.Identity()
        self.label_emb = nn.Embedding(num_classes, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + tokens, embed_dim))
        self.in_blocks = nn.ModuleList(Block(embed_dim, num_heads, qkv_bias) for _ in range(depth // 2))
        self.mid_block = Block(embed_dim, num_heads, qkv_bias)
        self.out_blocks = nn.ModuleList(Block(embed_dim, num_heads, qkv_bias, skip) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        patches = self.patch_embed.proj(x.to(self.pos_embed))
        frequencies = torch.arange(1, self.pos_embed.shape[-1] + 1, device=x.device) / 100
        time = self.time_embed(torch.cos(timesteps[:, None] * frequencies).to(patches))
        tokens = torch.stack([self.label_emb(y), time], dim=1)
        x = torch.cat([tokens, patches.flatten(2).transpose(1, 2)], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, 2:]
        height, width = patches.shape[-2:]
        x = x.unflatten(1, (height, width)).unflatten(-1, (self.final_channels, *self.patch))
        return self.final_layer(x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))

    @property
    def patch(self) -> tuple[int, ...]:
        return self.patch_embed.proj.kernel_size

    @property
    def final_channels(self) -> int:
        return self.patch_embed.proj.in_channels
