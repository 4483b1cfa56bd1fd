"""Random LoRAs of small models, and models with a LoRA merged into them."""

import copy

import torch
from torch import nn

from secateur.structure import Cut

PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")


def adaptable(model):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def random_lora(model, head="unet.", endings=PEFT, rank=3, alpha=None, only="", spell=lambda name: name):
    """A LoRA of every linear layer and convolution, large enough to change the output."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for name, module in adaptable(model).items():
        out, *into = module.weight.shape
        key = f"{head}{spell(name)}"
        if only in name:
            lora[key + endings[0]] = torch.randn(rank, *into, generator=generator) * 0.1
            lora[key + endings[1]] = torch.randn(out, rank, *[1] * (len(into) - 1), generator=generator) * 0.1
            if alpha is not None:
                lora[f"{key}.alpha"] = torch.tensor(alpha)
    return lora


@torch.no_grad()
def merged(model, lora, head="unet.", endings=PEFT, spell=lambda name: name):
    """`model` with alpha / rank * up @ down added to its weights, and every tensor of `lora` used."""
    model, left = copy.deepcopy(model), set(lora)
    for name, module in adaptable(model).items():
        key = f"{head}{spell(name)}"
        if key + endings[0] in lora:
            down, up = lora[key + endings[0]], lora[key + endings[1]]
            scale = float(lora.get(f"{key}.alpha", len(down))) / len(down)
            module.weight += (scale * up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            left -= {key + endings[0], key + endings[1], f"{key}.alpha"}
    assert not left
    return model


def without(*names):
    return lambda model: Cut({}, names)
