"""What `--dry-run` predicts of memory, stage by stage, against the tensors that are made while the stage runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from memory_runs import CONFIG, network
from models import dit, randomize, unet
from recent_models import lumina_2, z_image
from secateur.criteria import criterion_named
from secateur.criteria.memory import peak_of_batch
from secateur.criteria.taylor import TaylorOptions, memory_of_gradients
from secateur.data import Batch
from secateur.models.network import example_batch
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery.memory import recovery_memory
from secateur.runs.memory import _forward
from secateur.structure import Structure
from secateur.structure.memory import LiveBytes

IMAGES = torch.rand(64, 1, 8, 8) * 2 - 1
DATA = [{"images": image, "label": number % 2} for number, image in enumerate(IMAGES)]
SCORING = secateur.ScoringConfig(num_images=16, batch_size=8, num_timesteps=2)
RECOVERY = secateur.RecoveryConfig(steps=2, batch_size=64, objective="distillation", grad_norms_every=0)
EVALUATION = secateur.EvaluationConfig(
    num_images=64, batch_size=32, num_inference_steps=2, num_real_images=64, metrics=("loss", "consistency")
)
COMPENSATION = secateur.CompensationConfig(num_tuples=64, batch_size=32)
BOOK = secateur.BookConfig(num_tuples=128, batch_size=64, held_out=32)


def bytes_of(*models: nn.Module) -> int:
    return sum(tensor.nbytes for model in models for tensor in (*model.parameters(), *model.buffers()))


def measured(call: Callable[[], Any], *models: nn.Module) -> int:
    """Bytes of the models and, at most, of all tensors that `call` makes."""
    known = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    with LiveBytes([*known, IMAGES]) as live:
        call()
    return bytes_of(*models) + live.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "process", "criterion", "target"),
    [
        (unet, DiffusionProcess(), "taylor", "macs=60%"),
        (unet, DiffusionProcess(), "gradient-flow", "macs=60%"),
        (dit, FlowProcess(), "ced", "blocks=1"),
    ],
)
def test_every_stage_of_a_run_takes_what_was_predicted(make, process, criterion, target, tmp_path):
    dense, about = make(), {"process": process, "data": DATA}
    cut = secateur.CutConfig(granularity="depth") if target == "blocks=1" else secateur.CutConfig()
    ranked = {"criterion": criterion, "scoring": SCORING}
    pruned = secateur.prune(dense, target=target, cut=cut, **about, **ranked)
    given = {"target": target, "cut": cut, **about, **ranked, "recovery": RECOVERY, "evaluation": EVALUATION}
    taught = secateur.plan(dense, **given, compensates=False)
    by_book = secateur.plan(dense, **given, compensates=True, compensation=COMPENSATION, records=True, book=BOOK)
    refit = {"dense": dense, "compensation": COMPENSATION, "inplace": True}
    training = {"teacher": dense, "recovery": RECOVERY, "out": tmp_path / "tuned", "inplace": True}
    found = {
        "rank": measured(lambda: secateur.rank(dense, **about, **ranked), dense),
        "record": measured(
            lambda: secateur.record(dense, **about, book=BOOK, recovery=RECOVERY, out=tmp_path / "book"), dense
        ),
        "compensate": measured(lambda: secateur.compensate(pruned, **about, **refit), dense, pruned),
        "recover": measured(lambda: secateur.finetune(pruned, **about, **training), dense, pruned),
        "evaluate": bytes_of(pruned)  # before recovery
        + measured(lambda: secateur.evaluate(pruned, reference=dense, **about, evaluation=EVALUATION), dense, pruned),
    }
    predicted = taught.peak | {stage: by_book.peak[stage] for stage in ("record", "compensate")}
    for stage, most in found.items():
        print(criterion, stage, predicted[stage] / most)
    for stage, most in found.items():
        assert predicted[stage] == pytest.approx(most, rel=0.1), stage


def test_a_ranking_of_a_network_of_lists_takes_what_was_predicted(monkeypatch):
    """Z-Image takes and returns a list of images."""
    model = randomize(z_image())
    model.register_to_config(sample_size=16)
    structure, process = Structure({}, {}), FlowProcess()
    monkeypatch.setattr("secateur.criteria.taylor.describe", lambda model: structure)
    chosen = criterion_named("taylor")
    scoring = chosen.configured(secateur.ScoringConfig(num_images=2, batch_size=4, num_timesteps=2))
    predicted = chosen.memory(model, process, scoring, scoring.options).peak
    batch = Batch(*example_batch(model, 2))
    with LiveBytes([*model.parameters(), *model.buffers(), *batch.conditions.values()]) as live:
        chosen.score(model, process, batch, structure, scoring, scoring.options)
    assert predicted == pytest.approx(bytes_of(model) + live.peak, rel=0.1)


def forward(model: nn.Module, batch_size: int) -> float:
    return peak_of_batch(model, partial(_forward, model), batch_size)


def ranking(model: nn.Module, batch_size: int) -> float:
    config = secateur.ScoringConfig(num_images=batch_size, batch_size=batch_size, num_timesteps=1)
    return memory_of_gradients(model, FlowProcess(), config, TaylorOptions()).peak


def recovery(model: nn.Module, batch_size: int) -> float:
    return recovery_memory(model, model, FlowProcess(), replace(RECOVERY, batch_size=batch_size)).passes


@pytest.mark.parametrize(
    ("make", "peak"),
    [
        (z_image, forward),
        pytest.param(z_image, recovery, marks=pytest.mark.slow),
        pytest.param(lumina_2, ranking, marks=pytest.mark.slow),
    ],
)
def test_a_large_batch_of_a_network_that_loops_over_samples_takes_what_small_ones_foretell(make, peak, monkeypatch):
    with torch.device("meta"):
        model = make()
    monkeypatch.setattr("secateur.criteria.memory.NEAR", 10.0)
    monkeypatch.setattr("secateur.criteria.memory.FEW", 2)
    foretold = peak(model, 6)
    monkeypatch.setattr("secateur.criteria.memory.family_of", lambda _: SimpleNamespace(loops_over_samples=False))
    assert foretold == peak(model, 6)


def test_small_batches_foretell_nothing_while_bytes_of_no_sample_prevail():
    asked: list[int] = []

    def count(samples: int) -> int:
        asked.append(samples)
        return max(100 + samples, 3 * samples)

    assert peak_of_batch(z_image(), count, 1000) == 3000
    assert asked == [4, 8, 16, 32, 64, 128]
    assert peak_of_batch(z_image(), count, 10) == 110
    assert peak_of_batch(dit(), count, 1000) == 3000
    assert asked[-1] == 1000


def test_a_plan_without_memory_has_that_of_every_stage_and_changes_nothing():
    with torch.device("meta"):
        model = z_image()
    few = {
        "scoring": secateur.ScoringConfig(num_images=2, batch_size=2, num_timesteps=1),
        "recovery": replace(RECOVERY, batch_size=2),
        "evaluation": replace(EVALUATION, num_images=2),
        "compensation": replace(COMPENSATION, batch_size=2),
        "book": replace(BOOK, batch_size=2),
    }
    plan = secateur.plan(model, target="macs=70%", process=FlowProcess(), **few)
    assert plan.peak.keys() == {"rank", "compensate", "record", "recover", "evaluate"}
    assert model.rope_embedder.freqs_cis is None


def test_a_plan_is_for_as_many_processes_as_will_run(monkeypatch):
    recovery = replace(RECOVERY, parallel="fsdp")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    plan = secateur.plan_finetune(dit(), teacher=dit(), recovery=recovery, process=FlowProcess(), data=DATA)
    expected = recovery_memory(dit(), dit(), FlowProcess(), recovery, processes=4)
    assert plan.peak["recover"] == expected.total
    assert "at most on each of 4 devices, to recover" in str(plan)


@pytest.mark.torture
@pytest.mark.parametrize("objective", ["distillation", "2ndmatch"])
@pytest.mark.parametrize(("parallel", "processes"), [("ddp", 1), ("ddp", 2), ("fsdp", 2)])
def test_every_process_takes_what_was_predicted(parallel, processes, objective, tmp_path):
    """Of resident memory, which has the buffers in which processes exchange weights and gradients, too."""
    changes = {"parallel": parallel, "objective": objective}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    arguments = [str(Path(__file__).with_name("memory_runs.py")), str(tmp_path), json.dumps(changes)]
    command = [sys.executable, *(launcher if processes > 1 else ()), *arguments]
    assert subprocess.run(command, env={**os.environ, **environment}, timeout=500).returncode == 0
    with torch.device("meta"):
        model = network()
    counted = recovery_memory(model, model, FlowProcess(), replace(CONFIG, **changes), torch.device("cpu"), processes)
    # A teacher that is sharded stays whole on the CPU, which is the device here.
    apart = bytes_of(model) if parallel == "fsdp" else 0
    for rank in range(processes):
        taken = json.loads((tmp_path / f"{rank}.json").read_text())
        assert counted.total == pytest.approx(taken["steps"] - apart, rel=0.05)
        assert parallel == "ddp" or taken["end"] < 1.01 * taken["steps"]  # the result is not gathered
