"""The stages of a compression. Each writes its result whole and is skipped when that is already there."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Loaded, apply_cut, from_pretrained, note_step, save_pipeline, save_pretrained
from ..criteria import CriterionName, ScoringConfig, score
from ..data import ImageDataset, calibration_batch
from ..evaluation import EvaluationConfig, evaluate_models, measure_latency, write_evaluation
from ..files import read_json, write_json
from ..inputs import class_count, device_of, example_inputs
from ..process import Process
from ..recovery import RecoveryConfig, recover
from ..reporting import write_cut, write_ranking
from ..schedules import CutConfig, Target, one_shot
from ..structure import Cut, Structure, remove
from .common import is_main_process

LATENCY_ROUNDS = 20


def rank_stage(
    out: Path,
    loaded: Loaded,
    structure: Structure,
    dataset: ImageDataset,
    criterion: CriterionName,
    scoring: ScoringConfig,
) -> dict[str, Tensor]:
    """Score units and blocks; writes `ranking.json`, its table and its plot."""
    path = out / "ranking.json"
    if not path.is_file():
        begun = time.perf_counter()
        batch = calibration_batch(dataset, scoring.num_images, scoring.seed).to(device_of(loaded.model))
        if class_count(loaded.model) is None:
            batch = dataclasses.replace(batch, class_labels=None)
        ranking = score(loaded.model, loaded.process, batch, structure, criterion, scoring)
        write_json(
            path,
            {
                "criterion": criterion,
                "options": dataclasses.asdict(scoring),
                "seconds": round(time.perf_counter() - begun, 2),
                "dims": {name: ranking.scores[name].tolist() for name in structure.dims if name in ranking.scores},
                "blocks": {name: ranking.scores[name].item() for name in structure.blocks},
                "curve": None if ranking.curve is None else dataclasses.asdict(ranking.curve),
                "block_report": None if ranking.report is None else dataclasses.asdict(ranking.report),
            },
        )
    write_ranking(out)
    ranking_json = read_json(path)
    scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in ranking_json["dims"].items()}
    blocks = {name: torch.tensor([value], dtype=torch.float64) for name, value in ranking_json["blocks"].items()}
    return scores | blocks


def cut_stage(
    out: Path,
    loaded: Loaded,
    structure: Structure,
    target: Target,
    scores: dict[str, Tensor],
    config: CutConfig,
    details: dict[str, Any],
    base_id: str,
) -> nn.Module:
    """Prune a copy of the model to the target; writes `cut.json`, its table and plot, and the folder `pruned`."""
    folder = out / "pruned"
    if not folder.is_dir():
        solution, description = one_shot(
            loaded.model,
            structure,
            target,
            scores,
            config,
            example_inputs(loaded.model, 1),
            latency_of(loaded.model, structure) if target.metric == "latency" else None,
        )
        write_json(out / "cut.json", description)
        write_cut(out)
        recorded = {key: description[key] for key in ("target", "metric", "asked", "reached", "dense")}
        pruned = apply_cut(
            copy.deepcopy(loaded.model),
            solution.cut,
            {**recorded, "cut": dataclasses.asdict(config), **details},
            base_id,
        )
        save_pretrained(pruned, folder, loaded.scheduler_config)
    return from_pretrained(folder).to(device_of(loaded.model))


def latency_of(model: nn.Module, structure: Structure) -> Any:
    """A function from a cut to the median latency (ms, batch 1) of a copy of `model` cut so."""

    def measure(cut: Cut) -> float:
        candidate = remove(copy.deepcopy(model), structure, cut).eval()
        inputs = example_inputs(candidate, 1)
        with torch.inference_mode():
            latency = measure_latency({"cut": lambda: candidate(**inputs)}, LATENCY_ROUNDS)
        return latency["cut"].median_ms

    return measure


def recover_stage(
    out: Path,
    pruned: nn.Module,
    loaded: Loaded,
    dataset: ImageDataset,
    config: RecoveryConfig,
    teacher: nn.Module | None,
) -> nn.Module:
    """Fine-tune; writes `recovery/` (log, checkpoints), the folder `model` with the EMA weights, and `pipeline`."""
    folder = out / "model"
    if not folder.is_dir():
        recovered = recover(copy.deepcopy(pruned), loaded.process, dataset, config, out / "recovery", teacher)
        if not is_main_process():
            return recovered
        note_step(recovered, "recovery", dataclasses.asdict(config))
        save_pretrained(recovered, folder, loaded.scheduler_config)
    recovered = from_pretrained(folder).to(device_of(loaded.model))
    if loaded.pipeline is not None:
        save_pipeline(loaded, recovered, out / "pipeline")
    return recovered


def evaluate_stage(
    out: Path,
    models: dict[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Compare the models, the first being the reference; writes `evaluation/`."""
    folder = out / "evaluation"
    path = folder / "evaluation.json"
    if not path.is_file():
        result, samples = evaluate_models(models, process, dataset, config)
        write_evaluation(result, folder, samples)
    return read_json(path)
