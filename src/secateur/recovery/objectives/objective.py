"""The definition of a recovery objective: a pure function that computes its terms, their weights, and what it needs.

Errors are means over pixels and batch, so their weights mean the same at every resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ...base.rules import Count, check_fields
from ...models.jacobian import Projection, higher_order
from ...teacher import Contents
from ...teacher.config import JacobianAnswer

Terms = dict[str, Tensor]
TermsFunction = Callable[..., Terms]  # of student, teacher, process, draw and JacobianConfig
DENOISING_TERM, JACOBIAN_TERM = "denoising", "jacobian"  # terms that a weight of 0, or some steps, may leave out
MATCHED = {DENOISING_TERM: 1.0, "distillation": 1.0}  # weights of the terms that all objectives with a teacher share
FORWARD, TRAINING = 1, 3  # passes: a backward pass costs twice a forward one
# Cost of a projection, for student and teacher, as counted by benchmarks/recovery_cost.py.
PROJECTING: dict[Projection, tuple[int, int]] = {"vjp": (3, 1), "jvp": (6, 2)}


@dataclass(frozen=True)
class JacobianConfig:
    """Options of the objectives with an input Jacobian: 2ndmatch and first-order.

    Attributes:
        projection: vjp compares J'v, as the released code does; jvp compares Jv, as the paper writes, at a higher
            price. The two agree where J is symmetric, as for an exact score.
        directions: random directions per sample; their squared differences use the mean growth over them.
        every_n: use the Jacobian term at every n-th step only, with n times its weight.
        every_n_samples: use it for every n-th sample of the batch only; n must divide the parts of a batch that is
            divided between processes or micro-batches.
        relative: divide the difference in growth by the teacher's, so that timesteps with little noise do not dominate
            (2ndmatch only: first-order compares no growths).
        auto_weight: over the first 10 steps that have the term, and again after every cut, lower its weight until its
            gradient norm is at most that of the other terms: for data other than the paper's.
    """

    projection: Projection = "vjp"
    directions: Count = 1
    every_n: Count = 1
    every_n_samples: Count = 1
    relative: bool = False
    auto_weight: bool = False

    def __post_init__(self) -> None:
        check_fields("jacobian", self)


@dataclass(frozen=True)
class Objective:
    """Terms to compute and the weight of each.

    Attributes:
        name: its name on the command line and in files.
        terms: computes them, by name.
        weights: the weight of every term.
        needs_teacher: whether `terms` asks the teacher.
        terms_without_jacobian: for an objective that differentiates twice: computes all terms but "jacobian", for steps
            that leave it out. None for other objectives.
        jacobian: options of that term.
        denoising_optional: whether `terms` accepts `denoising=False`, which leaves out the term "denoising" (weight 0).
        teacher_jacobian: which of the teacher's Jacobian answers `terms` asks for, as a book records them.
        compares_blocks: whether `terms` compares hidden states of blocks, which a book then records.
        compiles: whether `terms` needs only outputs and first derivatives of the student, as a compiled network has
            them.
        options: fields of the recovery's config that `terms` takes by name.
    """

    name: str
    terms: TermsFunction
    weights: Mapping[str, float]
    needs_teacher: bool = False
    terms_without_jacobian: TermsFunction | None = None
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    denoising_optional: bool = False
    teacher_jacobian: JacobianAnswer = "none"
    compares_blocks: bool = False
    compiles: bool = False
    options: tuple[str, ...] = ()

    @property
    def differentiates_twice(self) -> bool:
        return self.terms_without_jacobian is not None

    def context(self) -> AbstractContextManager[None]:
        """The context in which a step's forward and backward passes must run."""
        return higher_order(self.jacobian.projection) if self.differentiates_twice else nullcontext()

    def without_denoising(self) -> Objective:
        """The objective without the process's noisy target."""
        weights = {name: value for name, value in self.weights.items() if name != DENOISING_TERM}
        simpler = replace(self, terms=partial(self.terms, denoising=False), weights=weights)
        if self.terms_without_jacobian is None:
            return simpler
        return replace(simpler, terms_without_jacobian=partial(self.terms_without_jacobian, denoising=False))

    @property
    def balances(self) -> bool:
        return self.differentiates_twice and self.jacobian.auto_weight and self.weights[JACOBIAN_TERM] > 0

    def at(self, step: int) -> Objective:
        """The objective of optimizer step `step` (0, 1, ...): every n-th step has the Jacobian term, with n times its
        weight."""
        if self.terms_without_jacobian is None:
            return self
        every_n = self.jacobian.every_n
        if (step + 1) % every_n:  # counted as in the log, so that its lines coincide with the term
            weights = {name: value for name, value in self.weights.items() if name != JACOBIAN_TERM}
            return replace(self, terms=self.terms_without_jacobian, weights=weights, terms_without_jacobian=None)
        return self.weighted({JACOBIAN_TERM: every_n * self.weights[JACOBIAN_TERM]})

    def weighted(self, weights: Mapping[str, float]) -> Objective:
        """The objective with `weights` instead of its own."""
        return replace(self, weights={**self.weights, **weights})

    def scaled(self, factor: float) -> Objective:
        """The objective with `factor` times the weight of its Jacobian term, if it has one."""
        return self.weighted({name: factor * value for name, value in self.weights.items() if name == JACOBIAN_TERM})

    def loss(self, terms: Terms) -> Tensor:
        """Weighted sum of `terms`, a scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def passes(self) -> tuple[float, float]:
        """Cost of one sample's step, in forward passes of student and of teacher, averaged over the steps."""
        share = 1 / (self.jacobian.every_n * self.jacobian.every_n_samples) if self.differentiates_twice else 0.0
        student, teacher = (
            share * self.jacobian.directions * passes for passes in PROJECTING[self.jacobian.projection]
        )
        return TRAINING + student, FORWARD + teacher if self.needs_teacher else 0.0


def recording_passes(contents: Contents) -> float:
    """Cost of recording one tuple of a book, in forward passes of the teacher."""
    return FORWARD + contents.directions * PROJECTING[contents.projection][1]
