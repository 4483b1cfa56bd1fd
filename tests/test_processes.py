"""Processes of a launcher: one process group for all of their work, which ends with them."""

import subprocess

import pytest

from test_recovery_trainer import CONFIG
from training_runs import TWO, log, start

BEGIN = """
import os
import sys
import torch
from dataclasses import replace
from models import dit
from secateur.process.flow import FlowProcess
from secateur.base.distributed import wait_for_everyone
from secateur.recovery import recover
from test_recovery_trainer import CONFIG
from training_runs import Failing, images
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
def test_processes_that_see_different_folders_say_so(tmp_path):
    run = start(tmp_path / "own.py", EACH_ITS_OWN, tmp_path / "run", launcher=TWO, stderr=subprocess.PIPE)
    assert b"process 1 does not see " in run.communicate(timeout=300)[1]
    assert run.returncode != 0
