"""A full-size DiT-XL/2 with random weights, ranked block by block and pruned to half of its depth: size, time, memory.

    python benchmarks/dit_xl.py

DiT's authors count one embedding of timestep and class for the whole model, diffusers has one in every block; both
counts are given. A ranking of random weights means nothing; this shows that a model of this size fits.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiTTransformer2DModel
from torch import nn

import secateur
from bench import RESULTS, write_json, write_text

CRITERIA = ("ced", "deviation", "uniform", "cosine", "loss-change", "ent-prog")
KEPT = (28, 20, 19, 14, 13, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--criterion", choices=CRITERIA, default="ced")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--bins", type=int, default=4)
    arguments = parser.parse_args()
    results = measure(arguments.criterion, arguments.images, arguments.bins)
    write_json(RESULTS / "dit-xl.json", results)
    text = report(results)
    write_text(RESULTS / "dit-xl.md", text)
    print(text)


def measure(criterion: str, images: int, bins: int) -> dict[str, Any]:
    """Build, rank, cut, save and load again; sizes at every depth of the table, seconds and peak memory."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def took(name: str) -> None:
        nonlocal clock
        seconds[name], clock = round(time.perf_counter() - clock, 1), time.perf_counter()

    torch.manual_seed(0)
    model = DiTTransformer2DModel(sample_size=32, out_channels=8).eval().requires_grad_(False)
    took("build")
    inputs = secateur.example_inputs(model, 1)
    sizes = sizes_of(model)
    took("plan")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, 4, 32, 32, generator=generator)
    labels = torch.randint(0, 1000, (images,), generator=generator)
    scoring = secateur.ScoringConfig(num_images=images, num_timesteps=bins, batch_size=images)
    options: dict[str, Any] = {"criterion": criterion, "scoring": scoring, "process": "ddpm"}
    ranking = secateur.rank(model, data=[{"latents": latents, "labels": labels}], **options)
    took("rank")
    secateur.prune(model, target="blocks=14", ranking=ranking, process="ddpm", inplace=True)
    took("cut")
    with tempfile.TemporaryDirectory() as folder:
        secateur.save_pretrained(model, folder)
        took("save")
        plain = DiTTransformer2DModel.from_pretrained(folder).eval()
        took("load in plain diffusers")
        with torch.no_grad():
            equal = torch.equal(plain(**inputs).sample, model(**inputs).sample)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "criterion": criterion,
        "tuples": images * bins,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sizes": sizes,
        "seconds": seconds,
        "peak_gib": round(peak / 2**30, 1),
        "kept_blocks": len(plain.transformer_blocks),
        "plain_diffusers_gives_the_same_output": equal,
    }


def sizes_of(model: DiTTransformer2DModel) -> list[dict[str, float]]:
    """Parameters and MACs at every depth of the table, in diffusers and with one embedding for all blocks."""
    embedding = model.transformer_blocks[0].norm1.emb
    parameters = sum(parameter.numel() for parameter in embedding.parameters())
    macs = sum(layer.weight.numel() for layer in embedding.modules() if isinstance(layer, nn.Linear))
    sizes = []
    for kept in KEPT:
        found = size_of(kept)
        sizes.append(
            {
                "blocks": kept,
                "parameters": found.parameters,
                "parameters_one_embedding": found.parameters - (kept - 1) * parameters,
                "macs": found.macs,
                "macs_one_embedding": found.macs - (kept - 1) * macs,
            }
        )
    return sizes


def size_of(blocks: int) -> Any:
    """The size of a DiT-XL/2 with a number of blocks, counted without weights."""
    with init_empty_weights(include_buffers=True):
        return secateur.inspect(DiTTransformer2DModel(sample_size=32, out_channels=8, num_layers=blocks)).dense


def report(results: dict[str, Any]) -> str:
    """Markdown."""
    dense = results["sizes"][0]
    lines = [
        "| blocks | parameters, one embedding (M) | in diffusers (M) | GMACs, one embedding | in diffusers | ratio |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['blocks']} | {row['parameters_one_embedding'] / 1e6:.1f} | {row['parameters'] / 1e6:.1f} "
        f"| {row['macs_one_embedding'] / 1e9:.1f} | {row['macs'] / 1e9:.1f} | {dense['macs'] / row['macs']:.2f} |"
        for row in results["sizes"]
    ]
    spent = ", ".join(f"{name} {seconds} s" for name, seconds in results["seconds"].items())
    lines += [
        "",
        f"{results['criterion']} on {results['tuples']} tuples, {results['threads']} thread(s), float32: {spent}; "
        f"peak memory {results['peak_gib']} GiB. Loaded in plain diffusers: {results['kept_blocks']} blocks, "
        f"{'the same' if results['plain_diffusers_gives_the_same_output'] else 'another'} output.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
