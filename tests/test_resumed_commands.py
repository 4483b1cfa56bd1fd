"""Commands that died, were killed, or found a full disk, and other settings: they resume to the same result."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import secateur
from command_runs import QUICK, RANKED, compress, saved_models
from disks import left_behind
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.evaluation import EvaluationConfig
from secateur.recovery import RecoveryConfig
from secateur.runs import stages
from secateur.runs.folder import run_folder

models = pytest.fixture(saved_models, scope="module")


STAGES = ["score", "write_ranking", "one_shot", "write_cut", "recover", "evaluate_models", "write_evaluation"]


@pytest.mark.torture  # tests/faults/test_kills.py has shorter ones
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_dies_in_any_stage_resumes_to_the_same_result(models, tmp_path, monkeypatch, stage):
    compress(models / "unet", tmp_path / "whole")

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, dies)
        with pytest.raises(SystemExit) as stopped:
            compress(models / "unet", tmp_path / "run")
    assert stopped.value.code == 130
    compress(models / "unet", tmp_path / "run")
    weights = [load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("whole", "run")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.torture
def test_a_killed_compression_resumes_to_the_same_result(models, tmp_path):
    command = [
        sys.executable,
        "-m",
        "secateur",
        "compress",
        str(models / "unet"),
        "--target",
        "60%",
        "--data",
        "digits",
    ]
    command += ["--steps", "60", *QUICK]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment)
    for delay in (9.0, 10.0, 11.0):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "run")], env=environment)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, env=environment)
    weights = [load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("whole", "run")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_run_resumes_with_settings_that_change_no_result(tmp_path):
    def described(at_once, **recovery):
        groups = {"scoring": secateur.ScoringConfig(batch_size=at_once), "recovery": RecoveryConfig(**recovery)}
        return {"command": "compress", "evaluation": EvaluationConfig(batch_size=at_once), **groups}

    with run_folder(tmp_path / "run", described(64), {}):
        (tmp_path / "run" / left_behind("model")).mkdir()
    with run_folder(tmp_path / "run", described(5, accumulation=2, log_every=3), {}):
        pass
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["evaluation"]["batch_size"], config["recovery"]["accumulation"]) == (5, 2)
    assert "command_line" in config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    with pytest.raises(SecateurError, match=r"begun with another recovery\.batch_size, recovery\.seed; "):
        run_folder(tmp_path / "run", described(5, seed=1, batch_size=32), {}).__enter__()


def test_a_full_disk_is_one_line_and_keeps_what_was_there(models, tmp_path, monkeypatch, capsys):
    arguments = ["rank", str(models / "unet"), "--data", "digits", "--out", str(tmp_path / "run"), *RANKED]
    main(arguments)
    before = (tmp_path / "run" / "ranking.json").read_text()
    (tmp_path / "run" / "tables" / "ranking.md").unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(SystemExit):
            main(arguments)
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "run" / "ranking.json").read_text() == before
    main(arguments)
    assert (tmp_path / "run" / "tables" / "ranking.md").is_file()
