"""Named recipes: functions that return one frozen config of criterion, cut, recovery and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from .base.errors import require_known
from .base.rules import Count, Seed
from .compensation import CompensationConfig
from .criteria import GradientFlowOptions, ScoringConfig, criterion_named
from .evaluation import EvaluationConfig, LatencyOptions
from .recovery import JacobianConfig, RecoveryConfig
from .recovery.objectives.build import can_leave_out_noise, needs_teacher
from .schedules import AdaptiveConfig, CutConfig, ProgressiveConfig, ScheduleName, Target, granularity_for
from .teacher import BookConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that `compress` does to a model, except which model, data and target.

    With `compensates`, what stays is refitted to the dense model after the cut, by the options `compensation`; with
    `records`, the dense model's answers are recorded before the recovery, by the options `book`.
    """

    name: str = "own"
    criterion: str = "diff-pruning"
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    schedule: ScheduleName = "one-shot"
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    cut: CutConfig = field(default_factory=CutConfig)
    compensates: bool = False
    compensation: CompensationConfig = field(default_factory=CompensationConfig)
    records: bool = False
    book: BookConfig = field(default_factory=BookConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


class RecipeArguments(TypedDict, total=False):
    """Arguments that replace parts of a recipe; what is left out, or None, stays as in the recipe.

    Attributes:
        criterion: which criterion ranks the units.
        schedule: one-shot cuts before recovery; progressive shrinks soft masks during recovery; adaptive decides during
            recovery how many blocks to remove.
        objective: what recovery minimizes.
        steps: recovery steps.
        seed: one seed for scoring, recovery and evaluation, which replaces their own.
        compensates: whether what stays is refitted to the dense model after every cut.
        records: whether the dense model's answers are recorded before recovery, which then trains on them many times.
        scoring, progressive, adaptive, cut, compensation, book, recovery, evaluation: options of the stages.
    """

    criterion: str | None
    schedule: ScheduleName | None
    objective: str | None
    steps: Count | None
    seed: Seed | None
    scoring: ScoringConfig | None
    progressive: ProgressiveConfig | None
    adaptive: AdaptiveConfig | None
    cut: CutConfig | None
    compensates: bool | None
    compensation: CompensationConfig | None
    records: bool | None
    book: BookConfig | None
    recovery: RecoveryConfig | None
    evaluation: EvaluationConfig | None


# Every stage scores again, so each scoring must be cheap.
BETWEEN_STAGES = ScoringConfig(num_timesteps=32, num_images=64)
# A quarter of the usual ones: in short runs the time that this saves is worth more (docs/benchmarks/objectives.md).
FEW_PASSES = ScoringConfig(num_timesteps=16, num_images=32)
# Each of them is used in some fifty passes.
FEW_TUPLES = ScoringConfig(num_timesteps=8, num_images=16)
# Training makes up for what a second round would gain, in less time (docs/benchmarks/objectives.md).
ONE_ROUND = CompensationConfig(rounds=1)
# Keeps the quality of the term at every step, at half its price (docs/benchmarks.md).
BALANCED: dict[str, Any] = {
    "weights": {"jacobian": 10 / 64},
    "jacobian": JacobianConfig(every_n=5, relative=True, auto_weight=True),
}
# The dense model's answer lacks the noise of the target, which dwarfs what a cut model still has to learn
# (docs/benchmarks.md).
WITHOUT_NOISE = {"denoising": 0.0}


def default() -> Recipe:
    """The recipe of `compress` by default: a cut by the criterion and the allocation that suit the model, refitted in
    closed form, then distilled from the teacher's book by Muon, by unsquared errors; the best of
    docs/benchmarks/objectives.md."""
    recovery = RecoveryConfig(
        steps=2000,
        batch_size=128,
        optimizer="muon",
        lr_schedule="cosine",
        warmup_steps=100,
        ema_decay=0.0,  # the last steps are so small that an average would only lag behind them
        objective="rms-distillation",
        weights=WITHOUT_NOISE,
    )
    return Recipe(
        criterion="auto",
        scoring=FEW_PASSES,
        cut=CutConfig(allocation="auto"),
        compensates=True,
        compensation=ONE_ROUND,
        records=True,
        recovery=recovery,
    )


def diff_pruning() -> Recipe:
    """Diff-Pruning: one shot, the same fraction everywhere, denoising fine-tuning (Adam, 2e-4, EMA).

    Scoring uses fewer timesteps than published; the published setting is `ScoringConfig(num_timesteps=0,
        num_images=128)`.
    """
    return Recipe(recovery=RecoveryConfig(steps=2000, batch_size=128, dropout=0.1))


def second_match() -> Recipe:
    """Diff-Pruning recovered by 2ndMatch (Zheng & Shlizerman 2026), with the published weight, the term at every step.

    The weight was chosen for 100,000 steps at 32x32 and larger.
    """
    return replace(diff_pruning(), recovery=replace(diff_pruning().recovery, objective="2ndmatch"))


def second_match_balanced() -> Recipe:
    """2ndMatch for small images and short runs: relative growths, at every fifth step, never above the other terms."""
    return replace(second_match(), recovery=replace(second_match().recovery, **BALANCED))


def progressive() -> Recipe:
    """Soft masks that shrink while the model trains, chosen by a few Taylor scorings: the best of our progressive
    runs."""
    return Recipe(
        criterion="taylor",
        scoring=BETWEEN_STAGES,
        schedule="progressive",
        progressive=ProgressiveConfig(stage_steps=20, coarse=True),
        recovery=diff_pruning().recovery,
    )


def gradient_flow() -> Recipe:
    """Progressive soft pruning by the rule of Wan et al. (2025); in parts a reconstruction.

    Removes the units whose removal raises the gradient norm most, ranked again at every stage. On every model of
    docs/benchmarks.md another ranking does better.
    """
    literal = replace(BETWEEN_STAGES, options=GradientFlowOptions(mode="increase"))
    schedule = ProgressiveConfig(stage_steps=20)
    return replace(progressive(), criterion="gradient-flow", scoring=literal, progressive=schedule)


def gradient_flow_preserve() -> Recipe:
    """As `gradient-flow`, but removes the units that change the gradient norm least, by three rankings."""
    return replace(progressive(), criterion="gradient-flow")


def entpruner() -> Recipe:
    """EntPruner (Li et al. 2025), a reconstruction: removes blocks of DiT and SiT in stages, by conditional entropy."""
    return Recipe(
        criterion="ced",
        schedule="adaptive",
        cut=CutConfig(granularity="depth"),
        recovery=diff_pruning().recovery,
    )


def entpruner_deviation() -> Recipe:
    """As `entpruner`, but removes the blocks that change the prediction least, a better ranking in
    docs/benchmarks.md."""
    return replace(entpruner(), criterion="deviation")


def depth() -> Recipe:
    """Removes the blocks that change the prediction least, in one shot: the best ranking of blocks in the mean of our
    runs."""
    return replace(entpruner_deviation(), schedule="one-shot")


def taylor() -> Recipe:
    """Plain Taylor importance over all timesteps, otherwise as `diff-pruning`."""
    return Recipe(criterion="taylor", recovery=diff_pruning().recovery)


def magnitude() -> Recipe:
    """Magnitude, otherwise as `diff-pruning`."""
    return Recipe(criterion="magnitude", recovery=diff_pruning().recovery)


def random() -> Recipe:
    """Random units, otherwise as `diff-pruning`: the baseline that every ranking must beat."""
    return Recipe(criterion="random", recovery=diff_pruning().recovery)


def compensated(recipe: Recipe) -> Recipe:
    """`recipe` with our two additions: what stays is refitted after every cut, and recovery trains on the teacher's
    book.

    The loss has no term with the denoising target; if it has none with the dense model's answer yet, that is added.
    """
    recovery = recipe.recovery
    objective = "distillation" if recovery.objective == "denoising" else recovery.objective
    alone = replace(recovery, objective=objective, weights=recovery.weights | WITHOUT_NOISE)
    return replace(recipe, compensates=True, records=True, recovery=alone)


def diff_pruning_compensated() -> Recipe:
    """Diff-Pruning with a closed-form refit of what stays, and a recovery on the teacher's book."""
    return compensated(diff_pruning())


def second_match_compensated() -> Recipe:
    """2ndMatch with a closed-form refit of what stays, and a recovery on the teacher's book."""
    return compensated(second_match())


def gradient_flow_compensated() -> Recipe:
    """As `gradient-flow`, with a closed-form refit after every cut, and a recovery on the teacher's book."""
    return compensated(gradient_flow())


def entpruner_compensated() -> Recipe:
    """As `entpruner`, with a closed-form refit after every cut, and a recovery on the teacher's book."""
    return compensated(entpruner())


def decoder() -> Recipe:
    """For the decoder of a VAE: Diff-Pruning at its one timestep, distilled from the dense decoder's output.

    Batches are small, since samples are whole images.
    """
    return Recipe(
        scoring=ScoringConfig(batch_size=8),
        recovery=RecoveryConfig(steps=2000, batch_size=8, objective="distillation", weights=WITHOUT_NOISE),
        evaluation=EvaluationConfig(batch_size=8, latency=LatencyOptions(batch_sizes=(1,))),
    )


def quickstart() -> Recipe:
    """A small `default`, by Diff-Pruning and squared errors: compresses the embedded U-Net in under two minutes on two
    CPU cores."""
    return Recipe(
        scoring=ScoringConfig(num_timesteps=16, num_images=64),
        compensates=True,
        records=True,
        recovery=RecoveryConfig(
            steps=150,
            batch_size=64,
            optimizer="muon",
            learning_rate=1e-3,
            warmup_steps=20,
            checkpoint_every=50,
            lr_schedule="cosine",
            objective="distillation",
            weights=WITHOUT_NOISE,
        ),
        evaluation=EvaluationConfig(num_images=500, num_inference_steps=20),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "default": default,
    "diff-pruning": diff_pruning,
    "2ndmatch": second_match,
    "progressive": progressive,
    "gradient-flow": gradient_flow,
    "entpruner": entpruner,
    "depth": depth,
    "taylor": taylor,
    "magnitude": magnitude,
    "random": random,
    "decoder": decoder,
    "quickstart": quickstart,
    "2ndmatch-balanced": second_match_balanced,
    "gradient-flow-preserve": gradient_flow_preserve,
    "entpruner-deviation": entpruner_deviation,
    "diff-pruning-compensated": diff_pruning_compensated,
    "2ndmatch-compensated": second_match_compensated,
    "gradient-flow-compensated": gradient_flow_compensated,
    "entpruner-compensated": entpruner_compensated,
}
"""The named recipes: for each name, a function that returns the recipe."""


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        SecateurError: there is none; the message lists the names.
    """
    require_known("recipe", name, RECIPES)
    return replace(RECIPES[name](), name=name)


def resolve(
    recipe: str | Recipe,
    *,
    steps: int | None = None,
    objective: str | None = None,
    seed: int | None = None,
    **parts: Any,
) -> Recipe:
    """The recipe with some parts replaced by those arguments that are not None; `parts` are fields of `Recipe`.

    Options, loss weights and Jacobian settings that the recipe chose for its own criterion or objective are not kept
    for another one, but a recipe without the noisy target has none with another objective either, if that can do
    without. With fewer steps than the recipe's, its warm-up keeps its share of them.

    Raises:
        SecateurError: there is no such recipe or criterion, or the criterion has no such options.
    """
    named = recipe_named(recipe) if isinstance(recipe, str) else recipe
    chosen = replace(named, **without_none(parts))
    criterion, scoring = criterion_named(chosen.criterion), chosen.scoring
    if scoring.options is None and criterion.name == named.criterion:
        scoring = replace(scoring, options=named.scoring.options)
    elif scoring.options == named.scoring.options and criterion.name != named.criterion:
        scoring = replace(scoring, options=None)
    recovery = replace(chosen.recovery, **without_none({"steps": steps, "objective": objective}))
    if recovery.warmup_steps == named.recovery.warmup_steps and recovery.steps < named.recovery.steps:
        shorter = named.recovery.warmup_steps * recovery.steps // named.recovery.steps
        recovery = replace(recovery, warmup_steps=shorter)
    if recovery.objective != named.recovery.objective:
        if recovery.weights == named.recovery.weights:
            recovery = replace(recovery, weights=_kept_weights(named.recovery, recovery.objective))
        if recovery.jacobian == named.recovery.jacobian:
            recovery = replace(recovery, jacobian=JacobianConfig())
    seeds = without_none({"seed": seed})
    return replace(
        chosen,
        scoring=replace(criterion.configured(scoring), **seeds),
        recovery=replace(recovery, **seeds),
        evaluation=replace(chosen.evaluation, **seeds),
        records=chosen.records and needs_teacher(recovery.objective),
    )


def _kept_weights(recovery: RecoveryConfig, objective: str) -> dict[str, float]:
    """The loss weights that remain when `objective` replaces that of `recovery`: those without the noisy target."""
    without_noise = recovery.weights.items() >= WITHOUT_NOISE.items() and can_leave_out_noise(objective)
    return WITHOUT_NOISE if without_noise else {}


def for_target(recipe: Recipe, target: Target) -> Recipe:
    """The recipe with the criterion that suits blocks, where `auto` was left to choose and only blocks are removed."""
    if recipe.criterion != "auto" or granularity_for(target, recipe.cut) != "depth":
        return recipe
    scoring, usual = recipe.scoring, ScoringConfig(num_timesteps=criterion_named("auto").timesteps)
    unasked = {(own.num_timesteps, own.num_images) for own in (FEW_PASSES, usual)}
    if (scoring.num_timesteps, scoring.num_images) in unasked:
        scoring = replace(scoring, num_timesteps=FEW_TUPLES.num_timesteps, num_images=FEW_TUPLES.num_images)
    return resolve(recipe, criterion="replacement", scoring=scoring)


def finetuning_config(
    recovery: RecoveryConfig | None, teacher: bool, steps: int | None = None, objective: str | None = None
) -> RecoveryConfig:
    """How `finetune` trains: by `recovery`, or as `compress` does by default; without a teacher, with objective
    denoising."""
    if recovery is not None:
        return replace(recovery, **without_none({"steps": steps, "objective": objective}))
    alone = None if teacher else "denoising"
    return resolve("default", steps=steps, objective=objective or alone).recovery


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
