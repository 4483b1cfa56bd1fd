"""The Python lines of README.md, run as printed, except for the number of steps."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch.utils.data import DataLoader

import secateur
from models import unet
from secateur.recipes import recipe_named

README = Path(__file__).resolve().parent.parent / "README.md"
RECOVERY = secateur.RecoveryConfig(steps=2, batch_size=4, grad_norms_every=0)
EVALUATION = secateur.EvaluationConfig(
    num_images=8, num_inference_steps=2, latency=secateur.LatencyOptions(rounds=2, batch_sizes=(1,))
)


def short(name):
    scoring = secateur.ScoringConfig(num_timesteps=2, num_images=8)
    return replace(recipe_named(name), scoring=scoring, recovery=RECOVERY, evaluation=EVALUATION)


def made(repo_id, folder_path=None, **options):
    """Replaces the hub, which tests cannot reach."""
    assert repo_id == "NAME/REPOSITORY"
    assert folder_path is None or (folder_path / "README.md").is_file()
    return "address"


@pytest.mark.slow
def test_the_lines_of_python_run(tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(lines.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secateur.api.one_stage.EvaluationConfig", lambda: EVALUATION)
    monkeypatch.setattr("secateur.api.one_stage.RecoveryConfig", lambda: RECOVERY)
    monkeypatch.setattr("secateur.recipes.recipe_named", short)
    monkeypatch.setattr("secateur.io.hub.HfApi", lambda token: SimpleNamespace(create_repo=made, upload_folder=made))
    images = torch.rand(12, 1, 8, 8) * 2 - 1
    pipe = DDPMPipeline(unet(), DDPMScheduler())
    names = {"unet": pipe.unet, "loader": DataLoader(list(images), batch_size=4), "pipe": pipe}
    exec(re.sub(r"steps=\d+", "steps=2", lines), names)
    assert capsys.readouterr().out.startswith("0.5")
    assert torch.is_tensor(secateur.load_pipeline("smaller").unet(images[:1], 3).sample)
