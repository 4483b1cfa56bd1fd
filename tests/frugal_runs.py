"""Short recoveries in less memory."""

from dataclasses import replace
from pathlib import Path

import torch

from models import dit
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig, recover
from training_runs import images, smaller

CONFIG = RecoveryConfig(steps=6, batch_size=4, learning_rate=1e-3, checkpoint_every=2, log_every=1, dropout=0.1)
CPU = torch.device("cpu")


def trained(folder: Path, **changes: object) -> torch.nn.Module:
    return recover(dit(), FlowProcess(), images(), replace(CONFIG, **changes), folder, smaller())
