"""How few timesteps and images keep the units that many would: Jaccard of the kept units at half the MACs.

    python benchmarks/scoring.py --model digits-unet
    python benchmarks/scoring.py --table

Smaller sets are the first images of the larger ones, with the same noise. The largest scoring by other images and noise
says how far the kept units are a matter of the draw, and the denoising loss of the cut model, before any recovery,
whether that matters. Stopped runs go on from the last result.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor

from bench import RESULTS, Results
from secateur.base.files import read_json, write_text
from secateur.criteria import ScoringConfig, criterion_named, score
from secateur.data import Batch, calibration_batch
from secateur.data.conditions import accepts
from secateur.evaluation.metrics.loss import denoising_loss_per_timestep
from secateur.models.network import example_inputs
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig, granularity_for, one_shot, parse_target
from secateur.structure import Cut, remove

JUDGED = 1000  # seed of the images that judge
MODELS = ("digits-unet", "digits-sit")
TIMESTEPS, IMAGES = (8, 16, 32, 50, 100), (32, 64, 128, 256)
# Timesteps and images that stand for all: the passes of all 1000 timesteps take too long here.
FULL = {"digits-unet": (100, 256), "digits-sit": (50, 64)}
FULL_PRODUCTS = (32, 64)  # of gradient-flow, whose passes cost more
BINS, FULL_BINS = (4, 8, 16), (16, 128)  # of deviation


class Scorer:
    """Kept units of one model by criterion, numbers of timesteps and images, and seed."""

    def __init__(self, name: str) -> None:
        self.subject = open_subject(name)
        self.dataset = open_data("digits", self.subject)
        self.judged = self.batch(256, JUDGED)

    def kept(self, criterion: str, timesteps: int, images: int, seed: int) -> dict[str, Any]:
        """The units that stay, and the seconds that scoring took."""
        begun = time.perf_counter()
        scores = self.scores(criterion, ScoringConfig(num_timesteps=timesteps, num_images=images, seed=seed))
        seconds = time.perf_counter() - begun
        blocks = criterion_named(criterion).ranks == "blocks"
        target = parse_target(f"blocks={len(self.subject.structure.blocks) // 2}" if blocks else "macs=50%")
        config = CutConfig(granularity="depth" if blocks else "width")
        assert granularity_for(target, config) == config.granularity
        inputs = example_inputs(self.subject.model, 1)
        solution, _ = one_shot(self.subject.model, self.subject.structure, target, scores, config, inputs)
        pruned = remove(copy.deepcopy(self.subject.model), self.subject.structure, solution.cut)
        loss = denoising_loss_per_timestep(pruned, self.subject.process, self.judged, seed=JUDGED)[1].mean().item()
        return {"kept": sorted(self._units(solution.cut)), "seconds": seconds, "loss": loss}

    def scores(self, criterion: str, config: ScoringConfig) -> dict[str, Tensor]:
        batch = self.batch(config.num_images, config.seed)
        return dict(
            score(self.subject.model, self.subject.process, batch, self.subject.structure, criterion, config).scores
        )

    def batch(self, images: int, seed: int) -> Batch:
        drawn = calibration_batch(self.dataset, images, seed)
        return Batch(drawn.sample, accepts(self.subject.model)(drawn.conditions))

    def _units(self, cut: Cut) -> list[str]:
        units = [f"{dim}:{unit}" for dim, kept in cut.kept.items() for unit in kept]
        return units + [
            name for name in self.subject.structure.blocks if cut.removed_blocks and name not in cut.removed_blocks
        ]


def measure(name: str) -> None:
    """All combinations of one model."""
    scorer, results = Scorer(name), Results(RESULTS / f"scoring-{name}.json")
    for criterion in criteria_of(name):
        full, grid = sizes(name, criterion)
        for (timesteps, images), seed in [*product([full], (0, 1)), *product(grid, (0,))]:
            key = f"{criterion}/{timesteps}/{images}/{seed}"
            results.once(key, partial(scorer.kept, criterion, timesteps, images, seed))


def criteria_of(name: str) -> tuple[str, ...]:
    """No calibration loss of the SiT is below the threshold of diff-pruning, which therefore is taylor there."""
    return ("taylor", "deviation", "gradient-flow") if name == "digits-sit" else ("diff-pruning", "gradient-flow")


def sizes(name: str, criterion: str) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Timesteps and images that stand for all, and the smaller ones."""
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
    """Of one number of timesteps, and the seconds from the fewest images to the most."""
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
    arguments = parser.parse_args()
    if arguments.model:
        measure(arguments.model)
    else:
        write_text(RESULTS / "scoring.md", table())
        print(table())


if __name__ == "__main__":
    main()
