"""The options of all criteria."""

from dataclasses import dataclass
from typing import Literal

from ..base.errors import require, require_one_of
from .ranking import ElementReduction, GroupReduction

CriterionName = Literal[
    "random",
    "magnitude",
    "taylor",
    "diff-pruning",
    "gradient-flow",
    "ced",
    "deviation",
    "uniform",
    "cosine",
    "loss-change",
]
TimestepReduction = Literal["sum-then-abs", "abs-then-sum"]
GradientFlowMode = Literal["increase", "preserve"]
TimestepWeights = Literal["inverse-gradient", "uniform"]
HessianProduct = Literal["exact", "finite-difference"]
CedPooling = Literal["stratified", "pooled"]
CedOutput = Literal["sample", "prediction"]


@dataclass(frozen=True)
class ScoringConfig:
    """How a criterion scores units.

    Attributes:
        threshold: diff-pruning stops at the first timestep whose loss is below this fraction of the largest so far.
            0.05 was best on CIFAR-10, 0 on CelebA, 0.01 on LSUN (Diff-Pruning, section 4): look at the loss curve.
        timestep_reduction: gradients summed over timesteps before the absolute value (the released code) or after it
            (the paper's formula); taylor and diff-pruning only. The second takes one backward pass per timestep.
        element_reduction: abs or square of each w g (or w).
        group_reduction: sum over a unit's entries, or mean per layer normalized by the layer's own mean; gradient-flow
            always sums, since its scores have signs.
        gradient_flow_mode: preserve removes first what changes the gradient norm least, increase what raises it most
            (the rule of Wan et al., by far the worse one in docs/benchmarks.md).
        timestep_weights: gradient-flow weighs timestep t by 1 / ||g_t||^2 (inverse-gradient) or by 1 (uniform).
        hessian_product: gradient-flow finds H g by double backward (exact), or from two more gradients
            (finite-difference), which takes less memory and any attention kernel.
        ced_pooling: ced averages the shifts of the timestep bins (stratified), or takes one shift over all (pooled).
        ced_output: ced takes the spread of the clean sample that the network predicts (sample), or of its prediction as
            it is (prediction), which is what deviation always looks at.
        num_timesteps: evenly spaced calibration timesteps; 0 takes every one of the process (gradient-flow: 32). For
            ced, deviation, cosine and loss-change: bins, each image once in each at a random timestep (0: 8).
        num_images: calibration images, all used at every timestep.
        batch_size: (image, timestep) pairs in one pass; changes speed and memory only.
        seed: draws the calibration images, their noise, and random scores.
    """

    threshold: float = 0.05
    timestep_reduction: TimestepReduction = "sum-then-abs"
    element_reduction: ElementReduction = "abs"
    group_reduction: GroupReduction = "sum"
    gradient_flow_mode: GradientFlowMode = "preserve"
    timestep_weights: TimestepWeights = "inverse-gradient"
    hessian_product: HessianProduct = "exact"
    ced_pooling: CedPooling = "stratified"
    ced_output: CedOutput = "sample"
    num_timesteps: int = 0
    num_images: int = 128
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.threshold <= 1, f"scoring threshold is {self.threshold}; give 0 to 1")
        for name, value, choices in (
            ("timestep_reduction", self.timestep_reduction, TimestepReduction),
            ("element_reduction", self.element_reduction, ElementReduction),
            ("group_reduction", self.group_reduction, GroupReduction),
            ("gradient_flow_mode", self.gradient_flow_mode, GradientFlowMode),
            ("timestep_weights", self.timestep_weights, TimestepWeights),
            ("hessian_product", self.hessian_product, HessianProduct),
            ("ced_pooling", self.ced_pooling, CedPooling),
            ("ced_output", self.ced_output, CedOutput),
        ):
            require_one_of(f"scoring {name}", value, choices)
        require(self.num_timesteps >= 0, f"scoring num_timesteps is {self.num_timesteps}; give 0 (all) or more")
        require(self.num_images >= 1, f"scoring num_images is {self.num_images}; give at least 1")
        require(self.batch_size >= 1, f"scoring batch_size is {self.batch_size}; give at least 1")
