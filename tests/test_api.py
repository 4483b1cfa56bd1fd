"""The functions of the library with objects in memory: modules, pipelines, loaders, and unknown networks."""

import copy
import inspect
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import secateur
from models import dit, output, unet
from secateur.evaluation import LatencyOptions
from secateur.models.network import input_shape
from secateur.reporting import read_run

SCORING = secateur.ScoringConfig(num_timesteps=2, num_images=8)
RECOVERY = secateur.RecoveryConfig(steps=2, batch_size=4, log_every=1, grad_norms_every=0)
EVALUATION = secateur.EvaluationConfig(
    num_images=8, num_inference_steps=2, latency=secateur.LatencyOptions(rounds=2, batch_sizes=(1,))
)
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(12) % 10


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    yield
    assert list(tmp_path.iterdir()) == []


def data_of(kind):
    """The same twelve images in every form that data may have."""
    pairs = TensorDataset(IMAGES, LABELS)
    dictionaries = [{"pixel_values": image, "labels": label} for image, label in pairs]
    return {
        "tensor": IMAGES,
        "bytes": ((IMAGES + 1) * 127.5).round().byte(),
        "list of images": list(IMAGES),
        "list of batches": list(IMAGES.split(5)),
        "loader of tensors": DataLoader(list(IMAGES), batch_size=5),
        "loader of pairs": DataLoader(pairs, batch_size=5, shuffle=True),
        "loader of dictionaries": DataLoader(dictionaries, batch_size=5),
        "data set of pairs": pairs,
        "list of dictionaries": dictionaries,
        "batches of dictionaries": [
            {"images": IMAGES[:6], "labels": LABELS[:6]},
            {"images": IMAGES[6:], "labels": LABELS[6:]},
        ],
    }[kind]


KINDS = [
    *("tensor", "bytes", "list of images", "list of batches", "loader of tensors", "loader of pairs"),
    *("loader of dictionaries", "data set of pairs", "list of dictionaries", "batches of dictionaries"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_data_gives_the_same_cut(kind):
    pruned = secateur.prune(
        unet(), target="macs=60%", data=data_of(kind), process=DDPMScheduler(), criterion="taylor", scoring=SCORING
    )
    reference = secateur.prune(
        unet(), target="macs=60%", data=IMAGES, process="ddpm", criterion="taylor", scoring=SCORING
    )
    assert parameters(pruned) < parameters(unet())
    assert torch.allclose(output(pruned), output(reference), atol=2e-2 if kind == "bytes" else 0)


def test_a_module_is_pruned_tuned_and_measured_and_stays_as_it_was(capfd):
    model, scheduler = unet(), DDPMScheduler()
    before = output(model)
    pruned = secateur.prune(model, target="macs=60%", data=IMAGES, process=scheduler, scoring=SCORING)
    tuned = secateur.finetune(
        pruned, data=IMAGES, teacher=model, process=scheduler, objective="distillation", recovery=RECOVERY
    )
    result = secateur.evaluate(tuned, reference=model, data=IMAGES, process=scheduler, evaluation=EVALUATION)
    assert torch.equal(output(model), before)
    assert parameters(tuned) == parameters(pruned) < parameters(model)
    assert not torch.equal(output(tuned), output(pruned))
    assert result.macs.ratio < 0.62
    low, high = result["ssim"].interval
    assert low <= result["ssim"].value <= high
    assert "SSIM" in str(result)
    assert "<table" in result._repr_html_()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compensation", [None, secateur.CompensationConfig(num_tuples=8)])
def test_inplace_cuts_the_model_itself(compensation):
    model, about = dit(), {"process": FlowMatchEulerDiscreteScheduler(), "scoring": SCORING}
    about |= {"data": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4), "compensation": compensation}
    copied = secateur.prune(model, target="macs=70%", **about)
    pruned = secateur.prune(model, target="macs=70%", **about, inplace=True)
    assert pruned is model
    assert parameters(model) < parameters(dit())
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_alone_can_be_ranked_without_data():
    ranking = secateur.rank(unet(), criterion="magnitude", process="ddpm")
    assert ranking.dims
    pruned = secateur.prune(unet(), target="macs=60%", criterion="magnitude", process="ddpm")
    assert parameters(pruned) < parameters(unet())
    with pytest.raises(secateur.SecateurError, match="give data"):
        secateur.rank(unet(), criterion="taylor", process="ddpm")


class Delegating:
    """A user's process, with only the methods that `Process` names."""

    def __init__(self, process):
        for name in dir(secateur.Process):
            if not name.startswith("_"):
                setattr(self, name, getattr(process, name))


@pytest.mark.parametrize("wrap", [lambda process: process, Delegating])
def test_a_process_is_taken_as_a_scheduler_is(wrap):
    model, config = unet(), {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    options = {"data": IMAGES, "criterion": "taylor", "scoring": SCORING}
    by_process = secateur.rank(model, process=wrap(secateur.DiffusionProcess(config)), **options)
    by_scheduler = secateur.rank(model, process=DDPMScheduler(**config), **options)
    other = secateur.rank(model, process="ddpm", **options)
    assert by_process.dims == by_scheduler.dims != other.dims
    pruning = secateur.Pruning(
        model,
        target="macs=80%",
        steps=40,
        data=IMAGES,
        process=wrap(secateur.DiffusionProcess(config)),
        scoring=SCORING,
    )
    assert not pruning.step()


def test_a_process_is_saved_with_the_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    process = secateur.FlowProcess({"shift": 2.0}, convention="sit")
    secateur.save_pretrained(dit(), folder, process.scheduler_config)
    assert secateur.load(folder).process == process
    assert secateur.load(folder, process=secateur.FlowProcess()).process == secateur.FlowProcess()
    assert secateur.load(folder, process="flow").process == secateur.FlowProcess()


def test_arguments_of_the_model_stand_in_every_signature():
    shared = {*secateur.WeightsArguments.__annotations__}
    for name in ("compress", "evaluate", "finetune", "plan", "prune", "rank"):
        assert {*shared, "process", "forward", "loss"} <= inspect.signature(getattr(secateur, name)).parameters.keys()
    for name in ("best", "sample", "sweep"):
        assert {*shared, "process"} <= inspect.signature(getattr(secateur, name)).parameters.keys()
    for name in ("check_structure", "encode", "export", "inspect", "slice_lora"):
        assert shared <= inspect.signature(getattr(secateur, name)).parameters.keys()
    with pytest.raises(TypeError, match="proces"):
        secateur.rank(unet(), criterion="magnitude", proces="ddpm")
    with pytest.raises(secateur.SecateurError, match="did you mean unet"):
        secateur.rank(unet(), criterion="magnitude", process="ddpm", component="unett")
    with pytest.raises(secateur.SecateurError, match="in memory already: leave out revision"):
        secateur.rank(unet(), criterion="magnitude", process="ddpm", revision="main")


def test_one_ranking_serves_several_targets(tmp_path_factory):
    model, asked = unet(), {"criterion": "taylor", "scoring": SCORING}
    ranking = secateur.rank(model, data=IMAGES, process="ddpm", **asked)
    for target in ("macs=60%", "macs=80%"):
        by_ranking = secateur.prune(model, target=target, ranking=ranking, process="ddpm")
        by_criterion = secateur.prune(model, target=target, data=IMAGES, process="ddpm", **asked)
        assert torch.equal(output(by_ranking), output(by_criterion))
    with pytest.raises(secateur.SecateurError, match="other widths and blocks"):
        secateur.prune(dit(), target="macs=60%", ranking=ranking, process="flow")
    folder = tmp_path_factory.mktemp("runs") / "run"
    secateur.prune(model, target="macs=60%", ranking=ranking, process="ddpm", out=folder)
    assert secateur.read_result(secateur.Ranking, folder / "ranking.json").dims == ranking.dims
    other = secateur.rank(model, criterion="magnitude", process="ddpm")
    with pytest.raises(secateur.SecateurError, match="begun with another"):
        secateur.prune(model, target="macs=60%", ranking=other, process="ddpm", out=folder)


def test_evaluations_share_the_samples_of_a_reference(tmp_path_factory):
    cache, model = tmp_path_factory.mktemp("cache"), unet()
    options = {"reference": model, "data": IMAGES, "process": "ddpm", "metrics": ("consistency",), "cache": cache}
    for number, target in enumerate(("macs=60%", "macs=80%")):
        pruned = secateur.prune(model, target=target, criterion="magnitude", process="ddpm")
        first = secateur.evaluate(pruned, evaluation=EVALUATION, **options)
        assert len(list(cache.iterdir())) == 2 + number  # the reference once, and each pruned model
        assert secateur.evaluate(pruned, evaluation=EVALUATION, **options)["ssim"].value == first["ssim"].value


def test_a_user_applies_a_cut_by_hand():
    model = secateur.from_pretrained("digits-unet")
    structure = secateur.describe(model)
    dim = next(iter(structure.dims.values()))
    kept = tuple(unit for cell in dim.cell_ranges() for unit in list(cell)[: len(cell) // 2])
    before = parameters(model)
    assert secateur.apply_cut(model, secateur.Cut({dim.name: kept})) is model
    assert parameters(model) < before
    assert model(**secateur.example_inputs(model, 2)).sample.shape[0] == 2


def test_a_pipeline_gives_a_run_with_a_pipeline(tmp_path):
    pipeline = DDPMPipeline(unet(), DDPMScheduler())
    run = secateur.compress(
        pipeline, target="macs=60%", data=IMAGES, scoring=SCORING, recovery=RECOVERY, evaluation=EVALUATION
    )
    assert parameters(run.model) < parameters(pipeline.unet) == parameters(unet())
    assert run.pipeline.unet is run.model
    assert run.pipeline is not pipeline
    assert run.cut.after.macs <= 0.6 * run.cut.before.macs
    assert run.ranking.dims
    assert (run.ranking.criterion, run.cut.allocation) == ("magnitude", "local")  # what auto chose for a U-Net
    assert list(run.evaluation.models) == ["dense", "pruned", "compensated", "recovered"]
    assert "Asked for macs=60%" in str(run)
    assert "<table" in run._repr_html_()
    with pytest.raises(ValueError, match="folder"):
        run.report()


@pytest.mark.slow
def test_a_run_in_memory_is_saved_and_loads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run = secateur.compress(
        unet(),
        target="macs=60%",
        data=IMAGES,
        process="ddpm",
        scoring=SCORING,
        recovery=RECOVERY,
        evaluation=EVALUATION,
    )
    page = run.report(folder / "run")
    assert page.stat().st_size > 10_000
    assert read_run(folder / "run").recovery == run.recovery
    assert run.report(folder / "run") == page
    with pytest.raises(secateur.SecateurError, match="is the folder of a run, which would be overwritten"):
        replace(run, settings={**run.settings, "recipe": "mine"}).save(folder / "run")
    assert torch.equal(output(secateur.from_pretrained(folder / "run" / "model")), output(run.model))


def test_a_run_saved_again_has_the_pipeline_of_the_newer_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run = secateur.compress(
        DDPMPipeline(unet(), DDPMScheduler()), target="macs=70%", data=IMAGES, recipe="magnitude",
        recovery=RECOVERY, evaluation=secateur.EvaluationConfig(metrics=("loss",)),
    )  # fmt: skip
    run.save(folder)
    with torch.no_grad():
        run.model.conv_out.bias += 1
    run.save(folder)
    for place in (folder / "model", folder / "pipeline" / "unet"):
        assert torch.equal(secateur.from_pretrained(place).conv_out.bias, run.model.conv_out.bias)


class Own(nn.Module):
    """An unknown network: two positional inputs, no config, its own type of output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, points, shift):
        return {"score": self.second(F.gelu(self.first(points) + shift[:, None]))}


def describe_own(model):
    builder = secateur.StructureBuilder()
    hidden = builder.dim("hidden", model.first.out_features)
    builder.writes("first", hidden)
    builder.reads("second", hidden)
    return builder.build()


@pytest.fixture
def own():
    torch.manual_seed(0)
    secateur.register_structure(Own, describe_own)
    generator = torch.Generator().manual_seed(0)
    points, shift = torch.randn(32, 6, generator=generator), torch.randn(32, generator=generator)
    data = DataLoader(TensorDataset(points, shift, points.sum(1).sign()), batch_size=8)
    return Own(), data


def forward(model, batch):
    points, shift, _ = batch
    return model(points, shift)


def loss(model, batch):
    points, shift, goal = batch
    return F.mse_loss(model(points, shift)["score"][:, 0], goal)


def test_an_unknown_network_is_scored_cut_recovered_and_measured(own):
    model, data = own
    functions = {"data": data, "forward": forward, "loss": loss}
    for criterion in ("taylor", "diff-pruning", "gradient-flow", "magnitude"):
        pruned = secateur.prune(model, target="params=60%", criterion=criterion, scoring=SCORING, **functions)
        assert pruned.first.out_features < 16
    weight = model.first.weight
    taylor = secateur.rank(model, criterion="taylor", scoring=SCORING, **functions).dims["hidden"]
    model.zero_grad()
    loss(model, next(iter(DataLoader(data.dataset, batch_size=32)))).backward()
    assert torch.tensor(taylor).argsort()[0] in (weight * weight.grad).abs().sum(1).argsort()[:4]
    tuned = secateur.finetune(
        pruned, recovery=secateur.RecoveryConfig(steps=30, batch_size=8, learning_rate=1e-2), **functions
    )
    whole = next(iter(DataLoader(data.dataset, batch_size=32)))
    assert loss(tuned, whole) < loss(pruned, whole)
    taught = secateur.finetune(pruned, teacher=model, objective="distillation", recovery=RECOVERY, **functions)
    assert not torch.equal(taught.first.weight, pruned.first.weight)
    result = secateur.evaluate(tuned, reference=model, **functions)
    assert result.macs.ratio < 1
    assert result["denoising_loss"].value == pytest.approx(loss(tuned, whole).item(), rel=0.2)


def test_the_users_functions_hold_for_one_call_alone():
    """A network that the library knows keeps its own family after it, and so do copies, teachers and failures."""
    model, teacher, images = unet(), unet(), torch.randn(8, 1, 8, 8)
    functions = {
        "data": DataLoader([{"images": image} for image in images], batch_size=4),
        "forward": lambda network, batch: network(batch["images"], 0).sample,
        "loss": lambda network, batch: network(batch["images"], 0).sample.square().mean(),
    }
    inner = {**functions, "evaluation": secateur.EvaluationConfig(metrics=("loss",))}
    pruned = secateur.prune(model, target="macs=80%", criterion="magnitude", **functions)
    secateur.evaluate(pruned, reference=teacher, **inner)
    pruning = secateur.Pruning(model, target="macs=80%", criterion="magnitude", steps=400, **functions)
    own = input_shape(model)
    secateur.evaluate(model, **inner)
    assert input_shape(model) == own
    pruning.close()
    with pytest.raises(secateur.SecateurError, match="out of reach"):
        secateur.Pruning(teacher, target="macs=1%", criterion="magnitude", steps=400, **functions)
    assert {input_shape(each) for each in (model, teacher, pruned)} == {(1, 8, 8)} != {own}


def test_an_unknown_network_is_compressed_by_default_without_a_book(own):
    model, data = own
    functions = {"data": data, "forward": forward, "loss": loss, "target": "params=70%"}
    recovery = replace(secateur.recipe_named("default").recovery, steps=2, batch_size=8, warmup_steps=1)
    options = {"scoring": SCORING, "recovery": recovery, "evaluation": secateur.EvaluationConfig(metrics=("loss",))}
    with pytest.raises(secateur.SecateurError, match="give compensates=False"):
        secateur.compress(model, **functions, **options)
    options["compensates"] = False
    run = secateur.compress(model, **functions, **options)
    assert run.model.first.out_features < 16
    assert run.recorded is None
    with pytest.raises(secateur.SecateurError, match="a book is of noisy samples"):
        secateur.compress(model, records=True, **functions, **options)


def test_what_a_users_functions_do_not_say_is_left_out_with_a_note(own):
    model, data = own
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.first.weight += 0.1
    config = secateur.EvaluationConfig(latency=LatencyOptions(rounds=2, batch_sizes=(1,)))
    outputs = secateur.evaluate(other, reference=model, data=data, forward=forward, evaluation=config)
    assert outputs.notes == ("no loss: loss needs loss=, a function (model, batch) -> scalar",)
    whole = next(iter(DataLoader(data.dataset, batch_size=32)))
    ours, theirs = (torch.cat(list(forward(network, whole).values()), dim=1) for network in (other, model))
    expected = (ours - theirs).square().sum() / theirs.square().sum()
    assert outputs["output_error"].value == pytest.approx(expected.item(), rel=1e-5)
    losses = secateur.evaluate(other, reference=model, data=data, loss=loss, evaluation=config)
    assert losses.notes == ("no output-error: output-error needs forward=, a function (model, batch) -> output",)
    assert losses["denoising_loss"].value == pytest.approx(loss(other, whole).item(), rel=1e-5)
    with pytest.raises(secateur.SecateurError, match="draw no samples; leave scheduler and ftle out"):
        secateur.evaluate(model, data=data, loss=loss, evaluation=replace(config, scheduler="DDIMScheduler"))


def test_wrong_types_are_one_line():
    cases = [
        (dict(model=3, data=IMAGES, process="ddpm"), "a model is"),
        (dict(model=unet(), data=IMAGES), "how it was trained"),
        (dict(model=unet(), data=IMAGES, process="dpm"), "dpm"),
        (dict(model=unet(), data=IMAGES, process=3), "a process is"),
        (dict(model=unet(), data=3, process="ddpm"), "data is a int"),
        (dict(model=unet(), data=[], process="ddpm"), "empty"),
        (dict(model=unet(), data=torch.zeros(4, 3, 8, 8), process="ddpm"), "samples of shape"),
        (dict(model=unet(), data=[{"pictures": IMAGES[0]}], process="ddpm"), "name the samples"),
        (dict(model=unet(), data=IMAGES, process="ddpm", criterion="tylor"), "taylor"),
        (dict(model=unet(), data=IMAGES, process="ddpm", target="half"), "half"),
    ]
    for arguments, words in cases:
        model = arguments.pop("model")
        with pytest.raises(secateur.SecateurError, match=words) as caught:
            secateur.prune(model, **{"target": "macs=60%", **arguments})
        assert "\n" not in str(caught.value)


def test_functions_of_a_user_that_do_not_fit_are_one_line(own):
    model, data = own
    for functions, words in (
        ({"forward": lambda model, batch: model(batch)}, "fails on the first sample"),
        ({"forward": lambda model, batch: batch[0]}, "do not call the network"),
        ({"forward": lambda model, batch: forward(model, batch) and 3}, "no tensor"),
        ({"loss": lambda model, batch: model(*batch[:2])["score"]}, "return a scalar"),
        ({"forward": forward}, "give loss="),
    ):
        with pytest.raises(secateur.SecateurError, match=words):
            secateur.prune(model, target="params=60%", criterion="taylor", scoring=SCORING, data=data, **functions)


def test_importing_takes_no_torch_and_the_help_neither():
    code = "import sys, secateur; from secateur.cli import main; main(['--help']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.rstrip().endswith("False")
    assert "compress" in said


def test_public_names_are_there():
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None


@pytest.mark.parametrize("build", [unet, dit])
def test_remaining_layers_are_refitted(build):
    scheduler = DDPMScheduler() if build is unet else FlowMatchEulerDiscreteScheduler()
    model, data = build(), TensorDataset(IMAGES, LABELS)
    options = {"data": data, "process": scheduler}
    refit = secateur.CompensationConfig(num_tuples=24, rows=2000)
    pruned = secateur.prune(model, target="macs=60%", criterion="magnitude", **options)
    compensated = secateur.compensate(pruned, model, compensation=refit, **options)
    at_once = secateur.prune(model, target="macs=60%", criterion="magnitude", compensation=refit, **options)
    errors = [F.mse_loss(output(each), output(model)).item() for each in (pruned, compensated)]
    assert errors[1] < errors[0]
    assert torch.allclose(output(at_once), output(compensated), atol=1e-5)
    assert parameters(compensated) == parameters(pruned)


def test_a_run_that_compensates_shows_four_models():
    run = secateur.compress(
        unet(),
        target="macs=60%",
        data=IMAGES,
        process="ddpm",
        compensates=True,
        compensation=secateur.CompensationConfig(num_tuples=24, rows=2000),
        scoring=SCORING,
        recovery=RECOVERY,
        evaluation=EVALUATION,
    )
    assert list(run.evaluation.models) == ["dense", "pruned", "compensated", "recovered"]
    assert run.compensation.readers


def test_what_is_excluded_stays_whole(tmp_path_factory):
    cut = secateur.CutConfig(exclude=("mid_block.*", "down_blocks.0.*"))
    options = {"target": "macs=80%", "data": IMAGES, "process": "ddpm", "criterion": "magnitude", "cut": cut}
    model = unet()
    pruned = secateur.prune(model, **options)
    before, after = (dict(each.mid_block.named_parameters()) for each in (model, pruned))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    assert parameters(pruned) < parameters(model)
    plan = secateur.plan(model, **options)
    assert any(name.startswith("mid_block") for name in plan.cut.excluded)
    assert "not cut    mid_block" in str(plan) or "mid_block" in str(plan)
    with pytest.raises(secateur.SecateurError, match="matches no width"):
        secateur.prune(model, **options | {"cut": secateur.CutConfig(exclude=("nothing.*",))})


@pytest.mark.parametrize("unknown", [False, True])
def test_a_plain_loop_prunes_while_it_trains(own, unknown):
    torch.manual_seed(0)
    model, data = own if unknown else (unet(), DataLoader(TensorDataset(IMAGES), batch_size=4))
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    before = parameters(model)
    functions = {"forward": forward, "loss": loss} if unknown else {"process": scheduler}
    schedule = secateur.ProgressiveConfig(stages=2, decay_stages=1, stage_steps=1)
    pruning = secateur.Pruning(
        model,
        target="params=80%",
        data=data,
        schedule=schedule,
        optimizer=optimizer,
        steps=8,
        scoring=secateur.ScoringConfig(num_timesteps=2, num_images=8),
        **functions,
    )
    changed = 0
    for _ in range(8):
        batch = next(iter(data))
        if unknown:
            error = loss(model, batch)
        else:
            noise, times = torch.randn_like(batch[0]), torch.randint(1000, (len(batch[0]),))
            noisy = scheduler.add_noise(batch[0], noise, times)
            error = F.mse_loss(model(noisy, times, return_dict=False)[0], noise)
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        changed += pruning.step()
    pruning.close()
    assert changed > 0
    assert parameters(model) <= 0.8 * before
    moments = [state["exp_avg"].shape for state in optimizer.state.values()]
    assert moments == [parameter.shape for parameter in model.parameters()]
    assert not any(name.startswith("_secateur") for name in vars(model))


def test_what_a_cell_returns_is_shown_as_it_prints() -> None:
    for shown in (
        secateur.inspect(unet()),
        secateur.plan_prune(unet(), target="macs=60%", process="ddpm", criterion="magnitude"),
    ):
        assert repr(shown) == str(shown)
        assert len(repr(shown)) < 1500
