"""What the quality benchmarks share: models with their data, cuts, distances, and results that survive a stop."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from secateur.base.files import read_json, write_json, write_text
from secateur.criteria import ScoringConfig, score
from secateur.data import Batch, ImageDataset, calibration_batch
from secateur.data.conditions import accepts, sample_conditions
from secateur.evaluation import finite_time_lyapunov_exponents
from secateur.evaluation.metrics.consistency import ssim
from secateur.evaluation.metrics.frechet import frechet_distance
from secateur.evaluation.metrics.loss import denoising_loss_per_timestep
from secateur.evaluation.metrics.prdc import manifold_scores
from secateur.evaluation.networks import feature_network
from secateur.evaluation.statistics import FeatureStatistics
from secateur.evaluation.statistics import statistics as feature_statistics
from secateur.models.conditions import LABELS, rows
from secateur.models.network import example_inputs, input_shape
from secateur.process.sampling import generate_images, initial_noise
from secateur.recovery import RecoveryConfig
from secateur.reporting.style import FAINT, save_figure
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig, Target, one_shot, parse_target
from secateur.structure import Cut, remove
from train_dense import MODELS, fashion

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
NAMES = ("digits-unet", "digits-sit", "digits-dit", "fashion-unet", "fashion-sit")
EMBEDDED = ("digits-unet", "digits-sit")
COVERED = 2000  # real images
NUM_IMAGES, NUM_INFERENCE_STEPS = 1000, 20
FTLE_IMAGES, FTLE_ITERATIONS = 16, 3
# The quickstart's, which suits a few hundred steps.
RECOVERY = RecoveryConfig(
    batch_size=32, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=20, checkpoint_every=100_000, log_every=50
)
CUT = CutConfig()
SCORING = ScoringConfig(num_timesteps=50, num_images=64)


class Bench:
    """One dense model, its data, and how far a pruned one is from both; samples come from the same noise."""

    def __init__(self, name: str) -> None:
        self.name = name
        on_digits = name.startswith("digits")
        subject = open_subject(name if name in EMBEDDED else MODELS / name, device="cpu")
        self.loaded, self.structure = subject.loaded, subject.structure
        self.dataset: ImageDataset = open_data("digits", subject) if on_digits else fashion()
        shape = input_shape(self.dense)
        self.network = feature_network(None, shape[0], shape[1:])
        self.conditions = sample_conditions(self.dense, self.dataset, range(NUM_IMAGES))

    @property
    def dense(self) -> nn.Module:
        return self.loaded.model

    def batch(self, count: int, seed: int) -> Batch:
        batch = calibration_batch(self.dataset, count, seed)
        return Batch(batch.sample, accepts(self.dense)(batch.conditions))

    def scores(self, criterion: str, seed: int, scoring: ScoringConfig = SCORING) -> dict[str, Tensor]:
        batch = self.batch(scoring.num_images, seed)
        config = replace(scoring, seed=seed)
        return dict(score(self.dense, self.loaded.process, batch, self.structure, criterion, config).scores)

    def cut(self, criterion: str, target: str, seed: int, config: CutConfig = CUT) -> Cut:
        request: tuple[Target, Any, CutConfig, Any] = (
            parse_target(target),
            self.scores(criterion, seed),
            config,
            example_inputs(self.dense, 1),
        )
        return one_shot(self.dense, self.structure, *request)[0].cut

    def pruned(self, cut: Cut) -> nn.Module:
        return remove(copy.deepcopy(self.dense), self.structure, cut)

    def sample(self, model: nn.Module) -> Tensor:
        shape, conditions = input_shape(self.dense), self.conditions
        options = {"num_inference_steps": NUM_INFERENCE_STEPS, "batch_size": 250}
        return generate_images(model, self.loaded.process, range(NUM_IMAGES), shape, conditions, **options)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        return torch.cat([self.network(chunk) for chunk in images.split(500)])

    @cached_property
    def dense_images(self) -> Tensor:
        return self.sample(self.dense)

    @cached_property
    def real_order(self) -> Tensor:
        return torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(0))[:10_000]

    @cached_property
    def real_features(self) -> Tensor:
        return torch.cat([self.embed(self.dataset.batch(part.tolist()).sample) for part in self.real_order.split(1000)])

    def coverage(self, features: Tensor) -> dict[str, float]:
        """Coverage of the data by samples with these features, and of the class that is covered least."""
        real = self.real_features[:COVERED]
        found = {"coverage": manifold_scores(features, real).means()["coverage"]}
        labels = self.dataset.batch(self.real_order[:COVERED].tolist()).conditions.get(LABELS)
        drawn = self.conditions.get(LABELS)
        if labels is None or drawn is None:
            return found
        by_class = [
            manifold_scores(features[drawn == label], real[labels == label]).means()["coverage"]
            for label in labels.unique()
        ]
        return found | {"lowest_class_coverage": min(by_class)}

    @cached_property
    def real(self) -> FeatureStatistics:
        return feature_statistics(self.real_features)

    def measure(self, model: nn.Module, with_ftle: bool = True) -> dict[str, float]:
        """FD to the data and coverage of it, SSIM to the dense model's images, denoising loss, FTLE."""
        images = self.dense_images if model is self.dense else self.sample(model)
        features = self.embed(images)
        drawn = feature_statistics(features)
        _, losses = denoising_loss_per_timestep(model, self.loaded.process, self.batch(256, 1000), seed=1000)
        found = {
            "fd": frechet_distance(drawn.mean, drawn.covariance, self.real.mean, self.real.covariance),
            "ssim": float(ssim(images, self.dense_images).mean()),
            "loss": float(losses.mean()),
            **self.coverage(features),
        }
        return found | {"ftle": self.ftle(model)} if with_ftle else found

    def ftle(self, model: nn.Module) -> float:
        exponents = finite_time_lyapunov_exponents(
            model,
            self.loaded.process,
            initial_noise(range(FTLE_IMAGES), input_shape(self.dense)),
            rows(self.conditions, slice(FTLE_IMAGES)),
            num_inference_steps=NUM_INFERENCE_STEPS,
            iterations=FTLE_ITERATIONS,
        )
        return float(exponents.mean())


class Results:
    """Records in one JSON file, written after each; a key that is there is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.records:
            self.records[key] = measure()
            write_json(self.path, self.records)
            print(key, self.records[key], flush=True)
        return self.records[key]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def collect(records: Mapping[str, Any], prefix: str, key: str) -> list[float]:
    """The values of `key` in every record whose name begins with `prefix`, one for each seed."""
    return [record[key] for name, record in records.items() if name.startswith(prefix)]


def measured(records: Mapping[str, Any], target: str, methods: Iterable[str]) -> list[str]:
    """Those of `methods` that there is a record of."""
    return [method for method in methods if collect(records, f"{target}/{method}/", "fd")]


def targets_of(records: Mapping[str, Any]) -> list[str]:
    """Every target that there is a record of, the largest first."""
    return sorted({name.split("/")[0] for name in records if "/" in name}, reverse=True)


def panels_of(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Model and target of everything that was measured."""
    return [(name, target) for name, records in found.items() for target in targets_of(records)]


def compare(
    prefix: str, arguments: argparse.Namespace, train: Callable[[Bench, str, str, int, int], dict[str, Any]]
) -> None:
    """Measure the dense model, and `train` it by every method, for every target and seed, in as many steps."""
    bench = Bench(arguments.model)
    results = Results(RESULTS / f"{prefix}-{arguments.model}.json")
    results.once("dense", lambda: bench.measure(bench.dense, with_ftle=False))
    for target, seed, method in product(arguments.targets, arguments.seeds, arguments.methods):
        results.once(f"{target}/{method}/{seed}", partial(train, bench, method, target, seed, arguments.steps))


def method_rows(records: Mapping[str, Any], methods: Iterable[str], digits: Mapping[str, int]) -> list[str]:
    """Markdown: a row for every target and method, with a column for every key of `digits` and one of seconds."""
    rows = []
    for target in targets_of(records):
        for method in measured(records, target, methods):
            prefix = f"{target}/{method}/"
            cells = [spread(collect(records, prefix, key), places) for key, places in digits.items()]
            seconds = statistics.median(collect(records, prefix, "seconds"))
            rows.append(f"| {target.partition('=')[2]} | {method} | {' | '.join(cells)} | {seconds:.0f} |")
    return rows


def dots(axes: Axes, values: Sequence[float], place: float, colour: str) -> None:
    """A dot for every seed and a bar at their mean, at the height `place`."""
    axes.plot(values, [place] * len(values), "o", ms=3.5, color=colour, alpha=0.55, mew=0)
    axes.plot(statistics.mean(values), place, "|", ms=10, mew=2, color=colour)


def dense_line(axes: Axes, value: float) -> None:
    """Where the dense model stands."""
    axes.axvline(value, color=FAINT, lw=1, ls="--")


def draw_methods(
    panels: Sequence[Axes],
    records: Mapping[str, Any],
    target: str,
    methods: Sequence[str],
    labels: Mapping[str, str],
    colour: Callable[[str], str],
) -> None:
    """A row of panels, one for every key of `labels`, in which every method has a line of dots."""
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for place, method in enumerate(methods):
            dots(axes, collect(records, f"{target}/{method}/", key), place, colour(method))
        axes.set_xlabel(label)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)  # the first on top


def command_line(description: str | None, steps: int) -> argparse.ArgumentParser:
    """The options that quality benchmarks share: either a model to run, or tables of what is there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=NAMES)
    what.add_argument("--table", action="store_true", help="only make tables and plot of what is there")
    parser.add_argument("--targets", nargs="+", default=["macs=50%", "macs=30%"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps)
    return parser


def report(
    prefix: str, table: Callable[[dict[str, Any]], str], plot: Callable[[dict[str, Any]], Figure], apart: bool = False
) -> None:
    """Write a table for every model that `prefix` has results of, and one plot of all, or of each where `apart`."""
    found = {name: read_json(path) for name in NAMES if (path := RESULTS / f"{prefix}-{name}.json").is_file()}
    for name, records in found.items():
        text = table(records)
        write_text(RESULTS / f"{prefix}-{name}.md", text)
        print(f"\n{name}\n\n{text}")
    images = ROOT.parent / "docs" / "images"
    for name in found if apart else ():
        save_figure(plot({name: found[name]}), images / f"{prefix}-{name}.png")
    if not apart:
        save_figure(plot(found), images / f"{prefix}.png")


def colour_key(figure: Figure, colours: Mapping[str, str]) -> None:
    """What the colours of dots mean, at the foot of the figure; a bar is the mean of the seeds."""
    dot = [Line2D([], [], marker="o", ms=4, linewidth=0, color=colour, label=name) for name, colour in colours.items()]
    mean = Line2D([], [], marker="|", ms=10, mew=2, linewidth=0, color=FAINT, label="mean of the seeds")
    dense = Line2D([], [], color=FAINT, lw=1, ls="--", label="dense")
    figure.legend(handles=[*dot, mean, dense], loc="outside lower center", ncols=len(colours) + 2)
