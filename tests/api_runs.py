"""Short settings and data for the functions of the library with objects in memory, which write nothing."""

import torch

import secateur

SCORING = secateur.ScoringConfig(num_timesteps=2, num_images=8)
RECOVERY = secateur.RecoveryConfig(steps=2, batch_size=4, log_every=1, grad_norms_every=0)
EVALUATION = secateur.EvaluationConfig(
    num_images=8, num_inference_steps=2, latency=secateur.LatencyOptions(rounds=2, batch_sizes=(1,))
)
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(12) % 10


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    yield
    assert list(tmp_path.iterdir()) == []
