"""Make the file of Fashion-MNIST images in the package: the first 1,000 of each class, at 16x16.

    SECATEUR_DATA=FOLDER python benchmarks/fashion_set.py

FOLDER holds `fashion_mnist_train.npz` with `images` (60000, 28, 28) and `labels`, both uint8.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "src" / "secateur" / "assets" / "fashion-mnist" / "fashion.npz"
NAMES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
SIZE, PER_CLASS = 16, 1000


def main() -> None:
    source = Path(os.environ.get("SECATEUR_DATA", "")) / "fashion_mnist_train.npz"
    if not source.is_file():
        raise SystemExit(f"{source} is missing; set SECATEUR_DATA to the folder that holds it")
    with np.load(source) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    chosen = np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in range(len(NAMES))])
    pictures = [Image.fromarray(image) for image in images[chosen]]
    small = [np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for picture in pictures]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, images=np.stack(small), labels=labels[chosen], names=np.array(NAMES))
    print(f"{OUT}: {len(small):,} images, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
