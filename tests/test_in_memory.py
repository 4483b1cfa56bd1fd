"""Everything that the command line does is done with objects in memory, without a folder."""

import importlib
import inspect
import typing
from functools import partial

import pytest
import torch

import secateur
from models import dit, unet
from secateur import EvaluationConfig, SecateurError
from secateur.commands import COMMANDS
from secateur.io.manifest import manifest_of
from training_runs import images

OF_THE_SHELL = {"completion", "recipes"}  # a script for the shell; a list of names and a file: `secateur.RECIPES`
OF_THE_COMMAND = {"on", "dry_run"}  # the model, and the plan of the same arguments
ELSEWHERE = {  # options of commands under another name
    ("compensate", "reference"): "dense",
    ("compress", "compensates"): "compensates",  # parts of the recipe
    ("prune", "compensates"): "compensation",  # None: no refit
    ("slice-lora", "pruned"): "model",
}
PRINTED = {("inspect", "dims")}  # more lines of `Inspection.structure`


def arguments_of(function):
    """The names of a function's arguments, with those that it takes as a TypedDict."""
    found = set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            hints = typing.get_type_hints(function, include_extras=True)
            found |= set(typing.get_type_hints(typing.get_args(hints[name])[0]))
        else:
            found.add(name)
    return found


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - OF_THE_SHELL))
def test_every_option_of_a_command_is_an_argument_of_the_function_of_its_name(command):
    name = command.replace("-", "_")
    options = set(inspect.signature(getattr(importlib.import_module(f"secateur.commands.{name}"), name)).parameters)
    arguments = arguments_of(getattr(secateur, name))
    lacking = {
        option
        for option in options - OF_THE_COMMAND
        if ELSEWHERE.get((command, option), option) not in arguments and (command, option) not in PRINTED
    }
    assert lacking == set()
    if "dry_run" in options and command != "encode":  # which prints what it would write
        plan = getattr(secateur, "plan" if command == "compress" else f"plan_{name}")
        unplanned = {"out", "keep", "data", "ranking", "inplace"}
        assert {option for option in options - OF_THE_COMMAND - unplanned} <= arguments_of(plan) | {"compensates"}


@pytest.mark.parametrize("name", ["rank", "prune", "finetune", "evaluate", "record", "compress", "sweep", "best"])
def test_a_plan_takes_the_arguments_of_its_function(name):
    plan = getattr(secateur, "plan" if name == "compress" else f"plan_{name}")
    where = {"out", "cache", "keep", "inplace", "progress"}
    assert arguments_of(plan) == arguments_of(getattr(secateur, name)) - where


def on_meta(model):
    """The model without values: FLOPs are predicted instead of seconds."""
    return model.to("meta")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1


def test_what_each_function_takes_is_predicted(data):
    model, given = on_meta(unet()), {"process": "ddpm"}
    assert "rank       about" in str(secateur.plan_rank(model, data=data, criterion="taylor", device="cpu", **given))
    assert "MACs" in str(secateur.plan_prune(model, target="macs=50%", data=data, **given))
    assert "tuples" in str(secateur.plan_record(model, **given))
    tuned = secateur.plan_finetune(model, data=data, teacher=on_meta(unet()), steps=5, **given)
    assert set(tuned.flops) == {"recover"}
    evaluated = partial(
        secateur.plan_evaluate, model, data=data, evaluation=EvaluationConfig(metrics=("loss",)), **given
    )
    alone, beside = evaluated(), evaluated(reference=on_meta(unet()), precisions=("bfloat16",))
    assert set(alone.flops) == {"evaluate"}
    assert beside.flops["evaluate"] == 3 * alone.flops["evaluate"]
    assert beside.peak["evaluate"] > alone.peak["evaluate"]
    with pytest.raises(SecateurError, match="nowhere"):
        secateur.plan_record(model, data="nowhere", **given)


def test_what_needs_weights_says_that_there_are_none(data, tmp_path):
    model, given = on_meta(unet()), {"process": "ddpm", "data": data}
    small = {"target": "macs=50%", **given}
    for work in (
        lambda: secateur.rank(model, criterion="taylor", **given),
        lambda: secateur.prune(model, **small),
        lambda: secateur.compensate(model, unet(), **given),
        lambda: secateur.compensate(unet(), model, **given),
        lambda: secateur.finetune(model, **given),
        lambda: secateur.finetune(unet(), teacher=model, objective="distillation", **given),
        lambda: secateur.evaluate(model, **given),
        lambda: secateur.record(model, **given),
        lambda: secateur.compress(model, **small),
        lambda: secateur.sample(model, process="ddpm"),
        lambda: secateur.sweep(model, targets=["macs=50%"], **given),
        lambda: secateur.best(model, **small),
        lambda: secateur.export(model, out=tmp_path / "file", format="torch-export"),
        lambda: secateur.save_pretrained(model, tmp_path / "model"),
        lambda: secateur.check_structure(model),
        lambda: secateur.rank(model, data=[{"x": data}], forward=lambda network, batch: network(batch["x"], 1).sample),
    ):
        with pytest.raises(SecateurError, match="UNet2DModel is on the meta device, which holds no weights"):
            work()
    assert not list(tmp_path.iterdir())


SHORT = {
    "process": "ddpm",
    "recipes": ("magnitude", "random"),
    "shared": secateur.TrialConfig(batch_size=4, num_images=4),
    "evaluation": EvaluationConfig(metrics=("loss",), num_images=4),
}


def test_what_many_runs_take_is_predicted(data):
    sweep = secateur.plan_sweep(unet(), data=data, targets=("macs=70%",), steps=2, **SHORT)
    assert [trial.recipe for trial in sweep.trials] == ["magnitude", "random"]
    assert str(sweep).count("about") == 4  # each, all, and the memory
    search = secateur.plan_best(unet(), data=data, target="macs=70%", budget_steps=24, **SHORT)
    assert "round 1    2 recipes, 6 steps each" in str(search)


@pytest.mark.slow
def test_a_sweep_and_a_search_in_memory(data, tmp_path):
    model = unet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    swept = secateur.sweep(model, data=data, targets=("macs=70%",), steps=2, **SHORT)
    assert set(swept.runs) == {"magnitude_macs-70pct_seed-0", "random_macs-70pct_seed-0"}
    assert all(run.cut.after.macs <= 0.7 * run.cut.before.macs for run in swept.runs.values())
    assert "| magnitude |" in str(swept)
    assert swept.winner is None
    one, other = swept.runs.values()
    page = secateur.report([one, other], out=tmp_path / "page")
    assert 'href="./run-2/report.html"' in page.read_text(encoding="utf-8")
    assert secateur.report(one, out=tmp_path / "one").parent == tmp_path / "one"
    with pytest.raises(SecateurError, match="a run in memory has no folder for its page; give out="):
        secateur.report(one)
    search = secateur.best(model, data=data, target="macs=70%", budget_steps=24, **SHORT)
    assert search.trials.search.winner in ("magnitude", "random")
    assert list(search.runs) == ["winner"]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 5])
    assert search.winner.model(x, t).sample.shape == (2, 1, 8, 8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_weights_that_a_user_froze_stay_as_they_are_with_a_folder_too(tmp_path):
    def compressed(**given):
        model = dit()
        model.transformer_blocks[:3].requires_grad_(False)
        asked = {"target": "blocks=3", "criterion": "uniform", "schedule": "one-shot", "steps": 1, "compensates": False}
        evaluation = EvaluationConfig(metrics=("loss",))
        secateur.compress(model, data=images(), process="flow", evaluation=evaluation, keep=True, **asked, **given)

    compressed(out=tmp_path / "run")
    model, dense = secateur.from_pretrained(tmp_path / "run" / "model"), dict(dit().named_parameters())
    [removed] = manifest_of(model).cuts[0].removed_blocks
    left = [name for name in (f"transformer_blocks.{place}" for place in range(4)) if name != removed]
    trained = {
        name
        for name, block in zip(left, model.transformer_blocks, strict=True)
        if not torch.equal(block.ff.net[2].weight, dense[f"{name}.ff.net.2.weight"])
    }
    assert trained == {"transformer_blocks.3"}
