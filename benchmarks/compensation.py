"""What compensation gives back, without a training step: distances of the cut and of the refitted model.

    python benchmarks/compensation.py --model digits-unet
    python benchmarks/compensation.py --model digits-sit --targets blocks=6 --settings "" rounds=1
    python benchmarks/compensation.py --table

Cuts are Diff-Pruning's by width, and `deviation`'s by depth. A setting is fields of `CompensationConfig`, such as
ridge=0.001,rounds=1; the empty one is the default. Results survive a stop; a key that is there is not measured again.
"""

from __future__ import annotations

import argparse
import ast
import time
from functools import partial
from typing import Any

from bench import NAMES, RESULTS, Bench, Results
from secateur.base.files import read_json, write_text
from secateur.compensation import CompensationConfig, compensate
from secateur.structure import Cut


def config_of(setting: str) -> CompensationConfig:
    """The default config with the fields that `setting` names, ridge=0.001,rounds=1."""
    fields = dict(part.split("=") for part in setting.split(",") if part)
    return CompensationConfig(**{name: _value(text) for name, text in fields.items()})


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def refitted(bench: Bench, cut: Cut, setting: str) -> dict[str, Any]:
    """The model after `cut`, refitted, and what that took."""
    config, model = config_of(setting), bench.pruned(cut)
    begun, worked = time.monotonic(), time.process_time()
    found = compensate(
        model, bench.dense, bench.loaded.process, bench.batch(config.num_tuples, config.seed), config, [cut]
    )
    took = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - worked}
    return took | {"error": [found.before, found.after], **bench.measure(model, with_ftle=False)}


def run(name: str, targets: list[str], settings: list[str]) -> None:
    bench, results = Bench(name), Results(RESULTS / f"compensation-{name}.json")
    results.once("dense", lambda: bench.measure(bench.dense, with_ftle=False))
    for target in targets:
        missing = [key for key in ("cut", *settings) if f"{target}/{key}" not in results.records]
        if not missing:
            continue
        cut = bench.cut("deviation" if target.startswith("blocks") else "diff-pruning", target, 0)
        results.once(f"{target}/cut", partial(bench.measure, bench.pruned(cut), with_ftle=False))
        for setting in settings:
            results.once(f"{target}/{setting}", partial(refitted, bench, cut, setting))


def table(name: str, records: dict[str, Any]) -> list[str]:
    """Markdown: a row for every target and setting."""
    rows, dense = [], records["dense"]["fd"]
    for key, one in records.items():
        target, _, setting = key.partition("/")
        if target == "dense":
            continue
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
    parser.add_argument("--settings", nargs="+", default=[""])
    arguments = parser.parse_args()
    if arguments.model:
        run(arguments.model, arguments.targets, arguments.settings)
    paths = {name: RESULTS / f"compensation-{name}.json" for name in NAMES}
    lines = ["| model | target | | FD | SSIM | loss | FD's excess | CPU s |", "|---|---|---|--:|--:|--:|--:|--:|"]
    for name, path in paths.items():
        if path.is_file():
            lines += table(name, read_json(path))
    write_text(RESULTS / "compensation.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
