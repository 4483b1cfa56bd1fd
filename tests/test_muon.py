"""Muon: its iteration and update rule, its parameters, and its state in checkpoints and cuts."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

import secateur
from models import dit, unet
from progressive_runs import BOTH, QUICK, pruner_for
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig, optimizers, recover
from secateur.recovery.optimizers import Muon, build_optimizer, matrix_names, multiplies_bfloat16, orthogonalized
from training_runs import Failing, assert_same, images, log

CONFIG = RecoveryConfig(
    steps=6, batch_size=4, optimizer="muon", learning_rate=1e-3, checkpoint_every=2, log_every=1, dropout=0.1
)


@pytest.mark.parametrize("shape", [(8, 8), (4, 36), (40, 6)])
def test_singular_values_come_near_to_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    found = orthogonalized(matrices, torch.float64)
    values = torch.linalg.svdvals(found)
    assert 0.5 < values.min() < values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)  # the nearest orthogonal matrix
    assert (found - left @ right).norm() < 0.35 * (left @ right).norm()
    torch.testing.assert_close(orthogonalized(1e3 * matrices, torch.float64), found, rtol=1e-6, atol=1e-6)
    for dtype, apart in ((torch.float32, 1e-3), (torch.bfloat16, 0.05)):
        assert (orthogonalized(matrices.float(), dtype) - found).abs().max() < apart


def test_a_step_is_the_published_rule():
    """torch's own Muon, which is for matrices alone and iterates in bfloat16, and torch's AdamW."""
    generator = torch.Generator().manual_seed(0)
    matrix, vector = torch.randn(6, 9, generator=generator), torch.randn(9, generator=generator)
    ours = torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())
    theirs = torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())
    muon = Muon([ours[0]], [ours[1]], lr=0.02, rest_lr=0.01, weight_decay=0.1)
    others = [
        torch.optim.Muon([theirs[0]], lr=0.02, weight_decay=0.0),
        torch.optim.AdamW([theirs[1]], lr=0.01, weight_decay=0.1),
    ]
    for _ in range(3):
        for parameter, other in zip(ours, theirs, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            other.grad = parameter.grad.clone()
        muon.step()
        for optimizer in others:
            optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(ours[1], theirs[1])


def test_updates_of_tall_matrices_are_larger():
    moved = []
    for shape in ((4, 16), (16, 4), (16, 1, 2, 2)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([parameter], [], lr=1.0).step()
        moved.append(torch.linalg.svdvals(parameter.detach().flatten(1)).mean().item())
    assert moved[1] == pytest.approx(2 * moved[0], rel=0.2)
    assert moved[2] == pytest.approx(moved[1], rel=0.2)


def test_steps_are_counted_where_the_weights_are():
    """torch's fused kernel refuses a counter on the CPU beside weights on a GPU; so do shards that are put together."""
    parameter = torch.nn.Parameter(torch.zeros(4, device="meta"))
    parameter.grad = torch.zeros_like(parameter)
    muon, adamw = Muon([], [parameter]), torch.optim.AdamW([parameter], fused=True)
    muon.step()
    assert muon.state[parameter]["step"].device == parameter.device
    assert muon.defaults["fused"] == adamw.defaults["fused"]  # which says so where state is moved and read


def test_vectors_and_embeddings_are_adamws():
    for build in (unet, dit):
        model = build()
        optimizer = build_optimizer(CONFIG, model)
        assert [group["rule"] for group in optimizer.param_groups] == ["muon", "adamw"]
        matrices = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        for name, parameter in model.named_parameters():
            assert (id(parameter) in matrices) == (parameter.ndim > 1 and "embed" not in name), name


def test_an_embedding_is_known_by_its_class_too():
    model = torch.nn.ModuleDict({"labels": torch.nn.Embedding(3, 4), "head": torch.nn.Linear(4, 2)})
    assert matrix_names(model) == {"head.weight"}


@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_failed_resumes_to_the_bit(at, tmp_path):
    expected = recover(dit(), FlowProcess(), images(), CONFIG, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(at, OSError), CONFIG, tmp_path / "cut")
    assert_same(expected, recover(dit(), FlowProcess(), images(), CONFIG, tmp_path / "cut"))


@pytest.mark.slow
def test_a_cut_keeps_what_it_remembers_and_resumes_to_the_bit(tmp_path):
    pruner = pruner_for(unet(), DiffusionProcess(), "macs=50%", cut=BOTH, config=QUICK)
    config = replace(CONFIG, steps=8, dropout=None)
    expected = recover(unet(), DiffusionProcess(), images(), config, tmp_path / "whole", pruner=pruner)
    with pytest.raises(OSError, match=r"^$"):
        recover(unet(), DiffusionProcess(), Failing(7, OSError), config, tmp_path / "cut", pruner=pruner)
    found = recover(unet(), DiffusionProcess(), images(), config, tmp_path / "cut", pruner=pruner)
    assert_same(expected, found)
    assert all(record["loss"] < 100 for record in log(tmp_path / "cut"))


def test_both_learning_rates_follow_the_schedule(monkeypatch, tmp_path):
    seen = []

    def watched(self, closure=None):
        seen.append([group["lr"] for group in self.param_groups])

    monkeypatch.setattr(Muon, "step", watched)
    config = replace(CONFIG, steps=4, warmup_steps=2, lr_schedule="linear", learning_rate=1e-3, muon_learning_rate=3e-3)
    recover(unet(), DiffusionProcess(), images(), config, tmp_path)
    assert seen == [pytest.approx(rates) for rates in ([1.5e-3, 5e-4], [3e-3, 1e-3], [3e-3, 1e-3], [1.5e-3, 5e-4])]


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", None])
def test_processors_that_multiply_bfloat16_are_known(feature, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, feature: True}, raising=False)
    assert multiplies_bfloat16.__wrapped__(torch.device("cpu")) is (feature is not None)


@pytest.mark.parametrize(("halves", "loss", "apart"), [(False, 1e-6, 5e-3), (True, 5e-4, 0.05)])
def test_it_spreads_what_rounding_changes(halves, loss, apart, monkeypatch, tmp_path):
    """It raises small singular values, rounding errors among them; more so where the device multiplies in bfloat16."""
    monkeypatch.setattr(optimizers, "is_faster_in_bfloat16", lambda matrices: halves)
    config = replace(CONFIG, steps=10, batch_size=8, dropout=0.0)
    found = [
        recover(dit(), FlowProcess(), images(), replace(config, accumulation=parts), tmp_path / str(parts))
        for parts in (1, 2)
    ]
    for one, other in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=loss)
    assert 0 < distance(*found) < apart * distance(found[0], dit())


@torch.no_grad()
def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum((mine - theirs).square().sum() for mine, theirs in pairs) ** 0.5


def test_a_loop_of_others_may_use_it_and_be_pruned():
    model = unet().train()
    named = dict(model.named_parameters())
    by_muon = matrix_names(model)
    matrices = [parameter for name, parameter in named.items() if name in by_muon]
    optimizer = Muon(matrices, [parameter for name, parameter in named.items() if name not in by_muon])
    pixels = images().images[:4] * 2 - 1
    pruning = secateur.Pruning(
        model, target="macs=60%", schedule="one-shot", optimizer=optimizer, data=pixels, process=DDPMScheduler(),
        steps=2, criterion="magnitude",
    )  # fmt: skip
    for _ in range(2):
        model(pixels, 3).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruning.step()
    for parameter in model.parameters():
        assert all(value.shape in (parameter.shape, ()) for value in optimizer.state[parameter].values())
