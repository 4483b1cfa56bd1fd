"""Settings of a recovery run."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..base.errors import require
from ..base.rules import Count, Seed, above, at_least, check_fields, from_to_below, within
from .lora import LoraConfig
from .objectives.features import FeaturesConfig
from .objectives.objective import JacobianConfig

OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "muon"]
WeightPrecision = Literal["float32", "bf16"]
Memory = Literal["given", "auto"]
Offloaded = Literal["ema", "teacher"]
LearningRateSchedule = Literal["constant", "cosine", "linear"]
Precision = Literal["auto", "no", "bf16", "fp16", "float32"]
Parallelism = Literal["ddp", "fsdp", "hsdp"]
TimestepSampling = Literal["uniform", "antithetic"]
WarmupPart = Literal["labels", "all"]
Beta = Annotated[float, from_to_below(0, 1)]


@dataclass(frozen=True)
class RecoveryConfig:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: images per optimizer step, over all processes and accumulation.
        optimizer: adamw; adamw8bit, whose moments take a quarter of the memory (torchao); adafactor, which keeps sums
            over rows and columns instead of moments; or muon, for matrices and convolutions, with AdamW for vectors and
            embeddings.
        learning_rate: peak learning rate of AdamW.
        muon_learning_rate: peak learning rate of Muon; it follows the same schedule.
        lr_schedule: after the warm-up, constant or down to zero at the last step.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled weight decay of AdamW; Muon's matrices have none.
        betas: betas of AdamW.
        clip: largest norm of the gradient; None: no clipping.
        ema_decay: largest decay of the moving average, whose weights are saved; it warms up, to suit short runs.
        accumulation: micro-batches per optimizer step.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them, which takes
            longer and less memory.
        compile: compile teacher and student with torch.compile, which takes minutes at the start; after a one-shot cut,
            for objectives denoising, distillation and rms-distillation, with parallel ddp.
        weight_precision: dtype of the trained weights: float32, or bf16 with stochastic rounding (adamw and adamw8bit),
            which halves weights and gradients.
        offload: what is kept on the CPU: ema, the moving average, which is updated there; teacher, whose blocks are
            moved to the device one at a time.
        freeze: glob patterns over names of parameters that are not trained.
        memory: given uses these settings as they are; auto changes offload, gradient_checkpointing and accumulation,
            which do not change the result, until the recovery fits on the device.
        lora: options of training low-rank factors instead of the weights.
        parallel: how weights are distributed over the processes of a launcher: ddp keeps all of them in each process;
            fsdp a shard of each weight, of its average and of its moments (torch's fully_shard); hsdp shards within
            every node.
        mixed_precision: bf16 or fp16; no for passes in the weights' own precision, where GPUs that have TF32 round
            factors of float32 to it, unless you set torch's switches yourself; float32 is no without TF32; auto is bf16
            on GPUs that compute in it, else no.
        dropout: probability of every dropout layer; None keeps the model's own.
        label_dropout: how often a class label or a caption is replaced by the null condition, if the model has one.
        horizontal_flip: mirror half of the images.
        timestep_sampling: uniform, or antithetic in pairs; those of a teacher's book are spread evenly instead.
        objective: denoising, distillation, rms-distillation, features, first-order or 2ndmatch.
        weights: weights of the objective's terms (denoising, distillation, features, jacobian); terms not named keep
            the objective's own. With a teacher, denoising 0 leaves out the noisy target.
        jacobian: options of first-order and 2ndmatch.
        features: options of the objective features.
        grad_norms_every: steps between measurements of each term's gradient norm, at steps that have all terms; 0
            measures none.
        checkpoint_every: steps between checkpoints; the newest is kept. Every decision of a schedule is followed by one
            too, since it takes longer than writing a checkpoint.
        log_every: steps between lines of log.jsonl, which hold means over these steps.
        validation_every: steps between samples of the averaged weights, from the same noise, for the report and the
            trackers; 0: none.
        validation_prompts: their prompts, for a model that takes text; by default captions of the data.
        validation_classes: their class numbers; by default the first ones.
        report_to: accelerate's trackers, such as tensorboard or wandb; log.jsonl is always written.
        seed: seed of batches, timesteps, noise and dropout.
    """

    steps: Count = 500
    batch_size: Count = 64
    optimizer: OptimizerName = "adamw"
    learning_rate: Annotated[float, above(0)] = 2e-4
    muon_learning_rate: Annotated[float, above(0)] = 3e-3
    lr_schedule: LearningRateSchedule = "constant"
    warmup_steps: Annotated[int, at_least(0)] = 0
    weight_decay: Annotated[float, at_least(0)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip: Annotated[float, above(0)] | None = 1.0
    ema_decay: Annotated[float, from_to_below(0, 1)] = 0.9999
    accumulation: Count = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    weight_precision: WeightPrecision = "float32"
    offload: tuple[Offloaded, ...] = ()
    freeze: tuple[str, ...] = ()
    memory: Memory = "given"
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: Parallelism = "ddp"
    mixed_precision: Precision = "auto"
    dropout: Annotated[float, within(0, 1)] | None = None
    label_dropout: Annotated[float, within(0, 1)] = 0.1
    horizontal_flip: bool = False
    timestep_sampling: TimestepSampling = "uniform"
    objective: str = "denoising"
    weights: dict[str, float] = field(default_factory=dict)
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    grad_norms_every: Annotated[int, at_least(0, ", 0 for never")] = 100
    checkpoint_every: Count = 500
    log_every: Count = 10
    validation_every: Annotated[int, at_least(0, ", 0 for never")] = 0
    validation_prompts: tuple[str, ...] = ()
    validation_classes: tuple[int, ...] = ()
    report_to: tuple[str, ...] = ()
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields("recovery", self)
        negative = [name for name, weight in self.weights.items() if weight < 0]
        require(not negative, f"recovery weights of {', '.join(negative)} are below 0; give numbers of at least 0")
        micro = f"recovery batch_size is {self.batch_size}, which is not divisible by accumulation {self.accumulation}"
        require(self.batch_size % self.accumulation == 0, f"{micro}; give a multiple of it")


@dataclass(frozen=True)
class WarmupConfig:
    """How new labels are trained before anything is ranked; other settings are those of recovery.

    Attributes:
        steps: optimizer steps.
        learning_rate: learning rate of AdamW.
        train: labels trains the labels alone, so that the ranking judges the pretrained weights; all also adapts the
            other weights, for data that differ much from the pretrained model's.
    """

    steps: Count = 500
    learning_rate: Annotated[float, above(0)] = 1e-3
    train: WarmupPart = "labels"

    def __post_init__(self) -> None:
        check_fields("warmup", self)
