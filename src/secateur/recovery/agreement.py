"""What the processes of a launcher must agree on before they train: the folder that they see, and the step."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from ..base.distributed import blind_processes
from ..base.errors import TrainingError


def check_folder(accelerator: Accelerator, folder: Path) -> None:
    """Find that processes do not see the same folder, before they take up what they find there.

    Raises:
        TrainingError: in all of them, where one does not see the main one's.
    """
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    if blind := blind_processes(folder, accelerator.device.type == "cpu"):
        which = f"process {blind[0]} does" if len(blind) == 1 else f"processes {', '.join(map(str, blind))} do"
        raise TrainingError(
            f"{which} not see {folder} of process 0; give a folder on a file system that all processes share"
        )


def check_step(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Find that processes would go on from different steps.

    Raises:
        TrainingError: in all of them.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        found = ", ".join(f"process {rank} {step}" for rank, step in enumerate(steps))
        raise TrainingError(
            f"the processes find different checkpoints in {folder} ({found}); let all see the same folder"
        )
