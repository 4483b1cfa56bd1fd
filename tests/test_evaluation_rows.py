"""The streaming pass: chunks on disk that are resumed, never stale and shared by processes; all metrics at once."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import dit, unet
from pipelines import image_folder
from secateur.base.errors import SecateurError
from secateur.base.fingerprint import model_fingerprint
from secateur.cli import main
from secateur.data import calibration_order, load_data
from secateur.evaluation import (
    EvaluationConfig,
    FrechetOptions,
    FtleOptions,
    LatencyOptions,
    NetworkFeatures,
    SmallFeatures,
    evaluate_models,
    read_statistics,
)
from secateur.evaluation import samples as samples_module
from secateur.evaluation.statistics import statistics
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.results.codec import to_json
from secateur.results.evaluation import Evaluation
from secateur.results.measured import Metric

CONFIG = EvaluationConfig(
    metrics=("consistency", "frechet"),
    num_images=20,
    num_pairs=7,
    num_real_images=30,
    num_inference_steps=2,
    batch_size=4,
    bootstrap=20,
)
EVERYTHING = (
    "latency",
    "loss",
    "output-error",
    "consistency",
    "frechet",
    "rfid",
    "kid",
    "inception-score",
    "prdc",
    "per-class",
    "ftle",
)
PROCESS = FlowProcess(convention="sit")


@pytest.fixture
def features(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(SmallFeatures(1, 10, width=8).save(tmp_path / "tiny"))


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"dense": dit(num_layers=2), "pruned": dit(num_layers=1)}


class Drawn(list[int]):
    """The number of every image that is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int = 10**9) -> None:
        super().__init__()
        original = samples_module.generate_batch

        def record(model: nn.Module, process: Any, numbers: range, *rest: Any, **options: Any) -> Tensor:
            if len(self) >= stop_after:
                raise KeyboardInterrupt
            self.extend(numbers)
            return original(model, process, numbers, *rest, **options)

        monkeypatch.setattr(samples_module, "generate_batch", record)


def test_models_have_fingerprints() -> None:
    found = model_fingerprint(dit(), PROCESS)
    assert model_fingerprint(dit(), PROCESS) == found
    other, swapped = dit(), dit()
    with torch.no_grad():
        other.proj_out_2.bias[0] += 1e-3
        swapped.proj_out_2.weight.copy_(swapped.proj_out_2.weight.flip(0))
    others = [model_fingerprint(other, PROCESS), model_fingerprint(swapped, PROCESS)]
    others += [model_fingerprint(dit(), FlowProcess()), model_fingerprint(dit().bfloat16(), PROCESS)]
    configured, moved = dit(), dit()
    configured.register_to_config(norm_eps=1e-3)
    moved.register_to_config(_name_or_path="elsewhere")
    others += [model_fingerprint(configured, PROCESS)]
    assert len({found, *others}) == 6
    assert model_fingerprint(moved, PROCESS) == found


def test_a_stopped_evaluation_redraws_no_finished_image(
    tmp_path: Path, features: str, models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset = replace(CONFIG, features=features), load_data("digits")
    whole, _ = evaluate_models(models, PROCESS, dataset, config, cache=tmp_path / "whole")
    with monkeypatch.context() as patch:
        Drawn(patch, stop_after=28)
        with pytest.raises(KeyboardInterrupt):
            evaluate_models(models, PROCESS, dataset, config, cache=tmp_path / "cache")
    drawn = Drawn(monkeypatch)
    again, _ = evaluate_models(models, PROCESS, dataset, config, cache=tmp_path / "cache")
    assert drawn == [*range(8, 20)]  # all of dense and the first eight of pruned were there
    assert again.models["pruned"].estimates == whole.models["pruned"].estimates
    assert again.comparisons == whole.comparisons


def test_a_cache_is_shared_by_evaluations_of_the_same_dense_model_and_never_stale(
    tmp_path: Path, features: str, models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset, cache = replace(CONFIG, features=features), load_data("digits"), tmp_path / "cache"
    evaluate_models(models, PROCESS, dataset, config, cache=cache)
    drawn = Drawn(monkeypatch)
    other = {"dense": models["dense"], "pruned": dit(num_layers=3)}
    evaluate_models(other, PROCESS, dataset, config, cache=cache)
    assert drawn == [*range(20)]  # of the new model only
    drawn.clear()
    evaluate_models(models, PROCESS, dataset, replace(config, seed=100), cache=cache)
    assert drawn == [*range(20)] * 2
    drawn.clear()
    evaluate_models(models, PROCESS, dataset, replace(config, bootstrap=30), cache=cache)
    assert drawn == []
    monkeypatch.setattr("secateur.evaluation.samples.VERSION", "of another generator")
    evaluate_models(models, PROCESS, dataset, config, cache=cache)
    assert drawn == [*range(20)] * 2


def test_kept_features_are_those_of_the_same_images_and_the_same_network(
    tmp_path: Path, features: str, models: dict[str, nn.Module]
) -> None:
    config, dataset = replace(CONFIG, metrics=("frechet",), features=features), load_data("digits")
    first, _ = evaluate_models(models, PROCESS, dataset, config, cache=tmp_path)
    images = dataset.images.clone()
    images[calibration_order(dataset, config.seed)[20]] = 0.5  # one of the 30 that the distance is to
    second, _ = evaluate_models(models, PROCESS, replace(dataset, images=images), config, cache=tmp_path)
    whole, _ = evaluate_models(models, PROCESS, replace(dataset, images=images), config)
    assert first["fd"].value != second["fd"].value == whole["fd"].value
    torch.manual_seed(1)
    SmallFeatures(1, 10, width=8).save(features)  # trained again
    third, _ = evaluate_models(models, PROCESS, dataset, config, cache=tmp_path)
    afresh, _ = evaluate_models(models, PROCESS, dataset, config)
    assert first["fd"].value != third["fd"].value == afresh["fd"].value


def test_kept_features_are_those_of_the_same_size(tmp_path: Path, features: str) -> None:
    config, images = replace(CONFIG, metrics=("frechet",), features=features), image_folder(tmp_path / "images")
    model = unet()  # the same weights draw images of any size

    def found(size: int, cache: Path | None) -> Evaluation:
        model.register_to_config(sample_size=size)
        return evaluate_models({"dense": model}, PROCESS, load_data(images, (1, size, size)), config, cache=cache)[0]

    found(8, tmp_path / "cache")
    assert found(16, tmp_path / "cache")["fd"] == found(16, None)["fd"]


def test_pairs_stop_where_asked(features: str, models: dict[str, nn.Module]) -> None:
    dataset, config = load_data("digits"), replace(CONFIG, features=features)
    few, images = evaluate_models(models, PROCESS, dataset, config)
    expected = (images["pruned"][:7] - images["dense"][:7]).double().square().mean().item()
    assert few["mse"].value == pytest.approx(expected, rel=1e-6)


def test_every_metric_at_once(tmp_path: Path, features: str, models: dict[str, nn.Module]) -> None:
    config = replace(
        CONFIG,
        metrics=EVERYTHING,
        features=features,
        latency=LatencyOptions(3, (1, 2), "bfloat16"),
        ftle=FtleOptions(2, 1),
        num_images=60,
        num_real_images=300,
        frechet=FrechetOptions(save_statistics=str(tmp_path / "statistics")),
    )
    result, _ = evaluate_models(models, PROCESS, load_data("digits"), config)
    json.dumps(to_json(result), allow_nan=False)
    dense, pruned = result.models["dense"], result.models["pruned"]
    of_dense = {"fd", "kid", "inception_score", "precision", "recall", "density", "coverage", "denoising_loss", "ftle"}
    of_dense |= {"latency_1", "latency_2"}
    assert set(dense.estimates) == of_dense
    assert set(pruned.estimates) == of_dense | {"rfd", "ssim", "psnr", "mse", "output_error"} == set(result.metrics)
    assert result.metrics["kid"] == Metric("KID[tiny]", "lower", "data")
    assert result.metrics["rfd"].label == "rFD[tiny]"
    assert result.metrics["latency_2"].label == "latency, batch 2"
    assert {row.metric for row in result.comparisons} == of_dense
    for entry in (dense, pruned):
        assert entry.dtype == "bfloat16"
        assert entry.throughput["2"] == pytest.approx(2000 / entry.latency["2"].median_ms)
        assert sum(layer.macs for layer in entry.layers) == entry.macs
        assert sum(layer.parameters for layer in entry.layers) == entry.parameters
        assert entry.latency["1"].median_ms == pytest.approx(entry["latency_1"].value)
        assert len(entry.per_class.classes) == 10
        assert entry.per_class.classes[3].name == "3"
        assert entry.per_class.classes[3].samples == 6
        assert entry.per_class.classes[3].coverage is not None
    network = SmallFeatures(1, 10, width=8)
    saved = read_statistics(tmp_path / "statistics" / "pruned.npz", network.dim)
    assert saved.count == 60

    published = replace(config, metrics=("frechet",), frechet=FrechetOptions(str(tmp_path / "statistics" / "real.npz")))
    again, _ = evaluate_models(models, PROCESS, load_data("digits"), published)
    assert again["fd"].value == pytest.approx(pruned["fd"].value, rel=1e-6)


def test_any_network_can_be_the_features(models: dict[str, nn.Module]) -> None:
    torch.manual_seed(0)
    network = NetworkFeatures(nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 5)), "mine", 5, (6, 6))
    config = replace(CONFIG, metrics=("frechet", "prdc"))
    result, images = evaluate_models(models, PROCESS, load_data("digits"), config, network=network)
    assert result.metrics["fd"].label == "FD[mine]"
    assert result.models["dense"].fidelity.dims == 5
    assert statistics(network(images["dense"])).count == 20
    with pytest.raises(SecateurError, match="inception-score needs a classifier, mine is none"):
        evaluate_models(
            models, PROCESS, load_data("digits"), replace(config, metrics=("inception-score",)), network=network
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": ("ms-ssim",)}, "ms-ssim needs images of 161 pixels a side, these are 8x8"),
        ({"metrics": ("rfid",), "alone": True}, "rfid compares with a dense model's images; give one as --reference"),
        ({"metrics": ("per-class",), "unconditional": True}, "per-class needs a class-conditional model and labels"),
        (
            {"metrics": ("per-class",), "num_images": 59},
            "per-class takes 6 samples of each class, 60 in all; num_images",
        ),
        ({"scheduler": "DDIMScheduler"}, "does not sample a flow model"),
        ({"scheduler": "DDIMScheduler", "metrics": ("loss",)}, "does not sample a flow model"),
        ({"num_inference_steps": 5000}, "num_inference_steps is 5000; give 1 to 1000"),
        ({"frechet": FrechetOptions("nowhere.npz")}, "nowhere.npz is not a readable .npz"),
    ],
)
def test_questions_that_make_no_sense_are_refused_before_anything_is_drawn(
    features: str, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    drawn = Drawn(monkeypatch)
    alone, unconditional = changes.pop("alone", False), changes.pop("unconditional", False)
    models: dict[str, nn.Module] = {"dense": unet() if unconditional else dit(num_layers=1)}
    if not alone:
        models["pruned"] = unet() if unconditional else dit(num_layers=1)
    process = DiffusionProcess() if unconditional else PROCESS
    with pytest.raises(SecateurError, match=said) as caught:
        evaluate_models(models, process, load_data("digits"), replace(CONFIG, features=features, **changes))
    assert drawn == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": ("beauty",)},
        {"metrics": ()},
        {"num_images": 5, "metrics": ("prdc",)},
        {"bootstrap": 1},
        {"num_pairs": 1},
        {"frechet": FrechetOptions("a.npz"), "metrics": ("kid",)},
        {"frechet": FrechetOptions(save_statistics="a"), "metrics": ("loss",)},
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(
        SecateurError, match=r"^evaluation \w+ is .*; give |^there is no metric called 'beauty'; there are "
    ):
        EvaluationConfig(**changes)


def test_several_processes_need_a_folder_that_they_share(
    models: dict[str, nn.Module], features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SecateurError, match="give one as cache"):
        evaluate_models(models, PROCESS, load_data("digits"), replace(CONFIG, features=features))


def evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation" / "evaluation.json").read_text())


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    dit().save_pretrained(tmp_path / "dense")
    dit(num_layers=2).save_pretrained(tmp_path / "pruned")
    command = ["evaluate", str(tmp_path / "pruned"), "--reference", str(tmp_path / "dense"), "--data", "digits"]
    command += ["--process", "flow-sit", "--metrics", "consistency", "frechet", "rfid", "kid", "prdc"]
    command += ["--evaluation.num-images", "50", "--evaluation.num-inference-steps", "2"]
    command += ["--evaluation.batch-size", "8", "--evaluation.num-real-images", "100"]
    main([*command, "--out", str(tmp_path / "one")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = subprocess.run(
        [*launcher, "-m", "secateur", *command, "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    one, two = evaluation(tmp_path / "one"), evaluation(tmp_path / "two")
    for name in ("reference", "model"):
        assert one["models"][name]["estimates"] == two["models"][name]["estimates"]
    assert one["comparisons"] == two["comparisons"]
    assert not (tmp_path / "two" / "evaluation" / "rows").exists()
