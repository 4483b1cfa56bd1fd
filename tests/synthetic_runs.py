"""Run folders with made-up numbers, and a reader of pages."""

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from secateur.results import (
    ClassScores,
    Comparison,
    Compensation,
    DataInfo,
    Environment,
    Estimate,
    Evaluation,
    Fidelity,
    Latency,
    Layer,
    Losses,
    Metric,
    ModelResult,
    PerClass,
    Reader,
    read_result,
    write_result,
)

HOSTILE = """<script>alert("x")</script>|$\\frac{$ & 'q'"""


def dims_of(extra: int) -> list[str]:
    return ["conv_in", *(f"down_blocks.{index}.resnets.0.inner" for index in range(extra)), HOSTILE]


def write_ranking_json(run: Path, extra: int) -> None:
    generator = torch.Generator().manual_seed(0)
    write(
        run / "ranking.json",
        {
            "criterion": "diff-pruning",
            "options": {"threshold": 0.05},
            "seconds": 12.34,
            "dims": {
                name: torch.rand(8 + 8 * (index % 4), generator=generator).tolist()
                for index, name in enumerate(dims_of(extra))
            },
            "blocks": {"down_blocks.0": 0.25, "mid_block": 0.75},
            "curve": {"timesteps": [5.0, 15.0, 25.0, 35.0], "losses": [0.9, 0.4, 0.1, 0.04], "used": 3},
        },
    )


def write_cut_json(run: Path, extra: int) -> None:
    dims = {
        name: {"units": 8 + 8 * (index % 4), "kept": (8 + 8 * (index % 4)) * 3 // 4, "width": 1 + index % 2}
        for index, name in enumerate(dims_of(extra))
    }
    before = {"macs": 24.0e6, "attention_macs": 1.0e6, "parameters": 6_600_000}
    after = {"macs": 11.93e6, "attention_macs": 0.5e6, "parameters": 3_102_000}
    described = {"target": "macs=50%", "metric": "macs", "asked": 12.0e6, "reached": 11.93e6, "dense": 24.0e6}
    settings = {"removed_blocks": ["mid_block"], "allocation": "local", "granularity": "both", "round_to": 8}
    write(run / "cut.json", described | settings | {"before": before, "after": after, "dims": dims})


def estimate(value: float, std: float | None = 0.2) -> Estimate:
    return Estimate(value) if std is None else Estimate(value, std, value - 1.96 * std, value + 1.96 * std)


METRICS = {
    "fd": Metric("FD[digits-features]", "lower", "data"),
    "ssim": Metric("SSIM", "higher", "reference"),
    "psnr": Metric("PSNR", "higher", "reference", "dB"),
    "denoising_loss": Metric("mean denoising loss", "lower", "data"),
    "ftle": Metric("finite-time Lyapunov exponent"),
    **{f"latency_{batch}": Metric(f"latency, batch {batch}", "lower", None, "ms") for batch in (1, 32)},
}


def model_result(size: float, frechet: float, ssim: float | None, coverages: tuple[float | None, ...]) -> ModelResult:
    """Measurements of a model of `size` times the dense model's."""

    def latency(ms: float) -> Latency:
        return Latency(ms * size, 0.98 * ms * size, 1.02 * ms * size, 20)

    shapes = {"conv_in": 1.0, HOSTILE: size}
    named = zip(("cat", HOSTILE, "rare"), coverages, strict=True)
    timed = {f"latency_{batch}": estimate(ms * size, 0.1) for batch, ms in ((1, 4.0), (32, 30.0))}
    pairs = {} if ssim is None else {"ssim": estimate(ssim, 0.01), "psnr": estimate(20 + ssim, 0.1)}
    return ModelResult(
        parameters=int(6_600_000 * size),
        macs=int(24e6 * size),
        weights_bytes=int(26_400_000 * size),
        peak_activation_bytes={"1": 100_000, "32": 3_200_000},
        latency={"1": latency(4.0), "32": latency(30.0)},
        estimates={"fd": estimate(frechet), "denoising_loss": estimate(0.12345, 0.001), **pairs, **timed},
        denoising_loss=Losses((5.0, 350.0, 700.0, 995.0), (0.9 * frechet, 0.2, 0.05, None)),
        fidelity=Fidelity("FD[digits-features]", 1000, 1797, 64, full_rank=True),
        per_class=PerClass(
            5,
            tuple(
                ClassScores(label, name, 30, 178, 0.9, 0.8, 0.9, coverage, None if coverage is None else 0.97)
                for label, (name, coverage) in enumerate(named)
            ),
        ),
        layers=tuple(
            Layer(name, "Conv2d", (int(64 * kept), 3, 3, 3), int(1728 * kept), int(110_592 * kept))
            for name, kept in shapes.items()
        ),
    )


def evaluation() -> Evaluation:
    """Dense, pruned and recovered."""
    said = (
        ("fd", "dense", "pruned", "worse"), ("fd", "dense", "recovered", "worse"),
        ("fd", "pruned", "recovered", "better"), ("ssim", "pruned", "recovered", "better"),
        ("denoising_loss", "dense", "recovered", "unclear"),
    )  # fmt: skip
    return Evaluation(
        reference="dense",
        models={
            "dense": model_result(1.0, 3.14, None, (0.9, 0.8, None)),
            "pruned": model_result(0.5, 41.2, 0.31, (0.2, 0.1, None)),
            "recovered": model_result(0.5, 5.17, 0.74, (0.85, 0.2, None)),
        },
        metrics=METRICS,
        comparisons=tuple(Comparison(metric, a, b, 1.0, 0.1, 0.8, 1.2, kind) for metric, a, b, kind in said),
        data=DataInfo("digits", 1797, (1, 8, 8)),
        environment=Environment("cpu", 2, "2.6.0"),
        notes=(HOSTILE,),
    )


def change_evaluation(run: Path, change: Callable[[Evaluation], Evaluation]) -> None:
    """Replace the run's evaluation by what `change` returns for it."""
    path = run / "evaluation" / "evaluation.json"
    write_result(path, change(read_result(Evaluation, path)))


def change_model(found: Evaluation, name: str, **fields: Any) -> Evaluation:
    """The evaluation with other `fields` of one model."""
    return replace(found, models={**found.models, name: replace(found.models[name], **fields)})


def write_evaluation_json(run: Path) -> None:
    models = evaluation().models
    write_result(run / "evaluation" / "evaluation.json", evaluation())
    generator = torch.Generator().manual_seed(1)
    images = {name: torch.rand(12, 1, 8, 8, generator=generator) * 2 - 1 for name in (*models, "real")}
    save_file({**images, "class_labels": torch.arange(12) % 10}, run / "evaluation" / "samples.safetensors")


def make_run(run: Path, extra: int = 3, seed: int = 7, **chosen: Any) -> Path:
    write(
        run / "config.json",
        {
            "command": "compress",
            "command_line": f"secateur compress digits-unet --note {HOSTILE}",
            "model": "folder/digits-unet",
            "data": "digits",
            "seed": seed,
            "device": "cpu, 2 threads",
            "versions": {"secateur": "0.1.0", "torch": "2.6.0"},
            "recovery": {"steps": 40, "seed": seed},
            **chosen,
        },
    )
    write_ranking_json(run, extra)
    write_cut_json(run, extra)
    write_evaluation_json(run)
    records = [
        {"step": s, "loss": 2 / s, "denoising": 1 / s, "jvp": 1 / s, "lr": 2e-4, "grad_norm": 1.0} for s in range(1, 40)
    ]
    write_lines(run / "recovery" / "log.jsonl", records, '{"step": 41, "lo')
    return run


def photograph_run(run: Path, count: int = 4, size: int = 512) -> Path:
    """A run over photographs with prompts; its models blur them to different degrees. It has a compensation."""
    make_run(run, extra=2)
    photographs = [torch.tensor(image).permute(2, 0, 1) / 127.5 - 1 for image in load_sample_images().images]
    squares = torch.stack([photographs[i % 2][:, :, left : left + 427] for i, left in enumerate((0, 0, 213, 213))])
    crops = torch.nn.functional.interpolate(squares[:count], (size, size), mode="bilinear", antialias=True)

    def blurred(width: int) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(crops, width, 1, width // 2, count_include_pad=False)

    images = {"dense": crops, "pruned": blurred(17), "compensated": blurred(5), "recovered": blurred(3)}
    save_file({**{name: batch.contiguous() for name, batch in images.items()}, "real": crops.clone()},
              run / "evaluation" / "samples.safetensors")  # fmt: skip
    prompts = ("a Chinese temple under a blue sky, wide-angle", "a red dahlia", "a temple gate, evening", "a flower")

    def four_models(found: Evaluation) -> Evaluation:
        dense, pruned, recovered = found.models.values()
        compensated = replace(
            pruned, estimates={**pruned.estimates, "fd": estimate(8.31), "ssim": estimate(0.61, 0.01)}
        )
        models = {"dense": dense, "pruned": pruned, "compensated": compensated, "recovered": recovered}
        return replace(found, models=models, captions=prompts[:count])

    change_evaluation(run, four_models)
    readers = {
        f"down_blocks.{block}.resnets.{layer}.conv2": Reader(
            24_576, 288, 0.3 / (1 + layer + block), 0.02 / (1 + block), 0.7
        )
        for block in range(3)
        for layer in range(2)
    }
    found = Compensation(readers, 512, 0.21, 0.034, {"ridge": 0.01}, 4.2)
    write_result(run / "compensation.json", found)
    (run / "pipeline").mkdir()
    (run / "pipeline" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    write(run / "pipeline" / "model_index.json", {})
    return run


DECISIONS = [
    {
        "step": 0, "stage": 1, "ranking": {"block.1": 0.1, "block.10": 0.2, "block.0": 0.9},
        "candidates": [
            {"count": 0, "saved": 0.0, "ntk": 3.3, "zico": 9.7, "guard": 1.0, "score": -0.2},
            {"count": 1, "saved": 0.31, "ntk": None, "zico": 9.8, "guard": 1.1, "score": 0.4},
        ],
        "chosen": 1, "removed": ["block.1"], "blocks": 2, "macs": 16_000_000, "seconds": 1.5,
    },
    {
        "step": 10, "stage": 2, "ranking": {"block.10": 0.3, "block.0": 0.8},
        "candidates": [{"count": 2, "saved": 0.6}],
        "chosen": 2, "removed": ["block.10"], "blocks": 1, "macs": 9_000_000, "seconds": 0.5,
    },
]  # fmt: skip


def write_lines(path: Path, records: list[dict[str, Any]], unfinished: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + unfinished)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data
