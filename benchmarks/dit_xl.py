"""A full-size DiT-XL/2 of random weights, ranked block by block and pruned to half of its depth: size, time, memory.

    python benchmarks/dit_xl.py

DiT's authors count one embedding of timestep and class for the whole model, diffusers one in every block; both counts
are given. Random weights rank nothing: this shows that the work fits, not what a ranking is worth.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from secateur.base.files import write_json, write_text
from secateur.criteria import CRITERIA, ScoringConfig, score
from secateur.data import Batch
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.schedules import CutConfig, one_shot, parse_target
from secateur.structure.cost import cost_model

RESULTS = Path(__file__).resolve().parent / "results"
KEPT = (28, 20, 19, 14, 13, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [name for name, criterion in CRITERIA.items() if criterion.ranks == "blocks"]
    parser.add_argument("--criterion", choices=names, default="ced")
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
    structure, inputs = describe(model), example_inputs(model, 1)
    sizes = sizes_of(model)
    took("plan")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, 4, 32, 32, generator=generator)
    labels = torch.randint(0, 1000, (images,), generator=generator)
    config = ScoringConfig(num_images=images, num_timesteps=bins, batch_size=images)
    batch = Batch(latents, {"class_labels": labels})
    scores = score(model, DiffusionProcess(), batch, structure, criterion, config).scores
    took("rank")
    cut = one_shot(model, structure, parse_target("blocks=14"), scores, CutConfig(), inputs)[0].cut
    apply_cut(model, cut)
    took("cut")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
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
    structure = describe(model)
    cost = cost_model(model, structure, example_inputs(model, 1))
    embedding = model.transformer_blocks[0].norm1.emb
    parameters = sum(parameter.numel() for parameter in embedding.parameters())
    macs = sum(layer.weight.numel() for layer in embedding.modules() if isinstance(layer, nn.Linear))
    sizes = []
    for kept in KEPT:
        found = cost({}, list(structure.blocks)[kept:])
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
