"""Processes of a launcher: one group for everything that they do, which ends with them."""

import pytest

from training_runs import TWO, log, start

SCRIPT = """
import sys
import torch
from dataclasses import replace
from models import dit
from secateur.process import FlowProcess
from secateur.processes import wait_for_everyone
from secateur.recovery import recover
from test_recovery_trainer import CONFIG
from training_runs import images
torch.set_num_threads(1)
wait_for_everyone(on_cpu=True)
for run in range(20):
    recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=2), f"{sys.argv[1]}/{run}")
    wait_for_everyone(on_cpu=True)
"""


@pytest.mark.slow
def test_two_processes_recover_many_models(tmp_path):
    """As `best` does. A group for each would connect to where the last one was, or never end."""
    assert start(tmp_path / "many.py", SCRIPT, tmp_path / "runs", launcher=TWO).wait() == 0
    assert [len(log(tmp_path / "runs" / str(run))) for run in range(20)] == [2] * 20
