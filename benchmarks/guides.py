"""What each stage of the runs in the guides costs, counted on published configurations without their weights.

    python benchmarks/guides.py

The counts are those of `--dry-run`, in operations instead of seconds: a stage's passes times the FLOPs of one, which a
dry run times on the device at hand. Models are on the meta device, so this takes no memory and no accelerator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import init_empty_weights

import secateur
from bench import RESULTS, write_json, write_text
from sizes import MODELS, format_count

# model, process, target, steps, batch size, evaluated samples, tuples of the refit
RUNS: dict[str, tuple[str, str, str, int, int, int, int]] = {
    "Stable Diffusion 1.5": ("sd-1.5", "ddpm", "macs=60%", 4000, 16, 500, 96),
    "DiT-XL/2": ("dit-xl-2", "ddpm", "blocks=20", 10000, 32, 2000, 512),
}
SCORED = 8  # (image, timestep) pairs in one pass of the ranking


def cost(model: str, process: Any, target: str, steps: int, batch: int, images: int, tuples: int) -> dict[str, Any]:
    """FLOPs of every stage, the size of the cut model, and the cost of the refit."""
    with init_empty_weights(include_buffers=True):
        network = MODELS[model]()
    settings = secateur.recipe_named("default")
    settings = replace(
        settings,
        scoring=replace(settings.scoring, batch_size=SCORED),
        compensation=replace(settings.compensation, num_tuples=tuples, batch_size=8),
        recovery=replace(settings.recovery, steps=steps, batch_size=batch),
        evaluation=replace(settings.evaluation, num_images=images),
    )
    plan = secateur.plan(network, target=target, process=process, recipe=settings)
    cut, refit = plan.cut, plan.compensation
    assert cut is not None
    assert refit is not None
    return {
        "target": target,
        "settings": {
            "steps": steps,
            "batch_size": batch,
            "num_images": images,
            "num_tuples": tuples,
            "scored_pairs": SCORED,
        },
        "macs": [cut.before.macs, cut.after.macs],
        "parameters": [cut.before.parameters, cut.after.parameters],
        "narrowed": sum(dim.kept < dim.units for dim in cut.dims.values()),
        "removed_blocks": list(cut.removed_blocks),
        "flops": dict(plan.flops),
        "peak_bytes": dict(plan.peak),
        "refit_layers": len(refit.layers),
        "refit_bytes": refit.bytes,
        "rank_bytes": plan.peak["rank"],
    }


def main() -> None:
    rows = {name: cost(*settings) for name, settings in RUNS.items()}
    write_json(RESULTS / "guides.json", rows)
    lines = ["| model | target | MACs | parameters | stage | TFLOP | GB |", "|---|---|---|---|---|--:|--:|"]
    for name, row in rows.items():
        sizes = [" -> ".join(map(format_count, row[what])) for what in ("macs", "parameters")]
        lines += [
            f"| {name} | {row['target']} | {sizes[0]} | {sizes[1]} | {stage} | {flops / 1e12:,.0f} "
            f"| {row['peak_bytes'][stage] / 1e9:.1f} |"
            for stage, flops in row["flops"].items()
        ]
    write_text(RESULTS / "guides.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
