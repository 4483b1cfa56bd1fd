"""Launchers other than torchrun: their variables are used, or ignored."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from secateur.base import distributed
from secateur.base.devices import device_of_process
from secateur.base.distributed import adopt_launcher, patient_group, process_count, process_group, process_index
from secateur.base.errors import SecateurError, TrainingError
from secateur.recovery import RecoveryConfig
from secateur.recovery.accelerator import check_accelerator, own_accelerate
from secateur.structure.precision import full_precision

SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12345"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
PMI = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0"}
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ALL_OURS = (*OURS, "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    before = {name: os.environ.pop(name) for name in ALL_OURS if name in os.environ}
    yield monkeypatch
    for name in ALL_OURS:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, ("3", "4", "1", "127.0.0.1", "31845")),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu[007-009,12]"}, ("3", "4", "1", "gpu007", "31845")),
        (SLURM | {"SLURM_STEP_NODELIST": "alpha,beta"}, ("3", "4", "1", "alpha", "31845")),
        (SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "5"}, ("3", "4", "1", "head", "5")),
        (MPI, ("1", "2", "1", "127.0.0.1", "29500")),
        (PMI, ("2", "4", "0", "127.0.0.1", "29500")),
    ],
)
def test_variables_of_other_launchers_are_adopted(variables, expected, environment):
    for name, value in variables.items():
        environment.setenv(name, value)
    adopt_launcher()
    assert tuple(os.environ[name] for name in OURS) == expected
    assert (process_index(), process_count()) == (int(expected[0]), int(expected[1]))


@pytest.mark.parametrize(
    ("variables", "local"),
    [
        (SLURM | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, "8"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "4,3"}, "4"),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "4"),
        (PMI | {"MPI_LOCALNRANKS": "2"}, "2"),
    ],
)
def test_nodes_of_other_launchers_are_told_apart(variables, local, environment):
    """So that hsdp shards within a node; where nodes have different numbers of tasks it is refused."""
    for name, value in variables.items():
        environment.setenv(name, value)
    adopt_launcher()
    assert os.environ["LOCAL_WORLD_SIZE"] == local
    hybrid = RecoveryConfig(batch_size=16 * 7, parallel="hsdp")
    if process_count() % int(local):
        with pytest.raises(TrainingError, match="there are 4 of 7 processes on a node"):
            check_accelerator(hybrid, torch.device("cpu"))
    else:
        check_accelerator(hybrid, torch.device("cpu"))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # a batch script, which is one process whatever it asked for
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        SLURM | {"RANK": "0", "WORLD_SIZE": "1"},  # torchrun inside of srun
    ],
)
def test_one_process_stays_one(variables, environment):
    for name, value in variables.items():
        environment.setenv(name, value)
    adopt_launcher()
    assert (process_index(), process_count()) == (0, 1)
    assert "MASTER_PORT" not in os.environ


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, and RANK is not set; start with torchrun"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "PMI_SIZE is 2, and MPI_LOCALRANKID is not set"),
    ],
)
def test_several_tasks_that_do_not_say_which_is_which_are_refused(variables, message, environment):
    """Each would consider itself the first, and write the same files."""
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(SecateurError, match=message):
        adopt_launcher()


def test_processes_that_cannot_meet_say_so(environment):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        environment.setenv(name, value)
    with own_accelerate(), pytest.raises(SecateurError, match=r"the processes cannot meet: .*MASTER_ADDR"):
        process_group(on_cpu=True)


def test_a_lost_peer_is_waited_for_in_minutes_and_one_that_works_alone_for_hours(monkeypatch):
    asked = []
    monkeypatch.setattr(distributed, "PartialState", lambda cpu, timeout: asked.append(timeout))
    process_group(on_cpu=True)
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: asked.append((backend, timeout)))
    patient_group()
    distributed._patient.clear()
    assert asked == [timedelta(minutes=15), ("gloo", timedelta(days=1))]


@pytest.mark.slow
def test_full_precision_goes_with_the_older_switches():
    """In a process of its own: both kinds are mixed there."""
    script = """
import torch
from secateur.structure.precision import full_precision
old, new = torch.backends.cuda.matmul, torch.backends.cudnn
for switch in (lambda: setattr(old, "allow_tf32", True), lambda: torch.set_float32_matmul_precision("medium")):
    switch()
    new.allow_tf32 = True
    before = old.allow_tf32, new.allow_tf32, torch.get_float32_matmul_precision()
    with full_precision():
        assert old.fp32_precision == new.conv.fp32_precision == "ieee"
    assert (old.allow_tf32, new.allow_tf32, torch.get_float32_matmul_precision()) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_full_precision_goes_with_the_new_switches_and_puts_them_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_precision():
            assert matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(("name", "device"), [("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), ("mps", "mps")])
def test_every_process_of_a_launcher_has_a_device_of_its_own(name, device, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_process(name) == torch.device(device)
