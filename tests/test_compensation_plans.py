"""Before a compensation: what it needs, what is refused, and what it will cost."""

import copy
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

import models
import secateur
from compensation_runs import BUILDERS, CONFIG, batch_of, compensated, cut_of, process_of
from secateur.base.errors import ModelError, SecateurError, TrainingError
from secateur.cli import main
from secateur.compensation import CompensationConfig, compensate, price
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.structure import remove


@pytest.mark.parametrize("wrong", [{"num_tuples": 1.5}, {"ridge": float("inf")}, {"seed": -1}, {"target": "input"}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SecateurError, match=rf"^compensation {next(iter(wrong))} is .*; .*give "):
        CompensationConfig(**wrong)


def test_what_a_refit_needs_is_known_before_the_cut(tmp_path):
    asked = {"target": "macs=60%", "criterion": "magnitude", "process": "ddpm", "compensation": CompensationConfig()}
    streamed = asked | {"compensation": CompensationConfig(target="stream")}
    for call in (secateur.plan_prune, partial(secateur.prune, out=tmp_path / "out")):
        with pytest.raises(SecateurError, match=r"^the refit is made on data; give data"):
            call(models.unet(), **asked)
        dropping = asked | {"compensation": CompensationConfig(condition_dropout=0.1)}
        with pytest.raises(SecateurError, match="this model has none"):
            call(models.unet(), data=torch.zeros(4, 1, 8, 8), **dropping)
        with pytest.raises(SecateurError, match="the stream target needs blocks that add to a stream"):
            call(models.unet(), data=torch.zeros(4, 1, 8, 8), **streamed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["prune"], ["compress", "--dry-run", "--recipe", "taylor"]])
def test_options_of_a_refit_that_is_not_asked_for_are_refused(tmp_path, capsys, command):
    name, *more = command
    with pytest.raises(SystemExit):
        main([name, "digits-unet", "--target", "50%", "--out", str(tmp_path), "--compensation.ridge", "0.1", *more])
    assert "there is none; add --compensation" in capsys.readouterr().err


def test_refusals():
    dense = BUILDERS["unet"]()
    with pytest.raises(ModelError, match="was not cut"):
        compensate(copy.deepcopy(dense), dense, DiffusionProcess(), batch_of(dense), CONFIG)
    pruned = apply_cut(copy.deepcopy(dense), cut_of(dense, "width"))
    with pytest.raises(ModelError, match="not the model"):
        compensate(pruned, models.unet(layers_per_block=2), DiffusionProcess(), batch_of(dense), CONFIG)
    with pytest.raises(SecateurError, match="use target output"):
        compensate(pruned, dense, DiffusionProcess(), batch_of(dense), replace(CONFIG, target="stream"))
    with pytest.raises(SecateurError, match="this model has none"):
        compensate(pruned, dense, DiffusionProcess(), batch_of(dense), replace(CONFIG, condition_dropout=0.1))
    with pytest.raises(SecateurError, match="num_tuples"):
        CompensationConfig(num_tuples=0)
    with torch.no_grad():
        dense.conv_out.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        compensate(pruned, dense, DiffusionProcess(), batch_of(dense), CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_the_price_is_known_before(name):
    dense = BUILDERS[name]()
    cut, config = cut_of(dense, "both"), replace(CONFIG, rows=200)
    sample, conditions = batch_of(dense, 1).sample, batch_of(dense, 1).conditions
    told = None
    if name == "uvit":
        told = {"x": sample, "timesteps": torch.tensor([1.0]), "y": conditions["class_labels"]}
    predicted = price(dense, [cut], config, told)
    found = compensated(name, "both", config)[3]
    assert predicted.target == found.options["target"]
    assert {key: layer.columns for key, layer in predicted.layers.items()} == {
        key: reader.columns for key, reader in found.readers.items()
    }
    assert min(predicted.flops, predicted.bytes, predicted.waiting_bytes) > 0
    assert predicted.seconds(1e9) == pytest.approx(predicted.flops / 1e9)
    if name not in ("flux", "sd3", "pixart", "sana", "unet-condition"):  # the example's text is longer
        rows = {key: layer.rows for key, layer in predicted.layers.items()}
        assert rows == {key: reader.rows for key, reader in found.readers.items()}


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [("unet", nn.Conv2d, "mid_block.resnets.0.conv2"), ("dit", BasicTransformerBlock, "transformer_blocks.1")],
)
def test_every_tuple_passes_as_often_as_the_price_says(name, kind, layer, monkeypatch):
    """Except for the first micro-batch, which passes once more."""
    dense, config = BUILDERS[name](), replace(CONFIG, num_tuples=96, batch_size=2)
    cut = cut_of(dense, "width")
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    passed = dict.fromkeys((pruned.get_submodule(layer), dense.get_submodule(layer)), 0)
    forward = kind.forward

    def counting(self, x, *args, **kwargs):
        if self in passed:
            passed[self] += len(x)
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counting)
    predicted = price(dense, [cut], config)
    compensate(pruned, dense, process_of(dense), batch_of(dense), config, [cut])
    here, there = (count / config.num_tuples for count in passed.values())
    assert here == pytest.approx(predicted.pruned_passes, abs=0.25)
    assert there == pytest.approx(predicted.dense_passes, abs=0.05)


@pytest.mark.slow
def test_a_dry_run_says_what_it_takes(tmp_path, capsys):
    save_pretrained(models.unet(), tmp_path / "dense", {"_class_name": "DDPMScheduler"})
    asked = (
        "prune",
        str(tmp_path / "dense"),
        "--target",
        "macs=50%",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "out"),
    )
    main([*asked, "--dry-run", "--compensation"])
    said = capsys.readouterr().out
    assert re.search(r"^compensate about", said, re.MULTILINE)
    assert re.search(r"^refit +\d+ layers, about [\d.]+MB? of memory", said, re.MULTILINE)
    main([*asked, "--dry-run", "--no-compensation"])
    assert "refit" not in capsys.readouterr().out
