"""The stages of a run. With a folder each writes its result atomically, and is skipped if the result exists."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..base.distributed import is_main_process, wait_for_everyone
from ..base.rows import remove_rows
from ..compensation import CompensationConfig, compensate
from ..compensation.counterparts import counterparts, cuts_between
from ..criteria import ScoringConfig, score
from ..data import Batch, ImageDataset, calibration_batch
from ..data.conditions import accepts, null_conditions
from ..evaluation import EvaluationConfig, evaluate_models, measure_latency, write_evaluation
from ..io.checkpoint import from_pretrained, save_pretrained
from ..io.manifest import apply_cut, note_labels, note_step
from ..io.pipeline import save_pipeline
from ..models.labels import train_only_labels
from ..models.network import as_network, example_inputs
from ..recovery import LoraConfig, Pruner, RecoveryConfig, WarmupConfig, recover
from ..recovery.parallel import AVERAGE
from ..recovery.student import make_trainable, trainable
from ..reporting import read_samples, write_cut, write_ranking
from ..results import (
    Compensation,
    CutResult,
    Decisions,
    Evaluation,
    Ranking,
    Recovery,
    read_decisions,
    read_recovery,
    read_result,
    write_result,
)
from ..schedules import CutConfig, Target, one_shot, settled
from ..structure import Cut, Structure, remove
from ..teacher import Book
from .data import decoder
from .subject import Subject, check_ranked
from .validation import validation_of

LATENCY_ROUNDS = 20

Result = TypeVar("Result")


def kept(folder: Path | None, name: str, kind: type[Result], make: Callable[[], Result]) -> Result:
    """The result `name` in `folder` if it exists; otherwise that of `make`, which is written there if there is a
    folder."""
    if folder is None:
        return make()
    path = folder / name
    if not path.is_file():
        write_result(path, make())
    return read_result(kind, path)


def kept_model(folder: Path | None, name: str, subject: Subject, make: Callable[[], nn.Module]) -> nn.Module:
    """The model in the subfolder `name` if it exists; otherwise that of `make`; as `kept`."""
    if folder is None:
        return make().eval()
    place = folder / name
    if not place.is_dir():
        save_pretrained(make(), place, subject.loaded.scheduler_config)
    return reopened(place, subject)


def reopened(folder: Path, subject: Subject) -> nn.Module:
    """The model that a stage saved in `folder`, on the device of the dense one."""
    return as_network(from_pretrained(folder)).to(subject.device)


def warmup_stage(
    folder: Path | None, subject: Subject, dataset: ImageDataset, warmup: WarmupConfig, recovery: RecoveryConfig
) -> Subject:
    """Train the new label embeddings of the subject's model (from `relabel`); writes the folders `warmup` and
    `relabelled`."""
    if folder is None or not (folder / "relabelled").is_dir():
        model = copy.deepcopy(subject.model)
        note_labels(model, dataset.class_names, subject.name)
        trained = trainable(model)
        if warmup.train == "labels":
            train_only_labels(model)
        config = replace(
            recovery,
            objective="denoising",
            weights={},
            steps=warmup.steps,
            learning_rate=warmup.learning_rate,
            warmup_steps=recovery.warmup_steps * warmup.steps // recovery.steps,  # as large a share of them
            lora=LoraConfig(),  # which would freeze the labels
        )
        with _place(folder, "warmup") as place:
            warm = recover(model, subject.process, dataset, config, place)
        make_trainable(warm, trained)
        note_step(warm, "warmup", asdict(warmup))
        if folder is None:
            return subject.with_model(warm)
        if is_main_process():
            save_pretrained(warm, folder / "relabelled", subject.loaded.scheduler_config)
        wait_for_everyone(subject.on_cpu)
        _forget_average(folder / "warmup")
    return subject.with_model(reopened(folder / "relabelled", subject))


def rank_stage(
    folder: Path | None, subject: Subject, dataset: ImageDataset | None, criterion: str, scoring: ScoringConfig
) -> Ranking:
    """Score units and blocks; writes `ranking.json`, its table and its plot."""

    def make() -> Ranking:
        begun = time.perf_counter()
        batch = None if dataset is None else calibration(subject, dataset, scoring)
        found = score(subject.model, subject.process, batch, subject.structure, criterion, scoring)
        scores, structure = found.scores, subject.structure
        curve = found.curve if found.curve is not None and len(found.curve.losses) > 1 else None
        return Ranking(
            found.criterion or criterion,
            {name: tuple(scores[name].tolist()) for name in structure.dims if name in scores},
            {name: scores[name].item() for name in structure.blocks},
            curve,  # a decoder has one timestep, and so no curve
            found.report,
            asdict(scoring),
            round(time.perf_counter() - begun, 2),
        )

    ranking = kept(folder, "ranking.json", Ranking, make)
    check_ranked(subject, ranking, criterion, f"{folder}/ranking.json does not fit this model; use another folder")
    if folder is not None and is_main_process():
        write_ranking(folder)
    return ranking


def given_ranking(folder: Path | None, ranking: Ranking) -> Ranking:
    """Use a ranking made before, in place of `rank_stage`."""
    ranking = kept(folder, "ranking.json", Ranking, lambda: ranking)
    if folder is not None and is_main_process():
        write_ranking(folder)
    return ranking


def scores_of(ranking: Ranking) -> dict[str, Tensor]:
    """The scores of a ranking, float64: (units,) of every dim, (1,) of every block."""
    rows = {**ranking.dims, **{name: (value,) for name, value in ranking.blocks.items()}}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def calibration(subject: Subject, dataset: ImageDataset, scoring: ScoringConfig) -> Batch:
    """The calibration images, with the conditions that the model takes."""
    batch = calibration_batch(dataset, scoring.num_images, scoring.seed).to(subject.device)
    return replace(batch, conditions=accepts(subject.model)(batch.conditions))


@dataclass(frozen=True)
class Planned:
    """A cut for a target, its description, and its entry for the manifest."""

    cut: Cut
    result: CutResult

    @property
    def recorded(self) -> dict[str, Any]:
        found = self.result
        return {key: getattr(found, key) for key in ("target", "metric", "asked", "reached", "dense")}


def solve_cut(
    folder: Path | None, subject: Subject, target: Target, scores: Mapping[str, Tensor], config: CutConfig
) -> Planned:
    """The one-shot cut for the target; writes `cut.json`, its table and plot."""
    planned = planned_cut(subject, target, scores, config)
    if folder is not None:
        write_result(folder / "cut.json", planned.result)
        write_cut(folder)
    return planned


def planned_cut(subject: Subject, target: Target, scores: Mapping[str, Tensor], config: CutConfig) -> Planned:
    """The one-shot cut for the target, by `scores`."""
    solution, result = one_shot(
        subject.model,
        subject.structure,
        target,
        scores,
        config,
        measure_latency=latency_of(subject.model, subject.structure) if target.metric == "latency" else None,
    )
    return Planned(solution.cut, replace(result, excluded=subject.excluded))


def cut_stage(
    folder: Path | None,
    subject: Subject,
    target: Target,
    scores: Mapping[str, Tensor],
    config: CutConfig,
    details: Mapping[str, Any],
    inplace: bool = False,
) -> tuple[nn.Module, CutResult]:
    """Prune the model, or a copy of it, to the target; writes `cut.json` and the folder `pruned`."""
    found: list[CutResult] = []

    def make() -> nn.Module:
        planned = solve_cut(folder, subject, target, scores, config)
        found.append(planned.result)
        model = subject.model if inplace else copy.deepcopy(subject.model)
        recorded = {**planned.recorded, "cut": asdict(config), **details}
        return apply_cut(model, planned.cut, recorded, subject.name)

    model = kept_model(folder, "pruned", subject, make)
    return model, found[0] if found else read_result(CutResult, _of(folder) / "cut.json")


def train_like(model: nn.Module, dense: nn.Module) -> None:
    """Let the weights of `model`, cut from `dense`, need gradients where its do: the files of a stage do not say."""
    frozen = {name for name, needs in trainable(dense).items() if not needs}
    if not frozen:
        return
    names = counterparts(model, dense, cuts_between(model, dense)).dense_names
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        parameter.requires_grad_(".".join(filter(None, (names.get(module), leaf))) not in frozen)


def compensate_stage(
    folder: Path | None,
    pruned: nn.Module,
    subject: Subject,
    dataset: ImageDataset,
    config: CompensationConfig,
    inplace: bool = False,
) -> tuple[nn.Module, Compensation]:
    """Refit a copy of `pruned` to the subject's model; writes `compensation.json` and the folder `compensated`.

    Each process works on its share of the tuples.
    """
    place = None if folder is None else folder / "compensated"
    if place is None or not place.is_dir():
        model = pruned if inplace else copy.deepcopy(pruned)
        batch = calibration(subject, dataset, ScoringConfig(num_images=config.num_tuples, seed=config.seed))
        null = null_conditions(subject.model, dataset)
        fitted = None if folder is None else folder / "compensation"  # fitted layers, kept for resuming
        result = compensate(model, subject.model, subject.process, batch, config, null=null, folder=fitted)
        if folder is None or place is None:
            return model.eval(), result
        if is_main_process():
            write_result(folder / "compensation.json", result)
            save_pretrained(model, place, subject.loaded.scheduler_config)
            shutil.rmtree(folder / "compensation", ignore_errors=True)
        wait_for_everyone(subject.on_cpu)
    return reopened(place, subject), read_result(Compensation, _of(folder) / "compensation.json")


def settle_stage(
    folder: Path | None, subject: Subject, target: Target, config: CutConfig, cut: CutResult, decisions: Decisions
) -> CutResult:
    """The cut that the decisions during recovery made, in place of the planned one; overwrites `cut.json`."""
    if set(cut.removed_blocks) == set(decisions.removed_blocks):
        return cut  # measured again, a latency would differ
    result = settled(subject.model, subject.structure, target, decisions.removed_blocks, config, latency_of)
    if folder is not None and is_main_process():
        write_result(folder / "cut.json", result)
        write_cut(folder)
    return result


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
    folder: Path | None,
    model: nn.Module,
    subject: Subject,
    dataset: ImageDataset,
    config: RecoveryConfig,
    teacher: nn.Module | Book | None,
    pruner: Pruner | None = None,
    inplace: bool = False,
) -> tuple[nn.Module, Recovery, Decisions]:
    """Fine-tune `model`, or a copy of it, and prune it meanwhile if there is a pruner; returns the averaged model.

    Writes `recovery/` (logs, checkpoints) and the folder `model`; without a folder checkpoints are temporary.
    """
    wait_for_everyone(subject.on_cpu)  # the main process may have removed results for a longer run
    with _place(folder, "recovery") as place:
        if folder is None or not (folder / "model").is_dir():
            trained = model if inplace else copy.deepcopy(model)
            validate = validation_of(subject, dataset, config, place)
            recovered = recover(trained, subject.process, dataset, config, place, teacher, pruner, validate)
            if is_main_process():
                note_step(recovered, "recovery", asdict(config))
                if folder is not None:
                    save_pretrained(recovered, folder / "model", subject.loaded.scheduler_config)
        log = read_recovery(place / "log.jsonl") if (place / "log.jsonl").is_file() else Recovery()
        stages = read_decisions(place / "stages.jsonl") if (place / "stages.jsonl").is_file() else Decisions()
    wait_for_everyone(subject.on_cpu)
    if folder is not None:
        _forget_average(folder / "recovery")
    return recovered if folder is None else reopened(folder / "model", subject), log, stages


def pipeline_stage(folder: Path, subject: Subject, model: nn.Module) -> None:
    """Write the folder `pipeline`: the pipeline that the subject is part of, with `model` in it."""
    place = folder / "pipeline"
    if place.is_dir() or not is_main_process():
        return
    if subject.in_pipeline:
        save_pipeline(subject.loaded, model, place)


def evaluate_stage(
    folder: Path | None,
    models: Mapping[str, nn.Module],
    subject: Subject,
    dataset: ImageDataset,
    config: EvaluationConfig,
    cache: Path | None = None,
) -> tuple[Evaluation, dict[str, Tensor]]:
    """Compare the models, the first being the reference; writes `evaluation/`.

    Samples and features are kept until the evaluation is complete, or permanently in the folder `cache`, where other
    runs find those of equal models.
    """
    if folder is None:
        result, images = evaluate_models(dict(models), subject.process, dataset, config, decoder(subject), cache=cache)
        assert result is not None  # with several processes there is a folder
        return result, images
    place = folder / "evaluation"
    path, rows = place / "evaluation.json", cache or place / "rows"
    if not path.is_file():
        result, images = evaluate_models(dict(models), subject.process, dataset, config, decoder(subject), cache=rows)
        if result is not None:
            write_evaluation(result, place, images)
        wait_for_everyone(subject.on_cpu)  # the main process returns it; the others read what it wrote
    if cache is None and is_main_process():
        remove_rows(rows)
    return read_result(Evaluation, path), read_samples(place / "samples.safetensors")


def _forget_average(place: Path) -> None:
    """Remove the averaged weights of a sharded run, which are saved as a model now."""
    if is_main_process():
        shutil.rmtree(place / AVERAGE, ignore_errors=True)


@contextmanager
def _place(folder: Path | None, name: str) -> Iterator[Path]:
    """The subfolder `name` of `folder`; without a folder, a temporary one for the block."""
    if folder is not None:
        yield folder / name
        return
    with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
        yield Path(temporary)


def _of(folder: Path | None) -> Path:
    assert folder is not None
    return folder
