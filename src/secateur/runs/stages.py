"""The stages of a compression. Each writes its result whole and is skipped when that is already there."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.distributed import is_main_process, wait_for_everyone
from ..criteria import ScoringConfig, score
from ..data import Batch, ImageDataset, calibration_batch
from ..data.conditions import accepts
from ..evaluation import EvaluationConfig, evaluate_models, measure_latency, write_evaluation
from ..io.checkpoint import from_pretrained, save_pretrained
from ..io.manifest import apply_cut, note_labels, note_step
from ..io.pipeline import Loaded, save_pipeline
from ..models.labels import train_only_labels
from ..models.network import as_network, device_of, example_inputs
from ..recovery import Pruner, RecoveryConfig, WarmupConfig, recover
from ..reporting import write_cut, write_ranking
from ..results import CutResult, Evaluation, Ranking, read_decisions, read_result, to_json, write_result
from ..schedules import CutConfig, Target, one_shot, settled
from ..structure import Cut, Structure, remove
from .subject import decoder

LATENCY_ROUNDS = 20


def warmup_stage(
    out: Path, loaded: Loaded, dataset: ImageDataset, warmup: WarmupConfig, recovery: RecoveryConfig, base_id: str
) -> Loaded:
    """Train the labels of `loaded.model`, which `relabel` made; writes `warmup/` and the folder `relabelled`."""
    folder = out / "relabelled"
    if not folder.is_dir():
        model = copy.deepcopy(loaded.model)
        note_labels(model, dataset.class_names, base_id)
        if warmup.train == "labels":
            train_only_labels(model)
        config = dataclasses.replace(
            recovery, objective="denoising", weights={}, steps=warmup.steps, learning_rate=warmup.learning_rate
        )
        warm = recover(model, loaded.process, dataset, config, out / "warmup")
        note_step(warm, "warmup", dataclasses.asdict(warmup))
        if is_main_process():
            save_pretrained(warm, folder, loaded.scheduler_config)
        wait_for_everyone(on_cpu(loaded))
    return dataclasses.replace(loaded, model=reopened(folder, loaded))


def on_cpu(loaded: Loaded) -> bool:
    """Whether processes meet on the CPU."""
    return device_of(loaded.model).type == "cpu"


def reopened(folder: Path, loaded: Loaded) -> nn.Module:
    """The model that a stage saved in `folder`, where the dense one is."""
    return as_network(from_pretrained(folder)).to(device_of(loaded.model))


def rank_stage(
    out: Path,
    loaded: Loaded,
    structure: Structure,
    dataset: ImageDataset | None,
    criterion: str,
    scoring: ScoringConfig,
) -> dict[str, Tensor]:
    """Score units and blocks; writes `ranking.json`, its table and its plot. Some criteria need no `dataset`."""
    path = out / "ranking.json"
    if not path.is_file():
        begun = time.perf_counter()
        batch = None if dataset is None else calibration(loaded, dataset, scoring)
        ranking = score(loaded.model, loaded.process, batch, structure, criterion, scoring)
        curve = ranking.curve if ranking.curve is not None and len(ranking.curve.losses) > 1 else None
        write_result(
            path,
            Ranking(
                criterion=criterion,
                dims={name: tuple(ranking.scores[name].tolist()) for name in structure.dims if name in ranking.scores},
                blocks={name: ranking.scores[name].item() for name in structure.blocks},
                curve=curve,  # a decoder's one timestep makes none
                block_report=ranking.report,
                options=to_json(scoring),
                seconds=round(time.perf_counter() - begun, 2),
            ),
        )
    if is_main_process():
        write_ranking(out)
    found = read_result(Ranking, path)
    scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.dims.items()}
    blocks = {name: torch.tensor([value], dtype=torch.float64) for name, value in found.blocks.items()}
    return scores | blocks


def calibration(loaded: Loaded, dataset: ImageDataset, scoring: ScoringConfig) -> Batch:
    """The calibration images, with the conditions that the model takes."""
    batch = calibration_batch(dataset, scoring.num_images, scoring.seed).to(device_of(loaded.model))
    return dataclasses.replace(batch, conditions=accepts(loaded.model)(batch.conditions))


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
        cut, recorded = solve_cut(out, loaded, structure, target, scores, config)
        pruned = apply_cut(
            copy.deepcopy(loaded.model),
            cut,
            {**recorded, "cut": dataclasses.asdict(config), **details},
            base_id,
        )
        save_pretrained(pruned, folder, loaded.scheduler_config)
    return reopened(folder, loaded)


def solve_cut(
    out: Path,
    loaded: Loaded,
    structure: Structure,
    target: Target,
    scores: dict[str, Tensor],
    config: CutConfig,
) -> tuple[Cut, dict[str, Any]]:
    """The cut for the target, and what the manifest says of it; writes `cut.json`, its table and plot."""
    solution, description = one_shot(
        loaded.model,
        structure,
        target,
        scores,
        config,
        example_inputs(loaded.model, 1),
        latency_of(loaded.model, structure) if target.metric == "latency" else None,
    )
    write_result(out / "cut.json", description)
    write_cut(out)
    recorded = to_json(description)
    return solution.cut, {key: recorded[key] for key in ("target", "metric", "asked", "reached", "dense")}


def settle_stage(out: Path, loaded: Loaded, structure: Structure, target: Target, config: CutConfig) -> None:
    """Write `cut.json`, its table and its plot anew, by what the decisions of the recovery removed."""
    removed = read_decisions(out / "recovery" / "stages.jsonl").removed_blocks
    if set(read_result(CutResult, out / "cut.json").removed_blocks) == set(removed):
        return  # a latency would be measured anew, and be another
    write_result(out / "cut.json", settled(loaded.model, structure, target, removed, config, latency_of))
    write_cut(out)


def latency_of(model: nn.Module, structure: Structure) -> Callable[[Cut], float]:
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
    model: nn.Module,
    loaded: Loaded,
    dataset: ImageDataset,
    config: RecoveryConfig,
    teacher: nn.Module | None,
    pruner: Pruner | None = None,
) -> nn.Module:
    """Fine-tune a copy of `model`, pruning it meanwhile if there is a pruner.

    Writes `recovery/` (logs, checkpoints) and the folder `model` with the averaged weights.
    """
    folder = out / "model"
    if not folder.is_dir():
        recovered = recover(copy.deepcopy(model), loaded.process, dataset, config, out / "recovery", teacher, pruner)
        if not is_main_process():
            return recovered
        note_step(recovered, "recovery", dataclasses.asdict(config))
        save_pretrained(recovered, folder, loaded.scheduler_config)
    return reopened(folder, loaded)


def pipeline_stage(out: Path, loaded: Loaded) -> None:
    """Write the folder `pipeline`: the pipeline that `loaded` came from, with what is in the folder `model`."""
    folder = out / "pipeline"
    if loaded.pipeline is not None and is_main_process() and not folder.is_dir():
        save_pipeline(loaded, reopened(out / "model", loaded), folder)


def evaluate_stage(
    out: Path,
    models: dict[str, nn.Module],
    loaded: Loaded,
    dataset: ImageDataset,
    config: EvaluationConfig,
    cache: Path | None = None,
) -> Evaluation | None:
    """Compare the models, the first being the reference; writes `evaluation/`.

    What was measured of single images is kept until the evaluation is whole, or for good in the folder `cache`, where
    other runs find the samples of the same models again. Of several processes only the first returns one.
    """
    folder = out / "evaluation"
    path = folder / "evaluation.json"
    rows = cache or folder / "rows"
    if not path.is_file():
        result, samples = evaluate_models(models, loaded.process, dataset, config, decoder(loaded), cache=rows)
        if result is None:
            return None
        write_evaluation(result, folder, samples)
    if cache is None:
        shutil.rmtree(rows, ignore_errors=True)
    return read_result(Evaluation, path)
