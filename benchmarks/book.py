"""The teacher's book against a live teacher at equal time, the number of tuples it needs, and the gradient's variance.

    python benchmarks/book.py --model digits-unet
    python benchmarks/book.py --table

Models are cut by Diff-Pruning to 30 % of the MACs and refitted; only "plain" starts from the cut without a refit. Time
is CPU time of one thread, since the machine may be shared. Equal time is what `--steps` steps of distillation with a
live teacher take; the time to write the book is included. Results that exist are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import secateur
from bench import FIGURES, RESULTS, Results, cpu_timed, prediction, read_json, spread, write_text
from drawing import WARM, save_figure, styled

NAMES = ("digits-unet", "digits-sit")
TARGET = "macs=30%"
SCORING = secateur.ScoringConfig(num_timesteps=50, num_images=64)
ALONE: dict[str, Any] = {"objective": "distillation", "weights": {"denoising": 0.0}}
RECOVERY = secateur.RecoveryConfig(
    batch_size=32, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=20, label_dropout=0.0, dropout=0.0,
    checkpoint_every=100_000, log_every=50, grad_norms_every=0,
)  # fmt: skip
EVALUATION = secateur.EvaluationConfig(
    metrics=("frechet", "consistency", "loss"), num_images=1000, num_inference_steps=20, batch_size=250
)
METHODS: dict[str, secateur.RecoveryConfig] = {
    "fresh teacher": replace(RECOVERY, **ALONE),
    "book": replace(RECOVERY, **ALONE),
    "book, Muon": replace(RECOVERY, **ALONE, optimizer="muon"),
    "fresh teacher, Muon": replace(RECOVERY, **ALONE, optimizer="muon"),
    "plain": RECOVERY,
    "fresh teacher, with denoising": replace(RECOVERY, objective="distillation"),
}
REFERENCE = "fresh teacher"
CACHE = Path(tempfile.gettempdir()) / "secateur-benchmark-book"  # samples of the dense model, once
PILOT = 20  # steps that are timed
SIZES = (512, 1024, 2048, 4096, 8192)  # of books that are trained on for equal steps
BATCHES = 64  # batches for the variance of the gradient


class Bench:
    """A dense model, and a cut model that is recovered and measured."""

    def __init__(self, name: str) -> None:
        self.loaded = secateur.load(name, device="cpu")
        self.about: dict[str, Any] = {"data": "digits", "process": self.loaded.process}

    @cached_property
    def cut(self) -> nn.Module:
        ranking = secateur.rank(self.loaded.model, scoring=SCORING, **self.about)
        return secateur.prune(self.loaded.model, target=TARGET, ranking=ranking, **self.about)

    @cached_property
    def refitted(self) -> nn.Module:
        return secateur.compensate(self.cut, self.loaded.model, **self.about)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """FD to the data, SSIM to the dense model's samples, denoising loss."""
        reference = None if model is self.loaded.model else self.loaded.model
        metrics = ("frechet", "loss", *(() if reference is None else ("consistency",)))
        options: dict[str, Any] = {"reference": reference, "metrics": metrics, "evaluation": EVALUATION, "cache": CACHE}
        found = secateur.evaluate(model, **options, **self.about)
        values = {"fd": found["fd"].value, "loss": found["denoising_loss"].value}
        return values | ({} if reference is None else {"ssim": found["ssim"].value})

    def start(self, method: str) -> nn.Module:
        return self.cut if method == "plain" else self.refitted

    def trained(self, method: str, config: secateur.RecoveryConfig, taught_by: Any) -> tuple[nn.Module, float]:
        """The recovered model, and seconds of CPU."""
        return cpu_timed(
            lambda: secateur.finetune(self.start(method), teacher=taught_by, recovery=config, **self.about)
        )

    def book(self, config: secateur.RecoveryConfig, count: int | None = None) -> tuple[secateur.Book, float]:
        """The dense model's book, and seconds of CPU."""
        size = secateur.BookConfig(num_tuples=count, seed=config.seed)
        return cpu_timed(lambda: secateur.record(self.loaded.model, recovery=config, book=size, **self.about))

    def step_seconds(self, method: str) -> float:
        """CPU seconds of a training step, without the fixed cost of a run."""
        config = replace(METHODS[method], warmup_steps=0)
        taught_by = self.book(replace(config, steps=PILOT))[0] if method.startswith("book") else self.loaded.model
        short, long = (self.trained(method, replace(config, steps=steps), taught_by)[1] for steps in (2, 2 + PILOT))
        return (long - short) / PILOT


def at_equal_time(bench: Bench, method: str, seed: int, steps: int, seconds: dict[str, float]) -> dict[str, float]:
    """Train for the time that `steps` steps of the reference take, and measure."""
    budget, config = steps * seconds[REFERENCE], replace(METHODS[method], seed=seed)
    if not method.startswith("book"):
        config = replace(config, steps=round(budget / seconds[method]))
        model, took = bench.trained(method, config, bench.loaded.model)
        return {"steps": config.steps, "seconds": took, **bench.measure(model)}
    config = replace(config, steps=2 * steps)  # says how many tuples there are
    book, written = bench.book(config)
    config = replace(config, steps=round((budget - written) / seconds[method]))
    model, took = bench.trained(method, config, book)
    return {"steps": config.steps, "seconds": written + took, "tuples": book.num_tuples, **bench.measure(model)}


def by_size(bench: Bench, count: int, seed: int, steps: int) -> dict[str, float]:
    """Train on a book of `count` tuples for `steps` steps; its held-out errors show overfitting."""
    config = replace(METHODS["book"], steps=steps, seed=seed)
    book, _ = bench.book(config, count)
    model, _ = bench.trained("book", config, book)
    errors = {"read": error_of(model, book, book.read), "held_out": error_of(model, book, book.read_held_out)}
    return {"readings": steps * config.batch_size / count, **errors, **bench.measure(model)}


@torch.no_grad()
def error_of(model: nn.Module, book: secateur.Book, read: Callable[[Any], Any]) -> float:
    draw = read(range(book.held_out_rows.count))
    x_t = book.tuples.process.add_noise(draw.sample, draw.noise, draw.timesteps)
    output = prediction(model, x_t, draw.timesteps, draw.conditions)
    return float((output - book.output(x_t, draw)).square().mean())


def variance(bench: Bench, denoising: float) -> dict[str, float]:
    """Trace of the gradient's covariance over its squared mean, for batches of 32, at the refitted weights.

    The loss is the error against the teacher's output plus `denoising` times the error against the noisy target.
    """
    student, teacher = copy.deepcopy(bench.refitted).eval(), bench.loaded.model.eval()
    process, digits = bench.loaded.process, secateur.load_data("digits")
    labelled = getattr(bench.loaded.model.config, "num_embeds_ada_norm", None) is not None
    total, squares = torch.zeros(()), 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        batch = digits.batch(torch.randint(len(digits), (RECOVERY.batch_size,), generator=generator).tolist())
        conditions: dict[str, Any] = {"class_labels": batch.class_labels} if labelled else {}
        timesteps = process.timesteps(torch.rand(RECOVERY.batch_size, generator=generator))
        noise = torch.randn(batch.sample.shape, generator=generator)
        x_t, target = (f(batch.sample, noise, timesteps) for f in (process.add_noise, process.target))
        output = prediction(student, x_t, timesteps, conditions)
        with torch.no_grad():
            taught = prediction(teacher, x_t, timesteps, conditions)
        loss = (output - taught).square().mean() + denoising * (output - target).square().mean()
        gradient = torch.cat(
            [part.flatten() for part in torch.autograd.grad(loss, list(student.parameters()))]
        ).double()
        total, squares = total + gradient, squares + float(gradient.square().sum())
    mean = total / BATCHES
    spread_over = (squares / BATCHES - float(mean.square().sum())) * BATCHES / (BATCHES - 1)
    return {"ratio": spread_over / (float(mean.square().sum()) - spread_over / BATCHES)}


def run(name: str, seeds: list[int], steps: int) -> None:
    bench, results = Bench(name), Results(RESULTS / f"book-{name}.json")
    results.once("dense", lambda: bench.measure(bench.loaded.model))
    results.once("cut", lambda: bench.measure(bench.cut))
    results.once("refitted", lambda: bench.measure(bench.refitted))
    seconds = results.once("step seconds", lambda: {method: bench.step_seconds(method) for method in METHODS})
    for seed in seeds:
        for method in METHODS:
            key = f"time/{method}/{seed}"
            results.once(key, lambda method=method, seed=seed: at_equal_time(bench, method, seed, steps, seconds))
        if seed == seeds[0]:
            for term, weight in (("with denoising", 1.0), ("without", 0.0)):
                results.once(f"variance/{term}", lambda weight=weight: variance(bench, weight))
        for count in SIZES:
            key = f"size/{count}/{seed}"
            results.once(key, lambda count=count, seed=seed: by_size(bench, count, seed, 2 * steps))


def rows(name: str, records: dict[str, Any]) -> list[str]:
    """Markdown: a row for every method and size, over the seeds."""
    lines = []
    for key in ("dense", "cut", "refitted"):
        one = records[key]
        same = "1" if key == "dense" else f"{one['ssim']:.3f}"
        lines.append(f"| {name} | {key} | 0 | {one['fd']:.2f} | {same} | {one['loss']:.4f} | |")
    groups = [(f"time/{method}/", f"{method}, equal time") for method in METHODS]
    groups += [(f"size/{count}/", f"book of {count:,}, {{}} readings") for count in SIZES]
    for prefix, label in groups:
        found = [record for key, record in records.items() if key.startswith(prefix)]
        if found:
            values = {
                key: spread([one[key] for one in found], digits)
                for key, digits in (("fd", 2), ("ssim", 3), ("loss", 4))
            }
            errors = [one["held_out"] / one["read"] for one in found if "read" in one]
            took = label.format(f"{found[0].get('readings', 0):g}")
            steps = found[0].get("steps", "")
            over = spread(errors, 2) if errors else ""
            lines.append(
                f"| {name} | {took} | {steps} | {values['fd']} | {values['ssim']} | {values['loss']} | {over} |"
            )
    return lines


@styled
def figure_of(found: dict[str, dict[str, Any]]) -> Figure:
    """The gradient's variance over its squared mean, with and without the denoising term."""
    figure = Figure(figsize=(6.0, 2.2), facecolor="white", layout="constrained")
    axes = figure.subplots()
    names = list(found)
    for shift, term, colour in ((-0.18, "with denoising", "#9a9a9a"), (0.18, "without", WARM)):
        values = [found[name][f"variance/{term}"]["ratio"] for name in names]
        axes.barh([place + shift for place in range(len(names))], values, 0.34, color=colour, label=term)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("variance of the gradient over its squared mean, batch 32")
    axes.legend(frameon=False)
    return figure


def report() -> None:
    found = {name: read_json(path) for name in NAMES if (path := RESULTS / f"book-{name}.json").is_file()}
    lines = ["| model | | steps | FD | SSIM | loss | held out / read |", "|---|---|--:|--:|--:|--:|--:|"]
    for name, records in found.items():
        lines += rows(name, records)
    lines += ["", "| model | gradient's variance / mean², with denoising | without |", "|---|--:|--:|"]
    for name, records in found.items():
        ratios = [records[f"variance/{term}"]["ratio"] for term in ("with denoising", "without")]
        lines.append(f"| {name} | {ratios[0]:.3g} | {ratios[1]:.3g} |")
    write_text(RESULTS / "book.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    save_figure(figure_of(found), FIGURES / "gradient-variance.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=NAMES)
    what.add_argument("--table", action="store_true", help="only make the table and the figure of what is there")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    if arguments.model:
        run(arguments.model, arguments.seeds, arguments.steps)
    else:
        report()


if __name__ == "__main__":
    main()
