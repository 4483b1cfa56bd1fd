"""What the quality benchmarks share: models with their data, measurements, and results that a stopped run resumes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import secateur
from drawing import dots, name_rows, save_figure
from train_dense import DENSE, MODELS

ROOT = Path(__file__).resolve().parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", ROOT / "results"))
FIGURES = Path(os.environ.get("BENCHMARK_RESULTS", ROOT.parent / "docs" / "images"))
CACHE = ROOT.parent / "runs" / "samples"  # mostly of the dense models
NAMES = ("digits-unet", "digits-sit", "digits-dit", "fashion-unet", "fashion-sit", "cifar-unet")
FEATURES = {"cifar-unet": MODELS / "cifar-features"}  # of the models whose images have none in the package
DTYPE = torch.float32  # models in the package are stored in half precision, in which a CPU is slow
# As in the quickstart, which also trains for a few hundred steps.
RECOVERY = secateur.RecoveryConfig(
    batch_size=32, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=20, checkpoint_every=100_000, log_every=50
)
SCORING = secateur.ScoringConfig(num_timesteps=50, num_images=64)
CUT = secateur.CutConfig()
EVALUATION = secateur.EvaluationConfig(
    num_images=1000,
    num_inference_steps=20,
    num_real_images=10_000,
    batch_size=250,
    bootstrap=10,
    ftle=secateur.FtleOptions(images=16, iterations=3),
)


class Bench:
    """One dense model and its data; measures the distance of pruned models from both, by samples of the same noise."""

    def __init__(self, name: str, evaluation: secateur.EvaluationConfig = EVALUATION) -> None:
        self.name = name
        self.loaded = secateur.load(DENSE[name].folder, device="cpu", torch_dtype=DTYPE)
        self.process: Any = self.loaded.process
        self.data: Any = DENSE[name].data()
        by_class = ("per-class",) if getattr(self.dense.config, "num_embeds_ada_norm", None) else ()
        features = str(FEATURES[name]) if name in FEATURES else None
        metrics = ("loss", "consistency", "frechet", "prdc", *by_class)
        self.evaluation = replace(evaluation, metrics=metrics, features=features)

    @property
    def dense(self) -> Any:
        return self.loaded.model

    def rank(self, criterion: str, seed: int = 0, scoring: secateur.ScoringConfig = SCORING) -> secateur.Ranking:
        scoring = replace(scoring, seed=seed)
        return secateur.rank(self.loaded, data=self.data, criterion=criterion, scoring=scoring)

    def pruned(self, ranking: secateur.Ranking, target: str, cut: secateur.CutConfig = CUT) -> nn.Module:
        return secateur.prune(self.loaded, target=target, ranking=ranking, cut=cut)

    def recovered(self, pruned: nn.Module | Path, recovery: secateur.RecoveryConfig) -> nn.Module:
        options: dict[str, Any] = {"data": self.data, "process": self.process}
        return secateur.finetune(pruned, teacher=self.dense, recovery=recovery, **options)

    def compressed(self, target: str, recipe: secateur.Recipe) -> secateur.Run:
        """A whole compression, which measures its models as `measure` does."""
        recipe = replace(recipe, evaluation=self.evaluation)
        return secateur.compress(self.loaded, target=target, data=self.data, recipe=recipe, cache=CACHE)

    def measure(self, model: nn.Module, with_ftle: bool = True) -> dict[str, float]:
        """FD to the data and coverage of it, FD and SSIM to the dense model's samples, denoising loss, FTLE."""
        metrics = {*(self.evaluation.metrics or ()), "rfid", *(("ftle",) if with_ftle else ())}
        reference = None if model is self.dense else self.loaded
        if reference is None:
            metrics -= {"consistency", "rfid"}
        options: dict[str, Any] = {
            "evaluation": replace(self.evaluation, metrics=tuple(sorted(metrics))),
            "cache": CACHE,
        }
        result = secateur.evaluate(model, reference=reference, data=self.data, process=self.process, **options)
        return numbers(result)


def numbers(result: secateur.Evaluation) -> dict[str, float]:
    """The numbers of the evaluation's last model that the tables show."""
    final = result.final
    found = {"fd": final["fd"].value, "loss": final["denoising_loss"].value, "coverage": final["coverage"].value}
    found["ssim"] = final["ssim"].value if "ssim" in final.estimates else 1.0
    found["rfd"] = final["rfd"].value if "rfd" in final.estimates else 0.0
    if final.per_class is not None:
        covered = [each.coverage for each in final.per_class.classes if each.coverage is not None]
        found["lowest_class_coverage"] = min(covered)
    return found | ({"ftle": final["ftle"].value} if "ftle" in final.estimates else {})


def prediction(model: nn.Module, x_t: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """The prediction of a network for noisy samples (B, C, H, W), without channels of variance."""
    return model(x_t, timestep=timesteps, return_dict=False, **conditions)[0][:, : x_t.shape[1]]


def seconds_of(run: secateur.Run) -> float:
    """Seconds of ranking, refitting, recording and recovering; a schedule's decisions are part of the recovery."""
    parts = (run.ranking, run.compensation, run.recorded, run.recovery)
    return sum(part.seconds or 0.0 for part in parts if part is not None)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The value that a call returns, and its seconds."""
    begun = time.perf_counter()
    returned = call()
    return returned, time.perf_counter() - begun


def cpu_timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds of CPU that it took."""
    begun = time.process_time()
    returned = call()
    return returned, time.process_time() - begun


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: if it is interrupted, the old file remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class Results:
    """Records in one JSON file, written after each of them; a key that exists is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.records:
            found = measure()
            by_others = read_json(self.path) if self.path.is_file() else {}  # runs of other methods at the same time
            self.records |= by_others | {key: found}
            write_json(self.path, self.records)
            print(key, self.records[key], flush=True)
        return self.records[key]


def results_of(prefix: str, bench: Bench, with_ftle: bool = False) -> Results:
    """The results of a model; the dense model is measured first.

    Raises:
        SystemExit: the existing results were measured with other settings.
    """
    results = Results(RESULTS / f"{prefix}-{bench.name}.json")
    features = bench.evaluation.features and Path(bench.evaluation.features).name
    settings = asdict(replace(bench.evaluation, features=features))
    measured = json.loads(json.dumps(settings | {"secateur": secateur.__version__, "dtype": str(DTYPE)}))
    if results.once("measured by", lambda: measured) != measured:
        raise SystemExit(f"{results.path} was measured by other settings; move it away")
    results.once("dense", lambda: bench.measure(bench.dense, with_ftle))
    return results


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def collect(records: Mapping[str, Any], prefix: str, key: str) -> list[float]:
    """The values of `key` in every record whose name begins with `prefix`, one for each seed."""
    return [record[key] for name, record in records.items() if name.startswith(prefix)]


def methods_in(records: Mapping[str, Any], target: str, methods: Iterable[str]) -> list[str]:
    """Those of `methods` that have a record."""
    return [method for method in methods if collect(records, f"{target}/{method}/", "fd")]


def targets_of(records: Mapping[str, Any]) -> list[str]:
    """Every target that has a record, the largest first."""
    return sorted({name.split("/")[0] for name in records if "/" in name}, reverse=True)


def panels_of(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Every pair of model and target that was measured."""
    return [(name, target) for name, records in found.items() for target in targets_of(records)]


def compare(
    prefix: str, arguments: argparse.Namespace, train: Callable[[Bench, str, str, int, int], dict[str, Any]]
) -> None:
    """Measure the dense model, and `train` it by every method for every target and seed, with equal steps."""
    bench = Bench(arguments.model, evaluation_of(arguments))
    results = results_of(prefix, bench)
    for target, seed, method in product(arguments.targets, arguments.seeds, arguments.methods):
        results.once(f"{target}/{method}/{seed}", partial(train, bench, method, target, seed, arguments.steps))


def method_rows(records: Mapping[str, Any], methods: Iterable[str], digits: Mapping[str, int]) -> list[str]:
    """Markdown: a row for every target and method, with a column for every key of `digits` and one of seconds."""
    rows = []
    for target in targets_of(records):
        for method in methods_in(records, target, methods):
            prefix = f"{target}/{method}/"
            cells = [spread(collect(records, prefix, key), places) for key, places in digits.items()]
            seconds = statistics.median(collect(records, prefix, "seconds"))
            rows.append(f"| {target.partition('=')[2]} | {method} | {' | '.join(cells)} | {seconds:.0f} |")
    return rows


def draw_methods(
    panels: Sequence[Axes],
    records: Mapping[str, Any],
    target: str,
    methods: Sequence[str],
    labels: Mapping[str, str],
    colour: Callable[[str], str],
) -> None:
    """A row of panels, one for every key of `labels`; in each, every method is one line of dots."""
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for place, method in enumerate(methods):
            dots(axes, collect(records, f"{target}/{method}/", key), place, colour(method))
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=5)
    name_rows(panels[0], methods)


def command_line(description: str | None, steps: int) -> argparse.ArgumentParser:
    """The options that quality benchmarks share: a model to measure, or `--table` for tables of existing results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=NAMES)
    what.add_argument("--table", action="store_true", help="only make tables and plot of what is there")
    parser.add_argument("--targets", nargs="+", default=["macs=50%", "macs=30%"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--images", type=int, default=EVALUATION.num_images, help="samples that are measured")
    return parser


def evaluation_of(arguments: argparse.Namespace) -> secateur.EvaluationConfig:
    """The evaluation options, with the requested number of samples."""
    return replace(EVALUATION, num_images=arguments.images)


def report(
    prefix: str, table: Callable[[dict[str, Any]], str], plot: Callable[[dict[str, Any]], Figure], apart: bool = False
) -> None:
    """Write a table for every model with results of `prefix`, and a plot of all models, or with `apart` one of each."""
    found = {name: read_json(path) for name in NAMES if (path := RESULTS / f"{prefix}-{name}.json").is_file()}
    for name, records in found.items():
        text = table(records)
        write_text(RESULTS / f"{prefix}-{name}.md", text)
        print(f"\n{name}\n\n{text}")
    for name in found if apart else ():
        save_figure(plot({name: found[name]}), FIGURES / f"{prefix}-{name}.png")
    if not apart:
        save_figure(plot(found), FIGURES / f"{prefix}.png")
