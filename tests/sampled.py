"""Images drawn in batches, for tests that compare samplers."""

import torch

from secateur.models.conditions import UNCONDITIONAL, rows
from secateur.process.sampling import generate_batch


def generate_images(model, process, numbers, shape, conditions=UNCONDITIONAL, *, batch_size=128, **options):
    """Images (len(numbers), C, H, W) in [-1, 1], `batch_size` at once."""
    chosen = [slice(start, start + batch_size) for start in range(0, len(numbers), batch_size)]
    drawn = [generate_batch(model, process, numbers[part], shape, rows(conditions, part), **options) for part in chosen]
    return torch.cat(drawn).cpu()
