"""Samples of the dense models beside real images, as docs/images/dense-*.png.

python benchmarks/dense_samples.py
"""

from __future__ import annotations

from pathlib import Path

import train_dense
from secateur import load
from secateur.base.files import atomic_file
from secateur.data.conditions import null_conditions, sample_conditions
from secateur.models.network import input_shape
from secateur.process.sampling import generate_images
from secateur.reporting import comparison_grid

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
COLUMNS, STEPS = 20, 50
# Redistributed images are scikit-learn's digits only; Fashion-MNIST stays out of the repository.
GROUPS = {"digits": (("digits-unet", "digits-sit"), True), "fashion": (("fashion-unet", "fashion-sit"), False)}


def main() -> None:
    for group, (names, with_real) in GROUPS.items():
        rows = {}
        for name in names:
            dense = train_dense.DENSE[name]
            loaded = load(dense.folder)
            rows[name] = generate_images(
                loaded.model,
                loaded.process,
                range(COLUMNS),
                input_shape(loaded.model),
                sample_conditions(loaded.model, train_dense.digits(), range(COLUMNS)),
                num_inference_steps=STEPS,
                null=null_conditions(loaded.model),
            )
        if with_real:
            rows["real images"] = train_dense.digits().batch(range(COLUMNS)).sample
        with atomic_file(IMAGES / f"dense-{group}.png") as temporary:
            comparison_grid(rows).save(temporary, "PNG")


if __name__ == "__main__":
    main()
