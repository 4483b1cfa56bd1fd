"""Recovery in less memory: offloading, smaller optimizers, bfloat16, and how its memory is counted before."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from frugal_runs import CONFIG, CPU, trained
from models import dit, output, unet
from no_float64 import Elsewhere
from progressive_runs import BOTH, QUICK, pruner_for
from secateur.base.errors import TrainingError
from secateur.models.jacobian import project, unit_directions
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, checkpoints, recover
from secateur.recovery import memory as counting
from secateur.recovery.checkpoints import TrainingState, restore_checkpoint, save_checkpoint
from secateur.recovery.ema import Ema
from secateur.recovery.lora import LoraConfig
from secateur.recovery.memory import affordable, recovery_memory
from secateur.recovery.offload import visiting
from secateur.recovery.optimizers import build_optimizer
from secateur.recovery.rounding import RoundedAdamW, stochastically_rounded
from secateur.recovery.shards import block_names
from secateur.recovery.surgery import cut_in_training
from secateur.structure import Cut
from secateur.structure.memory import LiveBytes
from training_runs import Failing, assert_same, images, smaller


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.cat([(mine - theirs).flatten() for mine, theirs in pairs]).norm().item()


# ------------------------------------------------------------------------------------------------------- offload


@pytest.mark.parametrize("objective", ["distillation", "2ndmatch"])
def test_offload_changes_nothing(objective, tmp_path):
    expected = trained(tmp_path / "kept", objective=objective)
    teacher = smaller()
    config = replace(CONFIG, objective=objective, offload=("ema", "teacher"))
    found = recover(dit(), FlowProcess(), images(), config, tmp_path / "away", teacher)
    assert_same(expected, found)
    assert_same(smaller(), teacher)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_blocks_visit_the_device_one_at_a_time():
    model, expected = dit(), output(dit())
    blocks = [model.get_submodule(name) for name in block_names(model)]
    homes = [parameter for block in blocks for parameter in block.parameters()]
    handles = visiting(model, blocks, CPU)
    largest = max(sum(4 * parameter.numel() for parameter in block.parameters()) for block in blocks)
    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers()]) as live:
        assert torch.equal(output(model), expected)
    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers()]) as plain:
        for handle in handles:
            handle.remove()
        assert torch.equal(output(model), expected)
    assert plain.peak < live.peak < plain.peak + 2 * largest
    assert [parameter for block in blocks for parameter in block.parameters()] == homes
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.7]), {"class_labels": torch.tensor([0, 1])}
    directions = unit_directions([torch.randn(2, 1, 8, 8)])
    expected = project(model, x, t, labels, directions)
    visiting(model, blocks, CPU)
    for one, other in zip(expected[1], project(model, x, t, labels, directions)[1], strict=True):
        assert torch.equal(one, other)


def test_weights_that_do_not_train_are_in_memory_once():
    model = dit()
    model.transformer_blocks.requires_grad_(False)
    ema = Ema(model)
    theirs = {id(parameter) for parameter in model.transformer_blocks.parameters()}
    assert theirs == {id(parameter) for parameter in ema.model.transformer_blocks.parameters()}
    with torch.no_grad():
        model.pos_embed.proj.weight.add_(1)
    ema.update(model, 10**9)
    ema.apart()
    assert theirs.isdisjoint(id(parameter) for parameter in ema.model.parameters())
    assert theirs == {id(parameter) for parameter in model.transformer_blocks.parameters()}
    ema.model.transformer_blocks[0].norm1.linear.weight.data.fill_(0)
    assert model.transformer_blocks[0].norm1.linear.weight.any()


# ------------------------------------------------------------------------------------- weights in half precision


def test_rounding_keeps_the_mean():
    torch.manual_seed(0)
    values = torch.tensor([1.0, 1.001, -3.3, 1e-8, 0.0])
    rounded = stochastically_rounded(values.repeat(20000, 1))
    low, high = rounded.float().min(0).values, rounded.float().max(0).values
    assert (low <= values).all()
    assert (values <= high).all()
    torch.testing.assert_close(rounded.double().mean(0), values.double(), rtol=1e-4, atol=0)
    assert torch.equal(stochastically_rounded(values.bfloat16().float()), values.bfloat16())


def test_small_updates_of_bfloat16_weights_add_up():
    """Each of 200 steps is an eighth of a weight's last bit."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = RoundedAdamW([{"params": [weights]}], lr=2**-10, betas=(0.9, 0.999))
    for _ in range(200):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    assert weights.float().mean().item() == pytest.approx(1 - 200 * 2**-10, rel=5e-3)


@pytest.mark.slow
def test_training_in_bfloat16_learns_and_resumes_to_the_bit(tmp_path):
    expected = trained(tmp_path / "whole", weight_precision="bf16")
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(5, OSError), replace(CONFIG, weight_precision="bf16"), tmp_path / "cut")
    assert_same(expected, trained(tmp_path / "cut", weight_precision="bf16"))
    assert {parameter.dtype for parameter in expected.parameters()} == {torch.float32}
    full = trained(tmp_path / "full")
    assert distance(full, expected) < 0.5 * distance(full, dit())


# ---------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(("changes", "place"), [({}, "meta"), ({"weight_precision": "bf16"}, "cpu")])
def test_counters_of_steps_are_read_to_where_the_optimizer_counts(changes, place, monkeypatch, tmp_path):
    """The fused kernel counts on the device; other rules would wait for it at every parameter."""
    model, config = dit(), replace(CONFIG, **changes)
    state = TrainingState(model, Ema(model), build_optimizer(config, model), None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    save_checkpoint(tmp_path, state, {"steps": 1, "lr_schedule": "constant"})
    load = checkpoints.load_file

    def to_device(*args: object, **options: object) -> dict[str, torch.Tensor]:
        return {name: Elsewhere(value) if value.ndim == 0 else value for name, value in load(*args, **options).items()}

    monkeypatch.setattr(checkpoints, "load_file", to_device)
    restore_checkpoint(tmp_path, state, {"steps": 1, "lr_schedule": "constant"})
    assert {remembered["step"].device.type for remembered in state.optimizer.state.values()} == {place}


@pytest.mark.slow
def test_adafactor_learns_while_units_are_removed_and_resumes_to_the_bit(tmp_path):
    config = replace(CONFIG, optimizer="adafactor")
    pruner = pruner_for(unet(), DiffusionProcess(), "macs=60%", "random", BOTH, QUICK)
    expected = recover(unet(), DiffusionProcess(), images(), config, tmp_path / "whole", None, pruner)
    with pytest.raises(OSError, match=r"^$"):
        recover(unet(), DiffusionProcess(), Failing(5, OSError), config, tmp_path / "cut", None, pruner)
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), config, tmp_path / "cut", None, pruner))


def test_sums_over_rows_and_columns_are_cut_with_the_weights():
    model = dit()
    optimizer = torch.optim.Adafactor(model.parameters())
    labels = torch.tensor([0, 1])
    model(torch.randn(2, 1, 8, 8), timestep=torch.tensor([1, 2]), class_labels=labels).sample.square().sum().backward()
    optimizer.step()
    name, kept = "transformer_blocks.0.ff", tuple(range(0, 64, 2))
    weight = model.transformer_blocks[0].ff.net[0].proj.weight
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    assert describe(model).dims[name].size >= 64
    cut_in_training(model, Cut({name: kept}, ()), optimizer)
    after = optimizer.state[model.transformer_blocks[0].ff.net[0].proj.weight]
    assert torch.equal(after["row_var"], before["row_var"][list(kept)])
    assert torch.equal(after["col_var"], before["col_var"])


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_moments_of_eight_bits_are_cut_kept_and_resumed_to_the_bit(tmp_path):
    config = replace(CONFIG, optimizer="adamw8bit")
    pruner = pruner_for(dit(), FlowProcess(), "macs=70%", "random", BOTH, QUICK)
    with torch.compiler.set_stance("force_eager"):
        expected = recover(dit(), FlowProcess(), images(), config, tmp_path / "whole", None, pruner)
        with pytest.raises(OSError, match=r"^$"):
            recover(dit(), FlowProcess(), Failing(5, OSError), config, tmp_path / "cut", None, pruner)
        found = recover(dit(), FlowProcess(), images(), config, tmp_path / "cut", None, pruner)
        assert_same(expected, found)
        near = recover(dit(), FlowProcess(), images(), CONFIG, tmp_path / "exact")
        alone = recover(dit(), FlowProcess(), images(), config, tmp_path / "alone")
    assert 0 < distance(near, alone) < 0.3 * distance(near, dit())


# -------------------------------------------------------------------------------------------- what it would take


MEASURED = [
    {},
    {"objective": "distillation", "accumulation": 2},
    {"objective": "features"},
    {"objective": "2ndmatch"},
    {"objective": "first-order", "jacobian": JacobianConfig(every_n_samples=2)},
    {"optimizer": "adafactor", "offload": ("ema",)},
    {"optimizer": "muon"},
    {"weight_precision": "bf16", "objective": "distillation"},
    {"mixed_precision": "bf16", "objective": "distillation"},
    {"gradient_checkpointing": True},
    {"freeze": ("transformer_blocks.0.*",)},
    {"lora": LoraConfig(2)},
    {"lora": LoraConfig(2), "weight_precision": "bf16"},
]


@pytest.mark.parametrize("changes", MEASURED)
def test_the_memory_of_a_recovery_is_counted_before(changes, tmp_path):
    """The count is compared with the tensors that training creates; both models are on the device already."""
    if "lora" in changes and find_spec("peft") is None:
        pytest.skip("needs peft")
    config = replace(CONFIG, steps=2, batch_size=8, grad_norms_every=0, checkpoint_every=100, dropout=None, **changes)
    model, teacher, data = dit(), smaller(), images()
    counted = recovery_memory(model, teacher, FlowProcess(), config)
    before = 0 if config.weight_precision == "bf16" else bytes_of(model)  # else the weights given are replaced
    known = [tensor for network in (model, teacher) for tensor in (*network.parameters(), *network.buffers())]
    with LiveBytes(known) as live:
        recover(model, FlowProcess(), data, config, tmp_path, teacher)
    kept = bytes_of(teacher) if counted.teacher else 0
    away = bytes_of(model) if "offload" in changes else 0  # the average, which is on the CPU here as everything is
    assert counted.total == pytest.approx(before + kept + live.peak - away, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": True}, {"mixed_precision": "bf16", "objective": "distillation", "batch_size": 4}],
)
def test_the_memory_of_many_equal_blocks_is_counted_before(changes, tmp_path):
    """Activations of all of them are kept; of those that are computed again, one block's at a time; and a teacher's
    weights are rounded one at a time."""
    config = replace(CONFIG, steps=2, batch_size=64, grad_norms_every=0, checkpoint_every=100, dropout=None)
    config = replace(config, **changes)
    model, teacher = dit(num_layers=12), dit(num_layers=12)
    counted = recovery_memory(model, teacher, FlowProcess(), config)
    known = [tensor for network in (model, teacher) for tensor in (*network.parameters(), *network.buffers())]
    with LiveBytes(known) as live:
        recover(model, FlowProcess(), images(), config, tmp_path, teacher)
    kept = bytes_of(teacher) if counted.teacher else 0
    assert counted.total == pytest.approx(bytes_of(model) + kept + live.peak, rel=0.01)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def bytes_of(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_shards_take_a_share_of_all_but_the_passes():
    whole = recovery_memory(dit(), smaller(), FlowProcess(), replace(CONFIG, batch_size=8, objective="distillation"))
    config = replace(CONFIG, batch_size=8, objective="distillation", parallel="fsdp")
    shared = recovery_memory(dit(), smaller(), FlowProcess(), config, processes=4)
    assert shared.average == whole.average // 4
    assert shared.moments == whole.moments // 4
    assert whole.weights // 4 < shared.weights < whole.weights
    assert shared.passes < whole.passes


@pytest.mark.slow
def test_auto_changes_what_changes_no_result_until_it_fits(monkeypatch, capsys):
    model, process = dit(), FlowProcess()
    config = replace(CONFIG, batch_size=8, memory="auto")
    asked = recovery_memory(model, None, process, config).total
    saving = recovery_memory(model, None, process, replace(config, gradient_checkpointing=True)).total
    assert saving < asked
    for available, changes in (
        (2 * asked, {}),
        ((asked + saving) // 2, {"gradient_checkpointing": True}),
        (saving - 1, {"gradient_checkpointing": True, "accumulation": 2}),
    ):
        monkeypatch.setattr(
            counting, "device_memory", lambda device, bytes_=available: int(bytes_ / counting.SHARE) + 1
        )
        assert affordable(model, None, process, config, CPU) == replace(config, **changes)
    monkeypatch.setattr(counting, "device_memory", lambda device: 1000)
    with pytest.raises(TrainingError, match=r"give recovery\.weight_precision bf16, recovery\.optimizer adamw8bit"):
        affordable(model, None, process, config, CPU)
    assert affordable(model, None, process, replace(config, memory="given"), CPU).accumulation == 1


def test_offload_and_memory_may_change_when_a_run_resumes(tmp_path):
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(5, OSError), CONFIG, tmp_path / "cut", None)
    found = recover(dit(), FlowProcess(), images(), replace(CONFIG, offload=("ema",)), tmp_path / "cut")
    assert_same(recover(dit(), FlowProcess(), images(), CONFIG, tmp_path / "whole"), found)
    saved = json.loads(next((tmp_path / "cut" / "checkpoints").glob("*/state.json")).read_text())
    assert saved["settings"]["offload"] == ["ema"]
