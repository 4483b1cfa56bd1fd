"""Recovery: objectives, draws, averages and schedules, each alone."""

import copy

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from models import dit, unet
from secateur.base.errors import DataError, SecateurError, TrainingError
from secateur.criteria import TaylorOptions
from secateur.data import ArrayDataset, Batch, load_data
from secateur.data.conditions import check_conditions, disable_label_dropout
from secateur.models.conditions import without_labels
from secateur.models.network import class_count, null_class
from secateur.process.base import denoising_error
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import OBJECTIVES, Ema, JacobianConfig, Objective, RecoveryConfig, WarmupConfig, draws
from secateur.recovery.draws import batch_indices, draw_step, uniform_times
from secateur.recovery.ema import warm_decay
from secateur.recovery.objectives.build import build_objective
from secateur.recovery.objectives.rms_distillation import root_mean_square
from secateur.recovery.optimizers import learning_rate_at
from secateur.schedules import CutConfig
from secateur.teacher import Contents
from secateur.teacher.tuples import Tuples


@pytest.fixture(scope="module")
def digits() -> ArrayDataset:
    return load_data("digits")


def test_denoising_is_the_mean_of_the_process_error(digits):
    for process in (
        DiffusionProcess(),
        DiffusionProcess({"prediction_type": "v_prediction"}),
        DiffusionProcess({"prediction_type": "sample"}),
        FlowProcess(),
        FlowProcess(convention="sit"),
    ):
        (draw,) = draw_step(digits, process, RecoveryConfig(batch_size=4), 0)
        model = unet()
        terms = build_objective(RecoveryConfig(), None).terms(model, None, process, draw, JacobianConfig())
        expected = denoising_error(model, process, draw.sample, draw.noise, draw.timesteps).mean()
        assert torch.allclose(terms["denoising"], expected)


@pytest.mark.parametrize("name", ["distillation", "rms-distillation"])
def test_distillation_vanishes_for_equal_models_and_does_not_train_the_teacher(name, digits):
    process, student, teacher = FlowProcess(), unet(), unet()
    (draw,) = draw_step(digits, process, RecoveryConfig(batch_size=4), 0)
    config = RecoveryConfig(objective=name, weights={"distillation": 3.0})
    objective = build_objective(config, teacher)
    terms = objective.terms(student, teacher, process, draw, config.jacobian)
    assert terms["distillation"] == 0
    terms["distillation"] = torch.tensor(2.0)
    objective.loss(terms).backward()
    assert torch.allclose(objective.loss(terms), terms["denoising"] + 6)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def test_unsquared_errors_are_those_of_each_sample():
    """They weigh samples alike: the gradient of one does not grow with its error."""
    taught = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    prediction = torch.stack([torch.full((3, 4, 4), 0.01), torch.full((3, 4, 4), 2.0)]).double().requires_grad_()
    error = root_mean_square(prediction, taught)
    assert error.item() == pytest.approx((0.01 + 2.0) / 2, rel=1e-5)
    error.backward()
    assert prediction.grad.flatten(1).norm(dim=1).tolist() == pytest.approx([0.5 / 48**0.5] * 2, rel=1e-4)
    halves = [root_mean_square(prediction[[row]], taught[[row]]) for row in range(2)]
    assert torch.stack(halves).mean().item() == pytest.approx(error.item(), rel=1e-12)
    equal = taught.clone().requires_grad_()
    root_mean_square(equal, taught).backward()
    assert not equal.grad.any()
    assert root_mean_square(equal.float(), taught.float()) == 0


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("denoise", {}, "did you mean denoising"),
        ("denoising", {"kd": 1.0}, "no term kd"),
        ("distillation", {}, "pass the dense model"),
    ],
)
def test_objectives_that_cannot_be_built(name, weights, message):
    with pytest.raises(SecateurError, match=message):
        build_objective(RecoveryConfig(objective=name, weights=weights), None)


def test_an_objective_is_one_function_and_one_line(digits, monkeypatch):
    """Its record says what it needs; its terms may have any names."""

    def mine(student, teacher, process, draw, config):
        assert teacher is not None
        return {"mine": torch.tensor(2.0)}

    def mine_twice(student, teacher, process, draw, config):
        return mine(student, teacher, process, draw, config) | {"jacobian": torch.tensor(1.0)}

    monkeypatch.setitem(OBJECTIVES, "mine", Objective("mine", mine, {"mine": 0.5}, needs_teacher=True))
    twice = Objective(
        "mine-twice", mine_twice, {"mine": 0.5, "jacobian": 1.0}, needs_teacher=True, terms_without_jacobian=mine
    )
    monkeypatch.setitem(OBJECTIVES, "mine-twice", twice)
    with pytest.raises(TrainingError, match="objective mine needs a teacher"):
        build_objective(RecoveryConfig(objective="mine"), None)
    (draw,) = draw_step(digits, FlowProcess(), RecoveryConfig(batch_size=4), 0)
    config = RecoveryConfig(objective="mine-twice", weights={"mine": 3.0}, jacobian=JacobianConfig(every_n=2))
    losses = []
    for step in range(2):
        objective = build_objective(config, unet()).at(step)
        losses.append(objective.loss(objective.terms(unet(), unet(), FlowProcess(), draw, objective.jacobian)).item())
    assert losses == [6.0, 8.0]
    assert build_objective(config, unet()).passes() == (3 + 3 / 2, 1 + 1 / 2)
    assert build_objective(RecoveryConfig(objective="mine"), unet()).passes() == (3, 1)


def test_every_epoch_visits_every_image_once():
    row = torch.cat([batch_indices(0, step, 8, 10) for step in range(10)])  # 80 draws, 8 epochs
    for epoch in row.view(8, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(row[:10], row[10:20])
    assert len(batch_indices(0, 3, 64, 10)) == 64  # more than an epoch in one batch


def test_draws_are_pure_and_shares_join_to_the_whole(digits):
    process = FlowProcess()
    config = RecoveryConfig(batch_size=8, horizontal_flip=True, label_dropout=0.5)
    null = {"class_labels": torch.tensor(10)}
    (whole,) = draw_step(digits, process, config, 7, null, dict)
    (again,) = draw_step(digits, process, config, 7, null, dict)
    assert torch.equal(whole.noise, again.noise)
    assert 0 < (whole.conditions["class_labels"] == 10).sum() < 8
    halves = RecoveryConfig(batch_size=8, horizontal_flip=True, label_dropout=0.5, accumulation=2)
    shares = [draw_step(digits, process, halves, 7, null, dict, rank, 2) for rank in range(2)]
    ordered = [shares[rank][micro] for micro in range(2) for rank in range(2)]
    for name in ("sample", "noise", "timesteps"):
        assert torch.equal(torch.cat([getattr(share, name) for share in ordered]), getattr(whole, name))
    labels = torch.cat([share.conditions["class_labels"] for share in ordered])
    assert torch.equal(labels, whole.conditions["class_labels"])
    assert torch.equal(torch.cat([share.normal(2) for share in ordered]), whole.normal(2))
    assert not torch.equal(whole.normal(1), whole.normal(2))
    assert not torch.equal(whole.normal(1), whole.noise)


class Clips:
    """Eight clips of five channels and two frames."""

    shape = (5, 2, 4, 4)
    clips = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    class_names, captions, null, fingerprint = (), (), {}, "clips"

    def __len__(self):
        return len(self.clips)

    def batch(self, indices):
        return Batch(self.clips[list(indices)])


def test_whole_clips_are_mirrored_one_by_one():
    data = Clips()
    for flip in (False, True):
        config = RecoveryConfig(batch_size=8, horizontal_flip=flip)
        (draw,) = draw_step(data, FlowProcess(), config, 0)
        tuples = Tuples(data, FlowProcess(), Contents(horizontal_flip=flip), without_labels, {}, seed=0)
        for sample in (draw.sample, tuples.draw(range(8)).sample):
            kept = [any(torch.equal(clip, each) for each in data.clips) for clip in sample]
            turned = [any(torch.equal(clip.flip(-1), each) for each in data.clips) for clip in sample]
            assert all(a != b for a, b in zip(kept, turned, strict=True))
            assert any(turned) == flip
            assert any(kept)


def test_everything_drawn_is_pinned_and_copied_without_waiting(digits, monkeypatch):
    """With a stand-in for the GPU's part of both."""
    (draw,) = draw_step(digits, DiffusionProcess(), RecoveryConfig(batch_size=4), 0)
    pinned, copied = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value: pinned.append(value) or value)
    ready = draw.pinned()
    assert [id(value) for value in pinned] == [id(value) for value in (draw.sample, draw.noise, draw.timesteps)]
    ready.normal(1)
    assert len(pinned) == 4  # further noise too, when it is asked for
    monkeypatch.setattr(torch.Tensor, "to", lambda value, *where, non_blocking: copied.append(non_blocking) or value)
    ready.to(torch.device("cuda"))
    assert copied == [True] * 3


def test_antithetic_times_come_in_pairs():
    config = RecoveryConfig(batch_size=7, timestep_sampling="antithetic")
    u = uniform_times(config, step=3)
    assert u.shape == (7,)
    assert torch.allclose(u[0:6:2] + u[1:6:2], torch.ones(3))
    t = DiffusionProcess().timesteps(u)
    assert torch.equal(t[0:6:2] + t[1:6:2], torch.full((3,), 999))


def test_warm_decay_follows_the_formula():
    assert warm_decay(0.9999, 0) == 0
    assert warm_decay(0.9999, 15) == 1 - 16**-0.75 == 0.875
    assert warm_decay(0.9, 10**6) == 0.9


def test_average_follows_weights_and_copies_buffers():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, decay=0.5)
    before = copy.deepcopy(ema.model)
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].running_mean.add_(3)
    ema.update(model, step=100)
    assert torch.allclose(ema.model[0].weight, before[0].weight + 0.5)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not ema.model.training


def test_average_keeps_what_is_frozen_apart():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    flags = [parameter.requires_grad for parameter in Ema(model).model.parameters()]
    assert flags == [True, True, False, False]


def test_learning_rate_schedules():
    config = RecoveryConfig(steps=110, learning_rate=1.0, warmup_steps=10)
    assert learning_rate_at(config, 0) == pytest.approx(0.1)
    assert learning_rate_at(config, 60) == 1
    linear = RecoveryConfig(steps=110, learning_rate=1.0, warmup_steps=10, lr_schedule="linear")
    cosine = RecoveryConfig(steps=110, learning_rate=1.0, warmup_steps=10, lr_schedule="cosine")
    assert learning_rate_at(linear, 35) == pytest.approx(0.75)
    assert learning_rate_at(cosine, 60) == pytest.approx(0.5)
    assert learning_rate_at(cosine, 10) == 1


def test_labels_are_dropped_by_the_draw_and_not_in_the_blocks():
    model = dit().train()
    assert (null_class(model), class_count(model)) == (10, 10)
    disable_label_dropout(model)
    embeddings = [module for module in model.modules() if isinstance(module, LabelEmbedding)]
    assert len(embeddings) == 4
    x, t, labels = torch.randn(16, 1, 8, 8), torch.arange(16), torch.zeros(16, dtype=torch.int64)
    assert torch.equal(model(x, t, labels).sample, model(x, t, labels).sample)
    assert all(module.embedding_table.num_embeddings == 11 for module in embeddings)


def test_models_and_data_must_agree_about_labels(digits):
    assert (null_class(unet()), class_count(unet())) == (None, None)
    assert class_count(unet(num_class_embeds=3)) == 3
    check_conditions(unet(), digits)
    check_conditions(dit(), digits)
    with pytest.raises(DataError, match="digits has classes 0 to 9, the model knows 0 to 2"):
        check_conditions(unet(num_class_embeds=3), digits)
    unlabelled = ArrayDataset("none", (1, 8, 8), (), torch.zeros(4, 1, 8, 8), None)
    with pytest.raises(DataError, match="none has no labels, which the model needs"):
        check_conditions(dit(), unlabelled)
    check_conditions(dit(), unlabelled, needed=False)


def test_label_values_beyond_the_classes_are_refused(tmp_path):
    np.savez(tmp_path / "sparse.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 63])
    with pytest.raises(DataError, match="sparse has classes 0 to 63, the model knows 0 to 9"):
        check_conditions(dit(), load_data(tmp_path / "sparse.npz"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("accumulation", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("clip", 0.0),
        ("ema_decay", 1.0),
        ("dropout", 1.5),
        ("label_dropout", -0.1),
        ("seed", -1),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(SecateurError, match=rf"^recovery {name} is .*; give "):
        RecoveryConfig(**{name: value})


def test_settings_at_their_limits_are_taken():
    RecoveryConfig(warmup_steps=0, weight_decay=0, betas=(0, 0), clip=None, ema_decay=0, dropout=1, label_dropout=1)


def test_noise_is_drawn_once_for_each_image_of_a_step_and_for_no_other_process(digits, monkeypatch):
    drawn, normal = [], draws.normal

    def record(shape, places, *key, **of):
        drawn.extend(places)
        return normal(shape, places, *key, **of)

    monkeypatch.setattr(draws, "normal", record)
    config = RecoveryConfig(batch_size=8, accumulation=2)
    for draw in draw_step(digits, FlowProcess(), config, 0, rank=1, processes=2):
        draw.normal(1)
    assert sorted(drawn) == [2, 2, 3, 3, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (RecoveryConfig, "lr_schedule"),
        (RecoveryConfig, "mixed_precision"),
        (RecoveryConfig, "timestep_sampling"),
        (WarmupConfig, "train"),
        (JacobianConfig, "projection"),
        (CutConfig, "allocation"),
        (CutConfig, "granularity"),
        (TaylorOptions, "timestep_reduction"),
        (TaylorOptions, "reduction"),
    ],
)
def test_a_choice_that_is_misspelled_is_refused(config, setting):
    """Otherwise it would silently select another choice."""
    with pytest.raises(SecateurError, match=rf"{setting} is 'cosinus'; .*give \w+"):
        config(**{setting: "cosinus"})
