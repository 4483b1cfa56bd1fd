"""The score of `reconstruction` against the refit itself, in float64."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import dit, sample_for, unet
from secateur.base.errors import ModelError, SecateurError, TrainingError
from secateur.criteria import ReconstructionOptions, ScoringConfig, criterion_named, score
from secateur.criteria import reconstruction as module
from secateur.criteria.blocks.measure import draw_tuples
from secateur.data import Batch
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.structure import StructureBuilder

CONFIG = ScoringConfig(num_timesteps=2, batch_size=4)
ALL = 10**6  # rows


class Reading(nn.Module):
    """Four units of two channels, read by a 3 x 3 and by a 1 x 1 convolution."""

    def __init__(self):
        super().__init__()
        self.write, self.near, self.point = (
            nn.Conv2d(1, 8, 1),
            nn.Conv2d(8, 2, 3, padding=1),
            nn.Linear(9, 3, bias=False),
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.double()

    def forward(self, sample, timestep, return_dict=False):
        hidden = self.write(sample).sin() + sample.cos()
        both = torch.cat([sample, hidden], 1).movedim(1, -1)
        return (self.near(hidden).mean(1, keepdim=True) + self.point(both).mean(-1).unsqueeze(1),)


def reading():
    builder = StructureBuilder()
    units = builder.dim("units", 4, 2)
    builder.writes("write", units)
    builder.reads("near", units)
    builder.reads("point", [1, *units])
    return Reading(), builder.build()


def rows_of(model, batch, process):
    """Rows of input and output of the readers, by `unfold`."""
    rows = {"near": [], "point": []}

    def near(module, args, output):
        rows["near"].append((F.unfold(args[0], 3, padding=1).mT.flatten(0, 1), output.flatten(2).mT.flatten(0, 1)))

    def point(module, args, output):
        rows["point"].append((args[0].flatten(0, -2), output.flatten(0, -2)))

    handles = [model.near.register_forward_hook(near), model.point.register_forward_hook(point)]
    with torch.no_grad():
        for tuples in draw_tuples(process, batch, CONFIG):
            model(tuples.noisy, tuples.timesteps)
    for handle in handles:
        handle.remove()
    return {name: [torch.cat(parts) for parts in zip(*pairs, strict=True)] for name, pairs in rows.items()}


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_the_score_is_the_rise_of_the_objective_after_the_best_refit(ridge):
    """Each unit is removed alone; the rest is refitted by `lstsq`, with the ridge as further rows."""
    model, structure = reading()
    process = FlowProcess()
    batch = Batch(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    config = dataclasses.replace(CONFIG, options=ReconstructionOptions(ridge, ALL))
    found = score(model, process, batch, structure, "reconstruction", config).scores["units"]
    expected = torch.zeros(4, dtype=torch.float64)
    for name, (x, y) in rows_of(model, batch, process).items():
        layer = model.get_submodule(name)
        weight = layer.weight.detach().flatten(1).T  # (K, M)
        kernel, offset = (9, 0) if name == "near" else (1, 1)
        pull = ridge * x.square().mean()
        for unit in range(4):
            gone = torch.arange(2 * kernel) + (offset + 2 * unit) * kernel
            kept = [column for column in range(len(weight)) if column not in gone]
            ones = torch.ones(len(x), 0 if layer.bias is None else 1, dtype=torch.float64)
            # The change of what is kept makes good x W of what is gone, and its own size costs `pull`.
            design = torch.cat([x[:, kept], ones], 1) / len(x) ** 0.5
            own = torch.eye(design.shape[1], dtype=torch.float64)[: len(kept)] * pull.sqrt()
            wanted = torch.cat([x[:, gone] @ weight[gone] / len(x) ** 0.5, torch.zeros(len(kept), weight.shape[1])])
            design = torch.cat([design, own])
            change = torch.linalg.lstsq(design, wanted.double()).solution
            rise = (design @ change - wanted).square().sum() + pull * weight[gone].square().sum()
            expected[unit] += rise / y.square().sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_unit_that_others_can_replace_costs_nothing():
    """Its channels are combinations of those of others."""
    model, structure = reading()
    with torch.no_grad():
        model.write.weight[6:] = model.write.weight[:2]
        model.write.bias[6:] = model.write.bias[:2]
    batch = Batch(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    config = dataclasses.replace(CONFIG, options=ReconstructionOptions(1e-10, ALL))
    first, *others, copied = score(model, FlowProcess(), batch, structure, "reconstruction", config).scores["units"]
    assert max(first, copied) < 1e-6 < 1e-4 < min(others)
    none = dataclasses.replace(CONFIG, options=ReconstructionOptions(0, ALL))
    with pytest.raises(TrainingError, match=r"give --scoring\.options\.ridge above 0"):
        score(model, FlowProcess(), batch, structure, "reconstruction", none)


@pytest.mark.parametrize(("make", "process"), [(unet, DiffusionProcess()), (dit, FlowProcess())])
def test_neither_batches_nor_memory_change_the_scores(make, process, monkeypatch):
    model = make()
    structure, batch = describe(model), Batch(*sample_for(model))
    config = ScoringConfig(num_timesteps=2, batch_size=8, options=ReconstructionOptions(rows=16))
    scores = score(model, process, batch, structure, "reconstruction", config).scores
    assert all(values.min() > 0 for name, values in scores.items() if name in structure.dims)
    monkeypatch.setattr(module, "MEMORY", 1)
    again = score(model, process, batch, structure, "reconstruction", dataclasses.replace(config, batch_size=3)).scores
    for name, values in scores.items():
        torch.testing.assert_close(again[name], values, rtol=1e-3, atol=1e-7)
    price = criterion_named("reconstruction").price(model, process, structure, config, config.options)
    assert price.passes > 2 * len(batch.sample) * len(module.unit_columns(model, structure)) / 3


class Line(nn.Module):
    """One width, read by the layers `reads` and by one that is not called; for any image of one channel."""

    def __init__(self, *reads):
        super().__init__()
        self.write, self.idle, self.reads = nn.Linear(1, 4), nn.Linear(4, 1), nn.ModuleList(reads)

    def forward(self, sample, timestep, return_dict=False):
        hidden = self.write(sample.movedim(1, -1)).movedim(-1, 1)
        return (sum((read(hidden) for read in self.reads), sample),)


def score_of(model):
    builder = StructureBuilder()
    units = builder.dim("units", 4)
    builder.writes("write", units)
    for name in ("idle", *(f"reads.{place}" for place in range(len(model.reads)))):
        builder.reads(name, units)
    batch = Batch(torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    return score(model, FlowProcess(), batch, builder.build(), "reconstruction", CONFIG).scores["units"]


@pytest.mark.parametrize(
    "read",
    [
        nn.Conv2d(4, 1, 3, padding="same"),
        nn.Conv2d(4, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 1, 1),
        nn.Conv3d(4, 1, 1),
    ],
)
def test_a_width_whose_reader_cannot_be_refitted_is_refused(read):
    with pytest.raises(ModelError, match=r"cannot score units: reads\.0, which reads it, is neither .*; exclude"):
        score_of(Line(read))


def test_a_reader_that_is_not_called_is_left_out_unless_it_is_the_only_one():
    assert score_of(Line(nn.Conv2d(4, 1, 1))).min() > 0
    with pytest.raises(ModelError, match="cannot score units: the model calls no layer that reads it; exclude"):
        score_of(Line())


def test_options_that_make_no_sense_are_refused():
    for options in ({"ridge": -1.0}, {"rows": 0}):
        with pytest.raises(SecateurError, match="give"):
            ReconstructionOptions(**options)
