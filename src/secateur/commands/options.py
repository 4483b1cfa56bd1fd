"""Options that commands share, with their help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import nn

from ..criteria import CRITERIA
from ..io.locate import Component
from ..process.named import PROCESSES
from ..recovery import WarmupConfig
from ..runs.arguments import WeightsArguments, of_another_model
from ..runs.subject import Subject, open_subject, open_weights

Dtype = Literal["float32", "float16", "bfloat16"]
ProcessName = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(PROCESSES) + "}[:STEPS]")]


@dataclass(frozen=True)
class WeightsOptions:
    """Which network, and on which device.

    Attributes:
        model: model folder, pipeline folder, hub id, or an embedded model (fashion-unet, digits-unet,
            digits-sit).
        component: which part of a pipeline: unet or transformer, by default the one that it has; transformer_2 is the
            second of two (Wan 2.2); vae means its decoder.
        device: auto, cpu, cuda, mps ...
        revision: branch, tag or commit on the hub.
        subfolder: folder of the model inside its folder or repository.
        variant: variant of the weights' file names, such as fp16; by default the plain one, or the only one.
        token: token of the hub, for private repositories.
        cache_dir: where downloads are kept.
        torch_dtype: dtype of the weights; by default the saved one.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    component: Component | None = None
    device: str = "auto"
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    token: str | None = None
    cache_dir: Path | None = None
    torch_dtype: Dtype | None = None

    @property
    def arguments(self) -> WeightsArguments:
        """The keyword arguments of the library's functions."""
        return {
            "component": self.component,
            "device": self.device,
            "subfolder": self.subfolder,
            "variant": self.variant,
            "torch_dtype": None if self.torch_dtype is None else getattr(torch, self.torch_dtype),
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_dir,
        }

    def weights(self) -> nn.Module:
        """The network alone."""
        return open_weights(self.model, **self.arguments)


@dataclass(frozen=True)
class NamedWeightsOptions(WeightsOptions):
    """Which network, given as `--model`.

    Attributes:
        model: model folder, pipeline folder, or hub id.
    """

    model: str


@dataclass(frozen=True)
class ModelOptions(WeightsOptions):
    """Which model, how it was trained, and on which device.

    Attributes:
        process: how it was trained, instead of the scheduler config beside it: ddpm and v-prediction have linear betas
            over 1000 steps; flow has diffusers' convention, flow-sit SiT's. A number, as in auto:4, is for a model
            distilled into that many steps: only their timesteps are drawn.
    """

    process: ProcessName = "auto"

    def subject(self) -> Subject:
        """The network with its process and its structure."""
        return open_subject(self.model, self.process, **self.arguments)

    def other(self, model: str | None) -> Subject | None:
        """A teacher or a reference, opened in the same way."""
        if model is None:
            return None
        return open_subject(model, **of_another_model({**self.arguments, "process": self.process}))


_OF_BLOCKS = [name for name, criterion in CRITERIA.items() if criterion.ranks == "blocks"]
CriterionName = Annotated[
    str,
    tyro.conf.arg(
        metavar="{" + ",".join(CRITERIA) + "}",
        help=f"which criterion ranks the units; {', '.join(_OF_BLOCKS[:-1])} and {_OF_BLOCKS[-1]} rank blocks only.",
    ),
]
Compensates = Annotated[bool, tyro.conf.arg(name="compensation")]  # --compensation, --no-compensation
Records = Annotated[bool, tyro.conf.arg(name="book")]  # --book, --no-book
Weights = Annotated[WeightsOptions, tyro.conf.arg(name="")]
NamedWeights = Annotated[NamedWeightsOptions, tyro.conf.arg(name="")]
Model = Annotated[ModelOptions, tyro.conf.arg(name="")]


def warmup_given(new_labels: bool, warmup: WarmupConfig) -> WarmupConfig | None:
    """The options of the warm-up if new labels are asked for, or if any of them was given; else None."""
    return warmup if new_labels or warmup != WarmupConfig() else None
