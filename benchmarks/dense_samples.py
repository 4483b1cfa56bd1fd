"""Samples of the dense models beside real images, as docs/images/dense-*.png.

python benchmarks/dense_samples.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import secateur
import train_dense

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
COLUMNS, STEPS, TILE = 10, 50, 72
MARGIN, TEXT = 130, 20  # pixels, of a picture that a page shows at about two thirds of its width
# Real images are shown of scikit-learn's digits only: no image of the others is redistributed in docs/.
GROUPS = {
    "digits": (("digits-unet", "digits-sit"), True),
    "fashion": (("fashion-unet", "fashion-sit"), False),
    "cifar": (("cifar-unet",), False),
}


def grid(rows: dict[str, Tensor]) -> Image.Image:
    """One picture of rows of images (N, C, H, W) in [-1, 1] with their names, a pixel of white between images."""
    padded = torch.nn.functional.pad(torch.stack(list(rows.values())), (1, 1, 1, 1), value=1.0)  # (R, N, C, H, W)
    pixels = ((padded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 3, 1, 4, 2)  # (R, H, N, W, C)
    number, height, columns, width, channels = pixels.shape
    small = Image.fromarray(pixels.reshape(number * height, columns * width, channels).squeeze(-1).numpy())
    scale = TILE // width
    tiles = small.resize((small.width * scale, small.height * scale), Image.Resampling.NEAREST)
    picture = Image.new(tiles.mode, (MARGIN + tiles.width, tiles.height), "white")
    picture.paste(tiles, (MARGIN, 0))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    for place, name in enumerate(rows):
        pen.text((4, (place + 0.5) * tiles.height / len(rows)), name, fill="black", font=font, anchor="lm")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=IMAGES)
    asked = parser.parse_args()
    for group in asked.groups:
        names, with_real = GROUPS[group]
        rows: dict[str, Tensor] = {}
        for name in names:
            drawn = secateur.sample(
                train_dense.DENSE[name].folder, num_images=COLUMNS, num_inference_steps=asked.steps, device="cpu"
            )
            assert isinstance(drawn, Tensor)
            rows[name] = drawn
        if with_real:
            rows["real images"] = train_dense.digits().batch(range(COLUMNS)).sample
        asked.out.mkdir(parents=True, exist_ok=True)
        grid(rows).save(asked.out / f"dense-{group}.png")


if __name__ == "__main__":
    main()
