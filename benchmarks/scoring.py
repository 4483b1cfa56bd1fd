"""How few timesteps and images select the same units as many: Jaccard index of the kept units at half of the MACs.

    python benchmarks/scoring.py --model digits-unet
    python benchmarks/scoring.py --table

Smaller sets are the first images of the larger ones, with the same noise. A second scoring of the largest size, with
other images and noise, shows how much the kept units depend on the draw. The denoising loss of the cut model, before
any recovery, shows whether that matters. A stopped run continues after the last result.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import secateur
from bench import RESULTS, Results, read_json, write_text
from secateur import CutConfig, ScoringConfig

JUDGED = 1000  # seed of the images on which the loss is measured
MODELS = ("digits-unet", "digits-sit")
TIMESTEPS, IMAGES = (8, 16, 32, 50, 100), (32, 64, 128, 256)
# The reference's timesteps and images; all 1000 timesteps would take too long.
FULL = {"digits-unet": (100, 256), "digits-sit": (50, 64)}
FULL_PRODUCTS = (32, 64)  # of gradient-flow, whose passes cost more
BINS, FULL_BINS = (4, 8, 16), (16, 128)  # of deviation


def kept_units(name: str, criterion: str, timesteps: int, images: int, seed: int) -> dict[str, Any]:
    """The units kept at half of the MACs, or the kept half of the blocks; seconds of scoring; the cut model's loss."""
    model = secateur.load(name, device="cpu")
    scoring = ScoringConfig(num_timesteps=timesteps, num_images=images, seed=seed)
    ranking = secateur.rank(model, data="digits", criterion=criterion, scoring=scoring)
    if ranking.dims:
        pruned = secateur.prune(model, target="macs=50%", ranking=ranking)
        units = [f"{dim}:{unit}" for dim, kept in kept_by(pruned).items() for unit in kept]
    else:
        lowest = sorted(ranking.blocks, key=lambda block: ranking.blocks[block])
        units = lowest[len(lowest) // 2 :]
        target = f"blocks={len(units)}"
        pruned = secateur.prune(model, target=target, ranking=ranking, cut=CutConfig(granularity="depth"))
    judged = secateur.EvaluationConfig(metrics=("loss",), seed=JUDGED)
    result = secateur.evaluate(pruned, data="digits", process=model.process, evaluation=judged)
    return {"kept": sorted(units), "seconds": ranking.seconds, "loss": result["denoising_loss"].value}


def kept_by(pruned: Any) -> dict[str, tuple[int, ...]]:
    """The kept units of every dim, from the only cut of a model."""
    (step,) = (step for step in secateur.inspect(pruned).history if step["kind"] == "cut")
    return {name: tuple(dim["kept"]) for name, dim in step["dims"].items()}


def measure(name: str, largest: list[int]) -> None:
    """All combinations of one model, up to the `largest` numbers of timesteps and images."""
    results = Results(RESULTS / f"scoring-{name}.json")
    for criterion in criteria_of(name):
        full, grid = sizes(name, criterion)
        for (timesteps, images), seed in [*product([full], (0, 1)), *product(grid, (0,))]:
            if timesteps > largest[0] or images > largest[1]:
                continue
            key = f"{criterion}/{timesteps}/{images}/{seed}"
            results.once(key, partial(kept_units, name, criterion, timesteps, images, seed))


def criteria_of(name: str) -> tuple[str, ...]:
    """The criteria to measure: on the SiT, diff-pruning equals taylor, since no loss falls below its threshold."""
    return ("taylor", "deviation", "gradient-flow") if name == "digits-sit" else ("diff-pruning", "gradient-flow")


def sizes(name: str, criterion: str) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The largest numbers of timesteps and images, which serve as the reference, and the smaller ones."""
    if criterion == "deviation":
        return FULL_BINS, list(product(BINS, IMAGES[:-1]))
    if criterion == "gradient-flow":
        return FULL_PRODUCTS, list(product((8, 16, 32), (32, 64)))
    timesteps, images = FULL[name]
    smaller = product((t for t in TIMESTEPS if t <= timesteps), (n for n in IMAGES if n <= images))
    return FULL[name], list(smaller)


def jaccard(first: list[str], second: list[str]) -> float:
    return len({*first} & {*second}) / len({*first} | {*second})


def table() -> str:
    """Markdown: Jaccard to the largest scoring / loss of the cut model, a row for each number of timesteps."""
    lines = ["| model | criterion | timesteps | " + " | ".join(f"{n} images" for n in IMAGES) + " | seconds |"]
    lines.append("|---|---|---|" + "---|" * (len(IMAGES) + 1))
    for name in MODELS:
        records = read_json(RESULTS / f"scoring-{name}.json")
        for criterion in criteria_of(name):
            (count, most), grid = sizes(name, criterion)
            whole = records[f"{criterion}/{count}/{most}/0"]
            for timesteps in dict.fromkeys(count for count, _ in grid):
                row = {images: records.get(f"{criterion}/{timesteps}/{images}/0") for images in IMAGES}
                lines.append(f"| {name} | {criterion} | {timesteps} | {cells(row, whole)} |")
            other = {most: records[f"{criterion}/{count}/{most}/1"]}
            lines.append(f"| {name} | {criterion} | {count}, another draw | {cells(other, whole)} |")
    return "\n".join(lines) + "\n"


def cells(row: Mapping[int, Any], whole: Mapping[str, Any]) -> str:
    """The cells of one number of timesteps, and the seconds from the fewest images to the most."""
    found = {images: record for images, record in row.items() if record}
    texts = {
        images: f"{jaccard(record['kept'], whole['kept']):.3f} / {record['loss']:.4f}"
        for images, record in found.items()
    }
    seconds = [record["seconds"] for record in found.values()]
    return " | ".join([*(texts.get(images, "") for images in IMAGES), f"{min(seconds):.1f} - {max(seconds):.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=MODELS)
    what.add_argument("--table", action="store_true", help="only make the table of what is there")
    parser.add_argument("--largest", type=int, nargs=2, default=[100, 256], metavar=("TIMESTEPS", "IMAGES"))
    arguments = parser.parse_args()
    if arguments.model:
        measure(arguments.model, arguments.largest)
    else:
        write_text(RESULTS / "scoring.md", table())
        print(table())


if __name__ == "__main__":
    main()
