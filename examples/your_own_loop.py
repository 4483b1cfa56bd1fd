"""Prune a diffusers U-Net in your own training loop: `python examples/your_own_loop.py` (a minute on a CPU).

The loop is plain PyTorch. `secateur.Pruning` shrinks masks while the model trains, removes units when their masks are
zero, and cuts the state of the optimizer and the moving average in the same way.
"""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits
from torch.nn import functional as F

import secateur
from secateur import ScoringConfig

STEPS, BATCH = 300, 64


def main() -> None:
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ema = EMAModel(model.parameters(), decay=0.98)
    pruning = secateur.Pruning(
        model,
        target="macs=50%",
        schedule="progressive",
        optimizer=optimizer,
        ema=ema,
        data=images[:64],
        process=scheduler,
        steps=STEPS,
        scoring=ScoringConfig(num_timesteps=8, num_images=64),
    )
    for step in range(STEPS):
        x = images[torch.randint(len(images), (BATCH,))]
        noise, t = torch.randn_like(x), torch.randint(1000, (BATCH,))
        loss = F.mse_loss(model(scheduler.add_noise(x, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if pruning.step():  # under DDP or torch.compile: wrap the model again here
            parameters = sum(parameter.numel() for parameter in model.parameters())
            print(f"step {step}: units were removed; {parameters:,} parameters are left")
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    ema.copy_to(model.parameters())
    secateur.save_pretrained(model, "pruned-digits", dict(scheduler.config))


if __name__ == "__main__":
    main()
