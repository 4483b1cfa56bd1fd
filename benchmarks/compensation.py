"""What compensation repairs without a training step: distances of the cut and of the refitted model.

    python benchmarks/compensation.py --model digits-unet
    python benchmarks/compensation.py --model digits-sit --targets blocks=6 --settings "" rounds=1
    python benchmarks/compensation.py --model digits-sit --targets blocks=6 --blocks replacement
    python benchmarks/compensation.py --table

Width is cut by Diff-Pruning, depth by `deviation` or another criterion of blocks. A setting is a list of fields of
`CompensationConfig`, such as ridge=0.001,rounds=1; the empty one is the default. Results that exist are not measured
again.
"""

from __future__ import annotations

import argparse
import ast
import time
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

import secateur
from bench import EVALUATION, NAMES, RESULTS, SCORING, Bench, read_json, results_of, write_text
from recipe_methods import TUPLES_OF_BLOCKS
from secateur import CompensationConfig

BLOCKS = "deviation"


def config_of(setting: str) -> CompensationConfig:
    """The default config with the fields that `setting` names, ridge=0.001,rounds=1."""
    fields = dict(part.split("=") for part in setting.split(",") if part)
    return CompensationConfig(**{name: _value(text) for name, text in fields.items()})


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def refitted(bench: Bench, pruned: nn.Module, setting: str) -> dict[str, Any]:
    """The measurements of a cut model after its refit, and the seconds of the refit."""
    begun, worked = time.monotonic(), time.process_time()
    options: dict[str, Any] = {"data": bench.data, "process": bench.process, "compensation": config_of(setting)}
    model = secateur.compensate(pruned, bench.dense, **options)
    took = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - worked}
    return took | bench.measure(model, with_ftle=False)


def run(bench: Bench, targets: list[str], blocks: str, settings: list[str]) -> None:
    results = results_of("compensation", bench)
    for target in targets:
        in_depth = target.startswith("blocks")
        key = f"{target} by {blocks}" if in_depth and blocks != BLOCKS else target
        if all(f"{key}/{setting}" in results.records for setting in ("cut", *settings)):
            continue
        criterion = blocks if in_depth else "diff-pruning"
        ranking = bench.rank(criterion, scoring=TUPLES_OF_BLOCKS.get(criterion, SCORING))
        pruned = bench.pruned(ranking, target)
        results.once(f"{key}/cut", partial(bench.measure, pruned, with_ftle=False))
        for setting in settings:
            results.once(f"{key}/{setting}", partial(refitted, bench, pruned, setting))


def table(name: str, records: dict[str, Any]) -> list[str]:
    """Markdown: a row for every target and setting."""
    rows, dense = [], records["dense"]["fd"]
    for key, one in records.items():
        target, _, setting = key.partition("/")
        if "/" not in key:
            continue  # the dense model, and how it was measured
        excess = (one["fd"] - dense) / (records[f"{target}/cut"]["fd"] - dense)
        values = f"{one['fd']:.2f} | {one['ssim']:.3f} | {one['loss']:.4f} | {excess:.3f}"
        took = "" if setting == "cut" else f"{one['cpu_seconds']:.1f}"
        rows.append(f"| {name} | {target} | {setting or 'refitted'} | {values} | {took} |")
    return [f"| {name} | | dense | {dense:.2f} | 1 | {records['dense']['loss']:.4f} | 0 | |", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=NAMES)
    what.add_argument("--table", action="store_true", help="only make the table of what is there")
    parser.add_argument("--targets", nargs="+", default=["macs=50%", "macs=30%"])
    parser.add_argument("--blocks", default=BLOCKS, help="criterion by which blocks are removed")
    parser.add_argument("--settings", nargs="+", default=[""])
    parser.add_argument("--images", type=int, default=EVALUATION.num_images, help="samples that are measured")
    arguments = parser.parse_args()
    if arguments.model:
        bench = Bench(arguments.model, replace(EVALUATION, num_images=arguments.images))
        run(bench, arguments.targets, arguments.blocks, arguments.settings)
    paths = {name: RESULTS / f"compensation-{name}.json" for name in NAMES}
    lines = ["| model | target | | FD | SSIM | loss | FD's excess | CPU s |", "|---|---|---|--:|--:|--:|--:|--:|"]
    for name, path in paths.items():
        if path.is_file():
            lines += table(name, read_json(path))
    write_text(RESULTS / "compensation.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
