"""`Pruning` in other training loops: plain PyTorch, accelerate; any optimizer, any average, tied weights."""

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur
from loop_runs import DATA, LABELLED, SCORING, macs, pruning_of
from models import dit, output, unet
from secateur.base.errors import TrainingError
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.recovery import AttachedPruner, Decision, Ema, RecoveryConfig, recover
from secateur.recovery.surgery import cut_in_training
from secateur.schedules import AdaptiveConfig, CutConfig, ProgressiveConfig
from secateur.structure import Cut, StructureBuilder, remove
from training_runs import assert_same, images


def test_a_plain_loop_of_thirty_lines():
    torch.manual_seed(0)
    model = unet().train()
    dense = macs(model)
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    ema = EMAModel(model.parameters(), decay=0.5)
    pruning = secateur.Pruning(
        model,
        target="macs=60%",
        optimizer=optimizer,
        ema=ema,
        data=DATA,
        process=DDPMScheduler(),
        steps=30,
        scoring=SCORING,
        cut=CutConfig(round_to=2),
    )
    changed = []
    for _ in range(30):
        noise, t = torch.randn_like(DATA), torch.randint(1000, (4,))
        loss = F.mse_loss(model(scheduler.add_noise(DATA, noise, t), t).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        ema.step(model.parameters())
        changed.append(pruning.step())
    assert changed == [step == 14 for step in range(30)]  # 15 stages, one at each step
    assert 0.5 < macs(model) / dense <= 0.6
    assert loss.isfinite()
    assert all(optimizer.state[parameter]["exp_avg"].shape == parameter.shape for parameter in model.parameters())
    before = output(model.eval())
    ema.copy_to(model.parameters())
    assert (output(model) - before).abs().max() > 1e-6


OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, 1e-2, amsgrad=True),
    "SGD": lambda groups: torch.optim.SGD(groups, 1e-2, momentum=0.9),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, 1e-3, momentum=0.9),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, 1e-2),
}
AVERAGES = {
    "ours": lambda model: Ema(model, 0.5),
    "torch": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "diffusers": lambda model: EMAModel(model.parameters(), decay=0.5),
    "none": lambda model: None,
}


class Loop:
    """Training of a tiny U-Net with two groups of parameters, one of which also has another network's."""

    def __init__(self, make, average):
        self.model, self.other = unet(attention_head_dim=None).train(), nn.Linear(2, 2)
        biases = [p for name, p in self.model.named_parameters() if name.endswith("bias")]
        weights = [p for name, p in self.model.named_parameters() if not name.endswith("bias")]
        groups = [{"params": biases, "weight_decay": 0.0}, {"params": [*weights, *self.other.parameters()]}]
        self.optimizer = OPTIMIZERS[make](groups)
        self.ema = AVERAGES[average](self.model)
        self.pruning = pruning_of(self.model, self.optimizer, self.ema)

    def step(self, number):
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(number))
        (self.model(x, 3).sample.square().mean() + self.other(x[0, 0, :1, :2]).mean()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.ema, Ema):
            self.ema.update(self.model, number)
        elif isinstance(self.ema, AveragedModel):
            self.ema.update_parameters(self.model)
        elif self.ema is not None:
            self.ema.step(self.model.parameters())
        return self.pruning.step()

    def saved(self):
        ema = self.ema.model if isinstance(self.ema, Ema) else self.ema
        parts = self.pruning, self.model, self.optimizer, *([ema] if ema is not None else []), self.other
        return [copy.deepcopy(part.state_dict()) for part in parts]

    def load(self, saved):
        ema = self.ema.model if isinstance(self.ema, Ema) else self.ema
        parts = self.pruning, self.model, self.optimizer, *([ema] if ema is not None else []), self.other
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "average"),
    [("AdamW", "ours"), ("SGD", "torch"), ("RMSprop", "diffusers"), ("Adafactor", "none")],
)
def test_any_optimizer_and_average_follow_and_resume_to_the_bit(make, average):
    loop = Loop(make, average)
    changed, halfway = [], {}
    for number in range(6):
        changed.append(loop.step(number))
        halfway[number] = loop.saved()
    assert changed == [False, False, False, True, False, False]
    expected = loop.saved()
    own = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    assert set(own) == {*loop.model.parameters(), *loop.other.parameters()}
    assert [len(group["params"]) for group in loop.optimizer.param_groups] == [
        sum(name.endswith("bias") for name, _ in loop.model.named_parameters()),
        sum(not name.endswith("bias") for name, _ in loop.model.named_parameters()) + 2,
    ]
    for number in (1, 4):  # under soft masks, and after the cut
        again = Loop(make, average)
        halfway[number][0] = json.loads(json.dumps(halfway[number][0]))
        again.load(halfway[number])
        for later in range(number + 1, 6):
            again.step(later)
        for one, other in zip(expected[1:], again.saved()[1:], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_states_that_are_means_over_an_axis_are_cut_along_the_others():
    loop = Loop("Adafactor", "none")
    loop.step(0)
    before = {name: dict(loop.optimizer.state[p]) for name, p in loop.model.named_parameters()}
    kept = (0, 3, 4, 7)
    cut_in_training(loop.model, Cut({"down_blocks.0.resnets.0.inner": kept}), loop.optimizer)
    name = "down_blocks.0.resnets.0.time_emb_proj.weight"
    after = loop.optimizer.state[loop.model.get_parameter(name)]
    assert torch.equal(after["row_var"], before[name]["row_var"][list(kept)])
    assert torch.equal(after["col_var"], before[name]["col_var"])


def test_optimizer_state_that_cannot_be_cut_is_reset():
    model = unet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["quantized"] = torch.ones(3)
    cut_in_training(model, Cut({"down_blocks.0.resnets.0.inner": (0, 3, 4, 7)}), optimizer)
    assert model.down_blocks[0].resnets[0].conv1.weight not in optimizer.state
    assert torch.equal(optimizer.state[model.conv_in.weight]["quantized"], torch.ones(3))


def test_an_average_of_other_parameters_is_refused():
    model = unet()
    ema = EMAModel(list(model.parameters())[1:])
    with pytest.raises(TrainingError, match=r"the average holds .* tensors, the model"):
        cut_in_training(model, Cut({"down_blocks.0.resnets.0.inner": (0, 3, 4, 7)}), average=ema)


@pytest.mark.parametrize("schedule", ["one-shot", "adaptive"])
def test_other_schedules_in_a_plain_loop(schedule):
    model = dit()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pruning = secateur.Pruning(
        model,
        target="blocks=2",
        schedule=schedule if schedule == "one-shot" else AdaptiveConfig(stages=2, until=0.5, selector="fixed"),
        data=[(DATA, torch.arange(4))],
        process="flow",
        optimizer=optimizer,
        steps=6,
        criterion="random",
        scoring=SCORING,
    )
    changed = []
    for _ in range(6):
        model(DATA, torch.full((4,), 3), torch.arange(4)).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        changed.append(pruning.step())
    assert changed == ([True] + [False] * 5 if schedule == "one-shot" else [True, False, False, True, False, False])
    assert len(model.transformer_blocks) == 2
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    assert [len(cut["removed_blocks"]) for cut in pruning.cuts] == ([2] if schedule == "one-shot" else [1, 1])


def test_decisions_are_made_on_an_average_without_dropout():
    model = unet(dropout=0.5).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    modes = []

    class Watching:
        base_id, refit = "", None
        settings = staticmethod(dict)
        due = staticmethod(lambda step: True)

        def decide(self, model, average, pruning, step):
            modes.append(average.training)
            return Decision({}, {}, {})

    AttachedPruner(Watching(), model, average=average).step()
    assert modes == [False]
    assert average.module.training


def test_an_average_that_needs_no_gradients_decides_as_one_that_does():
    decisions = []
    for frozen in (False, True):
        model = dit()
        average = copy.deepcopy(model).requires_grad_(not frozen)
        pruning = pruning_of(
            model,
            ema=average,
            target="blocks=2",
            schedule=AdaptiveConfig(stages=2),
            data=[(DATA, torch.arange(4))],
            process="flow",
            criterion="magnitude",
            cut=None,
        )
        pruning.step()
        decisions.append(pruning.records)
        assert all(parameter.requires_grad is not frozen for parameter in average.parameters())
    assert decisions[0] == decisions[1]
    assert decisions[0][0]["candidates"][0]["ntk"] is not None


def test_a_loop_of_accelerate_keeps_its_own_accelerator(tmp_path):
    """A recovery in between uses another precision and does not change the caller's accelerator."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    try:
        model = unet().train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA), batch_size=2)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        ema = EMAModel(model.parameters(), decay=0.5)
        pruning = pruning_of(model, optimizer, ema)
        changed = []
        for epoch in range(6):
            for (x,) in loader:
                with accelerator.accumulate(model):
                    loss = model(x, torch.zeros(2, dtype=torch.int64)).sample.square().mean()
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    ema.step(model.parameters())
                    changed.append(pruning.step())
            if epoch == 1:
                recover(unet(), DiffusionProcess(), images(), RecoveryConfig(steps=1, batch_size=4), tmp_path)
                assert AcceleratorState().mixed_precision == accelerator.mixed_precision == "bf16"
        assert changed == [False, False, False, True, False, False]
        assert accelerator.gradient_accumulation_steps == 2
        assert loss.isfinite()
        assert "forward" in vars(model)  # autocast is still on it
        plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        assert macs(plain) <= 0.6 * macs(unet())
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# ------------------------------------------------------------------------------------------------ tied weights


class Tied(nn.Module):
    """Two layers that share one weight; the structure declares both names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.second.weight = self.first.weight
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        return self.out(torch.relu(self.first(x)) * self.second(x))


def describe_tied(model):
    structure = StructureBuilder()
    hidden = structure.dim("hidden", model.out.in_features)
    for name in ("first", "second"):
        structure.writes(name, hidden, bias=False)
    structure.reads("out", hidden)
    return structure.build()


def test_tied_weights_stay_tied():
    secateur.register_structure(Tied, describe_tied)
    model, x = Tied(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    buffer = optimizer.state[model.first.weight]["momentum_buffer"].clone()
    expected = remove(copy.deepcopy(model), describe(model), Cut({"hidden": (0, 2, 5)}))
    average = copy.deepcopy(model)
    cut_in_training(model, Cut({"hidden": (0, 2, 5)}), optimizer, average)
    for network in (model, average, expected):
        assert network.first.weight is network.second.weight
        assert network.first.weight.shape == (3, 4)
    assert_same(model, expected)
    assert torch.equal(optimizer.state[model.first.weight]["momentum_buffer"], buffer[[0, 2, 5]])
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) == 3


# ----------------------------------------------------------------------------------------- examples, compilers


@pytest.mark.slow
def test_the_example_prunes_to_half_of_the_macs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "your_own_loop.py"))
    example["main"].__globals__["STEPS"] = 40
    example["main"]()
    assert "units were removed" in capsys.readouterr().out
    assert secateur.inspect("pruned-digits").history[0]["target"] == "macs=50%"


@pytest.mark.slow
def test_compiled_models_train_under_the_masks():
    model = dit()
    compiled = torch.compile(model, backend="eager")
    schedule = ProgressiveConfig(stages=2, decay_stages=3, stage_steps=1)
    pruning = pruning_of(compiled, steps=9, schedule=schedule, data=LABELLED)
    inputs = example_inputs(model, 2)
    for _ in range(3):
        assert not pruning.step()
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs).sample, model(**inputs).sample)
    assert min(min(values) for values in pruning.masks.values()) < 1
