"""How times are predicted."""

import re

import pytest
import torch

import secateur
from models import unet
from secateur.io.pipeline import Loaded
from secateur.process.diffusion import DiffusionProcess
from secateur.runs import timing
from secateur.runs.memory import peak_bytes
from secateur.runs.subject import open_subject
from secateur.runs.timing import Work
from secateur.structure.memory import LiveBytes


@pytest.mark.parametrize(
    ("seconds_alone", "entries", "batches"),
    [(0.001, 2**19, [1, 32]), (0.1, 2**19, [1, 10]), (30.0, 2**19, [1]), (0.001, 1, [1]), (0.001, 5 * 64, [1, 5])],
)
def test_the_timed_batch_is_small_where_a_pass_takes_long(monkeypatch, seconds_alone, entries, batches):
    timed = []

    def seconds_of_pass(loaded: Loaded, batch_size: int) -> float:
        timed.append(batch_size)
        return seconds_alone * (1 + batch_size) / 2

    monkeypatch.setattr(timing, "_seconds_of_pass", seconds_of_pass)
    monkeypatch.setattr(timing, "TIMED_ENTRIES", entries)
    found = timing.seconds_per_pair(Loaded(unet(sample_size=8), DiffusionProcess()))
    assert timed == batches
    assert found == pytest.approx(seconds_alone * (1 + batches[-1]) / 2 / batches[-1])


def test_a_timed_pass_leaves_no_gradients():
    model = unet(sample_size=8)
    assert timing.seconds_per_pair(Loaded(model, DiffusionProcess())) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_data_is_planned_in_operations():
    with torch.device("meta"):
        model = unet(sample_size=8)
    plan = secateur.plan(model, target="macs=60%", process="ddpm", compensates=False)
    assert plan.seconds == {}
    assert {"rank", "recover", "sample"} <= plan.flops.keys()
    assert plan.cut.after.macs <= 0.6 * plan.cut.before.macs
    assert "FLOPs" in str(plan)
    assert re.search(r"^memory +about [0-9.]+[KM]?B at most, to \w+ \(", str(plan), re.MULTILINE)
    more = secateur.RecoveryConfig(steps=2000, batch_size=512)
    larger = secateur.plan(model, target="macs=60%", process="ddpm", compensates=False, recovery=more)
    assert larger.peak["recover"] > 2 * plan.peak["recover"]
    assert larger.peak["rank"] == plan.peak["rank"]


def test_what_cannot_be_counted_without_data_is_left_out(monkeypatch):
    def reads_values(*arguments):
        raise RuntimeError("aten._local_scalar_dense of a tensor without data")

    for name in ("secateur.runs.memory.without_data", "secateur.criteria.taylor.without_data"):
        monkeypatch.setattr(name, reads_values)
    plan = secateur.plan(unet(sample_size=8), target="macs=60%", process="ddpm", compensates=False)
    assert plan.peak == {}
    assert "memory" not in str(plan)
    assert plan.seconds["recover"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoising", "distillation", "2ndmatch"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_peak_of_a_recovery_is_predicted(objective, recomputes):
    model = unet(sample_size=8)
    images = torch.rand(64, 1, 8, 8) * 2 - 1
    recovery = secateur.RecoveryConfig(
        steps=2, batch_size=64, objective=objective, grad_norms_every=0, gradient_checkpointing=recomputes
    )
    predicted = peak_bytes(open_subject(model, "ddpm"), Work(recovery=recovery))["recover"]
    with LiveBytes([]) as live:
        secateur.finetune(model, data=images, teacher=model, process="ddpm", recovery=recovery)
    assert 0.65 * live.peak < predicted < 1.5 * live.peak
