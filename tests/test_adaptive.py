"""Adaptive block pruning: the proxies by their definitions, decisions by the rule, and a stopped run that ends so."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import secateur
from models import dit, inputs_for, output, pixart, sd3, sdxl, unet
from secateur.cli import main
from secateur.conditions import conditions_of, rows
from secateur.criteria import ScoringConfig
from secateur.data import Batch
from secateur.errors import SecateurError, TrainingError
from secateur.process import DiffusionProcess, FlowProcess, predict
from secateur.recovery import RecoveryConfig, recover
from secateur.recovery.checkpoints import TrainingState, newest_checkpoint
from secateur.recovery.ema import Ema, decay_at, warm_decay
from secateur.recovery.surgery import cut_training_state
from secateur.schedules import Adaptive, AdaptiveConfig, CutConfig, Target, block_cuts, one_shot, parse_target
from secateur.schedules.adaptive import Candidate, candidate_counts, choose, objective, standardized
from secateur.schedules.progressive import Scored
from secateur.schedules.proxies import (
    Judgement,
    ProxyBatch,
    judge,
    log_condition_number,
    ntk_gram,
    proxy_batches,
    weighted_layers,
    zico,
)
from secateur.structure import Cut, describe, masked, without_blocks
from secateur.structure.cost import cost_model
from test_recovery_trainer import Failing, assert_same, images, log

DEPTH = CutConfig(granularity="depth")
CONFIG = RecoveryConfig(steps=8, batch_size=4, learning_rate=3e-3, checkpoint_every=2, log_every=1)


def sit(layers=8):
    return dit(num_layers=layers)


def no_latency(model, structure):
    def measure(cut):
        raise AssertionError

    return measure


def macs_of(model):
    return cost_model(model, describe(model), inputs_for(model))({}).macs


def by_order(*order):
    """A scorer for which the blocks at these places of the dense model leave first, in this order."""

    def scorer(model):
        names = list(describe(model).blocks)
        return Scored({name: torch.tensor([float(order.index(i))]).double() for i, name in enumerate(names)})

    return scorer


def random_scorer(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def scorer(model):
        return Scored({name: torch.rand(1, generator=generator).double() for name in describe(model).blocks})

    return scorer


def depth_scorer(model):
    """Blocks with smaller weights leave first: a pure function of the model, so that a resume repeats it."""
    return Scored(
        {
            name: model.get_submodule(name).ff.net[2].weight.detach().double().norm().reshape(1)
            for name in describe(model).blocks
        }
    )


def by_weights(model):
    """A judgement that is quick, and a pure function of the model."""
    norms = [block.ff.net[0].proj.weight.detach().double().norm().item() for block in model.transformer_blocks]
    return Judgement(1.0, sum(norms) / len(norms), max(norms))


def adaptive(model, target="blocks=3", scorer=depth_scorer, judged=by_weights, steps=8, **changes):
    config = AdaptiveConfig(**changes)
    goal = parse_target(target)
    dense = {"macs": macs_of(model), "params": sum(p.numel() for p in model.parameters())}.get(goal.metric, 1.0)
    amount = Target(goal.metric, goal.amount(dense), is_fraction=False)
    return Adaptive(
        config,
        config.boundaries(steps),
        block_cuts(amount, DEPTH, no_latency),
        scorer,
        judged,
        macs_of(model),
        {"target": target},
        {"target": target},
        "dense",
    )


def decisions(pruner, model):
    """All decisions for a model that is not trained in between, what is remembered gone through JSON."""
    pruning, found = {}, []
    for step in pruner.boundaries:
        assert pruner.due(step)
        decision = pruner.decide(model, model, pruning, step)
        if decision.cut is not None:
            model = without_blocks(model, describe(model), decision.cut.removed_blocks)
        found.append(decision)
        pruning = json.loads(json.dumps(decision.pruning))
    return found, model


# ------------------------------------------------------------------------------------------------ proxies


def batch_for(model, count=4, seed=0):
    inputs = inputs_for(model, count, seed)
    sample = inputs.get("sample", inputs.get("hidden_states"))
    return ProxyBatch(sample, torch.zeros_like(sample), inputs["timestep"], conditions_of(inputs))


def doubled(model, batch):
    return model.double().eval(), replace(batch, noisy=batch.noisy.double(), target=batch.target.double())


def explicit_gradients(model, batch, signs):
    """Gradients (N, entries) of <output_i, r>, one backward pass for each sample."""
    found = []
    for i in range(len(batch.noisy)):
        one = slice(i, i + 1)
        out = predict(model, batch.noisy[one], batch.timesteps[one], rows(batch.conditions, one))
        parameters = [p for layer in weighted_layers(model).values() for p in layer.parameters()]
        gradients = torch.autograd.grad((out * signs).sum(), parameters, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    return torch.stack(found)


@pytest.mark.parametrize("build", [unet, lambda: dit(out_channels=2)])
def test_the_gram_matrix_is_that_of_explicit_gradients(build):
    model, batch = doubled(build(), batch_for(build()))
    generator = torch.Generator().manual_seed(7)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(3):
        signs = torch.randint(0, 2, batch.noisy.shape[1:], generator=generator).double() * 2 - 1
        gradients = explicit_gradients(model, batch, signs)
        expected += gradients @ gradients.T / 3
    found = ntk_gram(model, batch, draws=3, seed=7)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_gram_matrix_counts_a_layer_that_runs_twice_once():
    """The head of a DiT calls the first block's embedding again; its gradient is the sum of both calls'."""
    model, batch = doubled(dit(), batch_for(dit()))
    layer = model.transformer_blocks[0].norm1.emb.timestep_embedder.linear_1
    for name, other in weighted_layers(model).items():
        other.requires_grad_(name.startswith("transformer_blocks.0.norm1.emb"))
    assert layer.weight.requires_grad
    signs = torch.randint(0, 2, batch.noisy.shape[1:], generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    gradients = explicit_gradients(model, batch, signs)
    torch.testing.assert_close(ntk_gram(model, batch, draws=1, seed=0), gradients @ gradients.T)


def test_the_condition_number_in_closed_form():
    orthogonal = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()).Q
    gram = orthogonal @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 5.0, 40.0]).double()) @ orthogonal.T
    assert log_condition_number(gram) == pytest.approx(math.log(40))
    singular = log_condition_number(torch.ones(3, 3))
    assert singular == pytest.approx(-math.log(np.finfo(np.float64).eps))
    assert math.isnan(log_condition_number(torch.zeros(3, 3)))
    assert math.isnan(log_condition_number(torch.full((3, 3), torch.nan).nan_to_num(0)))


def test_zico_is_its_definition():
    model, process = dit(), FlowProcess()
    batches = proxy_batches(process, images().batch(range(10)), seed=3)
    model.double()
    batches = [replace(b, noisy=b.noisy.double(), target=b.target.double()) for b in batches]
    gradients = {name: [] for name in weighted_layers(model)}
    expected_losses = []
    for batch in batches:
        error = predict(model, batch.noisy, batch.timesteps, batch.conditions) - batch.target
        loss = error.square().mean()
        expected_losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        for name, layer in weighted_layers(model).items():
            gradients[name].append(layer.weight.grad.numpy().copy())
    scores = []
    for values in map(np.stack, gradients.values()):
        deviation = values.std(0)
        varies = deviation > 0
        scores.append(np.log((np.abs(values).mean(0)[varies] / deviation[varies]).sum()))
    losses, score = zico(model, batches)
    assert losses == pytest.approx(expected_losses)
    assert score == pytest.approx(np.mean(scores), rel=1e-6)


def test_zico_of_frozen_layers_does_not_count():
    model = dit().requires_grad_(False)
    model.proj_out_2.requires_grad_(True)
    batches = proxy_batches(FlowProcess(), images().batch(range(4)), seed=0)
    assert math.isfinite(zico(model, batches)[1])
    model.requires_grad_(False)
    model.pos_embed.proj.bias.requires_grad_(True)  # something to differentiate, in no weight
    assert list(weighted_layers(model)) == []


def test_proxy_batches_cover_all_timesteps_and_depend_on_the_seed_alone():
    process, batch = FlowProcess(), images().batch(range(10))
    first, again, other = (proxy_batches(process, batch, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.noisy, two.noisy) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0].noisy, other[0].noisy)
    for part in first:
        assert torch.equal((part.timesteps / 1000 * 16).floor(), torch.arange(16.0))


def test_judging_leaves_the_model_as_it_was():
    model = dit().eval()
    before = copy.deepcopy(model)
    judged = judge(DiffusionProcess(), images().batch(range(8)), 0)
    assert judged(model) == judged(model)
    assert_same(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("build", [sit, unet])
def test_a_model_without_blocks_shares_its_tensors_and_equals_the_masked_one(build):
    model = build().eval()
    structure = describe(model)
    names = list(structure.blocks)[::2]
    smaller = without_blocks(model, structure, names)
    with masked(model, structure, {name: torch.zeros(1) for name in names}):
        expected = output(model)
    torch.testing.assert_close(output(smaller), expected, rtol=0, atol=1e-6)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in smaller.parameters())
    assert list(describe(model).blocks) == list(structure.blocks)


# ---------------------------------------------------------------------------------------------- decisions


def test_candidates_of_the_specification():
    """K = 4, P = 6: at most ceil(12 / 4) = 3 a stage, and no more left than the later stages can take."""
    assert candidate_counts(0, 6, 0, 4) == [0, 1, 2, 3]
    assert candidate_counts(0, 6, 1, 4) == [0, 1, 2, 3]
    assert candidate_counts(0, 6, 2, 4) == [3]
    assert candidate_counts(2, 6, 2, 4) == [3, 4, 5]
    assert candidate_counts(4, 6, 2, 4) == [4, 5, 6]
    assert candidate_counts(5, 6, 3, 4) == [6]
    assert candidate_counts(0, 6, 0, 1) == [6]
    assert candidate_counts(0, 14, 0, 4) == [0, 2, 4, 5, 7]


@given(st.integers(0, 40), st.integers(1, 8), st.data())
def test_any_choices_end_at_the_total(total, stages, data):
    gone, most = 0, math.ceil(2 * total / stages)
    for stage in range(stages):
        counts = candidate_counts(gone, total, stage, stages)
        assert counts == sorted(set(counts))
        assert 1 <= len(counts) <= 5
        assert gone <= counts[0]
        assert counts[-1] <= min(total, gone + most)
        gone = data.draw(st.sampled_from(counts))
    assert gone == total


def candidates(*numbers):
    """(count, loss, log condition number, ZiCo, share saved)."""
    return [Candidate(count, Judgement(loss, kappa, zico), saved) for count, loss, kappa, zico, saved in numbers]


def test_the_objective_by_hand():
    found = candidates((0, 1, 3.0, 5.0, 0.0), (2, 1, 1.0, 5.0, 0.2), (4, 1, 2.0, 8.0, 0.4))
    z = math.sqrt(3 / 2)
    expected = [-z / 2 - 0.5 * math.sqrt(0.5), z / 2 - 0.5 * math.sqrt(0.5) + 0.1, 0.5 * math.sqrt(2) + 0.2]
    assert objective(found, 0.5) == pytest.approx(expected)
    assert objective(found, 0.0)[0] == pytest.approx(expected[0])


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [1.0, math.nan, 2.0], [1.0, math.inf], [0.0], [1e9, 1e9 + 1e-7]])
def test_columns_without_meaning_count_nothing(values):
    assert standardized(values) == [0.0] * len(values)


def test_the_guard_and_the_selectors():
    found = candidates((0, 1.0, 3.0, 5.0, 0.0), (1, 1.2, 2.0, 6.0, 0.1), (2, 1.26, 1.0, 9.0, 0.2))
    config = AdaptiveConfig()
    assert choose(found, 1.0, config) == 1  # the best one is above the guard
    assert choose(found, 1.0, replace(config, guard=1.3)) == 2
    assert choose(found, 0.5, config) == 0  # none is allowed: the lowest
    worse = candidates((0, 1.0, 1.0, 9.0, 0.0), (1, 1.2, 2.0, 6.0, 0.1), (2, 1.26, 3.0, 1.0, 0.2))
    assert choose(worse, 1.0, config) == 0
    assert choose(worse, 1.0, replace(config, selector="loss")) == 1
    assert choose(candidates((0, 1, 1, 1, 0.0), (1, 1, 1, 1, 0.0)), 1.0, config) == 0  # equal: fewer


def test_boundaries_spread_over_the_first_half():
    assert AdaptiveConfig().boundaries(200) == (0, 33, 67, 100)
    assert AdaptiveConfig(stages=1).boundaries(200) == (0,)
    assert AdaptiveConfig(stages=2, until=0.25).boundaries(200) == (0, 50)


@pytest.mark.parametrize("selector", ["proxy", "loss", "fixed"])
@pytest.mark.parametrize("rerank", ["removal", "stage", "once"])
@pytest.mark.parametrize("target", ["blocks=3", "macs=45%", "params=3.1K"])
def test_every_rule_ends_at_the_target(selector, rerank, target):
    model = sit().eval()
    if target.startswith("params"):
        target = f"params={sum(p.numel() for p in model.parameters()) // 2}"
    pruner = adaptive(model, target, random_scorer(), selector=selector, rerank=rerank)
    found, smaller = decisions(pruner, model)
    goal = parse_target(target)
    steps = one_shot(model, describe(model), goal, random_scorer()(model).scores, DEPTH, inputs_for(model))[0]
    assert len(smaller.transformer_blocks) == 8 - len(steps.cut.removed_blocks)
    removed = [name for decision in found for name in decision.record["removed"]]
    assert len(set(removed)) == len(removed) == len(steps.cut.removed_blocks)
    kept = [name for name in describe(model).blocks if name not in removed]
    assert found[-1].pruning["blocks"] == kept  # by their names in the dense model, in order
    for name, block in zip(kept, smaller.transformer_blocks, strict=True):
        assert block.ff.net[2].weight is model.get_submodule(name).ff.net[2].weight
    assert found[-1].record["macs"] == pytest.approx(macs_of(smaller), abs=1)
    assert all(decision.record["chosen"] in [c["count"] for c in decision.record["candidates"]] for decision in found)


@pytest.mark.parametrize("build", [unet, lambda: sdxl(transformer_layers_per_block=(1, 2)), sd3, pixart])
def test_blocks_of_every_kind_leave_until_one_is_left(build):
    model = build().eval()
    structure = describe(model)
    pruner = adaptive(model, "blocks=1", random_scorer(), lambda model: Judgement(1.0, 1.0, 1.0), rerank="removal")
    found, smaller = decisions(pruner, model)
    removed = [name for decision in found for name in decision.record["removed"]]
    assert sorted([*removed, *found[-1].pruning["blocks"]]) == sorted(structure.blocks)
    assert len(describe(smaller).blocks) == len(found[-1].pruning["blocks"]) == 1
    assert macs_of(smaller) == macs_of(without_blocks(model, structure, removed)) == found[-1].record["macs"]
    torch.testing.assert_close(output(smaller), output(without_blocks(model, structure, removed)))


def test_one_stage_is_one_shot():
    model = sit().eval()
    (decision,), _ = decisions(adaptive(model, stages=1), model)
    solution = one_shot(
        model, describe(model), parse_target("blocks=3"), depth_scorer(model).scores, DEPTH, inputs_for(model)
    )[0]
    assert decision.cut == solution.cut


def test_fixed_counts_are_even():
    found, _ = decisions(adaptive(sit(), "blocks=2", by_order(*range(8)), selector="fixed"), sit().eval())
    assert [decision.record["chosen"] for decision in found] == [2, 3, 4, 6]


def test_what_is_ranked_when():
    model = sit().eval()
    calls = []

    def scorer(model):
        calls.append(len(model.transformer_blocks))
        return by_order(*range(len(model.transformer_blocks)))(model)

    for rerank, expected in (("once", [8]), ("stage", [8, 6, 5, 4]), ("removal", [8, 7, 6, 5, 4, 3])):
        calls.clear()
        found, _ = decisions(adaptive(model, "blocks=2", scorer, selector="fixed", rerank=rerank), model)
        assert [decision.record["chosen"] for decision in found] == [2, 3, 4, 6]
        assert sorted(set(calls), reverse=True) == expected


def test_one_by_one_removal_follows_the_scores_of_what_is_left():
    """The first ranking would drop 0, 1, 2; after 0 left, the model ranks its last block lowest."""
    model = sit(5).eval()

    def scorer(model):
        names = list(describe(model).blocks)
        order = range(5) if len(names) == 5 else reversed(range(len(names)))
        return Scored({names[i]: torch.tensor([float(place)]).double() for place, i in enumerate(order)})

    (decision,), _ = decisions(adaptive(model, "blocks=2", scorer, stages=1, rerank="removal"), model)
    assert decision.record["removed"] == [f"transformer_blocks.{i}" for i in (0, 4, 3)]


def test_one_by_one_removal_keeps_the_last_block_of_the_lists():
    model = sdxl(transformer_layers_per_block=(1, 2)).eval()

    def listed_first(model):
        blocks = describe(model).blocks.values()
        return Scored({block.name: torch.tensor([float(not block.listed)]).double() for block in blocks})

    listed = sum(block.listed for block in describe(model).blocks.values())
    pruner = adaptive(model, "blocks=1", listed_first, lambda model: Judgement(1.0, 1.0, 1.0), rerank="removal")
    found, smaller = decisions(
        replace(pruner, boundaries=(0,), config=AdaptiveConfig(stages=1, rerank="removal")), model
    )
    assert len(found[0].record["removed"]) == len(describe(model).blocks) - 1 > listed
    (left,) = describe(smaller).blocks.values()
    assert left.listed


def test_the_log_tells_what_was_measured():
    model = sit().eval()
    pruner = adaptive(model, stages=2, judged=judge(FlowProcess(), images().batch(range(8)), 0))
    found, _ = decisions(pruner, model)
    first = found[0].record
    assert set(first) == {"stage", "ranking", "candidates", "chosen", "removed", "blocks", "macs"}
    assert set(first["candidates"][0]) == {"count", "saved", "ntk", "zico", "guard", "score"}
    assert first["candidates"][0]["guard"] == 1.0
    assert [candidate["saved"] for candidate in first["candidates"]] == sorted(c["saved"] for c in first["candidates"])
    assert set(found[-1].record["candidates"][0]) == {"count", "saved"}  # no choice, nothing to measure
    json.dumps([decision.record for decision in found])


def test_latency_targets_measure_every_set_of_blocks_once():
    model, calls = sit().eval(), []

    def latency_of(model, structure):
        decision = len(calls)

        def measure(cut):
            calls.append((decision, cut.removed_blocks))
            return 10.0 * (len(structure.blocks) - len(cut.removed_blocks))

        return measure

    pruner = replace(adaptive(model), goal=block_cuts(Target("latency", 35.0, False), DEPTH, latency_of))
    _, smaller = decisions(pruner, model)
    assert len(smaller.transformer_blocks) == 3
    assert len(calls) == len(set(calls))


def test_a_model_that_is_small_enough_loses_nothing():
    model = sit().eval()
    cut = block_cuts(Target("blocks", 8.0, False), DEPTH, no_latency)(
        model, describe(model), depth_scorer(model).scores
    )
    assert cut == Cut()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stages": 0}, "stages is 0"),
        ({"until": 1.0}, "until is 1.0"),
        ({"guard": 0.9}, "guard is 0.9"),
        ({"macs_weight": -1.0}, "macs_weight is -1.0"),
        ({"selector": "best"}, "'best'; give proxy or loss or fixed"),
        ({"rerank": "never"}, "'never'; give removal or stage or once"),
    ],
)
def test_senseless_settings_are_refused(wrong, message):
    with pytest.raises(SecateurError, match=message):
        AdaptiveConfig(**wrong)


# ------------------------------------------------------------------------------------------------ training


def run(folder, data=None, config=CONFIG, **changes):
    model = sit()
    pruner = adaptive(model, steps=config.steps, **changes)
    average = recover(model, FlowProcess(), data or images(), config, folder, pruner=pruner)
    return model, average


def stage_log(folder):
    lines = (folder / "stages.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


def test_blocks_leave_the_model_the_average_and_the_moments(whole):
    model, average, folder = whole
    assert len(model.transformer_blocks) == len(average.transformer_blocks) == 3
    assert model.config.num_layers == 3
    state = TrainingState(model, Ema(model), torch.optim.AdamW(model.parameters()))
    names = {name for name, _ in state.model.named_parameters()}
    saved = load_file(newest_checkpoint(folder) / "optimizer.safetensors")
    assert {name.rpartition(".")[0] for name in saved} == names
    records = stage_log(folder)
    assert [record["step"] for record in records] == [0, 1, 3, 4]
    assert [record["blocks"] for record in records][-1] == 3
    assert sum(len(record["removed"]) for record in records) == 5
    assert all(math.isfinite(record["loss"]) for record in log(folder))


@pytest.mark.parametrize("failures", [[2], [4], [5, 3]])
def test_a_run_that_failed_takes_the_same_decisions(failures, whole, tmp_path):
    config = replace(CONFIG, checkpoint_every=1)
    for at in failures:
        with pytest.raises(OSError, match=r"^$"):
            run(tmp_path, Failing(at, OSError), config)
    found = run(tmp_path, config=config)
    for one, other in zip(found, whole[:2], strict=True):
        assert_same(one, other)
    assert stage_log(tmp_path) == stage_log(whole[2])
    assert [record["loss"] for record in log(tmp_path)] == [record["loss"] for record in log(whole[2])]


def test_other_settings_are_refused(whole):
    with pytest.raises(TrainingError, match=r"macs_weight 0.5 there, 0.0 here"):
        run(whole[2], macs_weight=0.0)


def test_the_average_follows_faster_after_a_cut():
    assert decay_at(0.9999, 50_000, 999) == 0.999
    assert decay_at(0.9999, 50_000, 1000) == warm_decay(0.9999, 50_000) > 0.999
    assert decay_at(0.9999, 10, 0) == warm_decay(0.9999, 10)
    model = sit(3)
    state = TrainingState(model, Ema(model), torch.optim.AdamW(model.parameters()), step=7)
    assert state.since_cut == math.inf
    cut_training_state(state, Cut({}, ("transformer_blocks.1",)), {}, "dense")
    state.step = 9
    assert state.since_cut == 2


SCRIPT = """
import sys
import torch
from test_adaptive import CONFIG, Failing, images, replace, run
torch.set_num_threads(1)
folder, fail_at = sys.argv[1], int(sys.argv[2])
run(folder, Failing(fail_at, OSError) if fail_at else images(), replace(CONFIG, checkpoint_every=1))
"""
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def command(script, folder, fail_at=0, launcher=()):
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *launcher, str(script), str(folder), str(fail_at)]
    return subprocess.run(arguments, env=environment, capture_output=True, check=False).returncode


@pytest.mark.slow
def test_two_processes_take_the_decisions_of_one_and_resume_them(tmp_path):
    script = tmp_path / "run.py"
    assert command(script, tmp_path / "one") == 0
    assert command(script, tmp_path / "two", launcher=TWO) == 0
    decided = [[(r["step"], r["removed"]) for r in stage_log(tmp_path / folder)] for folder in ("one", "two")]
    assert decided[0] == decided[1]
    for single, joined in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert single["loss"] == pytest.approx(joined["loss"], rel=1e-3)
    assert command(script, tmp_path / "cut", fail_at=6, launcher=TWO) != 0
    assert 3 < int(newest_checkpoint(tmp_path / "cut").name[-8:]) < 8
    assert command(script, tmp_path / "cut", launcher=TWO) == 0
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        saved = [(newest_checkpoint(tmp_path / folder) / name).read_bytes() for folder in ("two", "cut")]
        assert saved[0] == saved[1]
    assert stage_log(tmp_path / "two") == stage_log(tmp_path / "cut")


# -------------------------------------------------------------------------------------------- command line

FEW = [
    *("--scoring.num-timesteps", "2", "--scoring.num-images", "4"),
    *("--recovery.batch-size", "4", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"),
    *("--evaluation.num-images", "12", "--evaluation.num-inference-steps", "2", "--evaluation.latency-rounds", "2"),
]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sit"
    scheduler = FlowMatchEulerDiscreteScheduler()
    secateur.save_pretrained(sit(), folder, {**scheduler.config, "_class_name": type(scheduler).__name__})
    return folder


def compress(model, out, *more, target="blocks=3", steps=8):
    options = ["--target", target, "--data", "digits", "--out", str(out), "--steps", str(steps)]
    main(["compress", str(model), "--recipe", "entpruner", *options, *FEW, *more])


def test_compress_ends_at_the_target_with_a_model_for_plain_diffusers(dense, tmp_path, capsys):
    run = tmp_path / "run"
    compress(dense, run)
    assert "Asked for blocks=3; reached 37.5% (3 of 8 blocks)." in capsys.readouterr().out
    ours = secateur.from_pretrained(run / "model")
    plain = DiTTransformer2DModel.from_pretrained(run / "model")
    assert len(plain.transformer_blocks) == plain.config.num_layers == 3
    assert torch.equal(output(ours), output(plain))
    cut = json.loads((run / "cut.json").read_text())
    records = stage_log(run / "recovery")
    removed = [name for record in records for name in record["removed"]]
    assert sorted(cut["removed_blocks"]) == sorted(removed)
    assert (cut["target"], cut["reached"], cut["asked"]) == ("blocks=3", 3, 3)
    assert cut["after"]["parameters"] == sum(parameter.numel() for parameter in ours.parameters())
    steps = json.loads((run / "model" / "pruning.json").read_text())["steps"]
    assert [step["kind"] for step in steps][-1] == "recovery"
    assert {step["schedule"] for step in steps[:-1]} == {"adaptive"}
    assert sum(len(step["removed_blocks"]) for step in steps[:-1]) == 5
    compress(dense, run)  # done: nothing is made again
    assert stage_log(run / "recovery") == records


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "4"], "4 adaptive stages do not fit into the first 50% of 4 steps"),
        (["--cut.granularity", "width", "--criterion", "taylor", "--target", "macs=50%"], "drops blocks"),
        (["--target", "blocks=9"], "out of reach"),
    ],
)
def test_what_cannot_work_is_one_line_before_any_work(more, message, dense, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compress(dense, tmp_path / "run", *more)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_dry_run_predicts_the_rankings(dense, tmp_path, capsys):
    compress(dense, tmp_path / "run", "--dry-run")
    assert "rank again" in capsys.readouterr().out


def test_batches_without_labels_are_judged_too():
    model = unet().eval()
    batch = Batch(images().batch(range(4)).sample)
    found = judge(DiffusionProcess(), batch, 0)(model)
    assert math.isfinite(found.log_condition)
    assert math.isfinite(found.zico)
    assert found.loss > 0


def test_ced_with_the_real_scorer_prunes_to_the_target(dense, tmp_path):
    out = secateur.compress(
        str(dense),
        target="macs=60%",
        data="digits",
        out=tmp_path / "run",
        recipe="entpruner",
        adaptive=AdaptiveConfig(stages=2),
        scoring=ScoringConfig(num_timesteps=2, num_images=4),
        recovery=replace(CONFIG, objective="2ndmatch"),
        evaluation=secateur.EvaluationConfig(metrics=("loss",), num_images=4),
    )
    model = secateur.from_pretrained(out / "model")
    assert macs_of(model) <= 0.6 * macs_of(sit())
