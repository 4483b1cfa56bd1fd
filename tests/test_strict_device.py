"""On a GPU nothing is mixed with tensors of the CPU, as far as a stand-in can tell."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("strict_device.py")
RULES = """
import pytest
import torch
from strict_device import DEVICE, Calls

def fused(step):
    options = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    torch._fused_adamw_([here], [here], [here], [here], [], [step], **options, amsgrad=False, maximize=False)

with Calls():
    here, there = torch.ones(3).to(DEVICE), torch.ones(3)
    assert (here + 1).device == DEVICE and (here + 1).tolist() == [2, 2, 2]
    layer = torch.nn.Linear(3, 1).to(DEVICE)
    layer(here).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 1, 1]]
    fused(torch.zeros((), device=DEVICE))
    for mixing in (lambda: here + there, lambda: layer(there), lambda: fused(torch.zeros(()))):
        with pytest.raises(RuntimeError, match="same device"):
            mixing()
    with pytest.raises(TypeError, match="numpy"):
        here.numpy()
"""


def child(*arguments: str) -> None:
    run = subprocess.run([sys.executable, *arguments], cwd=CHILD.parent, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_the_stand_in_refuses_what_a_gpu_does():
    child("-c", RULES)


@pytest.mark.parametrize(
    "name", [pytest.param("unet", marks=pytest.mark.slow), pytest.param("dit", marks=pytest.mark.torture)]
)
def test_every_stage_runs_on_another_device(name):
    child(str(CHILD), name)
