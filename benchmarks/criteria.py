"""Criteria at equal size and equal budget: random, magnitude, taylor and diff-pruning, with several seeds.

    python benchmarks/criteria.py

Every run is a `secateur compress` run. Finished runs are skipped, so the command resumes. The seed determines the
calibration images and noise, the random scores, and the recovery; samples for the distances come from the same noise.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import secateur
from bench import RESULTS, spread, write_json, write_text

ROOT = Path(__file__).resolve().parent
CRITERIA = ("random", "magnitude", "taylor", "diff-pruning")
NUM_IMAGES = 1000


def run(
    model: str, target: str, criterion: str, seed: int, steps: int, folder: Path, images: int
) -> dict[str, dict[str, float]]:
    """Distances of the pruned and the recovered model, after one compression."""
    secateur.compress(
        model,
        target=target,
        data="digits",
        out=folder,
        recipe="quickstart",
        criterion=criterion,
        objective="denoising",
        steps=steps,
        seed=seed,
        evaluation=replace(
            secateur.recipe_named("quickstart").evaluation,
            num_images=images,
            latency=secateur.LatencyOptions(rounds=3),
        ),
    )
    models = secateur.read_result(secateur.Evaluation, folder / "evaluation" / "evaluation.json").models
    return {
        name: {
            "fd": entry["fd"].value,
            "ssim": entry["ssim"].value if "ssim" in entry.estimates else 1.0,
            "loss": entry["denoising_loss"].value,
            "macs": entry.macs,
        }
        for name, entry in models.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="digits-unet")
    parser.add_argument("--target", default="macs=50%")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="samples that are measured")
    parser.add_argument("--runs", type=Path, default=ROOT.parent / "runs" / "criteria")
    arguments = parser.parse_args()
    name = f"criteria-{arguments.model}-{arguments.target.replace('=', '').replace('%', '')}-{arguments.steps}"
    found = {
        criterion: [
            run(
                arguments.model,
                arguments.target,
                criterion,
                seed,
                arguments.steps,
                arguments.runs / f"{name}-{criterion}-{seed}",
                arguments.images,
            )
            for seed in arguments.seeds
        ]
        for criterion in CRITERIA
    }
    lines = [
        "| criterion | FD pruned | FD recovered | SSIM recovered | denoising loss recovered |",
        "|---|---|---|---|---|",
    ]
    for criterion, runs in found.items():
        recovered = {key: [each["recovered"][key] for each in runs] for key in ("fd", "ssim", "loss")}
        pruned = spread([each["pruned"]["fd"] for each in runs], 1)
        cells = (spread(recovered["fd"], 2), spread(recovered["ssim"], 3), spread(recovered["loss"], 4))
        lines.append(f"| {criterion} | {pruned} | {' | '.join(cells)} |")
    dense = [each["dense"] for runs in found.values() for each in runs]
    fd, loss = statistics.mean(each["fd"] for each in dense), statistics.mean(each["loss"] for each in dense)
    lines.append(f"| dense | | {fd:.2f} | 1 | {loss:.4f} |")
    settings = {
        "model": arguments.model,
        "target": arguments.target,
        "steps": arguments.steps,
        "seeds": arguments.seeds,
    }
    write_json(RESULTS / f"{name}.json", {**settings, "images": arguments.images, "runs": found})
    write_text(RESULTS / f"{name}.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
