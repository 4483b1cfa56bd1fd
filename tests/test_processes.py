"""Processes of a launcher: one process group for all of their work, which ends with them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import secateur
from models import unet
from secateur.base.errors import SecateurError
from training_runs import CONFIG, TWO, log, start

BEGIN = """
import os
import sys
import torch
from dataclasses import replace
from models import dit
from secateur.process.flow import FlowProcess
from secateur.base.distributed import wait_for_everyone
from secateur.recovery import recover
from training_runs import CONFIG, Failing, images
torch.set_num_threads(1)
"""
MANY = (
    BEGIN
    + """
wait_for_everyone(on_cpu=True)
for run in range(20):
    recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=2), f"{sys.argv[1]}/{run}")
    wait_for_everyone(on_cpu=True)
"""
)
ONE_FAILS = (
    BEGIN
    + """
data = Failing(3, OSError) if os.environ["RANK"] == "1" else images()
recover(dit(), FlowProcess(), data, CONFIG, sys.argv[1])
"""
)


EACH_ITS_OWN = (
    BEGIN
    + """
recover(dit(), FlowProcess(), images(), CONFIG, sys.argv[1] + os.environ["RANK"])
"""
)


@pytest.mark.torture
def test_two_processes_recover_many_models(tmp_path):
    """A group for each would connect to where the last one was, or never end."""
    assert start(tmp_path / "many.py", MANY, tmp_path / "runs", launcher=TWO).wait() == 0
    assert [len(log(tmp_path / "runs" / str(run))) for run in range(20)] == [2] * 20


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run(tmp_path):
    """The other process waits for it in a sum of gradients."""
    run = start(tmp_path / "fails.py", ONE_FAILS, tmp_path / "run", launcher=TWO, stderr=subprocess.PIPE)
    assert b"OSError" in run.communicate(timeout=300)[1]
    assert run.returncode != 0
    assert 0 < len(log(tmp_path / "run")) < CONFIG.steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compress", "finetune", "evaluate", "record", "sweep", "best", "sample"])
def test_several_processes_need_a_folder(name, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = {"sweep": {"targets": ("macs=50%",)}, "sample": {"prompt": ()}}.get(name, {})
    given |= {"target": "macs=50%"} if name in ("compress", "best") else {}
    given |= {} if name == "sample" else {"data": "digits"}
    with pytest.raises(SecateurError, match=f"^{name} in several processes needs a folder that all of them see"):
        getattr(secateur, name)("nowhere", **given)


@pytest.mark.slow
def test_processes_that_see_different_folders_say_so(tmp_path):
    run = start(tmp_path / "own.py", EACH_ITS_OWN, tmp_path / "run", launcher=TWO, stderr=subprocess.PIPE)
    assert b"process 1 does not see " in run.communicate(timeout=300)[1]
    assert run.returncode != 0


LAUNCHED = {
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "by hand": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", ["mpirun", *(pytest.param(name, marks=pytest.mark.torture) for name in ("srun", "mpiexec", "by hand"))]
)
def test_tasks_of_a_launcher_train_one_run_and_say_in_a_line_that_one_was_killed(launcher, tmp_path):
    secateur.save_pretrained(unet(), tmp_path / "model", {"_class_name": "DDPMScheduler"})
    command = ["finetune", str(tmp_path / "model"), "--data", "digits", "--out", str(tmp_path / "run")]
    command += ["--recovery.steps", "1000000", "--recovery.batch-size", "4", "--recovery.log-every", "1"]
    command += ["--recovery.objective", "denoising"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    rank, size, local = LAUNCHED[launcher]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "secateur", *command],
            env={**os.environ, **meeting, rank: str(number), size: "2", local: str(number), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    path = tmp_path / "run" / "recovery" / "log.jsonl"
    try:
        until = time.monotonic() + 200
        while not (path.is_file() and len(path.read_text().splitlines()) > 3):
            assert time.monotonic() < until
            assert [task.poll() for task in tasks] == [None, None]
            time.sleep(0.2)
        tasks[1].send_signal(signal.SIGKILL)
        said = tasks[0].communicate(timeout=60)[1]
    finally:
        for task in tasks:
            task.kill()
            task.communicate()
    assert tasks[0].returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("secateur:")]
    assert line.startswith("secateur: another process is gone or does not answer")
    assert "Traceback" not in said
    numbers = [json.loads(each)["step"] for each in path.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))  # one run, in which one process writes
