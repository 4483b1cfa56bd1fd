"""Images side by side: the same noise in the same column, so that eyes can compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST_TILE, GAP, LABEL_SIZE = 64, 4, 16  # pixels


def to_image(image_CHW: Tensor) -> Image.Image:
    """One image in [-1, 1]: RGB from three or more channels, else grey from the first."""
    pixels = ((image_CHW.float().nan_to_num().clamp(-1, 1) + 1) * 127.5).round().byte()
    if len(pixels) < 3:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())


def to_deep_image(image_CHW: Tensor) -> Image.Image:
    """One grey image in [-1, 1] with 16 bits."""
    levels = ((image_CHW[0].double().nan_to_num().clamp(-1, 1) + 1) * 32767.5).round()
    return Image.fromarray(levels.numpy().astype(np.uint16))


def image_grid(images_NCHW: Tensor, columns: int) -> Image.Image:
    """Images in rows of `columns` on white; small ones are enlarged by whole factors, pixel by pixel."""
    count, _, height, width = images_NCHW.shape
    scale = max(1, -(-SMALLEST_TILE // min(height, width)))
    step_x, step_y = width * scale + GAP, height * scale + GAP
    grid = Image.new("RGB", (min(columns, count) * step_x - GAP, -(-count // columns) * step_y - GAP), "white")
    for index, image in enumerate(images_NCHW):
        tile = to_image(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        grid.paste(tile, (index % columns * step_x, index // columns * step_y))
    return grid


def comparison_grid(images: Mapping[str, Tensor]) -> Image.Image:
    """One row per model with its name at the left; column i holds image i of every model."""
    rows = {name: image_grid(batch, len(batch)) for name, batch in images.items()}
    font = ImageFont.load_default(LABEL_SIZE)
    margin = int(max(font.getlength(name) for name in rows)) + 3 * GAP
    width = margin + max(row.width for row in rows.values())
    grid = Image.new("RGB", (width, sum(row.height + GAP for row in rows.values()) - GAP), "white")
    pen, top = ImageDraw.Draw(grid), 0
    for name, row in rows.items():
        pen.text((GAP, top + row.height / 2), name, fill="black", font=font, anchor="lm")
        grid.paste(row, (margin, top))
        top += row.height + GAP
    return grid
