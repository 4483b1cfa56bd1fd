"""The ways to cut and recover a model that recipes.py compares, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import secateur
from bench import CUT, RECOVERY
from secateur import CompensationConfig, CutConfig, EvaluationConfig, Recipe, RecoveryConfig, ScoringConfig

TUPLES_OF_BLOCKS = {"replacement": ScoringConfig(num_images=16)}  # by criterion, as the package has it
READINGS = 4  # of every tuple of a book, in longer recoveries
SMALL = ScoringConfig(num_timesteps=8, num_images=8)  # ten full ones by second derivatives would take all the time
HARDLY = EvaluationConfig(metrics=("loss",), num_images=2, num_real_images=2)  # the benchmark measures afterwards


@dataclass(frozen=True)
class Method:
    """How a model is cut (widths by the usual criterion and scoring, if none are given; blocks by `blocks`) and
    recovered: with or without a refit, from a book or a live teacher, and by which settings."""

    recovery: RecoveryConfig = RECOVERY
    refits: bool = True
    records: bool = False
    criterion: str | None = None
    blocks: str = "deviation"
    cut: CutConfig = CUT
    scoring: ScoringConfig | None = None
    compensation: CompensationConfig | None = None
    only_blocks: bool = False  # widths would be cut as by another method
    fewest: int = 4096  # tuples of a book, if the recovery draws as many
    least_steps: ClassVar[int] = 2

    def suits(self, target: str) -> bool:
        """Whether `target` is for this method."""
        return target.startswith("blocks") or not self.only_blocks

    def tuples(self, steps: int) -> int:
        """How many tuples a book has for `steps` steps, by the rule of the package (docs/teachers-book.md)."""
        drawn = steps * self.recovery.batch_size
        return max(min(drawn, self.fewest), math.ceil(drawn / READINGS))


@dataclass(frozen=True)
class Staged:
    """A recipe of the package that cuts while it trains; its time is measured in whole runs."""

    recipe: Recipe
    least_steps: ClassVar[int] = 20  # for all stages

    @property
    def refits(self) -> bool:
        return self.recipe.compensates

    def suits(self, target: str) -> bool:
        """Whether the recipe removes what `target` counts: blocks, or widths."""
        return target.startswith("blocks") == (self.recipe.cut.granularity == "depth")

    def at(self, steps: int, seed: int) -> Recipe:
        """The recipe in a run of `steps` steps: as long a part of it is spent on the stages."""
        recipe, recovery = self.recipe, self.recipe.recovery
        apart = max(1, round(recipe.progressive.stage_steps * steps / recovery.steps))
        return replace(
            recipe,
            scoring=replace(recipe.scoring, seed=seed),
            progressive=replace(recipe.progressive, stage_steps=apart),
            recovery=replace(recovery, steps=steps, seed=seed, batch_size=RECOVERY.batch_size),
            evaluation=HARDLY,
        )


def recipe_of_package(name: str) -> Method:
    """A recipe as the package has it, but for the batch size, which all methods share."""
    recipe = secateur.recipe_named(name)
    warmup = RECOVERY.warmup_steps if recipe.recovery.warmup_steps else 0  # as much of so short a run
    recovery = replace(recipe.recovery, batch_size=RECOVERY.batch_size, warmup_steps=warmup)
    return Method(
        recovery,
        refits=recipe.compensates,
        records=recipe.records,
        criterion=recipe.criterion,
        cut=recipe.cut,
        scoring=recipe.scoring,
        compensation=recipe.compensation,
    )


def staged_recipe(name: str) -> Staged:
    """A recipe of the package that cuts while it trains; that of gradient flow with small rankings."""
    recipe = secateur.recipe_named(name)
    small = replace(recipe.scoring, num_timesteps=SMALL.num_timesteps, num_images=SMALL.num_images)
    return Staged(replace(recipe, scoring=small) if recipe.schedule == "progressive" else recipe)


ALONE = replace(RECOVERY, objective="distillation", weights={"denoising": 0.0})
BALANCED = secateur.recipe_named("2ndmatch-balanced").recovery
SECOND_MATCH: dict[str, Any] = {"objective": "2ndmatch", "jacobian": BALANCED.jacobian}
DEFAULT = replace(recipe_of_package("default"), blocks="replacement")
RANKINGS = ("deviation", "ced", "cosine", "uniform")  # of blocks
BY_DIFF_PRUNING = replace(DEFAULT, criterion="diff-pruning", cut=CUT)
TWO_ROUNDS = replace(BY_DIFF_PRUNING, compensation=None)  # U-Nets are refitted in one anyway
FEW_PASSES = DEFAULT.scoring
SQUARED, EMA = replace(DEFAULT.recovery, objective="distillation"), {"ema_decay": RECOVERY.ema_decay}
BEST = Method(replace(ALONE, optimizer="muon"), records=True)
RECIPES = ("diff-pruning", "diff-pruning-compensated", "2ndmatch", "2ndmatch-compensated")
STAGED_RECIPES = ("gradient-flow", "gradient-flow-compensated", "entpruner", "entpruner-compensated")
BEST_NAME, CRITERIA = "refitted, book, Muon", ("taylor", "magnitude", "reconstruction", "random")
ONE_SHOT: dict[str, Method] = {
    "plain": Method(refits=False),
    "plain, few passes": Method(refits=False, scoring=FEW_PASSES),
    "plain, Muon": Method(replace(RECOVERY, optimizer="muon"), refits=False),
    "2ndmatch": Method(replace(RECOVERY, objective="2ndmatch"), refits=False),
    "2ndmatch-balanced": Method(replace(RECOVERY, **SECOND_MATCH, weights=BALANCED.weights), refits=False),
    "distilled": Method(ALONE, refits=False),
    "refitted, plain": Method(),
    "refitted, distilled": Method(ALONE),
    "refitted, distilled, Muon": Method(replace(ALONE, optimizer="muon")),
    "refitted, with denoising": Method(replace(ALONE, weights={})),
    "refitted, features": Method(replace(ALONE, objective="features")),
    "refitted, features, teacher's inputs": Method(
        replace(ALONE, objective="features", features=secateur.FeaturesConfig(teacher_inputs=True))
    ),
    "refitted, features, massive ones too": Method(
        replace(ALONE, objective="features", features=secateur.FeaturesConfig(massive=None))
    ),
    "refitted, features, Muon": Method(replace(ALONE, objective="features", optimizer="muon")),
    "refitted, 2ndMatch": Method(replace(ALONE, **SECOND_MATCH, weights=BALANCED.weights | {"denoising": 0.0})),
    "refitted, book": Method(ALONE, records=True),
    BEST_NAME: BEST,
    f"{BEST_NAME}, 2,048 tuples": replace(BEST, fewest=2048),
    **{f"{BEST_NAME}, {name}": replace(BEST, criterion=name) for name in CRITERIA},
    **{f"recipe {name}": recipe_of_package(name) for name in RECIPES},
    "recipe default, squared errors, EMA": replace(TWO_ROUNDS, recovery=replace(SQUARED, **EMA)),
    "recipe default, squared errors": replace(TWO_ROUNDS, recovery=SQUARED),
    "recipe default, EMA": replace(TWO_ROUNDS, recovery=replace(DEFAULT.recovery, **EMA)),
    "recipe default, two rounds": TWO_ROUNDS,
    "recipe default, diff-pruning, local": BY_DIFF_PRUNING,
    "recipe default, magnitude, local": replace(DEFAULT, criterion="magnitude", cut=CUT),
    "recipe default, Muon's rate doubled": replace(
        DEFAULT, recovery=replace(DEFAULT.recovery, muon_learning_rate=6e-3)
    ),
    "recipe default, AdamW's rate doubled": replace(DEFAULT, recovery=replace(DEFAULT.recovery, learning_rate=4e-4)),
    **{f"recipe default, {name}": replace(DEFAULT, blocks=name, only_blocks=True) for name in RANKINGS},
    "recipe default": DEFAULT,
}
STAGED = {f"recipe {name}": staged_recipe(name) for name in STAGED_RECIPES}
METHODS: dict[str, Method | Staged] = ONE_SHOT | STAGED
MAIN = (
    "plain",
    "plain, few passes",
    "refitted, distilled",
    "refitted, features",
    BEST_NAME,
    *(f"recipe {name}" for name in RECIPES + STAGED_RECIPES),
    "recipe default",
)
"""The methods of the first table; the others vary one part of one of these."""
