"""Checks that the processes of a launcher see the same folder and resume from the same step."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from ..base.distributed import blind_processes
from ..base.errors import TrainingError


def check_folder(accelerator: Accelerator, folder: Path) -> None:
    """Check that all processes see the same folder, before they resume from it.

    Raises:
        TrainingError: in all processes, if one does not see the main one's folder.
    """
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    if blind := blind_processes(folder, accelerator.device.type == "cpu"):
        which = f"process {blind[0]} does" if len(blind) == 1 else f"processes {', '.join(map(str, blind))} do"
        raise TrainingError(
            f"{which} not see {folder} of process 0; give a folder on a file system that all processes share"
        )


def check_step(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Check that all processes resume from the same step.

    Raises:
        TrainingError: in all processes, if they do not.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        found = ", ".join(f"process {rank} {step}" for rank, step in enumerate(steps))
        raise TrainingError(
            f"the processes find different checkpoints in {folder} ({found}); let all see the same folder"
        )
