"""Recovery of a part of the weights: frozen ones, low-rank factors, and what is refused."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from frugal_runs import CONFIG, CPU, trained
from models import dit, flux, sana, unet
from secateur.base.errors import TrainingError
from secateur.process.flow import FlowProcess
from secateur.recovery import recover
from secateur.recovery.lora import LoraConfig, add_lora, check_lora, merge_lora
from secateur.recovery.shards import block_names
from secateur.recovery.student import check_student, make_ready
from training_runs import Failing, assert_same, images, log, smaller


def test_frozen_weights_stay(tmp_path):
    found = trained(tmp_path, freeze=("transformer_blocks.*", "pos_embed.*"))
    for name, value in dit().named_parameters():
        frozen = name.startswith(("transformer_blocks.", "pos_embed."))
        assert torch.equal(found.get_parameter(name), value) == frozen, name


def test_what_is_frozen_gets_no_factors(monkeypatch):
    peft: Any = ModuleType("peft")
    peft.__spec__, peft.LoraConfig = ModuleSpec("peft", None), lambda **options: options["target_modules"]
    given: list[str] = []
    peft.inject_adapter_in_model = lambda names, model, adapter: given.extend(names.replace("\\", "").split("|"))
    monkeypatch.setitem(sys.modules, "peft", peft)
    config = replace(CONFIG, lora=LoraConfig(2), freeze=("*.attn1.*",))
    make_ready(dit(), config, CPU)
    assert "transformer_blocks.0.ff.net.2" in given
    assert not [name for name in given if ".attn1." in name]
    with pytest.raises(TrainingError, match="freeze leaves none of the layers that lora targets"):
        check_student(dit(), replace(config, lora=LoraConfig(2, targets=("*.attn1.*",))))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
def test_low_rank_factors_are_trained_merged_and_kept(tmp_path):
    config = replace(CONFIG, lora=LoraConfig(2, targets=("*.attn1.*", "*.ff.*"), keep=True), objective="distillation")
    student = dit()
    expected = recover(student, FlowProcess(), images(), config, tmp_path / "whole", smaller())
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(5, OSError), config, tmp_path / "cut", smaller())
    assert_same(expected, recover(dit(), FlowProcess(), images(), config, tmp_path / "cut", smaller()))
    assert [name for name, _ in expected.named_parameters()] == [name for name, _ in dit().named_parameters()]
    assert all(parameter.requires_grad for parameter in (*expected.parameters(), *student.parameters()))
    factors = load_file(tmp_path / "whole" / "lora.safetensors")
    for name, before in dit().named_parameters():
        changed = expected.get_parameter(name) - before
        layer = name.removesuffix(".weight")
        if f"transformer.{layer}.lora_A.weight" in factors:
            product = factors[f"transformer.{layer}.lora_B.weight"] @ factors[f"transformer.{layer}.lora_A.weight"]
            torch.testing.assert_close(changed, product, rtol=1e-4, atol=1e-6)
            assert product.any()
        else:
            assert not changed.any(), name
    longer = replace(config, steps=60, learning_rate=1e-2, dropout=0.0, log_every=20, weights={"denoising": 0.0})
    recover(dit(), FlowProcess(), images(), longer, tmp_path / "longer", smaller())
    assert log(tmp_path / "longer")[-1]["distillation"] < 0.8 * log(tmp_path / "longer")[0]["distillation"]


@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("make", [unet, dit])
def test_networks_with_factors_have_the_blocks_of_those_without(make):
    """By which their weights are sharded, and copied to the device."""
    model = make()
    expected = block_names(model)
    assert expected
    add_lora(model, LoraConfig(2))
    assert block_names(model) == expected
    assert "peft_config" in vars(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("nothing.*",)}, "freeze nothing.* matches no parameter; there is pos_embed"),
        ({"freeze": ("*",)}, "leaves nothing to train"),
        ({"weight_precision": "bf16", "optimizer": "muon"}, "not by muon"),
        ({"parallel": "fsdp", "optimizer": "adafactor"}, "adafactor does not work on shards"),
    ],
)
def test_incompatible_options_are_refused(changes, message):
    with pytest.raises(TrainingError, match=message.replace("*", r"\*")):
        check_student(dit(), replace(CONFIG, **changes))


def test_a_frozen_network_is_refused():
    with pytest.raises(TrainingError, match=r"^no weight of DiTTransformer2DModel requires a gradient; call its"):
        check_student(dit().requires_grad_(False), CONFIG)


@pytest.mark.parametrize(
    ("module", "changes", "extra"),
    [("peft", {"lora": LoraConfig(4)}, "lora"), ("torchao", {"optimizer": "adamw8bit"}, "optimizers")],
)
def test_a_library_that_is_not_there_is_named(module, changes, extra, monkeypatch):
    for place in ("student", "lora"):
        monkeypatch.setattr(f"secateur.recovery.{place}.find_spec", lambda name: None if name == module else True)
    with pytest.raises(TrainingError, match=rf"needs {module}; pip install 'secateur\[{extra}\]'"):
        check_student(dit(), replace(CONFIG, **changes))


def test_only_the_layers_that_are_named_get_factors_and_no_convolutions_in_groups():
    pytest.importorskip("peft")
    model = flux()
    add_lora(model, LoraConfig(2, targets=("proj_out",)))
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        f"proj_out.lora_{part}.recovery.weight" for part in "AB"
    ]
    model = sana()
    names = check_lora(LoraConfig(4), model)
    grouped = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert grouped
    assert not set(grouped) & set(names)
    with pytest.raises(TrainingError, match="match no layer"):
        check_lora(LoraConfig(4, targets=("*.conv_depth",)), model)
    add_lora(model, LoraConfig(4))
    merge_lora(model)
