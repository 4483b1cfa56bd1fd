"""How times are predicted."""

import re
from dataclasses import replace

import pytest
import torch

import secateur
from models import autoencoder, unet
from pipelines import vae
from secateur.criteria import ScoringConfig
from secateur.io.pipeline import Loaded
from secateur.process.diffusion import DiffusionProcess
from secateur.recipes import resolve
from secateur.runs import timing
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig


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


def test_a_timed_pass_leaves_gradients_as_they_were():
    model = unet(sample_size=8).requires_grad_(False)
    weight = next(model.parameters())
    weight.grad = torch.ones_like(weight)  # of the user's own training
    assert timing.seconds_per_pair(Loaded(model, DiffusionProcess())) > 0
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert all(each.grad is None and not each.requires_grad for each in list(model.parameters())[1:])


def test_a_model_without_data_is_planned_in_operations():
    with torch.device("meta"):
        model = unet(sample_size=8)
    plan = secateur.plan(model, target="macs=60%", process="ddpm", compensates=False, records=False)
    assert plan.seconds == {}
    assert {"rank", "recover", "evaluate"} <= plan.flops.keys()
    assert plan.cut.after.macs <= 0.6 * plan.cut.before.macs
    assert "FLOPs" in str(plan)
    assert re.search(r"^memory +about [0-9.]+[KM]?B at most, to \w+ \(", str(plan), re.MULTILINE)
    more = secateur.RecoveryConfig(steps=2000, batch_size=512)
    larger = secateur.plan(model, target="macs=60%", process="ddpm", compensates=False, recovery=more)
    assert larger.peak["recover"] > 2 * plan.peak["recover"]
    assert larger.peak["rank"] == plan.peak["rank"]


def test_every_model_that_is_evaluated_counts():
    subject, evaluated = open_subject(unet(sample_size=8), "ddpm"), {"evaluation": secateur.EvaluationConfig()}
    recovered = evaluated | {"recovery": secateur.RecoveryConfig()}
    works = [evaluated, recovered, recovered | {"compensation": secateur.CompensationConfig()}]
    alone, *others = (timing.predict_passes(subject, timing.Work(**work))["evaluate"] for work in works)
    assert [other / alone for other in others] == [3, 4]  # dense, pruned, compensated, recovered
    by_loss = timing.Work(evaluation=secateur.EvaluationConfig(metrics=("loss",)))  # draws no samples
    assert timing.predict_passes(subject, by_loss)["evaluate"] < alone / 10


def test_a_reference_and_copies_in_other_precisions_count():
    small, large = unet(sample_size=8), unet(sample_size=8, block_out_channels=(16, 32))
    given = {"process": "ddpm", "metrics": ("consistency",)}
    alone = secateur.plan_evaluate(small, **given | {"metrics": ("latency",)})
    one, two = (
        secateur.plan_evaluate(small, reference=large, precisions=precisions, **given)
        for precisions in ((), ("bfloat16",))
    )
    assert alone.peak["evaluate"] < one.peak["evaluate"] < two.peak["evaluate"]
    subject = open_subject(small, "ddpm")
    evaluation = secateur.EvaluationConfig()
    ratio = timing._macs(large) / timing._macs(small)
    works = [{}, {"reference": large}, {"reference": large, "copies": (small,)}]
    passes = [timing.predict_passes(subject, timing.Work(evaluation=evaluation, **work))["evaluate"] for work in works]
    assert [each / passes[0] for each in passes] == pytest.approx([1, 1 + ratio, 2 + ratio])


def test_only_values_that_would_be_accepted_are_offered():
    def offered(recovery, evaluation, late=None):
        work = timing.Work(recovery=recovery, evaluation=evaluation, pruned_late=late)
        return list(timing.savings(work, {"recover": 1.0, "evaluate": 1.0}, DiffusionProcess()))

    large, samples = secateur.RecoveryConfig(steps=8, batch_size=8), ("frechet",)
    half = ["--steps 4", "--recovery.batch-size 4", "--evaluation.num-images 2", "--evaluation.num-inference-steps 1"]
    assert offered(large, secateur.EvaluationConfig(samples, num_images=4, num_inference_steps=2)) == half
    least = secateur.EvaluationConfig(samples, num_images=2, num_inference_steps=1)
    assert offered(secateur.RecoveryConfig(steps=1, batch_size=1), least) == []
    assert offered(secateur.RecoveryConfig(steps=1, batch_size=4, accumulation=4), least) == []
    late = timing.pruned_late(replace(resolve("progressive"), recovery=large))
    assert offered(large, least, late) == ["--recovery.batch-size 4"]


def test_a_decoder_without_data_is_planned():
    with torch.device("meta"):
        model = autoencoder()
    plan = secateur.plan_prune(model, target="macs=60%", criterion="magnitude")
    assert plan.cut.after.macs <= 0.6 * plan.cut.before.macs
    assert "rank" in plan.peak


def test_what_cannot_be_counted_without_data_is_left_out(monkeypatch):
    def reads_values(*arguments, **options):
        raise RuntimeError("aten._local_scalar_dense of a tensor without data")

    for name in ("runs.memory.without_data", "criteria.taylor.without_data", "recovery.memory.FakeTensorMode"):
        monkeypatch.setattr(f"secateur.{name}", reads_values)
    plan = secateur.plan(unet(sample_size=8), target="macs=60%", process="ddpm", compensates=False, records=False)
    assert plan.peak == {}
    assert "memory" not in str(plan)
    assert plan.seconds["recover"] > 0


def test_a_decoder_is_timed_on_images():
    plan = secateur.plan(vae(sample_size=16), target="macs=60%", recipe="decoder")
    assert plan.seconds["recover"] > 0


def test_blocks_that_are_excluded_are_not_priced():
    subject = open_subject(unet(), DiffusionProcess())
    work = timing.Work(ranking=("ced", ScoringConfig()))
    some = subject.selected(CutConfig(exclude=("down_blocks.*",)))
    count, fewer = len(subject.structure.blocks), len(some.structure.blocks)
    assert 0 < fewer < count
    whole, less = (timing.predict_passes(each, work)["rank"] for each in (subject, some))
    assert less / whole == pytest.approx((1 + fewer) / (1 + count))
