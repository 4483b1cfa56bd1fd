"""`Pruning` in other training loops: what it refuses, leaves as it was, and resumes."""

import json
from dataclasses import replace

import pytest

from loop_runs import DATA, LABELLED, QUICK, SCORING, macs, pruning_of
from models import dit, unet
from secateur.base.errors import SecateurError, TrainingError
from secateur.models.network import example_inputs
from secateur.process.diffusion import DiffusionProcess
from secateur.schedules import AdaptiveConfig, CutConfig, ProgressiveConfig
from secateur.schedules import Pruning as PruningOfObjects
from secateur.structure.cost import cost_model
from training_runs import assert_same


def test_what_cannot_work_is_refused_before_anything_changes():
    model = unet()
    for changes, message in [
        ({"schedule": "progresive"}, "schedule is 'progresive'; give one-shot or progressive or adaptive"),
        ({"schedule": QUICK, "steps": 3}, "progressive pruning takes 3 steps, recovery has 3"),
        ({"schedule": AdaptiveConfig(stages=1), "cut": CutConfig()}, "the adaptive schedule drops blocks"),
        ({"target": "macs=1%"}, "out of reach"),
    ]:
        with pytest.raises(SecateurError, match=message):
            pruning_of(model, **changes)
    assert_same(model, unet())


def test_what_a_cut_excludes_stays_whole():
    model = unet()
    pruning = pruning_of(
        model, schedule="one-shot", target="macs=80%", cut=CutConfig(round_to=2, exclude=("mid_block.*",))
    )
    pruning.step()
    dense = {name: value.shape for name, value in unet().named_parameters()}
    changed = {name for name, value in model.named_parameters() if value.shape != dense[name]}
    assert changed
    assert not [name for name in changed if name.startswith("mid_block.")]
    with pytest.raises(SecateurError, match="'no_block' matches no width"):
        pruning_of(unet(), cut=CutConfig(exclude=("no_block",)))
    blocks = {"schedule": "adaptive", "target": "blocks=3", "cut": CutConfig("local", "depth", exclude=("*.0",))}
    with pytest.raises(SecateurError, match="the adaptive schedule decides over all blocks"):
        pruning_of(dit(), **blocks)


def test_a_latency_is_measured_when_pruning_is_made(monkeypatch):
    model = unet()
    dense = macs(model)

    def clock(model, structure):
        """A latency in ms that equals the percentage of the MACs."""
        cost = cost_model(model, structure, example_inputs(model, 1))
        counts = lambda cut: {name: len(units) for name, units in cut.kept.items()}  # noqa: E731
        return lambda cut: 100 * cost(counts(cut), cut.removed_blocks).macs / dense

    monkeypatch.setattr("secateur.runs.loops.latency_of", clock)
    assert pruning_of(model, target="latency=60ms", schedule="one-shot").step()
    assert 0.5 * dense < macs(model) <= 0.6 * dense
    with pytest.raises(SecateurError, match="latency=1ms needs latency_of"):
        PruningOfObjects(
            unet(), target="latency=1ms", data=DATA, process=DiffusionProcess(), steps=6, schedule="one-shot"
        )


def test_a_state_that_was_taken_stays_as_it_was():
    pruning = pruning_of(unet(), schedule="one-shot")
    state = pruning.state_dict()
    assert pruning.step()
    assert (state["steps"], state["cuts"]) == (0, [])
    pruning_of(unet(), schedule="one-shot").load_state_dict(state)


def test_a_state_of_another_pruning_is_refused():
    state = pruning_of(unet()).state_dict()
    with pytest.raises(TrainingError, match=r"other settings \(stage_steps 1 there, 2 here\)"):
        pruning_of(unet(), schedule=ProgressiveConfig(2, 2, 2), steps=9).load_state_dict(state)
    with pytest.raises(TrainingError, match=r"other settings \(cut.round_to 2 there, 8 here\)"):
        pruning_of(unet(), cut=CutConfig()).load_state_dict(state)
    begun = pruning_of(unet())
    begun.step()
    with pytest.raises(TrainingError, match="has begun already"):
        begun.load_state_dict(state)


@pytest.mark.parametrize("schedule", [QUICK, AdaptiveConfig(stages=2, rerank="once")])
def test_a_resumed_loop_keeps_its_goal_when_the_data_are_others(schedule):
    """A random criterion finds another goal with every seed, as a latency or an augmented data set may."""
    blocks = isinstance(schedule, AdaptiveConfig)
    options = {"schedule": schedule, "target": "blocks=2" if blocks else "macs=60%", "criterion": "random", "steps": 8}
    options |= {"cut": CutConfig(granularity="depth")} if blocks else {"cut": CutConfig(granularity="both", round_to=2)}

    def begun(seed):
        model = dit()
        return model, pruning_of(model, **options, data=LABELLED, scoring=replace(SCORING, seed=seed))

    whole, pruning = begun(0)
    states = []
    for _ in range(8):
        pruning.step()
        states.append(pruning.state_dict())
    other, later = begun(1)
    state = json.loads(json.dumps(states[0]))
    state["settings"] = later.state_dict()["settings"]  # the seed alone differs there
    later.load_state_dict(state)
    for _ in range(7):
        later.step()
    assert {name: value.shape for name, value in other.named_parameters()} == {
        name: value.shape for name, value in whole.named_parameters()
    }


def test_a_module_in_eval_mode_stays_there():
    model = unet().train()
    model.mid_block.eval()
    pruning = pruning_of(model)
    for _ in range(2):
        pruning.step()
    assert model.training
    assert not any(module.training for module in model.mid_block.modules())
