"""The functions of the library with objects in memory: modules, processes, data, and what is refused."""

import inspect
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import secateur
from api_runs import EVALUATION, IMAGES, LABELS, RECOVERY, SCORING, nothing_is_written, parameters
from models import dit, output, unet

_nothing_is_written = pytest.fixture(nothing_is_written, autouse=True)


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
    with pytest.raises(secateur.SecateurError, match="the model has no dim or block named mid"):
        secateur.apply_cut(model, secateur.Cut({"mid": (0,)}))
    with pytest.raises(secateur.SecateurError, match="Linear"):
        secateur.describe(torch.nn.Linear(2, 2))


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


def test_what_a_cell_returns_is_shown_as_it_prints() -> None:
    for shown in (
        secateur.inspect(unet()),
        secateur.plan_prune(unet(), target="macs=60%", process="ddpm", criterion="magnitude"),
    ):
        assert repr(shown) == str(shown)
        assert len(repr(shown)) < 1500
