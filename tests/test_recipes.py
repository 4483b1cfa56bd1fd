"""Recipes, and how options of the command line change them."""

from dataclasses import asdict, replace

import pytest
import tyro

from secateur.base.errors import SecateurError
from secateur.commands.grammar import Grammar
from secateur.criteria import DiffPruningOptions, GradientFlowOptions, ScoringConfig, TaylorOptions
from secateur.recipes import RECIPES, for_target, recipe_named, resolve
from secateur.recovery import JacobianConfig, RecoveryConfig
from secateur.schedules import CutConfig, parse_target


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("objective", ["denoising", "distillation", "rms-distillation", "first-order", "2ndmatch"])
def test_another_objective_comes_with_its_own_weights(name: str, objective: str) -> None:
    own = recipe_named(name).recovery
    found = resolve(name, objective=objective).recovery
    same = objective == own.objective
    without_noise = own.weights.get("denoising") == 0 and objective != "denoising"
    assert found.weights == (own.weights if same else {"denoising": 0.0} if without_noise else {})
    assert found.jacobian == (own.jacobian if same else JacobianConfig())


def test_the_papers_recipes_are_literal_and_variants_say_so() -> None:
    assert recipe_named("2ndmatch").recovery.jacobian == JacobianConfig()
    assert recipe_named("2ndmatch").recovery.weights == {}
    assert recipe_named("2ndmatch-balanced").recovery.jacobian.relative
    assert not recipe_named("gradient-flow").progressive.coarse
    assert recipe_named("gradient-flow-preserve").progressive.coarse
    assert (recipe_named("entpruner").criterion, recipe_named("entpruner-deviation").criterion) == ("ced", "deviation")


@pytest.mark.parametrize("paper", ["diff-pruning", "2ndmatch", "gradient-flow", "entpruner"])
def test_every_papers_recipe_has_a_compensated_variant(paper: str) -> None:
    literal, ours = recipe_named(paper), recipe_named(f"{paper}-compensated")
    assert (ours.compensates, ours.records, literal.compensates, literal.records) == (True, True, False, False)
    assert ours.recovery.weights["denoising"] == 0
    assert ours.recovery.objective == ("2ndmatch" if paper == "2ndmatch" else "distillation")
    same = {"name", "compensates", "records", "recovery"}
    assert {k: v for k, v in asdict(ours).items() if k not in same} == {
        k: v for k, v in asdict(literal).items() if k not in same
    }


def test_another_criterion_comes_with_its_own_options() -> None:
    assert resolve("gradient-flow").scoring.options == GradientFlowOptions(mode="increase")
    assert resolve("gradient-flow-preserve").scoring.options == GradientFlowOptions(mode="preserve")
    assert resolve("gradient-flow", criterion="taylor").scoring.options == TaylorOptions()
    given = ScoringConfig(num_timesteps=5, num_images=3, options={"threshold": 0.2})
    assert resolve("diff-pruning", scoring=given).scoring == replace(given, options=DiffPruningOptions(threshold=0.2))
    with pytest.raises(SecateurError, match="no option of magnitude called 'threshold'"):
        resolve("diff-pruning", criterion="magnitude", scoring=given)
    with pytest.raises(SecateurError, match="did you mean taylor"):
        resolve("diff-pruning", criterion="tylor")


def test_given_weights_are_kept_with_another_objective() -> None:
    given = replace(recipe_named("2ndmatch").recovery, weights={"distillation": 2.0})
    found = resolve("2ndmatch", objective="distillation", recovery=given).recovery
    assert (found.weights, found.jacobian) == ({"distillation": 2.0}, JacobianConfig())
    noisy = replace(recipe_named("default").recovery, weights={"denoising": 1.0})
    assert resolve("default", objective="distillation", recovery=noisy).recovery.weights == {"denoising": 1.0}


@pytest.mark.parametrize("recipe", ["diff-pruning", "2ndmatch", "decoder"])
def test_weights_have_one_spelling_for_every_recipe(recipe: str) -> None:
    own = recipe_named(recipe).recovery

    def parsed(*words: str) -> dict[str, float]:
        registry = Grammar(RecoveryConfig, {}).registry()
        return tyro.cli(RecoveryConfig, args=words, default=own, registry=registry).weights

    assert parsed("--weights", "denoising", "0", "distillation", "0.5") == {"denoising": 0.0, "distillation": 0.5}
    assert (parsed("--weights"), parsed()) == ({}, own.weights)
    for wrong in (["denoising"], ["denoising", "much"]):
        with pytest.raises(SystemExit):
            parsed("--weights", *wrong)


def test_a_shorter_run_has_a_shorter_warm_up() -> None:
    own = recipe_named("default").recovery
    assert resolve("default", steps=own.steps // 50).recovery.warmup_steps == own.warmup_steps // 50 > 0
    assert resolve("default", steps=2 * own.steps).recovery.warmup_steps == own.warmup_steps
    assert resolve("default", recovery=RecoveryConfig(steps=10, warmup_steps=7)).recovery.warmup_steps == 7


@pytest.mark.parametrize(
    ("target", "granularity", "criterion"),
    [("blocks=6", "width", "replacement"), ("macs=50%", "depth", "replacement"), ("macs=50%", "both", "auto")],
)
def test_left_to_choose_blocks_are_ranked_by_replacement(target: str, granularity: str, criterion: str) -> None:
    cut = CutConfig("auto", granularity)
    found = for_target(resolve("default", cut=cut), parse_target(target))
    few = ScoringConfig(num_timesteps=8, num_images=16) if criterion == "replacement" else None
    assert found == resolve("default", criterion=criterion, cut=cut, scoring=few)
    asked = ScoringConfig(num_timesteps=4, num_images=32)
    chosen = for_target(resolve("default", cut=cut, scoring=asked), parse_target(target)).scoring
    assert (chosen.num_timesteps, chosen.num_images) == (4, 32)
    named = resolve("diff-pruning", cut=cut)
    assert for_target(named, parse_target(target)) == named
    left = for_target(resolve("diff-pruning", criterion="auto", cut=cut), parse_target(target))
    assert left.scoring.num_timesteps == (8 if criterion == "replacement" else 32)
