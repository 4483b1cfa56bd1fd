"""Networks that the library does not know: a user's functions say how they are called and what they lose."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import secateur
from api_runs import IMAGES, RECOVERY, SCORING, nothing_is_written, parameters
from models import unet
from secateur.evaluation import LatencyOptions
from secateur.models.network import input_shape

_nothing_is_written = pytest.fixture(nothing_is_written, autouse=True)


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
