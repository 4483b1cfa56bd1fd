"""How few timesteps and images keep the units that all of them would: Jaccard of the kept units at half the MACs.

    python benchmarks/scoring.py --model digits-unet
    python benchmarks/scoring.py --table

Smaller sets are the first images of the larger ones, with the same noise. Two full scorings by other images and noise
say how far the kept units are a matter of the draw. Stopped runs go on from the last result.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import product
from typing import Any

from torch import Tensor

from bench import RESULTS, Results
from secateur.base.files import read_json, write_text
from secateur.criteria import ScoringConfig, criterion_named, score
from secateur.data import calibration_batch
from secateur.data.conditions import accepts
from secateur.models.network import example_inputs
from secateur.runs.subject import open_data, open_model
from secateur.schedules import CutConfig, granularity_for, one_shot, parse_target
from secateur.structure import Cut

MODELS = ("digits-unet", "digits-sit")
WIDTHS = ("diff-pruning", "taylor", "gradient-flow")
TIMESTEPS, IMAGES = (8, 16, 32, 100), (32, 64, 128, 256)
FULL = (100, 256)  # timesteps and images that stand for all
FULL_PRODUCTS = (32, 64)  # of gradient-flow, whose passes cost more
BINS, FULL_BINS = (4, 8, 16), (16, 256)  # of deviation


class Scorer:
    """Kept units of one model by criterion, numbers of timesteps and images, and seed."""

    def __init__(self, name: str) -> None:
        self.loaded, self.structure = open_model(name)
        self.dataset = open_data("digits", self.loaded)

    def kept(self, criterion: str, timesteps: int, images: int, seed: int) -> dict[str, Any]:
        """The units that stay, and the seconds that scoring took."""
        begun = time.perf_counter()
        scores = self.scores(criterion, ScoringConfig(num_timesteps=timesteps, num_images=images, seed=seed))
        seconds = time.perf_counter() - begun
        blocks = criterion_named(criterion).ranks == "blocks"
        target = parse_target(f"blocks={len(self.structure.blocks) // 2}" if blocks else "macs=50%")
        config = CutConfig(granularity="depth" if blocks else "width")
        assert granularity_for(target, config) == config.granularity
        inputs = example_inputs(self.loaded.model, 1)
        solution, _ = one_shot(self.loaded.model, self.structure, target, scores, config, inputs)
        return {"kept": sorted(self._units(solution.cut)), "seconds": seconds}

    def scores(self, criterion: str, config: ScoringConfig) -> dict[str, Tensor]:
        batch = calibration_batch(self.dataset, config.num_images, config.seed)
        batch = type(batch)(batch.sample, accepts(self.loaded.model)(batch.conditions))
        return dict(score(self.loaded.model, self.loaded.process, batch, self.structure, criterion, config).scores)

    def _units(self, cut: Cut) -> list[str]:
        units = [f"{dim}:{unit}" for dim, kept in cut.kept.items() for unit in kept]
        return units + [name for name in self.structure.blocks if cut.removed_blocks and name not in cut.removed_blocks]


def measure(name: str) -> None:
    """All combinations of one model."""
    scorer, results = Scorer(name), Results(RESULTS / f"scoring-{name}.json")
    for criterion in criteria_of(name):
        full, grid = sizes(criterion)
        for (timesteps, images), seed in [*product([full], (0, 1)), *product(grid, (0,))]:
            key = f"{criterion}/{timesteps}/{images}/{seed}"
            results.once(key, partial(scorer.kept, criterion, timesteps, images, seed))


def criteria_of(name: str) -> tuple[str, ...]:
    """No calibration loss of the SiT is below the threshold of diff-pruning, which therefore is taylor there."""
    return ("taylor", "deviation", "gradient-flow") if name == "digits-sit" else WIDTHS


def sizes(criterion: str) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Timesteps and images that stand for all, and the smaller ones."""
    if criterion == "deviation":
        return FULL_BINS, list(product(BINS, IMAGES[:-1]))
    if criterion == "gradient-flow":
        return FULL_PRODUCTS, list(product((8, 16, 32), (32, 64)))
    return FULL, list(product(TIMESTEPS, IMAGES))


def jaccard(first: list[str], second: list[str]) -> float:
    return len({*first} & {*second}) / len({*first} | {*second})


def table() -> str:
    """Markdown: the Jaccard of every size to all, a row for each number of timesteps."""
    lines = ["| model | criterion | timesteps | " + " | ".join(f"{n} images" for n in IMAGES) + " | other draw, all |"]
    lines.append("|---|---|---|" + "---|" * (len(IMAGES) + 1))
    for name in MODELS:
        records = read_json(RESULTS / f"scoring-{name}.json")
        for criterion in criteria_of(name):
            full, grid = sizes(criterion)
            whole, other = (records[f"{criterion}/{full[0]}/{full[1]}/{seed}"]["kept"] for seed in (0, 1))
            for timesteps in dict.fromkeys(count for count, _ in grid):
                cells = []
                for images in IMAGES:
                    record = records.get(f"{criterion}/{timesteps}/{images}/0")
                    cells.append(f"{jaccard(record['kept'], whole):.3f}" if record else "")
                ceiling = f"{jaccard(whole, other):.3f}"
                lines.append(f"| {name} | {criterion} | {timesteps} | {' | '.join(cells)} | {ceiling} |")
    return "\n".join(lines) + "\n"


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
