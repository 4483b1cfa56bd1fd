"""What each stage of the guides' runs costs, counted on published configurations without their weights.

    python benchmarks/guides.py

The counts are those of `--dry-run`, in operations instead of seconds: a stage's passes times the FLOPs of one, which a
dry run times on the device at hand. Models are on the meta device, so this takes no memory and no accelerator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import init_empty_weights

from bench import RESULTS
from secateur.base.files import write_json, write_text
from secateur.base.units import format_count
from secateur.criteria import criterion_named
from secateur.recipes import recipe_named
from secateur.runs.plan import plan_cut
from secateur.runs.subject import open_subject
from secateur.runs.timing import predict_seconds, price_of_compensation, work_of
from secateur.schedules import parse_target
from sizes import MODELS

# model, process, target, recipe, steps, batch size, evaluated samples, tuples of the refit
RUNS: dict[str, tuple[str, str, str, str, int, int, int, int]] = {
    "Stable Diffusion 1.5": ("sd-1.5", "ddpm", "macs=60%", "default", 4000, 16, 500, 96),
    "DiT-XL/2": ("dit-xl-2", "ddpm", "blocks=20", "depth", 10000, 32, 2000, 512),
}
SCORED = 8  # (image, timestep) pairs in one pass of the ranking
OPERATIONS = 2 * 3  # of a multiply-accumulate, in a forward and backward pass


def cost(
    model: str, process: str, target: str, recipe: str, steps: int, batch: int, images: int, tuples: int
) -> dict[str, Any]:
    """FLOPs of every stage, and what the cut and the refit come to."""
    with init_empty_weights(include_buffers=True):
        network = MODELS[model]()
    subject = open_subject(network, process)
    settings = recipe_named(recipe)
    if recipe != "default":  # both guides refit and distil without the target's noise, as `default` does
        chosen = recipe_named("default")
        settings = replace(settings, compensates=True, recovery=chosen.recovery)
    settings = replace(
        settings,
        scoring=replace(settings.scoring, batch_size=SCORED),
        compensation=replace(settings.compensation, num_tuples=tuples, batch_size=8),
        recovery=replace(settings.recovery, steps=steps, batch_size=batch),
        evaluation=replace(settings.evaluation, num_images=images),
    )
    subject = subject.selected(settings.cut)
    plan = plan_cut(subject, parse_target(target), settings.cut)
    assert plan is not None
    work = work_of(settings, plan)
    refit = price_of_compensation(subject, work)
    assert refit is not None
    passes = predict_seconds(subject, replace(work, compensation=None), 1.0)
    one = OPERATIONS * plan.before.macs
    criterion = criterion_named(settings.criterion)
    scoring = criterion.configured(settings.scoring)
    memory = criterion.memory and criterion.memory(subject.model, subject.process, scoring, scoring.options)
    stages = {stage: count * one for stage, count in passes.items()}
    found = {"rank": stages.pop("rank"), "compensate": refit.flops} | stages
    return {
        "target": target,
        "recipe": recipe,
        "settings": {
            "steps": steps,
            "batch_size": batch,
            "num_images": images,
            "num_tuples": tuples,
            "scored_pairs": SCORED,
        },
        "macs": [plan.before.macs, plan.after.macs],
        "parameters": [plan.before.parameters, plan.after.parameters],
        "narrowed": sum(dim.kept < dim.units for dim in plan.dims.values()),
        "removed_blocks": list(plan.removed_blocks),
        "flops": found,
        "passes": passes,
        "refit_layers": len(refit.layers),
        "refit_bytes": refit.bytes,
        "rank_bytes": memory.peak if memory else None,
    }


def main() -> None:
    rows = {name: cost(*settings) for name, settings in RUNS.items()}
    write_json(RESULTS / "guides.json", rows)
    lines = ["| model | target | MACs | parameters | stage | TFLOP |", "|---|---|---|---|---|--:|"]
    for name, row in rows.items():
        sizes = [" -> ".join(map(format_count, row[what])) for what in ("macs", "parameters")]
        lines += [
            f"| {name} | {row['target']} | {sizes[0]} | {sizes[1]} | {stage} | {flops / 1e12:,.0f} |"
            for stage, flops in row["flops"].items()
        ]
    write_text(RESULTS / "guides.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
