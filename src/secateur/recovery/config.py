"""Settings of a recovery run."""

from dataclasses import dataclass, field
from math import cos, inf, pi
from typing import Literal

from ..base.errors import require, require_one_of
from .sensitivity import JacobianConfig

LearningRateSchedule = Literal["constant", "cosine", "linear"]
Precision = Literal["no", "bf16", "fp16"]
TimestepSampling = Literal["uniform", "antithetic"]
WarmupPart = Literal["labels", "all"]


@dataclass(frozen=True)
class RecoveryConfig:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: images per optimizer step, over all processes and accumulation.
        learning_rate: of AdamW, at its highest.
        lr_schedule: after the warm-up, constant or down to zero at the last step.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled weight decay.
        betas: of AdamW.
        clip: largest norm of the gradient; None leaves it.
        ema_decay: largest decay of the moving average, which is what is saved; a warm-up makes it fit short runs.
        accumulation: micro-batches per optimizer step.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them, which takes
            longer and less memory.
        mixed_precision: no, bf16 or fp16.
        dropout: probability of every dropout layer; None leaves the model's own.
        label_dropout: how often a class label or a caption is replaced by none, where the model knows none.
        horizontal_flip: mirror half of the images.
        timestep_sampling: uniform, or antithetic in pairs.
        objective: denoising, distillation, first-order or 2ndmatch.
        weights: of terms of the objective (denoising, distillation, jacobian); a term that is not named has its own.
        jacobian: options of first-order and 2ndmatch.
        grad_norms_every: steps between measurements of each term's gradient norm, at steps that have all terms; 0
            measures none.
        checkpoint_every: steps between checkpoints; the newest is kept. One follows every decision of a schedule too,
            since deciding takes longer than writing.
        log_every: steps between lines of log.jsonl, which hold means over them.
        report_to: accelerate's trackers, such as tensorboard or wandb; log.jsonl is always written.
        seed: draws batches, timesteps, noise and dropout.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-4
    lr_schedule: LearningRateSchedule = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    ema_decay: float = 0.9999
    accumulation: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Precision = "no"
    dropout: float | None = None
    label_dropout: float = 0.1
    horizontal_flip: bool = False
    timestep_sampling: TimestepSampling = "uniform"
    objective: str = "denoising"
    weights: dict[str, float] = field(default_factory=dict)
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    grad_norms_every: int = 100
    checkpoint_every: int = 500
    log_every: int = 10
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < inf, "more than 0"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "weight_decay": (0 <= self.weight_decay < inf, "at least 0"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            "clip": (self.clip is None or self.clip > 0, "more than 0, or none"),
            "ema_decay": (0 <= self.ema_decay < 1, "a number from 0 to below 1"),
            "accumulation": (self.accumulation >= 1, "at least 1"),
            "dropout": (self.dropout is None or 0 <= self.dropout <= 1, "a number from 0 to 1, or none"),
            "label_dropout": (0 <= self.label_dropout <= 1, "a number from 0 to 1"),
            "grad_norms_every": (self.grad_norms_every >= 0, "0 (never) or more"),
            "checkpoint_every": (self.checkpoint_every >= 1, "at least 1"),
            "log_every": (self.log_every >= 1, "at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
            "weights": (all(0 <= weight < inf for weight in self.weights.values()), "numbers of at least 0"),
        }
        for name, (valid, wanted) in rules.items():
            require(valid, f"recovery {name} is {getattr(self, name)}; give {wanted}")
        micro = f"recovery batch_size is {self.batch_size}, which does not divide by accumulation {self.accumulation}"
        require(self.batch_size % self.accumulation == 0, f"{micro}; give a multiple of it")
        require_one_of("recovery lr_schedule", self.lr_schedule, LearningRateSchedule)
        require_one_of("recovery mixed_precision", self.mixed_precision, Precision)
        require_one_of("recovery timestep_sampling", self.timestep_sampling, TimestepSampling)


@dataclass(frozen=True)
class WarmupConfig:
    """How new labels are learned before anything is ranked; the rest is the recovery's.

    Attributes:
        steps: optimizer steps.
        learning_rate: of AdamW.
        train: labels leaves all other weights as pretrained, so that the ranking judges those; all adapts them to the
            data as well, for data far from the pretrained model's.
    """

    steps: int = 500
    learning_rate: float = 1e-3
    train: WarmupPart = "labels"

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"warmup steps is {self.steps}; give at least 1")
        require_one_of("warmup train", self.train, WarmupPart)
        require(0 < self.learning_rate < inf, f"warmup learning_rate is {self.learning_rate}; give more than 0")


def learning_rate_at(config: RecoveryConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (0, 1, ...): linear warm-up, then constant or down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.lr_schedule == "cosine":
        return config.learning_rate * (1 + cos(pi * done)) / 2
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - done)
    return config.learning_rate
